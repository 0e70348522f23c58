"""docs/recipes.md keeps to the settings that there are, and its example works."""

import re
from pathlib import Path

import pytest

from cifar_jax import catalog, config
from cifar_jax.training import setup

PAGE = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text()
SETTINGS = {setting["name"]: setting for setting in config.describe()}


def test_the_example_is_a_recipe_that_fits_its_network(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (path := tmp_path / "my_recipe.py").write_text(code)
    experiment = catalog.load(str(path))
    assert experiment.name == "my-recipe"
    quick = ["data.dataset=digits", "data.validation=0.1", "batch_size=64", "train.devices=1"]
    workload = setup.workload(config.override(experiment.config, quick))
    assert {stage.image_size for stage in workload.plan.stages} == {24, 32}


def test_its_settings_exist() -> None:
    named = set(re.findall(r"\b(?:data|init|loss|tta|train|optimizer|averaging)\.\w+", PAGE))
    assert len(named) > 20
    assert named <= SETTINGS.keys()
    for assignment in re.findall(r"--set '?([^\s'`)]+)", PAGE):
        assert config.override(catalog.load("fast-basic").config, [assignment])


@pytest.mark.parametrize(
    ("group", "prefix"),
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
def test_no_part_is_missing(group: type[config.Settings], prefix: str) -> None:
    """In a table, or where it is named as code."""
    names = [prefix + name for name in group.model_fields if name not in ("name", "threshold")]
    assert [name for name in names if f"`{name}`" not in PAGE] == []


@pytest.mark.parametrize("name", ["optimizer.name", "schedule.name", "averaging.name"])
def test_no_kind_of_a_part_is_missing(name: str) -> None:
    choices = SETTINGS[name]["type"]
    kinds = choices.removeprefix("one of ").split(", ")
    assert len(kinds) > 1
    assert [kind for kind in kinds if f"`{kind}`" not in PAGE] == []
