"""What is known of a checkpoint without reading its arrays: `meta` beside them, held to a digest.

Checkpoints of version 1 have none, and are not held to a digest; those of version 2 hold their
arrays to one, those of version 3 their `meta` too.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

VERSION = 3
"""Of what is saved: 1 had no digests, and nothing beside the state but the accuracy."""

_SAVED = ("whole", "validation_accuracy", "extra", "sha256")


class Meta(NamedTuple):
    """What is known of a checkpoint without reading its arrays."""

    step: int
    whole: bool
    """Made at the end of an epoch, not within one."""
    validation_accuracy: float | None
    """In percent, where it was measured."""
    extra: Mapping[str, Any]
    """What was saved beside the state."""
    digests: Mapping[str, str] | None
    """SHA-256 by field of the state: none in those of version 1, None where this is damaged."""


def as_saved(meta: Meta) -> dict[str, Any]:
    """As it is saved."""
    content = {"version": VERSION, "step": meta.step}
    content |= dict(zip(_SAVED, meta[1:], strict=True))
    return content | {"meta_sha256": _digest_of_json(content)}


def read_meta(folder: Path, step: int) -> Meta:
    """Of the checkpoint `folder`, which is of that step."""
    try:
        items = json.loads((folder / "_CHECKPOINT_METADATA").read_text())["item_handlers"]
        if "meta" in items:
            meta = json.loads((folder / "meta" / "metadata").read_text())
            said = meta.pop("meta_sha256", None)
            if (said or meta["version"] > 2) and said != _digest_of_json(meta):
                raise ValueError("it is not to its digest")
            if meta["step"] != step:
                raise ValueError("it is of another step")
            return Meta(step, *(meta[name] for name in _SAVED))
        if (folder / "meta").exists():
            raise ValueError("it has more than it says")
        accuracy = None
        if "metrics" in items:  # version 1
            accuracy = json.loads((folder / "metrics" / "metrics").read_text())
            accuracy = float(accuracy["validation_accuracy"])
        return Meta(step, True, accuracy, {}, {})
    # What else the system refuses says nothing of the checkpoint.
    except (
        *(FileNotFoundError, NotADirectoryError, IsADirectoryError),
        *(ValueError, LookupError, TypeError, AttributeError, RecursionError),
    ):
        return Meta(step, False, None, {}, None)


def best(found: list[Meta]) -> Meta | None:
    """That of the best validation accuracy, the latest of equals; None without any."""
    measured = [meta for meta in found if meta.validation_accuracy is not None]
    return max(measured, key=lambda m: (m.validation_accuracy, m.step), default=None)


def digest(tree: Any) -> str:
    """SHA-256 over the arrays' paths, types, shapes and bytes, in the order of the paths."""
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    digest = hashlib.sha256()
    for name in sorted(leaves):
        array = np.asarray(jax.device_get(leaves[name]))
        digest.update(f"{name} {array.dtype} {array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _digest_of_json(value: Mapping[str, Any]) -> str:
    """SHA-256 over `value`, as it is when it was written and read."""
    text = json.dumps(json.loads(json.dumps(value)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
