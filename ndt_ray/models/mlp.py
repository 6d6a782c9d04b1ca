"""Multilayer perceptrons: the eight of the founding study, and a generic one.

`network` holds Linears at even places with an activation between them; measured are the Linears' outputs, before the
activation. Images are flattened; text is the mean of its token embeddings; other ids are embedded and flattened.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from ndt_ray.inputs import InputSpec
from ndt_ray.models.layers import EMBEDDING_WIDTH, Model, masked_mean, require_positive, token_embedding

Activation = Literal["relu", "gelu", "tanh", "linear"]
ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "linear": nn.Identity,
}


class MLP(Model):
    """[*, B, *sample] -> logits [*, B, classes]."""

    def __init__(self, inputs: InputSpec, hidden: Sequence[int], activation: Activation = "relu") -> None:
        super().__init__()
        self.kind = inputs.kind
        self.padding = inputs.padding
        self.sample_dims = len(inputs.shape)
        features = inputs.features
        if inputs.kind != "image":
            self.embedding = token_embedding(inputs)
            features = EMBEDDING_WIDTH * (1 if inputs.kind == "text" else features)
        widths = [features, *hidden]
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Linear(fan_in, fan_out), ACTIVATIONS[activation]()]
        self.network = nn.Sequential(*layers, nn.Linear(widths[-1], inputs.classes))
        self.tracked = {f"network.{i}": "units" for i in range(0, len(self.network), 2)}

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "text":
            features = masked_mean(self.embedding(x), None if self.padding is None else x != self.padding)
        elif self.kind == "modular":
            features = self.embedding(x).flatten(-2)
        else:
            features = x.flatten(-self.sample_dims)
        logits: Tensor = self.network(features)
        return logits


def mlp(inputs: InputSpec, *, hidden: tuple[int, ...] = (128, 64), activation: Activation = "relu") -> nn.Module:
    """A multilayer perceptron with the given hidden widths; none makes it a linear classifier."""
    require_positive("mlp", hidden=hidden)
    return MLP(inputs, hidden, activation)


def mlp_shallow_2(inputs: InputSpec) -> nn.Module:
    """Two hidden layers, 128 and 64 wide."""
    return MLP(inputs, [128, 64])


def mlp_medium_5(inputs: InputSpec) -> nn.Module:
    """Five hidden layers, four 64 and one 32 wide."""
    return MLP(inputs, [64, 64, 64, 64, 32])


def mlp_deep_10(inputs: InputSpec) -> nn.Module:
    """Ten hidden layers, 32 wide."""
    return MLP(inputs, [32] * 10)


def mlp_verydeep_15(inputs: InputSpec) -> nn.Module:
    """Fifteen hidden layers, 24 wide."""
    return MLP(inputs, [24] * 15)


def mlp_narrow(inputs: InputSpec) -> nn.Module:
    """Four hidden layers, 32 wide."""
    return MLP(inputs, [32] * 4)


def mlp_medium(inputs: InputSpec) -> nn.Module:
    """Four hidden layers, two 128 and two 64 wide."""
    return MLP(inputs, [128, 128, 64, 64])


def mlp_wide(inputs: InputSpec) -> nn.Module:
    """Four hidden layers, two 256 and two 128 wide."""
    return MLP(inputs, [256, 256, 128, 128])


def mlp_verywide(inputs: InputSpec) -> nn.Module:
    """Four hidden layers, two 512 and two 256 wide."""
    return MLP(inputs, [512, 512, 256, 256])
