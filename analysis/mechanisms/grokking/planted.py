"""A modular transformer whose solution is known: weights set by hand that add angles at chosen frequencies.

Neurons compute ReLU(cos(wa - φ) + cos(wb - φ)) for equally spaced φ; their second harmonic in φ is proportional to
cos(w(a + b) - 2φ), from which the unembedding reads cos(w(a + b - c)): the mechanism that Nanda et al. (2301.05217)
found in trained networks, without the training.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ndt_ray.errors import SpecError
from ndt_ray.models.modular import ModularBlock, ModularTransformer


def plant(
    model: ModularTransformer, chosen: Sequence[int], *, phases: int | None = None, strength: float = 200.0
) -> None:
    """Overwrite the weights of a network of one block with the solution at these frequencies.

    `phases` neurons a frequency (default: as many as there are for each); the others stay silent. SpecError where the
    network is too small for it.
    """
    p, width = model.unembed.out_features, model.unembed.in_features
    block = model.blocks[0]
    assert isinstance(block, ModularBlock)
    n = len(chosen)
    phases = phases or block.linear1.out_features // max(n, 1)
    if len(model.blocks) != 1 or 4 * n > width or phases * n > block.linear1.out_features or phases < 5:
        raise SpecError(
            f"{n} frequencies of {phases} phases (5 or more) need one block, a width of {4 * n} and {phases * n}"
            f" neurons, but the network has {len(model.blocks)} blocks, width {width} and"
            f" {block.linear1.out_features} neurons"
        )
    w = 2 * np.pi * torch.tensor(list(chosen), dtype=torch.float64) / p
    phi = 2 * np.pi * torch.arange(phases, dtype=torch.float64) / phases
    circle = _waves(torch.outer(torch.arange(p, dtype=torch.float64), w))  # [p, 2n]
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.embedding.weight[:p, : 2 * n] = circle.to(model.embedding.weight)
        # Attention is uniform; what it reads from the residual it adds beside it, where only '=' is looked at.
        own = torch.arange(2 * n)
        block.self_attn.v_proj.weight[own, own] = 1.0
        block.self_attn.out_proj.weight[own + 2 * n, own] = 1.0
        for i in range(n):
            rows = slice(i * phases, (i + 1) * phases)
            angles = _waves(phi[:, None])  # cos φ, sin φ
            block.linear1.weight[rows, 2 * n + i] = angles[:, 0].to(weight)
            block.linear1.weight[rows, 3 * n + i] = angles[:, 1].to(weight)
            twice = _waves(2 * phi[:, None])
            block.linear2.weight[i, rows] = twice[:, 0].to(weight)
            block.linear2.weight[n + i, rows] = twice[:, 1].to(weight)
        model.unembed.weight[:, : 2 * n] = (strength / phases * circle).to(weight)


def _waves(angle: Tensor) -> Tensor:
    """[m, n] -> cosines, then sines [m, 2n]."""
    return torch.cat([angle.cos(), angle.sin()], dim=1)
