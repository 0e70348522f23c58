"""A run's folder: what is refused, what is kept, and what is written whole."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from short_runs import files

from cifar_jax.config import Config, Model, Optimizer, flatten, override
from cifar_jax.errors import UserError
from cifar_jax.runs import folder as workdir
from cifar_jax.runs.files import read_json

CONFIG = Config(model=Model(name="basic"), epochs=2, batch_size=8, optimizer=Optimizer(lr=0.1))


def identity(config: Config = CONFIG, **changed: Any) -> dict[str, Any]:
    return {"experiment": "basic", "seed": 0, "overrides": {}, "config": flatten(config)} | changed


def changed(*settings: str) -> dict[str, Any]:
    return identity(override(CONFIG, settings))


IDENTITY = identity()


def make(path: Path) -> Path:
    """A folder as a run leaves it."""
    with workdir.open_workdir(path, IDENTITY, fresh=False) as folder:
        folder.append_epoch({"epoch": 1, "step": 10})
        folder.append_epoch({"epoch": 2, "step": 20})
        folder.checkpoints.mkdir()
        for step in ("10", "20", "damaged-5"):
            (folder.checkpoints / step / "default").mkdir(parents=True)
        folder.tensorboard.mkdir()
        (folder.tensorboard / "events.out.tfevents.1.host").write_text("events")
        folder.write_result({"test_accuracy": 50.0}, np.zeros((4, 10), "float32"))
    return path


def test_the_same_run_finds_its_folder_again(tmp_path: Path) -> None:
    before = files(make(tmp_path / "deep" / "run"))
    with workdir.open_workdir(tmp_path / "deep" / "run", IDENTITY, fresh=False) as folder:
        assert folder.result() == {"test_accuracy": 50.0}
        assert [row["epoch"] for row in folder.epochs()[0]] == [1, 2]
    assert files(tmp_path / "deep" / "run") == before
    assert workdir.finished_result(tmp_path / "deep" / "run", IDENTITY) == {"test_accuracy": 50.0}


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (identity(seed=1), "seed: 0 there, 1 here"),
        (identity(experiment="net"), "experiment: 'basic' there, 'net' here"),
        (changed("epochs=3"), "epochs: 2 there, 3 here): name the folder by --workdir"),
        (changed("epochs=1"), "it cannot have fewer"),
        (changed("optimizer.lr=0.2"), "optimizer.lr: 0.1 there, 0.2 here"),
    ],
)
def test_another_config_is_refused_by_its_fields(
    tmp_path: Path, asked: dict[str, Any], named: str
) -> None:
    before = files(make(tmp_path))
    for attempt in (
        lambda: workdir.finished_result(tmp_path, asked),
        lambda: workdir.open_workdir(tmp_path, asked, fresh=False).__enter__(),
    ):
        with pytest.raises(UserError) as error:
            attempt()
        assert named in str(error.value)
        assert "batch_size" not in str(error.value)
    assert files(tmp_path) == before


def test_how_a_run_is_carried_out_makes_it_no_other(tmp_path: Path) -> None:
    make(tmp_path)
    asked = changed("train.devices=2", "train.log_every=5", "train.keep_checkpoints=9")
    assert workdir.finished_result(tmp_path, asked) == {"test_accuracy": 50.0}
    with workdir.open_workdir(tmp_path, asked, fresh=False):
        pass


def test_a_run_is_not_put_into_another(tmp_path: Path) -> None:
    """Where no report would find it."""
    (make(tmp_path / "run") / "checkpoints").mkdir(exist_ok=True)
    inside = tmp_path / "run/seed0"
    with (
        pytest.raises(UserError, match=f"{inside} is inside the run in {tmp_path / 'run'}: choose"),
        workdir.open_workdir(inside, IDENTITY, fresh=False),
    ):
        pass
    assert not inside.exists()
    with workdir.open_workdir(tmp_path / "run/../other", IDENTITY, fresh=False):
        pass


def test_a_setting_that_this_version_does_not_know_is_named(tmp_path: Path) -> None:
    stored = IDENTITY | {"config": IDENTITY["config"] | {"train.magic": 1}}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"config\.json: .*train\.magic"):
        workdir.finished_result(tmp_path, IDENTITY)


def test_fresh_replaces_the_run_and_leaves_other_files(tmp_path: Path) -> None:
    make(tmp_path)
    theirs = ("notes.txt", "checkpoints/best.pt", "tensorboard/mine.txt")
    for name in theirs:
        (tmp_path / name).write_text("mine")
    other = identity(seed=1)
    with workdir.open_workdir(tmp_path, other, fresh=True) as folder:
        assert folder.result() is None
        assert folder.epochs() == ([], 0)
    assert set(files(tmp_path)) == {"config.json", *theirs}
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()]
    assert read_json(tmp_path / "config.json") == other


@pytest.mark.parametrize("config", ["{}", '{"name": "my web app"}', "not JSON"])
def test_fresh_leaves_a_strangers_folder_alone(tmp_path: Path, config: str) -> None:
    """config.json is a common name: it alone does not make a folder a run's."""
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "log.txt").write_text("mine")
    before = files(tmp_path)
    with (
        pytest.raises(UserError, match=r"config\.json"),
        workdir.open_workdir(tmp_path, IDENTITY, fresh=True),
    ):
        pass
    assert files(tmp_path) == before


def test_fresh_that_is_killed_leaves_a_folder_that_can_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing in it that a run would go on from."""
    make(tmp_path)

    def killed(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(workdir.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            workdir.open_workdir(tmp_path, IDENTITY, fresh=True).__enter__()
    with workdir.open_workdir(tmp_path, IDENTITY, fresh=False) as folder:
        assert not [path for path in folder.checkpoints.iterdir() if path.name.isdecimal()]
        assert folder.result() is None
    with workdir.open_workdir(tmp_path, IDENTITY, fresh=True) as folder:
        assert folder.epochs() == ([], 0)
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


@pytest.mark.parametrize("lost", ["experiment", "seed", "config", "model.name", "epochs"])
def test_a_config_that_has_lost_something_is_not_taken_for_a_runs(
    tmp_path: Path, lost: str
) -> None:
    """Not for reading, and with `fresh` least of all: nothing of a stranger's is deleted."""
    known = make(tmp_path / "run") / "config.json"
    there = json.loads(known.read_text())
    (there["config"] if lost in there["config"] else there).pop(lost)
    known.write_text(json.dumps(there))
    before = files(known.parent)
    for fresh in (False, True):
        with (
            pytest.raises(UserError, match=r"config\.json is damaged, or not a run's"),
            workdir.open_workdir(known.parent, IDENTITY, fresh=fresh),
        ):
            pass
    assert files(known.parent) == before
