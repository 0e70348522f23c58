"""The registry of data sets, with the functions that read each kind of data set."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cifar_jax.data import arrays, cache, cifar10, cifar100, digits, image_folder, tfds_folder
from cifar_jax.data.dataset import Labeled
from cifar_jax.data.images import DEFAULT_TARGET, Target
from cifar_jax.errors import UserError, nearest
from cifar_jax.files import local_path


class Request(NamedTuple):
    """A request to load a data set. `argument` is the part of the name after the colon."""

    argument: str
    given_data_dir: Path | None
    skip_bad_images: bool = False
    target: Target = DEFAULT_TARGET
    white: int | None = None

    @property
    def data_dir(self) -> Path:
        """Folder of all tfds data sets: the given folder, or the default folder."""
        return self.given_data_dir or tfds_folder.default_data_dir()

    @property
    def path(self) -> Path:
        """The part of the name after the colon, as a path. URLs are refused."""
        return local_path(self.argument, "data.dataset")


class Entry(NamedTuple):
    """A kind of data set.

    Attributes:
      form: the name as the user writes it, such as `folder:PATH`.
      source: function that returns the data set for training. None: the data set is for evaluation
        only.
      labeled: function that returns images for evaluation. None: the test images of `source` are
        used.
    """

    form: str
    source: Callable[[Request], cache.Source] | None
    labeled: Callable[[Request], Labeled] | None = None


# To add a kind of data set, add its name and a function that returns a `cache.Source`.
SOURCES: dict[str, Entry] = {
    "cifar10": Entry("cifar10", lambda request: cifar10.source(request.data_dir)),
    "cifar100": Entry("cifar100", lambda request: cifar100.source(request.data_dir)),
    "digits": Entry("digits", lambda request: digits.source()),
    "folder": Entry(
        "folder:PATH",
        lambda request: image_folder.source(
            request.path, skip_bad_images=request.skip_bad_images, target=request.target
        ),
        lambda request: image_folder.labeled(request.path, request.target, request.white),
    ),
    "tfds": Entry(
        "tfds:NAME",
        lambda request: tfds_folder.source(
            tfds_folder.find(request.argument, request.data_dir),
            f"tfds:{request.argument}",
            request.target,
        ),
        lambda request: tfds_folder.labeled(request.argument, request.data_dir, request.target),
    ),
    "npz": Entry(
        "npz:FILE",
        lambda request: arrays.npz_source(request.path, request.target),
        lambda request: arrays.npz_labeled(request.path, request.target),
    ),
    "npy": Entry(
        "npy:IMAGES,LABELS",
        None,
        lambda request: arrays.npy_labeled(str(request.path), request.target),
    ),
}


def find(
    name: str,
    data_dir: Path | None,
    skip_bad_images: bool = False,
    target: Target = DEFAULT_TARGET,
    *,
    others: str = "",
) -> tuple[Entry, Request]:
    """Return the registry's entry for a data set, and the request for it.

    Args:
      name: name of the data set, such as `cifar10` or `folder:PATH`.
      data_dir: the folder of all tfds data sets. None: the default folder.
      skip_bad_images: whether to leave out the unreadable images of a folder.
      target: size of the returned images, and the way to make them square.
      others: further names that the caller accepts, for the error message. Empty: the images are
        for training, and data sets that are for evaluation only are refused.

    Raises:
      UserError: there is no such data set, or its images always have another size than `target`.
    """
    kind, _, argument = name.partition(":")
    entry = SOURCES.get(kind)
    if entry and (":" in entry.form) == bool(argument) and (entry.source or others):
        if ":" not in entry.form:
            _refuse_target(name, target, is_training=not others)
        return entry, Request(argument, data_dir, skip_bad_images, target)
    if "://" in name:
        local_path(name, "data.dataset")
    forms = [known.form for known in SOURCES.values() if known.source or others]
    forms += [others] if others else []
    if entry and (entry.source or others):
        hint = f"; did you mean {entry.form}?"
    elif entry:
        hint = " for training: these files are for evaluation only."
    elif "/" in name:
        hint = f"; did you mean folder:{argument or name}?"
    else:
        hint = nearest(name, SOURCES)
    raise UserError(
        f"there is no data set {name!r}{hint or '.'} Choose {', '.join(forms[:-1])} or {forms[-1]}."
    )


def _refuse_target(name: str, target: Target, is_training: bool) -> None:
    """Raise UserError if `target` would change the images of a data set with a fixed size."""
    size = DEFAULT_TARGET.size
    problem = ""
    if target.size != size and not is_training:
        raise UserError(
            f"the model takes images of {target.size} × {target.size} pixels, but {name} has "
            f"images of {size} × {size} pixels: choose other images, such as folder:PATH"
        )
    if target.size != size:
        problem = (
            f"data.image_size is {target.size}, but {name} has images of {size} × {size} pixels"
        )
    elif is_training and not target.center_crop:
        problem = f"data.center_crop has no effect on {name}, whose images are square"
    if problem:
        raise UserError(
            f"{problem}: leave out the setting, or set data.dataset to your own images, such as "
            "folder:PATH"
        )
