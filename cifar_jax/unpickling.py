"""What every reader of strangers' pickles here has in common.

A pickle can name any function there is, and set the state of what comes back. So a reader gives it
stand-ins for the few functions that its files name, and refuses all else.
"""

import pickle
import pickletools
from collections.abc import Callable
from typing import Any

# A batch of CIFAR-10 takes some 50,000 instructions, of which 10,000 build tuples, where Python 3
# has saved it again; a network some hundred a tensor, of which ten do. A million tuples, one in the
# other, would exhaust the stack; entries of the memo far apart would exhaust the memory.
_MAX_INSTRUCTIONS = 200_000
_MAX_TUPLES = 20_000


class Function:
    """Stands in for a function that is named. Neither it nor its state can be changed."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("a function's state is set")


def require(holds: bool, otherwise: str) -> None:
    """Raise pickle.UnpicklingError, saying what is `otherwise`, unless it holds."""
    if not holds:
        raise pickle.UnpicklingError(otherwise)


def require_plain(program: bytes) -> None:
    """Raise pickle.UnpicklingError where reading the pickle would exhaust stack or memory."""
    tuples = 0
    for count, (opcode, argument, _) in enumerate(pickletools.genops(program)):
        tuples += opcode.name.startswith("TUPLE")
        far = "PUT" in opcode.name and int(argument or 0) > _MAX_INSTRUCTIONS
        plain = not far and count <= _MAX_INSTRUCTIONS and tuples <= _MAX_TUPLES
        require(plain, "it is far more complex than such a file")
