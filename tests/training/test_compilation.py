"""Test the setup of a run and its compiled programs."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax.callbacks.checkpoint import is_finite
from cifar_jax.config import Config
from cifar_jax.errors import UserError
from cifar_jax.logits import loss_and_accuracy
from cifar_jax.training.compilation import CompiledSteps, StepsPerCallTuner, compile_evaluation
from cifar_jax.training.setup import Setup, build_setup, initial_state

Make = Callable[..., Config]


def test_epoch_uses_every_image(make_config: Make) -> None:
    """250 images make 7 batches of 32. The last 26 images are dropped or filled up to a batch."""
    assert build_setup(make_config(data__train_images=250)).plan.epochs[0].steps == 7
    setup = build_setup(make_config(data__train_images=250, data__last_batch="wrap"))
    epochs = setup.plan.epochs
    assert [(epoch.begin, epoch.steps) for epoch in epochs] == [(0, 8), (8, 8)]
    state = initial_state(setup, 0)
    steps = CompiledSteps(setup, 0, state)
    first, second = (np.asarray(steps.epoch_order(epoch)) for epoch in epochs)
    for order in (first, second):
        assert order.shape == (8, 32)
        assert set(order.ravel().tolist()) == set(range(250))
    assert (first != second).any()
    for _ in range(8):
        state = steps.run(state, epochs[0], jnp.asarray(first), 1)
    assert int(state.metrics.images) == first.size
    assert (int(state.step), int(state.epoch)) == (8, 0)
    state = steps.end_epoch(state, 1.0)
    assert [float(value) for value in state.metrics] == [0, 0, 0]
    assert (int(state.step), int(state.epoch)) == (8, 1)


def test_seed_determines_initial_weights_and_order(make_config: Make) -> None:
    setup = build_setup(make_config())
    states = [initial_state(setup, seed) for seed in (0, 0, 1)]
    chex.assert_trees_all_equal(states[0], states[1])
    kernels = [np.asarray(state.params["fc1"]["kernel"]) for state in states]
    assert (kernels[0] != kernels[2]).mean() > 0.99
    orders = [
        np.asarray(CompiledSteps(setup, seed, states[0]).epoch_order(setup.plan.epochs[0]))
        for seed in (0, 1)
    ]
    assert (orders[0] != orders[1]).any()


def test_steps_donate_the_state(make_config: Make) -> None:
    setup = build_setup(make_config())
    state = initial_state(setup, 0)
    steps = CompiledSteps(setup, 0, state)
    epoch = setup.plan.epochs[0]
    new = steps.run(state, epoch, steps.epoch_order(epoch), 1)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.opt_state))
    chex.assert_tree_all_finite(new.params)


def test_loss_and_accuracy(make_config: Make) -> None:
    logits = np.array([[2, 0], [0, 1], [3, 1], [-1, 0]], np.float32)
    labels = np.array([0, 1, 1, 1], np.int32)
    loss, accuracy = loss_and_accuracy(logits, labels)
    odds = np.exp(logits)
    losses = -np.log(odds[np.arange(4), labels] / odds.sum(1))
    assert loss == pytest.approx(losses.mean(), rel=1e-6)
    assert accuracy == 75


def numpy_evaluation(setup: Setup, seed: int) -> tuple[float, float]:
    """Return the initial model's test loss and its accuracy in percent, computed in NumPy."""
    state, test = initial_state(setup, seed), setup.dataset.test
    mean, std = (np.asarray(s, np.float32) for s in (setup.dataset.mean, setup.dataset.std))
    images = (np.float32(test.images) / 255 - mean) / std
    logits = np.asarray(setup.spec.model.apply(state.variables, images, train=False), np.float64)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), test.labels]
    return losses.mean(), 100 * (logits.argmax(1) == test.labels).mean()


@pytest.mark.parametrize(("eval_batch_size", "devices"), [(360, 1), (500, 1), (77, 1), (77, 8)])
def test_evaluation_covers_every_image_once(
    make_config: Make, eval_batch_size: int, devices: int
) -> None:
    setup = build_setup(make_config(train__eval_batch_size=eval_batch_size, train__devices=devices))
    assert setup.mesh.size == devices
    state = initial_state(setup, 3)
    images, labels = setup.dataset.test
    outputs = compile_evaluation(setup, state, images)(state.variables)
    assert (outputs.logits.shape, outputs.logits.dtype) == ((360, 10), np.float32)
    loss, accuracy = loss_and_accuracy(outputs.logits, labels)
    expected_loss, expected_accuracy = numpy_evaluation(setup, 3)
    assert accuracy == pytest.approx(expected_accuracy, abs=1e-9)
    assert loss == pytest.approx(expected_loss, rel=1e-5)


