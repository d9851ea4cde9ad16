"""Steps for sound."""

from __future__ import annotations

import io
import math
import wave
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mlscope_lab.errors import InputError
from mlscope_lab.processing.base import Step
from mlscope_lab.processing.sources import read_bytes, source_name

__all__ = ["AudioFrames"]


def _decoded(data: bytes, rate: int, name: str, channel: str) -> npt.NDArray[np.float32]:
    """Return the samples of a PCM WAV file, of one channel or the mean of all, float32 in -1..1."""
    try:
        with wave.open(io.BytesIO(data)) as file:
            channels, width, found = file.getnchannels(), file.getsampwidth(), file.getframerate()
            raw = file.readframes(file.getnframes())
    except (wave.Error, EOFError, ValueError, ArithmeticError, RuntimeError, OSError) as error:
        raise InputError(
            f"{name} is not a WAV file with integer (PCM) samples: {error or 'it is cut off'}; "
            "export it as 16-bit PCM WAV"
        ) from error
    if found != rate:
        raise InputError(
            f"{name} is sampled at {found} Hz, the model takes {rate} Hz; resample it first, "
            f"e.g. with scipy.signal.resample_poly(x, {rate}, {found})"
        )
    if len(raw) % (width * channels):
        raise InputError(f"{name} is cut off in the middle of a sample; export it again")
    if width == 1:  # 8-bit WAV is unsigned, wider ones are signed (RIFF multimedia specification)
        samples = (np.frombuffer(raw, dtype=np.uint8).astype(np.float32) - 128.0) / np.float32(128)
    elif width == 3:
        octets = np.frombuffer(raw, dtype=np.uint8).reshape(-1, 3).astype(np.int32)
        values = octets[:, 0] | octets[:, 1] << 8 | octets[:, 2] << 16
        samples = (values - ((values & 0x800000) << 1)).astype(np.float32) / np.float32(1 << 23)
    else:
        samples = np.frombuffer(raw, dtype=f"<i{width}").astype(np.float32) / np.float32(1 << (8 * width - 1))
    if channel == "left":
        return np.ascontiguousarray(samples.reshape(-1, channels)[:, 0])
    mono: npt.NDArray[np.float32] = samples.reshape(-1, channels).mean(axis=1, dtype=np.float32)
    return mono


def _faster(sound: npt.NDArray[np.float32], speed: float) -> npt.NDArray[np.float32]:
    count = max(1, math.floor((sound.size - 1) / speed) + 1)
    places = np.arange(count, dtype=np.float64) * speed
    return np.interp(places, np.arange(sound.size), sound).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class AudioFrames(Step):
    """Cut a sound into frames.

    Takes the path or the bytes of a WAV file with 8, 16, 24 or 32-bit PCM samples, or a one-dimensional array that is
    sampled at `rate` already (floating point in -1..1, or int16). The frames are rows, so they
    become the batch.

    Parameters
    ----------
    rate
        Samples a second that the model takes; another rate is an error, for resampling is a choice of its own.
    length
        New samples in a frame.
    hop
        Samples from one frame's start to the next; `length` if not given.
    context
        Samples before a frame that are put in front of it; zeros before the sound begins.
    start
        Sample at which the first frame begins.
    frames
        How many frames; all if not given. The last one is filled up with zeros.
    channel_axis
        Append an axis of length 1.
    channel
        Of files: the "mean" of all channels, or the "left" one alone.
    speed
        Play the sound so many times faster, by linear interpolation. What was sampled at 8,000 Hz and is taken for
        16,000 Hz comes twice as fast.
    """

    rate: int = 16000
    length: int = 512
    hop: int | None = None
    context: int = 0
    start: int = 0
    frames: int | None = None
    channel_axis: bool = False
    channel: Literal["mean", "left"] = "mean"
    speed: float = 1.0

    def __post_init__(self) -> None:
        if not 0.01 <= self.speed <= 100:
            raise InputError(f"speed must lie between 0.01 and 100, not {self.speed}")
        for name, least in (("rate", 1), ("length", 1), ("hop", 1), ("frames", 1), ("context", 0), ("start", 0)):
            number = getattr(self, name)
            if number is not None and number < least:
                raise InputError(f"{name} must be at least {least}, not {number}")

    def __call__(self, value: Any) -> npt.NDArray[np.float32]:
        """Return float32 (frame, context + length), with a last axis of 1 if `channel_axis`."""
        name = source_name(value)
        sound = (
            self._samples(value)
            if isinstance(value, np.ndarray)
            else _decoded(read_bytes(value), self.rate, name, self.channel)
        )
        if self.speed != 1.0:
            sound = _faster(sound, self.speed)
        if sound.size <= self.start:
            raise InputError(f"{name} has {sound.size} samples, none from sample {self.start} on")
        hop = self.hop or self.length
        available = -(-(sound.size - self.start) // hop)
        count = available if self.frames is None else self.frames
        if count > available:
            raise InputError(f"{name} gives {available} frames, {count} are asked for; give a longer sound")
        cells = count * (self.context + self.length)
        if cells > 1 << 28:
            raise InputError(f"{name} gives {count} frames, {cells} samples in all; set frames or a longer hop")
        end = self.start + (count - 1) * hop + self.length
        padded = np.zeros(self.context + max(end, sound.size), dtype=np.float32)
        padded[self.context : self.context + sound.size] = sound
        windows = np.lib.stride_tricks.sliding_window_view(padded, self.context + self.length)
        result = np.ascontiguousarray(windows[self.start : self.start + (count - 1) * hop + 1 : hop])
        return result[:, :, None] if self.channel_axis else result

    def _samples(self, value: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        if value.ndim != 1:
            raise InputError(f"audio_frames takes one-dimensional samples, not an array of shape {value.shape}")
        if value.dtype == np.int16:
            return value.astype(np.float32) / np.float32(1 << 15)
        if value.dtype.kind != "f":
            raise InputError(f"audio_frames takes floating-point or int16 samples, not {value.dtype.name}")
        if not np.isfinite(value).all():
            raise InputError("audio_frames: the samples hold NaN or infinity")
        return value.astype(np.float32)
