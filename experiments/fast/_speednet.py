"""Settings that the experiments speedrun-92 and speedrun-94 share."""

from _base import DATA, TTA_LEAST_CONFIDENT, muon

from cifar_jax.config import (
    Config,
    Initialization,
    Loss,
    Model,
    Optimizer,
    ParamGroup,
    Phase,
    Schedule,
)

KERNELS = muon(lr=0.14)
# The biases and the last layer need large learning rates, because the logits are small. The network
# divides the input of the last layer by the square root of the number of channels.
BIASES = Optimizer(name="sgd", lr=40.0, momentum=0.85, nesterov=True, weight_decay=5e-6)
LAST_LAYER = Optimizer(name="sgd", lr=2.0, momentum=0.85, nesterov=True, weight_decay=1e-4)


def speednet(
    *, epochs: int, batch_size: int, conv1_bias_until: float, phases: tuple[Phase, ...]
) -> Config:
    """Return the config of a speedrun experiment.

    Args:
      epochs: number of epochs.
      batch_size: number of images per step.
      conv1_bias_until: fraction of the epochs after which the bias of `conv1` is frozen. This saves
        time, because only this bias needs the gradient of the input of the first stage.
      phases: phases of the training with smaller images.
    """
    return Config(
        model=Model(name="speednet"),
        epochs=epochs,
        batch_size=batch_size,
        optimizer=KERNELS,
        param_groups=(
            ParamGroup(parameters="conv1/bias", optimizer=BIASES, until=conv1_bias_until),
            # Freeze the first stage early, because its gradients take a fifth of the step time.
            ParamGroup(parameters="stage1_*/kernel", optimizer=KERNELS, until=0.8),
            ParamGroup(parameters="stage1_*/bias", optimizer=BIASES, until=0.8),
            ParamGroup(parameters="fc/kernel", optimizer=LAST_LAYER),
            ParamGroup(parameters="*/bias", optimizer=BIASES),
        ),
        schedule=Schedule(name="linear"),
        loss=Loss(label_smoothing=0.2),
        init=Initialization(whitening=True, dirac=True),
        phases=phases,
        data=DATA,
        tta=TTA_LEAST_CONFIDENT,
    )
