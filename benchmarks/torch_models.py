"""The paper's networks as a PyTorch user would write them: the reference for parity and speed.

Layer names are those of `cifar_jax.models`; images are NCHW, normalised, 32x32. Nothing here is
needed to train with JAX. `python benchmarks/torch_models.py` checks every parameter count.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Trainable parameters that the paper prints: Tables 3, 6, 9, 12, 14, 20, 25.
PARAMETERS = {
    "basic": 62_006,
    "net": 2_348_030,
    "net-bn-gap": 413_566,
    "net-attention": 521_646,
    "resnet18": 11_173_962,
    "resnet10": 4_903_242,
    "resnet10-separable": 722_186,
}


class Basic(nn.Module):
    """LeNet-5's shape (Table 1)."""

    def __init__(self, *, num_classes: int = 10, dropout: float = 0.0):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.dropout = nn.Dropout(dropout)
        self.fc1 = nn.Linear(5 * 5 * 16, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x), inplace=True), 2)
        x = F.max_pool2d(F.relu(self.conv2(x), inplace=True), 2)
        x = self.dropout(x.flatten(1))
        x = F.relu(self.fc1(x), inplace=True)
        x = F.relu(self.fc2(x), inplace=True)
        return self.fc3(x)


class SelfAttention(nn.Module):
    """x + attention(x) over all positions; unscaled scores, no gain (Table 10, SAGAN's block)."""

    def __init__(self, channels: int):
        super().__init__()
        self.query = nn.Conv2d(channels, channels // 8, 1)
        self.key = nn.Conv2d(channels, channels // 8, 1)
        self.value = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (f(x).flatten(2) for f in (self.query, self.key, self.value))
        weights = torch.softmax(query.transpose(1, 2) @ key, dim=-1)  # [N, to, from]
        return x + (value @ weights.transpose(1, 2)).view_as(x)


class Net(nn.Module):
    """Three 3x3 convs of 64, 128, 256 channels (Tables 4, 7, 10).

    `global_pool` brings BatchNorm and global average pooling (Table 7); `attention` adds
    self-attention after each BatchNorm and ReLU (Table 10).
    """

    def __init__(
        self,
        *,
        global_pool: bool = False,
        attention: bool = False,
        pooling: str = "max",
        num_classes: int = 10,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.global_pool = global_pool
        self.pooling = pooling
        for i, (inputs, outputs) in enumerate([(3, 64), (64, 128), (128, 256)], start=1):
            self.add_module(f"conv{i}", nn.Conv2d(inputs, outputs, 3, padding=1))
            self.add_module(f"bn{i}", nn.BatchNorm2d(outputs) if global_pool else nn.Identity())
            self.add_module(f"attention{i}", SelfAttention(outputs) if attention else nn.Identity())
            if i < 3:
                self.add_module(f"pool{i}", _pool(pooling, outputs))
        self.dropout = nn.Dropout(dropout)
        self.fc1 = nn.Linear(256 if global_pool else 8 * 8 * 256, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.pool1(self.attention1(x))
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        x = self.pool2(self.attention2(x))
        x = F.relu(self.bn3(self.conv3(x)), inplace=True)
        x = self.attention3(x)
        x = F.adaptive_avg_pool2d(x, 1) if self.global_pool else x
        x = self.dropout(x.flatten(1))
        x = F.relu(self.fc1(x), inplace=True)
        x = F.relu(self.fc2(x), inplace=True)
        return self.fc3(x)


def _pool(pooling: str, channels: int) -> nn.Module:
    if pooling == "max":
        return nn.MaxPool2d(2)
    if pooling == "average":
        return nn.AvgPool2d(2)
    assert pooling == "strided-conv", pooling
    return nn.Conv2d(channels, channels, 2, stride=2)


class BasicBlock(nn.Module):
    """Two 3x3 convs and a shortcut, projected by a 1x1 conv only where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut_conv, self.shortcut_bn = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += self.shortcut_bn(self.shortcut_conv(x))
        return F.relu(y, inplace=True)


class SeparableBlock(nn.Module):
    """`BasicBlock` with depthwise 3x3 + pointwise 1x1 in the place of each 3x3 (Table 23)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        depthwise = partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)
        pointwise = partial(nn.Conv2d, kernel_size=1, bias=False)
        self.conv1_depthwise = depthwise(inputs, inputs, stride=stride, groups=inputs)
        self.conv1_pointwise = pointwise(inputs, outputs)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2_depthwise = depthwise(outputs, outputs, groups=outputs)
        self.conv2_pointwise = pointwise(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut_conv, self.shortcut_bn = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1_pointwise(self.conv1_depthwise(x))
        y = F.relu(self.bn1(y), inplace=True)
        y = self.bn2(self.conv2_pointwise(self.conv2_depthwise(y)))
        y += self.shortcut_bn(self.shortcut_conv(x))
        return F.relu(y, inplace=True)


def _shortcut(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, nn.Module]:
    if stride == 1 and inputs == outputs:
        return nn.Identity(), nn.Identity()
    return nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)


class ResNet(nn.Module):
    """CIFAR's ResNet: 3x3 stem of stride 1, four stages of 64 to 512 channels (3.5, Table 23)."""

    def __init__(
        self,
        block: Callable[[int, int, int], nn.Module],
        blocks_per_stage: int,
        *,
        num_classes: int = 10,
        dropout: float = 0.5,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        blocks = {}
        inputs = 64
        for stage, outputs in enumerate([64, 128, 256, 512], start=1):
            for i in range(1, blocks_per_stage + 1):
                stride = 2 if stage > 1 and i == 1 else 1
                blocks[f"stage{stage}_block{i}"] = block(inputs, outputs, stride)
                inputs = outputs
        for name, module in blocks.items():
            self.add_module(name, module)
        self.blocks = list(blocks.values())  # a plain list: the modules are registered by name
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        for block in self.blocks:
            x = block(x)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.fc(self.dropout(x))


MODELS: dict[str, Callable[..., nn.Module]] = {
    "basic": Basic,
    "net": Net,
    "net-bn-gap": partial(Net, global_pool=True, dropout=0.5),
    "net-attention": partial(Net, global_pool=True, attention=True, dropout=0.5),
    "resnet18": partial(ResNet, BasicBlock, 2),
    "resnet10": partial(ResNet, BasicBlock, 1),
    "resnet10-separable": partial(ResNet, SeparableBlock, 1),
}


def create(name: str, **options) -> nn.Module:
    """Builds `MODELS[name]` with the options given: dropout, num_classes, pooling (`net*`)."""
    model = MODELS[name](**options)
    if not {"num_classes", "pooling"} & options.keys():  # these two change the count
        assert count_parameters(model) == PARAMETERS[name], name
    return model


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


if __name__ == "__main__":
    for name in MODELS:
        print(f"{name:20} {count_parameters(create(name)):>12,}")
