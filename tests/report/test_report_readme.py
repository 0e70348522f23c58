"""The README's tables and figures, made of records."""

import json
from pathlib import Path

import pytest
from run_folders import OFFICIAL, README, MakeRun, record

from cifar_jax import catalog, report
from cifar_jax.errors import UserError
from cifar_jax.report import plots
from cifar_jax.runs.reading import read_run
from cifar_jax.runs.run import experiments

CLEAN, DIRTY = "0123456789abcdef0123456789abcdef01234567", "89abcdef-dirty"


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


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
    peer["source"] = "their script"
    (results / "peers.json").write_text(json.dumps([peer | {"command": "./run"}]))
    assert not report.readme_is_current(readme, results)
    before = (results / "recipes.svg").read_bytes()
    report.update_readme(readme, results)
    assert (
        "- theirs: 92.50 % in 27.8 min on a Xeon (their script; by `./run`)\n" in readme.read_text()
    )
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
