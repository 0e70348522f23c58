import json
from pathlib import Path

import pytest
from run_folders import MakeRun

from cifar_jax import report
from cifar_jax.errors import UserError

README = "# Title\n\nbefore\n\n<!-- results -->\nold\n<!-- /results -->\n\nafter\n"


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    path = tmp_path / "README.md"
    path.write_text(README)
    return path


def test_a_record_is_the_runs_result(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("basic", 3, test=62.4)
    path = report.record(run, tmp_path / "results")
    assert path == tmp_path / "results" / "basic-seed3.json"
    assert json.loads(path.read_text()) == json.loads((run / "result.json").read_text())
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"test": None, "done": 3}, "is not finished"),
        ({"overrides": {"epochs": 2}}, "ran with epochs=2"),
        ({"git_commit": None}, "without a git commit"),
        ({"git_commit": "0123456-dirty"}, "not committed"),
    ],
)
def test_what_is_no_record_is_refused(
    make_run: MakeRun, tmp_path: Path, options: dict, told: str
) -> None:
    run = make_run("basic", **options)
    with pytest.raises(UserError, match=told) as error:
        report.record(run, tmp_path / "results")
    assert str(run) in str(error.value)
    assert not (tmp_path / "results").exists()


def test_a_record_needs_one_run_of_a_known_experiment(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("basic", 0)
    make_run("basic", 1)
    with pytest.raises(UserError, match="2 runs"):
        report.record(tmp_path / "runs", tmp_path / "results")
    for name in ("config.json", "result.json"):
        content = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps(content | {"experiment": "mine"}))
    with pytest.raises(UserError, match="not in experiments/"):
        report.record(run, tmp_path / "results")


def test_the_readme_follows_the_records(make_run: MakeRun, tmp_path: Path, readme: Path) -> None:
    results = tmp_path / "results"
    for seed, test in enumerate([61.0, 63.0]):
        report.record(make_run("basic", seed, test=test), results)
    assert not report.readme_is_current(readme, results)
    assert report.update_readme(readme, results)
    text = readme.read_text()
    assert text.startswith(README.partition("old")[0])
    assert text.endswith("\n\n<!-- /results -->\n\nafter\n")
    lines = [line for line in text.splitlines() if line.startswith("| [")]
    assert lines[0] == (
        "| [basic](experiments/basic.py) | basic | 62,006 | 62.06 | **62.00 ± 1.41** (2 seeds) | "
        "20 | 62 min | AMD EPYC 7B13, 2 cores | `0123456` |"
    )
    assert lines[6].startswith(
        "| [resnet18-adam-lr1e-4](experiments/resnet18_adam_lr1e_4.py) | resnet18 | 11,173,962 | "
        "91.27 | no record yet | 100 |"
    )
    assert len(lines) == 10
    assert report.readme_is_current(readme, results)
    assert not report.update_readme(readme, results)
    report.record(make_run("net", test=77.0), results)
    assert not report.readme_is_current(readme, results)


def test_the_readmes_links_lead_to_the_experiments(tmp_path: Path, readme: Path) -> None:
    (tmp_path / "results").mkdir()
    report.update_readme(readme, tmp_path / "results")
    project = Path(__file__).parents[2]
    links = [part.partition(")")[0] for part in readme.read_text().split("](")[1:]]
    assert len(links) == 10
    assert all((project / link).is_file() for link in links)


def test_a_wrong_record_or_readme_changes_nothing(
    make_run: MakeRun, tmp_path: Path, readme: Path
) -> None:
    results = tmp_path / "results"
    results.mkdir()
    short = make_run("basic", overrides={"epochs": 1}) / "result.json"
    (results / "basic-seed0.json").write_text(short.read_text())
    with pytest.raises(UserError, match="is no record"):
        report.update_readme(readme, results)
    (results / "basic-seed0.json").write_text("{")
    with pytest.raises(UserError, match=r"basic-seed0\.json cannot be read"):
        report.update_readme(readme, results)
    assert readme.read_text() == README
    (results / "basic-seed0.json").unlink()
    for text in ("no place", README + README):
        readme.write_text(text)
        with pytest.raises(UserError, match="no one place"):
            report.update_readme(readme, results)
    with pytest.raises(UserError, match="no folder"):
        report.readme_is_current(readme, tmp_path / "absent")
