"""Test `evaluate`, which measures the loss and accuracy of a trained model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from short_runs import files

import cifar_jax
from cifar_jax import data
from cifar_jax.errors import UserError
from cifar_jax.inference import exports
from cifar_jax.inference.evaluate import evaluate
from cifar_jax.logits import loss_and_accuracy
from cifar_jax.runs.folder import RunFolder
from cifar_jax.training.evaluation import TTA

DIGITS = data.load("digits")
DATA = {
    "name": "digits",
    "sha256": DIGITS.fingerprint,
    "content": DIGITS.content,
    "official": False,
    "train_images": 200,
    "validation_images": 60,
}


@pytest.fixture
def make_digits_run(make_run: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a run of `basic` on the data set `digits`.

    The weights are random. The run uses test-time augmentation.
    """

    def make(name: str = "run", **card: object) -> Path:
        fields = {"mean": DIGITS.mean, "std": DIGITS.std, "classes": DIGITS.classes, "data": DATA}
        fields |= {"tta": {"flip": True, "shift": 1}}
        return make_run(tmp_path / name, "basic", "digits", **(fields | card))

    return make


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
    for best in (False, True):
        card = cifar_jax.load(finished, best=best).card
        assert card.test_accuracy == evaluate(finished, best=best).accuracy
    assert files(finished) == before


def test_every_split_equals_the_split_of_the_training_run(
    make_digits_run: Callable[..., Path],
) -> None:
    run = make_digits_run()
    model = cifar_jax.load(run)
    for split, (images, labels) in {
        "train": (DIGITS.train.images[:200], DIGITS.train.labels[:200]),
        "validation": (DIGITS.train.images[-60:], DIGITS.train.labels[-60:]),
        "test": DIGITS.test,
    }.items():
        result = evaluate(run, split)
        outputs = model.outputs(images, TTA(flip=True, shift=1))
        expected = [*loss_and_accuracy(outputs.logits, labels)]
        expected += loss_and_accuracy(outputs.plain, labels)
        assert result[6:] == pytest.approx(tuple(expected), rel=1e-5)
        assert result.loss != pytest.approx(result.loss_plain, rel=1e-4)


def test_the_command_prints_both_accuracies_of_a_run_and_of_its_exports(
    make_digits_run: Callable[..., Path], call: Callable[..., tuple[int, str, str]]
) -> None:
    run = make_digits_run()
    expected = evaluate(run)
    for kind in ("safetensors", "stablehlo"):
        exports.export(cifar_jax.load(run), kind, Path(f"model.{kind}"))
    for path in (run, "model.safetensors", "model.stablehlo"):
        code, out, _ = call("evaluate", path, "--json")
        assert code == 0
        result = tuple(json.loads(out).values())
        assert result[:6] == expected[:6]
        assert result[6:] == pytest.approx(expected[6:], rel=1e-5)
    _, line, _ = call("evaluate", run)
    assert "basic seed 0, epoch 2: test accuracy" in line
    assert f"with one view of each image {expected.accuracy_plain:.2f} %" in line


@pytest.mark.parametrize(
    ("card", "split", "message"),
    [
        (
            {"data": DATA | {"sha256": "0" * 64}},
            "validation",
            "or on the same images in another order",
        ),
        ({"data": DATA | {"sha256": "0" * 64, "content": "0"}}, "test", "trained on other images"),
        (
            {"data": DATA | {"validation_images": 0}},
            "validation",
            "trained without validation images",
        ),
        (
            {"classes": [f"kind {i}" for i in range(10)]},
            "test",
            "cannot be evaluated on digits.* differ",
        ),
    ],
)
def test_other_images_are_refused(
    card: dict, split: str, message: str, make_digits_run: Callable[..., Path]
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(make_digits_run(**card), split)


def test_test_images_in_another_order_are_accepted(make_digits_run: Callable[..., Path]) -> None:
    assert evaluate(make_digits_run(data=DATA | {"sha256": "0" * 64})).images == 360


def test_an_export_does_not_store_the_path_of_an_image_folder(
    make_digits_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = make_digits_run(data=DATA | {"name": "folder:pets"})
    exports.export(cifar_jax.load(run), "safetensors", tmp_path / "pets.safetensors")
    with pytest.raises(UserError, match="does not say where that folder is"):
        evaluate(tmp_path / "pets.safetensors")
