"""The checkpoints of one run. Orbax writes and reads them; this module decides which to keep.

    checkpoints/N/state/     arrays of the state, as nested dictionaries
    checkpoints/N/meta/      what `SavedState` holds, and its digest
    checkpoints/damaged-N/   a checkpoint that could not be read or does not match its digests

N counts the saves, so that no save replaces another. Orbax writes to a temporary folder and renames
it when it is complete, so that a killed process leaves no half-written checkpoint.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from cifar_jax import devices, distributed
from cifar_jax.errors import UserError
from cifar_jax.runs import schemas
from cifar_jax.runs.files import hide
from cifar_jax.runs.schemas import SavedState

_BAD_META = "its metadata cannot be read"


class State(Protocol):
    """A NamedTuple of trees of arrays, with the fields `step` and `epoch`."""

    @property
    def step(self) -> Any: ...

    @property
    def epoch(self) -> Any: ...

    def _asdict(self) -> dict[str, Any]: ...


S = TypeVar("S", bound=State)


class DamagedError(UserError):
    """A checkpoint cannot be read, or does not match its digests."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"the checkpoint {path} is damaged ({reason})")
        self.reason = reason


class Checkpoints:
    """The checkpoints of one run. A context manager: leaving it waits for saves in progress.

    In a multi-process run all processes make the same calls. The main process decides and deletes.

    Args:
      folder: where they are; created by the first save.
      keep: number of end-of-epoch checkpoints to keep. The one with the best validation accuracy
        and the newest one, which may be from within an epoch, are also kept.
    """

    def __init__(self, folder: Path, keep: int = 1) -> None:
        self._folder = folder.absolute()
        self._keep = keep
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

    def save(
        self,
        state: State,
        *,
        end_of_epoch: bool,
        validation_accuracy: float | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Save in the background, after the previous save is finished.

        Args:
          state: its arrays may be donated as soon as this returns.
          end_of_epoch: whether an epoch ends here, validation included.
          validation_accuracy: in percent; makes this a candidate for the best checkpoint.
          extra: more JSON values to restore.

        Raises:
          UserError: this save or the previous one could not be written.
        """
        self.wait()
        arrays = _flatten(state)
        saved = SavedState(
            number=distributed.run_on_main(self._next_number),
            step=int(state.step),
            epoch=int(state.epoch),
            end_of_epoch=end_of_epoch,
            validation_accuracy=validation_accuracy,
            extra=dict(extra or {}),
            digests={name: digest(field) for name, field in _by_field(arrays).items()},
        )
        with self._writing():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._checkpointer.save(
                self._path(saved.number),
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(traverse_util.unflatten_dict(arrays, sep="/")),
                    meta=ocp.args.JsonSave(_with_digest(schemas.dump(saved))),
                ),
            )
        self._saved = True

    def wait(self) -> None:
        """Wait until all saves are written, then delete the checkpoints that are not kept.

        Raises:
          UserError: a save could not be written.
        """
        with self._writing():
            self._checkpointer.wait_until_finished()
        if self._saved and distributed.is_main_process():  # A reader deletes nothing.
            self._prune()

    def all(self) -> list[SavedState]:
        """Return the checkpoints whose metadata can be read, oldest first."""
        saves = [self._meta(number) for number in self._numbers()]
        return [saved for saved in saves if saved]

    def latest(self) -> SavedState | None:
        """Return the newest checkpoint."""
        return max(self.all(), key=lambda saved: saved.number, default=None)

    def best(self) -> SavedState | None:
        """Return the checkpoint with the best validation accuracy, the latest of equals."""
        return _best(self.all())

    def restore(self, saved: SavedState, like: S) -> S:
        """Return a saved state, with the structure, types and shardings of `like`.

        Raises:
          DamagedError: the checkpoint cannot be read, or does not match its digests.
          UserError: it holds the state of another network or optimizer.
        """
        return self._restore(saved.number, like)

    def restore_latest(self, like: S) -> tuple[S, SavedState | None, list[str]]:
        """Restore the newest checkpoint that can be read. Rename those that cannot, if one can.

        Returns:
          The state, its checkpoint, and a message about each damaged one. Without checkpoints:
          `like`, None, [].

        Raises:
          UserError: there are checkpoints but none can be read (none is renamed then), or the
            newest holds the state of another network or optimizer.
        """
        numbers = distributed.run_on_main(self._numbers)
        damaged: dict[int, str] = {}
        for number in reversed(numbers):
            state, reason = self._restore_on_all(number, like)
            if reason:
                damaged[number] = reason
                continue
            saved = self._meta(number)
            unreadable = distributed.run_on_main(lambda: [n for n in numbers if not self._meta(n)])
            damaged |= dict.fromkeys(unreadable, _BAD_META)
            return state, saved, self._quarantine(damaged)
        if damaged:
            reasons = "; ".join(f"{number}: {reason}" for number, reason in damaged.items())
            raise UserError(
                f"no checkpoint in {self._folder} can be read ({reasons}). Restore one from a "
                "backup, or start over with --fresh."
            )
        return like, None, []

    def restore_best(self, like: S) -> tuple[S, SavedState | None, list[str]]:
        """Restore the best checkpoint that can be read. Rename better ones that cannot.

        Returns:
          As `restore_latest`. If no checkpoint with a validation accuracy can be read: `like`,
          None, and the messages.
        """
        messages: list[str] = []
        while (number := distributed.run_on_main(self._best_number)) is not None:
            state, reason = self._restore_on_all(number, like)
            if not reason:
                return state, self._meta(number), messages
            messages += self._quarantine({number: reason})
        return like, None, messages

    def weights(self, saved: SavedState) -> dict[str, Any]:
        """Return the variables to evaluate, as NumPy arrays: the averaged ones if there are any.

        Neither network nor optimizer need be known, since nothing else is read.

        Raises:
          DamagedError: the checkpoint cannot be read, or does not match its digests.
        """
        fields = ("averaged",) if "averaged" in saved.digests else ("params", "batch_stats")
        variables = traverse_util.unflatten_dict(self._read(saved.number, fields), sep="/")
        return {"batch_stats": {}} | variables.get("averaged", variables)

    def _restore(self, number: int, like: S) -> S:
        arrays, expected = self._read(number), _flatten(like)
        for name in sorted(arrays.keys() | expected.keys()):
            there, here = (_type(tree.get(name)) for tree in (arrays, expected))
            if there != here:
                raise UserError(
                    f"the checkpoint {self._path(number)} is of another network or optimizer: "
                    f"{name} is {there} there and {here} here. Choose another --workdir, or start "
                    "over with --fresh."
                )
        leaves = {name: devices.put(arrays[name], expected[name].sharding) for name in arrays}
        return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in expected])

    def _restore_on_all(self, number: int, like: S) -> tuple[S, str | None]:
        """Return the state; or `like`, and why the checkpoint is damaged for any process."""

        def attempt() -> tuple[S, str | None]:
            try:
                return self._restore(number, like), None
            except DamagedError as error:
                return like, error.reason

        state, reason = distributed.run_on_all(attempt)
        reasons = [text for text in distributed.allgather(reason) if text]
        return (like, reasons[0]) if reasons else (state, None)

    def _quarantine(self, damaged: Mapping[int, str]) -> list[str]:
        """Rename damaged checkpoints, given with the reasons; return a message about each."""

        def rename() -> None:
            for number in damaged:
                self._path(number).rename(self._folder / f"damaged-{number}")

        distributed.run_on_main(rename)
        return [
            f"checkpoint {number} is damaged ({reason}) and was renamed to "
            f"{self._folder / f'damaged-{number}'}"
            for number, reason in damaged.items()
        ]

    def _read(self, number: int, fields: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
        """Return the saved arrays by path, of all fields or of some, checked by their digests."""
        path = self._path(number)
        if (saved := self._meta(number)) is None:
            raise DamagedError(path, _BAD_META)
        reader = ocp.PyTreeCheckpointer()
        try:
            tree = _tree(reader.metadata(path / "state"))
            item = {name: tree[name] for name in tree if fields is None or name in fields}
            abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), item)
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), abstract)
            restore = ocp.args.PyTreeRestore(abstract, as_numpy, partial_restore=True)
            arrays = _flatten(reader.restore(path / "state", args=restore))
        except MemoryError:
            raise
        except Exception as error:  # A damaged file raises whatever its reader stumbles over.
            raise DamagedError(path, _one_line(error)) from error
        digests = {name: digest(field) for name, field in _by_field(arrays).items()}
        expected = {
            name: value
            for name, value in saved.digests.items()
            if fields is None or name in fields
        }
        if digests != expected:
            names = sorted(dict(digests.items() ^ expected.items()))
            raise DamagedError(path, f"{', '.join(names)} changed after saving")
        return arrays

    def _meta(self, number: int) -> SavedState | None:
        """Return what is known about a checkpoint; None if that is damaged."""
        path = self._path(number) / "meta" / "metadata"
        try:
            value = schemas.read_json(path)
            saved = schemas.parse(value, SavedState, path)
        except UserError:
            return None
        return (
            saved if saved.number == number and value == _with_digest(schemas.dump(saved)) else None
        )

    def _numbers(self) -> list[int]:
        names = [path.name for path in self._folder.glob("*") if path.is_dir()]
        return sorted(int(name) for name in names if name.isdecimal())

    def _next_number(self) -> int:
        """Return a number that no checkpoint has had, damaged and incomplete ones included."""
        digits = [re.search(r"\d+", path.name) for path in self._folder.glob("*")]
        return 1 + max((int(match[0]) for match in digits if match), default=0)

    def _best_number(self) -> int | None:
        saved = self.best()
        return saved.number if saved else None

    def _prune(self) -> None:
        for pattern in (".deleted-*", "*.orbax-checkpoint-tmp*"):  # Left by a killed process.
            for path in self._folder.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)
        saves = self.all()
        epochs = [saved for saved in saves if saved.end_of_epoch]
        keep = [*epochs[-self._keep :], *saves[-1:], _best(saves)]
        for saved in saves:
            if saved not in keep:
                shutil.rmtree(hide(self._path(saved.number)), ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self._folder / str(number)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise UserError(
                f"cannot write a checkpoint to {self._folder} ({_one_line(error)}). Make room "
                "there and give the same command again: it resumes from the previous checkpoint."
            ) from error


def _best(saves: list[SavedState]) -> SavedState | None:
    measured = [saved for saved in saves if saved.validation_accuracy is not None]
    return max(measured, key=lambda s: (s.validation_accuracy, s.number), default=None)


def _flatten(tree: Any) -> dict[str, Any]:
    """Return the leaves of a tree by path, such as `params/conv1/kernel`."""
    tree = tree._asdict() if hasattr(tree, "_asdict") else tree
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _by_field(arrays: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return flattened arrays grouped by the field of the state, the first part of each path."""
    fields: dict[str, dict[str, Any]] = {}
    for name, array in arrays.items():
        fields.setdefault(name.partition("/")[0], {})[name] = array
    return fields


def digest(arrays: Mapping[str, Any]) -> str:
    """SHA-256 over the arrays' paths, types, shapes and bytes, in the order of the paths."""
    sha256 = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(jax.device_get(arrays[name]))
        sha256.update(f"{name} {array.dtype} {array.shape}\0".encode())
        sha256.update(np.ascontiguousarray(array).tobytes())
    return sha256.hexdigest()


def _with_digest(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with its own SHA-256 added."""
    text = json.dumps(value, sort_keys=True)
    return {**value, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _type(array: Any) -> str:
    return "missing" if array is None else f"{array.dtype}{list(array.shape)}"


def _tree(metadata: Any) -> Any:
    """Return the tree of arrays in orbax's metadata, whose form depends on its version."""
    metadata = getattr(metadata, "item_metadata", metadata)
    return getattr(metadata, "tree", metadata)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
