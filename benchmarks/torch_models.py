"""The networks of `cifar_jax.models`, as a PyTorch user would write them.

The tests compare JAX's results with the results of these networks (`tests/fixtures/`), and
`make bench` compares the speed. Training with JAX does not need this module. Layers have the same
names as in `cifar_jax.models`. Images are NCHW. The command `python benchmarks/torch_models.py`
checks the number of parameters of every network.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn  # pyright: ignore[reportMissingImports]

# Number of trainable parameters that the paper states in Tables 3, 6, 9, 12, 14, 20 and 25.
PAPER_PARAMETERS = {
    "basic": 62_006,
    "net": 2_348_030,
    "net-bn-gap": 413_566,
    "net-attention": 521_646,
    "resnet18": 11_173_962,
    "resnet10": 4_903_242,
    "resnet10-separable": 722_186,
}


class Basic(nn.Module):
    """LeNet-5 (Table 1)."""

    def __init__(self, *, num_classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(5 * 5 * 16, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x), inplace=True), 2)
        x = F.max_pool2d(F.relu(self.conv2(x), inplace=True), 2)
        x = F.relu(self.fc1(x.flatten(1)), inplace=True)
        x = F.relu(self.fc2(x), inplace=True)
        return self.fc3(x)


class Net(nn.Module):
    """Network with three 3x3 convolutions (Table 4)."""

    def __init__(self, *, num_classes: int = 10, pooling: str = "max"):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1)
        self.pool1 = _pool(pooling, 64)
        self.conv2 = nn.Conv2d(64, 128, 3, padding=1)
        self.pool2 = _pool(pooling, 128)
        self.conv3 = nn.Conv2d(128, 256, 3, padding=1)
        self.fc1 = nn.Linear(8 * 8 * 256, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(F.relu(self.conv1(x), inplace=True))
        x = self.pool2(F.relu(self.conv2(x), inplace=True))
        x = F.relu(self.conv3(x), inplace=True)
        x = F.relu(self.fc1(x.flatten(1)), inplace=True)
        x = F.relu(self.fc2(x), inplace=True)
        return self.fc3(x)


class SelfAttention(nn.Module):
    """Self-attention over all positions, added to the input. Scores are not scaled (Table 10)."""

    def __init__(self, channels: int):
        super().__init__()
        self.query = nn.Conv2d(channels, channels // 8, 1)
        self.key = nn.Conv2d(channels, channels // 8, 1)
        self.value = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (f(x).flatten(2) for f in (self.query, self.key, self.value))
        weights = torch.softmax(query.transpose(1, 2) @ key, dim=-1)  # [N, query, key]
        return x + (value @ weights.transpose(1, 2)).view_as(x)


class NetBNGAP(nn.Module):
    """`Net` with BatchNorm, global average pooling and dropout (Tables 7 and 10)."""

    def __init__(
        self,
        *,
        attention: bool = False,
        num_classes: int = 10,
        dropout: float = 0.5,
        pooling: str = "max",
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(64)
        self.attention1 = SelfAttention(64) if attention else nn.Identity()
        self.pool1 = _pool(pooling, 64)
        self.conv2 = nn.Conv2d(64, 128, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(128)
        self.attention2 = SelfAttention(128) if attention else nn.Identity()
        self.pool2 = _pool(pooling, 128)
        self.conv3 = nn.Conv2d(128, 256, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(256)
        self.attention3 = SelfAttention(256) if attention else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.fc1 = nn.Linear(256, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.pool1(self.attention1(x))
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        x = self.pool2(self.attention2(x))
        x = F.relu(self.bn3(self.conv3(x)), inplace=True)
        x = F.adaptive_avg_pool2d(self.attention3(x), 1).flatten(1)
        x = F.relu(self.fc1(self.dropout(x)), inplace=True)
        x = F.relu(self.fc2(x), inplace=True)
        return self.fc3(x)


class InceptionBlock(nn.Module):
    """GoogLeNet's inception block with BatchNorm. Four branches share the output channels."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        width = outputs // 4
        for name, channels, size in [
            ("branch1x1", inputs, 1),
            ("branch3x3_reduce", inputs, 1),
            ("branch3x3", width, 3),
            ("branch5x5_reduce", inputs, 1),
            ("branch5x5", width, 5),
            ("branch_pool", inputs, 1),
        ]:
            conv = nn.Conv2d(channels, width, size, padding=size // 2, bias=False)
            self.add_module(f"{name}_conv", conv)
            self.add_module(f"{name}_bn", nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        def branch(name: str, x: Tensor) -> Tensor:
            x = self.get_submodule(f"{name}_conv")(x)
            return F.relu(self.get_submodule(f"{name}_bn")(x), inplace=True)

        branches = [
            branch("branch1x1", x),
            branch("branch3x3", branch("branch3x3_reduce", x)),
            branch("branch5x5", branch("branch5x5_reduce", x)),
            branch("branch_pool", F.max_pool2d(x, 3, stride=1, padding=1)),
        ]
        return torch.cat(branches, dim=1)


class NetInception(nn.Module):
    """`NetBNGAP` with inception blocks instead of the second and third convolution."""

    def __init__(self, *, num_classes: int = 10, dropout: float = 0.5, pooling: str = "max"):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.pool1 = _pool(pooling, 64)
        self.inception2 = InceptionBlock(64, 128)
        self.pool2 = _pool(pooling, 128)
        self.inception3 = InceptionBlock(128, 256)
        self.dropout = nn.Dropout(dropout)
        self.fc1 = nn.Linear(256, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(F.relu(self.bn1(self.conv1(x)), inplace=True))
        x = self.pool2(self.inception2(x))
        x = F.adaptive_avg_pool2d(self.inception3(x), 1).flatten(1)
        x = F.relu(self.fc1(self.dropout(x)), inplace=True)
        x = F.relu(self.fc2(x), inplace=True)
        return self.fc3(x)


def _pool(pooling: str, channels: int) -> nn.Module:
    if pooling == "max":
        return nn.MaxPool2d(2)
    if pooling == "average":
        return nn.AvgPool2d(2)
    assert pooling == "strided-conv", pooling
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(channels, channels, 2, stride=2)))


class SeparableConv(nn.Module):
    """A depthwise 3x3 convolution, then a pointwise 1x1 convolution, without bias (Table 23)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    The shortcut is a 1x1 convolution if the input and output shapes of the block differ.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, conv3x3: Callable[..., nn.Module]):
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride=stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs, stride=1)
        self.bn2 = nn.BatchNorm2d(outputs)
        if stride != 1 or inputs != outputs:
            self.shortcut_conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut_bn = nn.BatchNorm2d(outputs)
        else:
            self.shortcut_conv = self.shortcut_bn = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += self.shortcut_bn(self.shortcut_conv(x))
        return F.relu(y, inplace=True)


class ResNet(nn.Module):
    """ResNet for 32x32 images with four stages of 64 to 512 channels (section 3.5)."""

    def __init__(
        self,
        blocks_per_stage: int,
        *,
        separable: bool = False,
        num_classes: int = 10,
        dropout: float = 0.5,
    ):
        super().__init__()
        conv3x3 = (
            SeparableConv if separable else partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)
        )
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.block_names = []
        inputs = 64
        for stage, outputs in enumerate([64, 128, 256, 512], start=1):
            for number in range(1, blocks_per_stage + 1):
                stride = 2 if stage > 1 and number == 1 else 1
                name = f"stage{stage}_block{number}"
                self.add_module(name, ResidualBlock(inputs, outputs, stride, conv3x3))
                self.block_names.append(name)
                inputs = outputs
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        for name in self.block_names:
            x = self.get_submodule(name)(x)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.fc(self.dropout(x))


class SpeedNet(nn.Module):
    """PyTorch version of `cifar_jax.models.speednet.SpeedNet`."""

    def __init__(self, *, num_classes: int = 10, widths: tuple[int, ...] = (64, 256, 256)):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 24, 2)
        self.stages = len(widths)
        inputs = 24
        for stage, width in enumerate(widths, start=1):
            for number in (1, 2):
                bn = nn.BatchNorm2d(width, momentum=0.4)
                bn.weight.requires_grad_(False)
                conv = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
                self.add_module(f"stage{stage}_conv{number}", conv)
                self.add_module(f"stage{stage}_bn{number}", bn)
                inputs = width
        self.fc = nn.Linear(inputs, num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        def layer(stage: int, number: int, x: Tensor) -> Tensor:
            x = self.get_submodule(f"stage{stage}_conv{number}")(x)
            x = self.get_submodule(f"stage{stage}_bn{number}")(x)
            return F.gelu(x, approximate="tanh")

        x = F.gelu(self.conv1(F.pad(x, (0, 1, 0, 1))), approximate="tanh")
        for stage in range(1, self.stages + 1):
            x = F.max_pool2d(layer(stage, 1, x), 2)
            x = layer(stage, 2, x)
        return self.fc(x.amax((2, 3)) / x.shape[1] ** 0.5)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "basic": Basic,
    "net": Net,
    "net-bn-gap": NetBNGAP,
    "net-attention": partial(NetBNGAP, attention=True),
    "net-inception": NetInception,
    "resnet18": partial(ResNet, 2),
    "resnet10": partial(ResNet, 1),
    "resnet10-separable": partial(ResNet, 1, separable=True),
}
"""The networks of the paper."""

OTHER_MODELS: dict[str, Callable[..., nn.Module]] = {"speednet": SpeedNet}


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


if __name__ == "__main__":
    for name, build in MODELS.items():
        count = count_parameters(build())
        print(f"{name:20} {count:>12,}")
        assert count == PAPER_PARAMETERS.get(name, count), name
