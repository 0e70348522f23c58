from pathlib import Path

import pytest
from run_folders import MakeRun, change, record

from cifar_jax.errors import UserError
from cifar_jax.report import report
from cifar_jax.runs.reading import read_runs


def test_runs_are_found_at_any_depth_and_once(make_run: MakeRun, tmp_path: Path) -> None:
    a = make_run("basic", 0)
    b = make_run("net", 0, folder="gpu/monday/net")
    (a / "checkpoints").mkdir()
    (a / "checkpoints" / "config.json").write_text("not a run's")
    disk = tmp_path / "disk"
    b.rename(disk)
    b.symlink_to(disk)
    (tmp_path / "runs/loop").symlink_to(tmp_path / "runs")
    assert {run.path for run in read_runs([tmp_path / "runs", a])} == {a, b}


def test_runs_folder_is_the_default_and_may_be_missing(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_runs() == []
    make_run("basic")
    assert [run.experiment for run in read_runs()] == ["basic"]


def test_records_and_run_folders_can_be_mixed(make_run: MakeRun, tmp_path: Path) -> None:
    paths = [record(make_run(name), tmp_path / "results") for name in ("basic", "net")]
    runs = read_runs([*paths, make_run("net", 1)])
    assert [(run.experiment, run.seed) for run in runs] == [("basic", 0), ("net", 0), ("net", 1)]
    assert [run.path for run in read_runs([tmp_path / "results"])] == paths


def test_the_files_of_an_earlier_report_are_skipped(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("basic")
    runs = tmp_path / "runs"
    report([runs])
    paths = sorted(runs.iterdir())  # As in `cifar-jax report runs/*`.
    assert len(paths) == 4
    assert [found.path for found in read_runs(paths)] == [run]
    with pytest.raises(UserError, match="not a record"):
        read_runs([runs / "report.html"])


def test_the_model_cards_of_records_are_skipped(make_run: MakeRun, tmp_path: Path) -> None:
    path = record(make_run("basic"), tmp_path / "results")
    card = path.with_suffix(".model.json")
    paths = sorted(path.parent.glob("basic-seed*.json"))
    assert paths == [path, card]
    assert [run.path for run in read_runs(paths)] == [path]
    with pytest.raises(UserError, match="not a record"):
        read_runs([card])


def test_an_unfinished_run_has_no_result(make_run: MakeRun) -> None:
    (run,) = read_runs([make_run("net", 2, test=None, done=3, overrides={"epochs": 5})])
    assert (run.experiment, run.seed, run.result, run.outputs) == ("net", 2, None, None)
    assert (run.epochs, len(run.rows), len(run.sessions)) == (5, 3, 1)
    assert run.overrides == run.changes == {"epochs": 5}
    assert run.data_official
    (run.path / "model.json").unlink()
    assert read_runs([run.path])[0].data_official is None


def test_imported_weights_are_not_a_run(make_run: MakeRun, tmp_path: Path) -> None:
    trained, imported = make_run("basic"), make_run("net", test=None)
    change(imported / "model.json", imported_from="net.pt")
    assert [run.path for run in read_runs([tmp_path / "runs"])] == [trained]
    with pytest.raises(UserError, match="no trained run and no record"):
        read_runs([imported])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("result.json", "{", "result.json is damaged"),
        (
            "result.json",
            '{"experiment": "basic"}',
            "result.json is damaged: the field `seed` is missing",
        ),
        (
            "result.json",
            '{"format": 2}',
            r"result.json has the file format 2, ",
        ),
        ("config.json", "[]", r"config.json is damaged: it is not a JSON object"),
        ("env.json", "[{}]", "env.json is damaged: the field `git_commit` is missing"),
        ("env.json", "[" * 100_000, "env.json is damaged"),
        ("model.json", '{"experiment": 5}', "model.json is damaged: the field `experiment` is 5"),
    ],
)
def test_damaged_files_are_named(make_run: MakeRun, name: str, content: str, message: str) -> None:
    path = make_run("basic", test=None, done=1)
    (path / name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_runs([path])
    assert str(path / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent does not exist"):
        read_runs([tmp_path / "absent"])
