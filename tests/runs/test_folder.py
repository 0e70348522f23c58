"""Test that run folders are read, written, refused or started afresh."""

import errno
import functools
import json
import os
import threading
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest

from cifar_jax.config import Config, Model, Optimizer, flatten, override
from cifar_jax.errors import UserError
from cifar_jax.runs import environment, folder, schemas
from cifar_jax.runs.folder import (
    RunFolder,
    default_name,
    existing_run_folder,
    finished_result,
    open_run_folder,
)
from cifar_jax.runs.lock import is_locked
from cifar_jax.runs.schemas import Device, MetricsRow, ModelCard, NetworkCard, Result, RunIdentity

CONFIG = Config(model=Model(name="basic"), epochs=2, batch_size=8, optimizer=Optimizer(lr=0.1))
DEVICE = Device(platform="cpu", kind="cpu", count=1)
CARD = ModelCard(
    experiment="basic",
    seed=0,
    model=NetworkCard(name="basic", num_classes=2),
    precision="float32",
    classes=["cat", "dog"],
    mean=[0.5, 0.5, 0.5],
    std=[0.2, 0.2, 0.2],
)
OUTPUTS = {"test_logits": np.float32([[1.5, -0.1]]), "test_labels": np.int32([1])}


def identity(*settings: str, seed: int = 0, experiment: str = "basic") -> RunIdentity:
    stored = flatten(override(CONFIG, settings))
    return RunIdentity(experiment=experiment, seed=seed, overrides={}, settings=stored)


def row(epoch: int, **fields: Any) -> MetricsRow:
    values = {"epoch": epoch, "step": 10 * epoch, "train_loss": 1.5, "train_accuracy": 50.0}
    values |= {"learning_rate": 0.1, "images_per_second": 9.0, "wall_seconds": 3.0}
    return MetricsRow.model_validate(values | fields)


@functools.cache
def result() -> Result:
    """Return a cached result, because each new result would have another start time."""
    session = environment.session(DEVICE, None)
    values = dict.fromkeys(Result.model_fields) | dict.fromkeys(
        ("parameters", "epochs", "steps", "outputs_differ"), 1
    )
    values |= dict.fromkeys(("test_loss", "test_accuracy", "wall_seconds", "compile_seconds"), 1.0)
    values |= {"format": 1, "model": "basic", "dataset": "digits", "sessions": [session]}
    values |= {"data_sha256": "a", "data_content": "b", "data_official": False}
    values |= {"versions": {}, "device": DEVICE, "machine": session.machine}
    return Result.model_validate(values | dict(identity()))


def files(path: Path) -> dict[str, bytes]:
    paths = (file for file in path.rglob("*") if file.is_file() and file.name != ".lock")
    return {str(file.relative_to(path)): file.read_bytes() for file in paths}


def make(path: Path) -> Path:
    """Write a run folder that contains every kind of file."""
    with open_run_folder(path, identity(), fresh=False) as run:
        run.append_row(row(1))
        run.append_row(row(2))
        for name in ("1", "2", "damaged-3", "4.orbax-checkpoint-tmp"):
            (run.checkpoints / name / "state").mkdir(parents=True)
        run.tensorboard.mkdir()
        (run.tensorboard / "events.out.tfevents.1.host").write_text("events")
        run.log.write_text("epoch 1")
        run.write_card(CARD)
        run.write_code(b"MODEL = 1\n")
        run.add_session(environment.session(DEVICE, None))
        run.write_result(result(), OUTPUTS)
    return path


def test_all_files_are_read_as_they_were_written(tmp_path: Path) -> None:
    run = existing_run_folder(make(tmp_path / "deep" / "run"))
    before = files(run.path)
    with open_run_folder(run.path, identity(), fresh=False):
        assert files(run.path) == before
    assert run.identity() == identity()
    assert run.card() == CARD
    assert run.code.read_bytes() == b"MODEL = 1\n"
    assert run.rows() == [row(1), row(2)]
    assert [session.device for session in run.sessions()] == [DEVICE]
    assert run.result() == finished_result(run.path, identity()) == result()
    with np.load(run.outputs, allow_pickle=False) as outputs:
        assert {name: (outputs[name].tolist(), outputs[name].dtype) for name in outputs} == {
            name: (array.tolist(), array.dtype) for name, array in OUTPUTS.items()
        }


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (identity(seed=1), "seed is 0 in the folder and 1 in this command"),
        (identity(experiment="net"), "experiment is basic in the folder and net in this command"),
        (identity("optimizer.lr=0.2"), "optimizer.lr is 0.1 in the folder and 0.2 in"),
        (identity("epochs=3"), "3 in this command). Add --workdir"),
        (identity("epochs=1"), "The number of epochs of a run can only grow"),
    ],
)
def test_another_run_is_refused_and_the_differences_are_named(
    tmp_path: Path, wanted: RunIdentity, message: str
) -> None:
    before = files(make(tmp_path))
    for attempt in (
        lambda: finished_result(tmp_path, wanted),
        lambda: open_run_folder(tmp_path, wanted, fresh=False).__enter__(),
    ):
        with pytest.raises(UserError) as error:
            attempt()
        assert message in str(error.value)
        assert "batch_size" not in str(error.value)
    assert files(tmp_path) == before


