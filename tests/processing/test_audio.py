"""WAV files to frames."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlscope_lab.errors import InputError
from mlscope_lab.processing.audio import AudioFrames


def wav(samples: np.ndarray, *, width: int = 2, rate: int = 16000) -> bytes:
    """PCM WAV of float samples (sample[, channel]) in -1..1."""
    table = np.atleast_2d(samples.T).T
    scaled = np.clip(np.rint(table * (1 << (8 * width - 1))), -(1 << (8 * width - 1)), (1 << (8 * width - 1)) - 1)
    whole = scaled.astype("<i8") + (128 if width == 1 else 0)
    raw = whole.reshape(-1, 1).view(np.uint8)[:, :width].tobytes()
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(table.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(raw)
    return buffer.getvalue()


TONE = (0.5 * np.sin(np.arange(1600) * 0.05)).astype(np.float32)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_every_sample_width(width: int) -> None:
    frames = AudioFrames(length=1600)(wav(TONE, width=width))
    assert (frames.shape, frames.dtype) == ((1, 1600), np.float32)
    assert np.abs(frames[0] - TONE).max() <= 1 / (1 << (8 * width - 1)) + 1e-7


def test_channels_are_averaged(tmp_path: Path) -> None:
    file = tmp_path / "two.wav"
    file.write_bytes(wav(np.stack([TONE, np.zeros_like(TONE)], axis=1)))
    np.testing.assert_allclose(AudioFrames(length=1600)(file)[0], TONE / 2, atol=1e-4)


@given(st.integers(1, 300), st.integers(1, 50), st.integers(1, 60), st.integers(0, 20), st.integers(0, 100))
def test_frames_are_windows_of_the_padded_sound(size: int, length: int, hop: int, context: int, start: int) -> None:
    sound = np.arange(1, size + 1, dtype=np.float32)
    step = AudioFrames(length=length, hop=hop, context=context, start=start)
    if start >= size:
        with pytest.raises(InputError, match="none from sample"):
            step(sound)
        return
    frames = step(sound)
    padded = np.concatenate([np.zeros(context), sound, np.zeros(start + size + length + hop)])
    wanted = [padded[at : at + context + length] for at in range(start, size, hop)]
    assert np.array_equal(frames, np.array(wanted))


def test_frames_count_and_channel_axis() -> None:
    assert AudioFrames(length=512, frames=2)(TONE).shape == (2, 512)
    assert AudioFrames(length=512, channel_axis=True)(TONE).shape == (4, 512, 1)
    with pytest.raises(InputError, match="gives 4 frames, 5 are asked for"):
        AudioFrames(length=512, frames=5)(TONE)
    halves = AudioFrames(length=1600)((TONE * 32768).astype(np.int16))
    assert np.abs(halves - TONE).max() < 1e-4


def test_what_is_no_sound(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is sampled at 44100 Hz, the model takes 16000 Hz; resample it first"):
        AudioFrames()(wav(TONE, rate=44100))
    (tmp_path / "song.wav").write_bytes(b"ID3 not a wav")
    with pytest.raises(InputError, match=r"song\.wav is not a WAV file .* export it as 16-bit PCM"):
        AudioFrames()(tmp_path / "song.wav")
    for wrong in (np.zeros((2, 100), np.float32), np.zeros(100, np.int32), np.array([np.nan] * 600, np.float32)):
        with pytest.raises(InputError, match="audio_frames"):
            AudioFrames()(wrong)
    with pytest.raises(InputError, match="takes a path or bytes, not list"):
        AudioFrames()([0.1, 0.2])
    with pytest.raises(InputError, match="hop must be at least 1"):
        AudioFrames(hop=0)
    with pytest.raises(InputError, match="set frames or a longer hop"):
        AudioFrames(length=10_000, hop=1, context=10_000)(np.zeros(50_000, np.float32))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_files_raise_nothing_but_input_errors(data: st.DataObject) -> None:
    raw = bytearray(wav(TONE[:40]))
    for position in data.draw(st.lists(st.integers(0, 50), min_size=1, max_size=6)):
        raw[position] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    try:
        frames = AudioFrames(length=16)(bytes(raw[:cut]))
    except InputError:
        return
    assert frames.shape[1] == 16
