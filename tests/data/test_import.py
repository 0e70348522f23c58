"""From what people have at hand to a folder that stock tfds reads."""

import hashlib
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import synthetic_cifar as synthetic
import tensorflow_datasets as tfds
from PIL import Image

from cifar_jax import data
from cifar_jax.data.cifar10 import archives, facts
from cifar_jax.data.dataset import Decoded
from cifar_jax.errors import UserError

# The order of the labels in the published batches.meta.
PUBLISHED = [
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
]


def assert_nothing_left(data_dir: Path) -> None:
    assert not data_dir.exists() or list(data_dir.iterdir()) == []


def fails(path: Path, data_dir: Path, match: str) -> None:
    """Importing ``path`` is a one-line error that names it, and leaves nothing behind."""
    with pytest.raises(UserError, match=match) as caught:
        data.import_path(path, data_dir)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert_nothing_left(data_dir)


@pytest.mark.parametrize("form", synthetic.FORMS)
def test_every_form_reads_back_equal(
    form: str, images: Decoded, tmp_path: Path, data_dir: Path
) -> None:
    path = synthetic.FORMS[form](tmp_path / "given", images)
    result = data.import_path(path, data_dir)
    assert result.recognized == form
    assert result.official is None
    assert result.counts == {"train": 20, "test": 4}
    assert "20 training and 4 test images" in result.remarks[-1]
    assert result.path == data_dir / "cifar10" / "3.0.2"
    assert [p.name for p in data_dir.iterdir()] == ["cifar10"]

    builder = tfds.builder("cifar10", data_dir=data_dir)
    assert builder.info.features["label"].names == list(images.classes)
    loaded = data.load("cifar10")
    for name, wanted, split in (
        ("train", images.train, loaded.train),
        ("test", images.test, loaded.test),
    ):
        if form == "image folder":  # it is ordered by class; the file names keep the order within
            order = np.argsort(wanted.labels, kind="stable")
            wanted = type(wanted)(wanted.images[order], wanted.labels[order])
        stock = list(builder.as_data_source(name))
        ids = [int(example["id"].removeprefix(f"{name}_".encode())) for example in stock]
        assert sorted(ids) == list(range(len(wanted.labels)))
        assert all(len(example["id"]) == len(f"{name}_00000") for example in stock)
        np.testing.assert_array_equal([e["image"] for e in stock], wanted.images[ids])
        np.testing.assert_array_equal([e["label"] for e in stock], wanted.labels[ids])
        np.testing.assert_array_equal(split.images, wanted.images[ids])
        np.testing.assert_array_equal(split.labels, wanted.labels[ids])


def test_metadata_are_those_of_stock_tfds(prepared: Path) -> None:
    from tensorflow_datasets.image_classification import cifar

    info = json.loads((prepared / "dataset_info.json").read_text())
    assert (info["name"], info["version"]) == ("cifar10", str(cifar.Cifar10.VERSION))
    assert info["fileFormat"] == "array_record"
    assert info["moduleName"] == "tensorflow_datasets.image_classification.cifar"
    assert [(s["name"], s["shardLengths"]) for s in info["splits"]] == [
        ("train", ["20"]),
        ("test", ["4"]),
    ]
    features = json.loads((prepared / "features.json").read_text())
    assert set(features["featuresDict"]["features"]) == {"id", "image", "label"}
    assert (prepared / "label.labels.txt").read_text().split() == PUBLISHED
    assert sorted(p.name for p in prepared.iterdir()) == [
        "cifar10-test.array_record-00000-of-00001",
        "cifar10-train.array_record-00000-of-00001",
        "dataset_info.json",
        "features.json",
        "label.labels.txt",
    ]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_batches_that_python_3_saved_again(protocol: int, images: Decoded, tmp_path: Path) -> None:
    read = archives.read_folder(synthetic.write_python(tmp_path, images, protocol)).images
    np.testing.assert_array_equal(read.train.images, images.train.images)
    np.testing.assert_array_equal(read.test.labels, images.test.labels)


def test_a_folder_around_the_batches_will_do(
    images: Decoded, tmp_path: Path, data_dir: Path
) -> None:
    synthetic.write_binary(tmp_path / "given", images)
    assert data.import_path(tmp_path / "given", data_dir).recognized == "unpacked binary archive"


