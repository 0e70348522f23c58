"""What a record tells of where it ran: the code's commit, the processor, versions, flags."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cifar_jax.runs import environment

CPUINFO = """processor\t: 0
model name\t: AMD EPYC 7B13 : 64-Core
flags\t\t: fpu avx512f sse avx avx2

processor\t: 1
model name\t: another
flags\t\t: amx_tile
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One with the code in it, committed."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("cifar_jax/__init__.py", "experiments/basic.py", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "cifar_jax/runs/environment.py"))
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    return tmp_path


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=A", "-c", "user.email=a@b")
    command = ["git", "-C", str(folder), *identity, *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def commit(folder: Path) -> str:
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "all of it")
    return git(folder, "rev-parse", "HEAD")


def test_the_commit_is_the_codes_whole(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    assert environment.git_commit() == head
    (checkout / "README.md").write_text("no code")
    (checkout / "notes.txt").write_text("no code")
    assert environment.git_commit() == head
    assert environment.git_commit("notes.txt") == head + "-dirty"  # but where it counts as code


@pytest.mark.parametrize("name", ["experiments/basic.py", "experiments/mine.py", "pyproject.toml"])
def test_code_that_is_not_committed_is_told(checkout: Path, name: str) -> None:
    """An experiment that git does not know, too."""
    (checkout / name).write_text("changed = True\n")
    assert environment.git_commit() == git(checkout, "rev-parse", "HEAD") + "-dirty"
    after = commit(checkout)
    assert environment.git_commit() == after


def test_an_installed_package_has_no_commit(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is installed into a checkout of something else."""
    git(checkout, "rm", "--cached", "--quiet", "cifar_jax/__init__.py")
    assert environment.git_commit() is None
    monkeypatch.setenv("PATH", str(checkout))  # no git at all
    assert environment.git_commit() is None


def test_a_machine_is_known_by_its_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path, **_: {"/proc/cpuinfo": CPUINFO}[str(path)])
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    assert environment.machine() == {
        "system": platform.platform(),
        "cpu": "AMD EPYC 7B13 : 64-Core",
        "cores": 3,
        "features": ["avx", "avx2", "avx512f"],
    }


def test_a_machine_that_is_not_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(path: Path, **_: Any) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", absent)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(platform, "processor", lambda: "")
    found = environment.machine()
    assert found["cpu"] == platform.machine()
    assert (found["cores"], found["features"]) == (os.cpu_count(), [])


def test_versions_are_those_that_are_installed() -> None:
    found = environment.versions()
    assert found["python"] == platform.python_version()
    assert {"jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"} <= found.keys()


def test_a_package_that_is_not_there_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    there = environment.versions()

    def version(package: str) -> str:
        if package == "tensorflow-datasets":
            raise environment.metadata.PackageNotFoundError(package)
        return there[package]

    monkeypatch.setattr(environment.metadata, "version", version)
    assert environment.versions() == {
        name: text for name, text in there.items() if name != "tensorflow-datasets"
    }


def test_flags_that_change_the_arithmetic_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_x")
    monkeypatch.delenv("JAX_DEFAULT_MATMUL_PRECISION", raising=False)
    told = environment.describe()
    assert (told["xla_flags"], told["matmul_precision"]) == ("--xla_x", "")


def test_what_bits_depend_on_is_told_where_it_differs() -> None:
    start = environment.describe() | {"device": {"kind": "cpu", "count": 1}}
    machine = start["machine"] | {"features": ["avx2", "avx512f"], "system": "another"}
    other = start | {"xla_flags": "--xla_x", "machine": machine}
    before = " ".join(start["machine"]["features"]) or "none"
    assert environment.differences([start, other]) == [
        f"CPU features {before} → avx2 avx512f",
        f"XLA_FLAGS {start['xla_flags'] or 'none'} → --xla_x",
    ]


def test_a_start_is_held_to_the_one_before_it() -> None:
    """Not to the first; what either does not tell is not compared, or is called unknown."""
    old = {"git_commit": None, "versions": {"jax": "0.7.2"}, "machine": {"features": ["avx"]}}
    new = {"git_commit": "a" * 40, "versions": {"jax": "0.7.2", "numpy": "2.1"}, "machine": {}}
    on = {"device": {"kind": "NVIDIA L4", "count": 2}, "matmul_precision": "highest"}
    assert environment.differences([]) == environment.differences([old]) == []
    assert environment.differences([old, new]) == [
        "commit unknown → aaaaaaaaaaaa",
        "CPU features avx → none",
    ]
    assert environment.differences([old, new, new]) == []
    changed = new | {"git_commit": "a" * 40 + "-dirty"}
    told = "commit aaaaaaaaaaaa → aaaaaaaaaaaa-dirty"
    assert environment.differences([new, changed]) == [told]
    assert environment.differences([old, new, new | on]) == [
        "device 1 × unknown → 2 × NVIDIA L4",
        "matrix precision none → highest",
    ]