def test_an_unknown_setting_is_named(tmp_path: Path) -> None:
    stored = identity()
    stored = stored.model_copy(update={"settings": stored.settings | {"train.magic": 1}})
    (tmp_path / "config.json").write_text(json.dumps(schemas.dump(stored)))
    with pytest.raises(UserError, match=r"config\.json is damaged, .*train\.magic"):
        finished_result(tmp_path, identity())


# More epochs for a finished run


def test_a_finished_run_can_have_more_epochs(tmp_path: Path) -> None:
    before = files(make(tmp_path))
    more = identity("epochs=3")
    assert finished_result(tmp_path, more, extend=True) is None
    with open_run_folder(tmp_path, more, fresh=False, extend=True) as run:
        assert files(tmp_path) == before
        run.extend(more)
        assert run.result() is None
        assert run.rows() == [row(1), row(2)]
    assert run.identity() == more


def test_extend_keeps_the_result_of_a_run_with_the_same_epochs(tmp_path: Path) -> None:
    before = files(make(tmp_path))
    # Runtime settings, such as the number of devices, may change.
    same = identity("train.devices=2", "train.log_every=5")
    RunFolder(tmp_path).extend(same)
    assert finished_result(tmp_path, same) == result()
    assert files(tmp_path) == before


def test_more_epochs_with_another_difference_are_refused(tmp_path: Path) -> None:
    make(tmp_path)
    message = "epochs is 2 in .* 3 in this command, optimizer.lr is 0.1 in .* 0.2 in this"
    with pytest.raises(UserError, match=message):
        finished_result(tmp_path, identity("epochs=3", "optimizer.lr=0.2"), extend=True)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (["schedule.name=cosine"], "the cosine schedule"),
        (['phases=[{"until": 0.5, "image_size": 24}]'], "phases"),
        (["averaging.name=lookahead", "averaging.power=3"], r"averaging\.power"),
        (
            ['param_groups=[{"parameters": "fc1/*", "optimizer": {}, "until": 0.5}]'],
            r"param_groups \(until\)",
        ),
    ],
)
def test_a_run_that_depends_on_its_epochs_cannot_have_more(
    tmp_path: Path, settings: list[str], part: str
) -> None:
    with open_run_folder(tmp_path, identity(*settings), fresh=False):
        pass
    with pytest.raises(UserError, match=f"cannot change, because {part} depends on it"):
        finished_result(tmp_path, identity(*settings, "epochs=3"), extend=True)


# Fresh starts


def test_fresh_replaces_the_run_and_keeps_other_files(tmp_path: Path) -> None:
    make(tmp_path)
    others = ("notes.txt", "checkpoints/best.pt", "tensorboard/mine.txt")
    for name in others:
        (tmp_path / name).write_text("mine")
    with open_run_folder(tmp_path, identity(seed=1), fresh=True) as run:
        assert (run.result(), run.rows()) == (None, [])
    assert set(files(tmp_path)) == {"config.json", *others}
    assert not [path for path in run.checkpoints.iterdir() if path.is_dir()]
    assert run.identity() == identity(seed=1)


@pytest.mark.parametrize("config", ["{}", '{"name": "my web app"}', "not JSON", "[]"])
def test_fresh_deletes_nothing_if_the_folder_is_not_a_run(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "log.txt").write_text("mine")
    before = files(tmp_path)
    for fresh in (False, True):
        with pytest.raises(UserError, match=r"config\.json"):
            open_run_folder(tmp_path, identity(), fresh=fresh).__enter__()
    with pytest.raises(UserError, match=r"config\.json"):
        existing_run_folder(tmp_path)
    assert files(tmp_path) == before


def test_a_killed_fresh_start_leaves_nothing_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path)

    def kill(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folder.shutil, "rmtree", kill)
        with pytest.raises(KeyboardInterrupt):
            open_run_folder(tmp_path, identity(), fresh=True).__enter__()
    with open_run_folder(tmp_path, identity(), fresh=False) as run:
        assert not [path for path in run.checkpoints.iterdir() if path.name.isdecimal()]
        assert run.result() is None
    with open_run_folder(tmp_path, identity(), fresh=True):
        pass
    assert set(files(tmp_path)) == {"config.json"}


