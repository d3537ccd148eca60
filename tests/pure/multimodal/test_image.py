"""Pictures of every kind become RGB and features; what cannot be decoded is refused, early."""

import io
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from media_config import processor_config
from media_files import gradient, make_image
from mimo_engine.config.media_settings import MediaFacts, MediaLimits
from mimo_engine.errors import RequestError
from mimo_engine.multimodal.image import image_features, load_image
from mimo_engine.multimodal.pixels import to_bfloat16

CONFIG = processor_config()
DROP = processor_config(image_alpha="drop")
AS_STORED = processor_config(exif_orientation="ignore")
LIMITS = MediaLimits()
PICTURE = gradient(160, 128)


def load(source, config=CONFIG, limits=LIMITS):
    return load_image(source, config, limits)


def features(source, config=CONFIG, limits=LIMITS, dtype="float32", **options):
    return image_features(source, config, limits, dtype=dtype, **options)


def with_exif(orientation, file_format="JPEG", pixels=PICTURE, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return make_image(pixels, file_format, exif=exif, **options)


@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_a_lossless_file_gives_its_pixels(file_format, options):
    np.testing.assert_array_equal(load(make_image(PICTURE, file_format, **options)), PICTURE)


def test_a_path_and_an_open_image_give_the_same(tmp_path):
    path = tmp_path / "picture.bin"  # the content decides, not the name
    path.write_bytes(make_image(PICTURE))
    np.testing.assert_array_equal(load(path), PICTURE)
    with Image.open(path) as image:
        np.testing.assert_array_equal(load(image), PICTURE)


def test_a_jpeg_gives_what_pillow_decodes():
    data = make_image(PICTURE, "JPEG", quality=95)
    decoded = load(data)
    np.testing.assert_array_equal(decoded, np.asarray(Image.open(io.BytesIO(data))))
    assert abs(decoded[32:, :96].astype(int) - PICTURE[32:, :96]).mean() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_turns_a_picture(orientation, file_format):
    """Where the stored first row and first column are, by the definition of each value."""
    stored = np.zeros((64, 96, 3), np.uint8)
    stored[:8] = (255, 0, 0)  # the first row is red,
    stored[8:, :8] = (0, 0, 255)  # the first column blue
    row, column = [
        ("top", "left"), ("top", "right"), ("bottom", "right"), ("bottom", "left"),
        ("left", "top"), ("right", "top"), ("right", "bottom"), ("left", "bottom"),
    ][orientation - 1]  # fmt: skip
    seen = load(with_exif(orientation, file_format, stored)).astype(int)
    assert seen.shape == ((64, 96, 3) if orientation < 5 else (96, 64, 3))
    edges = {"top": seen[2], "bottom": seen[-3], "left": seen[:, 2], "right": seen[:, -3]}
    for edge, channel in ((row, 0), (column, 2)):
        assert edges[edge][16:-16, channel].min() > 150
        assert edges[edge][16:-16, 1].max() < 100


def test_orientation_can_be_ignored():
    data = with_exif(6)
    assert load(data).shape == (160, 128, 3)
    assert load(data, AS_STORED).shape == (128, 160, 3)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"]
)
def test_damaged_exif_turns_nothing(exif):
    data = make_image(PICTURE, "JPEG", exif=b"Exif\0\0" + exif)
    assert load(data).shape == (128, 160, 3)


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_an_unknown_orientation_turns_nothing(orientation):
    assert load(with_exif(orientation)).shape == (128, 160, 3)


HALF = np.zeros((64, 64, 4), np.uint8)
HALF[:, :, 0] = 200
HALF[:, 32:, 3] = 255  # the left half is transparent, the right one red


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
def test_transparent_pixels_are_white_or_keep_their_colour(file_format):
    options = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
    data = make_image(HALF, file_format, **options)
    for source in (data, HALF):
        seen = load(source)
        assert (seen[:, :32] == 255).all()
        assert (seen[:, 32:] == (200, 0, 0)).all()
        assert (load(source, DROP) == (200, 0, 0)).all()


def test_half_transparent_pixels_are_mixed_with_white():
    picture = np.full((40, 40, 4), (100, 50, 0, 51), np.uint8)
    assert (load(make_image(picture)) == (224, 214, 204)).all()


