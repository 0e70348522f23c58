"""Train `resnet10-separable` without dropout, as Table 23 shows it.

    make exp-resnet10-separable-no-dropout

Cost: about 9 minutes on an NVIDIA H200, shared with up to eight other runs.
Test accuracy: not measured yet; in the paper 90.68 %.

The cost is the measured time of `resnet10-separable`.

Table 23 lists every layer of the network, and lists no dropout.
"""

from _base import vary

CONFIG = vary("resnet10-separable", {"model.dropout": 0.0})
