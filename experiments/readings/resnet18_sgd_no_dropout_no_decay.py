"""Train `resnet18-sgd` without dropout and weight decay (paper, section 3.5(1)).

    make exp-resnet18-sgd-no-dropout-no-decay

Cost: about 22 minutes on a dedicated NVIDIA H200, or 47 hours on two CPU cores.
Test accuracy: not measured yet; the paper states none.

The cost is the estimate for `resnet18-sgd`.

Section 3.5(1) states that dropout and weight decay improve the accuracy slightly. The paper does
not state the accuracy without them. `cifar-jax claims` compares this experiment with
`resnet18-sgd`.
"""

from _base import vary

CONFIG = vary(
    "resnet18-sgd",
    {
        "model.dropout": 0.0,
        "optimizer.weight_decay": 0.0,
    },
)
