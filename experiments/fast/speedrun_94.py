"""Comes to 93.9 % of CIFAR-10's test images in 10 to 29 minutes of two CPU cores.

    make exp-speedrun-94

`speedrun-92` with nine epochs, three of 16, two of 24 and four of 32 pixels, in batches of 500; see
there, and docs/recipes.md for what was tried. Seeds 0 to 2 are to count.
"""

from cifar_jax.config import (
    Config,
    Data,
    Initialization,
    Loss,
    Model,
    Optimizer,
    ParamGroup,
    Phase,
    Schedule,
    TTAConfig,
)

KERNELS = Optimizer(name="muon", lr=0.14, momentum=0.6, nesterov=True)
BIASES = Optimizer(name="sgd", lr=40.0, momentum=0.85, nesterov=True, weight_decay=5e-6)
LAST = Optimizer(name="sgd", lr=2.0, momentum=0.85, nesterov=True, weight_decay=1e-4)

CONFIG = Config(
    model=Model(name="speednet"),
    epochs=9,
    batch_size=500,
    optimizer=KERNELS,
    param_groups=(
        ParamGroup(parameters="conv1/bias", optimizer=BIASES, until=0.3),
        ParamGroup(parameters="stage1_*/kernel", optimizer=KERNELS, until=0.8),
        ParamGroup(parameters="stage1_*/bias", optimizer=BIASES, until=0.8),
        ParamGroup(parameters="fc/kernel", optimizer=LAST),
        ParamGroup(parameters="*/bias", optimizer=BIASES),
    ),
    schedule=Schedule(name="linear"),
    loss=Loss(label_smoothing=0.2),
    init=Initialization(whitening=True, dirac=True),
    phases=(Phase(until=0.33, image_size=16), Phase(until=0.55, image_size=24)),
    data=Data(validation=0, crop_padding=2, crop_fill="reflect", flip="alternating"),
    tta=TTAConfig(flip=True, shift=1, least_confident=0.3),
)
