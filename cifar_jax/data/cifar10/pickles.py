"""Reading pickles of CIFAR-10's python batches, which may come from anybody.

A pickle can name any function there is, and set the state of what comes back; numpy's own, given a
state of the file's choosing, take its bytes for pointers. So a batch gets stand-ins for the few
functions that it names, which check all that they are given, build nothing but uint8 arrays, and
have no state that could be set.
"""

import io
import math
import pickle
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np

# A batch takes some 50,000 instructions, of which 10,000 build tuples, where Python 3 has saved it
# again. A million tuples, one in the other, would exhaust the stack; entries of the memo far apart
# would exhaust the memory.
_MAX_INSTRUCTIONS = 200_000
_MAX_TUPLES = 20_000
_MAX_ENCODED = 100_000_000  # bytes; the data of a batch are 31 MB


def load(content: bytes) -> Any:
    """What the pickle holds; its arrays are `Array`.

    Raises pickle.UnpicklingError for what has no place in a batch; a damaged pickle can raise
    anything.
    """
    tuples = 0
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        tuples += opcode.name.startswith("TUPLE")
        far = "PUT" in opcode.name and int(argument or 0) > _MAX_INSTRUCTIONS
        if far or count > _MAX_INSTRUCTIONS or tuples > _MAX_TUPLES:
            raise pickle.UnpicklingError("it is far more complex than a batch")
    return _Unpickler(io.BytesIO(content), encoding="bytes").load()


class _Global:
    """Stands in for something that a pickle names. Neither it nor its state can be changed."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a function's state has no place in a batch")


class _Uint8:
    """Stands in for the dtype ``u1``, with the state that numpy gives it and no other."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        _require(
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
        _require(version == 1, f"an array's state is of version {version!r}")
        self.values = _values(content, dtype, shape, "F" if is_fortran else "C")


def _values(content: Any, dtype: object, shape: Any, order: Any) -> np.ndarray:
    _require(isinstance(dtype, _Uint8), "an array is not of uint8")
    _require(isinstance(content, bytes | bytearray), "an array's content is not bytes")
    _require(
        isinstance(shape, tuple)
        and len(shape) <= 4
        and all(type(side) is int and side >= 0 for side in shape)
        and math.prod(shape) == len(content),
        "an array's shape is not that of its content",
    )
    _require(order in ("C", "F"), "an array's order is neither C nor F")
    return np.frombuffer(content, np.uint8).reshape(shape, order=order)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise pickle.UnpicklingError(otherwise)


def _refuse(*arguments: object) -> None:
    raise pickle.UnpicklingError("an array that is built in this way has no place in a batch")


_NDARRAY = _Global(_refuse)


def _reconstruct(subtype: object, shape: object, typecode: object) -> Array:
    _require(
        subtype is _NDARRAY and shape == (0,) and typecode in (b"b", "b"),
        "an array is not built as numpy does it",
    )
    return Array()


def _from_buffer(
    content: Any, dtype: object, shape: Any, order: Any, axis_order: object = None
) -> Array:
    _require(axis_order is None, "an array's axes are in an order of their own")
    array = Array()
    array.values = _values(content, dtype, shape, order)
    return array


def _dtype(name: object, align: object = False, copy: object = False) -> _Uint8:
    _require(name in ("u1", b"u1"), "an array is not of uint8")
    return _Uint8()


class _Unpickler(pickle.Unpickler):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        left = _MAX_ENCODED

        def encode(text: str, encoding: str) -> bytes:
            """For ``_codecs.encode``, which Python 3 puts into pickles of protocol 2."""
            nonlocal left
            left -= len(text)
            _require(encoding == "latin1" and left >= 0, "a byte string is not plainly encoded")
            return text.encode(encoding)

        reconstruct, from_buffer = _Global(_reconstruct), _Global(_from_buffer)
        self._admitted = {
            ("numpy", "ndarray"): _NDARRAY,
            ("numpy", "dtype"): _Global(_dtype),
            ("numpy.core.multiarray", "_reconstruct"): reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): reconstruct,
            ("numpy.core.numeric", "_frombuffer"): from_buffer,
            ("numpy._core.numeric", "_frombuffer"): from_buffer,
            ("_codecs", "encode"): _Global(encode),
        }

    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return self._admitted[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"{module_name}.{global_name} has no place in a batch"
            ) from None
