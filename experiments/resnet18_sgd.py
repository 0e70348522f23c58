"""3.5(1) ResNet18 with dropout and weight decay (Tables 13–14).

The paper names no weight decay: 5e-4 is what the reference CIFAR ResNet18 uses.

    make exp-resnet18-sgd

The paper: 90.92 % of the test images with 11,173,962 parameters.
"""

from cifar_jax.config import Config, Data, Model, Optimizer, Paper

CONFIG = Config(
    model=Model(name="resnet18", dropout=0.5),  # Section 3.5
    epochs=135,  # Table 13
    batch_size=8,  # Table 13
    optimizer=Optimizer(name="sgd", lr=1e-3, momentum=0.9, weight_decay=5e-4),  # Table 13
    data=Data(validation=2000, crop_padding=4, flip=True),  # 3.2 logs `IT 06000`
    paper=Paper(tables="13–14", test_accuracy=90.92, parameters=11_173_962),  # Table 14
)
