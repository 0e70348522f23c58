"""Settings that several experiments in this folder share. docs/recipes.md explains the settings."""

from cifar_jax.config import Data, Loss, Optimizer, ParamGroup, Schedule, TTAConfig

DATA = Data(validation=0, crop_padding=2, crop_fill="reflect", flip="alternating")
SMOOTHED_LOSS = Loss(label_smoothing=0.1)
TRIANGULAR = Schedule(name="triangular", warmup=0.1, start=0.3, end=0.0)
TTA = TTAConfig(flip=True, shift=1)
TTA_LEAST_CONFIDENT = TTAConfig(flip=True, shift=1, least_confident=0.3)


def muon(lr: float) -> Optimizer:
    """Return the settings of Muon, the optimizer of the kernels."""
    return Optimizer(name="muon", lr=lr, momentum=0.6, nesterov=True)


def adamw(parameters: str, lr: float = 5e-3) -> ParamGroup:
    """Return a group of parameters that AdamW trains instead of Muon."""
    return ParamGroup(parameters=parameters, optimizer=Optimizer(name="adamw", lr=lr))
