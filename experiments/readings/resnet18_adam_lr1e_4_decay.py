"""Train `resnet18-adam-lr1e-4` with weight decay (paper, section 3.5(3)).

    make exp-resnet18-adam-lr1e-4-decay

Cost: about 9 minutes on an NVIDIA H200, shared with up to eight other runs.
Test accuracy: not measured yet; in the paper 91.27 %.

The cost is the measured time of `resnet18-adam-lr1e-4`.

In section 3.5, each step changes the experiment of the previous step. Step (1) adds dropout and
weight decay, and no later step removes them. The tables of the later steps list neither. This
does not mean that both were removed, because the table of step (1) does not list them either. This
experiment therefore keeps dropout and weight decay in step (3).
"""

from _base import vary

CONFIG = vary("resnet18-adam-lr1e-4", {"optimizer.weight_decay": 5e-4})
