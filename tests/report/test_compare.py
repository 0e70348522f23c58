import json
from pathlib import Path

import numpy as np
import pytest
from run_folders import MakeRun, change
from scipy import stats

from cifar_jax import cli
from cifar_jax.errors import UserError
from cifar_jax.report import compare


def make_pairs(make_run: MakeRun, a: list[float], b: list[float]) -> None:
    for seed, accuracy in enumerate(a):
        make_run("basic", seed, test=accuracy)
    for seed, accuracy in enumerate(b):
        make_run("net", seed, test=accuracy)


def run(tmp_path: Path, *words: str) -> int:
    return cli.run(["compare", *words, "--runs", str(tmp_path / "runs")])


def test_sign_flip_test_equals_the_permutation_test_of_scipy() -> None:
    rng = np.random.default_rng(0)
    for count in (2, 6, 9):
        values = rng.normal(0.5, 1, count)
        expected = stats.permutation_test(
            (values,), np.mean, permutation_type="samples", n_resamples=np.inf
        )
        assert compare.sign_flip_p_value(list(values)) == pytest.approx(expected.pvalue)
    assert compare.sign_flip_p_value([1.0] * 6) == 2 / 64
    assert compare.sign_flip_p_value([1.0] * 20) == pytest.approx(2 / 2**20, abs=1e-4)


def test_interval_contains_the_true_difference_in_most_samples() -> None:
    rng = np.random.default_rng(0)
    intervals = [compare.bootstrap_interval(list(rng.normal(2, 1, 20))) for _ in range(40)]
    covered = sum(low < 2 < high for low, high in intervals)
    assert 33 <= covered < 40
    assert compare.bootstrap_interval([0.5, 0.5]) == (0.5, 0.5)


def test_spread_is_divided_into_test_set_and_training() -> None:
    """Simulated networks with known accuracies classify each image at random."""
    rng = np.random.default_rng(0)
    seeds, images, training = 4000, 400, 0.03
    accuracy = 0.7 + training * rng.choice((-1, 1), size=(seeds, 1))
    spread = compare.spread(rng.random((seeds, images)) < accuracy)
    assert spread.training == pytest.approx(100 * training, rel=0.05)
    assert spread.test_set == pytest.approx(100 * (0.7 * 0.3 / images) ** 0.5, rel=0.05)
    assert spread.total**2 == pytest.approx(spread.training**2 + spread.test_set**2, rel=0.01)


def test_holm_correction() -> None:
    p_values = {"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.9}
    corrected = compare.holm(p_values)
    assert list(corrected) == list(p_values)
    assert corrected == pytest.approx({"a": 0.09, "b": 0.04, "c": 0.09, "d": 0.9})


def test_seeds_are_paired(make_run: MakeRun, tmp_path: Path, capsys) -> None:
    make_pairs(make_run, [60, 61, 62, 63, 64, 65, 66], [61, 63, 64, 64, 66, 66])
    assert run(tmp_path, "basic", "net", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["seeds"] == [0, 1, 2, 3, 4, 5]
    assert result["difference"] == pytest.approx(1.5)
    assert 1 < result["low"] < 1.5 < result["high"] < 2
    assert result["p_value"] == 2 / 64
    assert result["verdict"].startswith("B is more accurate")


def test_test_set_error_is_the_standard_error_of_the_paired_difference() -> None:
    """Only B is right for 150 of 10,000 images. A and B agree on all other images."""
    a = np.arange(10_000)[None] < 6000
    b = np.arange(10_000)[None] < 6150
    expected = 100 * (0.015 * 0.985 / 10_000) ** 0.5
    assert compare.test_set_error(a, b) == pytest.approx(expected, rel=1e-3)
    assert compare.test_set_error(a, None) is None


def test_few_seeds_have_no_verdict(make_run: MakeRun, tmp_path: Path, capsys) -> None:
    make_pairs(make_run, [60, 61, 62], [70, 71, 72.5])
    assert run(tmp_path, "basic", "net") == 0
    out = capsys.readouterr().out
    assert "No verdict: 3 paired seeds cannot reach p < 0.05" in out
    assert "+10.17 points" in out
    assert run(tmp_path, "basic", "net", "--validation") == 0
    assert "Validation accuracy" in capsys.readouterr().out


def test_pairs_that_cannot_be_compared_are_refused(
    make_run: MakeRun, tmp_path: Path, capsys
) -> None:
    make_pairs(make_run, [60], [61, 62])
    make_run("net-bn-gap", 5)
    make_run("resnet10", 0, data_content="other")
    make_run("basic", 3, overrides={"epochs": 7}, folder="basic-7/seed3")
    for a, b, message in (
        ("basic", "net", "have only seed 0 in common"),
        ("basic", "net-bn-gap", "no seed is finished in both groups"),
        ("basic", "resnet10", "the images of cifar10 at 32 pixels changed between "),
        ("basic", "resnet18-sgd", "no run of resnet18-sgd"),
        ("basic", "nothing", "neither an experiment nor a path"),
        ("basic", str(tmp_path / "runs"), "several settings"),
    ):
        assert run(tmp_path, a, b) == 2
        assert message in capsys.readouterr().err
    group = compare.find_group(str(tmp_path / "runs/basic-7"), tmp_path)
    assert compare.title(group) == "basic epochs=7"
    with pytest.raises(UserError, match="URL"):
        compare.find_group("gs://bucket/runs", tmp_path)


def test_validation_accuracies_on_different_images_are_refused(
    make_run: MakeRun, tmp_path: Path, capsys
) -> None:
    for seed in range(2):
        make_run("basic", seed)
        overrides = {"data.validation": 5000}
        run_folder = make_run("net", seed, overrides=overrides, folder=f"net-5000/seed{seed}")
        card = json.loads((run_folder / "model.json").read_text())
        change(run_folder / "model.json", data=card["data"] | {"validation_images": 5000})
    groups = "basic", str(tmp_path / "runs/net-5000")
    assert run(tmp_path, *groups) == 0
    assert run(tmp_path, *groups, "--validation") == 2
    assert "data.validation is 2000 in " in capsys.readouterr().err


def test_test_images_in_another_order_have_no_standard_error(
    make_run: MakeRun, tmp_path: Path
) -> None:
    first, second = (compare.find_group(str(make_run(name)), tmp_path) for name in ("basic", "net"))
    assert compare.compare(first, second).test_error is not None
    outputs = second.finished[0].outputs
    assert outputs is not None
    with np.load(outputs) as stored:
        arrays = {name: stored[name] for name in stored}
    for name in ("test_logits", "test_labels"):
        arrays[name] = np.roll(arrays[name], 1, axis=0)
    np.savez(outputs, **arrays)
    assert compare.compare(first, second).test_error is None


def test_runs_of_the_users_own_experiment(make_run: MakeRun, tmp_path: Path) -> None:
    for seed in range(2):
        folder = make_run("basic", seed, folder=f"mine/seed{seed}")
        for name in ("config.json", "model.json", "result.json"):
            change(folder / name, experiment="mine")
    group = compare.find_group("mine", tmp_path / "runs")
    assert (group.experiment, len(group.runs)) == ("mine", 2)
    assert compare.find_group(str(tmp_path / "runs/mine"), tmp_path / "missing").runs
    with pytest.raises(UserError, match="there is no path mine, and no folder"):
        compare.find_group("mine", tmp_path / "missing")
