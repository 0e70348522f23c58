"""Train `resnet10-plateau` with weight decay (paper, section 3.5(5)).

    make exp-resnet10-plateau-decay

Cost: about 7 minutes on an NVIDIA H200, shared with up to eight other runs.
Test accuracy: not measured yet; in the paper 92.09 %.

Section 3.5 is a chain: each step changes the step before. Step (1) adds dropout and weight decay.
The tables of Adam list neither, but the table of (1) does not list them either. This reading keeps
both in step (5).
"""

from _base import vary

CONFIG = vary("resnet10-plateau", {"optimizer.weight_decay": 5e-4})
