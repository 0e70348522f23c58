"""A trained model answers from its run's folder alone."""

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
from cifar_jax import data, models
from cifar_jax.data import cifar10
from cifar_jax.data import images as pictures
from cifar_jax.errors import UserError
from cifar_jax.inference import card as cards
from cifar_jax.training.evaluation import TTA

RANDOM = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)


def by_hand(folder: Path, images: np.ndarray, step: int) -> np.ndarray:
    """Logits of the weights that the run of that seed has."""
    del folder
    model = models.create("basic")
    variables = models.init_variables(model, jax.random.key(step))
    mean, std = (np.array(v, np.float32) for v in (cards.CIFAR10_MEAN, cards.CIFAR10_STD))
    return np.asarray(model.apply(variables, (images / np.float32(255) - mean) / std))


def test_it_answers_with_the_last_checkpoint_or_the_best(basic: Path) -> None:
    for best, step in ((False, 7), (True, 3)):
        model = cifar_jax.load(basic, best=best)
        logits = by_hand(basic, RANDOM, step)
        np.testing.assert_allclose(model.logits(RANDOM), logits, atol=1e-5)
        odds = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        np.testing.assert_allclose(model.predict(RANDOM), odds, atol=1e-5)
        assert model.card["step"] == step
    assert model.classes == cifar10.CLASSES


def test_the_number_of_images_does_not_matter(basic: Path) -> None:
    model = cifar_jax.load(str(basic))
    model.largest_batch = 2
    np.testing.assert_allclose(model.logits(RANDOM), by_hand(basic, RANDOM, 7), atol=1e-5)
    assert model.predict(RANDOM[:0]).shape == (0, 10)
    assert model.predict([]).shape == (0, 10)


def test_more_views_of_an_image_are_averaged(basic: Path) -> None:
    model = cifar_jax.load(basic)
    model.largest_batch = 2
    found = model.logits(RANDOM, TTA(flip=True))
    mirrored = RANDOM[:, :, ::-1]
    expected = (by_hand(basic, RANDOM, 7) + by_hand(basic, mirrored, 7)) / 2
    np.testing.assert_allclose(found, expected, atol=1e-5)
    odds = np.exp(expected) / np.exp(expected).sum(-1, keepdims=True)
    np.testing.assert_allclose(model.predict(RANDOM, TTA(flip=True)), odds, atol=1e-5)
    assert model.predict(RANDOM[:0], TTA(flip=True)).shape == (0, 10)


def test_files_are_read_as_arrays_are(basic: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.png" for i in range(2)]
    for file, pixels in zip(files, RANDOM[:2], strict=True):
        Image.fromarray(pixels).save(file)
    model = cifar_jax.load(basic)
    np.testing.assert_array_equal(model.predict(files), model.predict(RANDOM[:2]))
    np.testing.assert_array_equal(pictures.read_image(files[0]), RANDOM[0])


def test_the_model_card_counts_where_there_is_one(basic: Path, tmp_path: Path) -> None:
    run = shutil.copytree(basic, tmp_path / "run")
    card = cifar_jax.load(basic).card
    classes = [f"kind {i}" for i in range(10)]
    other = dict(card) | {"classes": classes, "mean": [0.5, 0.4, 0.3]}
    (run / "model.json").write_text(json.dumps(other))
    model = cifar_jax.load(run)
    assert model.classes == tuple(classes)
    assert abs(model.logits(RANDOM) - cifar_jax.load(basic).logits(RANDOM)).max() > 1e-3


def test_the_constants_are_those_of_digits_where_it_learned_them(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    card = cifar_jax.load(make_run(tmp_path / "run", "basic", dataset="digits")).card
    digits = data.load("digits")
    assert (tuple(card["mean"]), tuple(card["std"])) == (digits.mean, digits.std)
    assert card["classes"] == list("0123456789")


def test_importing_the_package_loads_and_configures_nothing() -> None:
    heavy = ("jax", "flax", "orbax", "numpy", "logging")
    code = f"import sys, cifar_jax; print([m for m in {heavy} if m in sys.modules])"
    # -S: what starts with Python itself, such as site's, is no concern of ours.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "jax" not in done.stdout
    assert "numpy" not in done.stdout
    assert (Path(cifar_jax.__file__).parent / "py.typed").exists()


def damaged(card: dict[str, Any], **changes: Any) -> str:
    return json.dumps(card | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version"),
        ({"classes": ["a"]}, "classes are not as many"),
        ({"std": [1, 0, 1]}, "std"),
        ({"mean": [1, 0]}, "mean"),
        ({"input_shape": [28, 28, 1]}, "input_shape"),
        ({"model": {"name": "net", "num_classes": 10}}, "it is of another network"),
        ({"model": {"name": "nett", "num_classes": 10}}, "did you mean net"),
        ({"precision": "int8"}, "precision"),
        ({"mean": [125.3, 123.0, 113.9]}, "mean is not of pixels from 0 to 1"),
        ({"mean": [float("nan"), 0.5, 0.5]}, "mean is not of pixels from 0 to 1"),
        ({"std": [63.0, 62.1, 66.7]}, "std is not of pixels from 0 to 1"),
        ({"std": [float("inf"), 0.2, 0.2]}, "std is not of pixels from 0 to 1"),
        ({"experiment": "../../elsewhere"}, "names no experiment"),
        ({"experiment": 3}, "names no experiment"),
        ({"seed": "x"}, "names no experiment and seed"),
        ({"tta": {"x": 1}}, "x"),
        ({"tta": {"shift": "far"}}, "shift"),
        ({"tta": []}, "tta is no object"),
        ({"data": 5}, "data is no object"),
        ({"model": {"name": "basic", "num_classes": 10, "dropout": "x"}}, "dropout"),
    ],
)
def test_a_card_that_makes_no_sense_is_refused(
    basic: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    run = shutil.copytree(basic, tmp_path / "run")
    (run / "model.json").write_text(damaged(dict(cifar_jax.load(basic).card), **changes))
    with pytest.raises(UserError, match=message):
        cifar_jax.load(run)


def test_what_is_no_model_is_refused_in_one_line(basic: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    bare = shutil.copytree(basic, tmp_path / "bare", ignore=shutil.ignore_patterns("checkpoints"))
    for path, message in (
        (tmp_path / "nowhere", "no run or export"),
        (empty, "is .* the folder of a run"),
        (text, "neither a safetensors nor a StableHLO"),
        (bare, "no checkpoint yet"),
    ):
        with pytest.raises(UserError, match=message) as error:
            cifar_jax.load(path)
        assert "\n" not in str(error.value)
    model = cifar_jax.load(basic)
    for wrong in (RANDOM[0], RANDOM.astype(np.float32), RANDOM[:, :28]):
        with pytest.raises(UserError, match="uint8"):
            model.predict(wrong)
