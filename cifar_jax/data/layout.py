"""Find the classes, splits and image files of a folder of images, without reading the images."""

import json
import os
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from cifar_jax.data.images import is_image, is_junk, walk
from cifar_jax.data.splits import (
    find_splits,
    folders,
    layouts,
    split_in,
    split_of,
    splits_inside,
    unnested,
)
from cifar_jax.errors import UserError, counted, nearest

# Names of subfolders that usually hold images and annotations, and are not classes.
_NO_CLASSES = {
    *("image", "images", "img", "imgs", "jpegimages", "mask", "masks", "label", "labels"),
    *("annotation", "annotations", "segmentation", "segmentations", "segmentationclass"),
}


class File(NamedTuple):
    """An image file: path, label, size in bytes, and modification time in nanoseconds."""

    path: str
    label: int
    size: int
    modified: int


class Listing(NamedTuple):
    """The classes and image files of a folder.

    `validation` and `test` are None if the folder has no subfolder for this split. `skipped` is the
    number of files that are not images. `notes` are lines for the log.
    """

    classes: tuple[str, ...]
    train: list[File]
    validation: list[File] | None
    test: list[File] | None
    skipped: int
    notes: tuple[str, ...]


class _Class(NamedTuple):
    """The content of a class folder. All files have the label 0 until the classes are known."""

    files: list[File]
    others: Counter[str]
    """Number of files in the class folder that are not images, by file suffix."""
    output: Path | None
    """Path of a run folder or report inside the class folder. None if there is neither."""
    links: list[str]
    """Paths of links to folders. The links are not followed."""


def find(path: Path) -> Listing:
    """List the classes and images of a folder, without reading the images.

    Raises:
      UserError: the folder is missing, the layout is wrong, there are fewer than two classes, or a
        class has no images.
    """
    if not path.is_dir():
        problem = "is a file, not a folder: unpack it and" if path.exists() else "does not exist:"
        raise UserError(
            f"{path} {problem} name a folder of images with --set data.dataset=folder:PATH"
        )
    splits, notes = find_splits(path)
    root = splits.get("train", path)
    train = _find_classes(root, notes)
    classes = tuple(train)
    if len(classes) < 2:
        inner = folders(root)[classes[0]] if classes else root
        hint = f" Or name {inner}, if its subfolders are the classes." if folders(inner) else ""
        raise UserError(
            f"{root} has {counted(len(classes), 'class folder')}, but at least 2 are needed. "
            f"Arrange the images as {layouts(path)}.{hint}"
        )
    notes += _same_subfolders(root, classes)
    files: dict[str, list[File]] = {"train": _labeled(train, classes)}
    skipped = [found.others.total() for found in train.values()]
    for kind in [kind for kind in ("validation", "test") if kind in splits]:
        held_out = _find_classes(splits[kind], notes, classes)
        files[kind] = _labeled(held_out, classes)
        skipped += [found.others.total() for found in held_out.values()]
        if not files[kind]:
            raise UserError(_no_images(splits[kind]))
    if "validation" in splits:
        notes.append(f"validation images: {splits['validation']} (data.validation is not used)")
    if "test" not in splits:
        notes.append(f"test images: a fifth of each class in {root}")
    return Listing(
        classes,
        files["train"],
        files.get("validation"),
        files.get("test"),
        sum(skipped),
        tuple(notes),
    )


def find_labeled(path: Path) -> Listing:
    """List the images of a folder for evaluation.

    If the folder has a subfolder for test images, only the images in this subfolder are listed.
    Otherwise the subfolders are the classes. The images are in the field `train` of the listing,
    although they are not used for training.

    Raises:
      UserError: the folder is missing, the layout is wrong, or there are no images.
    """
    if not path.is_dir():
        raise UserError(f"{path} {'is not a folder' if path.exists() else 'does not exist'}")
    notes: list[str] = []
    named = {split_of(name): folder for name, folder in folders(path).items()}
    has_longer_names = any(split_in(name) and not split_of(name) for name in folders(path))
    splits = {}
    if "test" in named and folders(named["test"]):
        splits = {"test": unnested(named["test"])}
    elif "train" in named or has_longer_names:
        splits = find_splits(path)[0]
    elif "validation" in named and folders(named["validation"]):
        raise UserError(
            f"{path} has no folder `test`: to evaluate its validation images, name the folder "
            f"{named['validation']}"
        )
    root = splits.get("test", path)
    if "test" in splits:
        notes.append(f"evaluated images: {root}")
    elif "train" in splits:
        raise UserError(
            f"{path} has a folder `{splits['train'].name}` but no folder `test`: name the folder "
            "whose subfolders are the classes"
        )
    found = _find_classes(root, notes, may_be_empty=True)
    files = _labeled(found, tuple(found))
    if not files:
        raise UserError(f"{root} has no class folders with images: arrange them as {root}/CLASS/*")
    skipped = sum(content.others.total() for content in found.values())
    return Listing(tuple(found), files, None, [], skipped, tuple(notes))


def check_workdir(path: Path, workdir: Path) -> None:
    """Raise UserError if a run folder would be inside a class folder of a folder of images.

    Otherwise the files of the run would become part of the class. Both arguments must be absolute
    paths without symbolic links.
    """
    for root in find_splits(path)[0].values() or [path]:
        inside = workdir.relative_to(root) if workdir.is_relative_to(root) else Path()
        folder = root / Path(*inside.parts[:1])
        if len(inside.parts) > 1 and folder.is_dir() and any(_list(folder).files):
            raise UserError(
                f"the run folder {workdir} is inside {folder}, which contains images: choose "
                "another --workdir"
            )


