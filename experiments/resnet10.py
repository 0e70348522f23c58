"""Train a ResNet with one block per stage (paper, section 3.5(4)).

    make exp-resnet10

Tables: 19 (hyperparameters), 20 (result).
Parameters: 4,903,242.
Cost: 4.7 minutes on an NVIDIA H200, shared with up to eight other runs.
Test accuracy: 89.36 % with seed 0; in the paper 90.03 %.
"""

from cifar_jax.config import Config, Data, Model, Optimizer, Paper, Train

CONFIG = Config(
    model=Model(name="resnet10", dropout=0.5),  # Section 3.5
    epochs=135,  # Table 19
    batch_size=128,  # Table 19
    optimizer=Optimizer(name="adam", lr=1e-4),  # Table 19
    # The log in section 3.2 of the paper implies at most 2,000 validation images. The paper does
    # not mention augmentation (docs/paper.md).
    data=Data(validation=2000, crop_padding=4, flip=True),
    train=Train(log_every=100),
    paper=Paper(tables="19–20", test_accuracy=90.03, parameters=4_903_242),  # Table 20
)
