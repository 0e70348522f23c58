"""Train `resnet18-adam` with weight decay (paper, section 3.5(2)).

    make exp-resnet18-adam-decay

Cost: about 22 minutes on a dedicated NVIDIA H200, or 47 hours on two CPU cores.
Test accuracy: not measured yet; in the paper 89.66 %.

Section 3.5 is a chain: each step changes the step before. Step (1) adds dropout and weight decay.
The tables of Adam list neither, but the table of (1) does not list them either. This reading keeps
both in step (2).
"""

from _base import vary

CONFIG = vary("resnet18-adam", {"optimizer.weight_decay": 5e-4})
