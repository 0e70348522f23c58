"""From a config to compiled programs: what is refused, and what each of them covers."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax.config import Config
from cifar_jax.errors import UserError
from cifar_jax.training import compilation, setup
from cifar_jax.training.evaluation import measure
from cifar_jax.training.setup import Setup
from cifar_jax.training.step import Metrics

Make = Callable[..., Config]


def test_an_epoch_takes_every_image(make_config: Make) -> None:
    """250 images in batches of 32 are 7 whole ones and one of 26, which is left out or filled."""
    assert setup.workload(make_config(data__train_images=250)).plan.epochs[0].steps == 7
    workload = setup.workload(make_config(data__train_images=250, data__last_batch="wrap"))
    epochs = workload.plan.epochs
    assert [(epoch.begin, epoch.steps) for epoch in epochs] == [(0, 8), (8, 8)]
    state = setup.init_state(workload, 0)
    data = compilation.train_data(workload)
    training = compilation.compile_training(workload, 0, state, data)
    first, second = (np.asarray(training.order(epoch)) for epoch in epochs)
    for order in (first, second):
        assert order.shape == (8, 32)
        assert set(order.ravel().tolist()) == set(range(250))
    assert (first != second).any()
    np.testing.assert_array_equal(training.order(epochs[0]), first)
    take_steps = training.begin(epochs[0], jnp.asarray(first), workload.plan.steps)
    for _ in range(8):
        state = take_steps(state, 1)
    assert int(state.metrics.images) == first.size
    state = training.end_epoch(state, 1.0)
    assert [float(value) for value in state.metrics] == [0, 0, 0]
    assert int(state.step) == 8


def test_the_seed_decides_the_start_and_the_order(make_config: Make) -> None:
    workload = setup.workload(make_config())
    states = [setup.init_state(workload, seed) for seed in (0, 0, 1)]
    chex.assert_trees_all_equal(states[0], states[1])
    kernels = [np.asarray(state.params["fc1"]["kernel"]) for state in states]
    assert (kernels[0] != kernels[2]).mean() > 0.99
    data = compilation.train_data(workload)
    orders = [
        np.asarray(
            compilation.compile_training(workload, seed, states[0], data).order(
                workload.plan.epochs[0]
            )
        )
        for seed in (0, 1)
    ]
    assert (orders[0] != orders[1]).any()


def test_training_reuses_the_states_memory(make_config: Make) -> None:
    workload = setup.workload(make_config())
    state = setup.init_state(workload, 0)
    training = compilation.compile_training(workload, 0, state, compilation.train_data(workload))
    epoch = workload.plan.epochs[0]
    following = training.begin(epoch, training.order(epoch), workload.plan.steps)(state, 1)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.opt_state))
    chex.assert_tree_all_finite(following.params)


def whole_split(workload: Setup, seed: int) -> tuple[float, float]:
    """Loss and accuracy in percent on the test images, in one piece and by NumPy."""
    state, test = setup.init_state(workload, seed), workload.dataset.test
    mean, std = (np.asarray(s, np.float32) for s in (workload.dataset.mean, workload.dataset.std))
    images = (np.float32(test.images) / 255 - mean) / std
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = np.asarray(workload.recipe.model.apply(variables, images, train=False), np.float64)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), test.labels]
    return losses.mean(), 100 * (logits.argmax(1) == test.labels).mean()


@pytest.mark.parametrize(("eval_batch_size", "devices"), [(360, 1), (500, 1), (77, 1), (77, 8)])
def test_padding_changes_nothing_in_evaluation(
    make_config: Make, eval_batch_size: int, devices: int
) -> None:
    """360 images in batches of 77 are 4 whole ones and one of 52; of 80 on eight devices."""
    workload = setup.workload(
        make_config(train__eval_batch_size=eval_batch_size, train__devices=devices)
    )
    assert workload.mesh.size == devices
    state = setup.init_state(workload, 3)
    images, labels = workload.dataset.test
    logits = compilation.compile_evaluation(workload, state, images)(state.variables)
    assert (logits.shape, logits.dtype) == ((360, 10), np.float32)
    measured = measure(logits, labels)
    loss, accuracy = whole_split(workload, 3)
    assert measured["accuracy"] == pytest.approx(accuracy, abs=1e-9)
    assert measured["loss"] == pytest.approx(loss, rel=1e-5)


def test_splits_do_not_overlap(make_config: Make) -> None:
    workload = setup.workload(make_config(data__train_images="none", data__validation=100))
    assert [
        len(s.labels) for s in (workload.train, workload.validation, workload.dataset.test)
    ] == [*(1337, 100, 360)]
    whole = workload.dataset.train.images
    np.testing.assert_array_equal(workload.train.images, whole[:1337])
    np.testing.assert_array_equal(workload.validation.images, whole[1337:])
    limited = setup.workload(make_config(data__train_images=50, data__validation=100))
    np.testing.assert_array_equal(limited.train.images, whole[:50])
    np.testing.assert_array_equal(limited.validation.images, whole[1337:])
    all_of_them = make_config(data__train_images=1337, data__validation=100)
    assert len(setup.workload(all_of_them).train.labels) == 1337


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 257}, "batch_size 257 is larger than the 256 training images"),
        ({"batch_size": 257, "data__last_batch": "wrap"}, "larger than the 256 training images"),
        ({"data__train_images": 1294}, "data.train_images=1294, but digits has 1293"),
        ({"data__validation": 1437}, "does not fit 1,437 training images"),
        ({"data__validation": 20.5}, "does not fit 1,437 training images"),
        ({"data__dataset": "cifar11"}, "did you mean cifar10?"),
        ({"data__dataset": "zzz"}, "unknown data set 'zzz'"),
        ({"model__name": "resnet81"}, "did you mean resnet18?"),
        ({"model__dropout": 0.5}, "model basic has no dropout"),
        ({"model__pooling": "max"}, "model basic has no pooling"),
        ({"train__devices": 9}, "train.devices=9, but there are 8"),
        ({"train__devices": 5}, "cannot be divided over 5 devices"),
    ],
)
def test_settings_that_do_not_fit(make_config: Make, settings: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        setup.workload(make_config(**settings))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_calls_grow_until_one_takes_long_enough() -> None:
    tuner = compilation.StepsPerCallTuner(None)
    tuner.observe(1, 5.0)  # the first does what is done but once
    taken = []
    while not tuner.settled:
        taken.append(tuner.steps)
        tuner.observe(tuner.steps, 0.01 * tuner.steps)
    assert taken == [1, 2, 4, 8, 16, 16]
    assert tuner.steps == 16


def test_means_are_of_the_images_that_there_were() -> None:
    seen = Metrics(jnp.float32(6), jnp.int32(3), jnp.int32(4))
    assert compilation.means(seen) == {"loss": 1.5, "accuracy": 75.0}
    assert compilation.means(Metrics.zero()) == {"loss": 0.0, "accuracy": 0.0}


def test_a_rate_is_lowered_by_a_factor(make_config: Make) -> None:
    workload = setup.workload(make_config())
    state = setup.init_state(workload, 0)
    for scale in (0.5, 0.25):
        state = compilation.with_lower_rate(workload, state, 0.5)
        assert float(state.plateau.scale) == scale


def test_calls_of_the_quickest_steps_stay_short_enough_to_be_stopped() -> None:
    tuner = compilation.StepsPerCallTuner(None)
    while not tuner.settled:
        tuner.observe(tuner.steps, 1e-6 * tuner.steps)
    assert tuner.steps == 64


@pytest.mark.parametrize("part", ["params", "batch_stats", "opt_state", "averaged"])
def test_a_state_is_finite_if_all_of_it_is(make_config: Make, part: str) -> None:
    config = make_config(optimizer__momentum=0.9, averaging__name="ema", averaging__decay=0.9)
    state = setup.init_state(setup.workload(config), 0)
    state = state._replace(batch_stats={"mean": jnp.zeros(3)})
    assert compilation.is_finite(state)
    leaves, tree = jax.tree.flatten(getattr(state, part))
    place = next(i for i, leaf in enumerate(leaves) if leaf.dtype == "float32" and leaf.ndim)
    for value in (jnp.inf, -jnp.inf, jnp.nan):
        broken = [*leaves[:place], leaves[place].at[..., -1].set(value), *leaves[place + 1 :]]
        assert not compilation.is_finite(state._replace(**{part: tree.unflatten(broken)}))


def test_a_call_cut_short_by_the_end_of_an_epoch_counts_for_what_it_did() -> None:
    tuner = compilation.StepsPerCallTuner(None)
    for steps, seconds in ((1, 0.01), (1, 0.01), (2, 0.02), (1, 0.2), (1, 0.2)):
        tuner.observe(steps, seconds)
    assert (tuner.steps, tuner.settled) == (4, True)


def test_one_slow_call_settles_nothing() -> None:
    """It may have met a busy moment of the machine."""
    tuner = compilation.StepsPerCallTuner(None)
    for seconds in (5.0, 0.01, 3.0, 0.01, 0.01):
        tuner.observe(tuner.steps, seconds * tuner.steps)
    assert (tuner.steps, tuner.settled) == (8, False)


def test_the_settings_decide_the_length_of_calls() -> None:
    tuner = compilation.StepsPerCallTuner(7)
    assert (tuner.steps, tuner.settled) == (7, True)
