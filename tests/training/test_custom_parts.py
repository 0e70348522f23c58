"""Custom parts of an experiment file, as in docs/examples/wide_resnet.py."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from short_runs import Recorder, assert_same_run, killed_at, result_of, rows_of, train
from tiny import Dense

import cifar_jax
from cifar_jax import catalog, cli
from cifar_jax.catalog import CustomParts
from cifar_jax.config import Config, Data, Model, Optimizer, Schedule, Train, override
from cifar_jax.data import load
from cifar_jax.training import batches, compilation
from cifar_jax.training.compilation import CompiledSteps
from cifar_jax.training.losses import cross_entropy
from cifar_jax.training.rng import make_streams
from cifar_jax.training.schedules import StepInfo
from cifar_jax.training.setup import Setup, build_setup, initial_state
from cifar_jax.training.step import TrainState

EXAMPLE = Path(__file__).parents[2] / "docs/examples/wide_resnet.py"
ARGUMENTS = {
    "model.arguments.width": 1,
    "optimizer.arguments.b1": 0.8,
    "optimizer.arguments.weight_decay": 0.5,
    "schedule.arguments.warmup": 0.5,
    "data.arguments.operations": 1,
}
SETTINGS = [
    *("data.dataset=digits", "data.train_images=4", "batch_size=2", "epochs=2"),
    *("train.devices=1", "train.log_every=1", "optimizer.lr=0.01"),
    *(f"{name}={value}" for name, value in ARGUMENTS.items()),
]
STEPS = 4


@pytest.fixture(scope="module", autouse=True)
def unoptimized() -> Iterator[None]:
    """Compile fast, because compilation dominates the time of these tests."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def custom() -> CustomParts:
    parts = catalog.load(str(EXAMPLE)).custom
    assert parts
    return parts


@pytest.fixture(scope="module")
def small() -> Config:
    return override(catalog.load(str(EXAMPLE)).config, SETTINGS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, unoptimized: None) -> Path:
    """The folder of a run that the command line trained."""
    folder = tmp_path_factory.mktemp("trained")
    options = [argument for setting in SETTINGS for argument in ("--set", setting)]
    assert cli.run(["train", str(EXAMPLE), "--workdir", str(folder), *options]) == 0
    return folder


def test_run_has_the_arguments_and_a_copy_of_the_code(
    trained: Path, small: Config, custom: CustomParts
) -> None:
    result = result_of(trained)
    assert result["experiment"] == "wide-resnet"
    assert ARGUMENTS.items() <= result["settings"].items()
    assert ARGUMENTS.items() <= result["overrides"].items()
    assert result["settings"]["model.arguments.blocks"] == 1
    assert (trained / "code.py").read_bytes() == EXAMPLE.read_bytes()
    assert custom.schedule
    factors = [float(custom.schedule(StepInfo(step, 0, STEPS), warmup=0.5)) for step in (1, 3)]
    rates = [row["learning_rate"] for row in rows_of(trained)]
    assert rates == pytest.approx([0.01 * factor for factor in factors])


def test_arguments_reach_each_part(small: Config, custom: CustomParts) -> None:
    calls: dict[str, list[dict[str, Any]]] = {}

    def recorded(name: str) -> Callable[..., Any]:
        def call(*inputs: Any, **arguments: Any) -> Any:
            calls.setdefault(name, []).append(arguments)
            return getattr(custom, name)(*inputs, **arguments)

        return call

    names = ("optimizer", "schedule", "augmentation")
    parts = replace(custom, **{name: recorded(name) for name in names})
    group = (
        '{"parameters": "Dense_0/*", "optimizer": {"name": "custom", "arguments":'
        ' {"b1": 0.7, "b2": 0.9, "weight_decay": 0}}}'
    )
    setup = build_setup(override(small, [f"param_groups=[{group}]"]), parts)
    (variant,) = setup.plan.variants
    arguments = compilation.train_arguments(setup, variant)
    compilation.train_function(setup, variant).lower(*arguments)
    model: Any = setup.spec.model
    assert (model.width, model.blocks, model.dropout, model.num_classes) == (1, 1, 0.3, 10)
    assert calls == {
        "optimizer": [
            {"b1": 0.8, "b2": 0.99, "weight_decay": 0.5},
            {"b1": 0.7, "b2": 0.9, "weight_decay": 0},
        ],
        "schedule": [{"warmup": 0.5}],
        "augmentation": [{"operations": 1, "magnitude": 0.3}],
    }


def first_states(setup: Setup, count: int) -> list[TrainState]:
    """Return the states before the first step and after each of the next `count` steps."""
    state = initial_state(setup, 0)
    steps = CompiledSteps(setup, 0, state)
    epoch = setup.plan.epochs[0]
    states = [jax.device_get(state)]
    for _ in range(count):
        state = steps.run(state, epoch, steps.epoch_order(epoch), 1)
        states.append(jax.device_get(state))
    return states


