"""A run's folder: what is refused, what is kept, and what is written whole."""

import json
import threading
from pathlib import Path

import pytest
from short_runs import files

from cifar_jax.errors import UserError
from cifar_jax.runs import folder as workdir
from cifar_jax.runs.files import read_json, write_json

IDENTITY = {"experiment": "basic", "seed": 0, "overrides": {}, "config": {"epochs": 2, "lr": 0.1}}


def make(path: Path) -> Path:
    """A folder as a run leaves it."""
    with workdir.open_workdir(path, IDENTITY, fresh=False) as folder:
        folder.append_epoch({"epoch": 1, "step": 10})
        folder.append_epoch({"epoch": 2, "step": 20})
        folder.checkpoints.mkdir()
        (folder.checkpoints / "state").write_text("weights")
        folder.write_result({"test_accuracy": 50.0})
    return path


def test_the_same_run_finds_its_folder_again(tmp_path: Path) -> None:
    before = files(make(tmp_path / "deep" / "run"))
    with workdir.open_workdir(tmp_path / "deep" / "run", IDENTITY, fresh=False) as folder:
        assert folder.result() == {"test_accuracy": 50.0}
        assert [row["epoch"] for row in folder.epochs()] == [1, 2]
    assert files(tmp_path / "deep" / "run") == before
    assert workdir.finished_result(tmp_path / "deep" / "run", IDENTITY) == {"test_accuracy": 50.0}


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 1}, "seed: 0 there, 1 here"),
        ({"experiment": "net"}, "experiment: 'basic' there, 'net' here"),
        ({"config": {"epochs": 3, "lr": 0.1}}, "epochs: 2 there, 3 here"),
        ({"config": {"epochs": 2}}, "lr: 0.1 there, None here"),
    ],
)
def test_another_config_is_refused_by_its_fields(tmp_path: Path, changed, named: str) -> None:
    before = files(make(tmp_path))
    for attempt in (
        lambda: workdir.finished_result(tmp_path, IDENTITY | changed),
        lambda: workdir.open_workdir(tmp_path, IDENTITY | changed, fresh=False).__enter__(),
    ):
        with pytest.raises(UserError) as error:
            attempt()
        assert named in str(error.value)
        assert "lr: 0.1 there, 0.1" not in str(error.value)
    assert files(tmp_path) == before


def test_fresh_replaces_the_run_and_leaves_other_files(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    other = IDENTITY | {"seed": 1}
    with workdir.open_workdir(tmp_path, other, fresh=True) as folder:
        assert folder.result() is None
        assert folder.epochs() == []
    assert set(files(tmp_path)) == {"config.json", "notes.txt"}
    assert read_json(tmp_path / "config.json") == other


def test_fresh_that_is_killed_leaves_a_folder_that_can_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path)

    def killed(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(workdir.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            workdir.open_workdir(tmp_path, IDENTITY, fresh=True).__enter__()
    with workdir.open_workdir(tmp_path, IDENTITY, fresh=True) as folder:
        assert folder.epochs() == []
    assert set(files(tmp_path)) == {"config.json"}


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_of_other_things_is_left_alone(tmp_path: Path, fresh: bool) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with (
        pytest.raises(UserError, match="holds other files and no run"),
        workdir.open_workdir(tmp_path, IDENTITY, fresh=fresh),
    ):
        pass
    assert list(tmp_path.iterdir()) == [tmp_path / "thesis.tex"]


def test_places_that_cannot_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with (
            pytest.raises(UserError, match=str(path)),
            workdir.open_workdir(path, IDENTITY, fresh=False),
        ):
            pass
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize("fresh", [False, True])
def test_one_process_at_a_time(tmp_path: Path, fresh: bool) -> None:
    make(tmp_path)
    errors = []

    def other() -> None:
        try:
            with workdir.open_workdir(tmp_path, IDENTITY, fresh=fresh):
                pass
        except UserError as error:
            errors.append(str(error))

    with workdir.open_workdir(tmp_path, IDENTITY, fresh=False):
        before = files(tmp_path)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert files(tmp_path) == before
    assert len(errors) == 1
    assert "in use by another process" in errors[0]
    with workdir.open_workdir(tmp_path, IDENTITY, fresh=fresh):
        pass  # and afterwards it is free


def test_rewind_drops_what_will_be_repeated(tmp_path: Path) -> None:
    make(tmp_path)
    folder = workdir.Workdir(tmp_path)
    assert folder.rewind(15) == [{"epoch": 1, "step": 10}]
    assert folder.epochs() == [{"epoch": 1, "step": 10}]
    assert folder.rewind(0) == []


def test_a_row_that_a_crash_cut_short_is_left_out(tmp_path: Path) -> None:
    make(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "st')
    folder = workdir.Workdir(tmp_path)
    assert [row["epoch"] for row in folder.epochs()] == [1, 2]
    folder.rewind(20)
    folder.append_epoch({"epoch": 3, "step": 30})
    assert [row["epoch"] for row in folder.epochs()] == [1, 2, 3]


def test_json_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]
    assert read_json(path) == {"a": 1}


@pytest.mark.parametrize("text", ["", "{", '{"a": 1', "\xff"])
def test_json_that_is_damaged_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=str(path)):
        read_json(path)
    with pytest.raises(UserError, match=str(path)):
        workdir.existing_workdir(tmp_path)


@pytest.mark.parametrize("damage", ["[]", '"basic"', '{"experiment": "basic"}', '{"config": 3}'])
def test_a_config_that_is_no_runs_is_named(tmp_path: Path, damage: str) -> None:
    (tmp_path / "config.json").write_text(damage)
    for attempt in (
        lambda: workdir.finished_result(tmp_path, IDENTITY),
        lambda: workdir.open_workdir(tmp_path, IDENTITY, fresh=False).__enter__(),
        lambda: workdir.existing_workdir(tmp_path),
    ):
        with pytest.raises(UserError, match=str(tmp_path)):
            attempt()
    assert (tmp_path / "config.json").read_text() == damage


def test_no_folder_at_all(tmp_path: Path) -> None:
    assert workdir.finished_result(tmp_path / "absent", IDENTITY) is None
    with pytest.raises(UserError, match="no folder"):
        workdir.existing_workdir(tmp_path / "absent")
    with pytest.raises(UserError, match=r"no .*config\.json"):
        workdir.existing_workdir(tmp_path)


def test_every_start_is_recorded(tmp_path: Path) -> None:
    device = {"platform": "cpu", "kind": "cpu", "count": 1}
    with workdir.open_workdir(tmp_path, IDENTITY, fresh=False) as folder:
        folder.record_start(device)
        folder.record_start(device)
    starts = json.loads((tmp_path / "env.json").read_text())
    assert len(starts) == 2
    assert starts[0]["device"] == device
    assert {"python", "jax", "flax", "optax", "orbax-checkpoint"} <= starts[0]["versions"].keys()
    assert {"started", "command", "git_commit", "machine"} <= starts[0].keys()
