"""Test training, evaluation and export with images of another size than 32×32 pixels."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

import cifar_jax
from cifar_jax import models
from cifar_jax.config import Config, Data, Model, Optimizer, Phase, TTAConfig
from cifar_jax.inference import exports
from cifar_jax.inference.evaluate import evaluate
from cifar_jax.training.evaluation import scale_count

Call = Callable[..., tuple[int, str, str]]
SIZE = 40


class Pooled(nn.Module):
    """Network with a convolution, global average pooling and a dense layer."""

    num_classes: int = 10
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = nn.relu(nn.Conv(8, (4, 4), 4, name="conv1")(x)).mean((1, 2))
        return nn.Dense(self.num_classes, name="fc")(x)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Folder of wide images in two classes, which differ only near the left edge."""
    random = np.random.default_rng(0)
    for name, level in (("cat", 0), ("dog", 255)):
        folder = tmp_path / "pets" / name
        folder.mkdir(parents=True)
        for number in range(20):
            pixels = random.integers(0, 256, (50, 100, 3))
            pixels[:, :20] = level
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "pets"


def test_a_run_on_whole_images_of_another_size(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    monkeypatch.setitem(models.MODELS, "pooled", Pooled)
    config = Config(
        model=Model(name="pooled"),
        epochs=4,
        batch_size=8,
        optimizer=Optimizer(name="adam", lr=0.02),
        phases=(Phase(until=0.5, image_size=16),),
        data=Data(
            dataset=f"folder:{pets}",
            image_size=SIZE,
            center_crop=False,
            validation=0,
            crop_padding=18,
            cutout=2,
        ),
        tta=TTAConfig(shift=2),
    )
    run = tmp_path / "run"
    result = cifar_jax.train(config, run)
    log = (run / "log.txt").read_text()
    assert f"images of {SIZE}×{SIZE} pixels" in log
    assert f"image size: 16 pixels in epochs 1–2, {SIZE} pixels in epochs 3–4" in log

    model = cifar_jax.load(run)
    assert model.card.layers[0].output_size == f"{SIZE}x{SIZE}"
    files = sorted(pets.rglob("*.png"))
    squeezed = np.stack(
        [
            np.asarray(Image.open(file).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
            for file in files
        ]
    )
    logits = model.logits(files)
    np.testing.assert_array_equal(logits, model.logits(squeezed))
    labels = [model.classes.index(file.parent.name) for file in files]
    assert (logits.argmax(-1) == labels).all(), "only the edges show the class"
    with pytest.raises(
        cifar_jax.errors.UserError, match=rf"uint8 \[N, {SIZE}, {SIZE}, 3\], .* not uint8"
    ):
        model.logits(squeezed[:, :32, :32])

    for kind in ("safetensors", "stablehlo"):
        path = tmp_path / f"model.{kind}"
        exports.export(model, kind, path)
        np.testing.assert_allclose(cifar_jax.load(path).logits(files), logits, atol=1e-4)
        measured = evaluate(path, dataset_name=f"folder:{pets}")
        assert measured.scores.accuracy == result.test_accuracy
    _, out, _ = call("predict", run, files[0], "--json", "--top", "1")
    (answer,) = json.loads(out[out.rindex("\n[\n") :])[0]["top"]
    assert answer["probability"] == pytest.approx(float(model.predict(files[:1]).max()))


def test_batches_of_large_images_have_as_many_pixels() -> None:
    assert [scale_count(500, size) for size in (16, 32, 64, 224, 1024)] == [500, 500, 125, 10, 1]


class Flat(nn.Module):
    """Network with one dense layer, whose inputs are all pixels."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        return nn.Dense(self.num_classes, name="fc")(x.reshape(x.shape[0], -1))


def test_variables_of_a_custom_network_fit_the_size() -> None:
    network = models.CustomModel(Flat, image_size=12).build("flat")
    variables = models.init_variables(network, jax.random.key(0), 12)
    logits: Any = network.apply(variables, jnp.zeros((2, 12, 12, 3)), train=False)
    assert logits.shape == (2, 10)
