"""Test data sets from NumPy files and from folders of tfds, and the names of data sets."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image, ImageOps
from tensorflow_datasets.core import registered

from cifar_jax import data
from cifar_jax.config import identity, override
from cifar_jax.data import corruptions
from cifar_jax.errors import UserError

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (12, 28, 28), np.uint8)
COLOR = RNG.integers(0, 256, (12, 32, 32, 3), np.uint8)
LABELS = np.arange(12) % 3


def expected(image: np.ndarray) -> np.ndarray:
    """Return a gray image, resized to 32×32 pixels and converted to RGB."""
    resized = ImageOps.fit(Image.fromarray(image), (32, 32), Image.Resampling.BICUBIC)
    return np.asarray(resized.convert("RGB"))


def test_npz_of_keras_and_of_medmnist(tmp_path: Path) -> None:
    keras, medmnist = tmp_path / "keras.npz", tmp_path / "medmnist.npz"
    np.savez(keras, x_train=GRAY[:9], y_train=LABELS[:9], x_test=GRAY[9:], y_test=LABELS[9:])
    parts = {"train": slice(0, 6), "val": slice(6, 9), "test": slice(9, 12)}
    arrays: dict[str, Any] = {
        f"{name}_images": GRAY[part, ..., None] for name, part in parts.items()
    }
    arrays |= {f"{name}_labels": LABELS[part, None] for name, part in parts.items()}
    np.savez(medmnist, **arrays, class_names=np.array([b"cat", b"dog", b"fox"]))
    first, second = (data.load(f"npz:{path}") for path in (keras, medmnist))
    assert (first.classes, second.classes) == (("0", "1", "2"), ("cat", "dog", "fox"))
    assert (first.validation_images, second.validation_images) == (None, 3)
    assert first.fingerprint == second.fingerprint
    np.testing.assert_array_equal(first.test.images, [expected(image) for image in GRAY[9:]])
    assert second.notes == ("validation images: those of the file (data.validation is not used)",)
    large = data.load(f"npz:{keras}", target=data.Target(64)).test.images
    assert large.shape == (3, 64, 64, 3)
    assert data.load(f"npz:{keras}").fingerprint == first.fingerprint
    np.savez(keras, x_train=GRAY[:9], y_train=LABELS[:9], x_test=GRAY[:3], y_test=LABELS[9:])
    assert data.load(f"npz:{keras}").fingerprint != first.fingerprint


def test_float_images_and_npy_pairs(tmp_path: Path) -> None:
    np.save(tmp_path / "a,b.npy", (COLOR / 255).astype(np.float32))
    np.save(tmp_path / "labels.npy", LABELS)
    images = data.load_labeled(f"npy:{tmp_path}/a,b.npy,{tmp_path}/labels.npy")
    np.testing.assert_array_equal(images.images, COLOR)
    assert images.classes is None


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (COLOR / 255 * 2, LABELS, "float values outside 0 to 1, such as"),
        (np.where(COLOR.max() == COLOR, np.nan, 0.5), LABELS, "such as nan"),
        (COLOR.transpose(0, 3, 1, 2), LABELS, "move the channels to the last axis"),
        (COLOR.astype(np.int64), LABELS, "have the type int64: they must be uint8, or float"),
        (COLOR[:0], LABELS[:0], "contains no images"),
        (COLOR, LABELS[:5], "has 12 images, but .* has 5 labels"),
        (COLOR, LABELS - 1, "contain -1: labels are numbered from 0"),
        (COLOR, LABELS / 2, "must be integers"),
        (COLOR, np.eye(3, dtype=int)[LABELS], "must be integers of shape"),
        (COLOR, LABELS.astype(object), "not a NumPy file .* of numbers"),
    ],
)
def test_bad_npy_pairs(images: Any, labels: Any, message: str, tmp_path: Path) -> None:
    for name, array in (("images", images), ("labels", labels)):
        np.save(tmp_path / f"{name}.npy", array)
    with pytest.raises(UserError, match=message) as caught:
        data.load_labeled(f"npy:{tmp_path}/images.npy,{tmp_path}/labels.npy")
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_npz(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    np.savez_compressed(path, images=COLOR, labels=LABELS)
    content = bytearray(path.read_bytes())
    content[2000:2010] = bytes(10)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"images in .*images.npz cannot be read: it is damaged"):
        data.load_labeled(f"npz:{path}")
    np.savez(path, images=COLOR, labels=LABELS, class_names=np.arange(3))
    with pytest.raises(UserError, match="must contain one string for each class"):
        data.load_labeled(f"npz:{path}")
    np.savez(path, images=COLOR, labels=LABELS, class_names=["cat", "dog", "cat"])
    with pytest.raises(UserError, match="contains cat twice"):
        data.load_labeled(f"npz:{path}")
    np.savez(path, images=COLOR, labels=LABELS, class_names=["cat", "dog"])
    with pytest.raises(UserError, match="contain 2, but there are only 2 classes"):
        data.load_labeled(f"npz:{path}")


def test_images_for_evaluation_must_have_the_size_of_the_model() -> None:
    test = data.load("digits").test
    whole = data.load_labeled("digits", target=data.Target(32, center_crop=False))
    np.testing.assert_array_equal(whole.images, test.images)
    with pytest.raises(UserError, match="the model takes images of 64 × 64 pixels, but digits"):
        data.load_labeled("digits", target=data.Target(64))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("npz:none.npz", "none.npz does not exist"),
        ("npz:~nobody/none.npz", "none.npz does not exist"),
        ("npz", "did you mean npz:FILE"),
        ("npy:a.npy,b.npy", "for evaluation only. Choose cifar10"),
        ("tfds:mnist", "mnist is not prepared in .* Prepared there: nothing"),
        ("tfds:../mnist", "is not the name of a tfds data set"),
        ("cifar1000", "did you mean cifar100"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        data.load(name)


def test_a_moved_file_is_the_same_setting(make_config: Callable[..., Any]) -> None:
    config = make_config()
    first, second, third = (
        identity(override(config, [f"data.dataset={name}"]))["data.dataset"]
        for name in ("npz:./a/x.npz", "npz:b/x.npz", "tfds:svhn_cropped")
    )
    assert (first, second, third) == ("npz:x.npz", "npz:x.npz", "tfds:svhn_cropped")


def prepare_tfds(data_dir: Path, splits: dict[str, slice], **label: Any) -> None:
    """Write the images `GRAY` as a tfds data set named `shapes`, without TensorFlow."""

    def examples(part: slice) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, (image, number) in enumerate(zip(GRAY[part], LABELS[part], strict=True)):
            png = io.BytesIO()
            Image.fromarray(image).save(png, "png")
            png.seek(0)
            yield i, {"image": png, "label": int(number)}

    with registered.skip_registration():

        class Shapes(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")
            __module__ = "tensorflow_datasets.image_classification.mnist"
            url_infos: Any = {}  # noqa: RUF012 - tfds would search for checksums.

            def _info(self) -> Any:
                features = {
                    "image": tfds.features.Image(shape=(28, 28, 1)),
                    "label": tfds.features.ClassLabel(**label),
                }
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict(features),
                    disable_shuffling=True,
                )

            def _split_generators(self, dl_manager: Any) -> Any:
                return {split: examples(part) for split, part in splits.items()}

            def _generate_examples(self) -> Any: ...

    Shapes(data_dir=data_dir, file_format="array_record").download_and_prepare()


@pytest.mark.filterwarnings("ignore")
def test_sets_that_tfds_has_prepared(data_dir: Path) -> None:
    splits = {"train": slice(0, 6), "validation": slice(6, 9), "test": slice(9, 12)}
    prepare_tfds(data_dir, splits, num_classes=3)
    dataset = data.load("tfds:shapes")
    assert (dataset.name, dataset.classes) == ("tfds:shapes", ("0", "1", "2"))
    assert dataset.validation_images == 3
    np.testing.assert_array_equal(dataset.test.images, [expected(image) for image in GRAY[9:]])
    original = data.load("tfds:shapes", target=data.Target(28)).test.images
    np.testing.assert_array_equal(original[..., 0], GRAY[9:])
    assert data.load_labeled("tfds:shapes:1.0.0").classes is None
    assert (
        "tfds:shapes: array_record, 6 train, 3 validation, 3 test images, cached" in data.status()
    )
    with pytest.raises(UserError, match=r"version 2.0.0 .* choose 1.0.0"):
        data.load("tfds:shapes:2.0.0")


def test_corruptions_of_the_benchmark_come_first(tmp_path: Path) -> None:
    for name in ("zebra", "saturate", "fog"):
        np.save(tmp_path / f"{name}.npy", COLOR[:10])
    for labels in (LABELS[:2], np.tile(LABELS[:2], 5)):
        np.save(tmp_path / "labels.npy", labels)
        read = list(corruptions.read(tmp_path))
        assert [corruption.name for corruption in read] == ["fog", "saturate", "zebra"]
        last = read[0].severities[4]
        np.testing.assert_array_equal(last.images, COLOR[8:10])
        assert last.labels.tolist() == [0, 1]
    np.save(tmp_path / "labels.npy", LABELS)
    with pytest.raises(UserError, match=r"fog.npy has 10 images, but .*labels.npy has 12 labels"):
        list(corruptions.read(tmp_path))
    np.save(tmp_path / "labels.npy", LABELS[:10])
    with pytest.raises(UserError, match=r"has 10 images, but .*labels.npy has 10 labels: five"):
        list(corruptions.read(tmp_path))  # The labels of a single severity are not repeated.
    (tmp_path / "labels.npy").unlink()
    with pytest.raises(UserError, match=r"has no labels.npy"):
        list(corruptions.read(tmp_path))
