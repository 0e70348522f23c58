"""Test the cache of decoded data sets, and the messages of `load` and `status` about the cache."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from cifar_jax import data
from cifar_jax.data import cache, cifar10, tfds_folder
from cifar_jax.data.dataset import Arrays, fingerprint
from cifar_jax.errors import UserError


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """List to which `tfds_folder.decode` adds each folder that it decodes."""
    paths: list[Path] = []
    decode = tfds_folder.decode

    def count(folder: tfds_folder.TfdsFolder, target: data.Target) -> Arrays:
        paths.append(folder.path)
        return decode(folder, target)

    monkeypatch.setattr(tfds_folder, "decode", count)
    return paths


def entry() -> Path:
    (path,) = cache.cache_dir().glob("*.npz")
    return path


def assert_equal(a: data.Dataset, b: data.Dataset) -> None:
    for first, second in ((a.train, b.train), (a.test, b.test)):
        np.testing.assert_array_equal(first.images, second.images)
        np.testing.assert_array_equal(first.labels, second.labels)
    assert a._replace(train=b.train, test=b.test) == b


def test_import_is_light() -> None:
    heavy = "{'tensorflow_datasets', 'PIL', 'jax', 'rich', 'pooch', 'tensorflow'}"
    code = f"import sys, cifar_jax.data; sys.exit(len({heavy} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_second_load_decodes_nothing(prepared: Path, decoded: list[Path]) -> None:
    first, second = data.load("cifar10"), data.load("cifar10")
    assert_equal(first, second)
    assert decoded == [prepared]
    assert first.fingerprint == fingerprint(second.train, second.test)
    assert (second.train.images.dtype, second.train.labels.dtype) == (np.uint8, np.int32)


def test_changed_folder_is_decoded_again(prepared: Path, decoded: list[Path]) -> None:
    first = data.load("cifar10")
    os.utime(prepared / "cifar10-test.array_record-00000-of-00001")
    assert_equal(data.load("cifar10"), first)
    assert len(decoded) == 2
    assert entry()


@pytest.mark.parametrize("share", np.linspace(0.01, 0.97, 10).tolist())
def test_damaged_entry_is_rebuilt(prepared: Path, decoded: list[Path], share: float) -> None:
    first = data.load("cifar10")
    content = bytearray(entry().read_bytes())
    content[int(share * len(content))] ^= 1
    entry().write_bytes(content)
    assert_equal(data.load("cifar10"), first)
    assert_equal(data.load("cifar10"), first)
    assert len(decoded) == 2


@pytest.mark.parametrize("content", [b"", b"PK", b"\x93NUMPY"])
def test_entry_that_is_cut_short_is_rebuilt(prepared: Path, content: bytes) -> None:
    first = data.load("cifar10")
    entry().write_bytes(content)
    assert_equal(data.load("cifar10"), first)


def test_cache_that_cannot_be_written(
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CIFAR_JAX_CACHE", str(tmp_path / "file" / "cache"))
    assert len(data.load("cifar10").train.labels) == 20
    assert "images of cifar10 cannot be stored" in capsys.readouterr().err


def test_a_long_wait_for_a_lock_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cache, "_SILENT_SECONDS", 0)
    acquired = threading.Event()

    def other() -> None:
        with cache.lock("cifar10"):
            acquired.set()

    thread = threading.Thread(target=other)
    with cache.lock("cifar10"):
        thread.start()
        assert not acquired.wait(0.5)
        message = capsys.readouterr().err
    thread.join(10)
    assert acquired.is_set()
    path = cache.cache_dir() / "cifar10.lock"
    assert message == f"waiting for another process that reads cifar10 and locks {path}\n"


def test_official_images_are_recognized(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = data.load("cifar10")
    assert not first.official
    monkeypatch.setattr(cifar10, "CONTENT", first.content)
    assert data.load("cifar10").official


def test_status(prepared: Path, data_dir: Path, tmp_path: Path) -> None:
    assert f"data folder: {data_dir}" in data.status()
    assert "cifar10:3.0.2: array_record, 20 train, 4 test images, not cached yet" in data.status()
    data.load("cifar10")
    assert "4 test images, cached" in data.status()
    assert f"cache: {tmp_path / 'cache'}" in data.status()
    (prepared / "dataset_info.json").unlink()
    assert "dataset_info.json is missing" in data.status()
    shutil.rmtree(prepared)
    assert "not prepared; `cifar-jax data prepare` downloads it" in data.status()


def test_unknown_name() -> None:
    with pytest.raises(UserError, match=r"no data set 'cifar'; did you mean cifar10\?"):
        data.load("cifar")
    with pytest.raises(UserError, match="Choose cifar10, cifar100, digits, folder:PATH"):
        data.load("imagenet")
    with pytest.raises(UserError, match=r"did you mean folder:\./pets\?"):
        data.load("./pets")
