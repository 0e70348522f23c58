"""3.5(4) One residual block a stage (Tables 19–20).

ResNet18 with half its blocks.

    make exp-resnet10

The paper: 90.03 % of the test images with 4,903,242 parameters.
"""

from cifar_jax.config import Config, Data, Model, Optimizer, Paper, Train

CONFIG = Config(
    model=Model(name="resnet10", dropout=0.5),  # Section 3.5
    epochs=135,  # Table 19
    batch_size=128,  # Table 19
    optimizer=Optimizer(name="adam", lr=1e-4),  # Table 19
    data=Data(validation=2000, crop_padding=4, flip=True),  # 3.2 logs `IT 06000`
    train=Train(log_every=100),
    paper=Paper(tables="19–20", test_accuracy=90.03, parameters=4_903_242),  # Table 20
)
