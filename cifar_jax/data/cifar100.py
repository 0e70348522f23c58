"""CIFAR-100: a description of the official archive. The classes are the 100 fine labels."""

from pathlib import Path

from cifar_jax.data import cache, cifar_prepare
from cifar_jax.data.cifar_archive import Archive

ARCHIVE = Archive(
    name="cifar100",
    title="CIFAR-100",
    builder="Cifar100",
    version="3.0.2",  # Version of CIFAR-100 that `tfds.load("cifar100")` reads.
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    size=169_001_437,
    checksum="md5:eb9058c3a382ffc7106e4002c42a8d85",  # From the web page of CIFAR-100.
    folder="cifar-100-python",
    # MD5 of each file in the archive, from torchvision/datasets/cifar.py.
    files={
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    },
    test="test",
    labels={"label": "fine_labels", "coarse_label": "coarse_labels"},
    classes={},
)


def source(data_dir: Path) -> cache.Source:
    """Return CIFAR-100 as a `cache.Source`. Download and prepare the images if they are missing."""
    return cifar_prepare.source(ARCHIVE, data_dir)
