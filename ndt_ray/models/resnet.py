"""ResNet-18 (He et al. 2016) with GroupNorm in place of BatchNorm, so that a sample's activations are its own."""

import math

from torch import Tensor, nn

from ndt_ray.errors import SpecError
from ndt_ray.inputs import InputSpec
from ndt_ray.models.init import Initial, Normal
from ndt_ray.models.layers import MaxPool2d, Model, require_image, require_positive

SMALL_IMAGE = 64
"""Sides up to this get the CIFAR stem: one 3×3 convolution, nothing halved before the first block."""


class Block(nn.Module):
    """Two 3×3 convolutions with a shortcut round them, 1×1 where the shape changes."""

    def __init__(self, fan_in: int, fan_out: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(groups, fan_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, fan_out)
        self.relu2 = nn.ReLU()
        self.shortcut = nn.Sequential()
        if stride != 1 or fan_in != fan_out:
            self.shortcut.append(nn.Conv2d(fan_in, fan_out, 1, stride, bias=False))
            self.shortcut.append(nn.GroupNorm(groups, fan_out))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        out: Tensor = self.relu2(inner + self.shortcut(x))
        return out


class ResNet18(Model):
    """[*, B, C, H, W] -> logits [*, B, classes]; measured are the stem's and the blocks' 3×3 convolutions and `fc`."""

    def __init__(self, inputs: InputSpec, width: int, groups: int) -> None:
        super().__init__()
        channels, height, breadth = inputs.shape
        if max(height, breadth) <= SMALL_IMAGE:
            self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            self.pool: nn.Module = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
            self.pool = MaxPool2d(3, stride=2, padding=1)
        self.norm1 = nn.GroupNorm(groups, width)
        self.relu = nn.ReLU()
        blocks: list[nn.Module] = []
        for stage in range(4):
            fan_in, fan_out = width * 2 ** max(stage - 1, 0), width * 2**stage
            blocks.append(Block(fan_in, fan_out, 1 if stage == 0 else 2, groups))
            blocks.append(Block(fan_out, fan_out, 1, groups))
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(width * 8, inputs.classes)
        self.tracked = {"conv1": "positions"}
        self.tracked |= {f"blocks.{i}.{conv}": "positions" for i in range(8) for conv in ("conv1", "conv2")}
        self.tracked["fc"] = "units"
        self.initial: dict[str, Initial] = {
            f"{name}.weight": _he_fan_out(conv) for name, conv in self.named_modules() if isinstance(conv, nn.Conv2d)
        }

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.norm1(self.conv1(x))))
        logits: Tensor = self.fc(self.blocks(x).mean((-2, -1)))
        return logits


def _he_fan_out(conv: nn.Conv2d) -> Normal:
    """He et al. 2015 by fan-out, which is what torchvision's ResNets start from."""
    return Normal(math.sqrt(2 / (conv.out_channels * conv.kernel_size[0] * conv.kernel_size[1])))


def resnet18(inputs: InputSpec, *, width: int = 64, groups: int = 32) -> nn.Module:
    """ResNet-18 with GroupNorm, and the CIFAR stem for images of up to 64x64."""
    require_image("resnet18", inputs)
    require_positive("resnet18", width=width, groups=groups)
    if width % groups:
        raise SpecError(
            f"resnet18: groups must divide the width, but got {width=} {groups=}: choose another of the two"
        )
    return ResNet18(inputs, width, groups)
