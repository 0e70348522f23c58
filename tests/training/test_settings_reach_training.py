"""Test the effect of each setting, and that compiled runs equal reference runs in NumPy."""

import re
from collections.abc import Callable
from typing import Any

import by_hand
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny import DATASET

from cifar_jax import config as configs
from cifar_jax import models
from cifar_jax.config import Config
from cifar_jax.training import batches, compilation
from cifar_jax.training.compilation import CompiledSteps
from cifar_jax.training.rng import make_streams
from cifar_jax.training.schedules import StepInfo
from cifar_jax.training.setup import Setup, build_setup, initial_state, learning_rates
from cifar_jax.training.step import TrainState

Make = Callable[..., Config]
pytestmark = pytest.mark.usefixtures("tiny")

TINY = tiny.TINY | {"epochs": 3}


def prepare(config: Config, seed: int) -> tuple[Setup, TrainState, CompiledSteps]:
    setup = build_setup(config, dataset=DATASET)
    state = initial_state(setup, seed)
    return setup, state, CompiledSteps(setup, seed, state)


def make_batch(
    setup: Setup, step: int, epoch: int, key: Any = None, indices: Any = None
) -> tuple[jax.Array, jax.Array]:
    """Return the batch of a step. By default, it contains the first 8 images."""
    return batches.make_batch(
        setup.dataset,
        setup.plan.variants[0],
        setup.config.train.precision,
        compilation.train_data(setup),
        jnp.arange(8) if indices is None else indices,
        jax.random.key(0) if key is None else key,
        StepInfo(step, epoch, setup.plan.steps),
    )


LOSSES = (1.0, 0.9, 0.95, 0.5)
RUNS: dict[str, dict[str, Any]] = {
    "sgd, step": {
        **{"optimizer__momentum": 0, "schedule__name": "step", "schedule__factor": 0.3},
        **{"schedule__step_epochs": 1, "data__flip": True, "model__dropout": 0},
    },
    "adam, cosine": {
        **{"optimizer__name": "adam", "optimizer__lr": 0.01, "optimizer__weight_decay": 0.3},
        **{"optimizer__beta1": 0.8, "optimizer__beta2": 0.9, "optimizer__eps": 1e-3},
        **{"schedule__name": "cosine", "data__crop_padding": 3, "data__last_batch": "wrap"},
        "data__validation": 0.15,
    },
    "adamw, one-cycle": {
        **{"optimizer__name": "adamw", "optimizer__lr": 0.01, "optimizer__weight_decay": 0.5},
        **{"schedule__name": "one-cycle", "schedule__warmup": 0.5, "model__dropout": 0.2},
        **{"data__crop_padding": 2, "data__flip": True, "data__train_images": 17},
        "model__pooling": "average",
    },
    "sgd, plateau": {
        **{"optimizer__momentum": 0.7, "optimizer__weight_decay": 0.1, "epochs": 4},
        **{"schedule__name": "plateau", "schedule__factor": 0.3, "schedule__patience": 1},
        **{"schedule__threshold": 0.2},
    },
    "nesterov, triangular": {
        **{"optimizer__nesterov": True, "schedule__name": "triangular", "schedule__warmup": 0.4},
        **{"schedule__start": 0.2, "schedule__end": 0.1, "loss__label_smoothing": 0.2},
    },
    "linear, lookahead": {
        **{"schedule__name": "linear", "schedule__end": 0.2, "averaging__name": "lookahead"},
        **{"averaging__decay": 0.8, "averaging__every": 3, "averaging__power": 1},
    },
    "bfloat16": {"train__precision": "bfloat16"},
}


