"""Digests of arrays, by which damaged checkpoints and exports are noticed."""

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


def digest(arrays: Mapping[str, Any]) -> str:
    """Return the SHA-256 of named arrays: their names, types, shapes and bytes, by name."""
    sha256 = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(jax.device_get(arrays[name]))
        sha256.update(f"{name} {array.dtype} {array.shape}\0".encode())
        sha256.update(np.ascontiguousarray(array).tobytes())
    return sha256.hexdigest()


def digests(arrays: Mapping[str, Any]) -> dict[str, str]:
    """Return the digest of the arrays of each field of a flattened state."""
    fields: dict[str, dict[str, Any]] = {}
    for name, array in arrays.items():
        fields.setdefault(name.partition("/")[0], {})[name] = array
    return {field: digest(arrays) for field, arrays in fields.items()}


def sign(saved: SavedState) -> SavedState:
    """Return `saved` with the digest of its other fields."""
    text = json.dumps(saved.model_dump(mode="json", exclude={"meta_sha256"}), sort_keys=True)
    return saved.model_copy(update={"meta_sha256": hashlib.sha256(text.encode()).hexdigest()})
