from pathlib import Path

import pytest
import synthetic_cifar

from cifar_jax import data
from cifar_jax.data import cifar10
from cifar_jax.data.dataset import Arrays


@pytest.fixture(autouse=True)
def private_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use temporary cache and data folders instead of the user's folders."""
    monkeypatch.setenv("CIFAR_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "tfds"


@pytest.fixture
def images() -> Arrays:
    return synthetic_cifar.make_images()


@pytest.fixture
def batches(images: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with synthetic CIFAR-10 files that the importer accepts as the official files."""
    path = synthetic_cifar.write_batches(tmp_path / "download", images)
    monkeypatch.setattr(cifar10, "ARCHIVE", synthetic_cifar.with_md5s(cifar10.ARCHIVE, path))
    return path


@pytest.fixture
def archive(batches: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Archive of synthetic images that the importer accepts as the official archive."""
    path = synthetic_cifar.pack(batches)
    checksum = synthetic_cifar.digest(path, "sha256")
    monkeypatch.setattr(cifar10, "ARCHIVE", cifar10.ARCHIVE._replace(checksum=checksum))
    return path


@pytest.fixture
def prepared(batches: Path, data_dir: Path) -> Path:
    """Folder in which the synthetic images are prepared for TensorFlow Datasets (tfds)."""
    return data.import_path(batches, data_dir)