@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS)
def test_compiled_run_equals_the_run_by_hand(
    make_config: Make, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In both runs, the seed determines weights, image order, augmentation and dropout."""
    # In bfloat16, oneDNN rounds more often than the run by hand.
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_experimental_onednn_custom_call=false")
    config = make_config(**{**TINY, **settings})
    setup, state, steps = prepare(config, seed=3)
    hand = by_hand.RunByHand(config, DATASET, seed=3)
    rtol, atol = (5e-4, 1e-4) if config.train.precision == "float32" else (5e-2, 1e-2)
    assert {epoch.steps for epoch in setup.plan.epochs} == {hand.steps_per_epoch}
    for epoch in setup.plan.epochs:
        order = steps.epoch_order(epoch)
        np.testing.assert_array_equal(order, hand.order(epoch.number))
        for count in (1, epoch.steps - 1):
            # Copy the kernel by adding 0, because `steps.run` reuses the memory of the state.
            before = state.params["fc"]["kernel"] + 0
            state = steps.run(state, epoch, order, count)
            for _ in range(count):
                hand.update()
            change = float(jnp.abs(state.params["fc"]["kernel"] - before).max())
            assert change > 2 * atol or config.schedule.name == "cosine"
            for ours, theirs in (
                (state.params, hand.params),
                (state.batch_stats, hand.batch_stats),
                (state.evaluated, hand.averaged),
            ):
                chex.assert_trees_all_close(ours, theirs, rtol=rtol, atol=atol)
        assert int(state.metrics.images) == hand.images
        np.testing.assert_allclose(state.metrics.loss, hand.loss, rtol=rtol)
        if config.train.precision == "float32":
            assert int(state.metrics.correct) == hand.correct
        state = steps.end_epoch(state, LOSSES[epoch.number])
        hand.end_epoch(LOSSES[epoch.number])
        assert int(state.step) == hand.step == epoch.end
        np.testing.assert_allclose(state.plateau.scale, hand.scale, rtol=1e-6)
        assert int(state.plateau.bad_epochs) == hand.bad_epochs
    if config.schedule.name == "plateau":
        assert float(state.plateau.scale) == pytest.approx(0.3)
        assert float(state.plateau.best) == 0.5


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precision_is_the_type_of_every_product(make_config: Make, precision: str) -> None:
    """Matrix products of the backward pass also have the type `precision`. Parameters stay
    float32."""
    setup = build_setup(make_config(**TINY, train__precision=precision), dataset=DATASET)
    (variant,) = setup.plan.variants
    arguments = compilation.train_arguments(setup, variant)
    text = compilation.train_function(setup, variant).lower(*arguments).as_text()
    lines = [line for line in text.splitlines() if re.search(r"\.(dot_general|conv\w*)\W", line)]
    products = [line for line in lines if "stablehlo.convert" not in line]
    assert len(products) >= 5
    types = {name for line in products for name in re.findall(r"tensor<[\dx]*x(\w+)>", line)}
    assert types == ({"f32"} if precision == "float32" else {"bf16"})
    state = arguments[0]
    assert {x.dtype for x in jax.tree.leaves((state.params, state.batch_stats))} == {
        jnp.dtype("float32")
    }


# The effect of each setting


def effects(config: Config) -> dict[str, Any]:
    """Return the properties of a setup that settings can change, by name."""
    setup = build_setup(config, dataset=DATASET)
    spec, plan = setup.spec, setup.plan
    model: Any = spec.model
    infos = [
        StepInfo(step, epoch.number, plan.steps)
        for epoch in plan.epochs
        for step in range(epoch.begin, epoch.end)
    ]
    factors = [float(spec.schedule(info)) for info in infos]
    gradient, params = {"w": jnp.float32([1e-3, 2.0])}, {"w": jnp.float32([0.5, -0.25])}
    opt_state = spec.optimizer.init(params)
    for factor in factors[:3]:
        rates = learning_rates(config) * np.float32(factor)
        updates, opt_state = spec.optimizer.update(gradient, opt_state, params, rates=rates)
        params = jax.tree.map(jnp.add, params, updates)
    images, labels = make_batch(setup, 1, 1)
    return {
        "rates": [config.optimizer.lr * factor for factor in factors],
        "update": np.asarray(params["w"]).tolist(),
        "model": (type(model), model.dropout, model.pooling, model.num_classes),
        "type": (model.dtype, images.dtype),
        "images": np.asarray(images, np.float32).tolist(),
        "labels": np.asarray(labels).tolist(),
        "loss": spec.loss(jnp.eye(5), jnp.arange(5)).tolist(),
        "train": len(setup.train.labels),
        "validation": len(setup.validation.labels),
        "steps": plan.epochs[0].steps,
    }


STEPS = {"rates", "update", "steps"}
"""Names of the properties that change if a setting changes the number of steps."""
SETTINGS: dict[str, tuple[Any, set[str]]] = {
    "model.name": ("other", {"model"}),
    "clip_norm": (0.1, {"update"}),
    "loss.class_weights": ("balanced", {"loss"}),
    "model.dropout": (0.25, {"model"}),
    "model.pooling": ("average", {"model"}),
    "epochs": (5, {"rates", "update"}),
    "batch_size": (4, STEPS),
    "optimizer.name": ("sgd", {"update"}),
    "optimizer.lr": (0.1, {"rates", "update"}),
    "optimizer.weight_decay": (0.1, {"update"}),
    "optimizer.beta1": (0.5, {"update"}),
    "optimizer.beta2": (0.5, {"update"}),
    "optimizer.eps": (0.1, {"update"}),
    "schedule.name": ("cosine", {"rates", "update"}),
    "schedule.warmup": (0.6, {"rates", "update"}),
    "data.validation": (14, {"validation", "train", *STEPS}),
    "data.train_images": (17, {"train", *STEPS}),
    "loss.label_smoothing": (0.2, {"loss"}),
    "data.crop_padding": (4, {"images"}),
    "data.crop_fill": ("reflect", {"images"}),
    "data.flip": ("alternating", {"images"}),
    "data.cutout": (7, {"images"}),
    "data.mixup": (0.5, {"images", "labels"}),
    "data.cutmix": (1.0, {"images", "labels"}),
    "data.brightness": (0.3, {"images"}),
    "data.contrast": (0.3, {"images"}),
    "data.last_batch": ("wrap", STEPS),
    "train.precision": ("bfloat16", {"type", "images"}),
}
BASE = TINY | {
    **{"data__validation": 5, "optimizer__name": "adam", "optimizer__lr": 0.05},
    **{"data__crop_padding": 3, "schedule__name": "one-cycle"},
}


@pytest.fixture(scope="module")
def base_effects(make_config: Make, tiny: None) -> dict[str, Any]:
    return effects(make_config(**BASE))


@pytest.mark.parametrize("name", SETTINGS)
def test_setting_has_only_the_expected_effects(
    make_config: Make, base_effects: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    value, expected = SETTINGS[name]
    monkeypatch.setitem(models.MODELS, "other", type("Other", (by_hand.Tiny,), {}))
    changed = effects(make_config(**BASE | {name.replace(".", "__"): value}))
    assert {key for key in base_effects if changed[key] != base_effects[key]} == expected


TESTED_BY_HAND = {
    "optimizer.momentum": "sgd, plateau",
    "optimizer.nesterov": "nesterov, triangular",
    "schedule.start": "nesterov, triangular",
    "schedule.end": "nesterov, triangular",
    "schedule.step_epochs": "sgd, step",
    "schedule.factor": "sgd, plateau",
    "schedule.patience": "sgd, plateau",
    "schedule.threshold": "sgd, plateau",
}
"""Settings of a single optimizer or schedule, each with the name of the run in `RUNS` that tests
it."""
TESTED_ELSEWHERE = {
    *("train.freeze", "train.best_by", "train.early_stopping", "schedule.milestones"),
    *(
        "data.dataset",
        "data.image_size",
        "data.center_crop",
        "train.init_from",
        "optimizer.newton_schulz_steps",
        "param_groups",
    ),
    *("averaging", "phases", "init.dirac", "init.whitening"),
    *("tta.flip", "tta.shift", "tta.least_confident"),
}
"""Settings that other files test, such as test_training_parts.py and test_freezing.py."""


def test_every_setting_is_tested(make_config: Make) -> None:
    for name, run in TESTED_BY_HAND.items():
        assert name.replace(".", "__") in RUNS[run]
    tested = SETTINGS.keys() | TESTED_BY_HAND.keys() | TESTED_ELSEWHERE
    assert tested == configs.identity(make_config()).keys()


# Augmentation


def test_alternating_flips_change_with_the_epoch_and_not_with_the_step(make_config: Make) -> None:
    setup = build_setup(make_config(**TINY, data__flip="alternating"), dataset=DATASET)
    first, same, mirrored, third = (
        np.asarray(make_batch(setup, step, epoch)[0])
        for step, epoch in ((1, 0), (2, 0), (3, 1), (4, 2))
    )
    np.testing.assert_array_equal(same, first)
    np.testing.assert_array_equal(mirrored, first[:, :, ::-1])
    np.testing.assert_array_equal(third, first)


def test_loss_uses_mixed_labels(make_config: Make) -> None:
    settings = {"data__cutmix": 1.0, "loss__label_smoothing": 0.2, "model__dropout": 0}
    config = make_config(**TINY | settings | {"epochs": 1, "data__train_images": 8})
    setup, state, steps = prepare(config, seed=3)
    before = jax.device_get(state)
    (epoch,) = setup.plan.epochs
    order = steps.epoch_order(epoch)
    state = steps.run(state, epoch, order, 1)
    images, labels = make_batch(setup, 0, 0, make_streams(3).augment, order[0])
    assert labels.shape == (8, by_hand.CLASSES)
    assert 0 < float(labels.max(-1).min()) < 1
    model: Any = setup.spec.model
    logits, _ = model.apply(before.variables, images, train=True, mutable=["batch_stats"])
    smooth = 0.8 * np.asarray(labels) + 0.2 / by_hand.CLASSES
    losses = -(smooth * np.asarray(jax.nn.log_softmax(logits))).sum(-1)
    np.testing.assert_allclose(state.metrics.loss, losses.sum(), rtol=1e-4)
    assert int(state.metrics.images) == 8
