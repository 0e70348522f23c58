"""Test the recorded Git commit, machine and versions, and the comparison of two sessions."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cifar_jax.runs import environment
from cifar_jax.runs.schemas import Device, Machine, Session

CPUINFO = """processor\t: 0
model name\t: AMD EPYC 7B13 : 64-Core
flags\t\t: fpu avx512f sse avx avx2

processor\t: 1
model name\t: another
flags\t\t: amx_tile
"""
DEVICE = Device(platform="cpu", kind="cpu", count=1)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Git repository that contains the files of the package."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    # Ignore the user's Git configuration, because it may declare all folders safe.
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for name in ("cifar_jax/__init__.py", "experiments/basic.py", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "cifar_jax/runs/environment.py"))
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    author = ("-c", "user.name=A", "-c", "user.email=a@b")
    command = ["git", "-C", str(folder), *author, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def commit(folder: Path) -> str:
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "everything")
    return git(folder, "rev-parse", "HEAD")


def test_changes_outside_of_the_code_do_not_make_a_commit_dirty(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    assert environment.git_commit() == (head, None)
    (checkout / "README.md").write_text("no code")
    (checkout / "notes.txt").write_text("no code")
    assert environment.git_commit() == (head, None)
    assert environment.git_commit("notes.txt") == (head + "-dirty", None)


@pytest.mark.parametrize("name", ["experiments/basic.py", "experiments/mine.py", "pyproject.toml"])
def test_changed_and_untracked_code_makes_a_commit_dirty(checkout: Path, name: str) -> None:
    (checkout / name).write_text("changed = True\n")
    assert environment.git_commit() == (git(checkout, "rev-parse", "HEAD") + "-dirty", None)
    head = commit(checkout)
    assert environment.git_commit() == (head, None)


def test_the_reason_is_returned_if_git_refuses_a_checkout(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    commit, reason = environment.git_commit()
    assert commit is None
    assert reason is not None
    assert reason.startswith("fatal: detected dubious ownership in repository at")
    assert "\n" not in reason
    monkeypatch.setenv("PATH", str(checkout))
    commit, reason = environment.git_commit()
    assert commit is None
    assert "No such file or directory: 'git'" in str(reason)
    # An installed package is not in a Git repository.
    shutil.rmtree(checkout / ".git")
    assert environment.git_commit() == (None, None)


def test_a_linux_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path, **_: {"/proc/cpuinfo": CPUINFO}[str(path)])
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    assert environment.machine() == Machine(
        system=platform.platform(),
        cpu="AMD EPYC 7B13 : 64-Core",
        cores=3,
        features=["avx", "avx2", "avx512f"],
    )


def test_versions_of_missing_packages_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"jax", "jaxlib", "flax", "optax", "orbax-checkpoint"} <= environment.versions().keys()
    monkeypatch.setattr(environment, "_PACKAGES", ("numpy", "no-such-package"))
    assert environment.versions().keys() == {"python", "numpy"}


def test_a_session_holds_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_x")
    monkeypatch.delenv("JAX_DEFAULT_MATMUL_PRECISION", raising=False)
    monkeypatch.setattr(sys, "argv", ["cifar-jax", "x\udcff"])
    session = environment.session(DEVICE, "a" * 40, {"train.devices": 2})
    assert (session.xla_flags, session.matmul_precision) == ("--xla_x", "")
    assert (session.git_commit, session.device) == ("a" * 40, DEVICE)
    assert session.runtime_settings == {"train.devices": 2}
    assert session.command == ["cifar-jax", "x\\udcff"]
    assert str(session.started).endswith("+00:00")


def session(machine: dict[str, Any] | None = None, **fields: Any) -> Session:
    host = {"system": "Linux", "cpu": "EPYC", "cores": 2, "features": ["avx"]} | (machine or {})
    values = {"git_commit": "a" * 40, "versions": {"jax": "0.7.2"}, "device": DEVICE}
    return Session.model_validate(values | {"machine": host} | fields)


@pytest.mark.parametrize(
    ("fields", "change"),
    [
        ({"git_commit": "a" * 40 + "-dirty"}, "commit aaaaaaaaaaaa → aaaaaaaaaaaa-dirty"),
        ({"git_commit": None}, "commit aaaaaaaaaaaa → unknown"),
        ({"versions": {"jax": "0.7.2", "numpy": "2.1"}}, "numpy none → 2.1"),
        ({"versions": {}}, "jax 0.7.2 → none"),
        ({"device": DEVICE.model_copy(update={"count": 2})}, "device 1 × cpu → 2 × cpu"),
        ({"machine": {"cores": 4}}, "cores 2 → 4"),
        ({"machine": {"features": []}}, "CPU features avx → none"),
        ({"xla_flags": "--xla_x"}, "XLA_FLAGS none → --xla_x"),
        ({"matmul_precision": "highest"}, "matrix precision none → highest"),
    ],
)
def test_changes_that_may_change_the_result(fields: dict[str, Any], change: str) -> None:
    assert environment.changes(session(), session(**fields)) == [change]


def test_changes_that_do_not_change_the_result() -> None:
    other = session({"system": "Darwin", "cpu": "M4"}, started="2026", command=["x"])
    assert environment.changes(session(), other) == []
    assert environment.changes(session(git_commit=None), session()) == []
    gpu = Device(platform="gpu", kind="NVIDIA L4", count=1)
    assert environment.changes(session(device=gpu), session({"cores": 8}, device=gpu)) == []
