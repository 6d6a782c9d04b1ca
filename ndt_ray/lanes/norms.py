"""Norms of each layer's slice of an arena row, the same bits whatever the other lanes are."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ndt_ray import native
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
        self._ends = np.array([*starts, layout.width])
        self._scratch = np.zeros((4, layout.width), np.float32)

    def squares(self, grads: Tensor | None, before: Tensor | None, weights: Tensor, start: Tensor) -> Floats:
        """[4, layers] of one lane's rows [width]: gradient, update, weights, distance from the start.

        NaN for a gradient or update that there is none of. Squares are float32 and summed pairwise, right to 1e-6 (in
        float64 it takes three times as long); padding is 0 and adds nothing.
        """
        if native.active():
            grad, old = (None if row is None else _host(row) for row in (grads, before))
            return native.kernels().squares(grad, old, _host(weights), _host(start), self._ends)
        gradient, update, weight, moved = self._scratch
        row = _host(weights)
        with np.errstate(over="ignore", invalid="ignore"):  # a lane that diverges: inf
            np.subtract(row, row if before is None else _host(before), out=update)
            np.subtract(row, _host(start), out=moved)
            np.square(self._scratch[1::2], out=self._scratch[1::2])
            np.square(row, out=weight)
            if grads is not None:
                np.square(_host(grads), out=gradient)
            found = np.add.reduceat(self._scratch, self.starts, axis=1).astype(np.float64)
        found[[grads is None, before is None, False, False]] = np.nan
        return found


def _host(row: Tensor) -> NDArray[np.float32]:
    return row.detach().cpu().numpy()
