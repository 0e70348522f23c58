"""Train `net-bn-gap` with self-attention and a plateau schedule (paper, section 3.4).

    make exp-net-attention

Tables: 10 (network), 11 (hyperparameters), 12 (result).
Parameters: 521,646.
Cost: 9.4 minutes on an NVIDIA H200, shared with up to eight other runs.
Test accuracy: 80.68 % with seed 0; in the paper 81.77 %.

Section 3.4 gives no settings of the schedule. This experiment uses the settings of section 3.5(5).
"""

from cifar_jax.config import Config, Data, Model, Optimizer, Paper, Schedule

CONFIG = Config(
    model=Model(name="net-attention", dropout=0.5),  # Table 10
    epochs=50,  # Table 11
    batch_size=8,  # Table 11
    optimizer=Optimizer(name="sgd", lr=1e-3, momentum=0.9),  # Table 11
    schedule=Schedule(name="plateau", patience=5, factor=0.5),  # Section 3.5(5)
    # The log in section 3.2 of the paper implies at most 2,000 validation images (docs/paper.md).
    data=Data(validation=2000),
    paper=Paper(tables="10–12", test_accuracy=81.77, parameters=521_646),  # Table 12
)
