"""Norms of each layer's slice of the arena's rows, the same bits whatever the other lanes are."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ndt_ray.lanes.arena import Layout

Floats = NDArray[np.float64]


class LayerNorms:
    """Sums of squares by layer: `layers` are the modules that own parameters, in order."""

    def __init__(self, layout: Layout) -> None:
        self.layers = list(layout.layers())
        starts = [slots[0].start for slots in layout.layers().values()]
        if starts != sorted(starts):
            raise ValueError(f"parameters of a layer do not lie together: {starts=}")
        self.starts = np.array(starts)
        self._scratch = np.empty(layout.width, np.float32)

    def squares(self, row: Tensor, less: Tensor | None = None) -> Floats:
        """[layers] float64 of one lane's row [width], or of its difference to another; padding is 0 and adds nothing.

        Squares are float32 and summed pairwise in it, right to 1e-6 (in float64: three times the time).
        """
        values = row.detach().cpu().numpy()
        with np.errstate(over="ignore", invalid="ignore"):  # a lane that diverges: inf
            if less is not None:
                values = np.subtract(values, less.detach().cpu().numpy(), out=self._scratch)
            return np.add.reduceat(np.square(values, out=self._scratch), self.starts).astype(np.float64)
