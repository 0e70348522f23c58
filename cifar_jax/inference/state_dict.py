"""Read the state dict of a PyTorch network as NumPy arrays."""

import pickle
import re
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from cifar_jax.errors import UserError
from cifar_jax.inference.file_kinds import describe_other_file, is_safetensors

_SAVE = "Save the weights alone: torch.save(model.state_dict(), 'weights.pth')"
_USUAL_KEYS = {"state_dict", "model_state_dict", "model_state", "model", "net", "network", "module"}
"""Keys under which training scripts usually store the state dict of a network."""
_WRAPPERS = re.compile(
    r"(?<![^.])(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
"""Parts that DataParallel, torch.compile, FSDP and activation checkpointing add to the names of
tensors."""
_COUNTERS = re.compile(r"(.*\.)?(num_batches_tracked|n_averaged)")
_MAX_CLASSES = 100
"""Largest number of Python classes in a file that placeholders may replace."""
_MAX_DEPTH = 5
"""Largest depth of nested dicts and lists at which a state dict is found."""


class StateDict(NamedTuple):
    """The tensors of a PyTorch network, by name, and their place in the file."""

    tensors: dict[str, np.ndarray]
    key: str
    """Keys that lead to the state dict in the file, joined by dots, such as `ckpt.model`. Empty if
    the whole file is the state dict."""
    others: tuple[str, ...]
    """Keys that lead to each ignored state dict in the file, joined by dots, such as `ckpt.ema`."""


def read_state_dict(path: Path) -> StateDict:
    """Return the tensors in a safetensors file or in a file of `torch.save`, by name.

    The state dict may be nested in dicts and lists. Other objects in the file, such as an optimizer
    or a scheduler, are ignored. No code in the file is executed. Wrappers such as DataParallel add
    parts to the names of tensors, and these parts are removed. Counters such as
    `num_batches_tracked` are left out. Floating-point tensors are converted to float32.

    Raises:
      UserError: the file is damaged or contains no state dict, two tensors have the same name
        without the parts of the wrappers, or PyTorch 2.6 or newer is needed and not installed.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: name the file with the weights in it")
    if kind := describe_other_file(path):
        raise UserError(f"{path} is {kind}")
    found = _read_safetensors(path) if is_safetensors(path) else _read_torch(path)
    arrays: dict[str, np.ndarray] = {}
    for key, array in found.tensors.items():
        name = _WRAPPERS.sub("", key)
        if _COUNTERS.fullmatch(name):
            continue
        if name in arrays:
            raise UserError(
                f"{path} holds several networks, because {name} occurs under several prefixes, "
                f"such as {key}. {_SAVE}"
            )
        if jnp.issubdtype(array.dtype, jnp.floating):
            array = array.astype(np.float32)
        arrays[name] = array
    return found._replace(tensors=arrays)


def summarize_keys(mapping: Mapping[Any, Any]) -> str:
    """Return the keys of a mapping in one line. If there are more than five, only show five."""
    keys = ["".join(c if c.isprintable() else "?" for c in f"`{key}`") for key in mapping]
    if len(keys) <= 5:
        return ", ".join(keys)
    return f"{', '.join(keys[:3])}, …, {', '.join(keys[-2:])} ({len(keys):,} in all)"


def _read_safetensors(path: Path) -> StateDict:
    try:
        return StateDict(load_file(path), "", ())
    except AttributeError as error:  # NumPy has no such data type, for example float8.
        raise UserError(
            f"{path} holds weights of a type that cannot be read ({error}): save them as float32"
        ) from None
    except (SafetensorError, ValueError, TypeError, KeyError):
        raise UserError(
            f"{path} is a damaged safetensors file: save or download it again"
        ) from None


def _read_torch(path: Path) -> StateDict:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            f"reading {path} needs PyTorch: pip install 'cifar-jax[torch]', or save the weights as "
            "safetensors"
        ) from None
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        # In older versions of PyTorch, a file can run code in spite of `weights_only=True`.
        raise UserError(
            f"reading {path} needs PyTorch 2.6 or newer, and this is {torch.__version__}: "
            "pip install -U 'cifar-jax[torch]'"
        )
    _check_sums(path)
    content = _load(torch, path)
    found = _find_state_dict(content, torch.Tensor, path)
    arrays: dict[str, np.ndarray] = {}
    tensors: dict[str, Any] = dict(found.tensors)
    for key, tensor in tensors.items():
        if tensor.is_quantized:
            raise UserError(
                f"{path} holds a quantized tensor as {key}: save the weights of the network before "
                "its quantization"
            )
        try:
            array = tensor.float() if tensor.is_floating_point() else tensor
            arrays[key] = array.detach().to_dense().resolve_conj().resolve_neg().numpy()
        # A tensor without values, such as one on the device "meta", cannot be converted.
        except (RuntimeError, TypeError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"{path} holds no plain array as {key}: {reason}") from None
    return found._replace(tensors=arrays)


def _check_sums(path: Path) -> None:
    """Raise UserError if a checksum in a file of `torch.save` is wrong.

    PyTorch itself ignores the checksums.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, zlib.error, EOFError):
        return  # The file is damaged or has the old format. `torch.load` finds this out later.
    if damaged:
        raise UserError(
            f"{path} is damaged: the checksum of {damaged} is wrong. Download or copy it again. "
            "If it was saved without checksums, save the weights as safetensors."
        )


