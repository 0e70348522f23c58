"""CIFAR-10: what it is, and the ways to get hold of it."""

from cifar_jax.data.cifar10.download import prepare
from cifar_jax.data.cifar10.facts import CLASSES, COUNTS, VERSION, folder
from cifar_jax.data.cifar10.importing import ImportResult, import_path
from cifar_jax.data.cifar10.prepared import source

__all__ = [
    "CLASSES",
    "COUNTS",
    "VERSION",
    "ImportResult",
    "folder",
    "import_path",
    "prepare",
    "source",
]
