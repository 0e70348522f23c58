"""SHA-256 digests of arrays, which detect damaged checkpoints and exported files."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from cifar_jax.runs.schemas import SavedState


def flatten(tree: Any) -> dict[str, Any]:
    """Return the arrays of a tree in a dictionary, by paths such as `params/conv1/kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def digest(arrays: Mapping[str, Any]) -> str:
    """Return one SHA-256 for several arrays, which are hashed in order of their names.

    The hashed data of an array are its name, type, shape and bytes.
    """
    sha256 = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(jax.device_get(arrays[name]))
        sha256.update(f"{name} {array.dtype} {array.shape}\0".encode())
        sha256.update(np.ascontiguousarray(array).tobytes())
    return sha256.hexdigest()


def digests(arrays: Mapping[str, Any]) -> dict[str, str]:
    """Return one digest for each field of a state, such as `params`.

    Args:
      arrays: the arrays of the state by path, such as `params/conv1/kernel`.
    """
    fields: dict[str, dict[str, Any]] = {}
    for name, array in arrays.items():
        fields.setdefault(name.partition("/")[0], {})[name] = array
    return {field: digest(arrays) for field, arrays in fields.items()}


def sign(saved: SavedState) -> SavedState:
    """Return `saved` with `meta_sha256` set to the digest of all other fields."""
    text = json.dumps(saved.model_dump(mode="json", exclude={"meta_sha256"}), sort_keys=True)
    return saved.model_copy(update={"meta_sha256": hashlib.sha256(text.encode()).hexdigest()})
