"""What of a recipe does not fit, is in vain, or excludes something else: one line, in time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from short_runs import Recorder, kill, train
from tiny import TINY

from cifar_jax.config import Config, Optimizer, ParamGroup
from cifar_jax.errors import UserError
from cifar_jax.training import optimizers, setup

Make = Callable[..., Config]
pytestmark = pytest.mark.usefixtures("tiny")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"param_groups": '[{"parameters": "fc9/*", "optimizer": {}}]'},
            "no parameter is called 'fc9/",
        ),
        ({"optimizer__name": "muon"}, "muon is for kernels, and bn/bias is none"),
        ({"init__whitening": True}, "no convolution conv1 to whiten"),
        (
            {"phases": '[{"until": 0.5, "image_size": 24}]'},
            "tiny takes images of 32 pixels only, and a phase has 24",
        ),
        ({"phases": '[{"until": 0.5, "batch_size": 64}]'}, "batch_size 64 is larger than the 32"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_computed(
    make_config: Make, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build_setup(make_config(**TINY | settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {
                "param_groups": '[{"parameters": "*", "optimizer": {}},'
                ' {"parameters": "fc/*", "optimizer": {}}]'
            },
            r"all that is called 'fc/\*' is in groups before it",
        ),
        (
            {"averaging__name": "lookahead", "averaging__every": 1000},
            "averaging.every is 1000, and the run has",
        ),
        ({"init__dirac": True, "train__init_from": "basic"}, "leave one of them out"),
    ],
)
def test_what_would_be_in_vain_is_refused_where_a_run_begins(
    make_config: Make, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    """And not where one is read, or goes on, that an earlier version began."""
    config = make_config(**TINY | settings)
    build_setup(config)
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run", initial=dict)
    assert not (tmp_path / "run").exists()


def test_what_an_earlier_version_began_in_vain_goes_on_to_its_end(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(**TINY | {"averaging__name": "lookahead", "averaging__every": 1000})
    with monkeypatch.context() as patch:
        patch.setattr(setup, "check_average", lambda *_, **__: None)
        stop = Recorder("[EPOCH 002 | IT 00002]", kill)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run", stop)
    assert train(config, tmp_path / "run")["epochs"] == config.epochs


def test_muon_refuses_depthwise_kernels() -> None:
    """Each of their channels has a filter of its own: they are no matrix."""
    shapes = {
        "depthwise": {"kernel": jax.ShapeDtypeStruct((3, 3, 1, 8), np.float32)},
        "pointwise": {"kernel": jax.ShapeDtypeStruct((1, 1, 8, 16), np.float32)},
    }
    by_muon = Optimizer(name="muon")
    with pytest.raises(UserError, match="depthwise/kernel is depthwise"):
        optimizers.validate_group_use(shapes, by_muon, ())
    optimizers.validate_group_use(
        shapes, by_muon, (ParamGroup(parameters="depthwise/*", optimizer=Optimizer()),)
    )


def test_whitening_is_for_the_convolution_that_takes_the_images(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = jax.ShapeDtypeStruct((3, 3, 16, 32), np.float32)
    shapes = {"params": {"conv1": {"kernel": kernel}}}
    monkeypatch.setattr(setup.models, "variable_shapes", lambda *_: shapes)
    told = "of 3 channels, and conv1 takes 16"
    with pytest.raises(UserError, match=told):
        build_setup(make_config(**TINY | {"model__name": "pooled", "init__whitening": True}))


def test_a_pattern_that_names_nothing_is_refused_beside_one_that_does(make_config: Make) -> None:
    groups = '[{"parameters": "*/bias, fc9/*", "optimizer": {"name": "sgd", "lr": 0.1}}]'
    with pytest.raises(UserError, match=r"no parameter is called 'fc9/\*'"):
        setup.check_beginning(make_config(**TINY, param_groups=groups))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data__mixup": 1, "data__cutmix": 1}, "mixup and cutmix exclude each other"),
        ({"phases": '[{"until": 0.5}, {"until": 0.4}]'}, "let each end after the one before"),
        ({"phases": '[{"until": 0.5, "image_size": 40}]'}, "image_size must be in 8..32, not 40"),
        ({"train__max_minutes": 1}, "the schedule constant has no end to fit into"),
        ({"init__whitening": True, "train__init_from": "basic"}, "leave one of them out"),
        ({"tta__least_confident": 0.5}, "tta.least_confident is a share of the images"),
    ],
)
def test_parts_that_exclude_each_other_make_no_config(
    make_config: Make, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_config(**settings)
