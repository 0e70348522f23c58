"""From what a person names to images: files, folders, patterns, standard input."""

import glob
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cifar_jax.data.images import SUFFIXES, read_image
from cifar_jax.errors import UserError


class Image(NamedTuple):
    """One of them, read or not."""

    name: str
    """The file, or `-` for standard input."""
    pixels: np.ndarray | None
    """uint8 `[32, 32, 3]`; None where it could not be read."""
    error: str = ""
    """Why not."""


def find(words: Sequence[str]) -> list[str | UserError]:
    """The files that `words` name, or what is wrong with a word in its place.

    A folder stands for all images in it at any depth, by name, but for hidden ones; a word with
    `*`, `?` or `[` that is no file for those that match it (`**` for any depth); `-` for standard
    input.
    """
    found: list[str | UserError] = []
    for word in words:
        path = Path(word)
        if word == "-" or path.is_file():
            found.append(word)
        elif path.is_dir():
            files = [p for p in sorted(path.rglob("*")) if _is_image(p, path)]
            found += map(str, files)
            if not files:
                found.append(UserError(f"no image in the folder {word}"))
        elif "://" in word:
            found.append(UserError(f"{word} is an address: download it first"))
        else:
            matches = glob.glob(word, recursive=True)  # noqa: PTH207  # a Path has no absolute ones
            files = [match for match in sorted(matches) if Path(match).is_file()]
            found += files or [UserError(f"no file {word}")]
    return found


def _is_image(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return path.suffix.lower() in SUFFIXES and not hidden and path.is_file()


def read(names: Sequence[str | UserError]) -> Iterator[Image]:
    """Each image in its turn; one that cannot be read stops none of the others."""
    for name in names:
        try:
            if isinstance(name, UserError):
                raise name
            source = sys.stdin.buffer.read() if name == "-" else Path(name)
            called = "standard input" if name == "-" else name
            yield Image(name, read_image(source, called))
        except UserError as error:
            yield Image("" if isinstance(name, UserError) else name, None, str(error))
