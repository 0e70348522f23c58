"""What training does to the weights: pure functions of arrays. No config, no devices, no files."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cifar_jax.training import averaging, losses
from cifar_jax.training.averaging import Ema, Lookahead
from cifar_jax.training.optimizers import PlateauState, parameter_path, plateau_init
from cifar_jax.training.schedules import Shape, StepInfo

BatchFn = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


class StepSpec(NamedTuple):
    """What a step is made of."""

    model: nn.Module
    tx: optax.GradientTransformationExtraArgs
    """The update rule; its `update` takes learning rates as `rates`."""
    schedule: Shape = lambda moment: jnp.float32(1)
    """The share of them by the moment."""
    loss: Callable[[jax.Array, jax.Array], jax.Array] = losses.cross_entropy
    """From logits `[N, K]` and labels to the loss of each image, `[N]`."""
    averaging: Ema | Lookahead | None = None
    """Which weights are evaluated, if not those that are trained."""
    frozen: Collection[str] = ()
    """Paths of parameters, such as `conv1/bias`, that stay as they are."""


class Metrics(NamedTuple):
    """Sums over images; divide by `images` only when writing them down."""

    loss: jax.Array
    """float32: sum of losses, in nats."""
    correct: jax.Array
    """int32: images whose largest logit is their label's."""
    images: jax.Array
    """int32: how many there were."""

    @classmethod
    def zero(cls) -> "Metrics":
        """Of no images."""
        return cls(jnp.float32(0), jnp.int32(0), jnp.int32(0))

    def plus(self, other: "Metrics") -> "Metrics":
        """Of both sets of images."""
        return jax.tree.map(jnp.add, self, other)


class TrainState(NamedTuple):
    """Everything that an exact resume needs and that does not follow from (seed, step)."""

    step: jax.Array
    """int32: updates made so far."""
    params: Any
    batch_stats: Any
    """BatchNorm's running means and variances; empty for models without."""
    opt_state: optax.OptState
    plateau: PlateauState
    metrics: Metrics
    """Of the current epoch so far, in training mode."""
    lr: jax.Array
    """float32 `[groups]`: the highest learning rate of each."""
    averaged: Any
    """The average of `variables`, where one is kept; else empty."""

    @property
    def variables(self) -> dict[str, Any]:
        """What is trained."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def evaluated(self) -> dict[str, Any]:
        """What the model is evaluated with."""
        return self.averaged or self.variables


def init_state(variables: Mapping[str, Any], recipe: StepSpec, lr: Any) -> TrainState:
    """The state before the first step, of a model's fresh variables and the learning rates."""
    params = variables["params"]
    batch_stats = variables.get("batch_stats", {})
    kept = {"params": params, "batch_stats": batch_stats}
    return TrainState(
        step=jnp.int32(0),
        params=params,
        batch_stats=batch_stats,
        opt_state=recipe.tx.init(params),
        plateau=plateau_init(),
        metrics=Metrics.zero(),
        lr=jnp.asarray(lr, jnp.float32),
        averaged=averaging.init(kept) if recipe.averaging else {},
    )


def train_step(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    moment: StepInfo,
    *,
    recipe: StepSpec,
) -> TrainState:
    """One update on a batch.

    Args:
      state: before it.
      images: float `[N, H, W, C]`, normalized.
      labels: int32 `[N]`, or probabilities of classes, float32 `[N, K]`.
      key: the step's own: fold the step into it before.
      moment: where in the run it is.
      recipe: what it is made of.
    """

    def loss_fn(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        trained = _with_frozen(recipe, jax.lax.stop_gradient(params), params)
        logits, updated = recipe.model.apply(
            {"params": trained, "batch_stats": state.batch_stats},
            images,
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        return recipe.loss(logits, labels).mean(), (logits, updated.get("batch_stats", {}))

    (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    rates = state.lr * recipe.schedule(moment) * state.plateau.scale
    updates, opt_state = recipe.tx.update(grads, state.opt_state, state.params, rates=rates)
    params = _with_frozen(recipe, state.params, optax.apply_updates(state.params, updates))
    averaged = state.averaged
    if recipe.averaging:
        done = state.step + 1
        averaged, variables = averaging.update(
            recipe.averaging,
            averaged,
            {"params": params, "batch_stats": batch_stats},
            step=done,
            progress=done / jnp.float32(moment.steps),
        )
        # Slow weights may have moved what is frozen now.
        params = _with_frozen(recipe, state.params, variables["params"])
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


def _with_frozen(recipe: StepSpec, before: Any, after: Any) -> Any:
    """`after`, but for the frozen parameters, which are those of `before`."""

    def chosen(path: Any, old: jax.Array, new: jax.Array) -> jax.Array:
        return old if parameter_path(path) in recipe.frozen else new

    return jax.tree_util.tree_map_with_path(chosen, before, after)


def train_steps(
    state: TrainState,
    count: jax.Array,
    key: jax.Array,
    batch: BatchFn,
    moment: Callable[[jax.Array], StepInfo],
    *,
    recipe: StepSpec,
) -> TrainState:
    """`count` (int32) updates in one call, equal bit for bit to as many calls with one.

    Args:
      state: the state to go on from.
      count: how many; its value may differ from call to call without recompiling.
      key: the run's; each step folds its number into it.
      batch: images and labels of a step, by the step's number.
      moment: where in the run a step is, by its number.
      recipe: what a step is made of.
    """

    def one(state: TrainState) -> TrainState:
        images, labels = batch(state.step)
        step_key = jax.random.fold_in(key, state.step)
        return train_step(state, images, labels, step_key, moment(state.step), recipe=recipe)

    return jax.lax.fori_loop(0, count, lambda _, state: one(state), state)
