"""Test that the packaged weights agree with the records in results/."""

from pathlib import Path

import pytest

import cifar_jax
from cifar_jax import catalog
from cifar_jax.data import default_data_dir
from cifar_jax.errors import UserError
from cifar_jax.inference.evaluate import evaluate
from cifar_jax.inference.load import WEIGHTS
from cifar_jax.inference.model import TrainedNetwork
from cifar_jax.models import count_parameters
from cifar_jax.runs.schemas import Result, read
from cifar_jax.training.result import params_sha256

RESULTS = Path(__file__).parents[2] / "results"
# Test accuracy in percent of each model, with and without test-time augmentation.
ACCURACIES = {
    "basic": (62.82, 62.82),
    "fast-net-bn-gap": (90.39, 89.18),
    "fast-resnet10-separable": (93.36, 92.78),
    "net-bn-gap": (82.94, 82.94),
}


@pytest.mark.parametrize("name", ACCURACIES)
def test_weights_and_card_agree_with_the_record(name: str) -> None:
    network = cifar_jax.load(name)
    assert isinstance(network, TrainedNetwork)
    card, params = network.card, network.variables["params"]
    record = read(RESULTS / f"{name}-seed{card.seed}.json", Result)
    assert params_sha256(params) == record.params_sha256
    assert card.data
    assert (card.data.sha256, card.data.content) == (record.data_sha256, record.data_content)
    assert card.data.train_images + card.data.validation_images == 50_000
    for field in ("experiment", "test_accuracy", "git_commit", "paper_accuracy"):
        assert getattr(card, field) == getattr(record, field)
    assert (card.step, card.epoch) == (record.steps, record.epochs)
    assert (card.test_accuracy, card.test_accuracy_plain) == ACCURACIES[name]
    assert sum(layer.parameters for layer in card.layers) == count_parameters(params)
    config = catalog.load(name).config
    assert (card.model.name, card.tta.model_dump()) == (config.model.name, config.tta.model_dump())


@pytest.mark.parametrize(
    "name",
    ["basic", *(pytest.param(n, marks=pytest.mark.slow) for n in ACCURACIES if n != "basic")],
)
def test_packaged_weights_have_the_accuracy_of_the_card_on_real_images(name: str) -> None:
    if not (default_data_dir() / "cifar10/3.0.2").is_dir():
        pytest.skip("no CIFAR-10: set TFDS_DATA_DIR")
    scores = evaluate(Path(name)).scores
    # On another processor, rounding may change the predictions for one or two images.
    accuracies = (scores.accuracy, scores.accuracy_plain)
    assert accuracies == pytest.approx(ACCURACIES[name], abs=0.03)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    assert {path.stem for path in WEIGHTS.iterdir()} == set(ACCURACIES)
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 10e6
    with pytest.raises(UserError, match=rf"packaged network \({', '.join(ACCURACIES)}\)"):
        cifar_jax.load("nets")
    with pytest.raises(UserError, match="only one set of weights"):
        cifar_jax.load("basic", best=True)
