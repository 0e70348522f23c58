import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from run_folders import MakeRun

from cifar_jax import report
from cifar_jax.report.groups import collect, papers_best
from cifar_jax.report.table import Row, duration, row

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


def rows(root: Path) -> list[Row]:
    return [row(group) for group in collect(report.read_runs([root]))]


def test_every_experiment_of_the_paper_has_a_row_without_a_run() -> None:
    table = [row(group) for group in collect([])]
    assert [r.experiment for r in table] == PAPER
    assert {(r.seeds, r.unfinished) for r in table} == {("", ())}
    assert table[0].parameters == "62,006"
    assert [table[0].paper, table[0].measured, table[0].difference] == ["62.06", "", ""]


def test_seeds_are_averaged_with_the_sample_deviation(make_run: MakeRun, tmp_path: Path) -> None:
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
    assert first.device == "AMD EPYC 7B13, 2 cores"


def test_one_seed_has_no_deviation_and_a_copy_counts_once(
    make_run: MakeRun, tmp_path: Path
) -> None:
    make_run("basic", 0, test=61.0)
    make_run("basic", 0, test=61.0, folder="copy")
    first = rows(tmp_path)[0]
    assert first.measured == "61.00"
    assert first.seeds == ""
    assert first.difference == "−1.06"


def test_a_seed_counts_once(make_run: MakeRun, tmp_path: Path) -> None:
    """Runs of one seed on two machines differ a little; they are no two seeds."""
    make_run("basic", 0, test=61.0)
    make_run("basic", 0, test=62.0, folder="elsewhere")
    assert rows(tmp_path)[0].measured == "61.50"
    assert rows(tmp_path)[0].seeds == "(2 runs of 1 seed)"
    make_run("basic", 1, test=63.5)
    assert rows(tmp_path)[0].measured == "62.50 ± 1.41"
    assert rows(tmp_path)[0].seeds == "(3 runs of 2 seeds)"


