"""Test `evaluate`, which measures the loss and accuracy of a trained model."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from short_runs import files

import cifar_jax
from cifar_jax import data
from cifar_jax.errors import UserError
from cifar_jax.inference import exports
from cifar_jax.inference.evaluate import evaluate, match_labels
from cifar_jax.inference.scores import score
from cifar_jax.logits import loss_and_accuracy
from cifar_jax.runs.folder import RunFolder
from cifar_jax.training.evaluation import TTA, Outputs

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
    assert (test.scores.loss, test.scores.accuracy) == (result.test_loss, result.test_accuracy)
    assert test.scores.accuracy_plain == result.test_accuracy_plain
    assert (test.split, test.images, test.epoch, test.step) == ("test", 360, 3, 120)
    best = evaluate(finished, "validation", best=True)
    assert best.epoch == result.best_validation_epoch
    assert (best.scores.accuracy, best.images) == (result.best_validation_accuracy, 144)
    for best in (False, True):
        card = cifar_jax.load(finished, best=best).card
        assert card.test_accuracy == evaluate(finished, best=best).scores.accuracy
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
        scores = result.scores
        assert scores[:4] == pytest.approx(tuple(expected), rel=1e-5)
        assert scores.loss != pytest.approx(scores.loss_plain, rel=1e-4)


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
        result = json.loads(out)
        assert [result[name] for name in expected._fields[:-1]] == list(expected[:-1])
        for name in ("loss", "accuracy", "loss_plain", "accuracy_plain", "macro_f1"):
            assert result[name] == pytest.approx(getattr(expected.scores, name), rel=1e-5)
    _, line, _ = call("evaluate", run)
    assert "basic seed 0, epoch 2: test accuracy" in line
    assert f"without test-time augmentation {expected.scores.accuracy_plain:.2f} %" in line


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


def test_scores_equal_a_direct_computation() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, 200)  # No image has the class 6.
    logits = rng.normal(size=(200, 7)) + 2 * np.eye(7)[labels]
    scores = score(Outputs(logits, logits), labels, tuple("abcdefg"))
    answers = logits.argmax(-1)
    recalls, f1s = [], []
    for label in range(6):
        right = np.sum((answers == label) & (labels == label))
        recalls.append(right / np.sum(labels == label))
        precision = right / np.sum(answers == label)
        f1s.append(2 / (1 / recalls[-1] + 1 / precision))
    assert scores.balanced_accuracy == pytest.approx(100 * np.mean(recalls))
    assert scores.macro_f1 == pytest.approx(100 * np.mean(f1s))
    among = [label in np.argsort(row)[-5:] for row, label in zip(logits, labels, strict=True)]
    assert scores.top5_accuracy == pytest.approx(100 * np.mean(among))
    confidence = np.exp(logits).max(-1) / np.exp(logits).sum(-1)
    error = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence >= low) & (confidence < low + 1 / 15)
        if inside.any():
            gap = (answers == labels)[inside].mean() - confidence[inside].mean()
            error += 100 * inside.mean() * abs(gap)
    assert scores.calibration_error == pytest.approx(error)
    assert scores.classes[6].accuracy is None


def test_classes_are_matched_by_name_or_by_index() -> None:
    pixels = np.zeros((2, 32, 32, 3), np.uint8)
    labels = np.array([0, 1], np.int32)
    classes = ("cat", "dog", "fox")
    named = data.Labeled("pets", pixels, labels, ("fox", "cat"))
    matched, notes = match_labels(classes, named)
    assert matched.tolist() == [2, 0]
    assert notes == ("pets has images of 2 of the model's 3 classes: cat, fox",)
    matched, notes = match_labels(classes, named._replace(classes=None))
    assert matched.tolist() == [0, 1]
    assert "label 0 is taken as cat" in notes[0]
    with pytest.raises(UserError, match="pets has classes that the model does not have: bee"):
        match_labels(classes, named._replace(classes=("cat", "bee")))
    with pytest.raises(UserError, match="contain 7, but there are only 3 classes"):
        match_labels(classes, named._replace(classes=None, labels=labels + 6))


def test_corrupted_images_give_the_table_of_a_direct_computation(
    make_digits_run: Callable[..., Path], call: Callable[..., tuple[int, str, str]]
) -> None:
    run, count = make_digits_run(), 40
    rng = np.random.default_rng(0)
    images, labels = (array[:count] for array in DIGITS.test)
    Path("corrupted").mkdir()
    np.save("corrupted/labels.npy", np.tile(labels, 5))
    model, rows = cifar_jax.load(run), {}
    for name in ("fog", "gaussian_noise", "other"):
        levels = [images // (level + 2) + rng.integers(0, 30, images.shape) for level in range(5)]
        parts = [level.astype(np.uint8) for level in levels]
        np.save(f"corrupted/{name}.npy", np.concatenate(parts))
        logits = [model.logits(part, model.tta) for part in parts]
        rows[name] = [100 * float((part.argmax(-1) == labels).mean()) for part in logits]
    code, out, err = call("evaluate", run, "--data", "cifar10-c:corrupted", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert {row["name"]: row["accuracies"] for row in result["corruptions"]} == rows
    benchmark = [rows["gaussian_noise"], rows["fog"]]
    assert result["mean_accuracy"] == pytest.approx(np.mean(benchmark))
    _, out, _ = call("evaluate", run, "--data", "cifar10-c:corrupted")
    assert f"mean accuracy {np.mean(benchmark):.2f} % over 2 corruptions" in out


def test_a_folder_with_some_of_the_classes(
    make_digits_run: Callable[..., Path], call: Callable[..., tuple[int, str, str]]
) -> None:
    run, (images, labels) = make_digits_run(), DIGITS.test
    chosen = np.flatnonzero(labels == 3)
    Path("mine/3").mkdir(parents=True)
    Path("mine/4").mkdir()  # An empty folder is a class without images.
    for index in chosen:
        Image.fromarray(images[index]).save(f"mine/3/{index}.png")
    model = cifar_jax.load(run)
    _, accuracy = loss_and_accuracy(model.logits(images[chosen], model.tta), labels[chosen])
    code, out, err = call("evaluate", run, "--data", "folder:mine", "--json")
    assert code == 0, err
    assert json.loads(out)["accuracy"] == pytest.approx(accuracy)
    assert "has images of 1 of the model's 10 classes: 3" in err
    Path("mine/3").rename("mine/three")
    code, _, err = call("evaluate", run, "--data", "folder:mine")
    assert code == 2
    assert "classes that the model does not have: three" in err
