"""Test that exported models give the network's logits, and that damaged files are refused."""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax import export as jax_export

import cifar_jax
from cifar_jax import cli
from cifar_jax.errors import UserError
from cifar_jax.inference import exports
from cifar_jax.inference.load import pretrained
from cifar_jax.inference.model import Classifier, TrainedNetwork
from cifar_jax.models import CustomModel
from cifar_jax.runs.schemas import NetworkCard

IMAGES = np.random.default_rng(1).integers(0, 256, (8, 32, 32, 3), np.uint8)
BATCH_SIZES = (3, 8)  # `export` itself checks the batch sizes 1 and 5.


def network(run: Path) -> TrainedNetwork:
    model = cifar_jax.load(run)
    assert isinstance(model, TrainedNetwork)
    return model


@pytest.fixture(scope="module")
def exported(basic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with two exports of the same run: model.safetensors and model.stablehlo."""
    folder = tmp_path_factory.mktemp("exports")
    for kind in ("safetensors", "stablehlo"):
        difference = exports.export(network(basic), kind, folder / f"model.{kind}")
        assert difference <= exports.TOLERANCES["float32"]
    assert len(list(folder.iterdir())) == 2
    return folder


@pytest.mark.parametrize("kind", ["safetensors", "stablehlo"])
def test_an_export_gives_the_networks_logits(basic: Path, exported: Path, kind: str) -> None:
    model = network(basic)
    loaded = cifar_jax.load(exported / f"model.{kind}")
    assert loaded.card.model_copy(update={"weights_sha256": None}) == model.card
    np.testing.assert_allclose(loaded.logits(IMAGES), model.logits(IMAGES), atol=1e-5)


@pytest.mark.parametrize("name", ["net-inception", "net-attention"])
def test_a_stablehlo_file_needs_only_jax(
    name: str, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    model, file = network(make_run(tmp_path / "run", name)), tmp_path / "model.stablehlo"
    exports.export(model, "stablehlo", file)
    program = jax_export.deserialize(bytearray(file.read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    for size in BATCH_SIZES:
        logits = program.call(IMAGES[:size])
        np.testing.assert_allclose(logits, model.logits(IMAGES)[:size], atol=1e-5)
    with zipfile.ZipFile(file) as archive:
        assert json.loads(archive.read("card.json"))["classes"] == list(model.classes)


@pytest.mark.parametrize("name", ["basic", "net-inception"])
def test_an_onnx_file_needs_only_onnxruntime(
    name: str, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("jax2onnx", reason="needs the extra `export`")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    model, file = network(make_run(tmp_path / "run", name)), tmp_path / "model.onnx"
    assert exports.export(model, "onnx", file) <= 1e-4
    session = onnxruntime.InferenceSession(str(file))
    for size in BATCH_SIZES:
        (logits,) = session.run(None, {"images": IMAGES[:size]})
        np.testing.assert_allclose(logits, model.logits(IMAGES)[:size], atol=1e-4)
    card = json.loads(session.get_modelmeta().custom_metadata_map["card"])
    assert card["classes"] == list(model.classes)


class Attention(nn.Module):
    num_classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = nn.max_pool(nn.Conv(8, (4, 4), strides=4)(x), window_shape=(2, 2), strides=(2, 2))
        x = nn.LayerNorm()(x.reshape(x.shape[0], 16, 8))
        return nn.Dense(self.num_classes)((x + nn.MultiHeadAttention(num_heads=2)(x)).mean(1))


def test_an_onnx_file_of_a_custom_model_passes_the_full_check(basic: Path, tmp_path: Path) -> None:
    pytest.importorskip("jax2onnx", reason="needs the extra `export`")
    onnx: Any = pytest.importorskip("onnx")
    custom = CustomModel(Attention, "attention")
    variables = jax.jit(Attention().init)(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    named = {"model": NetworkCard(name="attention", num_classes=10)}
    card = network(basic).card.model_copy(update=named)
    model = TrainedNetwork(card, variables, "the run", custom)
    assert exports.export(model, "onnx", tmp_path / "model.onnx") <= 1e-4
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"), full_check=True)


def test_a_program_that_this_jax_cannot_read_is_refused_in_one_line(
    exported: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with zipfile.ZipFile(exported / "model.stablehlo") as archive:
        start = archive.getinfo("card.json").header_offset
        card = json.loads(archive.read("card.json"))
    program = (exported / "model.stablehlo").read_bytes()[:start]
    # Simulate a later version of StableHLO with a new operation.
    newer = program.replace(b"convert_v1", b"convert_v9")
    assert newer != program
    content = io.BytesIO(newer)
    with zipfile.ZipFile(content, "a") as archive:
        card["weights_sha256"] = hashlib.sha256(newer).hexdigest()
        archive.writestr("card.json", json.dumps(card))
    file = tmp_path / "newer.stablehlo"
    file.write_bytes(content.getvalue())
    assert cli.run(["predict", str(file), "image.png"]) == 2
    # If JAX is already in use, `predict` prints an additional line.
    *_, error = lines = capfd.readouterr().err.splitlines()
    assert "cannot read the program in" in error
    assert error.endswith("upgrade JAX, or export the model with this version")
    assert all(line.startswith("cifar-jax: ") for line in lines)  # XLA prints nothing.


def test_an_export_in_bfloat16_gives_float32_logits(basic: Path, tmp_path: Path) -> None:
    exact = network(basic)
    card = exact.card.model_copy(update={"precision": "bfloat16"})
    model, file = TrainedNetwork(card, exact.variables, "the run"), tmp_path / "model.stablehlo"
    assert exports.export(model, "stablehlo", file) <= exports.TOLERANCES["bfloat16"]
    assert cifar_jax.load(file).logits(IMAGES).dtype == np.float32
    difference = np.abs(model.logits(IMAGES) - exact.logits(IMAGES)).max()
    assert 0 < difference < 0.1 * np.abs(exact.logits(IMAGES)).max()


def test_the_command_says_which_accuracy_the_file_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "model.safetensors"
    words = ["export", "fast-net-bn-gap", "--to", "safetensors", "--output", str(file)]
    assert cli.run(words) == 0
    out = capsys.readouterr().out
    assert "89.18 % with one view of each image, which is what the file computes; 90.39 %" in out


def test_an_existing_file_is_replaced_only_with_force(basic: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_text("precious")
    with pytest.raises(UserError, match="absent does not exist: create it"):
        exports.export(network(basic), "safetensors", tmp_path / "absent" / file.name)
    with pytest.raises(UserError, match="exists"):
        exports.export(network(basic), "safetensors", file)
    assert file.read_text() == "precious"
    exports.export(network(basic), "safetensors", file, force=True)
    jax.tree.map(
        np.testing.assert_array_equal, pretrained(file).variables, pretrained(basic).variables
    )


@pytest.mark.parametrize(("wrong_size", "factor"), [(1, 1.001), (5, 1.001), (5, np.nan)])
def test_an_export_that_is_wrong_for_one_batch_size_is_not_written(
    basic: Path, tmp_path: Path, wrong_size: int, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network(basic)

    def function(images: jax.Array) -> jax.Array:
        return model.apply(images) * (factor if len(images) == wrong_size else 1)

    monkeypatch.setattr(exports, "load", lambda *_: Classifier(model.card, function, "wrong"))
    with pytest.raises(UserError, match="differ from the network's"):
        exports.export(model, "safetensors", tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["safetensors", "stablehlo"])
def test_a_damaged_export_is_refused_in_one_line(exported: Path, tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"model.{kind}"
    content = (exported / file.name).read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    for damaged in (flipped, content[:middle], content[:20], b""):
        file.write_bytes(damaged)
        with pytest.raises(UserError) as error:
            cifar_jax.load(file)
        assert str(file) in str(error.value)
        assert "\n" not in str(error.value)


def test_impossible_exports_are_refused(basic: Path, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown format"):
        exports.export(network(basic), "keras", tmp_path / "model")
    custom = CustomModel(Attention, "attention")
    variables = jax.jit(Attention().init)(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    named = {"model": NetworkCard(name="attention", num_classes=10)}
    card = network(basic).card.model_copy(update=named)
    with pytest.raises(UserError, match="a custom network has no names in PyTorch"):
        exports.export(TrainedNetwork(card, variables, "a run", custom), "torch", tmp_path / "a")
    with pytest.raises(UserError, match="is a folder"):
        exports.export(network(basic), "safetensors", tmp_path, force=True)
    diverged = jax.tree.map(lambda array: array * np.nan, dict(network(basic).variables))
    model = TrainedNetwork(network(basic).card, diverged, "a run")
    with pytest.raises(UserError, match="weights that are NaN"):
        exports.export(model, "safetensors", tmp_path / "a")
    file = exported / "model.stablehlo"
    with pytest.raises(UserError, match="StableHLO file cannot be exported again"):
        exports.export(cifar_jax.load(file), "safetensors", tmp_path / "other")
    with pytest.raises(UserError, match="whose weights cannot be read"):
        pretrained(file)
