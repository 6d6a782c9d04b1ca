"""How a layer's units differ in what they take in: orthogonality of weight rows, orientation of kernels.

Rows are `[C, n]`: an output channel's kernel over its C_in k² inputs, or a neuron's incoming weights.
"""

import functools
import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ndt_ray.errors import SpecError

Floats = NDArray[np.float64]
SMALLEST_GABOR = 5
"""Side of the smallest kernel that a Gabor function can be fitted to: at 3 x 3 it fits noise."""


def rows_of(weight: ArrayLike) -> Floats:
    """Weights `[out, in, …]` as rows `[C, n]`, without those that are zero or not finite."""
    found = np.asarray(weight, dtype=np.float64)
    if found.ndim < 2:
        raise SpecError(f"a weight of a layer has rows, but got shape {found.shape}")
    found = found.reshape(len(found), -1)
    norms = np.linalg.norm(found, axis=1)
    return np.asarray(found[np.isfinite(norms) & (norms > 0)])


def filter_similarity(weight: ArrayLike) -> Floats:
    """Cosines of all pairs of rows, `[C, C]`, for rows that are not zero."""
    rows = rows_of(weight)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(np.clip(unit @ unit.T, -1.0, 1.0))


def off_diagonal(similarity: Floats) -> Floats:
    """Each pair once; NaN-free, empty for under two rows."""
    return similarity[np.triu_indices(len(similarity), 1)]


def welch_floor(count: int, size: int) -> float:
    """Smallest mean squared cosine that `count` rows of `size` numbers can have: max(0, (C - n) / (n (C - 1)))."""
    return max(0.0, (count - size) / (size * (count - 1))) if count > 1 else float("nan")


def random_cosine(size: int) -> float:
    """E|cos| of two independent Gaussian rows: Γ(n/2) / (√π Γ((n + 1)/2))."""
    return math.exp(math.lgamma(size / 2) - math.lgamma((size + 1) / 2)) / math.sqrt(math.pi)


def random_cosine_sd(size: int, count: int) -> float:
    """SD of the mean |cos| over all pairs of `count` Gaussian rows; cosines of different pairs are uncorrelated."""
    pairs = count * (count - 1) / 2
    return math.sqrt(max(0.0, 1 / size - random_cosine(size) ** 2) / pairs) if pairs else float("nan")


def random_squared_sd(size: int, count: int) -> float:
    """SD of the mean cos² over all pairs: each has variance 2 (n - 1) / (n² (n + 2))."""
    pairs = count * (count - 1) / 2
    return math.sqrt(2 * (size - 1) / (size**2 * (size + 2)) / pairs) if pairs else float("nan")


def orthogonality(weight: ArrayLike) -> dict[str, tuple[float, float, float]]:
    """metric -> (value, value of random Gaussian rows, SD of that); NaN for under two rows that are not zero.

    `filter_cosine`: mean |cos| over pairs. `filter_squared_cosine`: mean cos², which is the orthogonality defect
    ‖ŴŴᵀ - I‖² / (C (C - 1)). `filter_welch_excess`: the same less the Welch floor, 0 for rows as orthogonal as
    so many can be. The founding study's mean |cos| has no such floor in closed form.
    """
    rows = rows_of(weight)
    count, size = rows.shape
    cosines = off_diagonal(filter_similarity(weight)) if count > 1 else np.full(1, np.nan)
    squared, floor = float((cosines**2).mean()), welch_floor(count, size)
    return {
        "filter_cosine": (float(np.abs(cosines).mean()), random_cosine(size), random_cosine_sd(size, count)),
        "filter_squared_cosine": (squared, 1 / size, random_squared_sd(size, count)),
        "filter_welch_excess": (squared - floor, 1 / size - floor, random_squared_sd(size, count)),
    }


