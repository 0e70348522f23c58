"""Train `net-attention` with the recipe of `fast-net-bn-gap`, in six epochs.

    make exp-fast-net-attention
    cifar-jax train fast-net-bn-gap --set epochs=6   # the same recipe without attention

Parameters: 521,646.
Cost: 56 minutes on two CPU cores (AMD EPYC, AVX2), shared with other work for 33 minutes.
Test accuracy: 86.82 % with seed 0; in the paper 81.77 %.
Test accuracy without attention: 86.94 % with seed 0; in the paper 82.14 %.

Attention does not improve the accuracy here, but makes a train step take six times as long.
"""

from _base import DATA, SMOOTHED_LOSS, TRIANGULAR, TTA, adamw, muon

from cifar_jax.config import Config, Model, Phase

CONFIG = Config(
    model=Model(name="net-attention", dropout=0.0),
    epochs=6,
    batch_size=250,
    optimizer=muon(lr=0.16),
    param_groups=(adamw("*/bias, */scale, fc3/*"),),
    schedule=TRIANGULAR,
    loss=SMOOTHED_LOSS,
    phases=(Phase(until=0.41, image_size=16),),
    data=DATA,
    tta=TTA,
)
