"""SHA-256 of a state's arrays, by which a damaged checkpoint is noticed."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from cifar_jax.runs.schemas import SavedState


def flatten(tree: Any) -> dict[str, Any]:
    """Return the arrays of a tree by path, such as `params/conv1/kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def digests(arrays: Mapping[str, Any]) -> dict[str, str]:
    """Return a digest of each field of a flattened state.

    It covers paths, types, shapes and bytes of the field's arrays, in the order of the paths.
    """
    fields = {}
    for name in sorted(arrays):
        array = np.asarray(jax.device_get(arrays[name]))
        field = fields.setdefault(name.partition("/")[0], hashlib.sha256())
        field.update(f"{name} {array.dtype} {array.shape}\0".encode())
        field.update(np.ascontiguousarray(array).tobytes())
    return {name: field.hexdigest() for name, field in fields.items()}


def sign(saved: SavedState) -> SavedState:
    """Return `saved` with the digest of its other fields."""
    text = json.dumps(saved.model_dump(mode="json", exclude={"meta_sha256"}), sort_keys=True)
    return saved.model_copy(update={"meta_sha256": hashlib.sha256(text.encode()).hexdigest()})
