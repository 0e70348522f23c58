"""A run's checkpoints: orbax writes and reads them; what is kept, and what is damaged, we decide.

    checkpoints/STEP/default/      the state's arrays, by orbax
    checkpoints/STEP/meta/         what is known of it without reading those (`runs/meta.py`)
    checkpoints/.replaced-STEP/    the one before of that step, until the new one is written
    checkpoints/damaged-STEP/      set aside: it could not be read, or not to its digests

Of its versions `runs/meta.py` tells.
"""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from cifar_jax import devices, distributed
from cifar_jax.errors import UserError
from cifar_jax.runs.files import hide
from cifar_jax.runs.meta import Meta, as_saved, best, digest, read_meta

_WEIGHTS = ("params", "batch_stats")
_NO_META = "its metadata cannot be read"
_LEFTOVER = re.compile(r"(\d+\.orbax-checkpoint-tmp|\.deleted-).*")
_STEP = re.compile(r"(\.replaced-)?(\d+)")
# Of what the system refuses, what says nothing of the file: the next start may read it.
_REFUSED = [
    os.strerror(number)
    for number in (
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EACCES, errno.EPERM),
        *(errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN),
    )
]


class State(Protocol):
    """A NamedTuple of trees of arrays, `step` among them."""

    @property
    def step(self) -> Any: ...

    def _asdict(self) -> dict[str, Any]: ...

    def _replace(self, **fields: Any) -> Any: ...


S = TypeVar("S", bound=State)


