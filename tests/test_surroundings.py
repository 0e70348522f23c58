"""What a command finds around it and did not choose: streams, disks, limits, names, memory.

Where it cannot work it says so in one line, with exit code 2.
"""

import errno
import os
import pwd
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax import catalog, cli
from cifar_jax.cli import error_messages

COMMAND = [sys.executable, "-m", "cifar_jax"]
TRAIN = (
    *("train", "basic", "--set", "data.dataset=digits", "--set", "epochs=1"),
    *("--set", "data.train_images=64", "--set", "data.validation=0.1", "--set", "train.devices=1"),
)
Tmpfs = Callable[[str], AbstractContextManager[Path]]


def told(error: str) -> str:
    """The one line on standard error."""
    assert error.startswith("cifar-jax: ")
    assert error.count("\n") == 1, error
    return error


@pytest.fixture
def tmpfs(tmp_path: Path) -> Tmpfs:
    """Makes small disks, where the tests may mount them."""

    @contextmanager
    def mounted(options: str) -> Iterator[Path]:
        folder = tmp_path / "disk"
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            subprocess.run(mount, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("only root can mount a small disk")
        try:
            yield folder
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)

    return mounted


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
    ids=lambda e: next(iter(e)),
)
@pytest.mark.parametrize("verb", ["experiments", "settings", "report"])
def test_no_character_is_too_much(verb: str, environment: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, verb], cwd=tmp_path, env=os.environ | environment, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", ["experiments", "settings", "--version"])
def test_standard_output_that_is_full(arguments: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*COMMAND, arguments], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert "standard output: No space left on device" in told(done.stderr)


@pytest.mark.parametrize("arguments", ["experiments", "settings", "--help"])
def test_nobody_reads(arguments: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [*COMMAND, arguments], stdout=writing, stderr=subprocess.PIPE, text=True
        )
    finally:
        os.close(writing)
    assert done.returncode == 141  # 128 + SIGPIPE, as with other tools
    assert done.stderr == ""


def test_closed_streams_are_not_given_to_a_file(tmp_path: Path) -> None:
    script = """
import sys
from cifar_jax import cli
cli._ready_streams()
file = open(sys.argv[1], "w")
assert file.fileno() > 2
print("lost"); print("lost", file=sys.stderr); sys.stderr.isatty()
"""
    file = tmp_path / "file"
    words = [sys.executable, "-c", script, str(file)]
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *words]
    assert subprocess.run(closed).returncode == 0
    assert file.read_text() == ""


def test_a_full_disk(tmpfs: Tmpfs, capsys: pytest.CaptureFixture[str]) -> None:
    """At the start, and when the checkpoint is written."""
    for size, words in (
        ("size=4k", "model.json: No space left on device: make room"),
        ("size=10m,nr_inodes=4", "json"),
        ("size=400k", "no checkpoint could be written"),
    ):
        with tmpfs(size) as disk:
            assert cli.run([*TRAIN, "--workdir", str(disk / "run")]) == 2, size
            assert words in told(capsys.readouterr().err)
        disk.rmdir()


def test_a_folder_that_is_no_utf8(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = os.fsdecode(b"x\xff")
    arguments = [*TRAIN, "--workdir", folder]
    monkeypatch.setattr(sys, "argv", ["cifar-jax", *arguments])  # the record has it
    cli._ready_streams()
    assert cli.run(arguments) == 0
    assert cli.run(["report", folder]) == 0
    capsys.readouterr()
    assert cli.run(["evaluate", folder, "--json"]) == 0
    assert '"images": 360' in capsys.readouterr().out


@pytest.mark.parametrize(
    "workdir", ["a" * 300, "/".join(["a" * 200] * 30)], ids=["name too long", "path too long"]
)
def test_names_that_are_too_long(
    workdir: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([*TRAIN, "--workdir", str(tmp_path / workdir)]) == 2
    assert "File name too long" in told(capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_no_home(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that runs under a number without a name."""

    def nobody(uid: int) -> None:
        raise KeyError(uid)

    for name in ("HOME", "CIFAR_JAX_CACHE", "XDG_CACHE_HOME", "TFDS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.chdir(tmp_path)
    assert cli.run(["data", "status"]) == 2
    assert "set HOME, or CIFAR_JAX_CACHE and TFDS_DATA_DIR" in told(capsys.readouterr().err)
    monkeypatch.setenv("CIFAR_JAX_CACHE", "cache")
    monkeypatch.setenv("TFDS_DATA_DIR", "tfds")
    assert cli.run(["data", "status"]) == 0


def test_a_working_folder_that_was_deleted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert cli.run(TRAIN) == 2
    told(capsys.readouterr().err)
    assert cli.run(["experiments"]) == 0


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EROFS, "", "runs/a"), "runs/a: Read-only file system: choose a place"),
        (PermissionError(errno.EACCES, "", b"runs/a"), "runs/a: Permission denied: choose"),
        (OSError(errno.EDQUOT, "", "a"), "a: Disk quota exceeded: your share of the disk"),
        (OSError(errno.EMFILE, "", "a"), "a: Too many open files: allow more"),
        (OSError(errno.EFBIG, ""), "File too large: files may not be that large here"),
        (FileNotFoundError(errno.ENOENT, "", "a"), "a: No such file or directory: make it"),
    ],
    ids=lambda value: errno.errorcode[value.errno] if isinstance(value, OSError) else "",
)
def test_errors_of_the_system_name_the_place_and_the_way_out(
    error: OSError,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(catalog, "names", fail)
    assert cli.run(["experiments"]) == 2
    assert words in told(capsys.readouterr().err)


def test_too_little_memory() -> None:
    with pytest.raises(Exception, match="RESOURCE_EXHAUSTED") as device:
        jnp.zeros(2**46).block_until_ready()
    said = error_messages.explain(device.value)
    assert said is not None
    assert "the device is out of memory" in said
    assert "lower train.eval_batch_size or batch_size" in said
    with pytest.raises(MemoryError) as host:
        np.zeros(2**50)
    assert "out of memory (Unable to allocate" in (error_messages.explain(host.value) or "")


def test_what_is_no_ones_business_is_a_fault() -> None:
    assert error_messages.explain(RuntimeError("RESOURCE_EXHAUSTED")) is None
    assert error_messages.explain(OSError(errno.EINVAL, "", "a")) is None
    assert error_messages.explain(OSError("handle is closed")) is None


@pytest.mark.slow
def test_files_that_may_not_grow(tmp_path: Path) -> None:
    limited = ["sh", "-c", 'ulimit -f 100; exec "$@"', "sh", *COMMAND, *TRAIN]
    done = subprocess.run(
        [*limited, "--workdir", str(tmp_path / "run")], capture_output=True, text=True
    )
    assert done.returncode == 2
    *cached, error = done.stderr.splitlines(keepends=True)
    assert all("could not be cached" in line for line in cached)  # which it does without
    assert "no checkpoint could be written" in told(error)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_training_whose_output_fails_can_go_on(tmp_path: Path) -> None:
    words = [*COMMAND, *TRAIN, "--workdir", str(tmp_path)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert "standard output" in told(done.stderr)
    assert subprocess.run(words, env=os.environ | {"PYTHONIOENCODING": "ascii"}).returncode == 0
