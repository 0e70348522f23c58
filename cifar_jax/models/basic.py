"""3.1 The basic model (Table 1): LeNet-5's shape, 62,006 parameters."""

from typing import Any

import jax
from flax import linen as nn

from cifar_jax import ops
from cifar_jax.models.layers import Conv, Dense, Pool


class Basic(nn.Module):
    """Logits `[N, num_classes]`, float32, of images `[N, 32, 32, 3]`.

    Table 1 prints 3x3 kernels; its own output sizes (28, 14, 10, 5) and the count need 5×5.
    """

    num_classes: int = 10
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        del train  # nothing here behaves differently in training
        x = ops.relu(Conv(6, (5, 5), dtype=self.dtype, name="conv1")(x))
        x = Pool(name="pool1")(x)
        x = ops.relu(Conv(16, (5, 5), dtype=self.dtype, name="conv2")(x))
        x = Pool(name="pool2")(x)
        x = x.reshape(x.shape[0], -1)
        x = ops.relu(Dense(120, dtype=self.dtype, name="fc1")(x))
        x = ops.relu(Dense(84, dtype=self.dtype, name="fc2")(x))
        return Dense(self.num_classes, dtype=self.dtype, name="fc3")(x).astype("float32")
