import errno
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import OFFICIAL, MakeRun, outputs

from cifar_jax import catalog, cli, report
from cifar_jax.errors import UserError
from cifar_jax.report import plots, wall_time
from cifar_jax.report.table import row
from cifar_jax.runs import records
from cifar_jax.runs.reading import read_run
from cifar_jax.runs.run import experiments

README = (
    "# Title\n\nbefore\n\n<!-- results -->\nold\n<!-- /results -->\n\n"
    "between\n\n<!-- recipes -->\nold\n<!-- /recipes -->\n\nafter\n"
)
CLEAN, DIRTY = "0123456789abcdef0123456789abcdef01234567", "89abcdef-dirty"


@pytest.fixture
def more_experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`timed`, the paper's `basic` to be fitted into its minutes, and `speedrun-92`, of a network
    that the paper does not have."""
    folder = tmp_path / "experiments"
    shutil.copytree(catalog.experiments_folder(), folder)
    text = (folder / "basic.py").read_text()
    timed = "schedule=Schedule(name='linear'), train=Train(max_minutes=3.0),"
    without = re.sub("paper=.*", timed, text).replace("Paper", "Schedule, Train")
    (folder / "fast" / "timed.py").write_text(without)
    (folder / "fast" / "speedrun_92.py").write_text(without.replace('name="basic"', 'name="own"'))
    monkeypatch.setattr(catalog, "_FOLDERS", (folder,))
    experiments.cache_clear()
    yield
    experiments.cache_clear()


@pytest.fixture
def readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A README with places for the tables; its figures take seconds, and are not drawn."""
    monkeypatch.setattr(plots, "panels_svg", lambda groups, description: description.encode())
    monkeypatch.setattr(wall_time, "svg", lambda points, description: description.encode())
    path = tmp_path / "README.md"
    path.write_text(README)
    return path


def record(folder: Path, results: Path, accuracy: float | None = None) -> Path:
    """Record the run with outputs that confirm it, or give another accuracy."""
    run = read_run(folder)
    if accuracy is None and run.result:
        accuracy = run.result["test_accuracy"]
    return records.record(run, results, None if accuracy is None else outputs(accuracy))


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