class DamagedError(UserError):
    """A checkpoint cannot be read, or not to its digests."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"the checkpoint {path} is damaged ({reason})")
        self.reason = reason


class Damaged(NamedTuple):
    """A checkpoint that could not be read, and why."""

    step: int
    reason: str
    aside: Path
    """Where it is now."""

    def __str__(self) -> str:
        """In a line, to be told."""
        return (
            f"the checkpoint of step {self.step} is damaged ({self.reason}): "
            f"set aside as {self.aside}"
        )


class Checkpoints:
    """The checkpoints of one run, by step. Use as a context manager: leaving waits for writes.

    Of several processes all must make the same calls. The first decides and deletes for all.

    Args:
      folder: where they are; made by the first save.
      keep: so many of the last whole epochs are kept, and that of the best validation accuracy.
        One made within an epoch is kept until a later one of either kind is written.
    """

    def __init__(self, folder: Path, keep: int = 1) -> None:
        self._folder = folder
        self._keep = keep
        self._link: tempfile.TemporaryDirectory[str] | None = None
        self._saved = False
        self._checkpointer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            if kind is None or not issubclass(kind, UserError):
                self.wait()
        finally:
            self._checkpointer.close()
            if self._link:
                self._link.cleanup()

    def wait(self) -> None:
        """Until all that was saved is written; then delete what is no longer kept.

        Raises:
          UserError: it could not be written.
        """
        try:
            self._checkpointer.wait_until_finished()
        except Exception as error:
            raise UserError(
                f"no checkpoint could be written to {self._folder} ({_first_line(error)}): make "
                "room there, and start again: the run goes on from the one before"
            ) from error
        if self._saved and distributed.is_main_process():  # who only reads, deletes nothing
            self._prune()

    def all(self) -> list[Meta]:
        """What is there, by step."""
        if not self._folder.is_dir():
            return []
        names = [_STEP.fullmatch(path.name) for path in self._folder.iterdir() if path.is_dir()]
        return [self._meta(step) for step in sorted({int(name[2]) for name in names if name})]

    def latest(self) -> int | None:
        """The last step saved."""
        return max((meta.step for meta in self.all()), default=None)

    def best(self) -> int | None:
        """The step of the best validation accuracy, the latest of equals; None without any."""
        return meta.step if (meta := self.best_meta()) else None

    def best_meta(self) -> Meta | None:
        """The checkpoint of the best validation accuracy, the latest of equals."""
        return best(self.all())

    def save(
        self,
        state: State,
        validation_accuracy: float | None = None,
        *,
        whole: bool = True,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Save in the background; the save before is finished first.

        Args:
          state: what is saved. Its arrays may be donated as soon as this returns.
          validation_accuracy: lets it count as the best.
          whole: whether an epoch ends here.
          extra: what else is to be known when it is restored, as JSON has it.

        Raises:
          UserError: the save before could not be written.
        """
        self.wait()
        step = int(state.step)
        fields = state._asdict()
        digests = {name: digest(tree) for name, tree in fields.items()}
        meta = Meta(step, whole, validation_accuracy, dict(extra or {}), digests)
        if distributed.is_main_process() and (path := self._folder / str(step)).exists():
            # Made within the epoch that ends here, or the run went another way from this step. It
            # is all that there is of it, until the new one is written.
            self._remove(self._replaced(step))
            path.rename(self._replaced(step))
        self._folder.mkdir(parents=True, exist_ok=True)
        self._saved = True
        self._checkpointer.save(
            self._orbax_folder() / str(step),
            args=ocp.args.Composite(
                default=ocp.args.StandardSave(fields), meta=ocp.args.JsonSave(as_saved(meta))
            ),
        )

    def restore(self, step: int, like: S) -> S:
        """The state of that step, with the structure, types and shardings of `like`.

        A field of the state that came after the checkpoint was made is that of `like`.

        Raises:
          DamagedError: it cannot be read, or not to its digests.
          UserError: the system refuses to read it.
        """
        found = self._read(step, tuple(like._asdict()), like._asdict())

        def place(array: np.ndarray, model: Any) -> jax.Array:
            if (array.shape, array.dtype) != (model.shape, model.dtype):
                raise self._damaged(step, "it is of another network or optimizer")
            return devices.put(array, model.sharding)

        placed = {
            name: jax.tree.map(place, tree, getattr(like, name)) for name, tree in found.items()
        }
        return like._replace(**placed)

    def restore_newest(self, like: S) -> tuple[S, Meta | None, list[Damaged]]:
        """The newest state that can be read, and the newer ones that cannot, which are set aside,
        as are older ones of which is seen at once that they cannot.

        Where there is no checkpoint at all, it is `like`, without a `Meta`.

        Raises:
          UserError: none of several can be read, or the system refuses to read one; then none is
            touched.
        """
        # As the first process sees it, which deletes what is no longer kept.
        found = distributed.run_on_main(
            lambda: [[meta.step, meta.digests is not None] for meta in self.all()]
        )
        aside: list[Damaged] = []
        damaged: dict[int, str] = {}
        for step, _ in reversed(found):
            state, reason = self.restore_together(step, like)
            if reason and distributed.run_on_main(partial(self._has_one_before, step)):
                aside += self._set_all_aside({step: reason})
                state, reason = self.restore_together(step, like)
            if not reason:
                older = [other for other, known in found if other < step and not known]
                aside += self._set_all_aside(damaged | dict.fromkeys(older, _NO_META))
                return state, self._meta(step), aside
            damaged[step] = reason
        if damaged:
            told = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
            raise UserError(
                f"no checkpoint in {self._folder} can be read ({told}): bring back a good copy, "
                "or train anew with --fresh"
            )
        return like, None, []

    def restore_together(self, step: int, like: S) -> tuple[S, str | None]:
        """The state of that step; or `like`, and why it is damaged, where one process says so."""

        def tried() -> tuple[S, str | None]:
            try:
                return self.restore(step, like), None
            except DamagedError as error:
                return like, error.reason

        state, reason = distributed.run_on_all(tried)
        reasons = [text for text in distributed.allgather(reason) if text]
        return (like, reasons[0]) if reasons else (state, None)

    def weights(self, step: int) -> dict[str, Any]:
        """The variables of that step as NumPy arrays, `params` and `batch_stats`: their average
        where one was kept, since that is what is evaluated.

        Nothing else of the state is read, so this needs to know neither optimizer nor network.

        Raises:
          DamagedError: it cannot be read, or not to its digests.
        """
        averaged = None
        if "averaged" in (self._meta(step).digests or {}):  # not in those of before
            averaged = self._read(step, ("averaged",), None)["averaged"]
        return {"batch_stats": {}} | (averaged or self._read(step, _WEIGHTS, None))

    def quarantine(self, step: int) -> Path:
        """Rename a checkpoint so that it is none any more; returns where it is now."""
        aside, number = self._folder / f"damaged-{step}", 1
        while aside.exists():
            number += 1
            aside = self._folder / f"damaged-{step}-{number}"
        self._path(step).rename(aside)
        return aside

    def _set_all_aside(self, damaged: Mapping[int, str]) -> list[Damaged]:
        """Those steps, with the reasons; the first process does it for all."""
        aside = distributed.run_on_main(lambda: [str(self.quarantine(step)) for step in damaged])
        return [
            Damaged(step, reason, Path(path))
            for (step, reason), path in zip(damaged.items(), aside, strict=True)
        ]

    def _read(
        self, step: int, wanted: tuple[str, ...], like: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """Those of the `wanted` fields that were saved, as NumPy arrays held to their digests."""
        path = self._orbax_folder() / self._path(step).name / "default"
        reader = ocp.PyTreeCheckpointer()
        if (digests := self._meta(step).digests) is None:
            raise self._damaged(step, _NO_META)
        try:
            saved = _tree(reader.metadata(path))
            item = {name: (like or saved)[name] for name in wanted if name in saved}
            abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), item)
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), abstract)
            found = reader.restore(
                path,
                args=ocp.args.PyTreeRestore(
                    item=abstract, restore_args=as_numpy, partial_restore=True
                ),
            )
        except MemoryError:
            raise
        # A damaged file shows as whatever its reader stumbles over: there is no common base.
        except Exception as error:
            if any(refusal in str(error) for refusal in _REFUSED):
                raise UserError(
                    f"the checkpoint {self._path(step)} cannot be read ({_first_line(error)}): "
                    "mend that, and start again; nothing was changed"
                ) from error
            raise self._damaged(step, _first_line(error)) from error
        missing = digests.keys() & set(wanted) - found.keys()
        wrong = [name for name in found if name in digests and digest(found[name]) != digests[name]]
        if missing or wrong:
            names = ", ".join([*missing, *wrong])
            raise self._damaged(step, f"its {names} differ from what was saved")
        return found

    def _meta(self, step: int) -> Meta:
        return read_meta(self._path(step), step)

    def _prune(self) -> None:
        for path in list(self._folder.iterdir()):
            replaced = path.name.startswith(".replaced-")
            if replaced and (self._folder / path.name.removeprefix(".replaced-")).exists():
                self._remove(path)
            elif _LEFTOVER.fullmatch(path.name):  # by a start that was killed
                shutil.rmtree(path, ignore_errors=True)
        found = self.all()
        whole = [meta.step for meta in found if meta.whole]
        kept = {*whole[-self._keep :], found[-1].step} if found else set()
        for meta in found:
            # A damaged one is told of and set aside when the newest is restored next.
            if meta.step not in kept and meta is not best(found) and meta.digests is not None:
                self._remove(self._path(meta.step))

    def _damaged(self, step: int, reason: str) -> DamagedError:
        return DamagedError(self._path(step), reason)

    def _path(self, step: int) -> Path:
        """Of that step's checkpoint: while another is being written in its place, the one before,
        which the run goes on from if that is never finished."""
        path, replaced = self._folder / str(step), self._replaced(step)
        return replaced if replaced.exists() and not path.exists() else path

    def _replaced(self, step: int) -> Path:
        return self._folder / f".replaced-{step}"

    def _has_one_before(self, step: int) -> bool:
        """Whether that step is there twice: a start was killed as the second was written."""
        return (self._folder / str(step)).exists() and self._replaced(step).exists()

    def _remove(self, path: Path) -> None:
        """Out of sight at once: half deleted it would be taken for a damaged one."""
        if path.exists():
            shutil.rmtree(hide(path), ignore_errors=True)

    def _orbax_folder(self) -> Path:
        """The folder under a name that orbax takes as it is, where its own has what is a pattern
        or another file system to it, or no UTF-8."""
        folder = self._folder.absolute()
        if not re.search(r"[*?\[\]:\udc80-\udcff]", str(folder)):
            return folder
        if self._link is None:
            self._link = tempfile.TemporaryDirectory(prefix="cifar-jax-")
            (Path(self._link.name) / "checkpoints").symlink_to(folder, target_is_directory=True)
        return Path(self._link.name) / "checkpoints"


def _tree(metadata: Any) -> Any:
    """The tree of arrays in what orbax tells of a checkpoint, in a form of each version."""
    metadata = getattr(metadata, "item_metadata", metadata)
    return getattr(metadata, "tree", metadata)


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
