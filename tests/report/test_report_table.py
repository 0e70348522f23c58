import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from run_folders import MakeRun, change, record

from cifar_jax import report
from cifar_jax.report.curves import curves
from cifar_jax.report.groups import best_paper_experiment
from cifar_jax.report.table import Row, row

GPU = {"platform": "gpu", "kind": "NVIDIA L4", "count": 1}


def rows(root: Path) -> list[Row]:
    return [row(group) for group in report.collect(report.read_runs([root]))]


def machine(**fields: Any) -> dict[str, Any]:
    """Return session fields of an AMD machine. Keyword arguments replace machine fields."""
    return {"machine": {"system": "Linux", "cpu": "AMD EPYC", "cores": 2, "features": []} | fields}


def test_every_experiment_of_the_paper_has_a_row_without_runs() -> None:
    table = [row(group) for group in report.collect([])]
    names = ["basic", "net-attention", "resnet18-adam-lr1e-4", "resnet10-separable"]
    assert [r.experiment for r in table[::3]] == names
    assert {(r.seeds, r.unfinished) for r in table} == {("", ())}
    assert (table[0].parameters, table[0].paper, table[0].measured) == ("62,006", "62.06", "")


def test_seeds_give_mean_and_sample_deviation(make_run: MakeRun, tmp_path: Path) -> None:
    for seed, value in enumerate([62.4, 61.9, 63.1]):
        make_run("basic", seed, test=value, wall_seconds=60.0 * (seed + 100))
    first = rows(tmp_path)[0]
    assert [first.measured, first.seeds, first.difference] == ["62.47 ± 0.60", "(3 seeds)", "+0.41"]
    assert [first.best, first.wall_time, first.epochs] == ["62.72", "1.7 h", "20"]
    assert [first.device, first.commit] == ["AMD EPYC, 2 cores", "0123456"]


