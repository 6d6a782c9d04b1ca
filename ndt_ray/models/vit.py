"""A small vision transformer: square patches, pre-norm layers, mean over patches (Dosovitskiy et al. 2021, small)."""

from torch import Tensor, nn

from ndt_ray.errors import SpecError
from ndt_ray.inputs import InputSpec
from ndt_ray.models.init import Initial, Normal
from ndt_ray.models.layers import (
    Model,
    PositionalEmbedding,
    number_dropouts,
    require_image,
    require_positive,
    require_share,
    unflatten,
)
from ndt_ray.models.transformer import Encoder, EncoderLayer

LARGEST_DEFAULT_PATCH = 4
FEWEST_DEFAULT_TOKENS = 16


class ViT(Model):
    """[*, B, C, H, W] -> logits [*, B, classes]; a patch is embedded by a Linear, which is its convolution."""

    def __init__(self, inputs: InputSpec, patch: int, width: int, heads: int, depth: int, dropout: float) -> None:
        super().__init__()
        channels, height, breadth = inputs.shape
        self.patch = patch
        self.grid = (height // patch, breadth // patch)
        self.patch_embed = nn.Linear(channels * patch * patch, width)
        self.pos_encoder = PositionalEmbedding(self.grid[0] * self.grid[1], width)
        self.initial: dict[str, Initial] = {"pos_encoder.weight": Normal(0.02)}
        layers = [EncoderLayer(width, heads, dropout, pre_norm=True, activation=nn.GELU) for _ in range(depth)]
        self.transformer = Encoder(layers)
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, inputs.classes)
        self.tracked = {"patch_embed": "tokens"}
        self.tracked |= {path: "tokens" for path in self.transformer.tracked_paths("transformer")}
        self.tracked["fc"] = "units"
        number_dropouts(self)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.pos_encoder(self.patch_embed(self._patches(x)))
        logits: Tensor = self.fc(self.norm(self.transformer(tokens)).mean(-2))
        return logits

    def _patches(self, x: Tensor) -> Tensor:
        """[*, B, C, H, W] -> [*, B, rows · columns, C · patch · patch], row by row."""
        rows, columns = self.grid
        x = unflatten(unflatten(x, -1, (columns, self.patch)), -3, (rows, self.patch))  # [*, B, C, rows, p, columns, p]
        return x.movedim((-4, -2), (-5, -4)).flatten(-3).flatten(-3, -2)


def default_patch(height: int, width: int) -> int:
    """The largest patch up to 4 that tiles the image and leaves at least 16 tokens; 1 where none does."""
    for patch in range(LARGEST_DEFAULT_PATCH, 1, -1):
        tiles = height % patch == 0 and width % patch == 0
        if tiles and (height // patch) * (width // patch) >= FEWEST_DEFAULT_TOKENS:
            return patch
    return 1


def vit(
    inputs: InputSpec,
    *,
    patch: int | None = None,
    width: int = 128,
    heads: int = 4,
    depth: int = 4,
    dropout: float = 0.0,
) -> nn.Module:
    """A small pre-norm vision transformer; the patch defaults to 4 for 28x28 and 2 for 8x8 images."""
    _, height, breadth = require_image("vit", inputs)
    patch = default_patch(height, breadth) if patch is None else patch
    require_positive("vit", patch=patch, width=width, heads=heads, depth=depth)
    require_share("vit", dropout=dropout)
    if height % patch or breadth % patch:
        raise SpecError(
            f"vit: patches of {patch=} do not tile a {height}x{breadth} image: choose a divisor of both sides"
        )
    return ViT(inputs, patch, width, heads, depth, dropout)
