"""Train `resnet10-plateau` with weight decay (paper, section 3.5(5)).

    make exp-resnet10-plateau-decay

Cost: about 7 minutes on an NVIDIA H200, shared with up to eight other runs.
Test accuracy: not measured yet; in the paper 92.09 %.

The cost is the measured time of `resnet10-plateau`.

In section 3.5, each step changes the experiment of the previous step. Step (1) adds dropout and
weight decay, and no later step removes them. The tables of the later steps list neither. This
does not mean that both were removed, because the table of step (1) does not list them either. This
experiment therefore keeps dropout and weight decay in step (5).
"""

from _base import vary

CONFIG = vary("resnet10-plateau", {"optimizer.weight_decay": 5e-4})
