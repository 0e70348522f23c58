"""From a config to what runs on the devices: the data, the model, and the compiled programs."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding

from cifar_jax import devices, models
from cifar_jax.config import Config
from cifar_jax.data import Dataset, Split, load, pipeline, split_validation
from cifar_jax.errors import UserError
from cifar_jax.evaluation import LogitsFn, compile_logits
from cifar_jax.training import optim
from cifar_jax.training import step as steps
from cifar_jax.training.step import Metrics, TrainState


class Setup(NamedTuple):
    """A config made concrete: checked against the data and the devices, nothing computed yet."""

    config: Config
    dataset: Dataset
    train: Split
    validation: Split
    steps_per_epoch: int
    model: nn.Module
    schedule: optax.Schedule
    tx: optax.GradientTransformation
    mesh: Mesh


class TrainData(NamedTuple):
    """The training images, whole on every device.

    Each is a row: a TPU pads the last axis to 128, and would copy all the images into a layout
    that it can gather from, four times their size, in each call.
    """

    images: jax.Array  # uint8 [N, 32 · 32 · 3]
    labels: jax.Array  # int32 [N]


class Programs(NamedTuple):
    """The compiled programs of a training run. Being compiled, they cannot recompile."""

    order: Callable[[int], jax.Array]
    """Epoch to int32 `[steps, batch]`."""
    train: Callable[[TrainState, jax.Array, int], TrainState]
    """State, the epoch's order and a number of steps to the next state; donates the state.
    What comes out does not depend on how steps are divided into calls."""
    end_epoch: Callable[[TrainState, float], TrainState]
    """State and the observed loss to the state that begins the next epoch."""
    compile_seconds: float


def setup(
    config: Config,
    *,
    dataset: Dataset | None = None,
    available: Sequence[Any] | None = None,
) -> Setup:
    """Load the data and check that the settings fit it and the devices.

    Args:
      config: what the run is.
      dataset: instead of the one that the config names.
      available: devices to choose from, instead of all that there are.

    Raises:
      UserError: unknown model or data set, data that is not there, a batch larger than the data, or
        devices that do not divide it.
    """
    settings = config.data
    # What needs no data is checked before the data is loaded, which may take a download.
    models.create(config.model.name, dropout=config.model.dropout, pooling=config.model.pooling)
    mesh = devices.make_mesh(config.batch_size, config.train.devices, available)
    dataset = load(settings.dataset) if dataset is None else dataset
    train, validation = split_validation(dataset.train, settings.validation)
    if settings.train_images is not None:
        if settings.train_images > len(train.labels):
            raise UserError(
                f"data.train_images={settings.train_images}, but {settings.dataset} has "
                f"{len(train.labels)} training images beside the validation images"
            )
        train = Split(*(array[: settings.train_images] for array in train))
    if config.batch_size > len(train.labels):
        raise UserError(
            f"batch_size {config.batch_size} is larger than the {len(train.labels)} training images"
        )
    steps_per_epoch = pipeline.steps_per_epoch(
        len(train.labels), config.batch_size, settings.last_batch
    )
    schedule = optim.make_schedule(
        config.schedule, config.optimizer.lr, steps_per_epoch, config.epochs
    )
    return Setup(
        config=config,
        dataset=dataset,
        train=train,
        validation=validation,
        steps_per_epoch=steps_per_epoch,
        model=models.create(
            config.model.name,
            dropout=config.model.dropout,
            pooling=config.model.pooling,
            num_classes=len(dataset.classes),
            dtype=jnp.dtype(config.train.precision),
        ),
        schedule=schedule,
        tx=optim.make_optimizer(config.optimizer, schedule),
        mesh=mesh,
    )


def init_state(setup: Setup, seed: int, initial: Mapping[str, Any] | None = None) -> TrainState:
    """The state that a run of that seed begins with, on the devices.

    Args:
      setup: the run's.
      seed: of the fresh variables.
      initial: variables to begin with instead, but for a last layer of other classes.

    Raises:
      UserError: `initial` is of another network.
    """
    key, _, _ = _keys(seed)
    replicated = devices.replicated(setup.mesh)
    state = jax.jit(partial(_init_state, setup), out_shardings=replicated)(key)
    if initial is None:
        return state
    taken = models.taken_over(state.variables, initial)
    return state._replace(**devices.put(taken, replicated))


def train_data(setup: Setup) -> TrainData:
    """Put the training images on the devices."""
    return TrainData(*devices.put(_rows(setup.train), devices.replicated(setup.mesh)))


def compile_training(setup: Setup, seed: int, state: TrainState, data: TrainData) -> Programs:
    """Compile what a training run calls. `state` is for its shapes and stays valid."""
    config, settings = setup.config, setup.config.data
    began = time.perf_counter()
    replicated = devices.replicated(setup.mesh)
    _, order_key, step_key = _keys(seed)

    def order(key: jax.Array, epoch: jax.Array) -> jax.Array:
        return pipeline.epoch_order(
            jax.random.fold_in(key, epoch),
            len(setup.train.labels),
            config.batch_size,
            settings.last_batch,
        )

    def end_epoch(state: TrainState, observed: jax.Array) -> TrainState:
        plateau = state.plateau
        if config.schedule.name == "plateau":
            plateau = optim.plateau_update(
                plateau,
                observed,
                lr=config.optimizer.lr,
                patience=config.schedule.patience,
                factor=config.schedule.factor,
                threshold=config.schedule.threshold,
            )
        return state._replace(plateau=plateau, metrics=Metrics.zero())

    order_jit = jax.jit(order, out_shardings=devices.batch_sharding(setup.mesh, axis=1))
    order_program = order_jit.lower(order_key, np.int32(0)).compile()
    train_program = (
        train_function(setup)
        .lower(state, data, order_program(order_key, np.int32(0)), np.int32(0), step_key)
        .compile()
    )
    end_epoch_program = (
        jax.jit(end_epoch, donate_argnums=0, out_shardings=replicated)
        .lower(state, np.float32(0))
        .compile()
    )
    return Programs(
        order=lambda epoch: order_program(order_key, np.int32(epoch)),
        train=lambda state, order, count: train_program(
            state, data, order, np.int32(count), step_key
        ),
        end_epoch=lambda state, observed: end_epoch_program(state, np.float32(observed)),
        compile_seconds=time.perf_counter() - began,
    )


def train_function(setup: Setup) -> jax.stages.Wrapped:
    """What `Programs.train` calls, not yet compiled.

    It takes the state, which it donates, the `TrainData`, the epoch's order, the number of steps,
    and the key of what is random in a step; `train_arguments` gives their types.
    """

    def train(
        state: TrainState, data: TrainData, order: jax.Array, count: jax.Array, key: jax.Array
    ) -> TrainState:
        augment_key, dropout_key = jax.random.split(key)
        batch = partial(make_batch, setup, data, order, augment_key)
        return steps.train_steps(state, count, dropout_key, batch, model=setup.model, tx=setup.tx)

    return jax.jit(train, donate_argnums=0, out_shardings=devices.replicated(setup.mesh))


def make_batch(
    setup: Setup, data: TrainData, order: jax.Array, key: jax.Array, step: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Images, augmented and normalised, and labels of a step, by its number in the run."""
    indices = order[step % setup.steps_per_epoch]
    images = pipeline.augment(
        jax.random.fold_in(key, step),
        pipeline.take(data.images, indices).reshape(-1, *models.IMAGE_SHAPE),
        setup.config.data.crop_padding,
        setup.config.data.flip,
    )
    return _normalise(setup, images), data.labels[indices]


