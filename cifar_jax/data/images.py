"""From an image file of any size and mode to what the networks take: uint8 ``[32, 32, 3]``.

The first frame is turned as its EXIF data say, laid on white where it is transparent, and brought
to 8 bits of red, green and blue (color profiles are not applied). Its largest square in the middle
is then resized by Pillow's antialiased bicubic filter; 32×32 images keep every pixel's value.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cifar_jax.data.dataset import IMAGE_SHAPE
from cifar_jax.data.progress import reason
from cifar_jax.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

# Not all that Pillow opens: for EPS, say, it would run Ghostscript on the file.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm"),
    *(".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
_MAX_BYTES = 500_000_000
_MAX_PIXELS = 89_000_000
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


def read_image(source: Path | bytes, name: str | None = None) -> np.ndarray:
    """The image as uint8 ``[32, 32, 3]``.

    ``source`` is a file, or a file's content; ``name`` is what messages call it, by default its
    path. Raises UserError for what is no image of a supported format, is damaged or cut short, has
    more than 89 million pixels, or values whose range is unknown (32-bit and floating-point ones).
    """
    with quiet():
        return decode(source, name)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings of odd metadata, which matter to nobody. Not for use within a thread."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def decode(source: Path | bytes, name: str | None = None) -> np.ndarray:
    """`read_image` for threads, of which all are to be within one `quiet`."""
    from PIL import Image, ImageOps

    name = name or (str(source) if isinstance(source, Path) else "the image")
    content = _content(source, name)
    if not content:
        raise UserError(f"{name} is empty")
    if content[4:8] == b"ftyp" and content[8:12] in _HEIC_BRANDS:
        raise UserError(f"{name} is a HEIC image, which is not supported: save it as JPEG or PNG")
    Image.init()
    too_large = UserError(f"{name} claims more than 89 million pixels: make it smaller")
    height, width, _ = IMAGE_SHAPE
    try:
        formats = [f for f in FORMATS if f in Image.OPEN]
        with Image.open(io.BytesIO(content), formats=formats) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise too_large
            # A JPEG decoder halves sizes for nothing; what it leaves is still four times too large.
            image.draft(None, (4 * width, 4 * height))
            image.load()
            rgb = _rgb(_turned(image), image.format or "", name)
        if rgb.size != (width, height):
            rgb = ImageOps.fit(rgb, (width, height), Image.Resampling.BICUBIC)
        return np.array(rgb)
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise too_large from error
    except Image.UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise UserError(f"{name} is not a readable image: the formats are {known}") from error
    # Damage shows as OSError, SyntaxError, ValueError, struct.error …: there is no common base.
    except Exception as error:
        raise UserError(f"{name} is a damaged image ({reason(error)})") from error


def _content(source: Path | bytes, name: str) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        if source.stat().st_size > _MAX_BYTES:
            raise UserError(f"{name} is larger than 500 MB: make it smaller")
        return source.read_bytes()
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}") from error


def _turned(image: "Image.Image") -> "Image.Image":
    """As its EXIF data say; as it is where they are damaged."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _rgb(image: "Image.Image", format: str, name: str) -> "Image.Image":
    """8 bits of red, green and blue."""
    from PIL import Image

    # Where Pillow yields "I" for these two, the values are those of 16 bits.
    if image.mode.startswith("I;16") or (image.mode == "I" and format in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise UserError(
            f"{name} has values of 32 bits, whose range is unknown: save it with 8 bits a channel"
        )
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
