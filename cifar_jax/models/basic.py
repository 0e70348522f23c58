"""The paper's basic network (section 3.1): LeNet-5 with 62,006 parameters."""

from typing import Any

import jax
from flax import linen as nn

from cifar_jax import ops
from cifar_jax.models.layers import Conv, Pool


class Basic(nn.Module):
    """LeNet-5 (Table 1). It maps images `[N, 32, 32, 3]` to float32 logits `[N, num_classes]`.

    Table 1 of the paper states 3×3 kernels. However, the output sizes in Table 1 (28, 14, 10, 5)
    and the parameter count require 5×5 kernels.
    """

    num_classes: int = 10
    dtype: Any = None
    """Data type of the computation. None: inferred from the input and the parameters."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        del train  # No layer depends on `train`.
        x = ops.relu(Conv(6, (5, 5), dtype=self.dtype, name="conv1")(x))
        x = Pool(name="pool1")(x)
        x = ops.relu(Conv(16, (5, 5), dtype=self.dtype, name="conv2")(x))
        x = Pool(name="pool2")(x)
        x = x.reshape(x.shape[0], -1)
        x = ops.relu(nn.Dense(120, dtype=self.dtype, name="fc1")(x))
        x = ops.relu(nn.Dense(84, dtype=self.dtype, name="fc2")(x))
        return nn.Dense(self.num_classes, dtype=self.dtype, name="fc3")(x).astype("float32")
