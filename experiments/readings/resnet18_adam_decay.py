"""Train `resnet18-adam` with weight decay (paper, section 3.5(2)).

    make exp-resnet18-adam-decay

Cost: about 22 minutes on a dedicated NVIDIA H200, or 47 hours on two CPU cores.
Test accuracy: not measured yet; in the paper 89.66 %.

The cost is the estimate for `resnet18-adam`.

In section 3.5, each step changes the experiment of the previous step. Step (1) adds dropout and
weight decay, and no later step removes them. The tables of the later steps list neither. This
does not mean that both were removed, because the table of step (1) does not list them either. This
experiment therefore keeps dropout and weight decay in step (2).
"""

from _base import vary

CONFIG = vary("resnet18-adam", {"optimizer.weight_decay": 5e-4})
