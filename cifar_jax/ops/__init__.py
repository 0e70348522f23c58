"""Operations of the networks. They are fast on CPUs, and use XLA's own operations elsewhere."""

from cifar_jax.ops.activation import relu
from cifar_jax.ops.attention import attention
from cifar_jax.ops.batch_norm import batch_norm
from cifar_jax.ops.conv import conv_general_dilated
from cifar_jax.ops.platform import force_platform
from cifar_jax.ops.pooling import avg_pool, global_avg_pool, max_pool

__all__ = [
    "attention",
    "avg_pool",
    "batch_norm",
    "conv_general_dilated",
    "force_platform",
    "global_avg_pool",
    "max_pool",
    "relu",
]
