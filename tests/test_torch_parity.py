"""Every model and optimizer does what `fixtures/make_torch_fixtures.py` recorded of PyTorch.

PyTorch computed in float64 and we compute in float32: the tolerances are for our own rounding.
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fixtures import recipe
from flax.traverse_util import flatten_dict, unflatten_dict

from cifar_jax import config, models
from cifar_jax.training import schedules
from cifar_jax.training.optimizers import make_optimizer, plateau_init
from cifar_jax.training.schedules import StepInfo
from cifar_jax.training.step import Metrics, StepSpec, TrainState, train_step

FIXTURES = Path(__file__).parent / "fixtures"
RECORD = json.loads((FIXTURES / "torch_steps.json").read_text())
SCHEDULES = json.loads((FIXTURES / "torch_rates.json").read_text())["schedules"]
KINDS = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}

# Channels of the images that fc1 reads flattened: in order HWC here, CHW in PyTorch.
FLATTENED_CHANNELS = {"basic": 16, "net": 256}


def to_torch(name: str, array: np.ndarray, flattened_channels: int | None) -> np.ndarray:
    """A parameter in PyTorch's layout: HWIO to OIHW, [in, out] to [out, in]."""
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    if name == "fc1.weight" and flattened_channels:
        inputs, outputs = array.shape
        side = round((inputs // flattened_channels) ** 0.5)
        array = array.reshape(side, side, flattened_channels, outputs)
        return array.transpose(3, 2, 0, 1).reshape(outputs, inputs)
    return array.T


class Network:
    """A model with the recipe's parameters, without dropout, and the recipe's batch."""

    def __init__(self, model: str, pooling: str | None = None):
        self.channels = FLATTENED_CHANNELS.get(model)
        dropout = None if model in FLATTENED_CHANNELS else 0.0
        self.model = models.create(model, pooling=pooling, dropout=dropout)
        shapes = models.variable_shapes(self.model)
        self.params = self._fill(shapes["params"])
        self.batch_stats = self._fill(shapes.get("batch_stats", {}))
        images, labels = recipe.batch()
        self.images, self.labels = jnp.asarray(images.transpose(0, 2, 3, 1)), jnp.asarray(labels)

    def by_torch_name(self, tree: Any) -> dict[str, np.ndarray]:
        """Arrays in PyTorch's layout."""
        names = {path: _torch_name(path) for path in flatten_dict(tree)}
        return {
            names[path]: to_torch(names[path], np.asarray(leaf), self.channels)
            for path, leaf in flatten_dict(tree).items()
        }

    def _fill(self, shapes: Any) -> Any:
        filled = {}
        for path, shape in flatten_dict(shapes).items():
            name = _torch_name(path)
            # Where PyTorch's layout has each of our elements; so the inverse needs no second map.
            order = to_torch(name, np.arange(shape.size).reshape(shape.shape), self.channels)
            values = np.empty(shape.size, np.float32)
            values[order.ravel()] = recipe.tensor(name, order.shape).ravel()
            filled[path] = jnp.asarray(values.reshape(shape.shape))
        return unflatten_dict(filled)


def _torch_name(path: tuple[str, ...]) -> str:
    """`("conv1", "kernel")` is PyTorch's `conv1.weight`."""
    return ".".join([*path[:-1], KINDS.get(path[-1], path[-1])])


def optimizer(fields: dict[str, Any]) -> optax.GradientTransformationExtraArgs:
    """The rule at its own learning rate, whatever it is given."""
    settings = config.Optimizer(**fields)
    rule = make_optimizer(settings)

    def update(grads: Any, state: Any, params: Any = None, **others: Any) -> Any:
        return rule.update(grads, state, params, rates=jnp.float32([settings.lr]))

    return optax.GradientTransformationExtraArgs(rule.init, update)


def any_of(rules: list[optax.GradientTransformation]) -> optax.GradientTransformation:
    """The rule whose number is in the state, so that one compilation serves all of them."""

    def init(params: Any) -> Any:
        return jnp.int32(0), [rule.init(params) for rule in rules]

    def update(grads: Any, state: Any, params: Any = None, **others: Any) -> Any:
        chosen, states = state

        def branch(i: int) -> Any:
            updates, new = rules[i].update(grads, states[i], params)
            return updates, [*states[:i], new, *states[i + 1 :]]

        updates, states = jax.lax.switch(chosen, [partial(branch, i) for i in range(len(rules))])
        return updates, (chosen, states)

    # All parameters as one vector: four rules on 62 arrays each would take longest to compile.
    return optax.flatten(optax.GradientTransformationExtraArgs(init, update))


# These tests spend their time compiling, so the compiler is asked for less.
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def steps() -> Iterator[Any]:
    """Every network, as for a CPU and as for accelerators.

    The two largest have no operation that the others have not.
    """
    for form in ("cpu", "accelerator"):
        for name in RECORD["train_steps"]:
            again = form == "accelerator" and name in ("resnet18", "resnet10")
            yield pytest.param(form, name, marks=[pytest.mark.slow] if again else [])


@pytest.mark.parametrize(("form", "name"), list(steps()), indirect=["form"])
def test_train_step(form: None, name: str):
    network, record = Network(name), RECORD["train_steps"][name]
    tx = any_of([optimizer(fields) for fields in RECORD["model_optimizers"].values()])
    step = quick_jit(partial(train_step, recipe=StepSpec(network.model, tx)))
    _, rule_states = tx.init(network.params)
    start = TrainState(
        step=jnp.int32(0),
        params=network.params,
        batch_stats=network.batch_stats,
        opt_state=None,
        plateau=plateau_init(),
        metrics=Metrics.zero(),
        lr=jnp.float32([1]),
        averaged={},
    )
    key, moment = jax.random.key(0), StepInfo(0, 0, 1)
    params = network.by_torch_name(start.params)
    statistics = network.by_torch_name(start.batch_stats)
    for i, (optimizer_name, expected) in enumerate(record["optimizers"].items()):
        state = start._replace(opt_state=(jnp.int32(i), rule_states))
        first = step(state, network.images, network.labels, key, moment)
        second = step(first, network.images, network.labels, key, moment)

        loss = float(first.metrics.loss) / len(network.labels)
        assert loss == pytest.approx(record["loss"], abs=2e-5)
        assert int(first.metrics.correct) == record["correct"]
        second_loss = float(second.metrics.loss - first.metrics.loss) / len(network.labels)
        assert second_loss == pytest.approx(expected["loss"], abs=5e-4), optimizer_name

        new_params = network.by_torch_name(first.params)
        assert new_params.keys() == expected["updates"].keys()
        for tensor, update in expected["updates"].items():
            actual = recipe.signature(tensor, new_params[tensor] - params[tensor])
            # A ReLU whose input is within rounding of zero may pass the gradient or not: a few of
            # a layer's ten thousands, which come to one or two percent in the deepest network.
            tolerance = 6e-2 * update[0]
            tolerance += np.finfo(np.float32).eps * np.linalg.norm(params[tensor])
            distance = recipe.distance(actual, update)
            assert distance <= tolerance, (optimizer_name, tensor, distance, update[0])

        new_statistics = network.by_torch_name(first.batch_stats)
        assert new_statistics.keys() == record["statistics"].keys()
        for tensor, change in record["statistics"].items():
            actual = recipe.signature(tensor, new_statistics[tensor] - statistics[tensor])
            assert recipe.distance(actual, change) <= 2e-5 * change[0], tensor


@pytest.mark.usefixtures("each_platform")
@pytest.mark.parametrize("name", RECORD["evaluations"])
def test_evaluation(name: str):
    record = RECORD["evaluations"][name]
    network = Network(record["model"], record.get("pooling"))
    variables = {"params": network.params, "batch_stats": network.batch_stats}
    logits = quick_jit(partial(network.model.apply, train=False))(variables, network.images)
    expected = np.array(record["logits"])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", RECORD["optimizers"])
def test_optimizer(name: str):
    """Several steps with given gradients of all sizes, down to where Adam's epsilon counts."""
    tx = optimizer(RECORD["optimizers"][name])
    start = recipe.tensor("trace.weight", (60,))
    params = jnp.asarray(start)
    state = tx.init(params)
    for gradient, expected in zip(
        recipe.gradients(), RECORD["optimizer_traces"][name], strict=True
    ):
        updates, state = tx.update(jnp.asarray(gradient), state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params - start, expected - start, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule(name: Any):
    schedule = config.Schedule(name=name, step_epochs=2)
    shape = schedules.make(schedule)
    rates = [0.1 * shape(StepInfo(step, step // 5, 20)) for step in range(20)]
    np.testing.assert_allclose(rates, SCHEDULES[name], rtol=1e-5)
