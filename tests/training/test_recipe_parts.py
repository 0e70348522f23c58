"""The parts of a recipe where they are wired: what a config that names them trains."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from short_runs import Recorder, assert_same_run, kill, rows_of, train
from tiny import DATASET, TINY, after_an_epoch

from cifar_jax.config import Config
from cifar_jax.models import initialization
from cifar_jax.runs.checkpoints import Checkpoints
from cifar_jax.training import batches, compilation
from cifar_jax.training.evaluation import TTA, apply_tta
from cifar_jax.training.step import TrainState

Make = Callable[..., Config]
pytestmark = pytest.mark.usefixtures("tiny")


# Groups


def test_a_group_has_the_learning_rate_and_the_rule_of_its_own(make_config: Make) -> None:
    """In one step, so that gradients are the same: only what it names is other than without."""
    alone = make_config(**TINY | {"epochs": 1, "data__train_images": 8})
    grouped = make_config(
        **TINY | {"epochs": 1, "data__train_images": 8},
        param_groups='[{"parameters": "*/bias, fc/*", "optimizer": {"name": "sgd", "lr": 0.1}}]',
    )
    _, start, plain = after_an_epoch(alone)
    _, _, found = after_an_epoch(grouped)
    for layer, name in (("conv", "kernel"), ("bn", "scale"), ("bn", "bias"), ("fc", "kernel")):
        moved, usual = (
            state.params[layer][name] - start.params[layer][name] for state in (found, plain)
        )
        factor = 2 if (layer, name) in (("bn", "bias"), ("fc", "kernel")) else 1
        chex.assert_trees_all_close(moved, factor * usual, rtol=1e-4, atol=1e-7)
        assert np.abs(usual).max() > 1e-5


def test_a_group_is_trained_until_its_share_of_the_epochs_is_over(make_config: Make) -> None:
    """Then neither momentum nor decay nor slow weights move it, and all else goes on as ever."""
    group = (
        '[{"parameters": "*/bias", "until": %s, "optimizer":'
        ' {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}}]'
    )
    slow = {"averaging__name": "lookahead", "averaging__decay": 0.5, "averaging__every": 2}
    until_half, to_the_end, never = (
        make_config(**TINY, **slow, param_groups=group % until) for until in ("0.5", "null", "0")
    )
    assert [e.variant.frozen for e in build_setup(until_half).plan.epochs] == [
        (),
        (),
        (1,),
        (1,),
    ]

    def biases(state: TrainState) -> list[np.ndarray]:
        return [np.asarray(state.params[layer]["bias"]) for layer in ("bn", "fc")]

    begun, first, step, last = after_epochs(until_half)
    usual_begun, usual_first, usual_step, _ = after_epochs(to_the_end)
    chex.assert_trees_all_equal(begun, usual_begun)
    chex.assert_trees_all_equal(first, usual_first)
    for before, now in zip(biases(begun), biases(first), strict=True):
        assert np.abs(now - before).max() > 1e-4
    chex.assert_trees_all_equal(biases(first), biases(step), biases(last))
    assert np.abs(biases(usual_step)[1] - biases(first)[1]).max() > 1e-4
    for layer, name in (("conv", "kernel"), ("bn", "scale"), ("fc", "kernel")):
        chex.assert_trees_all_close(step.params[layer][name], usual_step.params[layer][name])
        assert np.abs(last.params[layer][name] - step.params[layer][name]).max() > 1e-4
    states = after_epochs(never)
    chex.assert_trees_all_equal(*(biases(state) for state in states))
    for state in states:
        for layer in ("bn", "fc"):  # nor what is evaluated
            chex.assert_trees_all_equal(
                state.averaged["params"][layer]["bias"], states[0].params[layer]["bias"]
            )


def after_epochs(config: Config) -> list[TrainState]:
    """Before the first step, after half of the epochs, after another step, and in the end."""
    setup = build_setup(config)
    state = initial_state(setup, 0)
    training = compilation.compile_training(setup, 0, state, compilation.train_data(setup))
    found = [jax.device_get(state)]
    for epoch in setup.plan.epochs:
        steps = training.begin(epoch, training.order(epoch), setup.plan.steps)
        if 2 * epoch.number == len(setup.plan.epochs):
            found.append(jax.device_get(state))
            state = steps(state, 1)
            found.append(jax.device_get(state))
            state = steps(state, epoch.steps - 1)
        else:
            state = steps(state, epoch.steps)
    return [*found, jax.device_get(state)]


def test_no_gradient_is_computed_of_what_is_not_trained(make_config: Make) -> None:
    """Its momentum, which without decay is made of gradients alone, stays nothing."""
    group = '{"parameters": "*/bias", "until": 0, "optimizer": {"name": "sgd", "momentum": 0.9}}'
    config = make_config(**TINY | {"epochs": 1}, param_groups=f"[{group}]")
    _, _, state = after_an_epoch(config)
    shape = state.params["fc"]["bias"].shape
    momenta = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == shape]
    assert len(momenta) == 1
    assert not np.any(momenta[0])


@pytest.mark.parametrize("beginning", ["init__dirac", "init__whitening", "init_from"])
def test_an_average_begins_with_what_the_weights_begin_with(
    make_config: Make, beginning: str
) -> None:
    options = {} if beginning == "init_from" else {beginning: True}
    settings = TINY | {"model__name": "pooled", "averaging__name": "ema"}
    setup = build_setup(make_config(**settings, **options))
    usual = initial_state(setup, 1).variables if not options else None
    rates = learning_rates(setup.config)
    state = initial_state(setup, 0, usual)
    chex.assert_trees_all_equal(state.averaged, state.variables)
    fresh = random_state(setup, make_streams(0).init, rates)
    kernel = fresh.params["conv1"]["kernel"]
    assert np.abs(state.averaged["params"]["conv1"]["kernel"] - kernel).max() > 0.01


def test_muon_moves_kernels_by_orthogonal_matrices_at_their_norm(make_config: Make) -> None:
    config = make_config(
        **TINY | {"epochs": 1, "data__train_images": 8},
        optimizer__name="muon",
        optimizer__newton_schulz_steps=5,
        param_groups='[{"parameters": "*/bias,*/scale", "optimizer": {"name": "sgd", "lr": 0.01}}]',
    )
    _, start, found = after_an_epoch(config)
    kernel = np.asarray(start.params["fc"]["kernel"])
    normal = kernel * np.sqrt(kernel.shape[1]) / np.linalg.norm(kernel)
    update = (np.asarray(found.params["fc"]["kernel"]) - normal) / 0.05
    *values, last = np.linalg.svd(update, compute_uv=False)
    assert 0.5 < min(values) <= max(values) < 1.3
    assert last < 0.01  # the gradients of the classes add up to zero


def test_no_learning_rate_is_in_a_program(make_config: Make) -> None:
    """Neither in that of the first state nor in that of the steps: another compiles nothing."""

    def lowered(rate: float) -> list[str]:
        groups = f'[{{"parameters": "*/bias", "optimizer": {{"name": "adam", "lr": {rate}}}}}]'
        setup = build_setup(
            make_config(**TINY | {"optimizer__lr": rate, "param_groups": groups}), dataset=DATASET
        )
        rates = learning_rates(setup.config)
        make = jax.jit(partial(random_state, setup))
        (variant,) = setup.plan.variants
        steps = compilation.train_function(setup, variant)
        arguments = compilation.train_arguments(setup, variant)
        return [
            make.lower(make_streams(0).init, rates).as_text(),
            steps.lower(*arguments).as_text(),
        ]

    assert lowered(0.1) == lowered(0.2)


# Beginnings


def test_the_first_layer_is_whitened_by_the_training_images_and_stays_so(make_config: Make) -> None:
    # HalfOpenUnit moves the bias, which has no gradient before BatchNorm.
    config = make_config(
        **TINY | {"model__name": "pooled", "init__whitening": True, "optimizer__weight_decay": 0.1}
    )
    setup, start, found = after_an_epoch(config)
    images = np.asarray(batches.normalize(setup.train.images, DATASET))
    kernel = np.asarray(start.params["conv1"]["kernel"])
    expected = initialization.whitening_filters(images, kernel.shape)
    np.testing.assert_allclose(kernel[..., : expected.shape[-1]], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.params["conv1"]["kernel"], kernel)
    assert (found.params["conv1"]["bias"] != start.params["conv1"]["bias"]).any()
    assert (found.params["fc"]["kernel"] != start.params["fc"]["kernel"]).any()


def test_dirac_filters_pass_their_input_on(make_config: Make) -> None:
    setup = build_setup(make_config(**TINY | {"model__name": "pooled", "init__dirac": True}))
    kernel = np.asarray(initial_state(setup, 0).params["conv1"]["kernel"])
    np.testing.assert_array_equal(kernel[1, 1, :, :3], np.eye(3))
    assert (kernel[..., 3:] != 0).mean() > 0.99


# Averages


def test_slow_weights_are_told_the_step_and_how_far_the_run_is(make_config: Make) -> None:
    """Of two steps in a run of four, by slow weights that are taken every two."""
    settings = TINY | {"epochs": 2, "data__train_images": 16}
    slow = {"averaging__name": "lookahead", "averaging__every": 2, "averaging__power": 1}
    _, start, plain = after_an_epoch(make_config(**settings))
    _, _, found = after_an_epoch(make_config(**settings, **slow, averaging__decay=0.8))
    expected = jax.tree.map(
        lambda slow, fast: slow + (1 - 0.8 * 2 / 4) * (fast - slow),
        start.variables,
        plain.variables,
    )
    chex.assert_trees_all_close(found.averaged, expected, rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_equal(found.variables, found.averaged)


@pytest.mark.parametrize("name", ["ema", "lookahead"])
def test_the_average_is_evaluated_saved_and_gone_on_from(
    make_config: Make, tmp_path: Path, name: str
) -> None:
    config = make_config(**TINY, averaging__name=name, averaging__decay=0.5, averaging__every=2)
    setup, _, state = after_an_epoch(config)
    assert (state.params["fc"]["kernel"] != state.evaluated["params"]["fc"]["kernel"]).any() or (
        name == "lookahead"  # which has just begun anew from it
    )
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    result = train(config, whole)
    with pytest.raises(KeyboardInterrupt):
        train(config, resumed, Recorder("[EPOCH 002 | IT 00002]", kill))
    train(config, resumed)
    assert_same_run(resumed, whole)
    with Checkpoints(whole / "checkpoints") as checkpoints:
        weights = checkpoints.weights(result["steps"])
        last = checkpoints.restore(result["steps"], state)
    chex.assert_trees_all_equal(weights, jax.device_get(last.averaged))
    images = batches.normalize(DATASET.test.images, DATASET)
    logits = setup.spec.model.apply(weights, images, train=False)
    np.testing.assert_allclose(np.load(whole / "outputs.npz"), logits, atol=5e-3)


# Phases


PHASES = (
    '[{"until": 0.25, "image_size": 16, "batch_size": 16},'
    ' {"until": 0.5, "image_size": 24, "augmentation": {"cutout": 5}}]'
)


def test_phases_have_images_and_batches_of_their_own(make_config: Make, tmp_path: Path) -> None:
    config = make_config(**TINY | {"model__name": "pooled"}, phases=PHASES, data__flip=True)
    setup = build_setup(config)
    found = [
        (
            e.variant.image_size,
            e.variant.batch_size,
            e.begin,
            e.steps,
            e.variant.augmentation.cutout,
        )
        for e in setup.plan.epochs
    ]
    assert found == [(16, 16, 0, 2, 0), (24, 8, 2, 4, 5), (32, 8, 6, 4, 0), (32, 8, 10, 4, 0)]
    assert [e.variant.augmentation.flip for e in setup.plan.epochs] == [True, False, True, True]
    sizes = [
        batches.make_batch(
            *(DATASET, variant, "float32", compilation.train_data(setup), jnp.arange(8)),
            *(jax.random.key(0), compilation.StepInfo(0, 0, 14)),
        )[0].shape
        for variant in setup.plan.variants
    ]
    assert sizes == [(8, 16, 16, 3), (8, 24, 24, 3), (8, 32, 32, 3)]

    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    result = train(config, whole, display := Recorder())
    assert result["steps"] == 14
    told = "images are of 16 pixels in epoch 1, of 24 pixels in epoch 2, of 32 pixels in epochs 3–4"
    assert display.lines[1] == told
    assert [row["step"] for row in rows_of(whole)] == [2, 6, 10, 14]
    with pytest.raises(KeyboardInterrupt):
        train(config, resumed, Recorder("[EPOCH 002 | IT 00002]", kill))
    train(config, resumed)
    assert_same_run(resumed, whole)


# Test time


def test_a_run_is_measured_by_the_views_that_it_names(make_config: Make, tmp_path: Path) -> None:
    config = make_config(**TINY, tta__flip=True, tta__shift=2, tta__least_confident=0.5)
    train(config, tmp_path / "run")
    setup = build_setup(config)
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        weights = checkpoints.weights(setup.plan.steps)

    def logits_of(images: np.ndarray) -> np.ndarray:
        normal = batches.normalize(images, DATASET)
        return np.asarray(setup.spec.model.apply(weights, normal, train=False))

    expected = apply_tta(logits_of, DATASET.test.images, TTA(True, 2, 0.5))
    found = np.load(tmp_path / "run" / "outputs.npz")
    np.testing.assert_allclose(found, expected, atol=5e-3)
    assert np.abs(found - logits_of(DATASET.test.images)).max() > 0.01
