"""`cifar_jax.load` and the model that it returns."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import cifar_jax
from cifar_jax import models
from cifar_jax.data import cifar10
from cifar_jax.errors import UserError
from cifar_jax.inference import load
from cifar_jax.inference.torch_weights import CIFAR10_MEAN, CIFAR10_STD
from cifar_jax.runs.schemas import ModelCard, Result, SavedState
from cifar_jax.training.evaluation import TTA

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)


def logits_by_hand(images: np.ndarray, step: int) -> np.ndarray:
    model = models.create("basic")
    variables = models.init_variables(model, jax.random.key(step))
    mean, std = (np.array(v, np.float32) for v in (CIFAR10_MEAN, CIFAR10_STD))
    return np.asarray(model.apply(variables, (images / np.float32(255) - mean) / std))


def probabilities(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


@pytest.mark.parametrize(("best", "step", "epoch"), [(False, 7, 2), (True, 3, 1)])
def test_load_returns_the_last_or_the_best_weights(
    basic: Path, best: bool, step: int, epoch: int
) -> None:
    model = cifar_jax.load(basic, best=best)
    logits = logits_by_hand(IMAGES, step)
    np.testing.assert_allclose(model.logits(IMAGES), logits, atol=1e-5)
    np.testing.assert_allclose(model.predict(IMAGES), probabilities(logits), atol=1e-5)
    assert (model.card.step, model.card.epoch) == (step, epoch)
    assert model.card.test_accuracy is None
    assert model.classes == cifar10.CLASSES


def test_the_card_has_the_accuracy_of_exactly_these_weights(basic: Path) -> None:
    result = Result.model_construct(
        steps=7,
        test_accuracy=60.0,
        test_accuracy_plain=59.0,
        best_validation_epoch=1,
        best_validation_test_accuracy=55.0,
        git_commit="abc",
    )
    card = cifar_jax.load(basic).card

    def describe(step: int, epoch: int, end_of_epoch: bool = True) -> ModelCard:
        saved = SavedState.model_construct(step=step, epoch=epoch, end_of_epoch=end_of_epoch)
        return load._describe(card, saved, result)

    for (step, epoch, ends), accuracies in {
        (7, 2, True): (60.0, 59.0),
        (3, 1, True): (55.0, None),
        (5, 1, False): (None, None),
    }.items():
        described = describe(step, epoch, ends)
        assert (described.test_accuracy, described.test_accuracy_plain) == accuracies


def test_the_batch_size_does_not_matter(basic: Path) -> None:
    model = cifar_jax.load(str(basic))
    model.batch_size = 2
    np.testing.assert_allclose(model.logits(IMAGES), logits_by_hand(IMAGES, 7), atol=1e-5)
    assert model.predict(IMAGES[:0]).shape == (0, 10)
    assert model.predict([]).shape == (0, 10)


def test_test_time_augmentation_averages_logits(basic: Path) -> None:
    model = cifar_jax.load(basic)
    plain, mirrored = logits_by_hand(IMAGES, 7), logits_by_hand(IMAGES[:, :, ::-1], 7)
    mean = (plain + mirrored) / 2
    outputs = model.outputs(IMAGES, TTA(flip=True))
    np.testing.assert_allclose(outputs.logits, mean, atol=1e-5)
    np.testing.assert_allclose(outputs.plain, plain, atol=1e-5)
    # Probabilities of an image never depend on the other images.
    tta = TTA(flip=True, least_confident=0.2)
    np.testing.assert_allclose(model.predict(IMAGES, tta), probabilities(mean), atol=1e-5)


def test_files_are_read_like_arrays(basic: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.png" for i in range(2)]
    for file, pixels in zip(files, IMAGES[:2], strict=True):
        Image.fromarray(pixels).save(file)
    model = cifar_jax.load(basic)
    np.testing.assert_array_equal(model.predict(files), model.predict(IMAGES[:2]))


def test_the_card_sets_classes_and_normalization(
    basic: Path, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    classes = [f"kind {i}" for i in range(10)]
    other = make_run(tmp_path / "run", "basic", classes=classes, mean=[0.5, 0.4, 0.3])
    model = cifar_jax.load(other)
    assert model.classes == tuple(classes)
    assert abs(model.logits(IMAGES) - cifar_jax.load(basic).logits(IMAGES)).max() > 1e-3


def test_importing_the_package_loads_no_heavy_module() -> None:
    code = "import sys, cifar_jax; print([m for m in ('jax', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format 2"),
        ({"classes": ["a"]}, "1 classes"),
        ({"std": [1, 0, 1]}, "std"),
        ({"mean": [125.3, 123.0, 113.9]}, "mean"),
        ({"mean": [float("nan"), 0.5, 0.5]}, "mean"),
        ({"input_shape": [28, 28, 1]}, r"takes images of shape \[28, 28, 1\]"),
        ({"model": {"name": "net", "num_classes": 10}}, "it is of another network"),
        ({"model": {"name": "nett", "num_classes": 10}}, "did you mean net"),
        ({"precision": "int8"}, "precision"),
        ({"experiment": "../../elsewhere"}, "experiment"),
        ({"tta": {"shift": "far"}}, "tta.shift"),
    ],
)
def test_a_damaged_card_is_refused(
    basic: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    run = shutil.copytree(basic, tmp_path / "run")
    card = json.loads((run / "model.json").read_text())
    (run / "model.json").write_text(json.dumps(card | changes))
    with pytest.raises(UserError, match=message):
        cifar_jax.load(run)


def test_other_files_are_refused_in_one_line(basic: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    shutil.copytree(basic, tmp_path / "bare", ignore=shutil.ignore_patterns("checkpoints"))
    for name, message in (
        ("nowhere", "not a run folder, an export, or a packaged network"),
        ("empty", "is .* a run folder"),
        ("notes.txt", "neither a safetensors nor a StableHLO export"),
        ("bare", "no checkpoint yet"),
    ):
        with pytest.raises(UserError, match=message) as error:
            cifar_jax.load(tmp_path / name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("images", [IMAGES[0], IMAGES.astype(np.float32), IMAGES[:, :28]])
def test_arrays_of_another_shape_or_type_are_refused(basic: Path, images: np.ndarray) -> None:
    with pytest.raises(UserError, match="must be uint8"):
        cifar_jax.load(basic).predict(images)
