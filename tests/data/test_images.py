"""Test that image files of many formats are read as 32×32 RGB arrays."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from synthetic_cifar import png_with_size

from cifar_jax.data.images import FORMATS, read_image
from cifar_jax.errors import UserError

RGB = (200, 100, 50)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def is_close(image: np.ndarray, color: tuple[int, ...], within: int = 3) -> bool:
    return image.shape == (32, 32, 3) and bool((abs(image.astype(int) - color) <= within).all())


def test_an_image_of_the_final_size_keeps_every_value(tmp_path: Path) -> None:
    pixels = noise(32, 32, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", (tmp_path / "a.png").read_bytes()):
        read = read_image(source)
        assert (read.dtype, read.flags.writeable) == (np.uint8, True)
        np.testing.assert_array_equal(read, pixels)


@pytest.mark.parametrize("format", FORMATS)
def test_formats(format: str) -> None:
    content = encoded(Image.new("RGB", (50, 40), RGB), format)
    assert is_close(read_image(content), RGB, within=8)


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
        (Image.fromarray(np.full((40, 40), 0x1010, np.uint16)), (16,) * 3),
    ],
)
def test_modes_of_png(image: Image.Image, color: tuple[int, ...]) -> None:
    assert is_close(read_image(encoded(image)), color, within=1)


def test_transparent_images_get_a_white_background() -> None:
    palette = Image.new("P", (40, 40), 0)
    palette.putpalette([*RGB, 0, 0, 255])
    assert is_close(read_image(encoded(palette)), RGB)
    assert is_close(read_image(encoded(palette, transparency=0)), (255,) * 3)
    assert is_close(read_image(encoded(palette, "GIF", transparency=0)), (255,) * 3)
    assert is_close(
        read_image(encoded(Image.new("RGB", (9, 9), RGB), transparency=RGB)), (255,) * 3
    )


def test_more_than_8_bits() -> None:
    wide = Image.fromarray(np.full((40, 40), 0x8080, np.uint16))
    assert is_close(read_image(encoded(wide, "TIFF")), (128,) * 3, within=1)
    assert is_close(read_image(encoded(wide, "PPM")), (128,) * 3, within=1)
    for kind in (np.int32, np.float32):
        with pytest.raises(UserError, match=r"^x\.tif has 32-bit pixel values"):
            read_image(encoded(Image.fromarray(np.ones((40, 40), kind)), "TIFF"), "x.tif")


def test_16_bit_images_that_would_become_black_are_refused() -> None:
    values = noise(8, 8).astype(np.uint16) * 16
    dark = encoded(Image.fromarray(values))
    with pytest.raises(UserError, match=r"16-bit values of at most 3968.* save it with 8 bits"):
        read_image(dark)
    bright = read_image(encoded(Image.fromarray(values * 16)))
    np.testing.assert_allclose(read_image(dark, white=4095), bright, atol=2)
    for white in (1023, 65535):
        with pytest.raises(UserError, match=f"3968, but the value of white .* is {white}: save"):
            read_image(dark, white=white)
    with pytest.raises(UserError, match="16-bit colors that use at most 12 bits"):
        read_image(png_16_bit(np.full((8, 8, 3), 4095)))
    assert is_close(read_image(png_16_bit(np.full((8, 8, 3), 0x8080))), (128,) * 3)


def png_16_bit(colors: np.ndarray, *extra: tuple[bytes, bytes]) -> bytes:
    """Return a PNG file with 16-bit colors, which Pillow cannot write. Add the chunks `extra`."""
    height, width, _ = colors.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colors)
    chunks = [(b"IHDR", struct.pack(">2I5B", width, height, 16, 2, 0, 0, 0)), *extra]
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def test_png_with_large_metadata_is_read() -> None:
    profile = b"icc\0\0" + zlib.compress(bytes(1_500_000))
    comment = b"Comment\0\0" + zlib.compress(bytes(1_500_000))
    content = png_16_bit(np.full((8, 8, 3), 0x8080), (b"iCCP", profile), (b"zTXt", comment))
    assert is_close(read_image(content), (128,) * 3)


def test_cmyk() -> None:
    content = encoded(Image.new("CMYK", (40, 40), (0, 255, 255, 0)), "JPEG", quality=95)
    assert is_close(read_image(content), (255, 0, 0), within=8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation: int) -> None:
    upright = noise(32, 32, 3)
    # Pillow's transpose methods that undo `exif_transpose` for the EXIF orientations 1 to 8.
    methods = [None, 0, 3, 1, 5, 2, 6, 4]
    method = methods[orientation - 1]
    stored = Image.fromarray(upright)
    if method is not None:
        stored = stored.transpose(Image.Transpose(method))
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(read_image(encoded(stored, exif=exif)), upright)


def test_damaged_metadata_are_ignored() -> None:
    content = encoded(
        Image.new("RGB", (40, 40), RGB), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"
    )
    assert is_close(read_image(content), RGB, within=8)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (40, 40), color) for color in (RGB, (0, 0, 255))]
    for format in ("GIF", "PNG", "WEBP", "TIFF"):
        content = encoded(frames[0], format, save_all=True, append_images=frames[1:])
        assert is_close(read_image(content), RGB, within=8)


def test_the_centered_square_is_used() -> None:
    pixels = np.zeros((64, 192, 3), np.uint8)
    pixels[:, 64:128] = RGB
    wide = read_image(encoded(Image.fromarray(pixels)))
    high = read_image(encoded(Image.fromarray(pixels.transpose(1, 0, 2))))
    np.testing.assert_array_equal(wide, high.transpose(1, 0, 2))
    # The resize filter mixes the outer two columns with pixels outside of the square.
    inside = wide[:, 2:-2].astype(int)
    assert (abs(inside - RGB) <= 1).all()


def test_a_fine_checkerboard_becomes_gray() -> None:
    board = (np.indices((640, 640)).sum(0) % 2 * 255).astype(np.uint8)
    assert is_close(read_image(encoded(Image.fromarray(board))), (127, 127, 127), within=2)


def test_a_large_jpeg_equals_the_png() -> None:
    """The JPEG decoder shrinks large images while decoding. The pixels change only slightly."""
    ramp = np.linspace(0, 255, 1200).astype(np.uint8)
    picture = Image.fromarray(
        np.stack(np.broadcast_arrays(ramp, ramp[::-1, None], np.uint8(90)), -1)
    )
    jpeg = read_image(encoded(picture, "JPEG", quality=95)).astype(int)
    assert abs(jpeg - read_image(encoded(picture))).max() <= 5


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 2)])
def test_tiny_sizes(size: tuple[int, int]) -> None:
    assert is_close(read_image(encoded(Image.new("RGB", size, RGB))), RGB)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is empty"),
        (b"Dear all,", "not an image in a supported format: AVIF, BMP"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            "not an image in a supported format",
        ),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is a HEIC image, which cannot be read"),
        (png_with_size(20_000, 20_000), "has more than 89 million pixels"),
        (png_with_size(10_000, 10_000), "has more than 89 million pixels"),
        (png_with_size(0, 8), "image"),
        (encoded(Image.fromarray(noise(64, 64, 3)), "JPEG")[:-900], "is a damaged image"),
        (encoded(Image.fromarray(noise(64, 64, 3)))[:5000], "is a damaged image"),
        (b"II*\0" + bytes(60), "is a TIFF of a kind that cannot be read: save it as PNG"),
    ],
)
def test_other_files_are_refused(content: bytes, match: str, tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(content)
    for source, name in ((file, str(file)), (content, "standard input")):
        with pytest.raises(UserError, match=match) as caught:
            read_image(source, None if source is file else name)
        assert str(caught.value).startswith(name)
        assert "\n" not in str(caught.value)


def test_paths_that_are_not_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_image(tmp_path)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_image(tmp_path / "nothing.png")
