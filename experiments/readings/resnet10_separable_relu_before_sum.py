"""Train `resnet10-separable` with the ReLU layers of Table 23.

    make exp-resnet10-separable-relu-before-sum

Cost: about 9 minutes on an NVIDIA H200, shared with up to eight other runs.
Test accuracy: not measured yet; in the paper 90.68 %.

The cost is the measured time of `resnet10-separable`.

Table 23 shows a ReLU after each of the two convolutions of a block, and none after the sum with the
shortcut. The second ReLU therefore precedes the sum.
"""

from _base import vary

CONFIG = vary("resnet10-separable", {"model.arguments.relu_before_sum": True})