class _Placeholder:
    """Replaces an object in a file of `torch.save` that could run code."""

    def __new__(cls, *_arguments: Any) -> Any:
        return super().__new__(cls)

    def __init__(self, *_arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _DictPlaceholder(_Placeholder):
    """Replaces an instance of a dict subclass with an OrderedDict, which PyTorch can fill."""

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
                # Hide a warning about TorchScript files, because an error follows.
                warnings.simplefilter("ignore")
                return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # Damaged files raise exceptions of many classes.
            unknown = re.search(r"GLOBAL ([\w.]+) was not an allowed", str(error))
            filled = re.search(r"Can only SETITEMS? .* but got <class '([\w.]+)'>", str(error))
            if unknown:  # In this message, `set` stands for `builtins.set`.
                name, base = unknown[1], _Placeholder
                name = name if "." in name else f"builtins.{name}"
            elif filled:
                name, base = filled[1], _DictPlaceholder
            else:
                raise _explain(error, path, [*classes]) from None
            if issubclass(classes.get(name, object), base) or len(classes) > _MAX_CLASSES:
                raise _explain(error, path, [*classes]) from None
            module, _, short = name.rpartition(".")
            classes[name] = type(short, (base,), {"__module__": module})


def _explain(error: Exception, path: Path, replaced: Sequence[str]) -> UserError:
    """Return a clear error for an exception of `torch.load`.

    `replaced` names the Python classes that placeholders replaced.
    """
    text = str(error)
    if unsafe := re.search(r"GLOBAL ([\w.]+)|but got <class '([\w.]+\.\w+)'>", text):
        kind = unsafe[1] or unsafe[2]
        what = f"holds an object of type {kind}, which could run code when it is loaded"
    elif "unrecognized function" in text:
        what = "calls a function of an object, which could run code"
    elif "Only persistent_load of storage" in text:  # The error for a model in the old format.
        what = "holds a whole model object, not a state dict"
    elif "TorchScript" in text:
        what = "is a TorchScript program"
    elif isinstance(error, pickle.UnpicklingError) and "Unsupported operand" in text:
        what = "was saved with a pickle_protocol that PyTorch does not read safely"
    elif replaced:
        what = f"cannot be read: it is damaged, or it needs the class {replaced[-1]}"
    else:
        return UserError(
            f"{path} cannot be read: it is damaged, or it is not a file of torch.save or "
            "safetensors"
        )
    return UserError(f"{path} {what}. {_SAVE}")


def _find_state_dict(content: Any, tensor: type, path: Path) -> StateDict:
    """Return the state dict in `content`. `content` itself may be the state dict."""
    found = dict(_state_dicts(content, tensor))
    names = [keys for keys in found if _USUAL_KEYS.issuperset(keys)] or list(found)
    if len(names) == 1:
        others = tuple(".".join(keys) for keys in found if keys != names[0])
        return StateDict(found[names[0]], ".".join(names[0]), others)
    if names:
        keys = ", ".join(".".join(name) for name in names)
        raise UserError(f"{path} holds several state dicts, under the keys {keys}. {_SAVE}")
    if isinstance(content, _Placeholder):
        raise UserError(f"{path} holds a whole {_name(content)} object, not a state dict. {_SAVE}")
    if not isinstance(content, Mapping):
        raise UserError(
            f"{path} holds an object of type {type(content).__name__}, not a state dict. {_SAVE}"
        )
    objects = [
        f" ({key} is a whole {_name(value)} object)"
        for key, value in content.items()
        if isinstance(value, _Placeholder) and key in _USUAL_KEYS
    ]
    keys = f"its keys are {summarize_keys(content)}" if content else "it is empty"
    raise UserError(f"{path} holds no state dict; {keys}{''.join(objects)}. {_SAVE}")


def _name(placeholder: _Placeholder) -> str:
    return f"{type(placeholder).__module__}.{type(placeholder).__name__}"


def _state_dicts(
    content: Any, tensor: type, keys: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Yield each state dict in nested dicts and lists, with the keys that lead to it."""
    if isinstance(content, list | tuple):
        content = dict(enumerate(content))
    if not isinstance(content, Mapping) or len(keys) > _MAX_DEPTH:
        return
    tensors = {str(k): value for k, value in content.items() if isinstance(value, tensor)}
    # A network has at least one weight matrix. The state dict of a loss has only vectors.
    if any(name.endswith("weight") and value.ndim > 1 for name, value in tensors.items()):
        yield keys, tensors
        return
    for key, value in content.items():
        yield from _state_dicts(value, tensor, (*keys, str(key)))
