"""Find the classes, splits and image files of a folder of images, without reading the images."""

import json
import os
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from cifar_jax.data.images import is_image, is_junk, walk
from cifar_jax.errors import UserError, counted, nearest
from cifar_jax.runtime import cache_dir

# Words that name a split. A folder name may also contain other words, such as `seg` or `set`.
_SPLITS = {
    "train": "train|training|trn",
    "validation": "val|valid|validation|dev",
    "test": "test|testing|tst|eval|evaluation",
}
_OTHER_WORDS = "(?:seg|set|data|dataset|images?|imgs?|pictures?|photos?|split|folder|dir)*"


class File(NamedTuple):
    """An image file: path, label, size in bytes, and modification time in nanoseconds."""

    path: str
    label: int
    size: int
    modified: int


class Listing(NamedTuple):
    """The classes and image files of a folder.

    `validation` and `test` are None if the folder has no such subfolder. `skipped` is the number of
    files that are not images. `notes` are lines for the log.
    """

    classes: tuple[str, ...]
    train: list[File]
    validation: list[File] | None
    test: list[File] | None
    skipped: int
    notes: tuple[str, ...]


class _Class(NamedTuple):
    """The content of a class folder. All files have label 0 until the classes are sorted."""

    files: list[File]
    others: Counter[str]
    """Number of files that are not images, by suffix."""
    output: Path | None
    """A run folder or a report in the class folder. None if there is none."""


def find(path: Path) -> Listing:
    """List the classes and images of a folder, without reading the images.

    Raises:
      UserError: the folder is missing, the layout is wrong, there are fewer than two classes, or a
        class has no images.
    """
    if not path.is_dir():
        problem = "is not a folder" if path.exists() else "does not exist"
        raise UserError(
            f"{path} {problem}: name a folder of images with --set data.dataset=folder:PATH"
        )
    splits, notes = _find_splits(path)
    root = splits.get("train", path)
    train = _find_classes(root, notes)
    classes = tuple(train)
    if len(classes) < 2:
        raise UserError(
            f"{root} has {counted(len(classes), 'class folder')}, but at least 2 are needed. "
            f"Arrange the images as {_layouts(path)}."
        )
    files: dict[str, list[File]] = {"train": _labeled(train, classes)}
    skipped = [found.others.total() for found in train.values()]
    for kind in splits.keys() - {"train"}:
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
    """List the images of a folder for evaluation, as the training images of the listing.

    If the folder has a subfolder for test images, only these images are listed. Otherwise the
    subfolders are the classes.

    Raises:
      UserError: the folder is missing, the layout is wrong, or there are no images.
    """
    if not path.is_dir():
        raise UserError(f"{path} {'is not a folder' if path.exists() else 'does not exist'}")
    notes: list[str] = []
    splits = {_split_of(name): folder for name, folder in _folders(path).items()}
    root = path
    if "test" in splits and _folders(splits["test"]):
        root = _unnested(splits["test"])
        notes.append(f"evaluated images: {root}")
    elif "train" in splits and _folders(splits["train"]):
        raise UserError(
            f"{path} has a folder `{splits['train'].name}` but no folder `test`: name the folder "
            "whose subfolders are the classes"
        )
    found = _find_classes(root, notes)
    files = _labeled(found, tuple(found))
    if not files:
        raise UserError(f"{root} has no class folders with images: arrange them as {root}/CLASS/*")
    skipped = sum(content.others.total() for content in found.values())
    return Listing(tuple(found), files, None, [], skipped, tuple(notes))


def _layouts(path: Path) -> str:
    return f"{path}/train/CLASS/* and {path}/test/CLASS/*, or {path}/CLASS/*"


def _folders(path: Path) -> dict[str, Path]:
    """Return the subfolders of a folder by name, sorted. Names are in Unicode's form NFC.

    macOS stores names in another form. Folders that an operating system added are left out.
    """
    with os.scandir(path) as entries:
        found = [path / e.name for e in entries if e.is_dir() and not is_junk(e.name)]
    folders: dict[str, Path] = {}
    for folder in found:
        name = unicodedata.normalize("NFC", folder.name)
        if name in folders:
            raise UserError(f"{path} has two folders with the name {name}: rename one of them")
        if folder.resolve() != cache_dir().resolve():
            folders[name] = folder
    return dict(sorted(folders.items()))