def test_a_record_holds_what_its_run_left(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("net-attention", 3, test=62.4, starts=[{}, {"machine": {"cpu": "Xeon"}}])
    path = record(folder, tmp_path / "results")
    assert sorted(content(tmp_path / "results")) == [
        "net-attention-seed3.json",
        "net-attention-seed3.metrics.jsonl",
        "net-attention-seed3.outputs.npz",
    ]
    told = json.loads(path.read_text())
    assert told.items() >= json.loads((folder / "result.json").read_text()).items()
    assert told["settings"] == json.loads((folder / "config.json").read_text())["config"]
    assert [start["machine"]["cpu"] for start in told["starts"]][1] == "Xeon"
    assert "/home/me" not in path.read_text()

    (run,) = report.read_runs([path])
    of_folder = read_run(folder)
    assert run.rows == of_folder.rows
    assert (run.epochs, run.seed, run.changes) == (50, 3, {})
    assert run.outputs
    kept = records.read_outputs(run.outputs)
    assert kept.accuracy() == pytest.approx(62.4)
    assert (kept.logits.dtype, kept.labels.dtype) == (np.float16, np.uint8)
    assert run.outputs.stat().st_size < 210_000


@pytest.mark.parametrize(
    "overrides",
    [
        {"data.validation": 2000.0},
        {"train.log_every": 7, "train.devices": 4, "train.steps_per_call": 10},
    ],
)
def test_what_counts_is_what_the_settings_are(
    make_run: MakeRun, tmp_path: Path, overrides: dict[str, Any]
) -> None:
    """However they were given; and how a run is carried out makes it no other run."""
    path = record(make_run("basic", overrides=overrides), tmp_path / "results")
    (group, *_) = report.collect(report.read_runs([path]))
    assert group.paper
    assert len(group.results) == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"overrides": {"epochs": 2}}, r"other settings than basic today: epochs=2 \(now 20\)"),
        ({"git_commit": None}, "no git commit"),
        ({"git_commit": DIRTY}, r"changes not committed \(89abcdef-dirty\)"),
        ({"starts": [{"git_commit": DIRTY}, {}]}, r"changes not committed \(89abcdef-dirty\)"),
        ({"data_sha256": "5ub5e7"}, "other images than the official CIFAR-10's"),
        ({"data_official": False}, "other images than the official CIFAR-10's"),
        ({"epochs": 19}, r"result\.json is not of the run beside it \(epochs\)"),
        ({"train_loss": 0.5}, r"result\.json is not of the run beside it \(train_loss\)"),
        ({"test": None, "done": 0}, r"metrics\.jsonl lacks epochs"),
    ],
)
def test_what_is_no_record_is_refused(
    make_run: MakeRun, tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    folder = make_run("basic", **options)
    with pytest.raises(UserError, match=told) as error:
        record(folder, tmp_path / "results")
    assert str(folder) in str(error.value)
    assert not (tmp_path / "results").exists()


def test_a_record_names_every_start(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("basic")
    (folder / "env.json").unlink()
    with pytest.raises(UserError, match=r"has no env\.json"):
        record(folder, tmp_path / "results")
    assert report.collect(report.read_runs([folder]))[0].results  # it is reported all the same


@pytest.mark.parametrize("lost", [0, 7, 19, None])
def test_a_record_has_the_metrics_of_every_epoch(
    make_run: MakeRun, tmp_path: Path, lost: int | None
) -> None:
    folder = make_run("basic")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [] if lost is None else [line for i, line in enumerate(lines) if i != lost]
    (folder / "metrics.jsonl").write_text("".join(kept))
    with pytest.raises(UserError, match=r"lacks epochs|not of the run"):
        record(folder, tmp_path / "results")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("epochs", [19, 21])
def test_a_record_has_as_many_epochs_as_were_asked_for(
    make_run: MakeRun, tmp_path: Path, epochs: int
) -> None:
    """Also where the result is of the last that is there."""
    folder = make_run("basic")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [*rows, rows[-1] | {"epoch": 21}][:epochs]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = json.loads((folder / "result.json").read_text())
    result |= {name: rows[-1][name] for name in ("train_loss", "validation_loss")}
    (folder / "result.json").write_text(json.dumps(result))
    with pytest.raises(UserError, match=r"lacks epochs|\(epochs: 19 in metrics\.jsonl\)"):
        record(folder, tmp_path / "results")


@pytest.mark.usefixtures("more_experiments")
@pytest.mark.parametrize(("epochs", "kept"), [(14, 14), (20, 20), (14, 13), (14, 15), (21, 21)])
def test_a_run_that_was_fitted_into_its_minutes_has_the_epochs_that_it_had(
    make_run: MakeRun, tmp_path: Path, epochs: int, kept: int
) -> None:
    """As its result tells them: no more than were asked for, and each with its metrics."""
    folder = make_run("timed", epochs=epochs)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [*rows, rows[-1] | {"epoch": 21}][:kept]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = json.loads((folder / "result.json").read_text())
    result |= {name: rows[-1][name] for name in ("train_loss", "validation_loss")}
    (folder / "result.json").write_text(json.dumps(result))
    if (epochs, kept) not in [(14, 14), (20, 20)]:
        with pytest.raises(UserError, match=r"lacks epochs|is not of the run"):
            record(folder, tmp_path / "results")
        return
    (run,) = report.read_runs([record(folder, tmp_path / "results")])
    assert run.epochs == epochs == len(run.rows)
    other = read_run(make_run("timed", 1, epochs=18))
    (group,) = (group for group in report.collect([run, other]) if group.runs)
    assert row(group).epochs == f"{min(epochs, 18)}–{max(epochs, 18)}"


def test_a_run_without_validation_images_is_recorded(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("fast-basic", test=68.0, best_validation_test_accuracy=None)
    (run,) = report.read_runs([record(folder, tmp_path / "results")])
    (group,) = (group for group in report.collect([run]) if group.runs)
    assert group.changes == {}
    assert (row(group).measured, row(group).best) == ("68.00", "")


def test_outputs_must_give_the_accuracy_of_the_result(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("basic", test=62.0)
    with pytest.raises(UserError, match=r"give 61\.80 %, its result\.json says 62\.00 %"):
        record(folder, tmp_path / "results", 61.8)
    with pytest.raises(UserError, match="outputs"):
        records.record(read_run(folder), tmp_path / "results", None)
    assert not (tmp_path / "results").exists()
    # float16 moves an image or two
    assert record(folder, tmp_path / "results", 62.02).exists()


def test_official_images_in_another_order_are_official(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("basic", data_official=True, data_sha256="another order")
    assert record(folder, tmp_path / "results").exists()


def test_a_record_appears_whole_or_not_at_all(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"
    record(make_run("basic", test=62.0), results)
    before = content(results)
    written: list[Path] = []
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        written.append(path)
        if len(written) == 3:
            write(path, data[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="cannot be written: No space left"):
        record(make_run("basic", test=63.0, folder="again"), results)
    assert content(results) == before
    assert len(list(results.iterdir())) == 3


@pytest.mark.parametrize("suffix", [".metrics.jsonl", ".outputs.npz"])
def test_a_record_without_its_files_is_told(make_run: MakeRun, tmp_path: Path, suffix: str) -> None:
    path = record(make_run("basic"), tmp_path / "results")
    path.with_name(path.stem + suffix).unlink()
    with pytest.raises(
        UserError, match=f"basic-seed0.json is incomplete: there is no basic-seed0{suffix}"
    ):
        report.read_runs([tmp_path / "results"])


@pytest.mark.parametrize(
    "damage", ["cut", "flipped", "empty", "npy", "fewer labels", "more labels", "none", "1-D"]
)
def test_damaged_outputs_are_told(make_run: MakeRun, tmp_path: Path, damage: str) -> None:
    record(make_run("basic"), tmp_path / "results")
    (run,) = report.read_runs([tmp_path / "results"])
    assert run.outputs
    whole = run.outputs.read_bytes()
    if damage in ("cut", "flipped", "empty"):
        flipped = whole[:300] + bytes([whole[300] ^ 255]) + whole[301:]
        run.outputs.write_bytes({"cut": whole[:1000], "flipped": flipped, "empty": b""}[damage])
    else:
        with run.outputs.open("wb") as file:
            if damage == "npy":
                np.save(file, np.zeros(3))
            else:
                sizes = {"fewer labels": 2, "more labels": 4, "1-D": 3, "none": 0}
                logits = np.zeros((0 if damage == "none" else 3, 10))
                logits = logits[:, 0] if damage == "1-D" else logits
                np.savez(file, logits=logits, labels=np.zeros(sizes[damage]))
    with pytest.raises(UserError, match=r"outputs\.npz (cannot be read|does not hold)") as error:
        records.read_outputs(run.outputs)
    assert "\n" not in str(error.value)


def test_a_run_on_its_way_is_a_record_of_its_own_kind(make_run: MakeRun, tmp_path: Path) -> None:
    results = tmp_path / "results"
    path = record(make_run("net", test=None, done=12), results)
    assert sorted(content(results)) == [
        "partial/net-seed0.json",
        "partial/net-seed0.metrics.jsonl",
    ]
    (run,) = report.read_runs([path])
    assert run.result is None
    assert len(run.rows) == 12
    group = report.collect([run])[1]
    assert (group.experiment, group.results, group.unfinished) == ("net", [], [run])

    # A full record replaces it, and is not replaced by one.
    record(make_run("net", folder="full"), results)
    assert "partial/net-seed0.json" not in content(results)
    with pytest.raises(UserError, match=r"is not finished, and .* is of a run that is"):
        record(make_run("net", test=None, done=3, folder="late"), results)


def test_a_record_needs_one_run_of_a_known_experiment(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("basic", 0)
    make_run("basic", 1)
    with pytest.raises(UserError, match="2 runs"):
        record(tmp_path / "runs", tmp_path / "results")
    for name in ("config.json", "result.json"):
        told = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps(told | {"experiment": "mine"}))
    with pytest.raises(UserError, match="not in experiments/"):
        record(run, tmp_path / "results")


def test_the_command_records_all_or_refuses_all(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    good = make_run("net", test=None, done=2)
    bad = make_run("basic", overrides={"epochs": 2})
    assert cli.run(["report", "--record", str(results), str(good), str(bad)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not results.exists()
    assert cli.run(["report", "--record", str(results), str(good)]) == 0
    assert capsys.readouterr().out == f"recorded {results / 'partial' / 'net-seed0.json'}\n"
    assert cli.run(["report", "--record", str(results)]) == 2


def test_the_readme_follows_the_records(make_run: MakeRun, tmp_path: Path, readme: Path) -> None:
    results = tmp_path / "results"
    commits = [{"git_commit": "aaaaaaa1"}, {}]
    for seed, test in enumerate([61.0, 63.0]):
        record(make_run("basic", seed, test=test, starts=commits[seed:]), results)
    record(make_run("resnet10", test=None, done=12), results)
    assert not report.readme_is_current(readme, results)
    assert report.update_readme(readme, results) == (True, [])
    text = readme.read_text()
    assert text.startswith(README.partition("old")[0])
    assert "\n\n<!-- /results -->\n\nbetween\n\n<!-- recipes -->\n\n" in text
    assert text.endswith("\n\n<!-- /recipes -->\n\nafter\n")
    lines = [line for line in text.splitlines() if line.startswith("| [")]
    assert lines[0] == (
        "| [basic](experiments/basic.py) | 62,006 | 62.06 | **62.00 ± 1.41** (2 seeds) | −0.06 | "
        "20 | 3,720 | AMD EPYC 7B13, 2 cores | `aaaaaaa` / `0123456` |"
    )
    assert lines[6].startswith(
        "| [resnet18-adam-lr1e-4](experiments/resnet18_adam_lr1e_4.py) | 11,173,962 | "
        "91.27 | no record yet |"
    )
    assert "| 4,903,242 | 90.03 | in part |" in lines[7]
    assert len(lines) == 10
    (part,) = (line for line in text.splitlines() if line.startswith("| resnet10 |"))
    last = read_run(tmp_path / "runs" / "resnet10").rows[-1]["validation_accuracy"]
    assert f"| 0 | epoch 12 of 135: validation {last:.1f} % | 120 | AMD EPYC" in part

    assert report.readme_is_current(readme, results)
    assert report.update_readme(readme, results) == (False, [])
    for test in (77.0, 76.0, 78.0):
        record(make_run("net", test=test, folder=f"net{test}"), results)
        assert not report.readme_is_current(readme, results)
        assert report.update_readme(readme, results) == (True, [])
        assert f"**{test:.2f}**" in readme.read_text()
    readme.write_text(readme.read_text().replace("**78.00**", "**98.00**"))
    assert not report.readme_is_current(readme, results)  # though the figure is


def test_the_readmes_figure_is_of_the_records(
    make_run: MakeRun, tmp_path: Path, readme: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    results = tmp_path / "results"
    record(make_run("basic"), results)
    report.update_readme(readme, results)
    figure = results / "curves.svg"
    assert "](results/curves.svg)" in readme.read_text()
    assert 20_000 < figure.stat().st_size < 200_000
    first = figure.read_bytes()

    path = results / "basic-seed0.metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[3]["validation_accuracy"] += 5
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert not report.readme_is_current(readme, results)  # the table alone has not changed
    monkeypatch.setattr(plots, "panels_svg", lambda groups, description: description.encode())
    others = results / "recipes.svg"
    of_times = others.stat().st_mtime_ns
    assert report.update_readme(readme, results)[0]
    assert others.stat().st_mtime_ns == of_times  # it shows no curves
    assert figure.read_bytes() != first
    assert report.readme_is_current(readme, results)
    figure.unlink()
    assert not report.readme_is_current(readme, results)


def test_the_readme_sets_better_recipes_beside_the_papers(
    make_run: MakeRun, tmp_path: Path, readme: Path
) -> None:
    results = tmp_path / "results"
    record(make_run("fast-basic", 0, test=68.0, wall_seconds=150.0), results)
    record(make_run("fast-basic", 1, test=69.0, wall_seconds=160.0), results)
    assert report.update_readme(readme, results) == (True, [])

    def line() -> str:
        (line,) = (x for x in readme.read_text().splitlines() if x.startswith("| basic |"))
        return line

    fast = "[fast-basic](experiments/fast/fast_basic.py) **68.50 ± 0.71** (2 seeds) | 2.6 |"
    rest = f"{fast} AMD EPYC 7B13, 2 cores | `0123456` |"
    paper = "| basic | 1 ≠ 62,006 | 62.06 | [basic](experiments/basic.py)"
    assert line() == f"{paper} no record yet |  | {rest}"
    assert "No record yet of [fast-basic]" not in readme.read_text()

    record(make_run("basic", test=62.5, wall_seconds=75_000.0), results)
    assert not report.readme_is_current(readme, results)
    report.update_readme(readme, results)
    assert line() == f"{paper} **62.50** | 1,250 | {rest}"

    peer = {"name": "theirs", "accuracy": 92.5, "minutes": 27.8, "machine": "a Xeon"}
    (results / "peers.json").write_text(json.dumps([peer | {"source": "their script"}]))
    assert not report.readme_is_current(readme, results)
    before = (results / "recipes.svg").read_bytes()
    report.update_readme(readme, results)
    assert "- theirs: 92.50 % in 27.8 min on a Xeon (their script)\n" in readme.read_text()
    assert (results / "recipes.svg").read_bytes() != before
    assert report.readme_is_current(readme, results)
    text = readme.read_text()
    for wrong in ([peer], {"name": 1}, [7]):
        (results / "peers.json").write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=r"peers\.json"):
            report.update_readme(readme, results)
    assert readme.read_text() == text


@pytest.mark.usefixtures("more_experiments")
def test_a_network_that_the_paper_does_not_have_stands_last_and_alone(
    make_run: MakeRun, tmp_path: Path, readme: Path
) -> None:
    results = tmp_path / "results"
    for name in ("speedrun-92", "timed", "net"):
        record(make_run(name, test=92.5, wall_seconds=900.0), results)
    report.update_readme(readme, results)
    text = readme.read_text().partition("between")[2]
    first, last = (
        line for line in text.splitlines() if "experiments/fast/" in line and "|" in line
    )
    assert first.startswith(
        "| basic | 1 ≠ 62,006 | 62.06 | [basic](experiments/basic.py) no record"
    )
    assert "[timed](experiments/fast/timed.py) **92.50** | 15 |" in first
    speedrun = "[speedrun-92](experiments/fast/speedrun_92.py) **92.50** | 15 |"
    assert last.startswith(f"| own | 1 | – | – | – | {speedrun}")


def test_a_better_recipe_on_its_way_or_changed_is_no_result(
    make_run: MakeRun, tmp_path: Path, readme: Path
) -> None:
    results = tmp_path / "results"
    results.mkdir()
    report.update_readme(readme, results)
    assert "\n\nNo record yet of [fast-basic](experiments/fast/" in readme.read_text()
    record(make_run("fast-basic", test=None, done=3), results)
    report.update_readme(readme, results)
    text = readme.read_text().partition("between")[2]
    epochs = catalog.load("fast-basic").config.epochs
    assert f"| fast-basic | 0 | epoch 3 of {epochs}: train " in text
    assert "better recipe, %" not in text
    path = record(make_run("fast-basic", test=90.0, folder="done"), results)
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"settings": told["settings"] | {"optimizer.lr": 0.5}}))
    _, lines = report.update_readme(readme, results)
    assert lines == [
        "`fast-basic-seed0.json` is not of fast-basic as it is today: " + "`optimizer.lr=0.5`"
    ]
    assert "90.00" not in readme.read_text()


def test_a_record_of_what_the_experiment_is_no_more_leaves_the_table(
    make_run: MakeRun, tmp_path: Path, readme: Path
) -> None:
    results = tmp_path / "results"
    record(make_run("basic", 0, test=60.0), results)
    for seed, change in ((1, {"data.validation": 0.1}), (2, {"optimizer.lr": 0.5})):
        path = record(make_run("basic", seed, test=90.0), results)
        told = json.loads(path.read_text())
        path.write_text(json.dumps(told | {"settings": told["settings"] | change}))
    path = record(make_run("basic", 3, test=90.0), results)
    path.write_text(path.read_text().replace(OFFICIAL, "5ub5e7"))
    _, lines = report.update_readme(readme, results)
    text = readme.read_text()
    assert "| **60.00** |" in text
    assert "90.00" not in text
    assert sorted(lines) == [
        "`basic-seed1.json` is not of basic as it is today: `data.validation=0.1`",
        "`basic-seed2.json` is not of basic as it is today: `optimizer.lr=0.5`",
        "`basic-seed3.json` is not of basic as it is today: `data_sha256=5ub5e7`",
    ]
    assert all(line in text for line in lines)
    assert report.readme_is_current(readme, results)


def test_the_readmes_links_lead_to_the_experiments(tmp_path: Path, readme: Path) -> None:
    (tmp_path / "results").mkdir()
    report.update_readme(readme, tmp_path / "results")
    project = Path(__file__).parents[2]
    links = [part.partition(")")[0] for part in readme.read_text().split("](")[1:]]
    assert len(links) == len(experiments()) + 2
    assert all((project / link).is_file() for link in links)


def test_a_wrong_record_or_readme_changes_nothing(tmp_path: Path, readme: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    (results / "basic-seed0.json").write_text("{")
    with pytest.raises(UserError, match=r"basic-seed0\.json cannot be read"):
        report.update_readme(readme, results)
    assert readme.read_text() == README
    (results / "basic-seed0.json").unlink()
    once = README.partition("between")
    for text in ("no place", README + README, once[0], once[2]):
        readme.write_text(text)
        with pytest.raises(UserError, match="no one place"):
            report.update_readme(readme, results)
    readme.write_text(README)
    with pytest.raises(UserError, match="no folder"):
        report.readme_is_current(readme, tmp_path / "absent")
    assert list(results.iterdir()) == []
