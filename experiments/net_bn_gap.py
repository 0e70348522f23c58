"""3.3 BatchNorm, global average pooling and dropout (Tables 7–9).

A sixth of `net`'s parameters.

    make exp-net-bn-gap

The paper: 82.14 % of the test images with 413,566 parameters.
"""

from cifar_jax.config import Config, Data, Model, Optimizer, Paper

CONFIG = Config(
    model=Model(name="net-bn-gap", dropout=0.5),  # Table 7
    epochs=50,  # Table 8
    batch_size=8,  # Table 8
    optimizer=Optimizer(name="sgd", lr=1e-3, momentum=0.9),  # Table 8
    data=Data(validation=2000),  # 3.2 logs `IT 06000`
    paper=Paper(tables="7–9", test_accuracy=82.14, parameters=413_566),  # Table 9
)
