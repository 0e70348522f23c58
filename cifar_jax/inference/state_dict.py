"""Read the state dict of a PyTorch network as NumPy arrays."""

import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from cifar_jax.errors import UserError

_SAVE = "Save the weights alone: torch.save(model.state_dict(), 'weights.pth')"
_USUAL_KEYS = {"state_dict", "model_state_dict", "model_state", "model", "net", "network", "module"}
"""Keys under which training scripts store the state dict of the model."""
_PREFIXES = re.compile(r"^((module|_orig_mod|model|net|backbone)\.)+")
"""Prefixes of names that DataParallel, torch.compile, Lightning and similar wrappers add."""
_COUNTERS = re.compile(r"(.*\.)?num_batches_tracked|n_averaged")
_OLDER_FORMAT = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
"""First bytes of a file that `torch.save` wrote in its older format, which is not a zip file."""
_MAX_CLASSES = 100
"""Largest number of classes in one file that may be replaced by placeholders."""


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors in a safetensors file or in a file of `torch.save`, by name.

    The state dict may be nested in other dicts. The file may also contain an optimizer, a scheduler
    or other objects, which are ignored. No code in the file is executed. Prefixes such as `module.`
    are removed from the names. Counters such as `num_batches_tracked` are left out. Floating-point
    tensors are converted to float32.

    Raises:
      UserError: the file is damaged or contains no state dict, two tensors have the same name
        without prefixes, a weight is NaN or infinite, or reading the file needs PyTorch 2.6 or
        newer, which is not installed.
    """
    tensors = _read_safetensors(path) if is_safetensors(path) else _read_torch(path)
    arrays: dict[str, np.ndarray] = {}
    for key, array in tensors.items():
        if _COUNTERS.fullmatch(key):
            continue
        name = _PREFIXES.sub("", key)
        if name in arrays:
            raise UserError(
                f"{path} holds several networks, because {name} occurs under several prefixes, "
                f"such as {key}. {_SAVE}"
            )
        if jnp.issubdtype(array.dtype, jnp.floating):
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise UserError(
                f"{path} has NaN or infinite values in {key}, so its training diverged: import an "
                "earlier checkpoint"
            )
        arrays[name] = array
    return arrays


def is_safetensors(path: Path) -> bool:
    """Return whether a file begins like a safetensors file: an 8-byte size and a JSON object."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def is_torch_file(path: Path) -> bool:
    """Return whether a file has the content or the file name of a PyTorch file."""
    with path.open("rb") as file:
        if file.read(len(_OLDER_FORMAT)) == _OLDER_FORMAT or path.suffix in (".pt", ".pth"):
            return True
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return False


def summarize_keys(mapping: Mapping[Any, Any]) -> str:
    """Return one line with the first five keys of a mapping and the number of remaining keys."""
    first = ", ".join(f"`{key}`" for key in list(mapping)[:5])
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
    content = _load(torch, path)
    tensors = _find_state_dict(content, torch.Tensor, path)
    arrays = {}
    for key, tensor in tensors.items():
        try:
            array = tensor.float() if tensor.is_floating_point() else tensor
            arrays[key] = array.detach().numpy()
        except (RuntimeError, TypeError) as error:  # The tensor is sparse, quantized or on "meta".
            reason = str(error).partition("\n")[0]
            raise UserError(f"{path} holds no plain array as {key}: {reason}") from None
    return arrays