def test_grey_with_alpha_goes_on_white():
    picture = np.stack([np.full((40, 40), 30), np.full((40, 40), 0)], axis=-1).astype(np.uint8)
    data = make_image(Image.fromarray(picture, "LA"))
    assert (load(data) == 255).all()
    assert (load(data, DROP) == 30).all()


@pytest.mark.parametrize("transparency", [0, b"\x00\xff"])
@pytest.mark.parametrize("file_format", ["PNG", "GIF"])
def test_a_transparent_colour_of_a_palette_goes_on_white(transparency, file_format):
    image = Image.new("P", (40, 40), 0)
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.paste(1, (20, 0, 40, 40))
    if file_format == "GIF" and isinstance(transparency, bytes):
        transparency = 0
    data = make_image(image, file_format, transparency=transparency)
    seen = load(data)
    assert (seen[:, :20] == 255).all()
    assert (seen[:, 20:] == (200, 100, 0)).all()
    assert (load(data, DROP)[:, :20] == (10, 20, 30)).all()


def test_a_transparent_colour_without_a_palette_goes_on_white():
    picture = np.full((40, 40, 3), (1, 2, 3), np.uint8)
    picture[20:] = 90
    seen = load(make_image(picture, transparency=(1, 2, 3)))
    assert (seen[:20] == 255).all()
    assert (seen[20:] == 90).all()
    grey = make_image(picture[:, :, 0], transparency=1)
    assert (load(grey)[:20] == 255).all()


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bits_keep_the_upper_ones(file_format):
    values = (np.arange(64 * 64) * 16).reshape(64, 64).astype(np.uint16)
    seen = load(make_image(values, file_format))
    for channel in range(3):
        np.testing.assert_array_equal(seen[:, :, channel], values >> 8)


def test_a_transparent_value_of_sixteen_bits_goes_on_white():
    values = np.full((40, 40), 0x1234, np.uint16)
    values[20:] = 0x1235
    data = make_image(values, transparency=0x1234)
    assert (load(data)[:20] == 255).all()
    assert (load(data)[20:] == 0x12).all()
    assert (load(data, DROP) == 0x12).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV"])
def test_every_mode_becomes_rgb(mode):
    image = Image.fromarray(PICTURE).convert(mode)
    seen = load(image)
    np.testing.assert_array_equal(seen, np.asarray(image.convert("RGB")))
    if mode in ("L", "CMYK"):
        assert load(make_image(image, "JPEG")).shape == PICTURE.shape


def test_pixels_without_a_known_range_are_refused():
    floats = Image.fromarray(np.linspace(0, 1, 4096, dtype=np.float32).reshape(64, 64))
    with pytest.raises(RequestError, match="floating-point"):
        load(make_image(floats, "TIFF"))
    integers = Image.fromarray(np.full((64, 64), 1 << 20, np.int32))
    with pytest.raises(RequestError, match="more than 16 bits"):
        load(make_image(integers, "TIFF"))


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_pictures_the_first_counts(file_format):
    frames = [Image.new("RGB", (64, 48), (value, 0, 0)) for value in (250, 10, 120)]
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = make_image(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    assert (load(data) == (250, 0, 0)).all()


def test_arrays_are_pixels():
    grey = PICTURE[:, :, 0]
    np.testing.assert_array_equal(load(PICTURE), PICTURE)
    np.testing.assert_array_equal(load(grey), np.repeat(grey[:, :, None], 3, axis=2))
    opaque = np.concatenate([PICTURE, np.full((128, 160, 1), 255, np.uint8)], axis=2)
    np.testing.assert_array_equal(load(opaque), PICTURE)


@pytest.mark.parametrize(
    "array",
    [
        PICTURE.astype(np.float32),
        PICTURE.astype(np.int64),
        PICTURE.transpose(2, 0, 1),
        PICTURE[None],
        PICTURE[:, :, :2],
        np.zeros(5, np.uint8),
    ],
)
def test_other_arrays_are_refused(array):
    with pytest.raises(RequestError, match=r"uint8 \[height, width\]"):
        load(array)


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3), (0, 0)])
def test_an_array_without_pixels_is_refused(shape):
    with pytest.raises(RequestError, match="no pixels"):
        load(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"this is a text, named picture.png",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"GIF89a",
        b"RIFF\0\0\0\0WEBP",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        make_image(PICTURE, "PDF"),
        make_image(PICTURE, "EPS"),
        make_image(PICTURE, "ICO"),
        make_image(PICTURE, "PPM"),
        make_image(PICTURE, "JPEG2000"),
    ],
    ids=lambda data: repr(data[:12]),
)
def test_what_is_no_picture_of_the_list_is_refused(data):
    with pytest.raises(RequestError, match="not a BMP, GIF, JPEG, PNG, TIFF or WebP file"):
        load(data)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_file_that_was_cut_off_is_refused(file_format, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = make_image(noise, file_format)
    with pytest.raises(RequestError, match="the image"):
        load(data[: int(share * len(data))])


@given(st.data())
def test_a_damaged_file_is_decoded_or_refused(data):
    file_format = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"]))
    content = bytearray(with_exif(6, file_format, gradient(40, 50)))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with suppress(RequestError):
        assert load(bytes(content), limits=MediaLimits(max_image_megapixels=1)).dtype == np.uint8


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RequestError, match="cannot be read: No such file"):
        load(tmp_path / "nothing.png")


