"""Experiment files, found by name or by path."""

from pathlib import Path

import pytest

from cifar_jax import catalog
from cifar_jax.errors import UserError


def test_names_are_the_papers_ten_in_its_order() -> None:
    assert [name for name in catalog.names() if catalog.load(name).config.paper] == [
        *("basic", "net", "net-bn-gap", "net-attention"),
        *("resnet18-sgd", "resnet18-adam", "resnet18-adam-lr1e-4"),
        *("resnet10", "resnet10-plateau", "resnet10-separable"),
    ]


def test_the_better_recipes_come_after_the_papers() -> None:
    assert catalog.names().index("fast-basic") >= 10
    assert catalog.load("fast-basic").config.model.name == "basic"


def test_every_experiment_says_what_it_is() -> None:
    for name in catalog.names():
        assert catalog.load(name).description


def test_loads_a_file_by_path(tmp_path: Path) -> None:
    ours = catalog.experiments_folder() / "net_bn_gap.py"
    path = tmp_path / "my_own.py"
    path.write_text(ours.read_text())
    experiment = catalog.load(str(path))
    assert experiment.name == "my-own"
    assert experiment.config == catalog.load("net-bn-gap").config
    assert experiment.description.startswith("3.3 BatchNorm")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18-sdg", "did you mean resnet18-sgd?"),
        ("zzz", "see `cifar-jax experiments`"),
        ("", "no experiment ''"),
        ("absent.py", "no experiment file absent.py"),
    ],
)
def test_unknown_experiment(name: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        catalog.load(name)
    assert message in str(error.value)


HEAD = "from cifar_jax.config import *\n"
CONFIG = "CONFIG = Config(model=Model(name='net'), epochs={}, batch_size=8, optimizer=Optimizer())"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "defines no CONFIG"),
        ("CONFIG = {'epochs': 1}", "defines no CONFIG"),
        ("CONFIG = (", "cannot be read: SyntaxError"),
        ("import nowhere_at_all", "cannot be read: ModuleNotFoundError"),
        (HEAD + CONFIG.format(0), "epochs must be at least 1"),
        (HEAD + CONFIG.format("'ten'"), "epochs"),
        (HEAD + "CONFIG = Config(epochs=1)", "model is missing"),
        (HEAD + "CONFIG = Config(1)", "cannot be read: TypeError"),
        (HEAD + CONFIG.format("1, epoch=2"), "no field 'epoch'; did you mean epochs?"),
        (HEAD + CONFIG.format(1) + "; CONFIG.epochs = 2", "cannot be read: ValidationError"),
    ],
)
def test_bad_file_is_named_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        catalog.load(str(path))
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
