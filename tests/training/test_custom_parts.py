"""Test the custom parts of an experiment file. The example is docs/examples/wide_resnet.py."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from short_runs import Recorder, assert_same_run, killed_at, result_of, rows_of, train
from tiny import Dense

import cifar_jax
from cifar_jax import catalog, cli
from cifar_jax.catalog import CustomParts
from cifar_jax.config import Config, Data, Model, Optimizer, Schedule, Train, override
from cifar_jax.data import load
from cifar_jax.errors import UserError
from cifar_jax.training import batches, compilation
from cifar_jax.training.compilation import CompiledSteps
from cifar_jax.training.freezing import Pretrained
from cifar_jax.training.losses import cross_entropy
from cifar_jax.training.schedules import StepInfo
from cifar_jax.training.setup import build_setup, initial_state

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
WARMUP = optax.linear_schedule(0.0, 1e-3, 5)
NOISE = optax.add_noise(0.1, 0.55, jax.random.key(0))
NEEDS_LOSS = optax.GradientTransformationExtraArgs(
    lambda params: (), lambda updates, state, params, *, value: (updates * value, state)
)
"""An optimizer that needs the loss, which the train step does not pass."""
DENSE = Config(
    model=Model(name="mine"),
    epochs=1,
    batch_size=32,
    optimizer=Optimizer(
        name="custom", lr=0.01, arguments={"b1": 0.9, "b2": 0.99, "weight_decay": 0.5}
    ),
    schedule=Schedule(name="custom", arguments={"warmup": 0.8}),
    data=Data(dataset="digits", train_images=64, arguments={"value": 90}),
    train=Train(devices=1),
)
"""Config of a run of two train steps."""
PLAIN = DENSE.model_copy(
    update={
        "optimizer": Optimizer(lr=0.01),
        "schedule": Schedule(),
        "data": Data(dataset="digits", train_images=64),
    }
)
"""The same config, in which only the network is custom."""


@pytest.fixture(scope="module", autouse=True)
def unoptimized() -> Iterator[None]:
    """Turn XLA's optimizations off, because compilation dominates the time of these tests."""
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
    """Folder of a run that the command `cifar-jax train` trained."""
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
            # To check each part, the setup calls the part once more.
            if arguments not in calls.setdefault(name, []):
                calls[name].append(arguments)
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


@pytest.mark.parametrize(
    ("name", "part", "message"),
    [
        ("optimizer", lambda **arguments: None, "OPTIMIZER returns an object of type NoneType"),
        ("optimizer", lambda: None, r"OPTIMIZER fails .* TypeError: .* argument 'b1'"),
        ("optimizer", lambda **arguments: optax.adam(1e-3), "Leave out the learning rate"),
        ("optimizer", lambda **arguments: optax.adam(WARMUP), "Leave out the learning rate"),
        ("optimizer", lambda **arguments: NOISE, "contains a random key"),
        ("optimizer", lambda **arguments: NEEDS_LOSS, "OPTIMIZER fails when it is called"),
        ("schedule", lambda info, warmup: [1, 2], r"SCHEDULE returns an array of shape \[2\]"),
        ("schedule", lambda warmup: 1, "SCHEDULE fails when it is called: TypeError"),
        (
            "augmentation",
            lambda key, images, value: images[:, :16],
            r"returns .* \[32, 16, 32, 3\]",
        ),
        ("augmentation", lambda key, images, value: None, "AUGMENTATION returns NoneType"),
        ("augmentation", lambda key, images, value: images / 255, "AUGMENTATION returns float32"),
        ("augmentation", lambda key, images, value: images.size.no, "fails .* AttributeError"),
    ],
)
def test_faulty_parts_are_refused_in_one_line(
    custom: CustomParts, name: str, part: Callable[..., Any], message: str
) -> None:
    right = replace(custom, model=Dense, augmentation=lambda key, images, value: images)
    with pytest.raises(UserError, match=rf"wide_resnet\.py: .*{message}") as error:
        build_setup(DENSE, replace(right, **{name: part}))
    assert "\n" not in str(error.value)


