"""Read an image file of any size and mode as uint8 `[size, size, 3]`.

Only the first frame of an animation is read. The image is rotated according to its EXIF data and
converted to 8-bit RGB. Transparent pixels become white. Color profiles are ignored. The largest
centered square, or the whole image, is resized with Pillow's antialiased bicubic filter. An image
that already has the right size is not resized.
"""

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cifar_jax.data.dataset import IMAGE_SHAPE
from cifar_jax.data.progress import reason
from cifar_jax.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

# Image formats that are safe to read. EPS is not, for example: Pillow reads it with Ghostscript.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm"),
    *(".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
_JUNK = {
    *("__macosx", "__pycache__", "@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin"),
    *("recycler", "system volume information", "lost+found", "thumbs.db", "desktop.ini"),
}
_MAX_PIXELS = 89_000_000
# Largest 12-bit value. A 16-bit image without larger values would become almost black.
_MAX_DARK = 4095
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MAGIC = (*_TIFF, b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"P4", b"P5", b"P6")
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


class Target(NamedTuple):
    """The size to which images are resized, and how they become square."""

    size: int = IMAGE_SHAPE[0]
    """Height and width of the resized images, in pixels."""
    center_crop: bool = True
    """Whether the image is cropped to its largest centered square. False: the whole image is
    squeezed to a square."""

    @property
    def suffix(self) -> str:
        """Suffix of the cache entry for this target, such as `-64-whole`. Empty for the default."""
        if self == Target():
            return ""
        return f"-{self.size}{'' if self.center_crop else '-whole'}"


DEFAULT_TARGET = Target()


class SixteenBitError(UserError):
    """A gray 16-bit image cannot be converted, because the value of white is unknown.

    Attributes:
      name: name of the image.
      low: 1st percentile of the pixel values.
      high: 99th percentile of the pixel values.
      top: largest pixel value.
    """

    def __init__(self, name: str, values: np.ndarray) -> None:
        self.low, self.high = (float(v) for v in np.percentile(values, (1, 99)))
        self.top = int(values.max())
        self.name = name
        super().__init__(
            f"{name} has 16-bit values of at most {self.top}, and the value of white is unknown: "
            "save it with 8 bits per channel"
        )


def is_junk(name: str) -> bool:
    """Return whether a file or folder is hidden, or was added by an operating system."""
    return name.startswith(".") or name.casefold() in _JUNK


def is_image(path: str) -> bool:
    """Return whether a file is an image, according to its suffix.

    If there is no suffix, the content decides. HEIC files count as images, although they cannot be
    read: they are then reported instead of skipped.
    """
    suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122 - 10 x faster than pathlib
    if suffix:
        return suffix in SUFFIXES or suffix in (".heic", ".heif")
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            start = file.read(12)
    except OSError:
        return False
    return start.startswith(_MAGIC) or start[8:] == b"WEBP" or start[4:] == b"ftypavif"


def walk(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """Yield the files in a folder and its subfolders, sorted by path.

    Hidden files, files that an operating system added, and pipes are skipped. Links to folders are
    yielded, but not followed.
    """
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not is_junk(entry.name)]
    for entry in sorted(visible, key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            yield from walk(entry.path)
        elif entry.is_symlink() or entry.is_file():
            yield entry


def read_image(
    source: "Path | bytes | Image.Image",
    name: str | None = None,
    white: int | None = None,
    target: Target = DEFAULT_TARGET,
) -> np.ndarray:
    """Read an image as uint8 `[size, size, 3]`.

    Args:
      source: path of a file, the content of a file, or a Pillow image.
      name: name of the image in error messages. The default is the path.
      white: the 16-bit value that becomes 255. None: 65535. If `white` is given, the largest 16-bit
        value of the image must be 0, or more than `white` / 16 and at most `white`.
      target: size of the returned image, and the way to make it square.

    Raises:
      UserError: the image has an unsupported format, is damaged, has more than 89 million pixels,
        or has 16-bit values that do not fit `white`. If `white` is None, a gray 16-bit image whose
        largest value is at most 4095 is refused, because its value of white is unclear.
    """
    with ignore_warnings():
        return decode_checked(source, name, white, target)


@contextlib.contextmanager
def ignore_warnings() -> Iterator[None]:
    """Ignore Pillow's warnings about unusual metadata. Only one thread may enter this context."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def decode_checked(
    source: "Path | bytes | Image.Image",
    name: str | None = None,
    white: int | None = None,
    target: Target = DEFAULT_TARGET,
) -> np.ndarray:
    """Read an image as `read_image` does, but do not hide warnings.

    The caller must use `ignore_warnings`. Several threads may share one `ignore_warnings` context.
    """
    try:
        return decode(source, name, target=target)
    except SixteenBitError as error:
        if white and not (error.top <= white and (not error.top or error.top * 16 > white)):
            raise UserError(
                f"{error.name} has 16-bit values of at most {error.top}, but the value of white in "
                f"the training images is {white}: save the image with 8 bits per channel"
            ) from None
        if not white and 0 < error.top <= _MAX_DARK:
            raise
        return decode(source, name, white or 65535, target)


def decode(
    source: "Path | bytes | Image.Image",
    name: str | None = None,
    white: int | None = None,
    target: Target = DEFAULT_TARGET,
) -> np.ndarray:
    """Read an image as `decode_checked` does, but do not check whether 16-bit values fit `white`.

    Values above `white` become 255.

    Raises:
      SixteenBitError: the image has gray 16-bit values, and `white` is None.
    """
    from PIL import Image

    name = name or (str(source) if isinstance(source, Path) else "the image")
    if isinstance(source, Image.Image):
        return _convert(source, name, white, target)
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
    try:
        formats = [f for f in FORMATS if f in Image.OPEN]
        with Image.open(io.BytesIO(content), formats=formats) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise too_large
            # To save time, let the JPEG decoder shrink a large image to about four times the final
            # size. This does not lower the quality.
            image.draft(None, (4 * target.size, 4 * target.size))
            return _convert(image, name, white, target)
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise too_large from error
    except Image.UnidentifiedImageError as error:
        if content.startswith(b"version https://git-lfs"):
            raise UserError(
                f"{name} is a pointer of Git LFS, not the image: get it with `git lfs pull`"
            ) from error
        if content.startswith(_TIFF):
            raise UserError(
                f"{name} is a TIFF of a kind that cannot be read: save it as PNG"
            ) from error
        raise UserError(
            f"{name} is not an image in a supported format: {', '.join(FORMATS)}"
        ) from error
    # For damaged files, Pillow raises OSError, SyntaxError, ValueError, struct.error and others.
    except Exception as error:
        if "MAX_TEXT" in str(error) and len(short := _without_metadata(content)) < len(content):
            return decode(short, name, white, target)
        raise UserError(f"{name} is a damaged image ({reason(error)})") from error


def _convert(image: "Image.Image", name: str, white: int | None, target: Target) -> np.ndarray:
    """Return a Pillow image as uint8 `[size, size, 3]`. The exceptions are those of `decode`."""
    # Read `image.tile` before `image.load`, which deletes this attribute.
    encoding = f"{image.format} {getattr(image, 'tile', '')}"
    image.load()
    return np.array(fit(_to_rgb(_rotate(image), encoding, name, white), target))


def fit(image: "Image.Image", target: Target) -> "Image.Image":
    """Return an image that is cropped and resized to `target`."""
    from PIL import Image, ImageOps

    size = target.size, target.size
    if image.size == size:
        return image
    if target.center_crop:
        return ImageOps.fit(image, size, Image.Resampling.BICUBIC)
    return image.resize(size, Image.Resampling.BICUBIC)


def _without_metadata(png: bytes) -> bytes:
    """Return a PNG file without texts and color profile. Pillow refuses very large texts."""
    parts, position = [png[:8]], 8
    while position + 8 <= len(png):
        end = position + 12 + int.from_bytes(png[position : position + 4], "big")
        if png[position + 4 : position + 8] not in (b"iCCP", b"iTXt", b"tEXt", b"zTXt"):
            parts.append(png[position:end])
        position = end
    return b"".join(parts)


def _rotate(image: "Image.Image") -> "Image.Image":
    """Rotate an image according to its EXIF data. Damaged EXIF data are ignored."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _to_rgb(image: "Image.Image", encoding: str, name: str, white: int | None) -> "Image.Image":
    """Convert an image to 8-bit RGB.

    Args:
      image: the image.
      encoding: the file format, and how the file stores the values.
      name: name of the image in error messages.
      white: the 16-bit value that becomes 255. None: unknown.
    """
    from PIL import Image

    # In PNG and PPM files, Pillow's mode "I" means 16-bit values.
    is_short = encoding.startswith(("PNG", "PPM")) or ";16" in encoding
    if image.mode.startswith("I;16") or (image.mode == "I" and is_short):
        values = np.asarray(image).astype(np.int64)
        if ";12" in encoding:
            white = 4095
        if values.min() < 0:
            raise UserError(f"{name} has negative values: save it with 8 bits per channel")
        if white is None:
            raise SixteenBitError(name, values)
        scaled = np.minimum((values * 255 + white // 2) // white, 255)
        image = Image.fromarray(scaled.astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise UserError(
            f"{name} has 32-bit pixel values of unknown range: save it with 8 bits per channel"
        )
    elif ";16" in encoding:
        # From a 16-bit color image, Pillow reads only the high byte of each value.
        colors = np.asarray(image)[..., : 1 if image.mode == "LA" else 3]
        if colors.max() <= _MAX_DARK >> 8:
            raise UserError(
                f"{name} has 16-bit colors that use at most 12 bits, so it would become black: "
                "save it with 8 bits per channel"
            )
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")