def spatial(weight: ArrayLike) -> Floats | None:
    """Kernels `[C, k, k]` by the input channel of the largest energy; None for kernels of side 1 or no kernels."""
    found = np.asarray(weight, dtype=np.float64)
    if found.ndim != 4 or min(found.shape[2:]) < 2:
        return None
    energy = (found**2).sum((2, 3))
    kernels = found[np.arange(len(found)), energy.argmax(1)]
    return np.asarray(kernels[np.isfinite(kernels).all((1, 2)) & (np.abs(kernels).max((1, 2)) > 0)])


def orientation_selectivity(kernels: Floats) -> Floats:
    """How much of the spectrum has one orientation, `[C]` in 0..1: |Σ P e^{2iθ}| / Σ P, without the mean.

    P: power of the 2-D Fourier transform (padded to 16 x 16), θ: direction of the frequency. NaN for flat kernels.
    """
    centred = kernels - kernels.mean((1, 2), keepdims=True)
    power = np.abs(np.fft.fft2(centred, s=(16, 16))) ** 2
    fy, fx = np.meshgrid(np.fft.fftfreq(16), np.fft.fftfreq(16), indexing="ij")
    inside = (np.hypot(fx, fy) > 0) & (np.hypot(fx, fy) < 0.5)  # a disc: corners would favour diagonals
    weight = np.where(inside, power, 0.0)
    total = weight.sum((1, 2))
    turned = np.abs((weight * np.exp(2j * np.arctan2(fy, fx))).sum((1, 2)))
    return np.where(total > 1e-12 * (kernels**2).sum((1, 2)), turned / np.where(total > 0, total, 1), np.nan)


def gabor_fit(kernels: Floats) -> Floats:
    """R² of the best Gabor function on a grid, `[C]`, amplitude and phase fitted; kernels are taken without mean."""
    side = kernels.shape[1]
    if side < SMALLEST_GABOR:
        raise SpecError(f"a Gabor function needs kernels of side {SMALLEST_GABOR} or more, but got {side}")
    flat = (kernels - kernels.mean((1, 2), keepdims=True)).reshape(len(kernels), -1)
    energy = (flat**2).sum(1)
    first, second = _gabors(side)
    explained = (flat @ first.T) ** 2 + (flat @ second.T) ** 2
    return np.where(energy > 0, explained.max(1) / np.where(energy > 0, energy, 1), np.nan)


def against_shuffled(kernels: Floats, score: Any, rng: np.random.Generator, draws: int) -> tuple[Floats, Floats]:
    """(scores `[C]`, mean scores of `draws` shufflings of each kernel's pixels `[draws]`)."""
    count, side = len(kernels), kernels.shape[1:]
    flat = kernels.reshape(count, -1)
    null = [float(np.nanmean(score(rng.permuted(flat, axis=1).reshape(count, *side)))) for _ in range(draws)]
    return score(kernels), np.array(null)


@functools.lru_cache(maxsize=8)
def _gabors(side: int) -> tuple[Floats, Floats]:
    """Orthonormal pairs (even and odd carrier under one envelope, without mean): two arrays `[grid, side²]`."""
    y, x = np.meshgrid(np.arange(side) - (side - 1) / 2, np.arange(side) - (side - 1) / 2, indexing="ij")
    first, second = [], []
    centres = (-side / 6, 0.0, side / 6)
    for theta in np.arange(12) * np.pi / 12:
        for wavelength in side * np.array([0.4, 0.6, 0.9, 1.4]):
            for sigma in side * np.array([0.15, 0.25, 0.4]):
                for stretch in (0.6, 1.0):
                    for cy in centres:
                        for cx in centres:
                            u = (x - cx) * np.cos(theta) + (y - cy) * np.sin(theta)
                            v = -(x - cx) * np.sin(theta) + (y - cy) * np.cos(theta)
                            envelope = np.exp(-(u**2 + (stretch * v) ** 2) / (2 * sigma**2))
                            pair = np.stack([envelope * wave(2 * np.pi * u / wavelength) for wave in (np.cos, np.sin)])
                            pair = pair.reshape(2, -1)
                            basis, _ = np.linalg.qr((pair - pair.mean(1, keepdims=True)).T)
                            first.append(basis[:, 0])
                            second.append(basis[:, 1])
    return np.array(first), np.array(second)
