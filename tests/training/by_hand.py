"""Reference implementation of training, mostly in NumPy, that compiled runs must agree with.

The network and the images are tiny. Only the initial weights and the BatchNorm layer come from
`cifar_jax`.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cifar_jax import models
from cifar_jax.config import Config, Ema, Lookahead
from cifar_jax.data.dataset import Dataset, Split
from cifar_jax.models.layers import BatchNorm

CLASSES = 5


class Tiny(nn.Module):
    """A network with one convolution, BatchNorm, pooling, dropout and a dense layer."""

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


def images(train: int = 40, test: int = 400) -> Dataset:
    """Return a data set of random images. The color of one image corner depends on the class."""
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


def learning_rate(config: Config, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate at a step, from the closed form of the schedule."""
    schedule, lr, steps = config.schedule, config.optimizer.lr, steps_per_epoch * config.epochs

    def cosine(start: float, end: float, progress: float) -> float:
        return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2

    match schedule.name:
        case "step":
            return lr * schedule.factor ** (step // steps_per_epoch // schedule.step_epochs)
        case "cosine":
            return cosine(lr, 0, step / steps)
        case "one-cycle":
            top = int(schedule.warmup * steps)
            if step < top:
                return cosine(lr / 25, lr, step / top)
            return cosine(lr, lr / 25e4, (step - top) / (steps - top))
        case "linear":
            return lr + (schedule.end * lr - lr) * step / steps
        case "triangular":
            points = (0, int(schedule.warmup * steps), steps)
            return float(np.interp(step, points, (schedule.start * lr, lr, schedule.end * lr)))
    return lr


class RunByHand:
    """Reference training run of `config` on `dataset`. Each call of `update` is one train step."""

    def __init__(self, config: Config, dataset: Dataset, seed: int) -> None:
        data, images = config.data, len(dataset.train.labels)
        self.config, self.dataset = config, dataset
        held_out = round(data.validation * (images if data.validation < 1 else 1))
        count = data.train_images or images - held_out
        self.train = Split(*(array[:count] for array in dataset.train))
        self.validation = Split(*(array[images - held_out :] for array in dataset.train))
        full, rest = divmod(count, config.batch_size)
        self.steps_per_epoch = full + (rest > 0 and data.last_batch == "wrap")

        init, self.order_key, step = jax.random.split(jax.random.key(seed), 3)
        self.augment_key, self.dropout_key = jax.random.split(step)
        dropout = config.model.dropout
        self.model = Tiny(
            len(dataset.classes),
            0.5 if dropout is None else dropout,
            config.model.pooling or "max",
            jnp.dtype(config.train.precision),
        )
        variables = models.init_variables(self.model, init)
        self.params: Any = jax.tree.map(np.float64, variables["params"])
        self.batch_stats: Any = variables["batch_stats"]
        self.averaged = self.variables
        self.first = self.second = jax.tree.map(np.zeros_like, self.params)
        self.step, self.scale, self.best, self.bad_epochs = 0, 1.0, math.inf, 0
        self.loss, self.correct, self.images = 0.0, 0, 0
        self.order = lru_cache(self._order)

    @property
    def variables(self) -> dict[str, Any]:
        """Model variables: float32 parameters and BatchNorm statistics."""
        params = jax.tree.map(np.float32, self.params)
        return {"params": params, "batch_stats": self.batch_stats}

    def _order(self, epoch: int) -> np.ndarray:
        """Return the image indices of an epoch as an array `[steps, batch]`.

        The first images of the epoch fill the last batch.
        """
        key = jax.random.fold_in(self.order_key, epoch)
        shuffled = np.asarray(jax.random.permutation(key, len(self.train.labels)))
        count = self.steps_per_epoch * self.config.batch_size
        return np.concatenate([shuffled, shuffled])[:count].reshape(-1, self.config.batch_size)

    def augmented(self, pixels: np.ndarray) -> np.ndarray:
        """Crop and mirror images at random. One random number per image determines both."""
        padding, flip = self.config.data.crop_padding, self.config.data.flip
        side = 2 * padding + 1
        key = jax.random.fold_in(self.augment_key, self.step)
        draws = jax.random.randint(key, (len(pixels),), 0, side * side * (1 + flip))
        result = np.zeros_like(pixels)
        for i, draw in enumerate(np.asarray(draws)):
            padded = np.pad(pixels[i], ((padding, padding), (padding, padding), (0, 0)))
            mirror, left = divmod(int(draw) // side, side)
            top = int(draw) % side
            window = padded[top : top + 32, left : left + 32]
            result[i] = window[:, ::-1] if mirror else window
        return result

    def normalized(self, pixels: np.ndarray) -> jax.Array:
        """Normalize images with the data set's mean and standard deviation, in the compute type."""
        mean, std = (np.float64(s) for s in (self.dataset.mean, self.dataset.std))
        return jnp.asarray((pixels / 255 - mean) / std, self.config.train.precision)

    def update(self) -> None:
        """Take one train step: forward pass, backward pass, and PyTorch's update rules."""
        optimizer = self.config.optimizer
        epoch, place = divmod(self.step, self.steps_per_epoch)
        indices = self.order(epoch)[place]
        labels = self.train.labels[indices]
        inputs = self.normalized(self.augmented(self.train.images[indices]))
        key = jax.random.fold_in(self.dropout_key, self.step)
        gradient_fn = _gradient_fn(self.model, self.config.loss.label_smoothing)
        (loss, (logits, self.batch_stats)), gradient = gradient_fn(
            self.variables["params"], self.batch_stats, inputs, labels, key
        )
        self.loss += float(loss) * len(labels)
        self.correct += int((np.asarray(logits).argmax(1) == labels).sum())
        self.images += len(labels)

        decay, self.step = optimizer.weight_decay, self.step + 1
        gradient = jax.tree.map(np.float64, gradient)
        if optimizer.name != "adamw":
            gradient = jax.tree.map(lambda g, p: g + decay * p, gradient, self.params)
        if optimizer.name == "sgd":
            beta = optimizer.momentum
            self.first = jax.tree.map(lambda m, g: beta * m + g, self.first, gradient)
            direction = self.first
            if optimizer.nesterov:
                direction = jax.tree.map(lambda m, g: g + beta * m, self.first, gradient)
        else:
            b1, b2, eps = optimizer.beta1, optimizer.beta2, optimizer.eps
            self.first = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, self.first, gradient)
            self.second = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, self.second, gradient)
            direction = jax.tree.map(
                lambda m, v: m / (1 - b1**self.step) / (np.sqrt(v / (1 - b2**self.step)) + eps),
                self.first,
                self.second,
            )
        if optimizer.name == "adamw":
            direction = jax.tree.map(lambda d, p: d + decay * p, direction, self.params)
        lr = self.scale * learning_rate(self.config, self.step - 1, self.steps_per_epoch)
        self.params = jax.tree.map(lambda p, d: p - lr * d, self.params, direction)

        self._average()

    def _average(self) -> None:
        """Update the averaged weights. If averaging is off, copy the weights."""
        rule, keep = self.config.averaging, 0.0
        if rule and self.step % rule.every:
            return
        if isinstance(rule, Ema):
            keep = min(rule.decay, (1 + self.step) / (10 + self.step))
        if isinstance(rule, Lookahead):
            progress = self.step / (self.steps_per_epoch * self.config.epochs)
            keep = rule.decay * progress**rule.power
        self.averaged = jax.tree.map(
            lambda old, new: keep * old + (1 - keep) * new, self.averaged, self.variables
        )
        if isinstance(rule, Lookahead):
            self.params = jax.tree.map(np.float64, self.averaged["params"])
            self.batch_stats = self.averaged["batch_stats"]

    def end_epoch(self, loss: float) -> None:
        """Reset the metrics, and update the plateau schedule with the epoch's `loss`."""
        self.loss, self.correct, self.images = 0.0, 0, 0
        schedule = self.config.schedule
        if schedule.name != "plateau":
            return
        if loss < self.best * (1 - schedule.threshold):
            self.best, self.bad_epochs = loss, 0
        elif self.bad_epochs + 1 > schedule.patience:
            self.scale, self.bad_epochs = self.scale * schedule.factor, 0
        else:
            self.bad_epochs += 1

    def evaluate(self, split: Split) -> tuple[float, float]:
        """Evaluate the averaged weights. Return the mean loss and the accuracy in percent."""
        inputs = self.normalized(split.images)
        return loss_and_accuracy(self.model, self.averaged, inputs, split.labels)


def loss_and_accuracy(
    model: nn.Module, variables: Any, inputs: jax.Array, labels: np.ndarray
) -> tuple[float, float]:
    """Evaluate a model. Return the mean loss and the accuracy in percent."""
    logits = np.asarray(model.apply(variables, inputs, train=False), np.float64)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]
    return float(losses.mean()), float(100 * (logits.argmax(1) == labels).mean())


@lru_cache
def _gradient_fn(model: nn.Module, smoothing: float) -> Callable[..., Any]:
    def loss_fn(
        params: Any, batch_stats: Any, inputs: jax.Array, labels: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Any]:
        logits, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            inputs,
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        logs = nn.log_softmax(logits)
        label_logs = jnp.take_along_axis(logs, labels[:, None], 1)
        losses = (1 - smoothing) * label_logs + smoothing * logs.mean(1, keepdims=True)
        return -losses.mean(), (logits, updated["batch_stats"])

    return jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