# Refused folders


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_with_other_files_is_refused(tmp_path: Path, fresh: bool) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="contains files but no run"):
        open_run_folder(tmp_path, identity(), fresh=fresh).__enter__()
    assert list(tmp_path.iterdir()) == [tmp_path / "thesis.tex"]


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file, not a folder"):
        open_run_folder(tmp_path / "file", identity(), fresh=False).__enter__()
    with pytest.raises(NotADirectoryError, match="file"):
        open_run_folder(tmp_path / "file" / "run", identity(), fresh=False).__enter__()


def test_a_run_inside_another_run_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "run")
    inside = tmp_path / "run/seed0"
    with pytest.raises(UserError, match=f"{inside} is inside the run {tmp_path / 'run'}"):
        open_run_folder(inside, identity(), fresh=False).__enter__()
    assert not inside.exists()
    (tmp_path / "config.json").write_text('{"name": "my web app"}')
    with open_run_folder(tmp_path / "run/../other", identity(), fresh=False):
        pass


@pytest.mark.parametrize("fresh", [False, True])
def test_only_one_process_at_a_time(tmp_path: Path, fresh: bool) -> None:
    make(tmp_path)
    errors = []

    def other() -> None:
        try:
            with open_run_folder(tmp_path, identity(), fresh=fresh):
                pass
        except UserError as error:
            errors.append(str(error))

    with open_run_folder(tmp_path, identity(), fresh=False):
        before = files(tmp_path)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert files(tmp_path) == before
    assert errors == [
        f"{tmp_path} is in use by another process. Wait until that process ends, or stop it."
    ]
    other()  # The folder is not locked any more.
    assert len(errors) == 1


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch, number: int) -> None:
    def no_locks(*arguments: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", no_locks)
    with (
        pytest.raises(UserError, match=r"file system without file locks \(.*choose a --workdir"),
        open_run_folder(tmp_path / "run", identity(), fresh=False),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_left_on_another_host_is_named(tmp_path: Path, monkeypatch) -> None:
    """On a file system without locks, an existing file `.lock` means that the folder is locked."""
    make(tmp_path)
    (tmp_path / ".lock").write_text("4242\nnode17\n")
    monkeypatch.setattr(filelock, "FileLock", filelock.SoftFileLock)
    with (
        pytest.raises(UserError, match=rf"process 4242 on node17.* delete {tmp_path}/\.lock"),
        open_run_folder(tmp_path, identity(), fresh=False),
    ):
        pass


def test_a_lock_is_found_without_a_warning_on_a_file_system_without_locks(
    tmp_path: Path, monkeypatch, recwarn
) -> None:
    (tmp_path / ".lock").touch()

    def no_locks(*arguments: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", no_locks)
    # On a file system without locks, an existing file `.lock` means that the folder is locked.
    assert is_locked(tmp_path)
    assert not recwarn.list


def test_a_missing_folder_and_a_new_run_have_no_results(tmp_path: Path) -> None:
    with open_run_folder(tmp_path / "new", identity(), fresh=False) as run:
        assert (run.card(), run.result(), run.rows(), run.sessions()) == (None, None, [], [])
    assert finished_result(tmp_path / "new", identity()) is None
    assert finished_result(tmp_path / "absent", identity()) is None
    with pytest.raises(UserError, match="absent does not exist"):
        existing_run_folder(tmp_path / "absent")
    with pytest.raises(UserError, match=r"it has no file config\.json"):
        existing_run_folder(tmp_path)


# Metrics


def test_damaged_lines_are_skipped_and_later_lines_replace_earlier_ones(tmp_path: Path) -> None:
    run = RunFolder(make(tmp_path))
    metrics = tmp_path / "metrics.jsonl"
    first, second = metrics.read_text().splitlines()
    metrics.write_text(f'{first[:8]}\n{second}\n[1]\n{{"epoch": "?"}}\n{{"epoch": 3, "st')
    assert run.rows() == [row(2)]
    assert run.rewind(2) == [row(2)]
    run.append_row(row(3))
    run.append_row(row(2, step=21))
    assert run.rows() == [row(2, step=21), row(3)]
    assert run.rewind(2) == run.rows() == [row(2, step=21)]
    assert run.rewind(0) == run.rows() == []


# Default name of a run folder


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "net"),
        ({"epochs": 5, "optimizer.lr": 3e-4}, "net@epochs=5,lr=0.0003"),
        ({"optimizer.name": "adam", "model.name": "x"}, "net@optimizer.name=adam,model.name=x"),
        ({"data.flip": True, "data.validation": 64.0}, "net@flip=True,validation=64"),
        ({"data.dataset": "folder:/my images/ä"}, "net@dataset=folder-my-images-ä"),
        ({"data.dataset": 72 * "x"}, f"net@dataset={72 * 'x'}"),
        ({"data.dataset": 73 * "x"}, f"net@dataset={52 * 'x'}-a51a582a"),
    ],
)
def test_the_default_name_lists_the_changed_settings(changes: dict[str, Any], name: str) -> None:
    assert default_name("net", changes) == name
