"""Experiment for `make bench`: `speednet` with an optimizer that PyTorch also has."""

from cifar_jax.config import Config, Model, Optimizer

CONFIG = Config(
    model=Model(name="speednet"),
    epochs=8,
    batch_size=250,
    optimizer=Optimizer(name="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4),
)
