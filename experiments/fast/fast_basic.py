"""A better recipe for `basic`: the same 62,006 parameters, in minutes.

    make exp-fast-basic

Muon for the kernels, AdamW for biases and the last layer, larger batches, reflected shifts and
alternating flips. The paper, after 20 epochs of SGD: 62.06 %.
"""

from cifar_jax.config import Config, Data, Model, Optimizer, ParamGroup, Schedule, TTAConfig

CONFIG = Config(
    model=Model(name="basic"),
    epochs=8,
    batch_size=250,
    optimizer=Optimizer(name="muon", lr=0.02, momentum=0.6, nesterov=True),
    param_groups=(
        ParamGroup(parameters="*/bias, fc3/*", optimizer=Optimizer(name="adamw", lr=6e-3)),
    ),
    schedule=Schedule(name="triangular", warmup=0.2, start=0.1, end=0.0),
    data=Data(validation=0, crop_padding=2, crop_fill="reflect", flip="alternating"),
    tta=TTAConfig(flip=True, shift=1),
)
