import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from run_folders import COMMIT, MakeRun, change

from cifar_jax import report
from cifar_jax.report.groups import best_paper_experiment
from cifar_jax.report.table import Row, row

PAPER = [
    "basic",
    "net",
    "net-bn-gap",
    "net-attention",
    "resnet18-sgd",
    "resnet18-adam",
    "resnet18-adam-lr1e-4",
    "resnet10",
    "resnet10-plateau",
    "resnet10-separable",
]
GPU = {"platform": "gpu", "kind": "NVIDIA L4", "count": 1}


def rows(root: Path) -> list[Row]:
    return [row(group) for group in report.collect(report.read_runs([root]))]


def machine(**fields: Any) -> dict[str, Any]:
    """Changes to a session."""
    return {"machine": {"system": "Linux", "cpu": "AMD EPYC", "cores": 2, "features": []} | fields}


def test_every_experiment_of_the_paper_has_a_row_without_runs() -> None:
    table = [row(group) for group in report.collect([])]
    assert [r.experiment for r in table] == PAPER
    assert {(r.seeds, r.unfinished) for r in table} == {("", ())}
    assert table[0].parameters == "62,006"
    assert [table[0].paper, table[0].measured, table[0].difference] == ["62.06", "", ""]


def test_seeds_give_mean_and_sample_deviation(make_run: MakeRun, tmp_path: Path) -> None:
    values = [62.4, 61.9, 63.1]
    for seed, value in enumerate(values):
        make_run("basic", seed, test=value, wall_seconds=60.0 * (seed + 100))
    first = rows(tmp_path)[0]
    mean = statistics.fmean(values)
    assert first.measured == f"{mean:.2f} ± {statistics.stdev(values):.2f}" == "62.47 ± 0.60"
    assert first.seeds == "(3 seeds)"
    assert first.difference == f"+{mean - 62.06:.2f}"
    assert first.best == f"{mean + 0.25:.2f}"
    assert first.wall_time == "1.7 h"
    assert first.device == "AMD EPYC, 2 cores"
    assert first.commit == COMMIT[:7]


def test_a_seed_counts_once(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("basic", 0, test=61.0)
    make_run("basic", 0, test=61.0, folder="copy")
    first = rows(tmp_path)[0]
    assert [first.measured, first.seeds, first.difference] == ["61.00", "", "−1.06"]
    make_run("basic", 0, test=62.0, folder="another machine")
    make_run("basic", 1, test=63.5)
    assert rows(tmp_path)[0].measured == "62.50 ± 1.41"
    assert rows(tmp_path)[0].seeds == "(3 runs of 2 seeds)"


def test_other_images_have_their_own_row(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("basic", 0, test=62.0)
    make_run("basic", 1, test=62.2, images="another order")
    make_run("basic", 2, test=26.0, images="5ub5e7", official=False)
    make_run("basic", 3, test=None, images="cafe", official=False)
    first, *_, subset, jpeg = rows(tmp_path)
    assert [first.measured, first.seeds, first.unfinished] == ["62.10 ± 0.14", "(2 seeds)", ()]
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
    for seed, rate, value in ((0, 0.1, 10.0), (1, 0.1, 12.0), (2, 0.001, 60.0)):
        path = make_run("basic", seed, test=value) / "result.json"
        (run,) = report.read_runs([path.parent])
        change(path, experiment="mine", settings={**run.settings, "optimizer.lr": rate})
    make_run("net", test=75.0)
    good, bad = rows(tmp_path)[-2:]
    assert [bad.changes, bad.measured] == [("optimizer.lr=0.1",), "11.00 ± 1.41"]
    assert [good.changes, good.measured] == [("optimizer.lr=0.001",), "60.00"]


def test_changed_settings_have_their_own_row(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("basic", 0, test=62.0)
    for seed, value in enumerate([90.0, 92.0]):
        make_run("basic", seed, test=value, overrides={"epochs": 3}, folder=f"short{seed}")
    first, *_, short = rows(tmp_path)
    assert [first.measured, short.changes] == ["62.00", ("epochs=3",)]
    assert [short.measured, short.seeds, short.epochs] == ["91.00 ± 1.41", "(2 seeds)", "3"]
    assert short.paper == short.difference == ""


def test_a_changed_experiment_file_makes_earlier_runs_changed(
    make_run: MakeRun, tmp_path: Path
) -> None:
    path = make_run("basic") / "result.json"
    (run,) = report.read_runs([path.parent])
    settings = {**run.settings, "optimizer.lr": 0.5, "train.no_longer_known": 1}
    del settings["data.flip"]
    change(path, settings=settings)
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


def test_external_experiments_follow_the_papers(make_run: MakeRun, tmp_path: Path) -> None:
    change(make_run("basic", test=70.0) / "result.json", experiment="mine")
    table = rows(tmp_path)
    assert [r.experiment for r in table] == [*PAPER, "mine"]
    assert [table[-1].paper, table[-1].difference] == ["62.06", "+7.94"]


def test_a_better_recipe_is_compared_with_the_papers_best(
    make_run: MakeRun, tmp_path: Path
) -> None:
    make_run("fast-basic", 0, test=68.0, parameters=62_006)
    make_run("fast-basic", 1, test=69.0, parameters=62_000)
    make_run("fast-basic", 0, test=50.0, overrides={"epochs": 3}, folder="short")
    table = rows(tmp_path)
    assert [r.experiment for r in table] == [*PAPER, "fast-basic", "fast-basic"]
    better, short = table[-2:]
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
