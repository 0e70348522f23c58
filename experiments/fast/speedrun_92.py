"""Train `speednet` to 92.4 % in 16 minutes on two CPU cores.

    make exp-speedrun-92

Parameters: 1,971,640.
Cost: 16 minutes on two CPU cores (AMD EPYC, AVX2).
Test accuracy: 92.39 ± 0.19 % over 5 seeds (0 to 4).

The recipe follows K. Jordan's airbench94-Muon: a whitening layer, Muon for the kernels, and small
images in the first epochs. The network suits Winograd convolutions
(`cifar_jax/models/speednet.py`). Muon's learning rate is lower than in airbench, because a batch
has 250 images instead of 2,000.
"""

from _speednet import speednet

from cifar_jax.config import Phase

CONFIG = speednet(
    epochs=5,
    batch_size=250,
    conv1_bias_until=0.4,
    phases=(Phase(until=0.4, image_size=16),),
)
