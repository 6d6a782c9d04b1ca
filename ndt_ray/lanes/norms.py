"""Norms of each layer's slice of an arena row, the same bits whatever the other lanes are."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ndt_ray import native
from ndt_ray.lanes.arena import Layout

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]


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

    def squares(
        self, grads: Tensor | None, before: Tensor | None, weights: Tensor, start: Tensor, lanes: Sequence[int]
    ) -> Floats:
        """[4, lanes, layers] of those lanes of `[S, width]`: gradient, update, weights, distance from the start.

        NaN for a gradient or update that there is none of. Squares are float32 and summed pairwise, right to 1e-6 (in
        float64 it takes three times as long); padding is 0 and adds nothing.
        """
        given = [None if rows is None else _host(rows) for rows in (grads, before, weights, start)]
        if native.active():
            grad, old, now, first = given
            assert now is not None and first is not None
            found = native.kernels().squares(grad, old, now, first, np.array(lanes, dtype=np.int64), self._ends)
            return np.asarray(found.transpose(1, 0, 2))
        return np.stack([self._of(*(None if rows is None else rows[lane] for rows in given)) for lane in lanes], 1)

    def _of(self, grad: Singles | None, before: Singles | None, row: Singles | None, start: Singles | None) -> Floats:
        assert row is not None and start is not None
        gradient, update, weight, moved = self._scratch
        with np.errstate(over="ignore", invalid="ignore"):  # a lane that diverges: inf
            np.subtract(row, row if before is None else before, out=update)
            np.subtract(row, start, out=moved)
            np.square(self._scratch[1::2], out=self._scratch[1::2])
            np.square(row, out=weight)
            if grad is not None:
                np.square(grad, out=gradient)
            found = np.add.reduceat(self._scratch, self.starts, axis=1).astype(np.float64)
        found[[grad is None, before is None, False, False]] = np.nan
        return found


def _host(rows: Tensor) -> Singles:
    return rows.detach().cpu().numpy()
