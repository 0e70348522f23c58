import json
from pathlib import Path

import pytest
from run_folders import README, MakeRun, change, record, write

from cifar_jax import report
from cifar_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("no_figures")


def test_the_tables_are_made_from_the_records(
    make_run: MakeRun, tmp_path: Path, readme: Path
) -> None:
    results = tmp_path / "results"
    commits = ({"git_commit": "aaaaaaa1"}, {})
    for seed, test in enumerate([61.0, 63.0]):
        record(make_run("basic", seed, test=test, sessions=commits[seed:]), results)
    assert not report.readme_is_current(readme, results)
    assert report.update_readme(readme, results) == (True, [])
    text = readme.read_text()
    assert text.startswith(README.partition("old")[0])
    assert "\n\n<!-- /results -->\n\nbetween\n\n<!-- recipes -->\n\n" in text
    assert text.endswith("\n\n<!-- /recipes -->\n\nafter\n")
    lines = [line for line in text.splitlines() if line.startswith("| [")]
    assert lines[0] == (
        "| [basic](experiments/basic.py) | 62,006 | 62.06 | **62.00 ± 1.41** (2 seeds) | −0.06 | "
        "20 | 3,720 | AMD EPYC, 2 cores | `aaaaaaa` / `0123456` |"
    )
    assert lines[6].startswith(
        "| [resnet18-adam-lr1e-4](experiments/resnet18_adam_lr1e_4.py) | 11,173,962 | "
        "91.27 | no record yet |"
    )
    assert len(lines) == 10
    links = [part.partition(")")[0] for part in text.split("](")[1:]]
    assert all((Path(__file__).parents[2] / link).is_file() for link in links)

    assert report.readme_is_current(readme, results)
    assert report.update_readme(readme, results) == (False, [])
    record(make_run("net", test=77.0), results)
    assert not report.readme_is_current(readme, results)
    assert report.update_readme(readme, results) == (True, [])
    assert "**77.00**" in readme.read_text()
    readme.write_text(readme.read_text().replace("**77.00**", "**98.00**"))
    assert not report.readme_is_current(readme, results)


def test_better_recipes_are_listed_next_to_the_papers_results(
    make_run: MakeRun, tmp_path: Path, readme: Path
) -> None:
    results = tmp_path / "results"
    results.mkdir()
    report.update_readme(readme, results)
    text = readme.read_text()
    assert "\n\nNo record yet: [fast-basic](experiments/fast/fast_basic.py), " in text
    assert "better recipe, %" not in text
    record(make_run("fast-basic", 0, test=68.0, wall_seconds=150.0), results)
    record(make_run("fast-basic", 1, test=69.0, wall_seconds=160.0), results)
    assert report.update_readme(readme, results) == (True, [])

    paper = "| basic | 1 ≠ 62,006 | 62.06 | [basic](experiments/basic.py)"
    better = (
        "[fast-basic](experiments/fast/fast_basic.py) **68.50 ± 0.71** (2 seeds) | 2.6 | "
        "AMD EPYC, 2 cores | `0123456` |\n"
    )
    assert f"\n{paper} no record yet | {better}" in readme.read_text()
    assert "No record yet: [fast-basic]" not in readme.read_text()
    record(make_run("basic", test=62.5), results)
    report.update_readme(readme, results)
    assert f"\n{paper} **62.50** | {better}" in readme.read_text()


def test_other_peoples_results_are_listed(tmp_path: Path, readme: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    peer = {"name": "theirs", "accuracy": 92.5, "minutes": 27.8, "machine": "a Xeon"}
    write(results / "peers.json", [peer | {"source": "Their script.", "command": "./run"}])
    report.update_readme(readme, results)
    text = readme.read_text()
    assert (
        "- theirs reaches 92.50 % in 27.8 min on a Xeon. Their script. The command is `./run`.\n"
        in text
    )
    peer["minutes"] = 30.0
    write(results / "peers.json", [peer | {"source": "Their script.", "command": "./run"}])
    before = (results / "minutes.svg").read_text()
    report.update_readme(readme, results)
    assert (results / "minutes.svg").read_text() != before
    text = readme.read_text()
    for wrong in ([peer], {"name": 1}, [7]):
        write(results / "peers.json", wrong)
        with pytest.raises(UserError, match=r"peers\.json"):
            report.update_readme(readme, results)
    assert readme.read_text() == text


def test_a_network_that_is_not_in_the_paper_comes_last(
    make_run: MakeRun, tmp_path: Path, readme: Path
) -> None:
    results = tmp_path / "results"
    for name in ("speedrun-92", "fast-net"):
        record(make_run(name, test=92.5, wall_seconds=900.0), results)
    report.update_readme(readme, results)
    first, last = (line for line in readme.read_text().splitlines() if "**92.50** | 15 |" in line)
    assert first.startswith("| net | 1 ≠ 2,348,030 | 77.91 | [net](experiments/net.py) no record")
    speedrun = "[speedrun-92](experiments/fast/speedrun_92.py)"
    assert last.startswith(f"| speednet | 1 | – | – | {speedrun}")


def test_records_that_differ_from_their_experiment_are_left_out(
    make_run: MakeRun, tmp_path: Path, readme: Path
) -> None:
    results = tmp_path / "results"
    record(make_run("basic", 0, test=60.0), results)
    for seed, setting in ((1, {"data.validation": 0.1}), (2, {"optimizer.lr": 0.5})):
        path = record(make_run("basic", seed, test=90.0), results)
        change(path, settings=json.loads(path.read_text())["settings"] | setting)
    change(record(make_run("basic", 3, test=90.0), results), data_official=False)
    change(record(make_run("fast-basic", 0, test=90.0), results), experiment="unknown")
    _, lines = report.update_readme(readme, results)
    text = readme.read_text()
    assert "| **60.00** |" in text
    assert "90.00" not in text
    assert sorted(lines) == [
        "`basic-seed1.json` differs from the current basic: `data.validation=0.1`",
        "`basic-seed2.json` differs from the current basic: `optimizer.lr=0.5`",
        "`basic-seed3.json` differs from the current basic: `data_sha256=0ff1c1a1`",
        "`fast-basic-seed0.json` is of unknown, which is not an experiment of this package",
    ]
    assert all(line in text for line in lines)
    assert report.readme_is_current(readme, results)


def test_a_damaged_record_or_readme_changes_nothing(tmp_path: Path, readme: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    (results / "basic-seed0.json").write_text("{")
    with pytest.raises(UserError, match=r"basic-seed0\.json is damaged"):
        report.update_readme(readme, results)
    assert readme.read_text() == README
    assert [path.name for path in results.iterdir()] == ["basic-seed0.json"]
    (results / "basic-seed0.json").unlink()
    once = README.partition("between")
    for text in ("no marker", README + README, once[0], once[2]):
        readme.write_text(text)
        with pytest.raises(UserError, match="exactly once"):
            report.update_readme(readme, results)
    readme.write_text(README)
    with pytest.raises(UserError, match="absent is not a folder of records"):
        report.readme_is_current(readme, tmp_path / "absent")
