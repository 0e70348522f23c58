"""Training written out in NumPy, with a network and images so small that it takes no time.

From `cifar_jax` it takes a network's fresh variables and the layers of that network, which have
tests of their own, and nothing of what puts a run together.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cifar_jax import models
from cifar_jax.config import Config
from cifar_jax.data.dataset import Dataset, Split
from cifar_jax.models.layers import BatchNorm

CLASSES = 5


class Tiny(nn.Module):
    """A convolution, BatchNorm, dropout and a dense layer."""

    num_classes: int = 10
    dropout: float = 0.5
    pooling: str = "max"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = nn.Conv(4, (4, 4), 4, use_bias=False, dtype=self.dtype, name="conv")(x)
        x = nn.relu(BatchNorm(dtype=self.dtype, name="bn")(x, train=train))
        pool = nn.max_pool if self.pooling == "max" else nn.avg_pool
        x = pool(x, (2, 2), strides=(2, 2)).reshape(len(x), -1)
        x = nn.Dropout(self.dropout, name="dropout")(x, deterministic=not train)
        x = nn.Dense(self.num_classes, dtype=self.dtype, name="fc")(x)
        return x.astype(jnp.float32)


def images(train: int = 30, test: int = 40) -> Dataset:
    """Classes differ in one corner's brightness; all else is noise, other in each channel."""
    random = np.random.default_rng(0)

    def split(count: int) -> Split:
        labels = random.integers(0, CLASSES, count).astype(np.int32)
        pixels = random.integers(0, 200, (count, 32, 32, 3)) // np.array([1, 2, 4])
        pixels[:, :16, :12, 0] = 50 * labels[:, None, None]
        return Split(pixels.astype(np.uint8), labels)

    names = tuple("abcde"[:CLASSES])
    return Dataset(
        "tiny", names, split(train), split(test), (0.4, 0.2, 0.1), (0.3, 0.15, 0.05), "0" * 64
    )


class Rule(NamedTuple):
    """What has become of the plateau."""

    scale: float = 1.0
    best: float = math.inf
    bad: int = 0


def plateau(config: Config, rule: Rule, observed: float) -> Rule:
    """After an epoch in which that was observed."""
    schedule = config.schedule
    if schedule.name != "plateau":
        return rule
    if observed < rule.best * (1 - schedule.threshold):
        return Rule(rule.scale, observed, 0)
    if rule.bad + 1 > schedule.patience:
        return Rule(rule.scale * schedule.factor, rule.best, 0)
    return rule._replace(bad=rule.bad + 1)


