"""Structure of p × p maps at several scales: power at low frequencies, what survives coarsening, edges, regions.

Formulas as in the prototype behind founding document S4 (reference to its workbench in `fourier`); `fft_ratio_no_dc`
and `gradient_magnitude` are the pair it recommends to track.
"""

from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional as F

from ndt_ray.analysis.mechanisms.grokking.fourier import Floats, basis, row_frequencies
from ndt_ray.errors import SpecError

Structure = Literal["low_frequency", "mixed", "high_frequency", "flat"]

RADIUS = 0.125
"""Of the low-frequency disc, as a share of the map's side: 14 of 113."""
COARSE = 14
"""Side of the grid for variance preservation."""


def fft_ratio(maps: Floats, *, dc: bool = False, radius: float = RADIUS) -> NDArray[np.float64]:
    """Share of the power of maps [n, h, w] at frequencies within `radius` × side of zero, [n].

    Without the constant (`dc=False`, recommended): 0 for a constant map, and adding an offset changes nothing. With it
    an offset pushes the ratio to 1.
    """
    values = _maps(maps)
    h, w = values.shape[1:]
    # The real basis holds the power of ±k together, and the disc is symmetric: the ratio is that of the complex FFT.
    power = (basis(h) @ values @ basis(w).T) ** 2
    total_squares = power.sum((1, 2))
    if not dc:
        power[:, 0, 0] = 0.0
    y, x = np.meshgrid(row_frequencies(h), row_frequencies(w), indexing="ij")
    mask = y**2 + x**2 <= int(min(h, w) * radius) ** 2
    total = power.sum((1, 2))
    # Rounding leaves 1e-32 of the squared amplitude in a constant map: that is no pattern.
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 1e-24 * total_squares, power[:, mask].sum(1) / total, 0.0)


def variance_preservation(maps: Floats, side: int = COARSE) -> NDArray[np.float64]:
    """Variance left in maps [n, h, w] after bilinear reduction to side × side and back, as a share; 0 where flat."""
    values = _maps(maps)
    x = torch.from_numpy(values)[:, None]
    small = F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
    back = F.interpolate(small, size=values.shape[1:], mode="bilinear", align_corners=False)
    before, after = values.var((1, 2), ddof=1), back[:, 0].numpy().var((1, 2), ddof=1)
    return np.where(_flat(values), 0.0, after / np.where(before > 0, before, 1.0))


def gradient_magnitude(maps: Floats) -> NDArray[np.float64]:
    """Mean absolute difference of neighbours of maps [n, h, w], averaged over the two axes, [n]."""
    values = _maps(maps)
    across = np.abs(np.diff(values, axis=2)).mean((1, 2))
    down = np.abs(np.diff(values, axis=1)).mean((1, 2))
    return cast(NDArray[np.float64], (across + down) / 2)


def relative_gradient(maps: Floats) -> NDArray[np.float64]:
    """`gradient_magnitude` / (max - min) of each map: comparable between units of any scale; 0 where flat."""
    values = _maps(maps)
    spread = values.max((1, 2)) - values.min((1, 2))
    return np.where(_flat(values), 0.0, gradient_magnitude(values) / np.where(spread > 0, spread, 1.0))


def coarseness(fractions: Floats, up_to: int = 3) -> NDArray[np.float64]:
    """Share of a map's energy in its modular frequencies 1..`up_to`, [n], from fractions [n, p//2]; blob from 0.7,
    plaid below 0.5, in the workbench's words."""
    return cast(NDArray[np.float64], np.asarray(fractions, np.float64)[:, :up_to].sum(1))


def structure(
    fft: float, gradient: float, *, low: float = 0.1, high: float = 0.6, edges: float = 0.2
) -> Structure | None:
    """Type of a map from `fft_ratio_no_dc` and its gradient (of values that span about 1).

    high ratio, few edges: low_frequency (large flat regions); low ratio, many edges: high_frequency (fine); anything
    else: mixed. None where a number is missing, flat where both are 0.
    """
    if np.isnan(fft) or np.isnan(gradient):
        return None
    if fft == 0 and gradient == 0:
        return "flat"
    if fft >= high and gradient < edges:
        return "low_frequency"
    if fft <= low and gradient >= edges:
        return "high_frequency"
    return "mixed"


