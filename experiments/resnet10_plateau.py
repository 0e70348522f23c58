"""Train ResNet10 with a plateau schedule (paper, section 3.5(5)).

    make exp-resnet10-plateau

Tables: 21 (hyperparameters), 22 (result).
Parameters: 4,903,242.
Cost: 7.2 minutes on an NVIDIA H200, shared with up to eight other runs.
Test accuracy: 89.88 % with seed 0; in the paper 92.09 %.

This is the highest test accuracy in the paper.
"""

from cifar_jax.config import Config, Data, Model, Optimizer, Paper, Schedule, Train

CONFIG = Config(
    model=Model(name="resnet10", dropout=0.5),  # Section 3.5
    epochs=135,  # Table 21
    batch_size=128,  # Table 21
    optimizer=Optimizer(name="adam", lr=1e-4),  # Table 21
    schedule=Schedule(name="plateau", patience=5, factor=0.5),  # Section 3.5(5)
    # The log in section 3.2 of the paper implies at most 2,000 validation images. The paper does
    # not mention augmentation (docs/paper.md).
    data=Data(validation=2000, crop_padding=4, flip=True),
    train=Train(log_every=100),
    paper=Paper(tables="21–22", test_accuracy=92.09, parameters=4_903_242),  # Table 22
)
