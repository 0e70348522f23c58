"""Train LeNet-5 on color images (paper, section 3.1).

    make exp-basic

Tables: 1 (network), 2 (hyperparameters), 3 (result).
Parameters: 62,006.
Cost: 68 seconds on two CPU cores (AMD EPYC).
Test accuracy: 62.02 ± 0.69 % over 3 seeds; in the paper 62.06 %.
"""

from cifar_jax.config import Config, Data, Model, Optimizer, Paper

CONFIG = Config(
    model=Model(name="basic"),  # Table 1
    epochs=20,  # Table 2
    batch_size=8,  # Table 2
    optimizer=Optimizer(name="sgd", lr=1e-3, momentum=0.9),  # Table 2
    # The log in section 3.2 of the paper implies at most 2,000 validation images (docs/paper.md).
    data=Data(validation=2000),
    paper=Paper(tables="1–3", test_accuracy=62.06, parameters=62_006),  # Table 3
)
