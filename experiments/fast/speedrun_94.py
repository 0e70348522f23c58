"""Towards 94 % of CIFAR-10's test images within half an hour of two CPU cores.

    make exp-speedrun-94

`speedrun-92` with ten epochs, of which seven are of whole images, instead of five and three; see
there. Not tried at its length yet. Seeds 0 to 2 are to count.
"""

from cifar_jax.config import (
    Config,
    Data,
    Group,
    Initialisation,
    Lookahead,
    Loss,
    Model,
    Optimizer,
    Phase,
    Schedule,
    TestTime,
)

CONFIG = Config(
    model=Model(name="speednet"),
    epochs=10,
    batch_size=250,
    optimizer=Optimizer(name="muon", lr=0.14, momentum=0.6, nesterov=True),
    groups=(
        # Its gradient takes that of the first stage's input, which nothing else needs.
        Group(
            parameters="conv1/bias",
            optimizer=Optimizer(
                name="sgd", lr=40.0, momentum=0.85, nesterov=True, weight_decay=5e-6
            ),
            until=0.3,
        ),
        Group(
            parameters="fc/kernel",
            optimizer=Optimizer(
                name="sgd", lr=2.0, momentum=0.85, nesterov=True, weight_decay=1e-4
            ),
        ),
        Group(
            parameters="*/bias",
            optimizer=Optimizer(
                name="sgd", lr=40.0, momentum=0.85, nesterov=True, weight_decay=5e-6
            ),
        ),
    ),
    schedule=Schedule(name="linear"),
    loss=Loss(label_smoothing=0.2),
    averaging=Lookahead(decay=0.77, every=5, power=3),
    init=Initialisation(whitening=True, dirac=True),
    phases=(Phase(until=0.3, image_size=16),),
    data=Data(validation=0, crop_padding=2, crop_fill="reflect", flip="alternating"),
    test_time=TestTime(flip=True, shift=1, unsure=0.3),
)