def test_splits_do_not_overlap(make_config: Make) -> None:
    setup = build_setup(make_config(data__train_images="none", data__validation=100))
    sizes = [len(s.labels) for s in (setup.train, setup.validation, setup.dataset.test)]
    assert sizes == [1337, 100, 360]
    images = setup.dataset.train.images
    np.testing.assert_array_equal(setup.train.images, images[:1337])
    np.testing.assert_array_equal(setup.validation.images, images[1337:])
    limited = build_setup(make_config(data__train_images=50, data__validation=100))
    np.testing.assert_array_equal(limited.train.images, images[:50])
    np.testing.assert_array_equal(limited.validation.images, images[1337:])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 257}, "batch_size is 257, but digits has only 256 training images"),
        ({"batch_size": 257, "data__last_batch": "wrap"}, "only 256 training images"),
        ({"data__train_images": 1294}, "data.train_images is 1,294, but digits has only 1,293"),
        ({"data__validation": 1437}, "1,437 training images"),
        ({"data__validation": 20.5}, "a whole number below 1,437"),
        ({"data__dataset": "cifar11"}, "did you mean cifar10?"),
        ({"data__dataset": "zzz"}, "zzz"),
        ({"model__name": "resnet81"}, "did you mean resnet18?"),
        ({"model__dropout": 0.5}, "dropout"),
        ({"model__pooling": "max"}, "pooling"),
        ({"model__name": "net", "schedule__name": "custom"}, "needs SCHEDULE"),
        ({"optimizer__name": "custom"}, "needs OPTIMIZER"),
        ({"train__devices": 9}, "train.devices is 9"),
        ({"train__devices": 5}, "5 devices"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    make_config: Make, settings: dict, message: str
) -> None:
    with pytest.raises(UserError) as error:
        build_setup(make_config(**settings))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", ["params", "batch_stats", "opt_state", "averaged"])
def test_is_finite_sees_every_part_of_the_state(make_config: Make, part: str) -> None:
    config = make_config(optimizer__momentum=0.9, averaging__name="ema", averaging__decay=0.9)
    state = initial_state(build_setup(config), 0)
    state = state._replace(batch_stats={"mean": jnp.zeros(3)})
    assert is_finite(state)
    leaves, tree = jax.tree.flatten(getattr(state, part))
    place = next(i for i, leaf in enumerate(leaves) if leaf.dtype == "float32" and leaf.ndim)
    for value in (jnp.inf, -jnp.inf, jnp.nan):
        broken = [*leaves[:place], leaves[place].at[..., -1].set(value), *leaves[place + 1 :]]
        assert not is_finite(state._replace(**{part: tree.unflatten(broken)}))


@pytest.mark.parametrize(
    ("seconds_per_step", "calls", "steps"),
    [(0.01, [1, 2, 4, 8, 16, 16], 16), (1e-6, [1, 2, 4, 8, 16, 32, 64], 64)],
)
def test_calls_grow_until_they_take_long_enough(
    seconds_per_step: float, calls: list[int], steps: int
) -> None:
    tuner = StepsPerCallTuner(None)
    tuner.observe(1, 5.0)  # The first call takes longer.
    observed = []
    while not tuner.settled:
        observed.append(tuner.steps)
        tuner.observe(tuner.steps, seconds_per_step * tuner.steps)
    assert observed == calls
    assert tuner.steps == steps


def test_one_slow_call_does_not_settle_the_tuner() -> None:
    tuner = StepsPerCallTuner(None)
    for seconds in (5.0, 0.01, 3.0, 0.01, 0.01):
        tuner.observe(tuner.steps, seconds * tuner.steps)
    assert (tuner.steps, tuner.settled) == (8, False)


def test_call_cut_short_counts_by_its_time_per_step() -> None:
    tuner = StepsPerCallTuner(None)
    for steps, seconds in ((1, 0.01), (1, 0.01), (2, 0.02), (1, 0.2), (1, 0.2)):
        tuner.observe(steps, seconds)
    assert (tuner.steps, tuner.settled) == (4, True)


def test_setting_fixes_the_steps_per_call() -> None:
    tuner = StepsPerCallTuner(7)
    assert (tuner.steps, tuner.settled) == (7, True)
