"""The weights that come with the package are those of the records in results/."""

import json
from pathlib import Path

import pytest

import cifar_jax
from cifar_jax import catalog
from cifar_jax.data import default_data_dir
from cifar_jax.errors import UserError
from cifar_jax.inference.evaluate import evaluate
from cifar_jax.inference.load import WEIGHTS
from cifar_jax.inference.model import TrainedNetwork
from cifar_jax.training.result import params_sha256

RESULTS = Path(__file__).parents[2] / "results"
NAMES = sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def record_of(card: dict) -> dict:
    return json.loads((RESULTS / f"{card['experiment']}-seed{card['seed']}.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_they_are_those_of_the_record(name: str) -> None:
    network = cifar_jax.load(name)
    assert isinstance(network, TrainedNetwork)
    record = record_of(dict(network.card))
    assert network.card["experiment"] == name
    assert params_sha256(network.variables["params"]) == record["params_sha256"]
    assert network.card["test_accuracy"] == record["test_accuracy"]
    assert network.card["git_commit"] == record["git_commit"]
    assert network.card["model"]["name"] == catalog.load(name).config.model.name


def test_there_are_some_and_they_are_small() -> None:
    assert {"basic", "net-bn-gap"} <= set(NAMES)
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 10e6


@pytest.mark.parametrize(
    "name",
    [name if name == "basic" else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def test_they_have_the_records_accuracy_on_real_images(name: str) -> None:
    if not (default_data_dir() / "cifar10/3.0.2").is_dir():
        pytest.skip("no CIFAR-10: set TFDS_DATA_DIR")
    found = evaluate(Path(name))
    # Another processor's rounding may class an image or two otherwise.
    assert found["accuracy"] == pytest.approx(record_of(found)["test_accuracy"], abs=0.03)


def test_what_is_not_there_is_told_with_what_is() -> None:
    there = rf"no run or export nets; .* weights of {', '.join(NAMES)}"
    with pytest.raises(UserError, match=there):
        cifar_jax.load("nets")
    with pytest.raises(UserError, match="only --split test"):
        evaluate(Path("basic"), split="validation")
    with pytest.raises(UserError, match="one set of weights only"):
        cifar_jax.load("basic", best=True)
