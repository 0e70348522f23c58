"""Where a run runs: versions, the code's commit, the machine, and what changes its arithmetic."""

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from cifar_jax import runtime

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")
# What XLA and the libraries below it choose their kernels by.
_CPU_FEATURES = (
    *("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "asimd", "sve", "bf16"),
)


def describe() -> dict[str, Any]:
    """All of it, as JSON has it, but for the device, which JAX knows."""
    return {
        "git_commit": git_commit(),
        "versions": versions(),
        "machine": machine(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "matmul_precision": os.environ.get("JAX_DEFAULT_MATMUL_PRECISION", ""),
    }


def differences(starts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where the last start differs from the one before in what bits depend on, in words.

    >>> before = {"versions": {"jax": "0.7.2"}, "git_commit": "a" * 40}
    >>> differences([before, before | {"versions": {"jax": "0.10.2"}}])
    ['jax 0.7.2 → 0.10.2']
    """
    if len(starts) < 2:
        return []
    before, after = starts[-2:]

    def compared(start: Mapping[str, Any]) -> dict[str, str]:
        device, machine = start.get("device", {}), start.get("machine", {})
        return {
            "commit": _short(start.get("git_commit")),
            **{name: str(text) for name, text in start.get("versions", {}).items()},
            "device": f"{device.get('count', 1)} × {device.get('kind', 'unknown')}",
            "CPU features": " ".join(machine.get("features", ())),
            "XLA_FLAGS": start.get("xla_flags", ""),
            "matrix precision": start.get("matmul_precision", ""),
        }

    old, new = compared(before), compared(after)
    return [
        f"{name} {old[name] or 'none'} → {new[name] or 'none'}"
        for name in new
        if name in old and old[name] != new[name]
    ]


def _short(commit: str | None) -> str:
    sha, dash, dirty = (commit or "unknown").partition("-")
    return sha[:12] + dash + dirty


def versions() -> dict[str, str]:
    """Python's version and those of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit(*others: str) -> str | None:
    """The checkout's commit, with `-dirty` where its code differs; None where there is none.

    Files of code that git does not know make it dirty too: an experiment may be one. `others` are
    what counts as code beside what trains.
    """
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git(
            "ls-files", "--error-unmatch", "cifar_jax/__init__.py"
        )  # not installed in some checkout
        code = ("cifar_jax", "experiments", "pyproject.toml", *others)
        dirty = git("status", "--porcelain", "--untracked-files=all", "--", *code)
        return git("rev-parse", "HEAD") + ("-dirty" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def machine() -> dict[str, Any]:
    """The host: system, processor and what it can do, and how many cores this process may use."""
    processor = runtime.processor()
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    return {
        "system": platform.platform(),
        "cpu": processor.model,
        "cores": cores,
        "features": [name for name in _CPU_FEATURES if name in processor.flags],
    }