def test_times_of_different_machines_are_not_averaged(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("basic", 0, wall_seconds=60.0)
    make_run("basic", 1, wall_seconds=70.0)
    make_run("basic", 2, wall_seconds=900.0, sessions=(machine(cores=1),))
    first = rows(tmp_path)[0]
    assert (first.seconds, first.device) == (65.0, "AMD EPYC, 2 cores / AMD EPYC, 1 core")


def test_a_seed_counts_once(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("basic", 0, test=61.0)
    make_run("basic", 0, test=61.0, folder="copy")
    first = rows(tmp_path)[0]
    assert [first.measured, first.seeds, first.difference] == ["61.00", "", "−1.06"]
    make_run("basic", 0, test=62.0, folder="another machine")
    make_run("basic", 1, test=63.5)
    assert rows(tmp_path)[0].measured == "62.50 ± 1.41"
    assert rows(tmp_path)[0].seeds == "(3 runs of 2 seeds)"


def test_runs_on_other_images_have_their_own_row(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("basic", 0, test=62.0)
    make_run("basic", 1, test=62.2, images="another order")
    make_run("basic", 2, test=26.0, images="5ub5e7", official=False)
    make_run("basic", 3, test=None, images="cafe", official=False)
    first, *_, subset, jpeg = rows(tmp_path)
    assert [first.measured, first.unfinished] == ["62.10 ± 0.14", ()]
    assert [subset.changes, subset.measured] == [("data_sha256=5ub5e7",), "26.00"]
    assert [jpeg.changes, jpeg.measured] == [("data_sha256=cafe",), ""]
    assert subset.paper == subset.difference == ""


def test_another_data_set_names_its_images_only_if_they_differ(
    make_run: MakeRun, tmp_path: Path
) -> None:
    overrides = {"data.dataset": "digits"}
    make_run("basic", 0, overrides=overrides)
    assert rows(tmp_path)[-1].changes == ("data.dataset=digits",)
    make_run("basic", 1, overrides=overrides, images="fewer")
    digests = [r.changes[1] for r in rows(tmp_path)[-2:]]
    assert digests == ["data_sha256=0ff1c1a1", "data_sha256=fewer"]


def test_runs_of_an_external_experiment_are_grouped_by_their_settings(
    make_run: MakeRun, tmp_path: Path
) -> None:
    first = make_run("basic", 0, test=70.0) / "result.json"
    change(first, experiment="mine")
    table = rows(tmp_path)
    assert [r.experiment for r in table[9:]] == ["resnet10-separable", "mine"]
    assert [table[-1].paper, table[-1].difference] == ["62.06", "+7.94"]
    settings = json.loads(first.read_text())["settings"] | {"optimizer.lr": 0.1}
    for seed, value in ((1, 10.0), (2, 12.0)):
        file = make_run("basic", seed, test=value) / "result.json"
        change(file, experiment="mine", settings=settings)
    good, bad = rows(tmp_path)[-2:]
    assert [bad.changes, bad.measured] == [("optimizer.lr=0.1",), "11.00 ± 1.41"]
    assert [good.changes, good.measured] == [("optimizer.lr=0.001",), "70.00"]


def test_runs_with_custom_code_have_their_own_row(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("basic", 0, test=62.0)
    code = {"file": "basic.py", "sha256": "0" * 64}
    change(make_run("basic", 1, test=70.0) / "model.json", code=code)
    for seed in (2, 3):
        folder = make_run("basic", seed, test=80.0)
        for name in ("model.json", "result.json"):
            change(folder / name, experiment="mine")
        change(folder / "model.json", code=code | {"modules": {"helper": str(seed) * 64}})
    first, *_, custom, mine, other = rows(tmp_path)
    assert first.measured == "62.00"
    assert (custom.experiment, custom.measured) == ("basic", "70.00")
    assert custom.changes[0].startswith("code=")
    assert (mine.measured, other.measured) == ("80.00", "80.00")


def test_a_run_and_its_record_count_once(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("basic", test=62.0, epochs=20)
    path = record(folder, tmp_path / "results")
    first = report.collect(report.read_runs([folder, path]))[0]
    assert [run.path for run in first.distinct] == [folder]
    assert len(curves(first, "train_accuracy")) == 1


def test_runs_that_stopped_early_show_their_epochs(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("basic", 0, epochs=12)
    make_run("basic", 1, epochs=15)
    assert rows(tmp_path)[0].epochs == "12–15 of 20"


def test_changed_settings_have_their_own_row(make_run: MakeRun, tmp_path: Path) -> None:
    no_change = {"data.validation": 2000.0, "train.log_every": 7, "train.devices": 4}
    make_run("basic", 0, test=62.0)
    make_run("basic", 1, test=63.0, overrides=no_change)
    for seed, value in enumerate([90.0, 92.0]):
        make_run("basic", seed, test=value, overrides={"epochs": 3}, folder=f"short{seed}")
    first, *_, short = rows(tmp_path)
    assert [first.measured, short.changes] == ["62.50 ± 0.71", ("epochs=3",)]
    assert [short.measured, short.seeds, short.epochs] == ["91.00 ± 1.41", "(2 seeds)", "3"]
    assert short.paper == short.difference == ""


def test_a_changed_experiment_file_makes_earlier_runs_changed(
    make_run: MakeRun, tmp_path: Path
) -> None:
    file = make_run("basic") / "result.json"
    settings = json.loads(file.read_text())["settings"]
    del settings["data.flip"]
    change(file, settings=settings | {"optimizer.lr": 0.5, "train.no_longer_known": 1})
    table = rows(tmp_path)
    assert table[0].measured == ""
    assert table[-1].changes == ("optimizer.lr=0.5", "train.no_longer_known=1")


def test_unfinished_runs_show_their_progress(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("resnet10-plateau", test=None, done=12)
    make_run("net", test=None)
    make_run("fast-net", test=None, done=2)
    make_run("basic", 0, test=62.0)
    make_run("basic", 1, test=None, done=5)
    table = {r.experiment: r for r in rows(tmp_path)}
    plateau = table["resnet10-plateau"]
    assert plateau.unfinished == ("epoch 12 of 135: validation 75.0 %",)
    assert plateau.measured == plateau.difference == plateau.wall_time == ""
    assert table["net"].unfinished == ("epoch 0 of 100",)
    assert table["fast-net"].unfinished == ("epoch 2 of 12: train 68.0 %",)
    assert table["basic"].measured == "62.00"
    assert table["basic"].unfinished == ("epoch 5 of 20: validation 69.0 %",)


def test_a_better_recipe_is_compared_with_the_papers_best(
    make_run: MakeRun, tmp_path: Path
) -> None:
    make_run("fast-basic", 0, test=68.0, parameters=62_006)
    make_run("fast-basic", 1, test=69.0, parameters=62_000)
    make_run("fast-basic", 0, test=50.0, overrides={"epochs": 3}, folder="short")
    table = rows(tmp_path)
    better, short = table[10:]
    assert (better.paper, better.measured, better.difference) == ("62.06", "68.50 ± 0.71", "+6.44")
    assert better.parameters == "62,006 / 62,000 ≠ 62,006"
    assert (short.paper, short.difference, short.changes) == ("", "", ("epochs=3",))
    assert best_paper_experiment("resnet10") == "resnet10-plateau"
    assert best_paper_experiment("unknown") is None


@pytest.mark.parametrize(
    ("session", "device"),
    [
        ({"device": GPU}, "NVIDIA L4"),
        ({"device": GPU | {"kind": "TPU v5 lite", "count": 4}}, "4 × TPU v5 lite"),
        (machine(features=["avx", "avx2"]), "AMD EPYC, 2 cores, AVX2"),
        (machine(features=["avx2", "avx512_bf16"]), "AMD EPYC, 2 cores, AVX-512 BF16"),
        (machine(cpu="Intel(R) Xeon(R) CPU @ 2.20GHz", cores=1), "Intel Xeon, 1 core"),
        (machine(cpu=None, cores=None), "CPU"),
    ],
)
def test_every_sessions_device_and_commit_are_named(
    make_run: MakeRun, tmp_path: Path, session: dict[str, Any], device: str
) -> None:
    make_run("basic", sessions=(session | {"git_commit": "aaaaaaaaa-dirty"}, {}))
    assert rows(tmp_path)[0].device == f"{device} / AMD EPYC, 2 cores"
    assert rows(tmp_path)[0].commit == "aaaaaaa-dirty / 0123456"


def test_the_report_imports_no_jax() -> None:
    code = (
        "import sys, cifar_jax.report as r; r.collect([]);"
        "print({'jax', 'numpy', 'matplotlib', 'rich'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
