"""3.5(2) ResNet18 with Adam (Tables 15–16).

“Adam needs different hyperparameters from SGD.”

    make exp-resnet18-adam

The paper: 89.66 % of the test images with 11,173,962 parameters.
"""

from cifar_jax.config import Config, Data, Model, Optimizer, Paper

CONFIG = Config(
    model=Model(name="resnet18", dropout=0.5),  # Section 3.5
    epochs=135,  # Table 15
    batch_size=8,  # Table 15
    optimizer=Optimizer(name="adam", lr=1e-3),  # Table 15
    data=Data(validation=2000, crop_padding=4, flip=True),  # 3.2 logs `IT 06000`
    paper=Paper(tables="15–16", test_accuracy=89.66, parameters=11_173_962),  # Table 16
)
