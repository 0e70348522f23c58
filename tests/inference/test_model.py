"""Test `cifar_jax.load` and the model that it returns."""

import io
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

import cifar_jax
from cifar_jax import models
from cifar_jax.data import cifar10
from cifar_jax.errors import UserError
from cifar_jax.inference.load import describe
from cifar_jax.inference.model import TrainedNetwork
from cifar_jax.runs.schemas import NetworkCard, Result, SavedState
from cifar_jax.training.evaluation import TTA

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)


def logits_by_hand(images: np.ndarray, step: int) -> np.ndarray:
    model = models.create("basic")
    variables = models.init_variables(model, jax.random.key(step))
    mean, std = np.float32([0.5, 0.4, 0.3]), np.float32([0.2, 0.3, 0.4])
    return np.asarray(model.apply(variables, (images / np.float32(255) - mean) / std))


def probabilities(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


@pytest.mark.parametrize(("best", "step", "epoch"), [(False, 7, 2), (True, 3, 1)])
def test_load_returns_the_last_or_the_best_weights(
    basic: Path, best: bool, step: int, epoch: int
) -> None:
    model = cifar_jax.load(str(basic), best=best)
    model.batch_size = 2
    logits = logits_by_hand(IMAGES, step)
    np.testing.assert_allclose(model.logits(IMAGES), logits, atol=1e-5)
    np.testing.assert_allclose(model.predict(IMAGES), probabilities(logits), atol=1e-5)
    assert (model.card.step, model.card.epoch) == (step, epoch)
    assert model.card.test_accuracy is None
    assert model.classes == cifar10.CLASSES


@pytest.mark.parametrize(
    ("step", "epoch", "end_of_epoch", "accuracy", "plain"),
    [(7, 2, True, 60.0, 59.0), (3, 1, True, 55.0, None), (5, 1, False, None, None)],
)
def test_the_card_has_the_accuracy_of_the_loaded_weights(
    basic: Path, step: int, epoch: int, end_of_epoch: bool, accuracy: Any, plain: Any
) -> None:
    result = Result.model_construct(steps=7, test_accuracy=60.0, test_accuracy_plain=59.0)
    best = {"best_validation_epoch": 1, "best_validation_test_accuracy": 55.0, "git_commit": "a"}
    saved = SavedState.model_construct(step=step, epoch=epoch, end_of_epoch=end_of_epoch)
    card = describe(cifar_jax.load(basic).card, saved, result.model_copy(update=best))
    assert (card.test_accuracy, card.test_accuracy_plain) == (accuracy, plain)
    assert (card.step, card.epoch, card.git_commit) == (step, epoch, "a")


def test_test_time_augmentation_averages_logits(basic: Path) -> None:
    model = cifar_jax.load(basic)
    plain, mirrored = logits_by_hand(IMAGES, 7), logits_by_hand(IMAGES[:, :, ::-1], 7)
    mean = (plain + mirrored) / 2
    outputs = model.outputs(IMAGES, TTA(flip=True))
    np.testing.assert_allclose(outputs.logits, mean, atol=1e-5)
    np.testing.assert_allclose(outputs.plain, plain, atol=1e-5)
    # An image's probabilities must not depend on the other images in the batch.
    tta = TTA(flip=True, least_confident=0.2)
    np.testing.assert_allclose(model.predict(IMAGES, tta), probabilities(mean), atol=1e-5)


def test_an_image_is_a_path_a_pillow_image_or_an_array(basic: Path, tmp_path: Path) -> None:
    model = cifar_jax.load(basic)
    pixels = np.random.default_rng(1).integers(0, 256, (40, 64, 3), np.uint8)
    Image.fromarray(pixels).save(file := tmp_path / "a.png")
    center = (12, 0, 52, 40)
    square = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC, center)
    expected = model.logits(np.asarray(square)[None])
    turned = Image.fromarray(np.rot90(pixels))
    turned.getexif()[0x0112] = 6  # EXIF orientation: rotate by 90° clockwise.
    for image in (
        str(file),
        file,
        Image.open(io.BytesIO(file.read_bytes())),
        pixels,
        jax.numpy.asarray(pixels),
        turned,
    ):
        for images in (image, [image], (image, IMAGES[0])):
            logits = model.logits(images)
            np.testing.assert_allclose(logits[:1], expected, atol=1e-5)
            assert logits.shape == (2 if isinstance(images, tuple) else 1, 10)
    np.testing.assert_allclose(model.logits([*IMAGES]), model.logits(IMAGES), atol=1e-5)
    assert model.predict([]).shape == model.predict(IMAGES[:0]).shape == (0, 10)


@pytest.mark.parametrize("name", ["basic", "fast-resnet10-separable"])
def test_the_last_layer_maps_the_features_to_the_logits(name: str) -> None:
    model = cifar_jax.load(name)
    assert isinstance(model, TrainedNetwork)
    params = model.variables["params"]
    layer = params["fc" if "fc" in params else "fc3"]
    features = model.features(IMAGES)
    assert features.dtype == np.float32
    assert features.shape == (5, len(layer["kernel"]))
    logits = features @ layer["kernel"] + layer["bias"]
    np.testing.assert_allclose(logits, model.logits(IMAGES), atol=1e-4)
    assert model.features(IMAGES[:0]).shape == (0, len(layer["kernel"]))


