"""Read the memory traffic, collectives and host transfers of compiled programs from their HLO.

XLA's own cost analysis is not suitable. It counts the body of a loop only once, includes copies
that are made once per call, and does not separate HBM from on-chip memory.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = (
    *("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute"),
    *("collective-broadcast", "ragged-all-to-all"),
)
HOST_OPS = ("infeed", "outfeed", "send", "recv")
# Operations that move no data.
_MOVES_NOTHING = {
    *("parameter", "constant", "iota", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("partition-id", "replica-id", "opt-barrier"),
}
# Operations that return a part of their first operand, and read only this part.
_SLICES = {"slice", "slice-start", "dynamic-slice", "gather"}

_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*?^\}", re.M | re.S)
_INSTRUCTION = re.compile(r"^  (?:ROOT )?%([\w.\-]+) = (.*?)\s([a-z][a-z0-9-]*)\((.*)$", re.M)
# The groups of this pattern are the kind of number, the bits, the axes, the order of the axes
# (minor first), and the tiles and memory space, such as `T(8,128)(2,1)S(1)`.
_ARRAY = re.compile(r"(pred|bf|[fsu])(\d*)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")

_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Array(NamedTuple):
    """An array in a compiled program."""

    bytes: int
    """Size in bytes, including the padding of tiles."""
    on_chip: bool
    """Whether the array is in on-chip memory instead of HBM."""


class Instruction(NamedTuple):
    """One instruction of an HLO computation."""

    opcode: str
    shape: str
    operands: list[str]
    text: str
    """The rest of the line, after the opcode and its opening parenthesis."""


Computation = dict[str, Instruction]


class Module(NamedTuple):
    """A compiled program."""

    computations: dict[str, Computation]
    entry: Computation


class Traffic(NamedTuple):
    """Number of bytes that operations read and write."""

    hbm: float
    """Bytes that operations read from HBM and write to HBM."""
    total: float
    """Bytes that operations read and write in any memory."""


def parse(text: str) -> Module:
    """Parse the HLO text of a module."""
    computations, entry = {}, {}
    for match in _COMPUTATION.finditer(text):
        computation = {
            name: Instruction(opcode, shape, re.findall(r"%([\w.\-]+)", rest.split("), ")[0]), rest)
            for name, shape, opcode, rest in _INSTRUCTION.findall(match[0])
        }
        computations[match[2]] = computation
        if match[1]:
            entry = computation
    return Module(computations, entry)


def steps_body(module: Module) -> Computation:
    """Return the body of the loop over train steps, which is the program's largest loop.

    Raises:
      ValueError: the program has no loop.
    """
    loops = [op for op in module.entry.values() if op.opcode == "while"]
    if not loops:
        raise ValueError("the program has no loop over its steps")
    return max((_called(module, loop, "body") for loop in loops), key=len)


def traffic(module: Module, computation: Computation) -> Traffic:
    """Return the memory traffic of one execution of a computation.

    A fusion counts as one operation. The body of a loop counts once per iteration. If XLA does not
    know the number of iterations, the body counts once; see `unknown_loops`.
    """
    hbm = total = 0.0
    for name, op in computation.items():
        if op.opcode == "while":
            known = _KNOWN_TRIPS.search(op.text)
            trips = int(known[1]) if known else 1
            inner = traffic(module, _called(module, op, "body"))
            hbm += trips * inner.hbm
            total += trips * inner.total
            continue
        for array in _moved(module, computation, name):
            total += array.bytes
            hbm += 0 if array.on_chip else array.bytes
    return Traffic(hbm, total)


def unknown_loops(computation: Computation) -> list[str]:
    """Return the names of the loops in a computation that have an unknown number of iterations."""
    return [
        name
        for name, op in computation.items()
        if op.opcode == "while" and _KNOWN_TRIPS.search(op.text) is None
    ]


def collectives(module: Module) -> tuple[Counter[str], list[int]]:
    """Return the number of collectives of each kind, and the bytes of each collective.

    The bytes are sorted, largest first. The start and the end of an asynchronous operation count as
    one collective. Bytes include padding. The start of some asynchronous operations also returns
    their operands. The bytes of these operands are included.
    """
    kinds: Counter[str] = Counter()
    sizes = []
    for op in _instructions(module):
        kind = op.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            kinds[kind] += 1
            sizes.append(sum(array.bytes for array in arrays(op.shape)))
    return kinds, sorted(sizes, reverse=True)


def host_transfers(module: Module) -> list[str]:
    """Return the opcodes of operations that exchange data with the host."""
    return [
        op.opcode
        for op in _instructions(module)
        if op.opcode in HOST_OPS
        or (op.opcode == "custom-call" and re.search(r'target="[^"]*(callback|[Hh]ost)', op.text))
    ]


def arrays(shape: str) -> list[Array]:
    """Return the arrays of a shape such as `(f32[64]{0:T(128)S(1)}, bf16[3,64]{1,0:T(8,128)})`."""
    result = []
    for kind, bits, axes, order, layout in _ARRAY.findall(shape):
        sizes = [int(size) for size in axes.split(",") if size]
        minor_first = [sizes[int(axis)] for axis in order.split(",") if axis]
        tile = re.match(r"T\(([\d,]+)\)", layout)
        if tile:
            for axis, size in enumerate(map(int, reversed(tile[1].split(",")))):
                if axis < len(minor_first):
                    minor_first[axis] = -(-minor_first[axis] // size) * size
        bytes_each = 1 if kind == "pred" else int(bits) / 8
        count = math.prod(minor_first or sizes)
        on_chip = re.search(r"S\([1-9]", layout) is not None
        result.append(Array(math.ceil(bytes_each * count), on_chip))
    return result


def _moved(module: Module, computation: Computation, name: str) -> Iterator[Array]:
    """Yield the arrays that an instruction reads and writes."""
    op = computation[name]
    if op.opcode in _MOVES_NOTHING or op.opcode.endswith("-done"):
        return
    if op.opcode == "custom-call" and re.search(r'"(AllocateBuffer|ConcatBitcast)"', op.text):
        return  # ConcatBitcast only joins adjacent slices, without moving data.
    operands = [arrays(computation[operand].shape) for operand in op.operands]
    written = arrays(op.shape)
    if op.opcode == "copy-start":
        written = written[:1]  # The other two arrays are the operand and a semaphore.
    elif op.opcode.endswith("-start") and op.opcode != "all-reduce-start":
        # The output shape of an asynchronous operation begins with the shapes of the operands.
        written = written[sum(map(len, operands)) :]
    yield from written

    sliced = _sliced_parameters(module.computations.get(_called_name(op, "calls"), {}))
    for number, read in enumerate(operands):
        if op.opcode in _SLICES and number == 0:
            sliced = {0: written[0].bytes}
        for array in read:
            yield array._replace(bytes=min(array.bytes, sliced.get(number, array.bytes)))


def _sliced_parameters(computation: Computation) -> dict[int, int]:
    """Return the bytes read from each parameter of which a fusion reads only slices."""
    sliced = {}
    for name, op in computation.items():
        if op.opcode != "parameter":
            continue
        readers = [reader for reader in computation.values() if name in reader.operands]
        if readers and all(
            reader.opcode in _SLICES and reader.operands.index(name) == 0 for reader in readers
        ):
            slices = (arrays(reader.shape) for reader in readers)
            sliced[int(op.text.split(")")[0])] = sum(
                array.bytes for each in slices for array in each
            )
    return sliced


def _instructions(module: Module) -> Iterator[Instruction]:
    for computation in module.computations.values():
        yield from computation.values()


def _called(module: Module, op: Instruction, role: str) -> Computation:
    return module.computations[_called_name(op, role)]


def _called_name(op: Instruction, role: str) -> str:
    match = re.search(rf"\b{role}=%([\w.\-]+)", op.text)
    return match[1] if match else ""
