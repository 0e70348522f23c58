"""Find the folders of the training, validation and test images in a folder of images."""

import os
import re
import unicodedata
from itertools import combinations
from pathlib import Path

from cifar_jax.data.images import is_image, is_junk
from cifar_jax.errors import UserError
from cifar_jax.runtime import cache_dir

# Patterns of words that name a split. A folder name may also contain words such as `seg` or `set`.
_SPLITS = {
    "train": "train|training|trn",
    "validation": "val|valid|validation|validate|dev",
    "test": "test|testing|tst|eval|evaluation|holdout|heldout",
}
_OTHER_WORDS = "(?:seg|set|data|dataset|images?|imgs?|pictures?|photos?|split|folder|dir)*"


def layouts(path: Path) -> str:
    """Return a description of the supported layouts, for error messages."""
    return f"{path}/train/CLASS/* and {path}/test/CLASS/*, or {path}/CLASS/*"


def folders(path: Path) -> dict[str, Path]:
    """Return the paths of the subfolders of a folder, by name, in sorted order.

    Names are normalized to the Unicode form NFC, because macOS uses another form. Folders that an
    operating system added, and the cache folder of cifar_jax, are left out.

    Raises:
      UserError: two names are equal in form NFC, two names are links to the same folder, or a link
        leads to `path` or a parent of `path`.
    """
    with os.scandir(path) as entries:
        found = [path / e.name for e in entries if e.is_dir() and not is_junk(e.name)]
    result: dict[str, Path] = {}
    places: dict[Path, Path] = {}
    here, cache = path.resolve(), cache_dir().resolve()
    for folder in sorted(found):
        name, place = unicodedata.normalize("NFC", folder.name), folder.resolve()
        if name in result:
            raise UserError(f"{path} has two folders with the name {name}: rename one of them")
        if here.is_relative_to(place):
            raise UserError(f"{folder} is a link to a folder that contains it: remove the link")
        if first := places.get(place):
            raise UserError(f"{first} and {folder} are the same folder: remove one of them")
        if place != cache:
            result[name] = places[place] = folder
    return dict(sorted(result.items()))


def split_of(name: str) -> str | None:
    """Return `train`, `validation` or `test` if a folder name stands for this split, else None."""
    letters = re.sub("[^a-z]", "", name.casefold())
    for split, words in _SPLITS.items():
        if re.fullmatch(f"{_OTHER_WORDS}(?:{words}){_OTHER_WORDS}", letters):
            return split
    return None


def split_in(name: str) -> tuple[str, str] | None:
    """Return the split that a word in a folder name stands for, and the rest of the name.

    The result is None if no word stands for a split.

    >>> split_in("Pets_train")
    ('train', 'pets')
    """
    for word in re.finditer("[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name):
        if split := split_of(word[0]):
            rest = name[: word.start()] + name[word.end() :]
            return split, re.sub(r"\W|_", "", rest).casefold()
    return None


def splits_inside(folder: Path) -> bool:
    """Return whether a folder has subfolders for the training split and for another split."""
    inside = {found[0] for name in folders(folder) if (found := split_in(name))}
    return "train" in inside and len(inside) > 1


def find_splits(path: Path) -> tuple[dict[str, Path], list[str]]:
    """Return the folder of each split, and lines for the log about unused folders.

    The result is empty if the subfolders of `path` are the classes.

    Raises:
      UserError: it is unclear which folders are the splits.
    """
    named: dict[str, list[Path]] = {}
    others = []
    for name, folder in folders(path).items():
        if split := split_of(name):
            named.setdefault(split, []).append(folder)
        else:
            others.append(folder)
    _add_longer_names(path, named, others)
    for split, found in named.items():
        if len(found) > 1:
            names = " and ".join(folder.name for folder in found)
            raise UserError(f"{path} has two folders of {split} images, {names}: rename one")
    splits = {split: found[0] for split, found in named.items()}
    if "train" not in splits:
        # A folder `valid` without subfolders may be a class, for example next to a class `invalid`.
        if "test" in splits or ("validation" in splits and folders(splits["validation"])):
            name = splits.get("test", splits.get("validation", path)).name
            raise UserError(
                f"{path} has a folder `{name}` but no folder `train`. Arrange the images as "
                f"{layouts(path)}. If `{name}` is a class, rename it."
            )
        return {}, []
    if len(splits) == 1 and others and not folders(splits["train"]):
        return {}, []  # `train` has no subfolders, so it is a class and not a split.
    notes = []
    if others:
        names = ", ".join(folder.name for folder in others)
        if len(splits) == 1 and any(_has_images(folder) for folder in others):
            raise UserError(
                f"{splits['train']} has subfolders, and there are also images in {names}. If "
                f"`{splits['train'].name}` is a class, rename it. If not, move {names} out of "
                f"{path}."
            )
        notes.append(f"not used, because {path} has folders for the splits: {names}")
    notes += [
        f"{'training' if split == 'train' else split} images: {folder}"
        for split, folder in splits.items()
        if split != "validation" and not split_of(folder.name)
    ]
    return {split: unnested(folder) for split, folder in splits.items()}, notes


def _has_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.is_file() and is_image(entry.path) for entry in entries)


def _add_longer_names(path: Path, named: dict[str, list[Path]], others: list[Path]) -> None:
    """Move folders such as `pets_train` and `pets_test` from `others` to `named`.

    A folder that may be a class, such as `bullet_train`, is not moved. `bullet_train` may be a
    class in three cases: it has no subfolders, there is also a folder `train`, or no folder holds
    another split.

    Raises:
      UserError: folders without subfolders have names such as `cat_train` and `cat_test`.
    """
    longer = [(folder, *found) for folder in others if (found := split_in(folder.name))]
    parents = [entry for entry in longer if folders(entry[0])]
    kinds = named.keys() | {split for _, split, _ in parents}
    exact = set(named)
    if "train" in kinds and len(kinds) > 1:
        for folder, split, _ in parents:
            if split not in exact:
                named.setdefault(split, []).append(folder)
                others.remove(folder)
    for (first, split, rest), (second, other_split, other_rest) in combinations(longer, 2):
        if rest == other_rest and split != other_split and {first, second} <= set(others):
            raise UserError(
                f"{path} has the folders {first.name} and {second.name}, which seem to be splits "
                f"of one class. Arrange the images as {layouts(path)}."
            )


def unnested(folder: Path) -> Path:
    """Return the inner folder of a folder such as `seg_train/seg_train`.

    The inner folder must be the only subfolder, and its name must stand for a split. Otherwise
    return the given folder.

    Raises:
      UserError: the folder has subfolders for the splits.
    """
    if splits_inside(folder):
        raise UserError(
            f"{folder} has folders for the splits: name that folder, as folder:{folder}"
        )
    inside = list(folders(folder).values())
    return inside[0] if len(inside) == 1 and split_of(inside[0].name) else folder
