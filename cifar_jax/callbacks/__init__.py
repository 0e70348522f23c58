"""Callbacks: what a training run does besides training, each in a class of its own.

Subclass `Callback` and pass instances to `cifar_jax.train(..., callbacks=[...])`.
"""

from cifar_jax.callbacks.base import Callback, CallbackList, CallMetrics, RunContext

__all__ = ["CallMetrics", "Callback", "CallbackList", "RunContext"]