def mine(**settings: Any) -> Config:
    """Return a config for a custom `Dense` on 64 digits."""
    data = Data(dataset="digits", train_images=64, arguments=settings.pop("data", {}))
    return Config(
        model=Model(name="mine"),
        epochs=1,
        batch_size=32,
        data=data,
        train=Train(devices=1),
        **{"optimizer": Optimizer(), **settings},
    )


def test_steps_apply_the_custom_optimizer_and_schedule(custom: CustomParts) -> None:
    """An update of Lion is a sign plus weight decay, times the rate. The first factor is 0."""
    lion = {"b1": 0.9, "b2": 0.99, "weight_decay": 0.5}
    config = mine(
        optimizer=Optimizer(name="custom", lr=0.01, arguments=lion),
        schedule=Schedule(name="custom", arguments={"warmup": 0.8}),
    )
    parts = replace(custom, model=Dense, augmentation=None)
    start, first, second = (
        state.params["fc"]["kernel"] for state in first_states(build_setup(config, parts), 2)
    )
    np.testing.assert_array_equal(first, start)
    signs = (first - second) / (0.01 * 0.5 / 0.8) - 0.5 * first
    np.testing.assert_allclose(signs, np.round(signs), atol=1e-3)
    # Pixels that are black in all images have no gradient.
    assert {-1, 1} <= set(np.round(signs).ravel().tolist()) <= {-1, 0, 1}


def test_steps_use_the_custom_augmentation() -> None:
    def constant(key: jax.Array, images: jax.Array, value: int) -> jax.Array:
        assert (images.shape, images.dtype) == ((32, 32, 32, 3), np.uint8)
        return jnp.full_like(images, value)

    parts = CustomParts(model=Dense, augmentation=constant)
    setup = build_setup(mine(data={"value": 90}), parts)
    start, end = first_states(setup, 1)
    image = batches.normalize(np.full((1, 32, 32, 3), 90, np.uint8), setup.dataset)
    logits: Any = setup.spec.model.apply(start.variables, image)
    order = compilation.order_function(setup, setup.plan.variants[0])(make_streams(0).order, 0)
    labels = jnp.asarray(setup.train.labels)[order[0]]
    losses = cross_entropy(jnp.repeat(logits, 32, 0), labels)
    assert float(end.metrics.loss) == pytest.approx(float(losses.sum()), rel=1e-5)


def test_custom_augmentation_has_its_own_random_numbers_in_each_step() -> None:
    keys = []

    def record(key: jax.Array, images: jax.Array) -> jax.Array:
        keys.append(jax.random.key_data(key).tolist())
        return images

    setup = build_setup(mine(), CustomParts(model=Dense))
    data, key = compilation.train_data(setup), jax.random.key(0)
    for step in (0, 0, 1):
        info = StepInfo(step, 0, 4)
        batches.make_batch(
            *(setup.dataset, setup.plan.variants[0], "float32"),
            *(data, jnp.arange(8), key, info, record),
        )
    assert keys[0] == keys[1] != keys[2]
    used = [jax.random.fold_in(jax.random.fold_in(key, 0), number) for number in range(5)]
    assert keys[0] not in [jax.random.key_data(other).tolist() for other in used]


def test_killed_run_resumes_exactly(
    small: Config, custom: CustomParts, trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(small, tmp_path, killed_at("[EPOCH 002 | IT 00001]"), custom=custom)
    recorder = Recorder()
    train(small, tmp_path, recorder, custom=custom)
    assert "resumes at step 2" in recorder.lines[0]
    assert not any(line.startswith("changed since") for line in recorder.lines)
    assert_same_run(tmp_path, trained)


@pytest.mark.parametrize(
    ("old", "new"),
    [("optax.scale_by_lion(b1", "optax.scale_by_lion(b1 / 2"), ("jnp.pi *", "3 *"), ("* 10", "")],
    ids=["optimizer", "schedule", "augmentation"],
)
def test_changed_code_is_reported(
    small: Config, trained: Path, tmp_path: Path, old: str, new: str
) -> None:
    file = tmp_path / "wide_resnet.py"
    assert old in EXAMPLE.read_text()
    file.write_text(EXAMPLE.read_text().replace(old, new))
    folder = shutil.copytree(trained, tmp_path / "run")
    (folder / "result.json").unlink()
    parts = catalog.load(str(file)).custom
    recorder = killed_at("changed since")
    with pytest.raises(KeyboardInterrupt):
        train(small, folder, recorder, custom=parts, experiment="wide-resnet")
    assert "wide_resnet.py" in recorder.lines[-1]


def test_run_is_loaded_and_evaluated_with_its_code(
    trained: Path, custom: CustomParts, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs, result = np.load(trained / "outputs.npz"), result_of(trained)
    model: Any = cifar_jax.load(trained, model=custom.model)
    images = load("digits").test.images[:8]
    np.testing.assert_allclose(model.logits(images), outputs["test_logits"][:8], atol=1e-4)
    capsys.readouterr()
    assert cli.run(["evaluate", str(trained), "--code", str(EXAMPLE), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["accuracy"] == pytest.approx(result["test_accuracy"])
    assert "differs from the code" not in captured.err
