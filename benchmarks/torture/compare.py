"""In what a run differs from the undisturbed one: all but clocks."""

import json
import logging
import multiprocessing
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from benchmarks.torture.runs import Fault

CLOCKS = ("git_commit", "wall_seconds", "compile_seconds", "images_per_second", "started", "starts")


def last_checkpoint(folder: Path) -> Path:
    steps = [path for path in (folder / "checkpoints").iterdir() if path.name.isdecimal()]
    return max(steps, key=lambda path: int(path.name))


def _arrays(checkpoint: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every array of the state, read without what is tested here."""
    reader, path = ocp.PyTreeCheckpointer(), checkpoint / "default"
    tree = getattr(reader.metadata(path), "item_metadata", reader.metadata(path))
    as_numpy = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), getattr(tree, "tree", tree)
    )
    tree = reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    return {name: (str(a.dtype), a.shape, a.tobytes()) for name, a in arrays.items()}


def _timeless(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in CLOCKS}


def _rows(folder: Path) -> dict[int, dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return {row["epoch"]: row for row in (_timeless(json.loads(line)) for line in lines)}


def _loss_lines(folder: Path) -> set[str]:
    lines = (folder / "log.txt").read_text().splitlines()
    return {line for line in lines if line.startswith("[EPOCH")}


def differences(folder: Path, reference: Path, lost: Sequence[int] = ()) -> list[str]:
    """In what two finished runs differ; epochs that `folder` may have lost the metrics of."""
    found = []
    ours, theirs = (
        _timeless(json.loads((path / "result.json").read_text())) for path in (folder, reference)
    )
    found += [f"result.json: {key}" for key in theirs if ours.get(key) != theirs[key]]
    rows, expected = _rows(folder), _rows(reference)
    found += [
        f"metrics of epoch {epoch}"
        for epoch in expected
        if epoch not in lost and rows.get(epoch) != expected[epoch]
    ]
    logits = [(path / "test_logits.npy").read_bytes() for path in (folder, reference)]
    if logits[0] != logits[1]:
        found.append("the logits of the test images")
    if _loss_lines(folder) != _loss_lines(reference):
        found.append("the lines of the log")
    last, expected_last = last_checkpoint(folder), last_checkpoint(reference)
    if last.name != expected_last.name:
        return [*found, f"last checkpoint {last.name}, not {expected_last.name}"]
    metas = [json.loads((path / "meta/metadata").read_text()) for path in (last, expected_last)]
    for meta in metas:
        del meta["extra"]["elapsed_seconds"], meta["meta_sha256"]  # which is over the seconds too
    found += [f"checkpoint's {key}" for key in metas[1] if metas[0].get(key) != metas[1][key]]
    arrays, expected_arrays = _arrays(last), _arrays(expected_last)
    names = arrays.keys() | expected_arrays.keys()
    found += [f"array {n}" for n in sorted(names) if arrays.get(n) != expected_arrays.get(n)]
    if any((folder / "checkpoints").glob("*.orbax-checkpoint-tmp*")):
        found.append("a half-written checkpoint is left")
    return found


def _compare(folder: Path, reference: Path, lost: Sequence[int], sink: Any) -> None:
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    sink.send(differences(folder, reference, lost))


def hold(folder: Path, reference: Path, lost: Sequence[int] = ()) -> None:
    """Compare in a process of its own, since reading arrays starts JAX.

    Raises:
      Fault: they differ.
    """
    context = multiprocessing.get_context("fork")
    source, sink = context.Pipe(duplex=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        process = context.Process(target=_compare, args=(folder, reference, lost, sink))
        process.start()
    sink.close()
    try:
        found = source.recv()
    except EOFError:
        found = ["it cannot be compared"]
    process.join()
    if found:
        raise Fault("differs from the undisturbed run: " + "; ".join(found[:5]))
