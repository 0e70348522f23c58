"""The compiled programs of a run: train steps, the end of an epoch, and evaluation."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from cifar_jax import devices
from cifar_jax.data import pipeline
from cifar_jax.training import batches, optimizers, rng
from cifar_jax.training import step as steps
from cifar_jax.training.batches import TrainData
from cifar_jax.training.evaluation import TTA, LogitsFn, compile_logits
from cifar_jax.training.plan import Epoch, StepVariant
from cifar_jax.training.schedules import StepInfo, plateau_update
from cifar_jax.training.setup import Setup, learning_rates, random_state
from cifar_jax.training.step import Metrics, TrainState


class CompiledSteps:
    """The compiled train steps of a run. All are compiled when this object is created.

    Args:
      setup: the setup of the run.
      seed: seed of the run.
      state: a state with the right shapes. It is not donated.
    """

    def __init__(self, setup: Setup, seed: int, state: TrainState) -> None:
        began = time.perf_counter()
        self._setup = setup
        self.tuner = StepsPerCallTuner(setup.config.train.steps_per_call)
        self._streams = rng.make_streams(seed)
        self._data = train_data(setup)
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
        self._order, self._train = {}, {}
        for variant in setup.plan.variants:
            order = order_function(setup, variant).lower(self._streams.order, np.int32(0)).compile()
            example = order(self._streams.order, np.int32(0))
            self._order[variant] = order
            self._train[variant] = devices.compile_program(
                train_function(setup, variant),
                *(shapes, self._data, example, np.int32(0), *self._keys, _info(0, 0, 1)),
                mesh=setup.mesh,
                batch_size=variant.batch_size,
                precision=setup.config.train.precision,
            )
        self._end_epoch = _end_epoch_function(setup).lower(state, np.float32(0)).compile()
        self.compile_seconds = time.perf_counter() - began

    @property
    def _keys(self) -> tuple[jax.Array, jax.Array]:
        return self._streams.augment, self._streams.dropout

    def epoch_order(self, epoch: Epoch) -> jax.Array:
        """Return the image indices of each step of an epoch, int32 `[steps, batch_size]`."""
        return self._order[epoch.variant](self._streams.order, np.int32(epoch.number))

    def run(self, state: TrainState, epoch: Epoch, order: jax.Array, count: int) -> TrainState:
        """Return the state after `count` steps of an epoch. `state` is donated.

        Several calls with few steps give the same result as one call with all steps.

        Args:
          state: the current state.
          epoch: the epoch that is being trained.
          order: the result of `epoch_order` for this epoch.
          count: number of steps.
        """
        begin = _info(epoch.begin, epoch.number, self._setup.plan.steps)
        program = self._train[epoch.variant]
        return program(state, self._data, order, np.int32(count), *self._keys, begin)

    def end_epoch(self, state: TrainState, loss: float) -> TrainState:
        """Return the state at the start of the next epoch. `state` is donated.

        Args:
          state: the state after the last step of an epoch.
          loss: loss of the epoch, used by the `plateau` schedule.
        """
        return self._end_epoch(state, np.float32(loss))


class StepsPerCallTuner:
    """Chooses how many train steps a compiled call runs.

    On an accelerator, the overhead of a call takes as long as a small step, so calls with many
    steps are faster. However, progress, logs and signals are handled only between calls. The number
    of steps doubles until a call takes at least 0.1 s, up to 64 steps. A call therefore usually
    takes 0.1 to 0.2 s.
    """

    def __init__(self, steps_per_call: int | None) -> None:
        self.steps = steps_per_call or 1
        self.settled = steps_per_call is not None
        self._calls = self._long_calls = 0

    def observe(self, steps: int, seconds: float) -> None:
        """Record the duration of a call with `steps` steps.

        After two consecutive calls of at least 0.1 s, the number of steps per call is final. A
        single long call may be due to other programs on the machine.
        """
        self._calls += 1
        if self._calls == 1 or self.settled:
            return  # The first call is slower, because it includes one-time work.
        if seconds * self.steps / steps >= 0.1:
            self._long_calls += 1
            self.settled = self._long_calls == 2
        elif self.steps < 64:
            self._long_calls = 0
            self.steps *= 2
        else:
            self.settled = True


def train_data(setup: Setup) -> TrainData:
    """Put the training images and labels on all devices."""
    return TrainData(*devices.put(batches.rows(setup.train), devices.replicated(setup.mesh)))


def order_function(setup: Setup, variant: StepVariant) -> jax.stages.Wrapped:
    """Return the jitted function that computes the order of the images of an epoch.

    Its arguments are a random key and the number of the epoch. `CompiledSteps.epoch_order` calls
    the function.
    """

    def order(key: jax.Array, epoch: jax.Array) -> jax.Array:
        return pipeline.epoch_order(
            jax.random.fold_in(key, epoch),
            len(setup.train.labels),
            variant.batch_size,
            setup.config.data.last_batch,
        )

    return jax.jit(order, out_shardings=devices.batch_sharding(setup.mesh, axis=1))


def train_function(setup: Setup, variant: StepVariant) -> jax.stages.Wrapped:
    """Return the jitted function that `CompiledSteps.run` calls.

    Its arguments are the state (donated), the training images, the order of images, the number of
    steps, the random keys for augmentation and dropout, and the `StepInfo` of the epoch's first
    step. `train_arguments` returns their types.
    """
    custom = setup.custom.augmentation
    augmentation = partial(custom, **setup.config.data.arguments) if custom else None

    def train(
        state: TrainState,
        data: TrainData,
        order: jax.Array,
        count: jax.Array,
        augment_key: jax.Array,
        dropout_key: jax.Array,
        begin: StepInfo,
    ) -> TrainState:
        groups = setup.config.param_groups
        frozen = optimizers.group_members(state.params, groups, variant.frozen_groups)
        spec = setup.spec._replace(frozen=setup.spec.frozen | frozen)

        def info(step: jax.Array) -> StepInfo:
            return begin._replace(step=step)

        def batch(step: jax.Array) -> tuple[jax.Array, jax.Array]:
            return batches.make_batch(
                setup.dataset,
                variant,
                setup.config.train.precision,
                data,
                order[step - begin.step],
                augment_key,
                info(step),
                augmentation,
            )

        return steps.train_steps(state, count, dropout_key, batch, info, spec=spec)

    return jax.jit(train, donate_argnums=0, out_shardings=devices.replicated(setup.mesh))


def train_arguments(setup: Setup, variant: StepVariant) -> tuple[Any, ...]:
    """Return the shapes, types and shardings of the arguments of the jitted train function.

    With this result, `train_function` can be compiled for devices that this machine does not have.
    """
    replicated = devices.replicated(setup.mesh)

    def typed(tree: Any, sharding: NamedSharding) -> Any:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    key, rates = rng.make_streams(0).init, learning_rates(setup.config)
    epoch = next(epoch for epoch in setup.plan.epochs if epoch.variant == variant)
    order = jax.ShapeDtypeStruct((epoch.steps, variant.batch_size), jnp.int32)
    number = typed(jax.ShapeDtypeStruct((), jnp.int32), replicated)
    return (
        typed(jax.eval_shape(partial(random_state, setup), key, rates), replicated),
        TrainData(*typed(batches.rows(setup.train), replicated)),
        typed(order, devices.batch_sharding(setup.mesh, axis=1)),
        number,
        typed(key, replicated),
        typed(key, replicated),
        StepInfo(number, number, number),
    )


def _end_epoch_function(setup: Setup) -> jax.stages.Wrapped:
    schedule = setup.config.schedule

    def end_epoch(state: TrainState, loss: jax.Array) -> TrainState:
        plateau = state.plateau
        if schedule.name == "plateau":
            plateau = plateau_update(
                plateau,
                loss,
                lr=state.lr[0],
                patience=schedule.patience,
                factor=schedule.factor,
                threshold=schedule.threshold,
            )
        return state._replace(epoch=state.epoch + 1, plateau=plateau, metrics=Metrics.zero())

    return jax.jit(end_epoch, donate_argnums=0, out_shardings=devices.replicated(setup.mesh))


def compile_evaluation(
    setup: Setup,
    state: TrainState,
    images: np.ndarray,
    after_batch: Callable[[], None] = lambda: None,
) -> LogitsFn:
    """Compile a function from the network's variables to the logits of `images`.

    Args:
      setup: the setup of the run.
      state: a state with the right shapes. It is not donated.
      images: uint8 `[N, H, W, 3]`.
      after_batch: function called after each batch. An exception from it ends the evaluation.
    """
    precision, tta = setup.config.train.precision, setup.config.tta
    return compile_logits(
        setup.spec.model,
        state.variables,
        images,
        normalize=partial(batches.normalize, dataset=setup.dataset, precision=precision),
        batch_size=setup.config.train.eval_batch_size,
        mesh=setup.mesh,
        precision=precision,
        after_batch=after_batch,
        tta=TTA(tta.flip, tta.shift, tta.least_confident),
    )


def _info(step: int, epoch: int, total_steps: int) -> StepInfo:
    return StepInfo(np.int32(step), np.int32(epoch), np.int32(total_steps))