def test_steps_use_each_custom_part(custom: CustomParts) -> None:
    """The augmentation makes all images equal. Lion's updates are ±1 plus weight decay."""

    def constant(key: jax.Array, images: jax.Array, value: int) -> jax.Array:
        assert (images.shape, images.dtype) == ((32, 32, 32, 3), np.uint8)
        return jnp.full_like(images, value)

    parts = replace(custom, model=Dense, augmentation=constant)
    setup = build_setup(DENSE, parts)
    state = initial_state(setup, 0)
    steps, (epoch,) = CompiledSteps(setup, 0, state), setup.plan.epochs
    order, states = steps.epoch_order(epoch), [jax.device_get(state)]
    for _ in range(2):
        state = steps.run(state, epoch, order, 1)
        states.append(jax.device_get(state))

    image = batches.normalize(np.full((1, 32, 32, 3), 90, np.uint8), setup.dataset)
    logits: Any = setup.spec.model.apply(states[0].variables, image)
    labels = jnp.asarray(setup.train.labels)[order[0]]
    losses = cross_entropy(jnp.repeat(logits, 32, 0), labels)
    assert float(states[1].metrics.loss) == pytest.approx(float(losses.sum()), rel=1e-5)
    start, first, second = (state.params["fc"]["kernel"] for state in states)
    # The learning rate of the first step is 0.
    np.testing.assert_array_equal(first, start)
    # The second step is after half of the run. The warm-up lasts 80 % of the run.
    rate = 0.01 * 0.5 / 0.8
    signs = (first - second) / rate - 0.5 * first
    np.testing.assert_allclose(np.abs(signs), 1, atol=1e-3)
    assert {-1, 1} == set(np.round(signs).ravel().tolist())


def test_the_optimizer_starts_from_the_pretrained_weights(custom: CustomParts) -> None:
    """An optimizer may keep the initial weights, for example to decay toward them."""

    def keep() -> optax.GradientTransformation:
        return optax.GradientTransformation(
            lambda params: params, lambda u, state, params: (u, state)
        )

    parts = CustomParts(Dense, file=custom.file, source=custom.source, optimizer=keep)
    setup = build_setup(PLAIN.model_copy(update={"optimizer": Optimizer(name="custom")}), parts)
    variables = jax.device_get(initial_state(setup, 1).variables)
    pretrained = Pretrained(variables, tuple(setup.dataset.classes))
    state = initial_state(setup, 0, pretrained)
    kept = jax.device_get(jax.tree.leaves(state.opt_state))
    for weights in jax.tree.leaves(variables["params"]):
        assert any(np.array_equal(weights, other) for other in kept)
    steps, (epoch,) = CompiledSteps(setup, 0, state), setup.plan.epochs
    assert int(steps.run(state, epoch, steps.epoch_order(epoch), 1).step) == 1


def test_a_schedule_may_use_array_methods(custom: CustomParts, tmp_path: Path) -> None:
    def linear(info: StepInfo) -> jax.Array:
        return 1 - info.step.astype(jnp.float32) / info.total_steps

    parts = CustomParts(Dense, file=custom.file, source=custom.source, schedule=linear)
    config = PLAIN.model_copy(update={"schedule": Schedule(name="custom")})
    train(config, tmp_path, custom=parts, experiment="mine")
    assert rows_of(tmp_path)[0]["learning_rate"] == pytest.approx(0.005)


def test_custom_augmentation_has_new_random_numbers_in_each_step(custom: CustomParts) -> None:
    def noise(key: jax.Array, images: jax.Array) -> jax.Array:
        return jax.random.bits(key, images.shape, jnp.uint8)

    setup = build_setup(DENSE, replace(custom, model=Dense, augmentation=None))
    data, key = compilation.train_data(setup), jax.random.key(0)
    first, same, second = (
        batches.make_batch(
            *(setup.dataset, setup.plan.variants[0], "float32", data, jnp.arange(4), key),
            *(StepInfo(step, 0, 2), noise),
        )[0]
        for step in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, same)
    assert (first != second).mean() > 0.9


def test_run_without_its_last_epoch_resumes_exactly(
    small: Config, custom: CustomParts, trained: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(trained, tmp_path / "run")
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "checkpoints/2")
    recorder = Recorder()
    train(small, folder, recorder, custom=custom, experiment="wide-resnet")
    assert "resumes at step 2" in recorder.lines[0]
    assert not any("changed since" in line for line in recorder.lines)
    assert_same_run(folder, trained)


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
