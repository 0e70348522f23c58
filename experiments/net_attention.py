"""3.4 Self-attention and a self-adjusting learning rate (Tables 10–12).

The paper gives no settings for the learning rate here; those of 3.5(5) are meant.

    make exp-net-attention

The paper: 81.77 % of the test images with 521,646 parameters.
"""

from cifar_jax.config import Config, Data, Model, Optimizer, Paper, Schedule

CONFIG = Config(
    model=Model(name="net-attention", dropout=0.5),  # Table 10
    epochs=50,  # Table 11
    batch_size=8,  # Table 11
    optimizer=Optimizer(name="sgd", lr=1e-3, momentum=0.9),  # Table 11
    schedule=Schedule(name="plateau", patience=5, factor=0.5),  # 3.5(5)
    data=Data(validation=2000),  # 3.2 logs `IT 06000`
    paper=Paper(tables="10–12", test_accuracy=81.77, parameters=521_646),  # Table 12
)
