"""3.5(6) Depthwise separable convolutions (Tables 23–25).

Table 25 has 90.68 %, the paper's abstract and conclusion 90.04 %.

    make exp-resnet10-separable

The paper: 90.68 % of the test images with 722,186 parameters.
"""

from cifar_jax.config import Config, Data, Model, Optimizer, Paper, Train

CONFIG = Config(
    model=Model(name="resnet10-separable", dropout=0.5),  # Table 23
    epochs=135,  # Table 24
    batch_size=128,  # Table 24
    optimizer=Optimizer(name="adam", lr=1e-4),  # Table 24
    data=Data(validation=2000, crop_padding=4, flip=True),  # 3.2 logs `IT 06000`
    train=Train(log_every=100),
    paper=Paper(tables="23–25", test_accuracy=90.68, parameters=722_186),  # Table 25
)
