"""Train ResNet18 with Adam (paper, section 3.5(2)).

    make exp-resnet18-adam

Tables: 15 (hyperparameters), 16 (result).
Parameters: 11,173,962.
Cost: about 22 minutes on a dedicated NVIDIA H200, or 47 hours on two CPU cores.
Test accuracy: not measured yet; in the paper 89.66 %.
"""

from cifar_jax.config import Config, Data, Model, Optimizer, Paper

CONFIG = Config(
    model=Model(name="resnet18", dropout=0.5),  # Section 3.5
    epochs=135,  # Table 15
    batch_size=8,  # Table 15
    optimizer=Optimizer(name="adam", lr=1e-3),  # Table 15
    # The log in section 3.2 of the paper implies at most 2,000 validation images. The paper does
    # not mention augmentation (docs/paper.md).
    data=Data(validation=2000, crop_padding=4, flip=True),
    paper=Paper(tables="15–16", test_accuracy=89.66, parameters=11_173_962),  # Table 16
)