class Pace:
    """How many steps to take in a call: what the settings say, or else about a fifth of a second's.

    A call costs as much as a step does at batch 8 on an accelerator; but a run shows itself, logs
    and stops between calls only. So calls grow until one takes long enough.
    """

    def __init__(self, steps_per_call: int | None) -> None:
        self.steps = steps_per_call or 1
        self.settled = steps_per_call is not None
        self._calls = self._long = 0

    def observe(self, steps: int, seconds: float) -> None:
        """Note how long a call of so many steps took, until that is settled.

        It takes two long calls in a row: one may have met a busy moment of the machine.
        """
        self._calls += 1
        if self._calls == 1 or self.settled:
            return  # the first did what is done but once
        if seconds * self.steps / steps >= 0.1:
            self._long += 1
            self.settled = self._long == 2
        elif self.steps < 64:
            self._long = 0
            self.steps *= 2
        else:
            self.settled = True


def train_arguments(setup: Setup) -> tuple[Any, ...]:
    """Shapes, types and shardings of `train_function`'s arguments; nothing is put anywhere.

    They suffice to compile it, also for devices that this machine does not have.
    """
    replicated = devices.replicated(setup.mesh)

    def typed(tree: Any, sharding: NamedSharding) -> Any:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    key = jax.eval_shape(jax.random.key, 0)
    order = jax.ShapeDtypeStruct((setup.steps_per_epoch, setup.config.batch_size), jnp.int32)
    return (
        typed(jax.eval_shape(partial(_init_state, setup), key), replicated),
        TrainData(*typed(_rows(setup.train), replicated)),
        typed(order, devices.batch_sharding(setup.mesh, axis=1)),
        typed(jax.ShapeDtypeStruct((), jnp.int32), replicated),
        typed(key, replicated),
    )


