"""`evaluate` measures a trained model on the images of its own data set."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from short_runs import files

import cifar_jax
from cifar_jax import cli, data
from cifar_jax.errors import UserError
from cifar_jax.inference import exports
from cifar_jax.inference.evaluate import evaluate
from cifar_jax.runs.folder import RunFolder
from cifar_jax.training.evaluation import TTA, loss_and_accuracy


def change(folder: Path, name: str, **fields: Any) -> None:
    """Change fields of a JSON file."""
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.fixture
def digits_run(make_run: Callable[..., Path], tmp_path: Path) -> Path:
    """A run of `basic` with random weights on digits, 1,137 for training and 300 for validation."""
    digits = data.load("digits")
    folder = make_run(
        tmp_path / "run",
        "basic",
        classes=digits.classes,
        mean=digits.mean,
        std=digits.std,
        tta={"flip": True, "shift": 1},
        data={
            "name": "digits",
            "sha256": digits.fingerprint,
            "content": digits.content,
            "official": False,
            "train_images": 1100,
            "validation_images": 300,
        },
    )
    settings = RunFolder(folder).identity().settings
    change(folder, "config.json", settings=settings | {"data.dataset": "digits"})
    return folder


def test_evaluate_repeats_the_result_of_the_run(finished: Path) -> None:
    result = RunFolder(finished).result()
    assert result
    before = files(finished)
    test = evaluate(finished)
    assert (test.loss, test.accuracy) == (result.test_loss, result.test_accuracy)
    assert test.accuracy_plain == result.test_accuracy_plain
    assert (test.split, test.images, test.epoch, test.step) == ("test", 360, 3, 120)
    best = evaluate(finished, "validation", best=True)
    assert best.epoch == result.best_validation_epoch
    assert (best.accuracy, best.images) == (result.best_validation_accuracy, 144)
    assert evaluate(finished, best=True).accuracy == result.best_validation_test_accuracy
    assert files(finished) == before


def test_the_card_has_the_accuracy_that_evaluate_measures(finished: Path) -> None:
    for best in (False, True):
        card = cifar_jax.load(finished, best=best).card
        assert card.test_accuracy == evaluate(finished, best=best).accuracy


def test_every_split_is_that_of_the_training(digits_run: Path) -> None:
    model, digits = cifar_jax.load(digits_run), data.load("digits")
    for split, (images, labels) in {
        "train": (digits.train.images[:1100], digits.train.labels[:1100]),
        "validation": (digits.train.images[-300:], digits.train.labels[-300:]),
        "test": digits.test,
    }.items():
        result = evaluate(digits_run, split)
        expected = loss_and_accuracy(model.logits(images, TTA(flip=True, shift=1)), labels)
        plain = loss_and_accuracy(model.logits(images), labels)
        assert (result.loss, result.accuracy) == pytest.approx(expected, rel=1e-5)
        assert (result.loss_plain, result.accuracy_plain) == pytest.approx(plain, rel=1e-5)
        assert result.loss != pytest.approx(result.loss_plain, rel=1e-4)


def test_the_command_prints_both_accuracies(
    digits_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["evaluate", str(digits_run), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == evaluate(digits_run)._asdict()
    assert cli.run(["evaluate", str(digits_run)]) == 0
    line = capsys.readouterr().out
    assert "basic seed 0, epoch 2: test accuracy" in line
    assert f"with one view of each image {result['accuracy_plain']:.2f} %" in line


def test_an_export_is_measured_on_its_own_images(digits_run: Path, tmp_path: Path) -> None:
    expected = evaluate(digits_run)
    for kind in ("safetensors", "stablehlo"):
        file = tmp_path / f"model.{kind}"
        exports.export(cifar_jax.load(digits_run), kind, file)
        result = evaluate(file)
        np.testing.assert_allclose(result[6:], expected[6:], rtol=1e-5)
        assert result[:6] == expected[:6]


def test_other_images_are_refused(digits_run: Path, tmp_path: Path) -> None:
    card = RunFolder(digits_run).card()
    assert card
    assert card.data
    for fields, split, message in (
        ({"sha256": "0" * 64}, "validation", "the same images reordered"),
        ({"sha256": "0" * 64, "content": "0" * 64}, "test", "was trained on other images"),
    ):
        change(digits_run, "model.json", data=card.data.model_dump() | fields)
        with pytest.raises(UserError, match=message):
            evaluate(digits_run, split)
    change(digits_run, "model.json", data=card.data.model_dump() | {"sha256": "0" * 64})
    assert evaluate(digits_run).images == 360  # The order of the test images does not matter.
    change(digits_run, "model.json", data=card.data.model_dump() | {"name": "folder:pets"})
    exports.export(cifar_jax.load(digits_run), "safetensors", tmp_path / "pets.safetensors")
    with pytest.raises(UserError, match="does not say where its images are"):
        evaluate(tmp_path / "pets.safetensors")
    change(digits_run, "model.json", classes=[f"kind {i}" for i in range(10)])
    with pytest.raises(UserError, match="other classes than the data set digits"):
        evaluate(digits_run)


def test_a_run_without_validation_images_or_checkpoint_is_refused(digits_run: Path) -> None:
    card = RunFolder(digits_run).card()
    assert card
    assert card.data
    change(digits_run, "model.json", data=card.data.model_dump() | {"validation_images": 0})
    with pytest.raises(UserError, match="has no validation images"):
        evaluate(digits_run, "validation")
    shutil.rmtree(digits_run / "checkpoints")
    before = files(digits_run)
    with pytest.raises(UserError, match="no checkpoint yet"):
        evaluate(digits_run)
    assert files(digits_run) == before
