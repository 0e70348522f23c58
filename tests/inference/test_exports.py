"""Exports answer as the run does, for any batch; damaged ones are refused, none is half-made."""

import json
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from jax import export as jax_export
from safetensors.numpy import save_file

import cifar_jax
from cifar_jax.errors import UserError
from cifar_jax.inference import exports
from cifar_jax.inference.model import TrainedNetwork

IMAGES = np.random.default_rng(1).integers(0, 256, (7, 32, 32, 3), np.uint8)


def network(run: Path) -> TrainedNetwork:
    model = cifar_jax.load(run)
    assert isinstance(model, TrainedNetwork)
    return model


@pytest.mark.parametrize("kind", ["safetensors", "stablehlo"])
def test_an_export_answers_as_the_run_does(inception: Path, tmp_path: Path, kind: str) -> None:
    model = network(inception)
    file = tmp_path / f"model.{kind}"
    assert exports.export(model, kind, file) <= exports.TOLERANCES["float32"]
    again = cifar_jax.load(file)
    assert again.classes == model.classes
    assert dict(model.card).items() <= dict(again.card).items()
    for batch in (IMAGES, IMAGES[:1]):
        np.testing.assert_allclose(again.logits(batch), model.logits(batch), atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("kind", ["safetensors", "stablehlo"])
def test_an_export_of_bfloat16_answers_so(inception: Path, tmp_path: Path, kind: str) -> None:
    card = dict(network(inception).card) | {"precision": "bfloat16"}
    model = TrainedNetwork(card, network(inception).variables, "the run")
    file = tmp_path / f"model.{kind}"
    difference = exports.export(model, kind, file)
    assert difference <= exports.TOLERANCES["bfloat16"]
    assert cifar_jax.load(file).logits(IMAGES).dtype == np.float32
    exact = network(inception).logits(IMAGES)
    assert 0 < np.abs(model.logits(IMAGES) - exact).max() < 0.1 * np.abs(exact).max()


def test_a_stablehlo_file_needs_jax_alone(basic: Path, tmp_path: Path) -> None:
    model, file = network(basic), tmp_path / "model.stablehlo"
    exports.export(model, "stablehlo", file)
    exported = jax_export.deserialize(bytearray(file.read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    np.testing.assert_allclose(exported.call(IMAGES), model.logits(IMAGES), atol=1e-5)
    with zipfile.ZipFile(file) as archive:
        assert json.loads(archive.read("card.json"))["classes"] == list(model.classes)


@pytest.mark.parametrize("name", ["basic", "inception"])
def test_an_onnx_file_needs_onnxruntime_alone(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip("jax2onnx", reason="needs the extra `export`")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    model, file = network(request.getfixturevalue(name)), tmp_path / "model.onnx"
    assert exports.export(model, "onnx", file) <= 1e-4
    session = onnxruntime.InferenceSession(str(file))
    for batch in (IMAGES, IMAGES[:1]):
        (logits,) = session.run(None, {"images": batch})
        np.testing.assert_allclose(logits, model.logits(batch), atol=1e-4)
    card = json.loads(session.get_modelmeta().custom_metadata_map["card"])
    assert card["classes"] == list(model.classes)


def test_attention_is_exported_too(make_run: Any, tmp_path: Path) -> None:
    model = network(make_run(tmp_path / "run", "net-attention"))
    exports.export(model, "stablehlo", tmp_path / "model.stablehlo")


def test_a_file_that_is_there_is_not_replaced_unasked(basic: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_text("precious")
    with pytest.raises(UserError, match="exists"):
        exports.export(network(basic), "safetensors", file)
    assert file.read_text() == "precious"
    exports.export(network(basic), "safetensors", file, force=True)
    cifar_jax.load(file)


@pytest.mark.parametrize("kind", ["safetensors", "stablehlo"])
def test_an_export_that_disagrees_is_not_written(
    basic: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = network(basic).logits
    wrong = SimpleNamespace(logits=lambda images: right(images) * np.float32(1.001))
    monkeypatch.setattr(exports, f"_from_{kind}", lambda *_: wrong)
    with pytest.raises(UserError, match="differ from the run's"):
        exports.export(network(basic), kind, tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["safetensors", "stablehlo"])
def test_a_damaged_export_is_told_in_one_line(basic: Path, tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"model.{kind}"
    exports.export(network(basic), kind, file)
    whole = file.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for content in (flipped, whole[:middle], whole[:20], b""):
        file.write_bytes(content)
        with pytest.raises(UserError) as error:
            cifar_jax.load(file)
        assert str(file) in str(error.value)
        assert "\n" not in str(error.value)


def test_a_card_that_is_nested_too_deeply_is_told_in_one_line(tmp_path: Path) -> None:
    deep = "[" * 100_000
    tensors = tmp_path / "model.safetensors"
    save_file({"params/w": np.zeros(1, np.float32)}, tensors, {"card": deep})
    program = tmp_path / "model.stablehlo"
    with zipfile.ZipFile(program, "w") as archive:
        archive.writestr("card.json", deep)
    for file in (tensors, program):
        with pytest.raises(UserError, match=r"is no (safetensors|StableHLO) file"):
            cifar_jax.load(file)


def test_bad_requests(basic: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown format"):
        exports.export(network(basic), "keras", tmp_path / "model")
    with pytest.raises(UserError, match="is a folder: name a file in it"):
        exports.export(network(basic), "safetensors", tmp_path, force=True)
    with pytest.raises(UserError, match="cannot be written"):
        exports.export(network(basic), "safetensors", tmp_path / "no" / "folder")
    file = tmp_path / "model.stablehlo"
    exports.export(network(basic), "stablehlo", file)
    with pytest.raises(UserError, match="has the weights"):
        exports.export(cifar_jax.load(file), "safetensors", tmp_path / "other")
    with pytest.raises(UserError, match="one set of weights"):
        cifar_jax.load(file, best=True)
