"""Test that docs/recipes.md names every part of a recipe, and that its example works."""

import re
from pathlib import Path

import pytest

from cifar_jax import catalog, config
from cifar_jax.training.setup import build_setup

PAGE = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text()
SETTINGS = {setting["name"]: setting for setting in config.describe()}


def test_the_example_fits_its_network(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (path := tmp_path / "my_recipe.py").write_text(code)
    experiment = catalog.load(str(path))
    assert experiment.name == "my-recipe"
    quick = ["data.dataset=digits", "data.validation=0.1", "batch_size=64", "train.devices=1"]
    setup = build_setup(config.override(experiment.config, quick))
    assert {variant.image_size for variant in setup.plan.variants} == {24, 32}


def test_the_settings_exist() -> None:
    named = set(re.findall(r"`((?:data|init|loss|tta|train|optimizer|averaging)\.\w+)", PAGE))
    assert len(named) > 15
    assert named <= SETTINGS.keys()
    assignments = re.findall(r"--set '?([^\s'`)]+)", PAGE)
    assert assignments
    config.override(catalog.load("fast-basic").config, assignments)


@pytest.mark.parametrize(
    ("settings", "prefix"),
    [
        (config.Augmentation, "data."),
        (config.Initialization, "init."),
        (config.TTAConfig, "tta."),
        (config.Loss, "loss."),
        (config.Ema, ""),
        (config.Lookahead, ""),
        (config.Phase, ""),
        (config.Schedule, ""),
    ],
)
def test_every_part_is_named(settings: type[config.Settings], prefix: str) -> None:
    names = [prefix + name for name in settings.model_fields if name not in ("name", "threshold")]
    assert [name for name in names if f"`{name}`" not in PAGE] == []


@pytest.mark.parametrize("name", ["optimizer.name", "schedule.name", "averaging.name"])
def test_every_kind_is_named(name: str) -> None:
    kinds = SETTINGS[name]["type"].removeprefix("one of ").split(", ")
    assert len(kinds) > 1
    assert [kind for kind in kinds if f"`{kind}`" not in PAGE] == []
