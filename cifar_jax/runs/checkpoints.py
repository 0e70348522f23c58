"""The checkpoints of one run. Orbax writes and reads the files.

    checkpoints/N/state/     arrays of the state
    checkpoints/N/meta/      metadata as JSON: `SavedState`, which contains digests
    checkpoints/damaged-N/   a checkpoint that could not be read, or does not match its digests

N is the number of the checkpoint, counted from 1. This module decides which checkpoints to keep. No
checkpoint replaces another. Orbax writes to a temporary folder, and renames it when the checkpoint
is complete.
"""

import re
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import unflatten_dict

from cifar_jax import devices, distributed
from cifar_jax.errors import UserError
from cifar_jax.files import hide
from cifar_jax.runs import schemas
from cifar_jax.runs.digests import digests, flatten, sign
from cifar_jax.runs.schemas import SavedState

S = TypeVar("S")


class DamagedError(UserError):
    """Raised if a checkpoint cannot be read or does not match its digests."""


class Checkpoints:
    """Saves and restores the checkpoints of one run, and deletes old ones.

    Use this class as a context manager: at the end of the context it waits for the save in
    progress. A state is a NamedTuple of trees of arrays. Among its fields are `step`, `epoch`,
    `params`, `batch_stats` and `averaged`.

    In a multi-process run, all processes must make the same calls. Only the main process chooses
    and deletes checkpoints. The constructor does not access the disk.

    Args:
      folder: the folder of the checkpoints, which the first save creates. If orbax cannot use the
        path, a UserError is raised.
      keep: number of end-of-epoch checkpoints to keep. The newest checkpoint and the best one are
        always kept.
    """

    def __init__(self, folder: Path, keep: int = 1) -> None:
        self._folder = folder.absolute()
        if re.search(r"[*?\[\]\\\udc80-\udcff]|gs:", str(self._folder)):
            raise UserError(
                f"{folder} cannot hold checkpoints, because its path contains gs:, one of the "
                "characters * ? [ ] \\ or a character that is not UTF-8. Choose another --workdir."
            )
        self._keep = keep
        self._saved = False
        # Create folders synchronously. Otherwise, orbax waits for minutes if the disk is full.
        options = ocp.AsyncOptions(create_directories_asynchronously=False)
        items = ocp.CompositeOptions(async_options=options)
        handler = ocp.CompositeCheckpointHandler(composite_options=items)
        self._checkpointer = ocp.AsyncCheckpointer(handler, async_options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            if kind is None or not issubclass(kind, UserError):
                self.wait()
        finally:
            with suppress(Exception):  # Hide errors that `wait` has reported.
                self._checkpointer.close()

    def save(
        self,
        state: Any,
        *,
        end_of_epoch: bool,
        validation_accuracy: float | None = None,
        extra: Mapping[str, Any] = {},
    ) -> None:
        """Save a state in the background, after the previous save has ended.

        Args:
          state: the state. Its arrays may be donated as soon as this method returns.
          end_of_epoch: whether an epoch is complete, including its validation.
          validation_accuracy: validation accuracy in percent. Only a checkpoint with a validation
            accuracy can be the best.
          extra: further JSON values to store.

        Raises:
          UserError: the previous save could not be written.
        """
        self.wait()
        arrays = flatten(state)
        saved = SavedState(
            number=distributed.run_on_main(self._next_number),
            step=int(state.step),
            epoch=int(state.epoch),
            end_of_epoch=end_of_epoch,
            validation_accuracy=validation_accuracy,
            extra=dict(extra),
            digests=digests(arrays),
        )
        self._folder.mkdir(parents=True, exist_ok=True)
        self._checkpointer.save(
            self._folder / str(saved.number),
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(unflatten_dict(arrays, sep="/")),
                meta=ocp.args.JsonSave(schemas.dump(sign(saved))),
            ),
        )
        self._saved = True

    def wait(self) -> None:
        """Wait for the save in progress, then delete the checkpoints that need not be kept.

        Raises:
          UserError: the save could not be written.
        """
        try:
            self._checkpointer.wait_until_finished()
        except Exception as error:
            raise UserError(
                f"cannot write a checkpoint to {self._folder} ({_one_line(error)}). Is the disk "
                "full? Give the same command again to resume from the previous checkpoint."
            ) from error
        # Delete old checkpoints, unless this process only reads checkpoints.
        if self._saved and distributed.is_main_process():
            self._prune()

    def all(self) -> list[SavedState]:
        """Return the metadata of all checkpoints, oldest first. Damaged metadata is left out."""
        saves = [self._meta(number) for number in self._numbers()]
        return [saved for saved in saves if saved]

    def latest(self) -> SavedState | None:
        """Return the metadata of the newest checkpoint, or None if there is none."""
        return next(reversed(self.all()), None)

    def best(self) -> SavedState | None:
        """Return the metadata of the best checkpoint.

        The best checkpoint has the largest `score` in its field `extra`. A checkpoint without a
        `score` is ranked by its validation accuracy. If several checkpoints are equally good, the
        latest is returned. The result is None if no checkpoint has a validation accuracy.
        """
        return next(reversed(self._ranked()), None)

    def restore(self, saved: SavedState, like: S) -> S:
        """Return a saved state, with the structure and shardings of `like`.

        Raises:
          DamagedError: the checkpoint cannot be read, or does not match its digests.
          UserError: the checkpoint belongs to another network or optimizer.
        """
        arrays, expected = self._read(saved, saved.digests), flatten(like)
        types = [{k: f"{x.dtype}{[*x.shape]}" for k, x in t.items()} for t in (arrays, expected)]
        if types[0] != types[1]:
            name = min(dict(types[0].items() ^ types[1].items()))
            there, here = (known.get(name, "missing") for known in types)
            raise UserError(
                f"checkpoint {saved.number} in {self._folder} is from another network or optimizer "
                f"({name} is {there} in the checkpoint and {here} in this run). Choose another "
                "--workdir, or start over with --fresh."
            )
        leaves = [devices.put(arrays[name], expected[name].sharding) for name in expected]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def restore_latest(self, like: S) -> tuple[S, SavedState | None, list[str]]:
        """Restore the newest checkpoint that is not damaged. Rename newer, damaged checkpoints.

        Returns:
          The state, the metadata of its checkpoint, and a message about each damaged checkpoint.
          Without any checkpoint: `like`, None and an empty list.

        Raises:
          UserError: all checkpoints are damaged, or the newest one belongs to another network or
            optimizer. In both cases no checkpoint is renamed.
        """
        newest_first = distributed.run_on_main(lambda: self._numbers()[::-1])
        state, saved, damaged = self._restore_first(newest_first, like)
        if damaged and not saved:
            raise UserError(
                f"{'; '.join(damaged.values())}. The run has no other checkpoint. Restore one from "
                "a backup, or train the run again with --fresh."
            )
        return state, saved, self._quarantine(damaged)

    def restore_best(self, like: S) -> tuple[S, SavedState | None, list[str]]:
        """Restore the best checkpoint that is not damaged.

        A damaged checkpoint is renamed if it could be the best one. Returns the same values as
        `restore_latest`. The metadata is None if no checkpoint has a validation accuracy.
        """

        def best_first() -> list[int]:
            unreadable = [number for number in self._numbers() if not self._meta(number)]
            return unreadable + [saved.number for saved in reversed(self._ranked())]

        state, saved, damaged = self._restore_first(distributed.run_on_main(best_first), like)
        return state, saved, self._quarantine(damaged)

    def weights(self, saved: SavedState) -> dict[str, Any]:
        """Return the variables to evaluate from a checkpoint, as NumPy arrays.

        These are the averaged variables if there are any, else the trained variables.

        Raises:
          DamagedError: the checkpoint cannot be read, or does not match its digests.
        """
        fields = ["averaged"] if "averaged" in saved.digests else ["params", "batch_stats"]
        variables = unflatten_dict(self._read(saved, fields), sep="/")
        return {"batch_stats": {}} | variables.get("averaged", variables)

    def _restore_first(self, numbers: list[int], like: S) -> tuple[S, SavedState | None, dict]:
        """Restore the first of the checkpoints `numbers` that every process can read.

        Returns:
          The state, the metadata of the checkpoint, and a dictionary from the number of each
          unreadable checkpoint to its error. If no checkpoint is readable, the first two values are
          `like` and None.
        """
        damaged: dict[int, str] = {}
        for number in numbers:
            state, saved, error = distributed.run_on_all(partial(self._attempt, number, like))
            errors = [text for text in distributed.allgather(error) if text]
            if not errors:
                return state, saved, damaged
            damaged[number] = errors[0]
        return like, None, damaged

    def _attempt(self, number: int, like: S) -> tuple[S, SavedState | None, str]:
        try:
            if saved := self._meta(number):
                return self.restore(saved, like), saved, ""
            raise self._damaged(number, "its metadata cannot be read, or changed after the save")
        except DamagedError as error:
            return like, None, str(error)

    def _quarantine(self, damaged: Mapping[int, str]) -> list[str]:
        """Rename damaged checkpoints, and return a message about each.

        Args:
          damaged: error messages, by number of the checkpoint.
        """

        def rename() -> None:
            for number in damaged:
                (self._folder / str(number)).rename(self._folder / f"damaged-{number}")

        distributed.run_on_main(rename)
        return [f"{text}. Renamed to damaged-{number}." for number, text in damaged.items()]

    def _read(self, saved: SavedState, fields: Iterable[str]) -> dict[str, np.ndarray]:
        """Return the arrays in the given fields of a saved state, by path."""
        wanted = [name for name in saved.digests if name in fields]
        try:
            # Read in another thread. In the main thread, asyncio may swallow the exception that a
            # signal raises.
            with ThreadPoolExecutor(1) as thread:
                arrays = thread.submit(_read_arrays, self._folder, saved.number, wanted).result()
        except MemoryError:
            raise
        except Exception as error:  # Orbax raises many kinds of exceptions.
            raise self._damaged(saved.number, _unreadable(error)) from error
        for name, digest in (dict.fromkeys(wanted) | digests(arrays)).items():
            if digest != saved.digests[name]:
                raise self._damaged(saved.number, f"the arrays of {name} changed after the save")
        return arrays

    def _meta(self, number: int) -> SavedState | None:
        """Return the metadata of a checkpoint, or None if the metadata is damaged."""
        try:
            saved = schemas.read(self._folder / str(number) / "meta" / "metadata", SavedState)
        except UserError:
            return None
        return saved if saved.number == number and saved == sign(saved) else None

    def _ranked(self) -> list[SavedState]:
        """Return the metadata of checkpoints that have a validation accuracy, the best last."""
        measured = [saved for saved in self.all() if saved.validation_accuracy is not None]

        def key(saved: SavedState) -> tuple[float, int]:
            return saved.extra.get("score", saved.validation_accuracy), saved.number

        return sorted(measured, key=key)

    def _numbers(self) -> list[int]:
        return sorted(int(path.name) for path in self._folder.glob("*") if path.name.isdecimal())

    def _next_number(self) -> int:
        """Return a number that no checkpoint has used, not even a damaged or incomplete one."""
        names = "/".join(path.name for path in self._folder.glob("*"))
        return 1 + max(map(int, re.findall(r"(?:^|/)[^\d/]*(\d+)", names)), default=0)

    def _prune(self) -> None:
        # Delete the folders that a killed process left.
        for pattern in (".deleted-*", "*.orbax-checkpoint-tmp*"):
            for path in sorted(self._folder.glob(pattern)):
                shutil.rmtree(path, ignore_errors=True)
        saves = self.all()
        epochs = [saved for saved in saves if saved.end_of_epoch]
        keep = [*epochs[-self._keep :], *saves[-1:], self.best()]
        for saved in saves:
            if saved not in keep:
                shutil.rmtree(hide(self._folder / str(saved.number)), ignore_errors=True)

    def _damaged(self, number: int, reason: str) -> DamagedError:
        return DamagedError(f"checkpoint {number} in {self._folder} is damaged: {reason}")


def _read_arrays(folder: Any, number: int, fields: Iterable[str]) -> dict[str, np.ndarray]:
    reader, path = ocp.PyTreeCheckpointHandler(), folder / str(number) / "state"
    tree = reader.metadata(path).tree
    wanted = {name: tree[name] for name in fields}
    types = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), wanted)
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), types)
    args = ocp.args.PyTreeRestore(types, as_numpy, partial_restore=True)
    return flatten(reader.restore(path, args=args))


def _unreadable(error: Exception) -> str:
    """Return a message that the arrays cannot be read, with the reason if it is known."""
    system = re.search(r"OS error (?:code )?-?\d+: ([^\[]*)", str(error))
    reason = error.strerror if isinstance(error, OSError) else system and system[1].strip()
    return f"its arrays cannot be read ({reason})" if reason else "its arrays cannot be read"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
