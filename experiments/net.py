"""Train a network of three 3×3 convolutions (paper, section 3.2).

    make exp-net

Tables: 4 (network), 5 (hyperparameters), 6 (result).
Parameters: 2,348,030.
Cost: 66 minutes on two CPU cores (AMD EPYC).
Test accuracy: 77.96 ± 0.36 % over 3 seeds; in the paper 77.91 %.
"""

from cifar_jax.config import Config, Data, Model, Optimizer, Paper

CONFIG = Config(
    model=Model(name="net"),  # Table 4
    epochs=100,  # Table 5
    batch_size=8,  # Table 5
    optimizer=Optimizer(name="sgd", lr=1e-3, momentum=0.9),  # Table 5
    # The log in section 3.2 of the paper implies at most 2,000 validation images (docs/paper.md).
    data=Data(validation=2000),
    paper=Paper(tables="4–6", test_accuracy=77.91, parameters=2_348_030),  # Table 6
)
