"""A better recipe for `resnet10`: the same 4,903,242 parameters, meant for an hour and a half.

    make exp-fast-resnet10

That of `fast-resnet10-separable`, in fewer epochs. The paper, after 135 epochs of Adam: 90.03 %,
and 92.09 % where the learning rate follows the validation loss.
"""

from cifar_jax.config import (
    Config,
    Data,
    Loss,
    Model,
    Optimizer,
    ParamGroup,
    Phase,
    Schedule,
    TTAConfig,
)

CONFIG = Config(
    model=Model(name="resnet10", dropout=0.0),
    epochs=12,
    batch_size=250,
    optimizer=Optimizer(name="muon", lr=0.1, momentum=0.6, nesterov=True),
    param_groups=(
        ParamGroup(parameters="*/bias, */scale, fc/*", optimizer=Optimizer(name="adamw", lr=5e-3)),
    ),
    schedule=Schedule(name="triangular", warmup=0.1, start=0.3, end=0.0),
    loss=Loss(label_smoothing=0.1),
    phases=(Phase(until=0.4, image_size=16),),
    data=Data(validation=0, crop_padding=2, crop_fill="reflect", flip="alternating"),
    tta=TTAConfig(flip=True, shift=1, least_confident=0.3),
)
