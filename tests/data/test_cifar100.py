"""Test the import of CIFAR-100, with synthetic images in the published format."""

from pathlib import Path

import numpy as np
import pytest
import synthetic_cifar
import tensorflow_datasets as tfds

from cifar_jax import cli, data
from cifar_jax.data import cifar100
from cifar_jax.data.dataset import Arrays, Split
from cifar_jax.errors import UserError

CLASSES = tuple(f"kind {i}" for i in range(100))
COARSE = np.arange(100) // 5


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Arrays]:
    rng = np.random.default_rng(0)
    train, test = (
        Split(rng.integers(0, 256, (n, 32, 32, 3), np.uint8), np.arange(n, dtype=np.int32) % 100)
        for n in (200, 100)
    )
    images = Arrays(CLASSES, train, test)
    folder = synthetic_cifar.write_cifar100(tmp_path / "download", images, COARSE)
    path = synthetic_cifar.pack(folder, "cifar-100-python.tar.gz")
    facts = synthetic_cifar.with_md5s(cifar100.ARCHIVE, folder)
    facts = facts._replace(checksum=synthetic_cifar.digest(path, "md5"))
    monkeypatch.setattr(cifar100, "ARCHIVE", facts)
    return path, images


@pytest.mark.parametrize("is_folder", [False, True])
def test_import_reads_back_equal(
    is_folder: bool, archive: tuple[Path, Arrays], data_dir: Path
) -> None:
    path, images = archive
    data.import_path(path.with_name("cifar-100-python") if is_folder else path)
    builder = tfds.builder("cifar100", data_dir=data_dir)
    records = list(builder.as_data_source("test"))
    dataset = data.load("cifar100")
    assert dataset.classes == CLASSES
    assert (len(dataset.train.labels), len(dataset.test.labels)) == (200, 100)
    ids = [int(record["id"].removeprefix(b"test_")) for record in records]
    np.testing.assert_array_equal(dataset.test.images, images.test.images[ids])
    np.testing.assert_array_equal(dataset.test.labels, images.test.labels[ids])
    np.testing.assert_array_equal([r["coarse_label"] for r in records], COARSE[ids])


def test_another_archive_is_refused(archive: tuple[Path, Arrays]) -> None:
    path, _ = archive
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=r"not the official CIFAR-100: its MD5 differs"):
        data.import_path(path)


def test_train_and_evaluate(
    archive: tuple[Path, Arrays], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    assert cli.run(["data", "import", str(archive[0])]) == 0
    options = ["epochs=1", "data.dataset=cifar100", "data.validation=0.1"]
    options += ["batch_size=50", "train.devices=1"]
    words = [word for option in options for word in ("--set", option)]
    assert cli.run(["train", "basic", "--workdir", run, *words]) == 0
    capsys.readouterr()
    for arguments in ([], ["--data", "cifar100"]):
        assert cli.run(["evaluate", run, *arguments]) == 0
        output = capsys.readouterr().out
        assert "over 100 images" in output
        assert "--json prints all 100" in output
