"""A better recipe for `net`: the same 2,348,030 parameters, in minutes.

    make exp-fast-net

That of `fast-net-bn-gap`, at one image size: the layer behind the convolutions takes no other. The
paper, after 100 epochs of SGD: 77.91 %.
"""

from cifar_jax.config import Config, Data, Loss, Model, Optimizer, ParamGroup, Schedule, TTAConfig

CONFIG = Config(
    model=Model(name="net"),
    epochs=12,
    batch_size=250,
    optimizer=Optimizer(name="muon", lr=0.15, momentum=0.6, nesterov=True),
    param_groups=(
        ParamGroup(parameters="*/bias, fc3/*", optimizer=Optimizer(name="adamw", lr=5e-3)),
    ),
    schedule=Schedule(name="triangular", warmup=0.1, start=0.3, end=0.0),
    loss=Loss(label_smoothing=0.1),
    data=Data(validation=0, crop_padding=2, crop_fill="reflect", flip="alternating"),
    tta=TTAConfig(flip=True, shift=1),
)
