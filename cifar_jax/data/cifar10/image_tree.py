"""Reading a folder of image files: ``train/CLASS/*.png|jpg`` and ``test/CLASS/*.png|jpg``."""

import difflib
from pathlib import Path

import numpy as np

from cifar_jax.data.dataset import Decoded, Split
from cifar_jax.data.progress import progress
from cifar_jax.errors import UserError

_SUFFIXES = {".png", ".jpg", ".jpeg"}


def is_image_tree(path: Path) -> bool:
    """Whether ``path`` has the folders ``train`` and ``test``."""
    return (path / "train").is_dir() and (path / "test").is_dir()


def read(path: Path, classes: tuple[str, ...]) -> tuple[Decoded, tuple[str, ...]]:
    """The images below ``path``, ordered by class and file name, and remarks on what was left out.

    Raises UserError for a folder that is not named for a class, a split without images, and any
    image that is not 32×32 RGB.
    """
    remarks = []
    files = {split: _files(path / split, classes, remarks) for split in ("train", "test")}
    splits = {}
    with progress(f"Reading {path}", sum(map(len, files.values()))) as advance:
        for split, found in files.items():
            images = np.empty((len(found), 32, 32, 3), np.uint8)
            for i, (file, _) in enumerate(found):
                images[i] = _read_image(file)
                advance(1)
            splits[split] = Split(images, np.array([label for _, label in found], np.int32))
    return Decoded(classes, splits["train"], splits["test"]), tuple(remarks)


def _files(folder: Path, classes: tuple[str, ...], remarks: list[str]) -> list[tuple[Path, int]]:
    """Image files and their labels in one split's folder; adds to ``remarks``."""
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    for name in names:
        if name not in classes:
            near = difflib.get_close_matches(name, classes, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(
                f"{folder / name} is not named for a class: {hint}classes are "
                f"{', '.join(classes)} (classes of your own need no import: train with "
                "`--set data.dataset=folder:PATH`)"
            )
    files: list[tuple[Path, int]] = []
    skipped = 0
    for label, name in enumerate(classes):
        if name in names:
            inside = sorted(p for p in (folder / name).iterdir() if not p.name.startswith("."))
            images = [p for p in inside if p.suffix.lower() in _SUFFIXES]
            files += [(p, label) for p in images]
            skipped += len(inside) - len(images)
    present = {label for _, label in files}
    if not files:
        raise UserError(f"{folder} holds no images: expected {folder}/CLASS/*.png or *.jpg")
    if missing := [name for label, name in enumerate(classes) if label not in present]:
        remarks.append(f"{folder.name} has no images of {', '.join(missing)}")
    if skipped:
        remarks.append(f"left out of {folder.name}: files that are not PNG or JPEG ({skipped:,})")
    return files


def _read_image(file: Path) -> np.ndarray:
    from PIL import Image

    try:
        # Of the formats that Pillow knows some run other programs.
        with Image.open(file, formats=("PNG", "JPEG")) as image:
            if (image.size, image.mode) != ((32, 32), "RGB"):
                width, height = image.size
                raise UserError(
                    f"{file} is {width}×{height} {image.mode}, not 32×32 RGB: "
                    "convert the images first"
                )
            return np.asarray(image)
    except UserError:
        raise
    # Damage has no common base: DecompressionBombError, OSError, SyntaxError, zlib.error …
    except Exception as error:
        raise UserError(f"{file} is not a readable image") from error
