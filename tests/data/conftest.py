from pathlib import Path

import pytest
import synthetic_cifar

from cifar_jax.data.cifar10 import archives, tfds_write
from cifar_jax.data.dataset import Decoded


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache or data."""
    monkeypatch.setenv("CIFAR_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "tfds"


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> Decoded:
    """Noise; the official archives are taken to be as small as it is."""
    monkeypatch.setattr(archives, "IMAGES_PER_BATCH", synthetic_cifar.PER_BATCH)
    return synthetic_cifar.make_images()


@pytest.fixture
def prepared(images: Decoded, data_dir: Path) -> Path:
    """A prepared dataset folder of the synthetic images."""
    return tfds_write.write_cifar10(images, data_dir)