def test_official_archive_is_recognized(
    images: Decoded, tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = synthetic.pack(synthetic.write_python(tmp_path, images))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(facts.OFFICIAL_ARCHIVES, digest, "cifar-10-python.tar.gz")
    result = data.import_path(path, data_dir)
    assert result.official == "its SHA-256 is that of the official cifar-10-python.tar.gz"


def test_official_batches_are_recognized(
    images: Decoded, tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = synthetic.write_binary(tmp_path, images)
    for file in path.iterdir():
        digest = hashlib.md5(file.read_bytes()).hexdigest()
        monkeypatch.setitem(facts.OFFICIAL_MD5, file.name, digest)
    assert data.import_path(path, data_dir).official is not None


def test_jpeg_tree_with_missing_classes(images: Decoded, tmp_path: Path, data_dir: Path) -> None:
    path = synthetic.write_tree(tmp_path / "pictures", images, ".jpg")
    (path / "train" / "cat" / "notes.txt").write_text("hello")
    result = data.import_path(path, data_dir)
    missing = [name for i, name in enumerate(images.classes) if i not in images.test.labels]
    assert f"test has no images of {', '.join(missing)}" in result.remarks
    assert "left out of train: files that are not PNG or JPEG (1)" in result.remarks
    assert set(data.load("cifar10").test.labels) == set(images.test.labels)


def test_prepared_dataset_is_never_overwritten(
    prepared: Path, images: Decoded, tmp_path: Path, data_dir: Path
) -> None:
    before = {p: p.stat().st_mtime_ns for p in prepared.iterdir()}
    path = synthetic.write_python(tmp_path, images)
    with pytest.raises(UserError, match=f"already prepared in {prepared}"):
        data.import_path(path, data_dir)
    with pytest.raises(UserError, match=f"already prepared in {prepared}"):
        data.prepare(data_dir)
    assert {p: p.stat().st_mtime_ns for p in prepared.iterdir()} == before
    assert [p.name for p in data_dir.iterdir()] == ["cifar10"]


def test_what_is_not_there_or_no_archive(images: Decoded, tmp_path: Path, data_dir: Path) -> None:
    fails(tmp_path / "nowhere", data_dir, "does not exist")
    (tmp_path / "letter.tar.gz").write_text("Dear all,")
    fails(tmp_path / "letter.tar.gz", data_dir, "not a tar archive")
    (tmp_path / "empty.tar.gz").touch()
    fails(tmp_path / "empty.tar.gz", data_dir, "not a tar archive")
    (tmp_path / "folder").mkdir()
    fails(tmp_path / "folder", data_dir, "not a form of CIFAR-10")
    (tmp_path / "other.txt").write_text("hello")
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        tar.add(tmp_path / "other.txt", arcname="other.txt")
    fails(tmp_path / "other.tar", data_dir, "lacks data_batch_1")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("write", [synthetic.write_python, synthetic.write_binary])
def test_truncated_archive(
    write, share: float, images: Decoded, tmp_path: Path, data_dir: Path
) -> None:
    path = synthetic.pack(write(tmp_path, images))
    os.truncate(path, int(path.stat().st_size * share))
    fails(path, data_dir, "truncated or damaged|lacks|damaged")


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch"])
def test_missing_batch(name: str, images: Decoded, tmp_path: Path, data_dir: Path) -> None:
    path = synthetic.write_python(tmp_path, images)
    (path / name).unlink()
    fails(path, data_dir, f"lacks {name}")
    fails(synthetic.pack(path), data_dir, f"lacks {name}")


def test_wrong_counts(
    images: Decoded, tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "IMAGES_PER_BATCH", 5)
    fails(synthetic.write_python(tmp_path, images), data_dir, "4 images instead of 5")
    fails(synthetic.write_binary(tmp_path, images), data_dir, "12,292 bytes instead of 15,365")


def test_label_out_of_range(images: Decoded, tmp_path: Path, data_dir: Path) -> None:
    images.train.labels[7] = 10
    fails(synthetic.write_python(tmp_path, images), data_dir, "data_batch_2 is damaged")
    fails(synthetic.write_binary(tmp_path, images), data_dir, "data_batch_2.bin is damaged")


class _Touch:
    """Unpickles by calling a function with a visible effect."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_runs_no_code(images: Decoded, tmp_path: Path, data_dir: Path) -> None:
    path = synthetic.write_python(tmp_path, images)
    (path / "data_batch_1").write_bytes(pickle.dumps({b"data": _Touch(tmp_path / "run")}, 2))
    fails(path, data_dir, "has no place in a batch")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (Image.new("RGB", (64, 32)), "64×32 RGB, not 32×32 RGB"),
        (Image.new("L", (32, 32)), "32×32 L, not 32×32 RGB"),
        (None, "not a readable image"),
    ],
)
def test_unfit_image(
    image: Image.Image | None, match: str, images: Decoded, tmp_path: Path, data_dir: Path
) -> None:
    path = synthetic.write_tree(tmp_path / "pictures", images)
    file = path / "train" / "dog" / "extra.png"
    if image:
        image.save(file)
    else:
        file.write_text("no image")
    fails(path, data_dir, f"extra.png is {match}")


def test_unfit_tree(images: Decoded, tmp_path: Path, data_dir: Path) -> None:
    path = synthetic.write_tree(tmp_path / "pictures", images)
    (path / "train" / "cat").rename(path / "train" / "cats")
    fails(path, data_dir, r"cats is not named for a class: did you mean cat\?")
    empty = tmp_path / "empty"
    (empty / "train" / "cat").mkdir(parents=True)
    (empty / "test" / "cat").mkdir(parents=True)
    fails(empty, data_dir, "holds no images")


def test_failure_while_writing_leaves_nothing(
    images: Decoded, tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    path = synthetic.write_python(tmp_path, images)
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        data.import_path(path, data_dir)
    assert_nothing_left(data_dir)
