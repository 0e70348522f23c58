"""CIFAR-10: a description of the official archive, and functions that prepare the data set."""

from pathlib import Path

from cifar_jax.data import cache, cifar_prepare
from cifar_jax.data.cifar_archive import Archive

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
VERSION = "3.0.2"  # Version of CIFAR-10 that `tfds.load("cifar10")` reads.

# Result of the function `content_digest` for the official CIFAR-10.
CONTENT = "a08b14bdab921f8e4cd76ae47fa3c7aca4085e2262da5609ac764dd6ad9b422d"

ARCHIVE = Archive(
    name="cifar10",
    title="CIFAR-10",
    builder="Cifar10",
    version=VERSION,
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    size=170_498_071,
    checksum="sha256:6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    folder="cifar-10-batches-py",
    # MD5 of each file in the archive, from torchvision/datasets/cifar.py.
    files={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    },
    test="test_batch",
    labels={"label": "labels"},
    classes={"label": CLASSES},
)


def folder(data_dir: Path) -> Path:
    """Return the folder of CIFAR-10 in `data_dir`, the folder of all tfds data sets."""
    return cifar_prepare.folder(ARCHIVE, data_dir)


def source(data_dir: Path) -> cache.Source:
    """Return CIFAR-10 as a `cache.Source`. Download and prepare the images if they are missing."""
    return cifar_prepare.source(ARCHIVE, data_dir)
