"""Test fine-tuning: frozen layers, frozen BatchNorm statistics, and the new last layer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from short_runs import Recorder, assert_same_run, killed_at, train
from tiny import DATASET, TINY

from cifar_jax import models
from cifar_jax.config import Config
from cifar_jax.errors import UserError
from cifar_jax.training import freezing
from cifar_jax.training.compilation import CompiledSteps
from cifar_jax.training.freezing import Pretrained
from cifar_jax.training.setup import build_setup, initial_state

Make = Callable[..., Config]
pytestmark = pytest.mark.usefixtures("tiny")
FINE_TUNING = TINY | {"model__name": "pooled", "train__init_from": "x", "train__freeze": "backbone"}


class WithLinen(nn.Module):
    """Network with Linen's BatchNorm. The layer receives `use_running_average` at creation."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = nn.Conv(4, (3, 3), 4, name="conv1")(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x).mean((1, 2))
        return nn.Dense(self.num_classes, name="head")(x)


class ByPosition(nn.Module):
    """Network like `WithLinen`, but the call passes `use_running_average` by position."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = nn.Conv(4, (3, 3), 4, name="conv1")(x)
        x = nn.BatchNorm(name="norm")(x, not train).mean((1, 2))
        return nn.Dense(self.num_classes, name="head")(x)


class Counting(nn.Module):
    """Network with a layer that has statistics but is no BatchNorm."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = Counter(name="counter")(x)
        return nn.Dense(self.num_classes, name="head")(x.mean((1, 2)))


class Counter(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        self.variable("batch_stats", "count", jnp.zeros, ())
        return x


def pretrained(model: Any, classes: tuple[str, ...] = tuple(DATASET.classes)) -> Pretrained:
    """Return random weights, with running statistics that differ from the initial values."""
    variables = models.init_variables(model, jax.random.key(7))
    statistics = jax.tree.map(lambda x: x + 0.3, variables["batch_stats"])
    return Pretrained(variables | {"batch_stats": statistics}, classes)


def test_frozen_backbone_computes_fixed_features_and_only_the_last_layer_learns(
    make_config: Make,
) -> None:
    """The last layer must learn in the same way as a linear model on the frozen features."""
    config = make_config(**FINE_TUNING, optimizer__momentum=0, optimizer__weight_decay=0.1)
    setup = build_setup(config, dataset=DATASET)
    source = pretrained(setup.spec.model)
    state = initial_state(setup, 0, source)
    chex.assert_trees_all_equal(state.variables, source.variables)
    steps, epoch = CompiledSteps(setup, 0, state), setup.plan.epochs[0]
    order = steps.epoch_order(epoch)
    state = steps.run(state, epoch, order, 1)

    params, statistics = source.variables["params"], source.variables["batch_stats"]
    frozen = {name: state.params[name] for name in ("conv1", "bn1")}
    chex.assert_trees_all_equal(frozen, {name: params[name] for name in frozen})
    chex.assert_trees_all_equal(state.batch_stats, statistics)
    images, labels = setup.train.images[order[0]] / 255, setup.train.labels[order[0]]
    images = (images - np.array(DATASET.mean)) / np.array(DATASET.std)
    logits = setup.spec.model.apply(source.variables, jnp.float32(images), train=False)
    wrong = np.asarray(jax.nn.softmax(logits)) - np.eye(5)[labels]
    bias = np.asarray(params["fc"]["bias"])
    expected = bias - 0.05 * (wrong.mean(0) + 0.1 * bias)
    np.testing.assert_allclose(state.params["fc"]["bias"], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("freeze", ["backbone", "conv1, norm", "[cn]*"])
@pytest.mark.parametrize("network", [WithLinen, ByPosition])
def test_linen_batch_norm_is_frozen_too(network: type[nn.Module], freeze: str) -> None:
    model = network(3)  # pyright: ignore[reportCallIssue]
    part = freezing.frozen(model, freeze)
    assert part.params == {"conv1/kernel", "conv1/bias", "norm/scale", "norm/bias"}
    variables, _ = pretrained(model)
    images = jax.random.normal(jax.random.key(0), (4, 32, 32, 3))
    with freezing.inference_mode(part.norms):
        logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(logits, model.apply(variables, images, train=False))
    chex.assert_trees_all_equal(updated["batch_stats"], variables["batch_stats"])


def test_only_the_named_layers_are_frozen() -> None:
    model = models.create("resnet10", num_classes=3)
    part = freezing.frozen(model, "conv1, stage1*")
    assert {path.partition("/")[0] for path in part.params} == {"conv1", "stage1_block1"}
    assert part.norms == {"stage1_block1/bn1", "stage1_block1/bn2"}
    assert freezing.frozen(model, "*/scale").norms == frozenset()


@pytest.mark.parametrize(("name", "layer"), [("net-bn-gap", "fc3"), ("speednet", "fc")])
def test_last_layer(name: str, layer: str) -> None:
    assert freezing.last_layer(models.create(name, num_classes=4)) == layer


@pytest.mark.parametrize(
    ("model", "freeze", "message"),
    [
        (
            WithLinen(),
            "conv1, fc9",
            r"no layer of the network matches 'fc9'\. The layers ",
        ),
        (WithLinen(), "*", "freezes all layers, so nothing is trained"),
        (Counting(), "backbone", "cannot freeze the statistics of counter"),
    ],
)
def test_settings_that_freeze_nothing_or_everything_are_refused(
    model: Any, freeze: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        freezing.frozen(model, freeze)


def test_last_layer_is_new_if_the_classes_have_other_names(make_config: Make) -> None:
    setup = build_setup(make_config(**FINE_TUNING), dataset=DATASET)
    random = initial_state(setup, 0)
    other = pretrained(setup.spec.model, ("v", "w", "x", "y", "z"))
    state = initial_state(setup, 0, other)
    chex.assert_trees_all_equal(state.params["fc"], random.params["fc"])
    chex.assert_trees_all_equal(state.params["conv1"], other.variables["params"]["conv1"])
    frozen = build_setup(make_config(**FINE_TUNING | {"train__freeze": "fc"}), dataset=DATASET)
    with pytest.raises(UserError, match="freezes the last layer, fc, which is new"):
        initial_state(frozen, 0, other)


def test_fine_tuning_resumes_exactly_and_says_what_is_trained(
    make_config: Make, tmp_path: Path
) -> None:
    config = make_config(**FINE_TUNING, averaging__name="lookahead", averaging__every=2)
    source = pretrained(models.create("pooled", num_classes=9), tuple("abcdefghi"))
    settings: dict[str, Any] = {"load_weights": lambda: source}
    train(config, tmp_path / "whole", recorder := Recorder(), **settings)
    assert (
        "the last layer, fc, is new, because the pretrained network has other classes (a, b, c, …)"
        in recorder.lines
    )
    assert any(line.endswith("1 BatchNorm layer; trained layers: fc") for line in recorder.lines)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "killed", killed_at("epoch 2/4"), **settings)
    train(config, tmp_path / "killed", **settings)
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
