"""Exports give the network's logits for every batch size; damaged files are refused."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import export as jax_export

import cifar_jax
from cifar_jax.errors import UserError
from cifar_jax.inference import exports
from cifar_jax.inference.load import weights
from cifar_jax.inference.model import Classifier, TrainedNetwork

IMAGES = np.random.default_rng(1).integers(0, 256, (8, 32, 32, 3), np.uint8)
BATCH_SIZES = (3, 8)
"""`export` itself compares 5 images and one."""


def network(run: Path) -> TrainedNetwork:
    model = cifar_jax.load(run)
    assert isinstance(model, TrainedNetwork)
    return model


@pytest.mark.parametrize("kind", ["safetensors", "stablehlo"])
def test_an_export_gives_the_networks_logits(inception: Path, tmp_path: Path, kind: str) -> None:
    model = network(inception)
    file = tmp_path / f"model.{kind}"
    assert exports.export(model, kind, file) <= exports.TOLERANCES["float32"]
    loaded = cifar_jax.load(file)
    assert loaded.card.model_copy(update={"weights_sha256": None}) == model.card
    for size in BATCH_SIZES:
        expected = model.logits(IMAGES[:size])
        np.testing.assert_allclose(loaded.function(IMAGES[:size]), expected, atol=1e-5)
        np.testing.assert_allclose(loaded.logits(IMAGES[:size]), expected, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("kind", ["safetensors", "stablehlo"])
def test_an_export_in_bfloat16_gives_float32_logits(
    inception: Path, tmp_path: Path, kind: str
) -> None:
    exact = network(inception)
    card = exact.card.model_copy(update={"precision": "bfloat16"})
    model = TrainedNetwork(card, exact.variables, "the run")
    file = tmp_path / f"model.{kind}"
    assert exports.export(model, kind, file) <= exports.TOLERANCES["bfloat16"]
    assert cifar_jax.load(file).logits(IMAGES).dtype == np.float32
    difference = np.abs(model.logits(IMAGES) - exact.logits(IMAGES)).max()
    assert 0 < difference < 0.1 * np.abs(exact.logits(IMAGES)).max()


def test_a_stablehlo_file_needs_only_jax(basic: Path, tmp_path: Path) -> None:
    model, file = network(basic), tmp_path / "model.stablehlo"
    exports.export(model, "stablehlo", file)
    exported = jax_export.deserialize(bytearray(file.read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    np.testing.assert_allclose(exported.call(IMAGES), model.logits(IMAGES), atol=1e-5)
    with zipfile.ZipFile(file) as archive:
        assert json.loads(archive.read("card.json"))["classes"] == list(model.classes)


@pytest.mark.parametrize("name", ["basic", "inception"])
def test_an_onnx_file_needs_only_onnxruntime(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip("jax2onnx", reason="needs the extra `export`")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    model, file = network(request.getfixturevalue(name)), tmp_path / "model.onnx"
    assert exports.export(model, "onnx", file) <= 1e-4
    session = onnxruntime.InferenceSession(str(file))
    for size in BATCH_SIZES:
        (logits,) = session.run(None, {"images": IMAGES[:size]})
        np.testing.assert_allclose(logits, model.logits(IMAGES[:size]), atol=1e-4)
    card = json.loads(session.get_modelmeta().custom_metadata_map["card"])
    assert card["classes"] == list(model.classes)


def test_attention_can_be_exported(make_run: Callable[..., Path], tmp_path: Path) -> None:
    model = network(make_run(tmp_path / "run", "net-attention"))
    exports.export(model, "stablehlo", tmp_path / "model.stablehlo")


def test_an_existing_file_is_replaced_only_with_force(basic: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_text("precious")
    with pytest.raises(UserError, match="exists"):
        exports.export(network(basic), "safetensors", file)
    assert file.read_text() == "precious"
    exports.export(network(basic), "safetensors", file, force=True)
    np.testing.assert_array_equal(
        weights(file)["params"]["conv1"]["kernel"], weights(basic)["params"]["conv1"]["kernel"]
    )


def only_5_images(right: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    return lambda images: right(images) * (1 if len(images) == 5 else 1.001)


def only_1_image(right: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    return lambda images: right(images) * (1 if len(images) == 1 else 1.001)


@pytest.mark.parametrize("right_for", [only_5_images, only_1_image])
def test_an_export_with_other_logits_is_not_written(
    basic: Path, tmp_path: Path, right_for: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network(basic)
    wrong = Classifier(model.card, right_for(model.apply), "wrong")
    monkeypatch.setattr(exports, "load", lambda *_: wrong)
    with pytest.raises(UserError, match="differ from the network's"):
        exports.export(model, "stablehlo", tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["safetensors", "stablehlo"])
def test_a_damaged_export_is_refused_in_one_line(basic: Path, tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"model.{kind}"
    exports.export(network(basic), kind, file)
    content = file.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    for damaged in (flipped, content[:middle], content[:20], b""):
        file.write_bytes(damaged)
        with pytest.raises(UserError) as error:
            cifar_jax.load(file)
        assert str(file) in str(error.value)
        assert "\n" not in str(error.value)


def test_impossible_exports_are_refused(basic: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown format"):
        exports.export(network(basic), "keras", tmp_path / "model")
    with pytest.raises(UserError, match="is a folder"):
        exports.export(network(basic), "safetensors", tmp_path, force=True)
    file = tmp_path / "model.stablehlo"
    exports.export(network(basic), "stablehlo", file)
    with pytest.raises(UserError, match="has no weights"):
        exports.export(cifar_jax.load(file), "safetensors", tmp_path / "other")
    with pytest.raises(UserError, match="only one set of weights"):
        cifar_jax.load(file, best=True)
    with pytest.raises(UserError, match="no weights to start from"):
        weights(file)
