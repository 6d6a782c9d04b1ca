"""Norms of each layer's slice of an arena row, in float64, the same bits whatever the other lanes are."""

import numpy as np
import torch
from torch import Tensor

from ndt_ray.lanes.arena import Layout


class LayerNorms:
    """Sums of squares by layer: `layers` are the modules that own parameters, in order."""

    def __init__(self, layout: Layout) -> None:
        self.layers = list(layout.layers())
        starts = [slots[0].start for slots in layout.layers().values()]
        if starts != sorted(starts):
            raise ValueError(f"parameters of a layer do not lie together: {starts=}")
        self.starts = np.array(starts)

    def squares(self, row: Tensor) -> np.ndarray:
        """[layers] float64 of one lane's row [width]; padding is zero and adds nothing."""
        wide = row.detach().to("cpu", torch.float64).numpy()
        return np.add.reduceat(np.square(wide), self.starts)