WORDS: dict[str, str] = {
    "low_frequency": "Low-freq, smooth uniform regions",
    "mixed": "Mixed",
    "high_frequency": "High-freq, variable intensity",
    "flat": "Flat",
}


def head_labels(fft: Floats, gradient: Floats) -> list[str]:
    """Labels of a network's heads; the high-frequency head with the largest gradient of all has the most edges."""
    kinds = [structure(float(f), float(g)) for f, g in zip(fft, gradient, strict=True)]
    labels = ["Unknown" if kind is None else WORDS[kind] for kind in kinds]
    if len(kinds) > 1 and kinds[most := int(np.nan_to_num(gradient).argmax())] == "high_frequency":
        labels[most] = "High-freq, most edge variation"
    return labels


def downsampled(maps: Floats, side: int = 28) -> NDArray[np.float32]:
    """Bilinear reduction of maps [n, h, w] to [n, side, side] (the workbench's display maps: 28 or 56)."""
    x = torch.from_numpy(_maps(maps))[:, None]
    small = F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
    return cast(NDArray[np.float32], small[:, 0].numpy().astype(np.float32))


def pooled(maps: Floats, factor: int) -> NDArray[np.float32]:
    """Average pooling of maps [n, h, w] by `factor`; a remainder at the edge is dropped."""
    x = F.avg_pool2d(torch.from_numpy(_maps(maps))[:, None], factor)
    return cast(NDArray[np.float32], x[:, 0].numpy().astype(np.float32))


def blobs(maps: Floats, *, side: int = 28, threshold: float = 0.5, min_area: int = 4, wrap: bool = True) -> Floats:
    """(count, share of the area, share of the largest) of connected regions above threshold at low resolution, [n, 3].

    The threshold lies at that share of each map's range; regions below `min_area` cells do not count; with `wrap` the
    map is a torus, as pairs modulo p are. Zeros for a flat map.
    """
    values = _maps(maps)
    small = values if values.shape[1:] == (side, side) else downsampled(values, side).astype(np.float64)
    flat, found = _flat(small), np.zeros((len(small), 3))
    for i, (image, empty) in enumerate(zip(small, flat, strict=True)):
        if empty:
            continue
        low, top = image.min(), image.max()
        areas = _regions(image > low + threshold * (top - low), wrap)
        areas = areas[areas >= min_area]
        if len(areas):
            found[i] = len(areas), areas.sum() / image.size, areas.max() / image.size
    return found


def _regions(mask: NDArray[np.bool_], wrap: bool) -> NDArray[np.int64]:
    """Areas of the 4-connected regions of a mask."""
    labels, count = ndimage.label(mask)
    parent = np.arange(count + 1)

    def root(i: int) -> int:
        while parent[i] != i:
            i = int(parent[i])
        return i

    for first, last in ((labels[0], labels[-1]), (labels[:, 0], labels[:, -1])) if wrap else ():
        for one, other in zip(first, last, strict=True):
            if one and other:
                parent[root(int(one))] = root(int(other))
    merged = np.array([root(i) for i in range(count + 1)])[labels]
    areas = np.bincount(merged.ravel(), minlength=count + 1)[1:]
    return areas[areas > 0]


def _maps(maps: Floats) -> NDArray[np.float64]:
    values = np.asarray(maps, dtype=np.float64)
    if values.ndim != 3:
        raise SpecError(f"maps must be [n, height, width], but are {list(values.shape)}")
    return values


def _flat(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    spread = values.max((1, 2)) - values.min((1, 2))
    return cast(NDArray[np.bool_], spread <= 1e-12 * np.abs(values).max((1, 2)))
