"""Train ResNet18 with SGD, dropout and weight decay (paper, section 3.5(1)).

    make exp-resnet18-sgd

Tables: 13 (hyperparameters), 14 (result).
Parameters: 11,173,962.
Cost: about 22 minutes on a dedicated NVIDIA H200, or 47 hours on two CPU cores.
Test accuracy: not measured yet; in the paper 90.92 %.

The paper gives no value for the weight decay. This experiment uses 5e-4, like pytorch-cifar.
"""

from cifar_jax.config import Config, Data, Model, Optimizer, Paper

CONFIG = Config(
    model=Model(name="resnet18", dropout=0.5),  # Section 3.5
    epochs=135,  # Table 13
    batch_size=8,  # Table 13
    optimizer=Optimizer(name="sgd", lr=1e-3, momentum=0.9, weight_decay=5e-4),  # Table 13
    # The log in section 3.2 of the paper implies at most 2,000 validation images. The paper does
    # not mention augmentation (docs/paper.md).
    data=Data(validation=2000, crop_padding=4, flip=True),
    paper=Paper(tables="13–14", test_accuracy=90.92, parameters=11_173_962),  # Table 14
)
