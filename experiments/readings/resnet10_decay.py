"""Train `resnet10` with weight decay (paper, section 3.5(4)).

    make exp-resnet10-decay

Cost: about 5 minutes on an NVIDIA H200, shared with up to eight other runs.
Test accuracy: not measured yet; in the paper 90.03 %.

Section 3.5 is a chain: each step changes the step before. Step (1) adds dropout and weight decay.
The tables of Adam list neither, but the table of (1) does not list them either. This reading keeps
both in step (4).
"""

from _base import vary

CONFIG = vary("resnet10", {"optimizer.weight_decay": 5e-4})
