"""More epochs for a run that is there: which differences they excuse, and which they do not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from short_runs import files

from cifar_jax.config import Config, Model, Optimizer, flatten, override
from cifar_jax.errors import UserError
from cifar_jax.runs.files import read_json
from cifar_jax.runs.folder import Workdir, finished_result, open_workdir

CONFIG = Config(model=Model(name="basic"), epochs=2, batch_size=8, optimizer=Optimizer(lr=0.1))


def identity(*settings: str, seed: int = 0) -> dict[str, Any]:
    config = flatten(override(CONFIG, settings))
    return {"experiment": "basic", "seed": seed, "overrides": {}, "config": config}


@pytest.fixture
def unfinished(tmp_path: Path) -> Path:
    """A run's folder, with an epoch behind it."""
    with open_workdir(tmp_path, identity(), fresh=False) as folder:
        folder.append_epoch({"epoch": 1, "step": 10})
    return tmp_path


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (identity("epochs=3", seed=1), "seed: 0 there, 1 here"),
        (identity("epochs=3", "optimizer.lr=0.2"), "optimizer.lr: 0.1 there, 0.2 here"),
    ],
)
def test_more_epochs_excuse_no_other_difference(
    unfinished: Path, asked: dict[str, Any], named: str
) -> None:
    before = files(unfinished)
    for attempt in (
        lambda: finished_result(unfinished, asked, extend=True),
        lambda: open_workdir(unfinished, asked, fresh=False, extend=True).__enter__(),
    ):
        with pytest.raises(UserError) as error:
            attempt()
        assert named in str(error.value)
        assert "epochs: 2 there, 3 here" in str(error.value)
    assert files(unfinished) == before


def test_a_run_that_is_not_finished_can_have_more_epochs(unfinished: Path) -> None:
    more = identity("epochs=3")
    with open_workdir(unfinished, more, fresh=False, extend=True) as folder:
        folder.extend(more)
        assert [row["epoch"] for row in folder.epochs()[0]] == [1]
    assert read_json(unfinished / "config.json") == more


def test_a_finished_run_can_have_more_epochs_where_its_folder_is_named(unfinished: Path) -> None:
    Workdir(unfinished).write_result({"test_accuracy": 50.0}, np.zeros((4, 10), "float32"))
    more = identity("epochs=3")
    assert finished_result(unfinished, more, extend=True) is None
    before = files(unfinished)
    with open_workdir(unfinished, more, fresh=False, extend=True) as folder:
        assert files(unfinished) == before  # something may be found yet that does not fit
        folder.extend(more)
        assert folder.result() is None
        assert [row["epoch"] for row in folder.epochs()[0]] == [1]
    assert read_json(unfinished / "config.json") == more


def test_a_run_that_is_asked_for_again_keeps_its_result(unfinished: Path) -> None:
    Workdir(unfinished).write_result({"test_accuracy": 50.0}, np.zeros((4, 10), "float32"))
    before = files(unfinished)
    Workdir(unfinished).extend(identity("train.devices=2"))
    assert files(unfinished) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["schedule.name=cosine"], "its cosine schedule is made for 2 epochs"),
        (['phases=[{"until": 0.5, "image_size": 24}]'], "its phases are made for 2 epochs"),
        (["averaging.name=lookahead", "averaging.power=3"], "its lookahead's power is made for 2"),
        (
            ['param_groups=[{"parameters": "fc1/*", "optimizer": {}, "until": 0.5}]'],
            "its groups' until is made for 2",
        ),
    ],
)
def test_what_knows_its_end_has_no_more_epochs(
    tmp_path: Path, settings: list[str], message: str
) -> None:
    with open_workdir(tmp_path, identity(*settings), fresh=False):
        pass
    more = identity(*settings, "epochs=3")
    with pytest.raises(UserError, match=message):
        finished_result(tmp_path, more, extend=True)
