"""Callbacks, which save, log and report during training.

Subclass `Callback` and pass instances to `cifar_jax.train(..., callbacks=[...])`.
"""

from cifar_jax.callbacks.base import Callback, CallbackList, CallMetrics, RunContext

__all__ = ["CallMetrics", "Callback", "CallbackList", "RunContext"]
