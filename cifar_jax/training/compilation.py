"""What runs on the devices: the compiled programs of a training run."""

import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from cifar_jax import devices
from cifar_jax.data import pipeline
from cifar_jax.training import batches, optimizers
from cifar_jax.training import step as steps
from cifar_jax.training.batches import TrainData
from cifar_jax.training.evaluation import TTA, LogitsFn, compile_logits
from cifar_jax.training.plan import Epoch, StepVariant
from cifar_jax.training.schedules import StepInfo
from cifar_jax.training.setup import Setup, fresh_state, learning_rates, random_keys
from cifar_jax.training.step import Metrics, TrainState

StepsFn = Callable[[TrainState, int], TrainState]


class CompiledSteps(NamedTuple):
    """The compiled programs of a training run. Being compiled, they cannot recompile."""

    order: Callable[[Epoch], jax.Array]
    """Which images each step of an epoch takes: int32 `[steps, batch]`."""
    begin: Callable[[Epoch, jax.Array, int], StepsFn]
    """From an epoch, its order, and how many updates the whole run makes to a function that takes
    steps of it: from a state, which it donates, and a number of steps to the state after them.
    What comes out does not depend on how steps are divided into calls."""
    end_epoch: Callable[[TrainState, float], TrainState]
    """State and the observed loss to the state that begins the next epoch."""
    compile_seconds: float


def train_data(workload: Setup) -> TrainData:
    """Put the training images on the devices."""
    return TrainData(*devices.put(batches.rows(workload.train), devices.replicated(workload.mesh)))


def compile_training(
    workload: Setup, seed: int, state: TrainState, data: TrainData
) -> CompiledSteps:
    """Compile what a training run calls. `state` is for its shapes and stays valid."""
    config = workload.config
    began = time.perf_counter()
    replicated = devices.replicated(workload.mesh)
    _, order_key, step_key = random_keys(seed)

    def end_epoch(state: TrainState, observed: jax.Array) -> TrainState:
        plateau = state.plateau
        if config.schedule.name == "plateau":
            plateau = optimizers.plateau_update(
                plateau,
                observed,
                lr=state.lr[0],
                patience=config.schedule.patience,
                factor=config.schedule.factor,
                threshold=config.schedule.threshold,
            )
        return state._replace(plateau=plateau, metrics=Metrics.zero())

    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )

    @cache
    def compiled(stage: StepVariant) -> tuple[jax.stages.Compiled, jax.stages.Compiled]:
        ordering = order_function(workload, stage).lower(order_key, np.int32(0)).compile()
        order = ordering(order_key, np.int32(0))
        training = (
            train_function(workload, stage)
            .lower(shapes, data, order, np.int32(0), step_key, _moment(0, 0, 1))
            .compile(compiler_options=devices.compiler_options(workload.mesh, stage.batch_size))
        )
        return ordering, training

    # Another that `train.max_minutes` may bring is compiled when it does, which is seldom.
    for stage in workload.plan.stages:
        compiled(stage)
    ending = (
        jax.jit(end_epoch, donate_argnums=0, out_shardings=replicated)
        .lower(state, np.float32(0))
        .compile()
    )

    def order_of(epoch: Epoch) -> jax.Array:
        ordering, _ = compiled(epoch.stage)
        return ordering(order_key, np.int32(epoch.number))

    def begin(epoch: Epoch, order: jax.Array, run_steps: int) -> StepsFn:
        _, program = compiled(epoch.stage)
        first = _moment(epoch.begin, epoch.number, run_steps)
        return lambda state, count: program(state, data, order, np.int32(count), step_key, first)

    return CompiledSteps(
        order=order_of,
        begin=begin,
        end_epoch=lambda state, observed: ending(state, np.float32(observed)),
        compile_seconds=time.perf_counter() - began,
    )


def order_function(workload: Setup, stage: StepVariant) -> jax.stages.Wrapped:
    """What `CompiledSteps.order` calls, not yet compiled: of a key and an epoch's number."""

    def order(key: jax.Array, epoch: jax.Array) -> jax.Array:
        return pipeline.epoch_order(
            jax.random.fold_in(key, epoch),
            len(workload.train.labels),
            stage.batch_size,
            workload.config.data.last_batch,
        )

    return jax.jit(order, out_shardings=devices.batch_sharding(workload.mesh, axis=1))


