"""Full disks, limits, and paths that nobody would choose: one line, and nothing half-made."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import synthetic_cifar as synthetic

from cifar_jax import data
from cifar_jax.data import cache
from cifar_jax.data.dataset import Decoded
from cifar_jax.errors import UserError


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no small file system can be mounted here")
    yield path
    # Lazily: some versions leave open what they could not write.
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def leave(path: Path, count: int) -> None:
    """Fill the small disk but for so many bytes."""
    (path / "filling").write_bytes(bytes((1 << 20) - count))


@pytest.mark.parametrize("left", [0, 4, 8, 40, 84])
def test_disk_full_in_an_import(
    left: int, small_disk: Path, images: Decoded, tmp_path: Path
) -> None:
    path = synthetic.write_binary(tmp_path, images)
    leave(small_disk, left * 1024)
    with pytest.raises(UserError, match="cannot be written: No space left on device") as caught:
        data.import_path(path, small_disk / "tfds")
    assert "\n" not in str(caught.value)
    found = [p.name for p in small_disk.rglob("*")]
    assert set(found) <= {"filling", "tfds"}, "nothing half-made"
    (small_disk / "filling").unlink()
    assert data.import_path(path, small_disk / "tfds").counts["train"] == 20


@pytest.mark.parametrize("left", [0, 4, 8, 40, 72])
def test_disk_full_while_caching(
    left: int,
    small_disk: Path,
    prepared: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CIFAR_JAX_CACHE", str(small_disk / "cache"))
    leave(small_disk, left * 1024)
    first = data.load("cifar10")
    assert "could not be cached in" in (told := capsys.readouterr().err)
    assert "No space left on device" in told
    assert not [p for p in (small_disk / "cache").glob("*") if p.is_dir()], "nothing half-made"
    (small_disk / "filling").unlink()
    assert data.load("cifar10").fingerprint == first.fingerprint
    assert "could not be cached" not in capsys.readouterr().err
    assert data.load("cifar10").fingerprint == first.fingerprint


def limited(kilobytes: int, code: str, *arguments: Path) -> str:
    """Standard output and error of Python code under a limit on the size of files."""
    prelude = (
        "import resource, sys; from pathlib import Path; from cifar_jax import data\n"
        "from cifar_jax.data.cifar10 import archives; archives.IMAGES_PER_BATCH = 4\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({kilobytes} << 10, {kilobytes} << 10))\n"
    )
    command = [sys.executable, "-c", prelude + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-1000:]
    return done.stdout + done.stderr


def test_limit_on_the_size_of_files(images: Decoded, tmp_path: Path, data_dir: Path) -> None:
    path = synthetic.write_binary(tmp_path, images)
    code = "try: data.import_path(Path(sys.argv[1]))\nexcept data.UserError as error: print(error)"
    assert "cannot be written: File too large" in limited(16, code, path)
    assert list(data_dir.iterdir()) == []
    data.import_path(path, data_dir)
    told = limited(16, "print(len(data.load('cifar10').train.labels))")
    assert told.startswith("20\n")
    assert "could not be cached" in told
    assert "File too large" in told
    assert not [p for p in cache.cache_dir().glob("*") if p.is_dir()]


def test_data_folder_that_is_a_file(
    images: Decoded,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = synthetic.write_binary(tmp_path, images)
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("TFDS_DATA_DIR", str(file))
    for attempt in (lambda: data.load("cifar10"), data.prepare, lambda: data.import_path(path)):
        with pytest.raises(UserError, match=f"{file} is a file, not a folder: set TFDS_DATA_DIR"):
            attempt()
    assert "downloading" not in capsys.readouterr().err
    assert "is a file, not a folder" not in data.status(tmp_path)
    assert "a file, not a folder" in data.status()


@pytest.mark.parametrize("name", ["x" * 300, "/".join(["x" * 200] * 30)])
def test_names_that_are_too_long(
    name: str, images: Decoded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = synthetic.write_binary(tmp_path, images)
    with pytest.raises(UserError, match="File name too long"):
        data.import_path(tmp_path / name)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / name))
    for attempt in (lambda: data.load("cifar10"), data.prepare, lambda: data.import_path(path)):
        with pytest.raises(UserError, match="File name too long; set TFDS_DATA_DIR"):
            attempt()
    monkeypatch.setenv("CIFAR_JAX_CACHE", str(tmp_path / name))
    assert "not there" in data.status()
    assert len(data.load("digits").train.labels) == 1437


def test_names_that_are_no_utf_8(
    images: Decoded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    odd.mkdir()
    path = synthetic.write_binary(odd, images)
    with pytest.raises(UserError, match="its name is not UTF-8"):
        data.import_path(path, odd / "tfds")
    written = data.import_path(path).path
    monkeypatch.setenv("CIFAR_JAX_CACHE", str(odd / "cache"))
    first = data.load("cifar10")
    assert data.load("cifar10").fingerprint == first.fingerprint
    (odd / "moved" / "cifar10").mkdir(parents=True)
    written.rename(odd / "moved" / "cifar10" / written.name)
    assert data.load("cifar10", data_dir=odd / "moved").fingerprint == first.fingerprint
    assert "20 train" in data.status(odd / "moved")


def test_constant_images(images: Decoded, tmp_path: Path) -> None:
    images.train.images[..., 2] = 7
    data.import_path(synthetic.write_binary(tmp_path, images))
    for _ in range(2):
        with pytest.raises(UserError, match="cannot be normalized: every pixel has the same blue"):
            data.load("cifar10")


def test_image_folder_with_a_bomb(images: Decoded, tmp_path: Path, data_dir: Path) -> None:
    path = synthetic.write_tree(tmp_path / "pictures", images)
    (path / "train" / "dog" / "large.png").write_bytes(synthetic.png_that_claims(20_000, 20_000))
    with pytest.raises(UserError, match=r"large\.png is not a readable image"):
        data.import_path(path, data_dir)
    assert not data_dir.exists()
