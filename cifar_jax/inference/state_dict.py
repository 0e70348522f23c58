"""Read the state dict of a PyTorch network as NumPy arrays."""

import argparse
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from cifar_jax.errors import UserError

_SAVE = "Save the weights alone: torch.save(model.state_dict(), 'weights.pth')"
_USUAL_KEYS = ("state_dict", "model_state_dict", "model", "net")
"""Keys under which training scripts store the state dict of the model."""
_PREFIXES = re.compile(r"^((module|_orig_mod|model|net|backbone)\.)+")
"""Prefixes of names that DataParallel, torch.compile, Lightning and similar wrappers add."""
_COUNTERS = re.compile(r"(.*\.)?num_batches_tracked|n_averaged")


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors in a safetensors file or in a file of `torch.save`, by name.

    The file may also contain an optimizer, a scheduler or arguments, which are ignored. No code in
    the file is executed. Prefixes such as `module.` are removed from the names. Counters such as
    `num_batches_tracked` are left out. Floating-point tensors are converted to float32.

    Raises:
      UserError: the file is damaged or contains no state dict, a weight is NaN or infinite, or
        reading the file needs PyTorch 2.6 or newer, which is not installed.
    """
    with path.open("rb") as file:
        # A safetensors file begins with an 8-byte size and a JSON object.
        is_safetensors = file.read(9)[8:] == b"{"
    tensors = _read_safetensors(path) if is_safetensors else _read_torch(path)
    arrays = {}
    for key, array in tensors.items():
        if _COUNTERS.fullmatch(key):
            continue
        if jnp.issubdtype(array.dtype, jnp.floating):
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise UserError(
                f"{path} has NaN or infinite values in {key}, so its training diverged: import an "
                "earlier checkpoint"
            )
        arrays[_PREFIXES.sub("", key)] = array
    return arrays


def summarize_keys(mapping: Mapping[Any, Any]) -> str:
    """Return one line with the first five keys of a mapping and the number of remaining keys."""
    first = ", ".join(map(str, list(mapping)[:5]))
    return f"{first} and {len(mapping) - 5} more" if len(mapping) > 5 else first


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except (SafetensorError, ValueError, TypeError, KeyError):
        raise UserError(
            f"{path} is a damaged safetensors file: save or download it again"
        ) from None


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            f"reading {path} needs PyTorch: pip install 'cifar-jax[torch]', or save the weights as "
            "safetensors"
        ) from None
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        # In older versions, a malicious file can run code even if weights_only is set.
        raise UserError(
            f"reading {path} needs PyTorch 2.6 or newer, and this is {torch.__version__}: "
            "pip install -U 'cifar-jax[torch]'"
        )
    scalar: Any = np.float32(0).__reduce__()[0]  # This function unpickles NumPy scalars.
    plain_types = [
        argparse.Namespace,
        scalar,
        (scalar, "numpy.core.multiarray.scalar"),  # The name of this function in NumPy 1.
        np.dtype,
        *(getattr(np.dtypes, name) for name in np.dtypes.__all__),
    ]
    try:
        with torch.serialization.safe_globals(plain_types), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns about TorchScript before it fails.
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Damaged files raise many classes of exceptions.
        unsafe = re.search(r"GLOBAL ([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and unsafe:
            raise UserError(
                f"{path} holds an object of type {unsafe[1]}, which could run code when it is "
                f"loaded. {_SAVE}"
            ) from None
        if "TorchScript" in str(error):
            raise UserError(f"{path} is a TorchScript program. {_SAVE}") from None
        raise UserError(
            f"{path} is neither a file of torch.save nor a safetensors file, or it is damaged"
        ) from None
    tensors = _find_state_dict(content, torch.Tensor, path)
    return {
        key: (tensor.float() if tensor.is_floating_point() else tensor).detach().numpy()
        for key, tensor in tensors.items()
    }


def _find_state_dict(content: Any, tensor: type, path: Path) -> Mapping[str, Any]:
    """Return `content` if it is a state dict; otherwise the state dict that it contains."""

    def is_state_dict(value: Any) -> bool:
        return (
            isinstance(value, Mapping)
            and all(isinstance(k, str) and isinstance(v, tensor) for k, v in value.items())
            and any(key.endswith("weight") for key in value)
        )

    if is_state_dict(content):
        return content
    if not isinstance(content, Mapping):
        raise UserError(
            f"{path} holds an object of type {type(content).__name__}, not a state dict. {_SAVE}"
        )
    candidates = [key for key, value in content.items() if is_state_dict(value)]
    names = [key for key in candidates if key in _USUAL_KEYS] or candidates
    if len(names) != 1:
        count = "several state dicts" if names else "no state dict"
        raise UserError(f"{path} holds {count}; its keys are {summarize_keys(content)}. {_SAVE}")
    return content[names[0]]
