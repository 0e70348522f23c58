"""One image file of any kind to what the networks take."""

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from synthetic_cifar import png_that_claims

from cifar_jax.data.images import FORMATS, read_image
from cifar_jax.errors import UserError

RGB = (200, 100, 50)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def about(image: np.ndarray, color: tuple[int, ...], within: int = 3) -> bool:
    return image.shape == (32, 32, 3) and bool((abs(image.astype(int) - color) <= within).all())


def test_its_own_size_keeps_every_value(tmp_path: Path) -> None:
    pixels = noise(32, 32, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", (tmp_path / "a.png").read_bytes()):
        read = read_image(source)
        assert (read.dtype, read.flags.writeable) == (np.uint8, True)
        np.testing.assert_array_equal(read, pixels)


@pytest.mark.parametrize("format", FORMATS)
def test_formats(format: str) -> None:
    content = encoded(Image.new("RGB", (50, 40), RGB), format)
    assert about(read_image(content), RGB, within=8)


@pytest.mark.parametrize(
    ("image", "color"),
    [
        (Image.new("L", (40, 40), 77), (77,) * 3),
        (Image.new("1", (40, 40), 1), (255,) * 3),
        (Image.new("LA", (40, 40), (0, 0)), (255,) * 3),
        (Image.new("LA", (40, 40), (0, 128)), (127,) * 3),
        (Image.new("RGBA", (40, 40), (*RGB, 255)), RGB),
        (Image.new("RGBA", (40, 40), (*RGB, 0)), (255,) * 3),
        (Image.new("RGB", (40, 40), RGB).quantize(4), RGB),
        (Image.fromarray(np.full((40, 40), 0x8080, np.uint16)), (128,) * 3),
        (Image.fromarray(np.full((40, 40), 0xFFFF, np.uint16)), (255,) * 3),
        (Image.fromarray(np.full((40, 40), 0x00FF, np.uint16)), (1,) * 3),
    ],
)
def test_modes_of_png(image: Image.Image, color: tuple[int, ...]) -> None:
    assert about(read_image(encoded(image)), color, within=1)


def test_transparent_palette_and_color_lie_on_white() -> None:
    palette = Image.new("P", (40, 40), 0)
    palette.putpalette([*RGB, 0, 0, 255])
    assert about(read_image(encoded(palette)), RGB)
    assert about(read_image(encoded(palette, transparency=0)), (255,) * 3)
    assert about(read_image(encoded(palette, "GIF", transparency=0)), (255,) * 3)
    assert about(read_image(encoded(Image.new("RGB", (9, 9), RGB), transparency=RGB)), (255,) * 3)


def png_of_16_bit_color() -> bytes:
    """Pillow reads it and cannot write it."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    rows = (b"\0" + struct.pack(">3H", *(v * 257 for v in RGB)) * 40) * 40
    header = struct.pack(">2I5B", 40, 40, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_more_than_8_bits() -> None:
    assert about(read_image(png_of_16_bit_color()), RGB)
    wide = Image.fromarray(np.full((40, 40), 0x8080, np.uint16))
    assert about(read_image(encoded(wide, "TIFF")), (128,) * 3, within=1)
    assert about(read_image(encoded(wide, "PPM")), (128,) * 3, within=1)
    for kind in (np.int32, np.float32):
        with pytest.raises(UserError, match=r"^x\.tif has values of 32 bits"):
            read_image(encoded(Image.fromarray(np.ones((40, 40), kind)), "TIFF"), "x.tif")


def test_printers_colors() -> None:
    content = encoded(Image.new("CMYK", (40, 40), (0, 255, 255, 0)), "JPEG", quality=95)
    assert about(read_image(content), (255, 0, 0), within=8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_as_the_camera_was(orientation: int) -> None:
    upright = noise(32, 32, 3)
    methods = [None, 0, 3, 1, 5, 2, 6, 4]  # that undo what exif_transpose does
    method = methods[orientation - 1]
    stored = Image.fromarray(upright)
    if method is not None:
        stored = stored.transpose(Image.Transpose(method))
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(read_image(encoded(stored, exif=exif)), upright)


def test_damaged_metadata_do_no_harm() -> None:
    content = encoded(
        Image.new("RGB", (40, 40), RGB), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"
    )
    assert about(read_image(content), RGB, within=8)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (40, 40), color) for color in (RGB, (0, 0, 255))]
    for format in ("GIF", "PNG", "WEBP", "TIFF"):
        content = encoded(frames[0], format, save_all=True, append_images=frames[1:])
        assert about(read_image(content), RGB, within=8)


def test_the_square_in_the_middle() -> None:
    pixels = np.zeros((64, 192, 3), np.uint8)
    pixels[:, 64:128] = RGB
    wide = read_image(encoded(Image.fromarray(pixels)))
    high = read_image(encoded(Image.fromarray(pixels.transpose(1, 0, 2))))
    np.testing.assert_array_equal(wide, high.transpose(1, 0, 2))
    inside = wide[:, 2:-2].astype(int)  # the filter looks a pixel beyond
    assert (abs(inside - RGB) <= 1).all()


def test_a_smaller_size_is_antialiased() -> None:
    """A fine chequerboard becomes grey, not a pattern."""
    board = (np.indices((640, 640)).sum(0) % 2 * 255).astype(np.uint8)
    assert about(read_image(encoded(Image.fromarray(board))), (127, 127, 127), within=2)


def test_a_large_jpeg_is_what_the_png_is() -> None:
    """Its decoder reduces it first, which must not show."""
    ramp = np.linspace(0, 255, 1200).astype(np.uint8)
    picture = Image.fromarray(
        np.stack(np.broadcast_arrays(ramp, ramp[::-1, None], np.uint8(90)), -1)
    )
    jpeg = read_image(encoded(picture, "JPEG", quality=95)).astype(int)
    assert abs(jpeg - read_image(encoded(picture))).max() <= 5


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 2)])
def test_tiny_sizes(size: tuple[int, int]) -> None:
    assert about(read_image(encoded(Image.new("RGB", size, RGB))), RGB)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is empty"),
        (b"Dear all,", "not a readable image: the formats are AVIF, BMP"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a readable image"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is a HEIC image, which is not supported"),
        (png_that_claims(20_000, 20_000), "claims more than 89 million pixels"),
        (png_that_claims(10_000, 10_000), "claims more than 89 million pixels"),
        (png_that_claims(0, 8), "image"),
        (encoded(Image.fromarray(noise(64, 64, 3)), "JPEG")[:-900], "is a damaged image"),
        (encoded(Image.fromarray(noise(64, 64, 3)))[:5000], "is a damaged image"),
    ],
)
def test_what_is_refused(content: bytes, match: str, tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(content)
    for source, name in ((file, str(file)), (content, "standard input")):
        with pytest.raises(UserError, match=match) as caught:
            read_image(source, None if source is file else name)
        assert str(caught.value).startswith(name)
        assert "\n" not in str(caught.value)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_image(tmp_path)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_image(tmp_path / "nothing.png")
    with pytest.raises(UserError, match="cannot be read: File name too long"):
        read_image(tmp_path / ("x" * 5000))


def test_any_damage_is_one_line() -> None:
    """Bytes set at random, in every format: an image, or a message."""
    rng = np.random.default_rng(0)
    for format in FORMATS:
        whole = encoded(Image.fromarray(noise(24, 24, 3)), format)
        for _ in range(60):
            content = bytearray(whole)
            for at in rng.integers(0, min(len(content), 400), 4):
                content[at] = rng.integers(0, 256)
            with contextlib.suppress(UserError):
                assert read_image(bytes(content)).shape == (32, 32, 3)