def test_other_images_are_not_the_papers_experiment(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("basic", 0, test=62.0)
    make_run("basic", 1, test=62.2, data_sha256="another order", data_official=True)
    make_run("basic", 2, test=26.0, data_sha256="5ub5e7", folder="subset")
    make_run("basic", 3, test=30.0, data_official=False, data_sha256="cafe", folder="jpeg")
    make_run("basic", 4, test=30.0, data_sha256=None, folder="old")
    make_run("basic", 5, test=None, done=3)
    first, *_, subset, cafe, old = rows(tmp_path)
    assert [first.measured, first.seeds] == ["62.10 ± 0.14", "(2 seeds)"]
    assert len(first.unfinished) == 1
    for other, digest, value in (
        (subset, "5ub5e7", "26.00"),
        (cafe, "cafe", "30.00"),
        (old, "unknown", "30.00"),
    ):
        assert [other.changes, other.measured] == [(f"data_sha256={digest}",), value]
        assert other.paper == other.difference == ""


def test_runs_of_an_experiment_elsewhere_are_told_apart_by_their_settings(
    make_run: MakeRun, tmp_path: Path
) -> None:
    """Its file may have changed from one run to the next."""
    for seed, rate, value in ((0, 0.1, 10.0), (1, 0.1, 12.0), (2, 0.001, 60.0)):
        path = make_run("basic", seed, test=value)
        identity = json.loads((path / "config.json").read_text()) | {"experiment": "mine"}
        identity["config"]["optimizer.lr"] = rate
        (path / "config.json").write_text(json.dumps(identity))
    make_run("net", test=75.0)  # from which they differ in more, which is not told
    good, bad = rows(tmp_path)[-2:]
    assert [bad.changes, bad.measured] == [("optimizer.lr=0.1",), "11.00 ± 1.41"]
    assert [good.changes, good.measured] == [("optimizer.lr=0.001",), "60.00"]


def test_all_starts_of_a_run_are_named(make_run: MakeRun, tmp_path: Path) -> None:
    gpu = {"platform": "gpu", "kind": "NVIDIA L4", "count": 1}
    make_run("basic", starts=[{"git_commit": "aaaaaaaaa-dirty", "device": gpu}, {}])
    assert rows(tmp_path)[0].commit == "aaaaaaa-dirty / 0123456"
    assert rows(tmp_path)[0].device == "NVIDIA L4 / AMD EPYC 7B13, 2 cores"


def test_other_settings_never_reach_the_papers_row(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("basic", 0, test=62.0)
    for seed, value in enumerate([90.0, 92.0]):
        overrides = {"data.dataset": "digits", "epochs": 3}
        make_run("basic", seed, test=value, overrides=overrides, folder=f"digits/{seed}")
    make_run("basic", 0, test=50.0, overrides={"epochs": 3}, folder="short")
    table = rows(tmp_path)
    assert table[0].measured == "62.00"
    short, digits = (r for r in table if r.changes)
    assert digits.changes == ("epochs=3", "data.dataset=digits")
    assert [digits.measured, digits.seeds, digits.epochs] == ["91.00 ± 1.41", "(2 seeds)", "3"]
    assert [short.changes, short.measured] == [("epochs=3",), "50.00"]
    assert digits.paper == digits.difference == short.paper == short.difference == ""


def test_a_run_of_an_experiment_file_that_changed_since_is_another(
    make_run: MakeRun, tmp_path: Path
) -> None:
    path = make_run("basic") / "config.json"
    identity = json.loads(path.read_text())
    identity["config"] |= {"optimizer.lr": 0.5, "train.no_longer_known": 1}
    del identity["config"]["data.flip"]  # as if it came later
    path.write_text(json.dumps(identity))
    table = rows(tmp_path)
    assert table[0].measured == ""
    assert table[-1].changes == ("optimizer.lr=0.5", "train.no_longer_known=1")


def test_unfinished_runs_say_how_far_they_are(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("resnet10-plateau", test=None, done=12)
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    make_run("net", test=None)
    make_run("basic", 0, test=62.0)
    make_run("basic", 1, test=None, done=5)
    table = {r.experiment: r for r in rows(tmp_path)}
    plateau = table["resnet10-plateau"]
    told = f"epoch 12 of 135: validation {last['validation_accuracy']:.1f} %"
    assert plateau.unfinished == (told,)
    assert plateau.measured == plateau.difference == plateau.wall_time == ""
    assert table["net"].unfinished == ("epoch 0 of 100",)
    assert table["basic"].measured == "62.00"
    assert table["basic"].unfinished[0].startswith("epoch 5 of 20: validation ")


def test_another_count_of_parameters_stands_beside_the_papers(
    make_run: MakeRun, tmp_path: Path
) -> None:
    make_run("basic", parameters=62_000)
    assert rows(tmp_path)[0].parameters == "62,000 ≠ 62,006"


def test_other_experiments_follow_the_papers(make_run: MakeRun, tmp_path: Path) -> None:
    path = make_run("basic", test=70.0)
    for name in ("config.json", "result.json"):
        content = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps(content | {"experiment": "mine"}))
    table = rows(tmp_path)
    assert [r.experiment for r in table] == [*PAPER, "mine"]
    # An experiment of another's file, whose result tells what it is to be compared with.
    assert [table[-1].paper, table[-1].difference] == ["62.06", "+7.94"]


def test_a_better_recipe_is_held_to_the_papers_best_with_its_network(
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
    assert papers_best("resnet10") == "resnet10-plateau"
    assert papers_best("of my own") is None


@pytest.mark.parametrize(
    ("device", "text"),
    [
        ({"platform": "gpu", "kind": "NVIDIA L4", "count": 1}, "NVIDIA L4"),
        ({"platform": "tpu", "kind": "TPU v5 lite", "count": 4}, "4 × TPU v5 lite"),
    ],
)
def test_accelerators_are_named(
    make_run: MakeRun, tmp_path: Path, device: dict[str, object], text: str
) -> None:
    make_run("basic", device=device)
    assert rows(tmp_path)[0].device == text


def test_processors_that_share_a_name_are_told_apart(make_run: MakeRun, tmp_path: Path) -> None:
    for seed, features in enumerate((["avx2"], ["avx2", "avx512f", "avx512_bf16"], [])):
        machine = {"cpu": "AMD EPYC", "cores": 2, "features": features}
        make_run("basic", seed, machine=machine)
    assert rows(tmp_path)[0].device == (
        "AMD EPYC, 2 cores, AVX2 / AMD EPYC, 2 cores, AVX-512 BF16 / AMD EPYC, 2 cores"
    )


def test_a_run_at_work_on_other_images_stands_apart(make_run: MakeRun, tmp_path: Path) -> None:
    path = make_run("basic", test=None, done=3)
    card = {"data": {"sha256": "5ub5e7", "official": False}}
    (path / "model.json").write_text(json.dumps(card))
    assert rows(tmp_path)[-1].changes == ("data_sha256=5ub5e7",)
    assert rows(tmp_path)[0].unfinished == ()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (99, "99 s"), (101, "2 min"), (6001, "1.7 h"), (200_000, "2.3 d")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_import_is_cheap() -> None:
    code = (
        "import sys, cifar_jax.report as r; r.collect([]);"
        "print({'jax', 'numpy', 'matplotlib', 'rich'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
