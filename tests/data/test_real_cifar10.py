"""Test the real CIFAR-10 data set if it is prepared on this machine."""

import os
from pathlib import Path

import numpy as np
import pytest

from cifar_jax import data
from cifar_jax.data import cifar10
from cifar_jax.data.dataset import content_digest, fingerprint

# Read the environment variables before the fixtures in conftest.py change them.
_CACHE = os.environ.get("CIFAR_JAX_CACHE")
_DATA_DIR = data.default_data_dir()

pytestmark = pytest.mark.skipif(
    not cifar10.folder(_DATA_DIR).exists(),
    reason=f"CIFAR-10 is not prepared in {_DATA_DIR}",
)


@pytest.fixture
def data_dir(private_folders: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    if _CACHE is None:
        monkeypatch.delenv("CIFAR_JAX_CACHE")
    else:
        monkeypatch.setenv("CIFAR_JAX_CACHE", _CACHE)
    return _DATA_DIR


def test_counts_and_statistics(data_dir: Path) -> None:
    dataset = data.load("cifar10", data_dir=data_dir)
    assert dataset.train.images.shape == (50_000, 32, 32, 3)
    assert dataset.test.images.shape == (10_000, 32, 32, 3)
    assert np.bincount(dataset.train.labels).tolist() == [5_000] * 10
    assert np.bincount(dataset.test.labels).tolist() == [1_000] * 10
    # The classes have the order of the file batches.meta in the official archive.
    assert " ".join(dataset.classes) == (
        "airplane automobile bird cat deer dog frog horse ship truck"
    )
    assert [round(x, 4) for x in dataset.mean] == [0.4914, 0.4822, 0.4465]
    assert [round(x, 4) for x in dataset.std] == [0.2470, 0.2435, 0.2616]


def test_digests(data_dir: Path) -> None:
    dataset = data.load("cifar10", data_dir=data_dir)
    assert dataset.official
    assert dataset.fingerprint == fingerprint(dataset.train, dataset.test)
    assert dataset.content == content_digest(dataset.train, dataset.test)


def test_first_images_equal_those_of_stock_tfds(data_dir: Path) -> None:
    import tensorflow_datasets as tfds

    dataset = data.load("cifar10", data_dir=data_dir)
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        stock = tfds.builder("cifar10", data_dir=data_dir).as_data_source(name)
        for index in (0, 1, len(stock) - 1):
            np.testing.assert_array_equal(split.images[index], stock[index]["image"])
            assert split.labels[index] == stock[index]["label"]
