"""Read an image file of any size and mode as uint8 `[32, 32, 3]`.

Only the first frame is read. The image is rotated according to its EXIF data and converted to 8-bit
RGB. Transparent pixels become white. Color profiles are ignored. The largest centered square is
resized with Pillow's antialiased bicubic filter. An image of 32×32 pixels is not resized.
"""

import contextlib
import io
import os
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

# Other formats are not safe: to read an EPS file, for example, Pillow runs Ghostscript.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm"),
    *(".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
_MAX_PIXELS = 89_000_000
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


def walk(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """Yield the files in a folder and its subfolders, sorted by path.

    Hidden files and folders are skipped, and so are files that macOS adds to archives. Links to
    folders are not followed.
    """
    with os.scandir(folder) as entries:
        visible = [e for e in entries if not e.name.startswith(".") and e.name != "__MACOSX"]
    for entry in sorted(visible, key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            yield from walk(entry.path)
        elif not entry.is_dir():
            yield entry


def read_image(source: Path | bytes, name: str | None = None) -> np.ndarray:
    """Read an image as uint8 `[32, 32, 3]`.

    Args:
      source: path of a file, or the content of a file.
      name: name of the image in error messages. The default is the path.

    Raises:
      UserError: the image has an unsupported format, is damaged, has more than 89 million pixels,
        or has 32-bit values, whose range is unknown.
    """
    with ignore_warnings():
        return decode(source, name)


@contextlib.contextmanager
def ignore_warnings() -> Iterator[None]:
    """Ignore Pillow's warnings about unusual metadata. Only one thread may enter this context."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def decode(source: Path | bytes, name: str | None = None) -> np.ndarray:
    """Read an image as `read_image` does, but inside the `ignore_warnings` context of the caller.

    Several threads may share that context.
    """
    from PIL import Image, ImageOps

    name = name or (str(source) if isinstance(source, Path) else "the image")
    try:
        content = source if isinstance(source, bytes) else source.read_bytes()
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}") from error
    if not content:
        raise UserError(f"{name} is empty")
    if content[4:8] == b"ftyp" and content[8:12] in _HEIC_BRANDS:
        raise UserError(f"{name} is a HEIC image, which cannot be read: convert it to JPEG or PNG")
    Image.init()
    too_large = UserError(f"{name} has more than 89 million pixels: make it smaller")
    height, width, _ = IMAGE_SHAPE
    try:
        formats = [f for f in FORMATS if f in Image.OPEN]
        with Image.open(io.BytesIO(content), formats=formats) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise too_large
            # To save time, let the JPEG decoder shrink a large image to about four times the final
            # size. The quality stays the same.
            image.draft(None, (4 * width, 4 * height))
            image.load()
            rgb = _to_rgb(_rotate(image), image.format or "", name)
        if rgb.size != (width, height):
            rgb = ImageOps.fit(rgb, (width, height), Image.Resampling.BICUBIC)
        return np.array(rgb)
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise too_large from error
    except Image.UnidentifiedImageError as error:
        raise UserError(
            f"{name} is not an image in a supported format: {', '.join(FORMATS)}"
        ) from error
    # For damaged files, Pillow raises OSError, SyntaxError, ValueError, struct.error and others.
    except Exception as error:
        raise UserError(f"{name} is a damaged image ({reason(error)})") from error


def _rotate(image: "Image.Image") -> "Image.Image":
    """Rotate an image according to its EXIF data. Damaged EXIF data are ignored."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _to_rgb(image: "Image.Image", format: str, name: str) -> "Image.Image":
    """Convert an image to 8-bit RGB."""
    from PIL import Image

    # In PNG and PPM files, Pillow's mode "I" means 16-bit values.
    if image.mode.startswith("I;16") or (image.mode == "I" and format in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise UserError(
            f"{name} has 32-bit pixel values of unknown range: save it with 8 bits per channel"
        )
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