def train_function(workload: Setup, stage: StepVariant) -> jax.stages.Wrapped:
    """What takes the steps of a stage, not yet compiled.

    It takes the state, which it donates, the `TrainData`, the epoch's order, the number of steps,
    the key of what is random in a step, and the moment at which the epoch began; `train_arguments`
    gives their types.
    """

    def train(
        state: TrainState,
        data: TrainData,
        order: jax.Array,
        count: jax.Array,
        key: jax.Array,
        first: StepInfo,
    ) -> TrainState:
        augment_key, dropout_key = jax.random.split(key)
        make = partial(batches.make_batch, workload.dataset, stage, workload.config.train.precision)
        frozen = optimizers.members(state.params, workload.config.param_groups, stage.frozen)
        recipe = workload.recipe._replace(frozen=frozen)

        def moment(step: jax.Array) -> StepInfo:
            return first._replace(step=step)

        def batch(step: jax.Array) -> tuple[jax.Array, jax.Array]:
            return make(data, order[step - first.step], augment_key, moment(step))

        return steps.train_steps(state, count, dropout_key, batch, moment, recipe=recipe)

    return jax.jit(train, donate_argnums=0, out_shardings=devices.replicated(workload.mesh))


class StepsPerCallTuner:
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


def train_arguments(workload: Setup, stage: StepVariant) -> tuple[Any, ...]:
    """Shapes, types and shardings of `train_function`'s arguments; nothing is put anywhere.

    They suffice to compile it, also for devices that this machine does not have.
    """
    replicated = devices.replicated(workload.mesh)

    def typed(tree: Any, sharding: NamedSharding) -> Any:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    key, rates = jax.eval_shape(jax.random.key, 0), learning_rates(workload.config)
    epoch = next(epoch for epoch in workload.plan.epochs if epoch.stage == stage)
    order = jax.ShapeDtypeStruct((epoch.steps, stage.batch_size), jnp.int32)
    number = typed(jax.ShapeDtypeStruct((), jnp.int32), replicated)
    return (
        typed(jax.eval_shape(partial(fresh_state, workload), key, rates), replicated),
        TrainData(*typed(batches.rows(workload.train), replicated)),
        typed(order, devices.batch_sharding(workload.mesh, axis=1)),
        number,
        typed(key, replicated),
        StepInfo(number, number, number),
    )


def compile_evaluation(
    workload: Setup,
    state: TrainState,
    images: np.ndarray,
    after_batch: Callable[[], None] = lambda: None,
) -> LogitsFn:
    """A function from variables to the logits `[N, classes]` of `images`, uint8 `[N, 32, 32, 3]`.

    `state` is for its shapes and stays valid; `after_batch` is as for `compile_logits`.
    """
    precision, seen = workload.config.train.precision, workload.config.tta
    return compile_logits(
        workload.recipe.model,
        state.variables,
        images,
        normalize=partial(batches.normalize, dataset=workload.dataset, precision=precision),
        batch_size=workload.config.train.eval_batch_size,
        mesh=workload.mesh,
        after_batch=after_batch,
        views=TTA(seen.flip, seen.shift, seen.least_confident),
    )


def is_finite(state: TrainState) -> bool:
    """Whether all weights, statistics and moments are; waits for the devices."""
    return bool(_all_finite((state.variables, state.opt_state, state.averaged)))


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    return jnp.stack(leaves).all()


def with_lower_rate(workload: Setup, state: TrainState, factor: float) -> TrainState:
    """`state`, whose updates are multiplied by `factor` from now on."""
    scale = np.float32(factor) * np.asarray(state.plateau.scale)
    plateau = state.plateau._replace(scale=devices.put(scale, devices.replicated(workload.mesh)))
    return state._replace(plateau=plateau)


def means(metrics: Metrics) -> dict[str, float]:
    """`loss` in nats and `accuracy` in percent; waits for the devices."""
    loss, correct, images = (float(value) for value in jax.device_get(metrics))
    return {"loss": loss / max(images, 1), "accuracy": 100 * correct / max(images, 1)}


def _moment(step: int, epoch: int, steps: int) -> StepInfo:
    return StepInfo(np.int32(step), np.int32(epoch), np.int32(steps))
