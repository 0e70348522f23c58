"""From an image file of any size and mode to what the networks take: uint8 ``[32, 32, 3]``.

The first frame is turned as its EXIF data say, laid on white where it is transparent, and brought
to 8 bits of red, green and blue (colour profiles are not applied). Its largest square in the middle
is then resized by Pillow's antialiased bicubic filter; 32×32 images keep every pixel's value.
"""

import io
import warnings
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
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


def read_image(source: Path | bytes, name: str | None = None) -> np.ndarray:
    """The image as uint8 ``[32, 32, 3]``.

    ``source`` is a file, or a file's content; ``name`` is what messages call it, by default its
    path. Raises UserError for what is no image of a supported format, is damaged or cut short, has
    more than 89 million pixels, or values whose range is unknown (32-bit and floating-point ones).
    """
    from PIL import Image, ImageOps

    name = name or (str(source) if isinstance(source, Path) else "the image")
    try:
        if isinstance(source, bytes):
            content = source
        elif source.stat().st_size > _MAX_BYTES:
            raise UserError(f"{name} is larger than 500 MB: make it smaller")
        else:
            content = source.read_bytes()
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}") from error
    if not content:
        raise UserError(f"{name} is empty")
    if content[4:8] == b"ftyp" and content[8:12] in _HEIC_BRANDS:
        raise UserError(f"{name} is a HEIC image, which is not supported: save it as JPEG or PNG")
    Image.init()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata matter to nobody
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            formats = [f for f in FORMATS if f in Image.OPEN]
            with Image.open(io.BytesIO(content), formats=formats) as image:
                image.load()
                rgb = _rgb(_turned(image), image.format or "", name)
        height, width, _ = IMAGE_SHAPE
        if rgb.size != (width, height):
            rgb = ImageOps.fit(rgb, (width, height), Image.Resampling.BICUBIC)
        return np.array(rgb)
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{name} claims more than 89 million pixels: make it smaller") from error
    except Image.UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise UserError(f"{name} is not a readable image: the formats are {known}") from error
    # Damage shows as OSError, SyntaxError, ValueError, struct.error …: there is no common base.
    except Exception as error:
        raise UserError(f"{name} is a damaged image ({reason(error)})") from error


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