def _find_classes(
    root: Path,
    notes: list[str],
    classes: tuple[str, ...] | None = None,
    *,
    may_be_empty: bool = False,
) -> dict[str, _Class]:
    """Return the content of each class folder in `root`, by class. Add lines to `notes`.

    Args:
      root: the folder.
      notes: lines for the log.
      classes: the classes of the training images. None: `root` contains the training images.
      may_be_empty: whether a class folder may have no images. It may if `classes` is given.

    Raises:
      UserError: a class folder has no images or is not one of `classes`, or it is unclear which
        folders are the classes.
    """
    found: dict[str, _Class] = {}
    subfolders = folders(root)
    if len(subfolders) > 1 and {name.casefold() for name in subfolders} <= _NO_CLASSES:
        raise UserError(
            f"{root} has the folders {' and '.join(subfolders)}, which are not classes: "
            f"arrange the images as {root}/CLASS/*"
        )
    for name, folder in subfolders.items():
        if not name.isprintable():
            raise UserError(
                f"the folder {name!a} in {root} has characters in its name that cannot be printed: "
                "rename it"
            )
        if splits_inside(folder):
            advice = "put the classes into the splits, as in "
            advice += f"{root}/train/CLASS/* and {root}/test/CLASS/*"
            if len(subfolders) == 1:
                advice = f"name that folder, as folder:{folder}"
            raise UserError(f"{folder} has folders for the splits: {advice}")
        content = _list(folder)
        notes += [f"not used, because it is a link to a folder: {link}" for link in content.links]
        if content.output and content.files:
            raise UserError(
                f"{folder} has images and the output {content.output} of cifar-jax: move the "
                f"output out of {root}"
            )
        if content.output:
            notes.append(f"not a class, because it is output of cifar-jax: {folder}")
        elif classes and name not in classes:
            raise UserError(
                f"{folder} is not a class of the training images"
                f"{nearest(name, classes) or '.'} Their classes are "
                f"{', '.join(classes[:20])}."
            )
        elif not content.files and not classes and not may_be_empty:
            raise UserError(_no_images(folder, content.others))
        else:
            found[name] = content
    with os.scandir(root) as entries:
        visible = [e for e in entries if e.is_file() and not is_junk(e.name)]
    strays = sum(is_image(entry.path) for entry in visible)
    if strays and not found:
        raise UserError(
            f"{root} has {counted(strays, 'image')} but no class folders: move them to "
            f"{root}/CLASS, or move {root} away"
        )
    if strays:
        text = counted(strays, "image")
        notes.append(f"not used, because not in a class folder: {text} in {root}")
    return found


def _same_subfolders(root: Path, classes: tuple[str, ...]) -> list[str]:
    """Return a list with a line for the log if all class folders have the same subfolders.

    Such folders may be splits or folds of a cross-validation instead of classes. If the subfolders
    differ, the list is empty.

    Raises:
      UserError: the folders have the same subfolders, and a folder's name contains the name of a
        split, such as `train` or `test`.
    """
    found = folders(root)
    inside = [folders(found[name]) for name in classes]
    if len(inside[0]) < 2 or any(inner.keys() != inside[0].keys() for inner in inside):
        return []
    names = ", ".join(classes[:20])
    text = f"the folders {names} in {root} all have the subfolders {', '.join(inside[0])}"
    if any(split_in(name) for name in classes):
        raise UserError(
            f"{text}, so it is unclear which are the classes: name the splits `train`, `val` and "
            "`test`, or put the images of a class into one folder"
        )
    return [f"check the classes: {text}"]


def _list(folder: Path) -> _Class:
    """List the files in a class folder and its subfolders."""
    content = _Class([], Counter(), None, [])
    for entry in walk(folder):
        if entry.is_dir():
            content.links.append(entry.path)
        elif is_image(entry.path):
            size, modified = 0, 0
            # Keep a link to a missing file. The error is reported when the image is read.
            with suppress(OSError):
                stat = entry.stat()
                size, modified = stat.st_size, stat.st_mtime_ns
            content.files.append(File(entry.path, 0, size, modified))
        elif entry.name in ("config.json", "report.md") and _is_output(Path(entry.path)):
            content = content._replace(output=Path(entry.path).parent)
        else:
            content.others[Path(entry.name).suffix] += 1
    return content


def _is_output(file: Path) -> bool:
    """Return whether a file is the `config.json` of a run or belongs to a report."""
    if file.name == "report.md":
        return file.with_name("report.svg").exists()
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"format", "experiment", "seed"} <= content.keys()


def _labeled(found: dict[str, _Class], classes: tuple[str, ...]) -> list[File]:
    return [
        file._replace(label=label)
        for label, name in enumerate(classes)
        if name in found
        for file in found[name].files
    ]


def _no_images(folder: Path, others: Counter[str] | None = None) -> str:
    """Return the error message for a folder without images."""
    kinds = ", ".join(suffix or "no suffix" for suffix, _ in (others or Counter()).most_common(3))
    reason = f", only other files ({kinds})" if kinds else ""
    return f"{folder} has no images{reason}: add some, or move it out of the data set"
