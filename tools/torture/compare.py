"""Compare two finished runs in everything except times."""

import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from cifar_jax import runtime
from tools.torture.runs import Failure

_NOT_COMPARED = {
    # Times.
    *("wall_seconds", "compile_seconds", "images_per_second", "sessions", "git_commit"),
    # Values that depend on how often the run was saved.
    *("number", "meta_sha256"),
}


def check_equal(folder: Path, reference: Path, lost: Sequence[int] = ()) -> None:
    """Raise if two finished runs differ.

    Args:
      folder: a run folder.
      reference: the run folder to compare with.
      lost: epochs whose metrics may be missing in `folder`.

    Raises:
      Failure: the runs differ. The message names the first differences.
    """
    # Read the arrays in a child process, because reading starts JAX. After JAX has started, this
    # process could not fork runs.
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, fork) as pool:
        try:
            names = pool.submit(differences, folder, reference, lost).result()
        except (BrokenProcessPool, OSError, ValueError, KeyError) as error:
            raise Failure(f"cannot be compared with the undisturbed run: {error!r}") from error
    if names:
        raise Failure(f"differs from the undisturbed run: {'; '.join(names[:5])}")


def differences(folder: Path, reference: Path, lost: Sequence[int] = ()) -> list[str]:
    """Return the differences between two finished runs. See `check_equal`."""
    runtime.configure_jax()
    here, there = _contents(folder), _contents(reference)
    for epoch in lost:
        here.pop(f"metrics of epoch {epoch}", None)
        there.pop(f"metrics of epoch {epoch}", None)
    return sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))


def last_checkpoint(folder: Path) -> Path:
    """Return the newest checkpoint of a run."""
    saves = [path for path in (folder / "checkpoints").iterdir() if path.name.isdecimal()]
    return max(saves, key=lambda path: int(path.name))


def _contents(folder: Path) -> dict[str, Any]:
    """Return the values to compare, by the name that messages use."""
    checkpoint = last_checkpoint(folder)
    contents: dict[str, Any] = {
        "the loss lines of the log": {
            line for line in _lines(folder / "log.txt") if line.startswith("[EPOCH")
        },
        "files of an incomplete checkpoint": [
            path.name for path in (folder / "checkpoints").glob("*.orbax-checkpoint-tmp*")
        ],
    }
    for name, file in (("result", "result.json"), ("checkpoint", checkpoint / "meta/metadata")):
        values = json.loads((folder / file).read_text())
        for time in ("elapsed_seconds", "images_per_second"):
            values.get("extra", {}).pop(time, None)
        contents |= {f"{name}: {key}": value for key, value in _without_times(values).items()}
    for row in map(json.loads, _lines(folder / "metrics.jsonl")):
        contents[f"metrics of epoch {row['epoch']}"] = _without_times(row)
    with np.load(folder / "outputs.npz") as outputs:
        contents |= {f"outputs: {name}": _bytes(outputs[name]) for name in outputs.files}
    # Read directly with Orbax, because `cifar_jax.runs.checkpoints` is the code under test.
    reader = ocp.PyTreeCheckpointHandler()
    tree = reader.metadata(checkpoint / "state").tree  # pyright: ignore[reportArgumentType]
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    args = ocp.args.PyTreeRestore(restore_args=as_numpy)
    state = reader.restore(checkpoint / "state", args=args)  # pyright: ignore[reportArgumentType]
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        contents[f"checkpoint: array {jax.tree_util.keystr(path)}"] = _bytes(leaf)
    return contents


def _without_times(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in _NOT_COMPARED}


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def _bytes(array: Any) -> tuple[str, tuple[int, ...], bytes]:
    array = np.asarray(array)
    return str(array.dtype), array.shape, array.tobytes()
