"""3.5(3) ResNet18 with Adam at a tenth of the learning rate (Tables 17–18).

Also the first with a batch of 128.

    make exp-resnet18-adam-lr1e-4

The paper: 91.27 % of the test images with 11,173,962 parameters.
"""

from cifar_jax.config import Config, Data, Model, Optimizer, Paper, Train

CONFIG = Config(
    model=Model(name="resnet18", dropout=0.5),  # Section 3.5
    epochs=100,  # Table 17
    batch_size=128,  # Table 17
    optimizer=Optimizer(name="adam", lr=1e-4),  # Table 17
    data=Data(validation=2000, crop_padding=4, flip=True),  # 3.2 logs `IT 06000`
    train=Train(log_every=100),
    paper=Paper(tables="17–18", test_accuracy=91.27, parameters=11_173_962),  # Table 18
)
