"""What this machine's processors are and can do."""

import platform
from pathlib import Path
from typing import NamedTuple

_CPUINFO = Path("/proc/cpuinfo")


class Processor(NamedTuple):
    """One of this machine's, all of which are taken to be alike."""

    model: str
    """Its name, or the architecture's."""
    flags: frozenset[str]
    """Instruction sets and features, as Linux names them. Empty on other systems."""


def processor() -> Processor:
    """The first that the system names."""
    model, flags = platform.processor() or platform.machine(), frozenset[str]()
    try:
        lines = _CPUINFO.read_text(errors="replace").splitlines()
    except OSError:  # not Linux
        return Processor(model, flags)
    for line in lines:
        name, _, text = (part.strip() for part in line.partition(":"))
        if name == "model name":
            model = text
        elif name in ("flags", "Features"):  # x86, Arm
            return Processor(model, frozenset(text.split()))
    return Processor(model, flags)
