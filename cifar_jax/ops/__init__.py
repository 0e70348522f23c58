"""The primitives that models call, fast on CPU, each with its plain reference."""

from cifar_jax.ops.activation import relu
from cifar_jax.ops.attention import attention, attention_weights
from cifar_jax.ops.batch_norm import batch_norm
from cifar_jax.ops.conv import conv_general_dilated
from cifar_jax.ops.platform import plain
from cifar_jax.ops.pooling import avg_pool, global_avg_pool, max_pool

__all__ = [
    "attention",
    "attention_weights",
    "avg_pool",
    "batch_norm",
    "conv_general_dilated",
    "global_avg_pool",
    "max_pool",
    "plain",
    "relu",
]
