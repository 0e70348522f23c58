"""Train `resnet10-separable` without dropout, with weight decay and a plateau schedule.

    make exp-resnet10-separable-no-dropout-decay-plateau

Cost: about 9 minutes on an NVIDIA H200, shared with up to eight other runs.
Test accuracy: not measured yet; in the paper 90.68 %.

The cost is the measured time of `resnet10-separable`.

In section 3.5, each step changes the experiment of the previous step. This experiment is step (6)
with the weight decay of step (1) and the plateau schedule of step (5). Dropout is left out, because
Table 23 lists no dropout.
"""

from _base import vary

CONFIG = vary(
    "resnet10-separable",
    {
        "model.dropout": 0.0,
        "optimizer.weight_decay": 5e-4,
        "schedule.name": "plateau",
    },
)
