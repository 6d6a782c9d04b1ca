"""Plain convolutional networks: the three of the founding study, and a generic one.

A stage is a 3×3 convolution, a maximum over 2×2 squares, a ReLU. The founding study has the ReLU first: the two
commute, and pooling first is 1.1 to 1.4 times faster. Measured are the convolutions' outputs and `fc`.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from ndt_ray.errors import SpecError
from ndt_ray.inputs import InputSpec
from ndt_ray.models.layers import MaxPool2d, Model, require_image, require_positive


class CNN(Model):
    """[*, B, C, H, W] -> logits [*, B, classes]; no normalisation, no dropout."""

    def __init__(self, name: str, inputs: InputSpec, channels: Sequence[int]) -> None:
        super().__init__()
        fan_in, height, width = require_image(name, inputs)
        side = min(height, width)
        if side >> len(channels) == 0:
            fit = side.bit_length() - 1
            raise SpecError(
                f"{name} halves the image {len(channels)} times, which leaves nothing of {height}x{width}: "
                f"at most {fit} stages fit. Use fewer (cnn_shallow has 2, cnn_medium 3) or larger images"
            )
        stages: list[nn.Module] = []
        for fan_out in channels:
            stages += [nn.Conv2d(fan_in, fan_out, kernel_size=3, padding=1), MaxPool2d(2), nn.ReLU()]
            fan_in = fan_out
        self.conv_layers = nn.Sequential(*stages)
        self.fc = nn.Linear(fan_in * (height >> len(channels)) * (width >> len(channels)), inputs.classes)
        self.tracked = {f"conv_layers.{i}": "positions" for i in range(0, len(stages), 3)}
        self.tracked["fc"] = "units"

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.conv_layers(x).flatten(-3))
        return logits


def cnn(inputs: InputSpec, *, channels: tuple[int, ...] = (32, 64)) -> nn.Module:
    """A convolutional network with one stage, which halves the image, for each number of channels."""
    require_positive("cnn", channels=channels)
    if not channels:
        raise SpecError("cnn: channels must name at least one stage, but got channels=(): use mlp for none")
    return CNN("cnn", inputs, channels)


def cnn_shallow(inputs: InputSpec) -> nn.Module:
    """Two convolutions, 32 and 64 channels; images of at least 4x4."""
    return CNN("cnn_shallow", inputs, [32, 64])


def cnn_medium(inputs: InputSpec) -> nn.Module:
    """Three convolutions, 32, 64 and 128 channels; images of at least 8x8."""
    return CNN("cnn_medium", inputs, [32, 64, 128])


def cnn_deep(inputs: InputSpec) -> nn.Module:
    """Four convolutions, 32 to 256 channels; images of at least 16x16."""
    return CNN("cnn_deep", inputs, [32, 64, 128, 256])