def rate(config: Config, step: int, steps_per_epoch: int) -> float:
    """The schedule's learning rate of the update after `step` others, in closed form."""
    schedule, lr, steps = config.schedule, config.optimizer.lr, steps_per_epoch * config.epochs

    def between(start: float, end: float, share: float) -> float:
        return end + (start - end) * (1 + math.cos(math.pi * share)) / 2

    match schedule.name:
        case "step":
            return lr * schedule.factor ** (step // steps_per_epoch // schedule.step_epochs)
        case "cosine":
            return between(lr, 0, step / steps)
        case "one-cycle":
            top = int(schedule.warmup * steps)
            if step < top:
                return between(lr / 25, lr, step / top)
            return between(lr, lr / 25e4, (step - top) / (steps - top))
        case "linear":
            return lr + (schedule.end * lr - lr) * step / steps
        case "triangular":
            points = (0, int(schedule.warmup * steps), steps)
            return float(np.interp(step, points, (schedule.start * lr, lr, schedule.end * lr)))
    return lr


class Hand:
    """A run of `config` on `dataset`, step by step."""

    def __init__(self, config: Config, dataset: Dataset, seed: int) -> None:
        data = config.data
        self.config, self.dataset = config, dataset
        held = round(data.validation * len(dataset.train.labels))
        count = data.train_images or len(dataset.train.labels) - held
        self.train = Split(*(a[:count] for a in dataset.train))
        self.validation = Split(*(a[len(dataset.train.labels) - held :] for a in dataset.train))
        whole, rest = divmod(count, config.batch_size)
        self.steps_per_epoch = whole + (rest > 0 and data.last_batch == "wrap")

        start, self.order_key, random = jax.random.split(jax.random.key(seed), 3)
        self.augment_key, self.dropout_key = jax.random.split(random)
        self.model = Tiny(
            len(dataset.classes),
            *(config.model.dropout if config.model.dropout is not None else 0.5,),
            *(config.model.pooling or "max", jnp.dtype(config.train.precision)),
        )
        variables = models.init_variables(self.model, start)
        self.params: Any = jax.tree.map(np.float64, variables["params"])
        self.batch_stats: Any = variables["batch_stats"]
        self.first = self.second = jax.tree.map(np.zeros_like, self.params)
        self.step, self.plateau = 0, Rule()
        self.loss, self.correct, self.images = 0.0, 0, 0
        self.order = lru_cache(self._order)

    def _order(self, epoch: int) -> np.ndarray:
        """Indices `[steps, batch]`, filled up from the epoch's beginning."""
        key = jax.random.fold_in(self.order_key, epoch)
        shuffled = np.asarray(jax.random.permutation(key, len(self.train.labels)))
        count = self.steps_per_epoch * self.config.batch_size
        return np.concatenate([shuffled, shuffled])[:count].reshape(-1, self.config.batch_size)

    def augmented(self, pixels: np.ndarray) -> np.ndarray:
        """Of one draw an image: mirrored or not, how far down, how far across."""
        padding, flip = self.config.data.crop_padding, self.config.data.flip
        side = 2 * padding + 1
        key = jax.random.fold_in(self.augment_key, self.step)
        draws = jax.random.randint(key, (len(pixels),), 0, side * side * (1 + flip))
        found = np.zeros_like(pixels)
        for i, draw in enumerate(np.asarray(draws)):
            padded = np.pad(pixels[i], ((padding, padding), (padding, padding), (0, 0)))
            mirror, across = divmod(int(draw) // side, side)
            down = int(draw) % side
            window = padded[down : down + 32, across : across + 32]
            found[i] = window[:, ::-1] if mirror else window
        return found

    def normalized(self, pixels: np.ndarray) -> jax.Array:
        """Of zero mean and unit variance, in the type that is computed in."""
        mean, std = (np.float64(s) for s in (self.dataset.mean, self.dataset.std))
        return jnp.asarray((pixels / 255 - mean) / std, self.config.train.precision)

    def update(self) -> None:
        """One step: forward, backward, and PyTorch's update rules."""
        optimizer = self.config.optimizer
        epoch, place = divmod(self.step, self.steps_per_epoch)
        chosen = self.order(epoch)[place]
        labels = self.train.labels[chosen]
        inputs = self.normalized(self.augmented(self.train.images[chosen]))
        key = jax.random.fold_in(self.dropout_key, self.step)
        params = jax.tree.map(np.float32, self.params)
        smoothing = self.config.loss.label_smoothing
        (loss, (logits, self.batch_stats)), gradient = _gradient(self.model, smoothing)(
            params, self.batch_stats, inputs, labels, key
        )
        self.loss += float(loss) * len(labels)
        self.correct += int((np.asarray(logits).argmax(1) == labels).sum())
        self.images += len(labels)

        decay, self.step = optimizer.weight_decay, self.step + 1
        gradient = jax.tree.map(np.float64, gradient)
        if optimizer.name != "adamw":
            gradient = jax.tree.map(lambda g, p: g + decay * p, gradient, self.params)
        if optimizer.name == "sgd":
            self.first = jax.tree.map(lambda m, g: optimizer.momentum * m + g, self.first, gradient)
            direction = self.first
            if optimizer.nesterov:
                direction = jax.tree.map(
                    lambda m, g: g + optimizer.momentum * m, self.first, gradient
                )
        else:
            b1, b2, eps = optimizer.beta1, optimizer.beta2, optimizer.eps
            self.first = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, self.first, gradient)
            self.second = jax.tree.map(
                lambda v, g: b2 * v + (1 - b2) * g * g, self.second, gradient
            )
            direction = jax.tree.map(
                lambda m, v: m / (1 - b1**self.step) / (np.sqrt(v / (1 - b2**self.step)) + eps),
                *(self.first, self.second),
            )
        if optimizer.name == "adamw":
            direction = jax.tree.map(lambda d, p: d + decay * p, direction, self.params)
        lr = self.plateau.scale * rate(self.config, self.step - 1, self.steps_per_epoch)
        self.params = jax.tree.map(lambda p, d: p - lr * d, self.params, direction)

    def end_epoch(self, observed: float) -> None:
        """To the next epoch's beginning."""
        self.plateau = plateau(self.config, self.plateau, observed)
        self.loss, self.correct, self.images = 0.0, 0, 0

    def measured(self, split: Split) -> tuple[float, float]:
        """Mean loss and accuracy in percent in evaluation mode, by the running statistics."""
        return measured(
            self.model,
            {"params": jax.tree.map(np.float32, self.params), "batch_stats": self.batch_stats},
            self.normalized(split.images),
            split.labels,
        )


def measured(
    model: nn.Module, variables: Any, inputs: jax.Array, labels: np.ndarray
) -> tuple[float, float]:
    """Mean loss and accuracy in percent of all the images at once."""
    logits = np.asarray(model.apply(variables, inputs, train=False), np.float64)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]
    return float(losses.mean()), float(100 * (logits.argmax(1) == labels).mean())


@lru_cache
def _gradient(model: nn.Module, smoothing: float) -> Callable[..., Any]:
    def loss(
        params: Any, batch_stats: Any, inputs: jax.Array, labels: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Any]:
        logits, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            *(inputs,),
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        logs = nn.log_softmax(logits)
        picked = jnp.take_along_axis(logs, labels[:, None], 1)
        losses = (1 - smoothing) * picked + smoothing * logs.mean(1, keepdims=True)
        return -losses.mean(), (logits, updated["batch_stats"])

    return jax.jit(jax.value_and_grad(loss, has_aux=True))
