"""Pictures against Pillow itself, and files that are not what they seem."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlscope_lab.errors import InputError
from mlscope_lab.processing.base import Pipeline
from mlscope_lab.processing.decoding import DecodeImage
from mlscope_lab.processing.image import Convert, Crop, Layout, Normalize, Resize

SAMPLES = (
    Path(pytest.importorskip("skimage", reason="scikit-image's pictures are the samples").__file__).parent / "data"
)
CHELSEA, ROCKET = SAMPLES / "chelsea.png", SAMPLES / "rocket.jpg"


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def ramp(height: int, width: int, channels: int = 3) -> np.ndarray:
    return (np.arange(height * width * channels) * 37 % 251).astype(np.uint8).reshape(height, width, channels)


def test_decode_jpeg_from_path_bytes_and_pillow_agree() -> None:
    with Image.open(ROCKET) as image:
        wanted = np.asarray(image.convert("RGB"))
        assert np.array_equal(DecodeImage()(image), wanted)
    assert wanted.shape == (427, 640, 3)
    assert np.array_equal(DecodeImage()(ROCKET), wanted)
    assert np.array_equal(DecodeImage()(str(ROCKET)), wanted)
    assert np.array_equal(DecodeImage()(ROCKET.read_bytes()), wanted)
    assert np.array_equal(DecodeImage()(wanted), wanted)


def test_color_orders() -> None:
    rgb = DecodeImage()(CHELSEA)
    assert np.array_equal(DecodeImage(color="BGR")(CHELSEA), rgb[:, :, ::-1])
    gray = DecodeImage(color="GRAY")(CHELSEA)
    assert gray.shape == (300, 451, 1)
    luma = rgb.astype(float) @ [0.299, 0.587, 0.114]
    assert np.abs(gray[:, :, 0] - luma).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV"])
def test_every_mode_becomes_three_channels(mode: str) -> None:
    source = Image.fromarray(ramp(8, 6))
    image = source.convert("RGB").convert(mode) if mode != "LAB" else Image.new("LAB", (6, 8), (128, 128, 128))
    pixels = DecodeImage()(image)
    assert pixels.shape == (8, 6, 3)
    assert pixels.dtype == np.uint8


def test_cmyk_jpeg_keeps_its_colors() -> None:
    data = encoded(Image.new("RGB", (16, 16), (200, 30, 30)).convert("CMYK"), "JPEG", quality=95)
    pixel = DecodeImage()(data)[8, 8].astype(int)
    assert np.abs(pixel - [200, 30, 30]).max() < 12


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    levels = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    data = encoded(Image.fromarray(levels), "PNG")
    assert DecodeImage()(data)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_float_pixels_are_refused_with_a_way_out() -> None:
    with pytest.raises(InputError, match="floating-point pixels of unknown range; save it with 8 or 16 bits"):
        DecodeImage()(Image.new("F", (2, 2)))


def test_alpha_goes_over_the_background() -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (255, 0, 0, 255))
    data = encoded(image, "PNG")
    assert DecodeImage(background=(10, 20, 30))(data).tolist() == [[[10, 20, 30], [255, 0, 0]]]
    assert DecodeImage()(data).tolist() == [[[0, 0, 0], [255, 0, 0]]]


def test_palette_with_a_transparent_color() -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([0, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    data = encoded(image, "PNG", transparency=0)
    assert DecodeImage(background=(9, 9, 9))(data).tolist() == [[[9, 9, 9], [0, 255, 0]]]


def test_exif_orientation_is_followed_or_ignored() -> None:
    image = Image.fromarray(ramp(8, 16))
    exif = image.getexif()
    exif[0x0112] = 6  # rotated by 90 degrees clockwise to be upright
    data = encoded(image, "PNG", exif=exif)
    stored = DecodeImage(orientation="ignore")(data)
    assert stored.shape == (8, 16, 3)
    assert np.array_equal(DecodeImage()(data), np.rot90(stored, k=-1))


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), c) for c in ((255, 0, 0), (0, 255, 0))]
    file = tmp_path / "two.gif"
    frames[0].save(file, save_all=True, append_images=frames[1:])
    assert DecodeImage()(file)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.95])
@pytest.mark.parametrize("name", ["chelsea.png", "rocket.jpg"])
def test_cut_off_pictures_are_named(tmp_path: Path, name: str, keep: float) -> None:
    data = (SAMPLES / name).read_bytes()
    file = tmp_path / f"cut_{name}"
    file.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(InputError, match=rf"cut_{name} is (damaged or cut off|not a picture)"):
        DecodeImage()(file)


def test_not_a_picture(tmp_path: Path) -> None:
    file = tmp_path / "notes.png"
    file.write_text("milk, bread")
    with pytest.raises(InputError, match=r"notes\.png is not a picture that Pillow knows; give a JPEG"):
        DecodeImage()(file)
    with pytest.raises(InputError, match="does not exist"):
        DecodeImage()(tmp_path / "gone.png")
    with pytest.raises(InputError, match="is a folder"):
        DecodeImage()(tmp_path)
    with pytest.raises(InputError, match="takes a path, bytes, a PIL image or a uint8 array, not int"):
        DecodeImage()(3)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 20_000, 100_000])
def test_decompression_bombs_are_refused_before_decoding(side: int) -> None:
    with pytest.raises(InputError, match="too many pixels"):
        DecodeImage()(bomb(side, side))


def test_decoding_leaves_the_warning_filters_alone() -> None:
    before = list(warnings.filters)
    DecodeImage()(CHELSEA)
    assert list(warnings.filters) == before


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), "must be uint8"),
        (np.zeros((3, 4, 5), np.uint8), "channels last"),
        (np.zeros((2, 4, 4, 3), np.uint8), "one picture at a time"),
        (np.zeros((0, 4, 3), np.uint8), "shape"),
    ],
)
def test_arrays_that_are_no_pictures(array: np.ndarray, words: str) -> None:
    with pytest.raises(InputError, match=words):
        DecodeImage()(array)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_files_raise_nothing_but_input_errors(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]))
    raw = bytearray(encoded(Image.fromarray(ramp(12, 9)), form))
    for position in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=6)):
        raw[position] = data.draw(st.integers(0, 255))
    try:
        pixels = DecodeImage()(bytes(raw))
    except InputError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3


PIL_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.BOX,
    "lanczos": Image.Resampling.LANCZOS,
}


@pytest.mark.parametrize("interpolation", PIL_FILTERS)
@pytest.mark.parametrize("size", [(224, 224), (31, 700)])
def test_resize_is_pillows(interpolation: str, size: tuple[int, int]) -> None:
    pixels = DecodeImage()(CHELSEA)
    wanted = Image.fromarray(pixels).resize((size[1], size[0]), PIL_FILTERS[interpolation])
    step = Resize(height=size[0], width=size[1], interpolation=interpolation)
    assert np.array_equal(step(pixels), np.asarray(wanted))


def test_resize_of_one_channel_and_of_floats() -> None:
    gray = ramp(20, 30, 1)
    wanted = np.asarray(Image.fromarray(gray[:, :, 0]).resize((10, 10), Image.Resampling.BILINEAR))
    assert np.array_equal(Resize(height=10, width=10)(gray)[:, :, 0], wanted)
    close = Resize(height=10, width=10)(gray.astype(np.float64))
    assert close.dtype == np.float32
    assert np.abs(close[:, :, 0] - wanted).max() <= 1


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 512))
def test_shorter_side_keeps_proportions(height: int, width: int, side: int) -> None:
    new = Resize(shorter_side=side).size(height, width)
    assert min(new) == side
    exact = max(height, width) * side / min(height, width)
    assert abs(max(new) - exact) <= 0.5
    assert max(Resize(shorter_side=side, rounding="floor").size(height, width)) == max(1, int(exact + 1e-9))


def test_shorter_side_of_the_cat() -> None:
    assert Resize(shorter_side=256).size(300, 451) == (256, 385)
    assert Resize(shorter_side=256, rounding="floor").size(300, 451) == (256, 384)
    assert Resize(shorter_side=256).size(451, 300) == (385, 256)


def test_resize_refuses_to_blow_up_a_strip() -> None:
    with pytest.raises(InputError, match="crop it first"):
        Resize(shorter_side=4096)(np.zeros((1, 60_000, 3), np.uint8))


@pytest.mark.parametrize(
    "parameters", [{}, {"height": 3}, {"height": 3, "width": 3, "shorter_side": 3}, {"shorter_side": 0}]
)
def test_resize_parameters(parameters: dict[str, int]) -> None:
    with pytest.raises(InputError):
        Resize(**parameters)


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_crop_is_central(height: int, width: int, data: st.DataObject) -> None:
    keep_h, keep_w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    pixels = ramp(height, width)
    kept = Crop(height=keep_h, width=keep_w)(pixels)
    top, left = (height - keep_h) // 2, (width - keep_w) // 2
    assert np.array_equal(kept, pixels[top : top + keep_h, left : left + keep_w])
    ceil = Crop(height=keep_h, width=keep_w, offset="ceil")(pixels)
    top, left = (height - keep_h + 1) // 2, (width - keep_w + 1) // 2
    assert np.array_equal(ceil, pixels[top : top + keep_h, left : left + keep_w])


def test_efficientnets_crop() -> None:
    pixels = ramp(300, 451)
    side = int(224 / (224 + 32) * 300)
    kept = Crop(fraction=0.875, square=True, offset="ceil")(pixels)
    top, left = (300 - side + 1) // 2, (451 - side + 1) // 2
    assert side == 262
    assert np.array_equal(kept, pixels[top : top + side, left : left + side])


def test_crop_larger_than_the_picture() -> None:
    with pytest.raises(InputError, match="cannot keep 224 x 224 of a picture of 8 x 300 pixels; resize it first"):
        Crop(height=224, width=224)(ramp(8, 300))
    for wrong in ({}, {"fraction": 0.0}, {"fraction": 1.5}, {"height": 2, "width": 2, "square": True}):
        with pytest.raises(InputError):
            Crop(**wrong)


def test_convert() -> None:
    pixels = ramp(3, 4)
    scaled = Convert(dtype="float32", scale=1 / 255)(pixels)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, pixels / 255, rtol=1e-6)
    assert Convert(dtype="uint8", scale=255)(scaled).tolist() == pixels.tolist()
    with pytest.raises(InputError, match=r"-3\.0 to 300\.0 does not fit 0 to 255"):
        Convert(dtype="uint8")(np.array([-3.0, 300.0]))
    with pytest.raises(InputError, match="NaN"):
        Convert(dtype="int32")(np.array([np.nan]))
    with pytest.raises(InputError, match="takes numbers"):
        Convert()(np.array(["a"]))


def test_normalize() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = ramp(3, 4).astype(np.float32) / 255
    np.testing.assert_allclose(Normalize(mean=mean, std=std)(pixels), (pixels - mean) / std, rtol=1e-5, atol=1e-6)
    assert Normalize(mean=(127.0,), std=(128.0,))(ramp(3, 4)).dtype == np.float32
    with pytest.raises(InputError, match="normalize goes before layout"):
        Normalize(mean=mean, std=std)(np.zeros((3, 4, 5)))
    with pytest.raises(InputError, match="std must not hold 0"):
        Normalize(std=(1.0, 0.0, 1.0))
    with pytest.raises(InputError, match="finite"):
        Normalize(mean=(float("nan"),))


@given(st.permutations("HWC"))
def test_layout_goes_there_and_back(target: list[str]) -> None:
    order = "".join(target)
    pixels = ramp(2, 3)
    there = Layout(source="HWC", target=order)(pixels)
    assert there.shape == tuple({"H": 2, "W": 3, "C": 3}[c] for c in order)
    assert there.flags["C_CONTIGUOUS"]
    assert np.array_equal(Layout(source=order, target="HWC")(there), pixels)


def test_layout_errors() -> None:
    for source, target in (("HWC", "CHX"), ("HHC", "HHC"), ("", "")):
        with pytest.raises(InputError, match="same letters"):
            Layout(source=source, target=target)
    with pytest.raises(InputError, match="has 3 axes"):
        Layout()(np.zeros((2, 2)))


def test_pipeline_names_the_step_and_round_trips() -> None:
    specs = [
        {"step": "decode_image"},
        {"step": "resize", "shorter_side": 256, "interpolation": "bicubic"},
        {"step": "crop", "height": 224, "width": 224},
        {"step": "convert", "scale": 1 / 255},
        {"step": "normalize", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        {"step": "layout"},
    ]
    pipeline = Pipeline.from_specs(specs)
    made = pipeline(CHELSEA)
    assert (made.shape, made.dtype) == ((3, 224, 224), np.float32)
    assert Pipeline.from_specs(pipeline.to_specs()) == pipeline
    with pytest.raises(InputError, match="step 'crop': cannot keep 224 x 224"):
        Pipeline.from_specs([specs[0], specs[2]])(np.zeros((3, 3, 3), np.uint8))
    with pytest.raises(InputError, match="Step 'crop'"):
        Pipeline.from_specs([{"step": "crop", "hight": 3}])


def test_steps_want_arrays_with_three_axes() -> None:
    for step in (Resize(shorter_side=4), Crop(fraction=0.5)):
        with pytest.raises(InputError, match="put decode_image before it"):
            step(CHELSEA)
