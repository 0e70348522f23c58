"""The train step, as pure functions of arrays that use no config, devices or files."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cifar_jax.training import averaging, freezing, losses
from cifar_jax.training.averaging import Ema, Lookahead
from cifar_jax.training.optimizers import parameter_path
from cifar_jax.training.schedules import PlateauState, ScheduleFn, StepInfo, plateau_init

BatchFn = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
LossFn = Callable[[jax.Array, jax.Array], jax.Array]


class StepSpec(NamedTuple):
    """The fixed parts of a train step, such as the network and the optimizer."""

    model: nn.Module
    optimizer: optax.GradientTransformationExtraArgs
    """Optimizer whose `update` takes the learning rates as the keyword argument `rates`."""
    schedule: ScheduleFn = lambda info: jnp.float32(1)
    loss: LossFn = losses.cross_entropy
    """Function from logits `[N, K]` and labels to the loss of each image, `[N]`."""
    averaging: Ema | Lookahead | None = None
    """Kind of average of the weights that is evaluated. None: the trained weights are evaluated."""
    frozen: frozenset[str] = frozenset()
    """Paths of the frozen parameters, such as `conv1/bias`."""
    frozen_norms: frozenset[str] = frozenset()
    """Paths of the BatchNorm layers with frozen statistics, such as `bn1`."""


class Metrics(NamedTuple):
    """Sums of training metrics over images. Divide a sum by `images` to get the mean."""

    loss: jax.Array
    """float32: sum of the losses, in nats."""
    correct: jax.Array
    """int32: number of correctly classified images."""
    images: jax.Array
    """int32: number of images."""

    @classmethod
    def zero(cls) -> "Metrics":
        """Return the metrics of zero images."""
        return cls(jnp.float32(0), jnp.int32(0), jnp.int32(0))

    def plus(self, other: "Metrics") -> "Metrics":
        """Return the sums of these metrics and of `other`."""
        return jax.tree.map(jnp.add, self, other)


class TrainState(NamedTuple):
    """The state of training. An exact resume needs only this state and the seed."""

    step: jax.Array
    """int32: number of completed steps."""
    epoch: jax.Array
    """int32: number of completed epochs. An epoch is complete after its validation."""
    params: Any
    batch_stats: Any
    """Running means and variances of BatchNorm. Empty for models without BatchNorm."""
    opt_state: optax.OptState
    plateau: PlateauState
    metrics: Metrics
    """Training metrics of the current epoch so far."""
    lr: jax.Array
    """float32 `[1 + groups]`: the base learning rates of the default optimizer and of each
    group."""
    averaged: Any
    """Average of `variables` over the training steps. Empty if the run has no average."""

    @property
    def variables(self) -> dict[str, Any]:
        """The trained parameters and BatchNorm statistics."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def evaluated(self) -> dict[str, Any]:
        """The variables to evaluate: the average if there is one, else the trained variables."""
        return self.averaged or self.variables


def init_state(variables: Mapping[str, Any], spec: StepSpec, lr: Any) -> TrainState:
    """Return the state before the first step.

    Args:
      variables: initial `params`, and `batch_stats` if the model has any.
      spec: the parts of the train step.
      lr: base learning rates, float32 `[1 + groups]`.
    """
    params = variables["params"]
    batch_stats = variables.get("batch_stats", {})
    return TrainState(
        step=jnp.int32(0),
        epoch=jnp.int32(0),
        params=params,
        batch_stats=batch_stats,
        opt_state=spec.optimizer.init(params),
        plateau=plateau_init(),
        metrics=Metrics.zero(),
        lr=jnp.asarray(lr, jnp.float32),
        averaged=averaging.init({"params": params, "batch_stats": batch_stats})
        if spec.averaging
        else {},
    )


def train_step(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    info: StepInfo,
    *,
    spec: StepSpec,
) -> TrainState:
    """Return the state after one update.

    Args:
      state: the state before the update.
      images: normalized images, float `[N, H, W, C]`.
      labels: classes, int32 `[N]`, or class probabilities, float32 `[N, K]`.
      key: random key of this step, for dropout.
      info: number of the step, its epoch, and the number of steps in the run.
      spec: the parts of the train step.
    """

    def loss_fn(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        # Compute no gradients of frozen parameters.
        params = keep_frozen(spec.frozen, jax.lax.stop_gradient(params), params)
        with freezing.inference_mode(spec.frozen_norms):
            logits, updated = spec.model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                rngs={"dropout": key},
                mutable=["batch_stats"],
            )
        return spec.loss(logits, labels).mean(), (logits, updated.get("batch_stats", {}))

    (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    rates = state.lr * spec.schedule(info) * state.plateau.scale
    updates, opt_state = spec.optimizer.update(grads, state.opt_state, state.params, rates=rates)
    params = keep_frozen(spec.frozen, state.params, optax.apply_updates(state.params, updates))
    averaged = state.averaged
    if spec.averaging:
        step = state.step + 1
        averaged, variables = averaging.update(
            spec.averaging,
            averaged,
            {"params": params, "batch_stats": batch_stats},
            step=step,
            progress=step / jnp.float32(info.total_steps),
        )
        # Lookahead replaces all weights by slow weights, but frozen weights must not change.
        params = keep_frozen(spec.frozen, state.params, variables["params"])
        batch_stats = variables["batch_stats"]
    count = len(images)
    correct = losses.correct(logits, labels).sum()
    return state._replace(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        metrics=state.metrics.plus(Metrics(loss * count, correct, jnp.int32(count))),
        averaged=averaged,
    )


def keep_frozen(frozen: frozenset[str], old: Any, new: Any) -> Any:
    """Return a tree with the frozen parameters from `old`, and all other parameters from `new`.

    `frozen` contains paths of parameters, such as `conv1/bias`.
    """

    def choose(path: Any, old: jax.Array, new: jax.Array) -> jax.Array:
        return old if parameter_path(path) in frozen else new

    return jax.tree_util.tree_map_with_path(choose, old, new)


def train_steps(
    state: TrainState,
    count: jax.Array,
    key: jax.Array,
    batch: BatchFn,
    info: Callable[[jax.Array], StepInfo],
    *,
    spec: StepSpec,
) -> TrainState:
    """Return the state after `count` updates.

    Several calls with few updates give bitwise the same result as one call with all updates.

    Args:
      state: the state before the updates.
      count: number of updates, int32. Another number does not recompile.
      key: random key for dropout. This function folds the number of each step into the key.
      batch: function from a step's number to its images and labels.
      info: function from a step's number to its `StepInfo`.
      spec: the parts of the train step.
    """

    def one(state: TrainState) -> TrainState:
        images, labels = batch(state.step)
        step_key = jax.random.fold_in(key, state.step)
        return train_step(state, images, labels, step_key, info(state.step), spec=spec)

    return jax.lax.fori_loop(0, count, lambda _, state: one(state), state)
