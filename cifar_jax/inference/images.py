"""Find and read a user's images: files, folders, Pillow images and arrays."""

import glob
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cifar_jax.data.images import DEFAULT_TARGET, Target, is_image, read_image, walk
from cifar_jax.data.progress import reason
from cifar_jax.errors import UserError

if TYPE_CHECKING:
    from PIL import Image as PillowImage


class Image(NamedTuple):
    """An image, or the reason why it could not be read."""

    name: str
    """Path of the image, `-` for standard input, or empty if no file was found."""
    pixels: np.ndarray | None
    """Pixels, uint8 `[H, W, 3]`. None if the image could not be read."""
    error: str = ""
    """Reason why the image could not be read. Empty if it was read."""


def find(words: Sequence[str]) -> list[str | UserError]:
    """Return the image files that command-line arguments name.

    An argument is a file, a folder, a pattern or `-`. A folder stands for all visible images in the
    folder and its subfolders. A pattern such as `*.png` stands for all matching files; `**` matches
    folders at any depth. `-` is standard input. If an argument names no image, the list contains an
    error in its place.
    """
    files: list[str | UserError] = []
    for word in words:
        path = Path(word)
        if word == "-" or path.is_file():
            files.append(word)
        elif path.is_dir():
            images = [e.path for e in walk(path) if not e.is_dir() and is_image(e.path)]
            files += images or [UserError(f"the folder {word} contains no image files")]
        elif "://" in word:
            files.append(UserError(f"{word} is a web address: download the image first"))
        else:
            matches = glob.glob(word, recursive=True)  # noqa: PTH207  # Path.glob takes no absolute patterns.
            images = [match for match in sorted(matches) if Path(match).is_file()]
            missing = (
                f"no file matches {word}" if glob.has_magic(word) else f"{word} does not exist"
            )
            files += images or [UserError(missing)]
    return files


def read(
    files: Sequence[str | UserError], white: int | None = None, target: Target = DEFAULT_TARGET
) -> Iterator[Image]:
    """Yield the images in order. If a file cannot be read, its `Image` contains an error.

    `white` is the 16-bit value that becomes 255. `target` is the size to which images are resized.
    See `cifar_jax.data.images.read_image` for both.
    """
    for file in files:
        if isinstance(file, UserError):
            yield Image("", None, str(file))
            continue
        try:
            source = sys.stdin.buffer.read() if file == "-" else Path(file)
            name = "standard input" if file == "-" else file
            yield Image(file, read_image(source, name, white, target))
        except UserError as error:
            yield Image(file, None, str(error))


def to_batch(
    images: "str | Path | PillowImage.Image | np.ndarray | Sequence[Any]",
    white: int | None = None,
    target: Target = DEFAULT_TARGET,
) -> np.ndarray:
    """Return images as one array, uint8 `[N, size, size, 3]`.

    Args:
      images: an image or a list of images. An image is the path of a file, a Pillow image, or a
        uint8 array `[H, W, 3]` of any size. `images` may also be an array `[N, size, size, 3]`.
      white, target: as for the function `read`.

    Raises:
      UserError: an image cannot be read, or an array has another shape or type.
    """
    if isinstance(images, (str, Path)) or not isinstance(images, Iterable):
        images = [images]
    elif hasattr(images, "dtype"):
        array = np.asarray(images)
        if array.ndim == 3:
            images = [array]
        elif array.dtype != np.uint8 or array.shape[1:] != (target.size, target.size, 3):
            raise UserError(
                f"images must be uint8 [N, {target.size}, {target.size}, 3], or a list of images "
                f"of any size, not {array.dtype} {list(array.shape)}"
            )
        else:
            return array
    pixels = [_to_pixels(image, i, white, target) for i, image in enumerate(images)]
    return np.stack(pixels) if pixels else np.zeros((0, target.size, target.size, 3), np.uint8)


def _to_pixels(image: Any, index: int, white: int | None, target: Target) -> np.ndarray:
    """Return an image as uint8 `[size, size, 3]`. `index` is the image's position in a list."""
    from PIL import Image as PillowImage

    if isinstance(image, (str, Path)):
        return read_image(Path(image), None, white, target)
    name = f"image {index}"
    if hasattr(image, "dtype"):
        array = np.asarray(image)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
            raise UserError(
                f"{name} must be uint8 [H, W, 3], not {array.dtype} {list(array.shape)}"
            )
        image = PillowImage.fromarray(np.ascontiguousarray(array))
    if not isinstance(image, PillowImage.Image):
        raise UserError(
            f"{name} must be a path, a Pillow image or an array, not of type {type(image).__name__}"
        )
    try:
        return read_image(image, name, white, target)
    # An opened Pillow image may be damaged, because Pillow reads the pixels only when needed.
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{name} is a damaged image ({reason(error)})") from error