def _split_of(name: str) -> str | None:
    """Return `train`, `validation` or `test` if a folder name means that split, else None."""
    letters = re.sub("[^a-z]", "", name.casefold())
    for split, words in _SPLITS.items():
        if re.fullmatch(f"{_OTHER_WORDS}(?:{words}){_OTHER_WORDS}", letters):
            return split
    return None


def _find_splits(path: Path) -> tuple[dict[str, Path], list[str]]:
    """Return the folder of each split, and lines for the log about unused folders.

    The result is empty if the subfolders of `path` are the classes.
    """
    named: dict[str, list[Path]] = {}
    others = []
    for name, folder in _folders(path).items():
        if split := _split_of(name):
            named.setdefault(split, []).append(folder)
        else:
            others.append(folder)
    for split, folders in named.items():
        if len(folders) > 1:
            names = " and ".join(folder.name for folder in folders)
            raise UserError(f"{path} has two folders of {split} images, {names}: rename one")
    splits = {split: folders[0] for split, folders in named.items()}
    if "train" not in splits:
        # A folder `valid` without subfolders may be a class.
        if "test" in splits or ("validation" in splits and _folders(splits["validation"])):
            name = splits.get("test", splits.get("validation", path)).name
            raise UserError(
                f"{path} has a folder `{name}` but no folder `train`. Arrange the images as "
                f"{_layouts(path)}."
            )
        return {}, []
    if len(splits) == 1 and others and not _folders(splits["train"]):
        return {}, []  # Here `train` is a class.
    notes = []
    if others:
        names = ", ".join(folder.name for folder in others)
        notes.append(f"not used, because {path} has folders for the splits: {names}")
    return {split: _unnested(folder) for split, folder in splits.items()}, notes


def _unnested(folder: Path) -> Path:
    """Return the only subfolder if its name is that of a split (`seg_train/seg_train`)."""
    inside = list(_folders(folder).values())
    return inside[0] if len(inside) == 1 and _split_of(inside[0].name) else folder


def _find_classes(
    root: Path, notes: list[str], classes: tuple[str, ...] | None = None
) -> dict[str, _Class]:
    """Return the content of each class folder in `root`, by class. Add lines to `notes`.

    Args:
      root: the folder.
      notes: lines for the log.
      classes: the classes of the training images. None: `root` contains the training images.

    Raises:
      UserError: a class folder has no images or is not one of `classes`, or it is unclear which
        folders belong to a class.
    """
    found: dict[str, _Class] = {}
    for name, folder in _folders(root).items():
        if not name.isprintable():
            raise UserError(
                f"the folder {name!a} in {root} has characters in its name that cannot be printed: "
                "rename it"
            )
        inside = {_split_of(inner) for inner in _folders(folder)}
        if "train" in inside and len(inside - {None}) > 1:
            raise UserError(
                f"{folder} has folders for the splits: put the classes into the splits, as in "
                f"{root}/train/CLASS/* and {root}/test/CLASS/*"
            )
        content = _list(folder)
        if content.output and content.files:
            raise UserError(
                f"{folder} has images and the output {content.output} of cifar-jax: move the "
                f"output out of {root}"
            )
        if content.output:
            notes.append(f"not a class, because it is output of cifar-jax: {folder}")
        elif classes and name not in classes:
            raise UserError(
                f"{folder} has no class of the same name in the training images"
                f"{nearest(name, classes) or '.'} The classes there are "
                f"{', '.join(classes[:20])}."
            )
        elif not content.files and not classes:
            raise UserError(_no_images(folder, content.others))
        else:
            found[name] = content
    with os.scandir(root) as entries:
        visible = [e for e in entries if not e.is_dir() and not is_junk(e.name)]
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


def _list(folder: Path) -> _Class:
    """List the files in a class folder and its subfolders."""
    content = _Class([], Counter(), None)
    for entry in walk(folder):
        if is_image(entry.path):
            stat = entry.stat()
            content.files.append(File(entry.path, 0, stat.st_size, stat.st_mtime_ns))
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
