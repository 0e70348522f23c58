"""A run measured again from its folder."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cifar_jax.training.fit import Run
from short_runs import files

from cifar_jax import data
from cifar_jax.config import Config
from cifar_jax.errors import UserError
from cifar_jax.inference import exports
from cifar_jax.inference.evaluate import evaluate, logits
from cifar_jax.inference.model import load_run
from cifar_jax.runs import folder as workdir
from cifar_jax.training.evaluation import TTA, measure


def test_evaluate_repeats_what_the_result_says(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    before = files(finished)
    test = evaluate(finished)
    assert (test["loss"], test["accuracy"]) == (result["test_loss"], result["test_accuracy"])
    assert (test["split"], test["images"], test["epoch"], test["step"]) == ("test", 360, 3, 120)
    best = evaluate(finished, "validation", best=True)
    assert best["epoch"] == result["best_validation_epoch"]
    assert best["accuracy"] == result["best_validation_accuracy"]
    assert best["images"] == 144
    assert files(finished) == before


def test_images_are_looked_at_as_the_run_looked_at_them(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    card = json.loads((folder / "model.json").read_text())
    card["tta"] = {"flip": True, "shift": 1, "least_confident": None}
    (folder / "model.json").write_text(json.dumps(card))
    views = TTA(flip=True, shift=1)
    images, labels = data.load("digits").test
    found = logits(folder).logits
    np.testing.assert_allclose(found, load_run(finished).logits(images, views), atol=1e-4)
    measured = evaluate(folder)
    assert measured["loss"] == measure(found, labels)["loss"]
    assert measured["loss"] != evaluate(finished)["loss"]


def test_an_export_is_held_to_its_images(finished: Path, tmp_path: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    folder = shutil.copytree(finished, tmp_path / "run")
    card = json.loads((folder / "model.json").read_text())
    for name, changed, told in (
        ("same", {}, None),
        ("unknown", {"content": None}, None),
        ("other", {"content": "0" * 64}, "was trained on other images of digits"),
        ("own", {"name": "folder:pets"}, "does not know where its images are: evaluate its run"),
    ):
        about = {k: v for k, v in (card["data"] | changed).items() if v is not None}
        (folder / "model.json").write_text(json.dumps(card | {"data": about}))
        file = tmp_path / f"{name}.safetensors"
        exports.export(load_run(folder), "safetensors", file)
        if told:
            with pytest.raises(UserError, match=told):
                evaluate(file)
        else:
            assert evaluate(file)["accuracy"] == result["test_accuracy"]


def test_evaluate_takes_a_run_of_more_devices_than_there_are(
    finished: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    identity = json.loads((folder / "config.json").read_text())
    identity["config"]["train.devices"] = 99
    (folder / "config.json").write_text(json.dumps(identity))
    result = json.loads((folder / "result.json").read_text())
    assert evaluate(folder)["accuracy"] == result["test_accuracy"]


def test_evaluate_needs_a_run_with_a_checkpoint(config: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run or export"):
        evaluate(tmp_path / "absent")
    with pytest.raises(UserError, match=r"no .*config\.json"):
        evaluate(tmp_path)
    identity = Run("test", config, 0, tmp_path).identity()
    with workdir.open_workdir(tmp_path, identity, fresh=False):
        pass
    before = files(tmp_path)
    with pytest.raises(UserError, match="no checkpoint yet"):
        evaluate(tmp_path)
    assert files(tmp_path) == before
