"""The environment of a run: package versions, git commit and machine.

A change of the environment may change the exact bits of a result.
"""

import os
import platform
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from cifar_jax import runtime
from cifar_jax.runs.schemas import Device, Machine, Session

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")
# XLA and its libraries choose their CPU kernels by these instruction sets.
_CPU_FEATURES = (
    *("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "asimd", "sve", "bf16"),
)


def session(
    device: Device, git_commit: str | None, runtime_settings: dict[str, Any] | None = None
) -> Session:
    """Return a description of the session that starts now."""
    # JSON can only hold UTF-8, so other bytes in the arguments are escaped.
    command = [word.encode(errors="backslashreplace").decode() for word in sys.argv]
    return Session(
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        git_commit=git_commit,
        versions=versions(),
        device=device,
        machine=machine(),
        xla_flags=os.environ.get("XLA_FLAGS", ""),
        matmul_precision=os.environ.get("JAX_DEFAULT_MATMUL_PRECISION", ""),
        runtime_settings=runtime_settings or {},
    )


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect results."""
    installed = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            installed[package] = metadata.version(package)
    return installed


def machine() -> Machine:
    """Return a description of this machine."""
    processor = runtime.processor()
    affinity = getattr(os, "sched_getaffinity", None)
    return Machine(
        system=platform.platform(),
        cpu=processor.model,
        cores=len(affinity(0)) if affinity else os.cpu_count(),
        features=[name for name in _CPU_FEATURES if name in processor.flags],
    )


def git_commit(*more_code: str) -> tuple[str | None, str | None]:
    """Return the git commit of the package, and git's error message if git fails.

    The commit ends with `-dirty` if the code has uncommitted changes. An untracked file counts as a
    change, because it may be the experiment file. For an installed package, both values are None.

    Args:
      *more_code: paths of further code, in addition to the package and the experiments.
    """
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    if not (root / ".git").exists():
        return None, None
    try:
        git("ls-files", "--error-unmatch", "cifar_jax/__init__.py")
        code = ("cifar_jax", "experiments", "pyproject.toml", *more_code)
        dirty = git("status", "--porcelain", "--untracked-files=all", "--", *code)
        return git("rev-parse", "HEAD") + ("-dirty" if dirty else ""), None
    except OSError as error:
        return None, str(error)
    except subprocess.CalledProcessError as error:
        return None, error.stderr.strip().partition("\n")[0]


def changes(previous: Session, current: Session) -> list[str]:
    """Return the differences between two sessions. Each difference may change a result slightly.

    If the commit of the previous session is unknown, commits are not compared.

    >>> session = Session(
    ...     git_commit=None,
    ...     versions={"jax": "0.7.2"},
    ...     device=Device(platform="cpu", kind="cpu", count=1),
    ...     machine=Machine(system="Linux", cpu=None, cores=2, features=[]),
    ... )
    >>> changes(session, session.model_copy(update={"versions": {"jax": "0.10.2"}}))
    ['jax 0.7.2 → 0.10.2']
    """

    def compared(session: Session) -> dict[str, str]:
        sha, dash, dirty = (session.git_commit or "unknown").partition("-")
        return {
            "commit": sha[:12] + dash + dirty,
            **session.versions,
            "device": f"{session.device.count} × {session.device.kind}",
            # The number of cores affects the order in which XLA's CPU kernels add numbers.
            "cores": str(session.machine.cores) if session.device.platform == "cpu" else "",
            "CPU features": " ".join(session.machine.features),
            "XLA_FLAGS": session.xla_flags,
            "matrix precision": session.matmul_precision,
        }

    old, new = compared(previous), compared(current)
    if previous.git_commit is None:
        del old["commit"], new["commit"]
    return [
        f"{name} {old.get(name) or 'none'} → {new.get(name) or 'none'}"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]