class Custom(nn.Module):
    num_classes: int = 10
    head: str = "dense"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = nn.relu(nn.Conv(8, (8, 8), strides=8)(x))
        if self.head == "conv":
            return nn.Conv(self.num_classes, (1, 1))(x).mean((1, 2))
        layer = {"dense": nn.Dense, "remat": nn.remat(nn.Dense)}.get(self.head, nn.Dense)
        if self.head == "pooled":
            return layer(self.num_classes)(x).mean((1, 2))
        return 2 * layer(self.num_classes)(x.mean((1, 2)))


@pytest.mark.parametrize("head", ["dense", "conv", "pooled", "remat"])
def test_a_custom_network_has_features_or_is_refused(basic: Path, head: str) -> None:
    custom = models.CustomModel(Custom(head=head), "mine")
    named = {"model": NetworkCard(name="mine", num_classes=10)}
    card = cifar_jax.load(basic).card.model_copy(update=named)
    zeros = np.zeros((1, 32, 32, 3), np.float32)
    variables = jax.jit(Custom(head=head).init)(jax.random.key(0), zeros)
    model = TrainedNetwork(card, {"batch_stats": {}} | variables, "the run", custom)
    if head != "dense":
        with pytest.raises(UserError, match="mine has no features, because its last layer is not"):
            model.features(IMAGES)
        return
    (layer,) = (p for name, p in variables["params"].items() if "Dense" in name)
    logits = 2 * (model.features(IMAGES) @ layer["kernel"] + layer["bias"])
    np.testing.assert_allclose(logits, model.logits(IMAGES), atol=1e-5)


def test_the_public_names_exist() -> None:
    assert dir(cifar_jax) == sorted(cifar_jax.__all__)
    assert all(getattr(cifar_jax, name) for name in cifar_jax.__all__)
    assert cifar_jax.UserError is UserError
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert cifar_jax.__version__ == pyproject["project"]["version"]


def test_importing_the_package_loads_no_heavy_module() -> None:
    code = "import sys, cifar_jax; print([m for m in ('jax', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_load_prints_nothing(basic: Path) -> None:
    code = f"import cifar_jax; cifar_jax.load({str(basic)!r})"
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format 2"),
        ({"classes": ["a"]}, "1 classes"),
        ({"std": [1, 0, 1]}, "std"),
        ({"mean": [float("nan"), 0.5, 0.5]}, "mean"),
        ({"input_shape": [28, 28, 1]}, r"needs images of shape \[28, 28, 1\]"),
        ({"model": {"name": "net", "num_classes": 10}}, "the weights in"),
        ({"model": {"name": "nett", "num_classes": 10}}, "did you mean net"),
        ({"model": {"name": "vit", "num_classes": 10}}, "pass it in Python: model="),
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


def test_a_finished_run_without_checkpoints_is_refused(
    basic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(basic, run, ignore=shutil.ignore_patterns("checkpoints"))
    monkeypatch.setattr("cifar_jax.runs.folder.RunFolder.result", lambda folder: "finished")
    with pytest.raises(UserError, match="no checkpoint that can be read"):
        cifar_jax.load(run)


def test_other_files_and_images_are_refused_in_one_line(basic: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    shutil.copytree(basic, tmp_path / "bare", ignore=shutil.ignore_patterns("checkpoints"))
    damaged = shutil.copytree(basic, tmp_path / "damaged")
    for array in (damaged / "checkpoints").glob("*/state/d/*"):
        array.write_bytes(b"")
    for name, message in (
        ("nowhere", "nowhere does not exist. Name a run folder"),
        ("empty", "is .* a run folder"),
        ("notes.txt", "cannot be read: it is damaged, or it is not a safetensors"),
        ("bare", "no checkpoint yet: train the run first"),
        (
            "damaged",
            r"is damaged: .*Restore it from a backup, or train the run again with --fresh\.",
        ),
    ):
        with pytest.raises(UserError, match=message) as error:
            cifar_jax.load(tmp_path / name)
        assert "\n" not in str(error.value)
    model = cifar_jax.load(basic)
    gray = IMAGES[:, :, :, 0]
    for images in (gray, IMAGES.astype(np.float32), IMAGES[:, :28], [IMAGES], [gray[0]]):
        with pytest.raises(UserError, match="must be uint8"):
            model.predict(images)
    for images in (3, [None]):
        with pytest.raises(UserError, match="must be a path, a Pillow image or an array"):
            model.predict(images)
    Image.fromarray(np.tile(IMAGES[0], (9, 9, 1))).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    half = content[: len(content) // 2]
    with pytest.raises(UserError, match="image 0 is a damaged image"):
        model.predict(Image.open(io.BytesIO(half)))
