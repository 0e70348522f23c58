"""Reading pickles of CIFAR-10's python batches, which may come from anybody.

A pickle can name any function there is, and set the state of what comes back; numpy's own, given a
state of the file's choosing, take its bytes for pointers. So a batch gets stand-ins for the few
functions that it names, which check all that they are given, build nothing but uint8 arrays, and
have no state that could be set.
"""

import io
import math
import pickle
from typing import Any

import numpy as np

from cifar_jax.unpickling import Function, require, require_plain

_MAX_ENCODED = 100_000_000  # bytes; the data of a batch are 31 MB


def load(content: bytes) -> Any:
    """What the pickle holds; its arrays are `Array`.

    Raises pickle.UnpicklingError for what has no place in a batch; a damaged pickle can raise
    anything.
    """
    require_plain(content)
    return _Unpickler(io.BytesIO(content), encoding="bytes").load()


class _Uint8:
    """Stands in for the dtype ``u1``, with the state that numpy gives it and no other."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        require(
            state in [(3, order, None, None, None, -1, -1, 0) for order in ("|", b"|")],
            "a dtype is not plain uint8",
        )


class Array:
    """Stands in for an array: ``values`` is uint8, and empty until its state has come."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values = np.empty(0, np.uint8)

    def __setstate__(self, state: Any) -> None:
        version, shape, dtype, is_fortran, content = state
        require(version == 1, f"an array's state is of version {version!r}")
        self.values = _values(content, dtype, shape, "F" if is_fortran else "C")


def _values(content: Any, dtype: object, shape: Any, order: Any) -> np.ndarray:
    require(isinstance(dtype, _Uint8), "an array is not of uint8")
    require(isinstance(content, bytes | bytearray), "an array's content is not bytes")
    require(
        isinstance(shape, tuple)
        and len(shape) <= 4
        and all(type(side) is int and side >= 0 for side in shape)
        and math.prod(shape) == len(content),
        "an array's shape is not that of its content",
    )
    require(order in ("C", "F"), "an array's order is neither C nor F")
    return np.frombuffer(content, np.uint8).reshape(shape, order=order)


def _refuse(*arguments: object) -> None:
    raise pickle.UnpicklingError("an array that is built in this way has no place in a batch")


_NDARRAY = Function(_refuse)


def _reconstruct(subtype: object, shape: object, typecode: object) -> Array:
    require(
        subtype is _NDARRAY and shape == (0,) and typecode in (b"b", "b"),
        "an array is not built as numpy does it",
    )
    return Array()


def _from_buffer(
    content: Any, dtype: object, shape: Any, order: Any, axis_order: object = None
) -> Array:
    require(axis_order is None, "an array's axes are in an order of their own")
    array = Array()
    array.values = _values(content, dtype, shape, order)
    return array


def _dtype(name: object, align: object = False, copy: object = False) -> _Uint8:
    require(name in ("u1", b"u1"), "an array is not of uint8")
    return _Uint8()


class _Unpickler(pickle.Unpickler):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        left = _MAX_ENCODED

        def encode(text: str, encoding: str) -> bytes:
            """For ``_codecs.encode``, which Python 3 puts into pickles of protocol 2."""
            nonlocal left
            left -= len(text)
            require(encoding == "latin1" and left >= 0, "a byte string is not plainly encoded")
            return text.encode(encoding)

        reconstruct, from_buffer = Function(_reconstruct), Function(_from_buffer)
        self._admitted = {
            ("numpy", "ndarray"): _NDARRAY,
            ("numpy", "dtype"): Function(_dtype),
            ("numpy.core.multiarray", "_reconstruct"): reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): reconstruct,
            ("numpy.core.numeric", "_frombuffer"): from_buffer,
            ("numpy._core.numeric", "_frombuffer"): from_buffer,
            ("_codecs", "encode"): Function(encode),
        }

    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return self._admitted[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"{module_name}.{global_name} has no place in a batch"
            ) from None
