"""What CIFAR-10 is, where it is published, and how a run gets hold of it."""

import hashlib
from pathlib import Path

from cifar_jax.data import cache, tfds_folder
from cifar_jax.data.progress import notice

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
COUNTS = {"train": 50_000, "test": 10_000}
# The version that stock tfds reads as "cifar10".
VERSION = "3.0.2"

ARCHIVE_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
# SHA-256 as in Keras (python) and tfds (binary); the MD5s at https://www.cs.toronto.edu/~kriz/cifar.html
# are c58f30108f718f92721af3b95e74349a and c32a1d4ab5d03f1284b67883e8d87530.
OFFICIAL_ARCHIVES = {
    "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce": "cifar-10-python.tar.gz",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd": "cifar-10-binary.tar.gz",
}


def folder(data_dir: Path) -> Path:
    """Where tfds keeps CIFAR-10 below ``data_dir``."""
    return data_dir / "cifar10" / VERSION


def source(data_dir: Path) -> cache.Source:
    """The prepared folder as a source; where there is none, it is downloaded and prepared first.

    Raises UserError, naming the ways out, if it cannot be downloaded.
    """
    path = folder(data_dir)
    if not path.exists():
        from cifar_jax.data.download import prepare

        place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
        # Two processes that start at once: the second finds what the first has prepared.
        with cache.locked(f"prepare-{place}"):
            if not path.exists():
                notice(f"CIFAR-10 is not in {data_dir} yet: downloading it from {ARCHIVE_URL}")
                prepare(data_dir)
    return tfds_folder.source(path)