def compile_evaluation(
    setup: Setup,
    state: TrainState,
    images: np.ndarray,
    after_batch: Callable[[], None] = lambda: None,
) -> LogitsFn:
    """A function from variables to the logits `[N, classes]` of `images`, uint8 `[N, 32, 32, 3]`.

    `state` is for its shapes and stays valid; `after_batch` is as for `compile_logits`.
    """
    return compile_logits(
        setup.model,
        state.variables,
        images,
        normalise=partial(_normalise, setup),
        batch_size=setup.config.train.eval_batch_size,
        mesh=setup.mesh,
        after_batch=after_batch,
    )


def is_finite(state: TrainState) -> bool:
    """Whether all weights, statistics and moments are; waits for the devices."""
    return bool(_all_finite((state.params, state.batch_stats, state.opt_state)))


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    return jnp.stack(leaves).all()


def with_lower_rate(setup: Setup, state: TrainState, factor: float) -> TrainState:
    """`state`, whose updates are multiplied by `factor` from now on."""
    scale = np.float32(factor) * np.asarray(state.plateau.scale)
    plateau = state.plateau._replace(scale=devices.put(scale, devices.replicated(setup.mesh)))
    return state._replace(plateau=plateau)


def means(metrics: Metrics) -> dict[str, float]:
    """`loss` in nats and `accuracy` in percent; waits for the devices."""
    loss, correct, images = (float(value) for value in jax.device_get(metrics))
    return {"loss": loss / max(images, 1), "accuracy": 100 * correct / max(images, 1)}


def _rows(split: Split) -> tuple[np.ndarray, np.ndarray]:
    return split.images.reshape(len(split.images), -1), split.labels


def _init_state(setup: Setup, key: jax.Array) -> TrainState:
    return steps.init_state(models.init_variables(setup.model, key), setup.tx)


def _normalise(setup: Setup, images: jax.Array) -> jax.Array:
    dtype = jnp.dtype(setup.config.train.precision)
    return pipeline.normalise(images, setup.dataset.mean, setup.dataset.std, dtype)


def _keys(seed: int) -> tuple[jax.Array, ...]:
    """Of initialisation, of the epochs' orders, and of what is random in a step."""
    return tuple(jax.random.split(jax.random.key(seed), 3))
