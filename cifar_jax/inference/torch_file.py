"""Tensors of a PyTorch state dict, or of a safetensors file, by name. PyTorch is not needed.

A file of `torch.save` is a zip archive of a pickle and one file for each storage. A pickle can name
any function there is; this reader has stand-ins for the few that a state dict needs, which build
arrays from the archive's bytes and nothing else.
"""

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cifar_jax.errors import UserError
from cifar_jax.unpickling import Function, require, require_plain

_MAX_BYTES = 2_000_000_000

_DTYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
"""Where training scripts put the state dict beside epoch, accuracy and optimizer."""


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of the state dict in `path`.

    Raises:
      UserError: it cannot be read, is of another kind, damaged, or holds what is no tensor.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UserError(f"{path} is larger than 2 GB: it is no CIFAR network")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    if zipfile.is_zipfile(io.BytesIO(content)):
        return _from_zip(content, path)
    if content[8:9] == b"{":
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            return dict(load(content))
        except (SafetensorError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} is a damaged safetensors file ({error})") from None
    if content[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04"):
        raise UserError(
            f"{path} is of PyTorch before 1.6: load it there and save it again with torch.save"
        )
    raise UserError(f"{path} is neither a file of torch.save nor a safetensors file")


def _from_zip(content: bytes, path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            pickles = [
                name for name in sizes if name.count("/") == 1 and name.endswith("/data.pkl")
            ]
            if len(pickles) != 1 or sum(sizes.values()) > _MAX_BYTES:
                raise UserError(f"{path} is no file of torch.save")
            root = pickles[0].removesuffix("data.pkl")
            order = f"{root}byteorder"
            if order in sizes and archive.read(order) != b"little":
                raise UserError(f"{path} is of a machine with another order of bytes")
            program = archive.read(pickles[0])
            if f"{root}constants.pkl" in sizes:
                raise UserError(f"{path} is a TorchScript program: save its state_dict() instead")
            require_plain(program)
            found = _Unpickler(io.BytesIO(program), archive, root).load()
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds more than a state dict: {error}") from None
    # A damaged file shows as whatever its reader stumbles over: there is no common base.
    except Exception as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error})") from None
    return _tensors(found, path)


def _tensors(found: Any, path: Path) -> dict[str, np.ndarray]:
    if isinstance(found, Mapping):
        for name in _WRAPPERS:
            if isinstance(found.get(name), Mapping):
                found = found[name]
                break
    if not isinstance(found, Mapping) or not found:
        raise UserError(f"{path} holds no state dict")
    tensors = {}
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            raise UserError(
                f"{path} holds {name!r}, which is no tensor: save the state_dict() alone"
            )
        tensors[name] = value.values
    return tensors


class _Tensor:
    """Stands in for a tensor. Its state cannot be set."""

    __slots__ = ("values",)

    def __init__(self, values: np.ndarray) -> None:
        object.__setattr__(self, "values", values)

    def __setattr__(self, name: str, value: object) -> None:
        raise pickle.UnpicklingError("a tensor's state is set")

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a tensor's state is set")


class _Dict(OrderedDict[Any, Any]):
    """Stands in for collections.OrderedDict, without the attributes that a state dict has."""

    def __setstate__(self, state: object) -> None:
        pass  # `_metadata`, the versions of the modules


class _Storage:
    """Stands in for the class of a storage, which only names a type."""

    __slots__ = ("dtype",)

    def __init__(self, name: str) -> None:
        object.__setattr__(self, "dtype", np.dtype(_DTYPES[name]))

    def __setattr__(self, name: str, value: object) -> None:
        raise pickle.UnpicklingError("a storage's state is set")

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a storage's state is set")


def _rebuild_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, *_: Any
) -> _Tensor:
    def plain(values: Any) -> bool:
        return isinstance(values, tuple) and all(type(v) is int and v >= 0 for v in values)

    require(isinstance(storage, np.ndarray), "a tensor has no storage")
    require(plain((offset,)) and plain(size) and plain(stride), "a tensor's shape is not plain")
    require(len(size) == len(stride) <= 8 and not hooks, "a tensor is not plainly built")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    require(math.prod(size) <= storage.size, "a tensor is larger than its storage")
    require(0 in size or last < storage.size, "a tensor reaches beyond its storage")
    if 0 in size:
        return _Tensor(np.zeros(size, storage.dtype))
    strides = [step * storage.itemsize for step in stride]
    view = np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)
    return _Tensor(view.copy())


def _rebuild_parameter(data: Any, requires_grad: Any, hooks: Any) -> _Tensor:
    require(isinstance(data, _Tensor) and not hooks, "a parameter is not plainly built")
    return data


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(file)
        self._archive, self._root = archive, root
        self._left = _MAX_BYTES
        self._admitted = {
            ("collections", "OrderedDict"): Function(lambda *items: _Dict(*items)),
            ("torch._utils", "_rebuild_tensor_v2"): Function(self._tensor),
            ("torch._utils", "_rebuild_parameter"): Function(_rebuild_parameter),
        } | {("torch", name): _Storage(name) for name in _DTYPES}

    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return self._admitted[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module_name}.{global_name}") from None

    def persistent_load(self, pid: Any) -> np.ndarray:
        """A storage: ("storage", its class, the name of its file, a device, how many elements)."""
        require(isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage", "no storage")
        _, kind, key, _, count = pid
        require(isinstance(kind, _Storage) and type(count) is int, "a storage of no known type")
        require(isinstance(key, str) and key.isascii() and key.isdecimal(), "an odd storage name")
        require(count >= 0, "a storage of no size")
        self._take(count * kind.dtype.itemsize)
        content = self._archive.read(f"{self._root}data/{key}")
        require(len(content) == count * kind.dtype.itemsize, "a storage of another size")
        return np.frombuffer(content, kind.dtype)

    def _tensor(self, storage: Any, offset: Any, size: Any, *others: Any) -> _Tensor:
        # Each is a copy: many tensors may name the same storage.
        if isinstance(storage, np.ndarray) and isinstance(size, tuple):
            require(all(type(n) is int and n >= 0 for n in size), "a tensor's shape is not plain")
            self._take(math.prod(size) * storage.itemsize)
        return _rebuild_tensor(storage, offset, size, *others)

    def _take(self, size: int) -> None:
        self._left -= size
        require(self._left >= 0, "far more numbers than a network")
