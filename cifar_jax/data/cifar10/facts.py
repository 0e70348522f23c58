"""What CIFAR-10 is, and where it is published."""

from pathlib import Path

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
COUNTS = {"train": 50_000, "test": 10_000}
# The version that stock tfds reads as "cifar10".
VERSION = "3.0.2"

# The `content_digest` of its 60,000 images with their labels, in any order.
CONTENT = "a08b14bdab921f8e4cd76ae47fa3c7aca4085e2262da5609ac764dd6ad9b422d"

ARCHIVE_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
# SHA-256 as in Keras (python) and tfds (binary); the MD5s at https://www.cs.toronto.edu/~kriz/cifar.html
# are c58f30108f718f92721af3b95e74349a and c32a1d4ab5d03f1284b67883e8d87530.
OFFICIAL_ARCHIVES = {
    "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce": "cifar-10-python.tar.gz",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd": "cifar-10-binary.tar.gz",
}
# MD5 of the official files: the python ones as in torchvision's datasets/cifar.py, the binary ones
# as in GoTorch's download script.
OFFICIAL_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}


def folder(data_dir: Path) -> Path:
    """Where tfds keeps CIFAR-10 below ``data_dir``."""
    return data_dir / "cifar10" / VERSION
