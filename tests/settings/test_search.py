"""Test search spaces: accepted values, and the messages about mistakes."""

from typing import Any

import pytest

from cifar_jax import catalog
from cifar_jax.config import Range
from cifar_jax.errors import UserError
from cifar_jax.settings import search

CONFIG = catalog.load("fast-basic").config


def test_values_get_the_types_of_the_settings() -> None:
    space = search.check(
        CONFIG,
        {
            "optimizer.lr": Range(1, 10, log=True),
            "data.crop_padding": Range(0, 4),
            "batch_size": ["64", 128, 64],
            "averaging.name": ["ema"],
            "averaging.decay": Range(0.5, 0.9),  # valid only with `averaging.name`
            "phases": [[], [{"until": 0.4, "image_size": 16}]],
        },
    )
    assert space["optimizer.lr"] == Range(1.0, 10.0, log=True)
    assert isinstance(space["optimizer.lr"].low, float)
    assert isinstance(space["data.crop_padding"].low, int)
    assert space["batch_size"] == [64, 128]
    mixed = {"data.mixup": [0.2, 0.0], "data.cutmix": [1.0, 0.0]}  # 0.2 and 1.0 contradict.
    assert search.check(CONFIG, mixed) == mixed
    for phases in space["phases"]:
        assert search.check(CONFIG, {"phases": [phases]})["phases"] == [phases]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"optimizer.lrr": [0.1]}, "'optimizer.lrr'; did you mean optimizer.lr?"),
        ({"optimizer.lr": Range(-1, 1)}, "optimizer.lr is -1, but it must be a number > 0"),
        ({"batch_size": Range(1.5, 4)}, "batch_size=1.5: expected a whole number >= 1"),
        ({"data.flip": Range(0, 1)}, "data.flip is not a number: list its values"),
        ({"batch_size": 128}, "batch_size is 128, but it must be a Range or a list"),
        ({"batch_size": []}, "batch_size is [], but it must be a Range or a list"),
        ({"data.validation": [0.1, 0.2]}, "data.validation cannot be searched"),
        ({"train.log_every": [1, 2]}, "train.log_every cannot be searched"),
        ({}, "expected settings and their values, such as SEARCH = {"),
        (["optimizer.lr"], "expected settings and their values, such as SEARCH = {"),
    ],
)
def test_a_mistake_is_explained(space: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        search.check(CONFIG, space, fixed=("data.validation",))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ((2, 1), "low must be less than high"),
        ((0, 1, True), "low must be greater than 0"),
        (("a", "b"), "low and high must be numbers"),
    ],
)
def test_a_range_must_have_two_ends(ends: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Range(*ends)


@pytest.mark.parametrize("text", ["lr", "lr=", "lr=1..x", "lr=1..2:lin"])
def test_a_search_on_the_command_line_needs_values(text: str) -> None:
    with pytest.raises(UserError, match="expected a range such as"):
        search.parse(text)


def test_a_search_on_the_command_line_takes_paths() -> None:
    assert search.parse("train.init_from=../a,../b") == ("train.init_from", ["../a", "../b"])
