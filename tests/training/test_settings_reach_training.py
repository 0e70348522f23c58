"""What a config becomes: each setting at its place, and a compiled run beside one by hand."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import by_hand
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax import config as configs
from cifar_jax import models
from cifar_jax.config import Config
from cifar_jax.training import batches, compilation
from cifar_jax.training.compilation import CompiledSteps
from cifar_jax.training.schedules import StepInfo
from cifar_jax.training.setup import Setup
from cifar_jax.training.step import TrainState

Make = Callable[..., Config]

DATASET = by_hand.images()
TINY = {
    **{"model__name": "tiny", "epochs": 3, "batch_size": 8},
    **{"data__validation": 0.2, "data__train_images": "none"},
}


@pytest.fixture(autouse=True)
def tiny() -> Iterator[None]:
    """A network with BatchNorm and dropout, and no time spent on making its programs fast."""
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "tiny", by_hand.Tiny)
        yield
    jax.config.update("jax_disable_most_optimizations", False)


def compiled(
    config: Config, seed: int = 0, **options: Any
) -> tuple[Setup, TrainState, CompiledSteps]:
    setup = build_setup(config, dataset=DATASET)
    state = initial_state(setup, seed)
    data = compilation.train_data(setup)
    return setup, state, compilation.compile_training(setup, seed, state, data)


OBSERVED = (1.0, 0.9, 0.95, 0.5)
RUNS: dict[str, dict[str, Any]] = {
    "sgd, by steps": {
        **{"optimizer__momentum": 0, "schedule__name": "step", "schedule__factor": 0.3},
        **{"schedule__step_epochs": 1, "data__flip": True, "model__dropout": 0},
    },
    "adam, cosine": {
        **{"optimizer__name": "adam", "optimizer__lr": 0.01, "optimizer__weight_decay": 0.3},
        **{"optimizer__beta1": 0.8, "optimizer__beta2": 0.9, "optimizer__eps": 1e-3},
        **{"schedule__name": "cosine", "data__crop_padding": 3, "data__last_batch": "wrap"},
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
    "linear": {"schedule__name": "linear", "schedule__end": 0.2},
    "bfloat16": {"train__precision": "bfloat16"},
}


@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS)
def test_a_compiled_run_is_the_one_by_hand(make_config: Make, settings: dict[str, Any]) -> None:
    config = make_config(**{**TINY, **settings})
    setup, state, training = compiled(config, seed=3)
    hand = by_hand.Hand(config, DATASET, seed=3)
    rtol, atol = (5e-4, 1e-4) if config.train.precision == "float32" else (5e-2, 1e-2)
    assert {epoch.steps for epoch in setup.plan.epochs} == {hand.steps_per_epoch}
    for epoch in setup.plan.epochs:
        order = training.order(epoch)
        np.testing.assert_array_equal(order, hand.order(epoch.number))
        for calls in (1, epoch.steps - 1):
            before = state.params["fc"]["kernel"] + 0  # the state is donated
            state = training.begin(epoch, order, setup.plan.steps)(state, calls)
            for _ in range(calls):
                hand.update()
            moved = float(jnp.abs(state.params["fc"]["kernel"] - before).max())
            assert moved > 2 * atol or config.schedule.name == "cosine"
            chex.assert_trees_all_close(state.params, hand.params, rtol=rtol, atol=atol)
            chex.assert_trees_all_close(state.batch_stats, hand.batch_stats, rtol=rtol, atol=atol)
        assert int(state.metrics.images) == hand.images
        np.testing.assert_allclose(state.metrics.loss, hand.loss, rtol=rtol)
        if config.train.precision == "float32":
            assert int(state.metrics.correct) == hand.correct
        state = training.end_epoch(state, OBSERVED[epoch.number])
        hand.end_epoch(OBSERVED[epoch.number])
        assert int(state.step) == hand.step == epoch.end
        np.testing.assert_allclose(state.plateau.scale, hand.plateau.scale, rtol=1e-6)
        assert int(state.plateau.bad_epochs) == hand.plateau.bad
    if config.schedule.name == "plateau":
        assert float(state.plateau.scale) == pytest.approx(0.3)
        assert float(state.plateau.best) == 0.5


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precision_is_that_of_every_product(make_config: Make, precision: str) -> None:
    """Of forward and backward pass; what is kept is float32 either way."""
    setup = build_setup(make_config(**TINY, train__precision=precision), dataset=DATASET)
    (variant,) = setup.plan.variants
    arguments = compilation.train_arguments(setup, variant)
    text = compilation.train_function(setup, variant).lower(*arguments).as_text()
    operations = [
        line for line in text.splitlines() if re.search(r"\.(dot_general|conv\w*)\W", line)
    ]
    products = [line for line in operations if "stablehlo.convert" not in line]
    assert len(products) >= 5
    kinds = {kind for line in products for kind in re.findall(r"tensor<[\dx]*x(\w+)>", line)}
    assert kinds == ({"f32"} if precision == "float32" else {"bf16"})
    kept = arguments[0]
    assert {x.dtype for x in jax.tree.leaves((kept.params, kept.batch_stats))} == {
        jnp.dtype("float32")
    }


# Each setting by itself


def noticed(config: Config) -> dict[str, Any]:
    """What can be seen of a setup from outside, by what it concerns."""
    setup = build_setup(config, dataset=DATASET)
    recipe, plan = setup.spec, setup.plan
    model: Any = recipe.model
    gradient = {"w": jnp.float32([1e-3, 2.0])}
    moments_of = (StepInfo(s, plan.epochs_before(s), plan.steps) for s in range(plan.steps))
    rates = [config.optimizer.lr * recipe.schedule(moment) for moment in moments_of]
    params, moments = {"w": jnp.float32([0.5, -0.25])}, None
    for rate in rates[:3]:
        moments = moments or spec.optimizer.init(params)
        rates_now = jnp.float32([rate, *(group.optimizer.lr for group in config.param_groups)])
        change, moments = spec.optimizer.update(gradient, moments, params, rates=rates_now)
        params = jax.tree.map(jnp.add, params, change)
    images, labels = batches.make_batch(
        *(
            setup.dataset,
            plan.variants[0],
            config.train.precision,
            compilation.train_data(setup),
        ),
        *(jnp.arange(8), jax.random.key(0), StepInfo(1, 1, plan.steps)),
    )
    return {
        "rates": [float(rate) for rate in rates],
        "update": np.asarray(params["w"]).tolist(),
        "model": (type(model), model.dropout, model.pooling, model.num_classes),
        "type": (model.dtype, images.dtype),
        "images": np.asarray(images, np.float32).tolist(),
        "labels": np.asarray(labels).tolist(),
        "loss": recipe.loss(jnp.eye(5), jnp.arange(5)).tolist(),
        "train": len(setup.train.labels),
        "validation": len(setup.validation.labels),
        "steps": setup.plan.epochs[0].steps,
    }


BATCHES = {"rates", "update", "steps"}
"""All that depends on how many steps there are, under a schedule that does."""
SETTINGS: dict[str, tuple[Any, set[str]]] = {
    "model.name": ("other", {"model"}),
    "model.dropout": (0.25, {"model"}),
    "model.pooling": ("average", {"model"}),
    "epochs": (5, {"rates", "update"}),
    "batch_size": (4, BATCHES),
    "optimizer.name": ("sgd", {"update"}),
    "optimizer.lr": (0.1, {"rates", "update"}),
    "optimizer.weight_decay": (0.1, {"update"}),
    "optimizer.beta1": (0.5, {"update"}),
    "optimizer.beta2": (0.5, {"update"}),
    "optimizer.eps": (0.1, {"update"}),
    "schedule.name": ("cosine", {"rates", "update"}),
    "schedule.warmup": (0.6, {"rates", "update"}),
    "data.validation": (14, {"validation", "train", *BATCHES}),
    "data.train_images": (17, {"train", *BATCHES}),
    "loss.label_smoothing": (0.2, {"loss"}),
    "data.crop_padding": (4, {"images"}),
    "data.crop_fill": ("reflect", {"images"}),
    "data.flip": ("alternating", {"images"}),
    "data.cutout": (7, {"images"}),
    "data.mixup": (0.5, {"images", "labels"}),
    "data.cutmix": (1.0, {"images", "labels"}),
    "data.brightness": (0.3, {"images"}),
    "data.contrast": (0.3, {"images"}),
    "data.last_batch": ("wrap", BATCHES),
    "train.precision": ("bfloat16", {"type", "images"}),
}
ELSEWHERE = {
    "optimizer.momentum": "sgd, plateau",
    "optimizer.nesterov": "nesterov, triangular",
    "schedule.start": "nesterov, triangular",
    "schedule.end": "nesterov, triangular",
    "schedule.step_epochs": "sgd, by steps",
    "schedule.factor": "sgd, plateau",
    "schedule.patience": "sgd, plateau",
    "schedule.threshold": "sgd, plateau",
}
"""Settings that concern but one rule, by the run by hand that has them other than by default."""


USUAL = TINY | {
    **{"data__validation": 5, "optimizer__name": "adam", "optimizer__lr": 0.05},
    "data__crop_padding": 3,
    "schedule__name": "one-cycle",
}


@pytest.fixture(scope="module")
def usual(make_config: Make) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "tiny", by_hand.Tiny)
        return noticed(make_config(**USUAL))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_reaches_what_it_is_for_and_nothing_else(
    make_config: Make, usual: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    value, concerned = SETTINGS[name]
    other = type("Other", (by_hand.Tiny,), {})
    monkeypatch.setitem(models.MODELS, "other", other)
    settings = USUAL | {name.replace(".", "__"): value}
    found = noticed(make_config(**settings))
    assert {key for key in usual if found[key] != usual[key]} == concerned


def test_alternating_flips_turn_with_the_epoch_and_not_with_the_step(make_config: Make) -> None:
    config = make_config(**TINY, data__flip="alternating")
    setup = build_setup(config, dataset=DATASET)

    def images(step: int, epoch: int) -> np.ndarray:
        moment = StepInfo(step, epoch, setup.plan.steps)
        given = (DATASET, setup.plan.variants[0], "float32", compilation.train_data(setup))
        return np.asarray(batches.make_batch(*given, jnp.arange(8), jax.random.key(0), moment)[0])

    first = images(1, 0)
    np.testing.assert_array_equal(images(2, 0), first)
    np.testing.assert_array_equal(images(3, 1), first[:, :, ::-1])
    np.testing.assert_array_equal(images(4, 2), first)


@pytest.mark.parametrize("mixed", ["data__mixup", "data__cutmix"])
def test_a_step_learns_from_the_labels_that_are_mixed(make_config: Make, mixed: str) -> None:
    settings = {mixed: 1.0, "loss__label_smoothing": 0.2, "model__dropout": 0}
    config = make_config(**TINY | settings | {"epochs": 1, "data__train_images": 8})
    setup, state, training = compiled(config, seed=3)
    before = jax.device_get(state)
    (epoch,) = setup.plan.epochs
    order = training.order(epoch)
    state = training.begin(epoch, order, setup.plan.steps)(state, 1)
    key, _ = jax.random.split(setup.random_keys(3)[2])
    given = (DATASET, epoch.variant, "float32", compilation.train_data(setup))
    images, labels = batches.make_batch(*given, order[0], key, StepInfo(0, 0, setup.plan.steps))
    assert labels.shape == (8, by_hand.CLASSES)
    assert 0 < float(labels.max(-1).min()) < 1
    variables = {"params": before.params, "batch_stats": before.batch_stats}
    model: Any = setup.spec.model
    logits, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
    smooth = 0.8 * np.asarray(labels) + 0.2 / by_hand.CLASSES
    losses = -(smooth * np.asarray(jax.nn.log_softmax(logits))).sum(-1)
    np.testing.assert_allclose(state.metrics.loss, losses.sum(), rtol=1e-4)
    assert int(state.metrics.images) == 8


OF_THEIR_OWN = {
    *("data.dataset", "train.init_from", "train.max_minutes"),
    *("optimizer.newton_schulz_steps", "param_groups", "averaging", "phases"),
    *("init.dirac", "init.whitening", "tta.flip", "tta.shift", "tta.least_confident"),
}
"""Settings of what a run begins with, which `setup` is handed or does not see, and of parts that
have tests of their own in test_recipes.py."""


def test_every_setting_of_a_run_has_such_a_test(make_config: Make) -> None:
    named = {name for name, run in ELSEWHERE.items() if name.replace(".", "__") in RUNS[run]}
    assert SETTINGS.keys() | named | OF_THEIR_OWN == configs.identity(make_config()).keys()


# Seeds


def test_a_seed_decides_what_is_random_and_nothing_else(make_config: Make) -> None:
    config = make_config(**TINY, data__flip=True)
    (setup, first, training), (other, second, differently) = (
        compiled(config, seed) for seed in (1, 2)
    )
    for name, kind in (("conv", "kernel"), ("fc", "kernel"), ("fc", "bias")):
        pair = [np.asarray(state.params[name][kind]) for state in (first, second)]
        assert np.isclose(*pair).mean() < 0.01
    alike = [
        (state.params["bn"], state.batch_stats, state.opt_state, state.plateau, state.metrics)
        for state in (first, second)
    ]
    chex.assert_trees_all_equal(*alike)
    for ours, theirs in ((setup.train, other.train), (setup.validation, other.validation)):
        np.testing.assert_array_equal(ours.images, theirs.images)
    epoch = setup.plan.epochs[0]
    orders = [np.asarray(compiled.order(epoch)) for programs in (training, differently)]
    assert (orders[0] != orders[1]).any()
    # From the same weights in the same order, steps differ by crops, flips and dropout alone.
    copy = jax.tree.map(jnp.copy, first)
    ways = [
        compiled.begin(epoch, training.order(epoch), setup.plan.steps)(state, 1)
        for programs, state in ((training, first), (differently, copy))
    ]
    assert not np.allclose(*(way.params["fc"]["kernel"] for way in ways))


def test_two_seeds_do_the_same_where_nothing_is_random(make_config: Make) -> None:
    config = make_config(**TINY, model__dropout=0)
    (setup, state, training), (_, _, differently) = (compiled(config, seed) for seed in (1, 2))
    epoch, copy = setup.plan.epochs[0], jax.tree.map(jnp.copy, state)
    ways = [
        compiled.begin(epoch, training.order(epoch), setup.plan.steps)(state, 2)
        for programs, state in ((training, state), (differently, copy))
    ]
    chex.assert_trees_all_equal(*ways)
