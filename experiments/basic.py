"""3.1 The basic model: LeNet-5's shape on color images (Tables 1–3).

Two 5×5 convolutions and three dense layers; no augmentation.

    make exp-basic

The paper: 62.06 % of the test images with 62,006 parameters.
"""

from cifar_jax.config import Config, Data, Model, Optimizer, Paper

CONFIG = Config(
    model=Model(name="basic"),  # Table 1
    epochs=20,  # Table 2
    batch_size=8,  # Table 2
    optimizer=Optimizer(name="sgd", lr=1e-3, momentum=0.9),  # Table 2
    data=Data(validation=2000),  # 3.2 logs `IT 06000`
    paper=Paper(tables="1–3", test_accuracy=62.06, parameters=62_006),  # Table 3
)
