"""Test a recipe's parts: parameter groups, initialization, phases, test-time augmentation."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from short_runs import assert_same_run, killed_at, rows_of, train
from tiny import DATASET, TINY, after_an_epoch

from cifar_jax.config import Config
from cifar_jax.data import Split
from cifar_jax.logits import loss_and_accuracy
from cifar_jax.models import initialization
from cifar_jax.runs.checkpoints import Checkpoints
from cifar_jax.training import batches, compilation
from cifar_jax.training.compilation import CompiledSteps
from cifar_jax.training.evaluation import TTA, apply_tta
from cifar_jax.training.freezing import Pretrained
from cifar_jax.training.notes import settings_lines
from cifar_jax.training.rng import make_streams
from cifar_jax.training.schedules import StepInfo
from cifar_jax.training.setup import build_setup, initial_state, learning_rates, random_state
from cifar_jax.training.step import TrainState

Make = Callable[..., Config]
pytestmark = pytest.mark.usefixtures("tiny")
ONE_STEP = TINY | {"epochs": 1, "data__train_images": 8}
LOOKAHEAD = {"averaging__name": "lookahead", "averaging__decay": 0.5, "averaging__every": 3}


# Parameter groups


def test_group_has_its_own_learning_rate(make_config: Make) -> None:
    group = '{"parameters": "*/bias, fc/*", "optimizer": {"name": "sgd", "lr": 0.1}}'
    _, start, plain = after_an_epoch(make_config(**ONE_STEP))
    _, _, grouped = after_an_epoch(make_config(**ONE_STEP, param_groups=f"[{group}]"))
    for layer, name in (("conv", "kernel"), ("bn", "scale"), ("bn", "bias"), ("fc", "kernel")):
        change, plain_change = (
            state.params[layer][name] - start.params[layer][name] for state in (grouped, plain)
        )
        factor = 2 if (layer, name) in (("bn", "bias"), ("fc", "kernel")) else 1
        chex.assert_trees_all_close(change, factor * plain_change, rtol=1e-4, atol=1e-7)
        assert np.abs(plain_change).max() > 1e-5


def test_group_is_frozen_after_its_fraction_of_the_epochs(make_config: Make) -> None:
    """Momentum, weight decay and lookahead do not change a frozen group.

    The group is frozen at step 8, between the lookahead updates at steps 6 and 9.
    """
    group = (
        '[{"parameters": "*/bias", "until": %s, "optimizer":'
        ' {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}}]'
    )
    half, always, never = (
        make_config(**TINY, **LOOKAHEAD, param_groups=group % until)
        for until in ("0.5", "null", "0")
    )
    variants = [epoch.variant for epoch in build_setup(half, dataset=DATASET).plan.epochs]
    assert [variant.frozen_groups for variant in variants] == [(), (), (1,), (1,)]

    def biases(variables: Any) -> list[np.ndarray]:
        return [np.asarray(variables["params"][layer]["bias"]) for layer in ("bn", "fc")]

    start, freeze, next_step, end = states_of(half)
    trained = states_of(always)
    chex.assert_trees_all_equal([start, freeze], trained[:2])
    frozen = biases(freeze.variables)
    for others in (start.variables, freeze.averaged, trained[2].variables):
        assert all(
            np.abs(bias - other).max() > 1e-4
            for bias, other in zip(frozen, biases(others), strict=True)
        )
    chex.assert_trees_all_equal(frozen, biases(next_step.variables), biases(end.variables))
    for layer, name in (("conv", "kernel"), ("bn", "scale"), ("fc", "kernel")):
        ours, theirs = (state.params[layer][name] for state in (next_step, trained[2]))
        chex.assert_trees_all_close(ours, theirs)
        assert np.abs(end.params[layer][name] - ours).max() > 1e-4
    states = states_of(never)
    chex.assert_trees_all_equal(
        *(biases(variables) for state in states for variables in (state.variables, state.averaged))
    )


def states_of(config: Config) -> list[TrainState]:
    """Return four states: at the start, halfway, one step after halfway, and at the end."""
    setup = build_setup(config, dataset=DATASET)
    state = initial_state(setup, 0)
    steps = CompiledSteps(setup, 0, state)
    states = [jax.device_get(state)]
    for epoch in setup.plan.epochs:
        order, halfway = steps.epoch_order(epoch), 2 * epoch.number == len(setup.plan.epochs)
        states += [jax.device_get(state)] * halfway
        state = steps.run(state, epoch, order, 1)
        states += [jax.device_get(state)] * halfway
        state = steps.run(state, epoch, order, epoch.steps - 1)
    return [*states, jax.device_get(state)]


def test_no_gradient_is_computed_for_frozen_parameters(make_config: Make) -> None:
    group = '{"parameters": "*/bias", "until": 0, "optimizer": {"name": "sgd", "momentum": 0.9}}'
    config = make_config(**TINY | {"epochs": 1}, param_groups=f"[{group}]")
    _, _, state = after_an_epoch(config)
    shape = state.params["fc"]["bias"].shape
    momenta = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == shape]
    assert len(momenta) == 1
    assert not np.any(momenta[0])


def test_muon_changes_kernels_by_orthogonal_matrices(make_config: Make) -> None:
    config = make_config(
        **ONE_STEP,
        optimizer__name="muon",
        optimizer__newton_schulz_steps=5,
        param_groups='[{"parameters": "*/bias,*/scale", "optimizer": {"name": "sgd", "lr": 0.01}}]',
    )
    _, start, end = after_an_epoch(config)
    kernel = np.asarray(start.params["fc"]["kernel"])
    normalized = kernel * np.sqrt(kernel.shape[1]) / np.linalg.norm(kernel)
    update = (np.asarray(end.params["fc"]["kernel"]) - normalized) / 0.05
    *values, last = np.linalg.svd(update, compute_uv=False)
    assert 0.5 < min(values) <= max(values) < 1.3
    # The gradients of all classes add up to zero, so one singular value is zero.
    assert last < 0.01


def test_learning_rates_are_not_part_of_the_programs(make_config: Make) -> None:
    def lowered(rate: float) -> list[str]:
        groups = f'[{{"parameters": "*/bias", "optimizer": {{"name": "adam", "lr": {rate}}}}}]'
        config = make_config(**TINY | {"optimizer__lr": rate, "param_groups": groups})
        setup = build_setup(config, dataset=DATASET)
        make_state = jax.jit(partial(random_state, setup))
        (variant,) = setup.plan.variants
        arguments = compilation.train_arguments(setup, variant)
        return [
            make_state.lower(make_streams(0).init, learning_rates(config)).as_text(),
            compilation.train_function(setup, variant).lower(*arguments).as_text(),
        ]

    assert lowered(0.1) == lowered(0.2)


# Initialization


def test_first_layer_whitens_the_training_images_and_is_frozen(make_config: Make) -> None:
    """Weight decay and lookahead do not change the first layer's kernel. Its bias is trained."""
    config = make_config(
        **TINY | {"model__name": "pooled", "init__whitening": True, "optimizer__weight_decay": 0.1},
        **LOOKAHEAD,
    )
    setup, start, end = after_an_epoch(config)
    images = np.asarray(batches.normalize(setup.train.images, DATASET))
    kernel = np.asarray(start.params["conv1"]["kernel"])
    expected = initialization.whitening_filters(images, kernel.shape)
    np.testing.assert_allclose(kernel[..., : expected.shape[-1]], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(end.params["conv1"]["kernel"], kernel)
    np.testing.assert_array_equal(end.averaged["params"]["conv1"]["kernel"], kernel)
    # Only weight decay changes the bias. BatchNorm follows, so the gradient of the bias is zero.
    assert (end.params["conv1"]["bias"] != start.params["conv1"]["bias"]).any()
    assert (end.params["fc"]["kernel"] != start.params["fc"]["kernel"]).any()


@pytest.mark.parametrize("source", ["init__dirac", "init__whitening", "init_from"])
def test_initial_weights_and_their_average(make_config: Make, source: str) -> None:
    options = {} if source == "init_from" else {source: True}
    settings = TINY | {"model__name": "pooled", "averaging__name": "ema"}
    setup = build_setup(make_config(**settings, **options), dataset=DATASET)
    pretrained = None
    if not options:
        variables = initial_state(setup, 1).variables
        pretrained = Pretrained(variables, tuple(DATASET.classes))
    state = initial_state(setup, 0, pretrained)
    chex.assert_trees_all_equal(state.averaged, state.variables)
    random = random_state(setup, make_streams(0).init, learning_rates(setup.config))
    kernel = np.asarray(state.params["conv1"]["kernel"])
    assert np.abs(kernel - random.params["conv1"]["kernel"]).max() > 0.01
    if source == "init__dirac":
        np.testing.assert_array_equal(kernel[1, 1, :, :3], np.eye(3))
        assert (kernel[..., 3:] != 0).mean() > 0.99


def test_the_log_names_classes_without_images(make_config: Make) -> None:
    order = np.argsort(DATASET.train.labels, kind="stable")
    sorted_train = Split(*(array[order] for array in DATASET.train))
    dataset = DATASET._replace(train=sorted_train)
    last = int(sorted_train.labels[-1])
    held_out = int((sorted_train.labels == last).sum())
    setup = build_setup(make_config(**TINY | {"data__validation": held_out}), dataset=dataset)
    first, second = (line for line in settings_lines(setup, None) if "classes without" in line)
    assert first.startswith(f"classes without training images: {dataset.classes[last]}. Are the")
    others = ", ".join(name for name in dataset.classes if name != dataset.classes[last])
    assert second == f"classes without validation images: {others}"


# Phases


def test_the_log_names_the_image_size_of_each_epoch(make_config: Make) -> None:
    phases = '[{"until": 0.25, "batch_size": 16}, {"until": 0.5, "image_size": 24}]'
    setup = build_setup(
        make_config(**TINY | {"model__name": "pooled"}, phases=phases), dataset=DATASET
    )
    (line,) = [line for line in settings_lines(setup, None) if line.startswith("image size")]
    sizes = "32 pixels in epoch 1, 24 pixels in epoch 2, 32 pixels in epochs 3–4"
    assert line == f"image size: {sizes}"


def test_phases_have_their_own_image_size_batch_size_and_augmentation(
    make_config: Make, tmp_path: Path
) -> None:
    phases = (
        '[{"until": 0.25, "image_size": 16, "batch_size": 16},'
        ' {"until": 0.5, "image_size": 24, "augmentation": {"cutout": 5}}]'
    )
    config = make_config(**TINY | {"model__name": "dense"}, phases=phases, data__flip=True)
    setup = build_setup(config, dataset=DATASET)
    epochs = setup.plan.epochs
    variants = [epoch.variant for epoch in epochs]
    assert [(epoch.begin, epoch.steps) for epoch in epochs] == [(0, 2), (2, 4), (6, 4), (10, 4)]
    assert [v.image_size for v in variants] == [16, 24, 32, 32]
    assert [v.batch_size for v in variants] == [16, 8, 8, 8]
    assert [v.augmentation.cutout for v in variants] == [0, 5, 0, 0]
    assert [v.augmentation.flip for v in variants] == [True, False, True, True]
    data, key, info = compilation.train_data(setup), jax.random.key(0), StepInfo(0, 0, 14)
    for variant in setup.plan.variants:
        images, _ = batches.make_batch(DATASET, variant, "float32", data, jnp.arange(8), key, info)
        assert images.shape == (8, variant.image_size, variant.image_size, 3)

    folder, resumed = tmp_path / "whole", tmp_path / "resumed"
    train(config, folder)
    line = "image size: 16 pixels in epoch 1, 24 pixels in epoch 2, 32 pixels in epochs 3–4"
    assert line in (folder / "log.txt").read_text().splitlines()
    assert [row["step"] for row in rows_of(folder)] == [2, 6, 10, 14]
    with pytest.raises(KeyboardInterrupt):
        train(config, resumed, killed_at("[EPOCH 002 | IT 00002]"))
    train(config, resumed)
    assert_same_run(resumed, folder)


# Test-time augmentation


def test_result_uses_test_time_augmentation(make_config: Make, tmp_path: Path) -> None:
    config = make_config(**TINY, tta__flip=True, tta__shift=2, tta__least_confident=0.5)
    result = train(config, tmp_path)
    model = build_setup(config, dataset=DATASET).spec.model
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        weights = checkpoints.weights(checkpoints.all()[-1])

    def logits_of(images: np.ndarray) -> np.ndarray:
        images = batches.normalize(images, DATASET)  # pyright: ignore
        return np.asarray(model.apply(weights, images, train=False))

    expected = apply_tta(logits_of, DATASET.test.images, TTA(True, 2, 0.5))
    outputs, labels = np.load(tmp_path / "outputs.npz"), DATASET.test.labels
    np.testing.assert_allclose(outputs["test_logits"], expected.logits, atol=5e-3)
    np.testing.assert_allclose(outputs["test_logits_plain"], expected.plain, atol=5e-3)
    assert np.abs(expected.logits - expected.plain).max() > 0.01
    accuracies = [loss_and_accuracy(outputs[f"test_logits{s}"], labels)[1] for s in ("", "_plain")]
    assert [result.test_accuracy, result.test_accuracy_plain] == pytest.approx(accuracies)
