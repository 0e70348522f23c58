"""3.5(5) One block a stage, adaptive learning rate (Tables 21–22).

The paper's best. ReduceLROnPlateau(optimizer, 'min', patience=5, factor=0.5).

    make exp-resnet10-plateau

The paper: 92.09 % of the test images with 4,903,242 parameters.
"""

from cifar_jax.config import Config, Data, Model, Optimizer, Paper, Schedule, Train

CONFIG = Config(
    model=Model(name="resnet10", dropout=0.5),  # Section 3.5
    epochs=135,  # Table 21
    batch_size=128,  # Table 21
    optimizer=Optimizer(name="adam", lr=1e-4),  # Table 21
    schedule=Schedule(name="plateau", patience=5, factor=0.5),  # 3.5(5)
    data=Data(validation=2000, crop_padding=4, flip=True),  # 3.2 logs `IT 06000`
    train=Train(log_every=100),
    paper=Paper(tables="21–22", test_accuracy=92.09, parameters=4_903_242),  # Table 22
)