class _Placeholder:
    """Takes the place of an object in a file of `torch.save` that could run code."""

    def __new__(cls, *_arguments: Any) -> Any:
        return super().__new__(cls)

    def __init__(self, *_arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _DictPlaceholder(_Placeholder):
    """Takes the place of a subclass of dict. PyTorch can fill only an OrderedDict."""

    def __new__(cls, *_arguments: Any) -> Any:
        return OrderedDict()


def _load(torch: Any, path: Path) -> Any:
    """Return the content of a file of `torch.save`.

    PyTorch loads tensors and plain containers. Placeholders replace all other objects, such as
    arguments, schedulers or NumPy arrays.
    """
    classes: dict[str, type[_Placeholder]] = {}
    while True:
        try:
            allowed = [(placeholder, name) for name, placeholder in classes.items()]
            with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch warns about TorchScript before it fails.
                return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # Damaged files raise many classes of exceptions.
            unknown = re.search(r"GLOBAL ([\w.]+) was not an allowed", str(error))
            filled = re.search(r"Can only SETITEMS? .* but got <class '([\w.]+)'>", str(error))
            if unknown:  # PyTorch writes `set` for `builtins.set`.
                name, base = unknown[1], _Placeholder
                name = name if "." in name else f"builtins.{name}"
            elif filled:
                name, base = filled[1], _DictPlaceholder
            else:
                raise _explain(error, path) from None
            if issubclass(classes.get(name, object), base) or len(classes) > _MAX_CLASSES:
                raise _explain(error, path) from None
            module, _, short = name.rpartition(".")
            classes[name] = type(short, (base,), {"__module__": module})


def _explain(error: Exception, path: Path) -> UserError:
    """Return a message for an error of `torch.load`."""
    text = str(error)
    if unsafe := re.search(r"GLOBAL ([\w.]+)|but got <class '([\w.]+\.\w+)'>", text):
        kind = unsafe[1] or unsafe[2]
        what = f"holds an object of type {kind}, which could run code when it is loaded"
    elif "unrecognized function" in text:
        what = "calls a function of an object, which could run code"
    elif "Only persistent_load of storage" in text:  # The older format stores the class of a model.
        what = "holds a whole model, not its weights"
    elif "TorchScript" in text:
        what = "is a TorchScript program"
    elif isinstance(error, pickle.UnpicklingError) and "Unsupported operand" in text:
        what = "was saved with a pickle_protocol that PyTorch does not read safely"
    else:
        return UserError(
            f"{path} cannot be read: it is damaged, or it is not a file of torch.save or "
            "safetensors"
        )
    return UserError(f"{path} {what}. {_SAVE}")


def _find_state_dict(content: Any, tensor: type, path: Path) -> dict[str, Any]:
    """Return the state dict in `content`. `content` itself may be the state dict."""
    found = dict(_state_dicts(content, tensor))
    names = [keys for keys in found if _USUAL_KEYS.issuperset(keys)] or list(found)
    if len(names) == 1:
        return found[names[0]]
    if names:
        keys = ", ".join(".".join(name) for name in names)
        raise UserError(f"{path} holds several state dicts, under the keys {keys}. {_SAVE}")
    if isinstance(content, _Placeholder):
        raise UserError(f"{path} holds a whole {_name(content)}, not its weights. {_SAVE}")
    if not isinstance(content, Mapping):
        raise UserError(
            f"{path} holds an object of type {type(content).__name__}, not a state dict. {_SAVE}"
        )
    objects = [
        f" ({key} is a whole {_name(value)})"
        for key, value in content.items()
        if isinstance(value, _Placeholder) and key in _USUAL_KEYS
    ]
    raise UserError(
        f"{path} holds no state dict; its keys are {summarize_keys(content)}"
        f"{''.join(objects)}. {_SAVE}"
    )


def _name(placeholder: _Placeholder) -> str:
    return f"{type(placeholder).__module__}.{type(placeholder).__name__}"


def _state_dicts(
    content: Any, tensor: type, keys: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Yield each state dict in nested dicts, with the keys that lead to it."""
    if not isinstance(content, Mapping) or len(keys) > 3:
        return
    tensors = {str(k): value for k, value in content.items() if isinstance(value, tensor)}
    # A loss has only a vector of weights for the classes. A network has at least one matrix.
    if any(name.endswith("weight") and value.ndim > 1 for name, value in tensors.items()):
        yield keys, tensors
        return
    for key, value in content.items():
        yield from _state_dicts(value, tensor, (*keys, str(key)))