def png_header(width, height):
    """A PNG file of the given size whose pixels are missing: what decodes it fails."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b"")]
    body = b"".join(
        struct.pack(">I", len(content)) + name + content
        + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("size", [(13_379, 13_380), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_a_picture_of_too_many_pixels_is_refused_by_its_header(size):
    with pytest.raises(RequestError, match=r"more than 179 megapixels|too large"):
        load(png_header(*size))


def test_a_picture_within_the_limit_is_decoded_although_pillow_would_warn():
    with pytest.raises(RequestError, match="damaged or incomplete"):
        load(png_header(10_000, 10_000))


def test_the_limit_holds_for_every_source():
    limits = MediaLimits(max_image_megapixels=0.02)
    for source in (PICTURE, make_image(PICTURE), Image.fromarray(PICTURE)):
        with pytest.raises(RequestError, match=r"160 x 128 pixels, more than 0\.02 megapixels"):
            load(source, limits=limits)


def test_features_of_a_picture_are_two_equal_frames():
    result = features(make_image(PICTURE))
    assert result.grid == (1, 8, 10)
    assert result.timestamps == ()
    assert result.shared.specs[0].shape == (80, 1536)
    rows = result.shared.arrays[0].reshape(80, 3, 2, 256)
    np.testing.assert_array_equal(rows[:, :, 0], rows[:, :, 1])
    assert rows.sum(dtype=np.float64) == pytest.approx(3799.582, abs=2e-3)
    rounded = features(PICTURE, dtype="bfloat16").shared
    assert rounded.specs[0].dtype == "bfloat16"
    np.testing.assert_array_equal(rounded.arrays[0], to_bfloat16(result.shared.arrays[0]))


@pytest.mark.parametrize(
    ("options", "grid"),
    [
        ({}, (1, 30, 40)),
        ({"max_pixels": 100_000}, (1, 16, 22)),
        ({"min_pixels": 1_000_000}, (1, 56, 74)),
        ({"min_pixels": 1, "max_pixels": 1024}, (1, 2, 2)),
    ],
)
def test_a_request_chooses_the_size(options, grid):
    square = options.get("max_pixels") == 1024
    picture = np.zeros((480, 480 if square else 640, 3), np.uint8)
    assert features(picture, **options).grid == grid


def test_the_size_rule_is_the_configurations():
    hub = processor_config(MediaFacts(pixel_limits="preprocessor_config"))
    small = np.zeros((37, 100, 3), np.uint8)
    assert features(small).grid == (1, 4, 10)
    assert features(small, hub).grid == (1, 4, 6)


def test_a_picture_too_thin_is_refused():
    for shape in ((20, 20_000, 3), (20_000, 20, 3), (32, 6401, 3)):
        with pytest.raises(RequestError, match="too thin"):
            features(np.zeros(shape, np.uint8))


def test_threads_decode_side_by_side_without_warnings():
    data = make_image(PICTURE, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    before = threading.active_count()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with ThreadPoolExecutor(4) as pool:
            pictures = list(pool.map(load, [data] * 20))
    assert not caught
    assert threading.active_count() == before
    assert all((picture == pictures[0]).all() for picture in pictures)
