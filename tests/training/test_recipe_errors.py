"""Test that unsuitable recipe settings are refused before anything is computed or written."""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from tiny import DATASET, TINY

from cifar_jax.config import Config, Optimizer, ParamGroup
from cifar_jax.errors import UserError
from cifar_jax.training import optimizers, setup

Make = Callable[..., Config]
pytestmark = pytest.mark.usefixtures("tiny")


def _phases(*ends: float) -> str:
    return json.dumps([{"until": end, "batch_size": 8} for end in ends])


def groups(*patterns: str) -> dict[str, str]:
    """Return the setting `param_groups` with one group for each pattern."""
    parts = (f'{{"parameters": "{pattern}", "optimizer": {{}}}}' for pattern in patterns)
    return {"param_groups": f"[{', '.join(parts)}]"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (groups("fc9/*"), r"no parameter of the network matches 'fc9/\*'\. .* bn/bias, bn/scale, "),
        (groups("*/bias, fc9/*"), r"no parameter of the network matches 'fc9/\*'"),
        (groups("*", "fc/*"), r"the group 'fc/\*' is unused, because earlier groups"),
        ({"optimizer__name": "muon"}, "muon cannot train bn/bias, which is not a kernel"),
        ({"init__whitening": True}, "init.whitening needs a first convolution named conv1"),
        (
            {"phases": '[{"until": 0.5, "image_size": 24}]'},
            "a phase has image_size 24, but tiny accepts only images of 32 × 32",
        ),
        (
            {"data__image_size": 64},
            "data.image_size is 64, but tiny accepts only images of 32 × 32",
        ),
        (
            {"phases": '[{"until": 0.5, "batch_size": 64}]'},
            "phase is 64, but .* lower it in phases",
        ),
        (
            {"averaging__name": "lookahead", "averaging__every": 1000},
            "averaging.every is 1,000, but the run has only 16 steps",
        ),
    ],
)
def test_settings_that_do_not_fit_the_network_or_the_data_are_refused(
    make_config: Make, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        setup.build_setup(make_config(**TINY | settings), dataset=DATASET)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data__mixup": 1, "data__cutmix": 1}, "mixup and cutmix cannot be combined"),
        ({"phases": _phases(0.5, 0.4)}, "each phase must end after the previous phase"),
        ({"phases": _phases(0.5, 0.5)}, "each phase must end after the previous phase"),
        ({"phases": '[{"until": 0.5}]'}, "phase that ends at until=0.5 changes nothing"),
        (
            {"phases": '[{"until": 0.5, "image_size": 40}]'},
            r"phases\[0\]\.image_size is 40, but it must be",
        ),
        ({"data__cutout": 33}, "data.cutout is 33, but it must be at most 32"),
        ({"data__crop_padding": 17}, "data.crop_padding is 17, but it must be at most 16"),
        ({"init__whitening": True, "train__init_from": "basic"}, "init.whitening and train.init_f"),
        ({"init__dirac": True, "train__init_from": "basic"}, "init.dirac and train.init_from both"),
        ({"tta__least_confident": 0.5}, "set tta.flip or tta.shift as well"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(
    make_config: Make, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_config(**settings)


def test_muon_refuses_depthwise_kernels() -> None:
    shapes = {
        "depthwise": {"kernel": jax.ShapeDtypeStruct((3, 3, 1, 8), np.float32)},
        "pointwise": {"kernel": jax.ShapeDtypeStruct((1, 1, 8, 16), np.float32)},
    }
    by_muon = Optimizer(name="muon")
    with pytest.raises(UserError, match="depthwise/kernel, which is a depthwise kernel"):
        optimizers.validate_groups(shapes, by_muon, ())
    group = ParamGroup(parameters="depthwise/*", optimizer=Optimizer())
    optimizers.validate_groups(shapes, by_muon, [group])


def test_whitening_needs_a_convolution_of_the_images(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = jax.ShapeDtypeStruct((3, 3, 16, 32), np.float32)
    shapes = {"params": {"conv1": {"kernel": kernel}}}
    monkeypatch.setattr(setup.models, "variable_shapes", lambda *_: shapes)
    config = make_config(**TINY | {"model__name": "pooled", "init__whitening": True})
    with pytest.raises(UserError, match="with 3 input channels, and conv1 has 16"):
        setup.build_setup(config, dataset=DATASET)
