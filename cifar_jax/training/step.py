"""What training does to the weights: pure functions of arrays. No config, no devices, no files."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cifar_jax.training.optim import PlateauState, plateau_init
from cifar_jax.training.schedules import Moment, Shape

BatchFn = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


class Metrics(NamedTuple):
    """Sums over images; divide by `images` only when writing them down."""

    loss: jax.Array
    """float32: sum of cross-entropies, in nats."""
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
    """float32: the highest learning rate."""

    @property
    def variables(self) -> dict[str, Any]:
        """What the model is applied with."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def init_state(
    variables: Mapping[str, Any], tx: optax.GradientTransformation, lr: float
) -> TrainState:
    """The state before the first step, of a model's fresh variables and its learning rate."""
    params = variables["params"]
    return TrainState(
        step=jnp.int32(0),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=tx.init(params),
        plateau=plateau_init(),
        metrics=Metrics.zero(),
        lr=jnp.float32(lr),
    )


def train_step(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    rate: jax.Array,
    *,
    model: nn.Module,
    tx: optax.GradientTransformationExtraArgs,
) -> TrainState:
    """One update on a batch.

    Args:
      state: before it.
      images: float `[N, H, W, C]`, normalised.
      labels: int32 `[N]`.
      key: the step's own: fold the step into it before.
      rate: float32, the learning rate.
      model: the network.
      tx: the update rule.
    """

    def loss_fn(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        logits, updated = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), (logits, updated.get("batch_stats", {}))

    (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = tx.update(grads, state.opt_state, state.params, rate=rate)
    # The learning rate multiplies the finished update, so scaling that is lowering it.
    updates = jax.tree.map(lambda update: update * state.plateau.scale, updates)
    batch = Metrics(loss * labels.size, (logits.argmax(-1) == labels).sum(), jnp.int32(labels.size))
    return state._replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
        metrics=state.metrics.plus(batch),
    )


def train_steps(
    state: TrainState,
    count: jax.Array,
    key: jax.Array,
    batch: BatchFn,
    moment: Callable[[jax.Array], Moment],
    *,
    model: nn.Module,
    tx: optax.GradientTransformationExtraArgs,
    schedule: Shape,
) -> TrainState:
    """`count` (int32) updates in one call, equal bit for bit to as many calls with one.

    Args:
      state: the state to go on from.
      count: how many; its value may differ from call to call without recompiling.
      key: the run's; each step folds its number into it.
      batch: images and labels of a step, by the step's number.
      moment: where in the run a step is, by its number.
      model: the network.
      tx: the update rule.
      schedule: the shape of the learning rate.
    """

    def one(state: TrainState) -> TrainState:
        images, labels = batch(state.step)
        step_key = jax.random.fold_in(key, state.step)
        rate = state.lr * schedule(moment(state.step))
        return train_step(state, images, labels, step_key, rate, model=model, tx=tx)

    return jax.lax.fori_loop(0, count, lambda _, state: one(state), state)
