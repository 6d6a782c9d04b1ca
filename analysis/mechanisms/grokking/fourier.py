"""Fourier analysis on the integers modulo p: every frequency 1..p//2, none left out.

Basis and neuron fractions as in the public modular-addition workbench behind founding document S4; sums a + b - c as in
Nanda et al., arXiv:2301.05217 (whose published code stops one frequency short).
"""

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ndt_ray.errors import SpecError

Floats = NDArray[np.floating[Any]]


def frequencies(p: int) -> NDArray[np.int64]:
    """1..p//2: 1..56 for p = 113."""
    if p < 2:
        raise SpecError(f"there is no frequency below one cycle in two points, but got ({p=})")
    return np.arange(1, p // 2 + 1)


def row_frequencies(p: int) -> NDArray[np.int64]:
    """Frequency of each row of `basis(p)`: 0, 1, 1, 2, 2, …; for even p the last one, p / 2, stands alone."""
    return (np.arange(p) + 1) // 2


def basis(p: int) -> NDArray[np.float64]:
    """Orthonormal rows [p, p]: constant, then sine and cosine of 2πkx/p for k = 1..p//2 (cosine alone at p / 2)."""
    x, rows = np.arange(p), [np.ones(p)]
    for k in frequencies(p):
        angle = 2 * np.pi * ((k * x) % p) / p
        rows += [np.cos(angle)] if 2 * k == p else [np.sin(angle), np.cos(angle)]
    found = np.stack(rows)
    return cast(NDArray[np.float64], found / np.linalg.norm(found, axis=1, keepdims=True))


def band_energy(values: Floats, axis: int = 0) -> NDArray[np.float64]:
    """Energy per frequency 0..p//2 of `values` along `axis` (length p), summed over all other axes."""
    moved = np.moveaxis(np.asarray(values, dtype=np.float64), axis, 0)
    p = len(moved)
    rows = ((basis(p) @ moved.reshape(p, -1)) ** 2).sum(1)
    return np.bincount(row_frequencies(p), weights=rows, minlength=p // 2 + 1).astype(np.float64)


def shares(energy: Floats) -> NDArray[np.float64]:
    """Energies of frequencies 1..p//2 (`energy[1:]`) as shares of their sum; NaN where there is none."""
    rest = np.asarray(energy, dtype=np.float64)[1:]
    total = rest.sum()
    return rest / total if total > 0 else np.full_like(rest, np.nan)


def dominant_rows(embedding: Floats, threshold: float = 1.0) -> NDArray[np.int64]:
    """Rows of the basis whose coefficient vector in W_E [p, d] is longer than `threshold` (the workbench's rule)."""
    norms = np.linalg.norm(basis(len(embedding)) @ np.asarray(embedding, np.float64), axis=1)
    return np.flatnonzero(norms > threshold)


def gini(values: Floats) -> float:
    """Gini coefficient of non-negative values: 0 when all are equal, 1 - 1/n when one has all; NaN without any."""
    ordered = np.sort(np.asarray(values, dtype=np.float64).ravel())
    n, total = len(ordered), float(ordered.sum())
    if n == 0 or not total > 0:
        return float("nan")
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * total))


def sum_table(logits_abc: Floats) -> NDArray[np.float64]:
    """Mean centred logit by d = a + b - c mod p, [p], from logits [p, p, p] over (a, b, c)."""
    logits = np.asarray(logits_abc, dtype=np.float64)
    p = len(logits)
    centred = logits - logits.mean(2, keepdims=True)
    a, b, c = np.ogrid[:p, :p, :p]
    d = ((a + b - c) % p).ravel()
    return np.bincount(d, weights=centred.ravel(), minlength=p).astype(np.float64) / p**2


def sum_energy(logits_abc: Floats) -> NDArray[np.float64]:
    """Share of the centred logits' energy in cos and sin of w_k(a + b - c), for k = 1..p//2: their sum is the share
    that any function of a + b - c explains."""
    logits = np.asarray(logits_abc, dtype=np.float64)
    p = len(logits)
    total = float(((logits - logits.mean(2, keepdims=True)) ** 2).sum())
    if not total > 0:
        return np.full(p // 2, np.nan)
    return band_energy(sum_table(logits))[1:] * p**2 / total


def key_frequencies(energy_shares: Floats, threshold: float = 0.02) -> tuple[int, ...]:
    """Frequencies whose share of the logits' energy (`sum_energy`) exceeds `threshold`."""
    return tuple(int(k) + 1 for k in np.flatnonzero(np.asarray(energy_shares) > threshold))


def map_spectrum(maps: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(share of energy per frequency [n, p//2], energy without the constant [n]) of maps [n, p, p] over (a, b).

    Frequency k owns the products of rows {constant, sin k, cos k} with each other, but for constant × constant; what
    mixes two frequencies belongs to none. NaN for a constant map.
    """
    values = np.asarray(maps, dtype=np.float64)
    p = values.shape[-1]
    f = basis(p)
    power = (f @ values @ f.T) ** 2
    power[:, 0, 0] = 0.0
    total = power.sum((1, 2))
    of_row = row_frequencies(p)
    found = np.zeros((len(values), p // 2))
    for k in frequencies(p):
        own = np.flatnonzero((of_row == k) | (of_row == 0))
        found[:, k - 1] = power[:, own][:, :, own].sum((1, 2))
    scale = np.maximum((values**2).sum((1, 2)), np.finfo(np.float64).tiny)
    flat = total <= 1e-20 * scale  # rounding alone: 1e-10 of the amplitude
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.where(flat[:, None], np.nan, found / total[:, None])
    return found, np.where(flat, 0.0, total)


def dominant(fractions: Floats) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(frequency, its share) of the strongest frequency of each map [n, p//2]; 0 and NaN for constant maps."""
    known: NDArray[np.bool_] = ~np.asarray(np.isnan(fractions).any(1))
    filled = np.where(known[:, None], fractions, 0.0)
    best = filled.argmax(1)
    share = np.where(known, np.take_along_axis(filled, best[:, None], 1)[:, 0], np.nan)
    return np.where(known, best + 1, 0), share


def learned_frequencies(fractions: Floats, share: float = 0.7, neurons: float = 0.1) -> tuple[int, ...]:
    """Frequencies at which at least `neurons` of all neurons have a `share` or more of their energy."""
    frequency, top = dominant(fractions)
    counts = np.bincount(frequency[np.nan_to_num(top) >= share], minlength=fractions.shape[1] + 1)
    return tuple(int(k) for k in np.flatnonzero(counts >= max(neurons * len(fractions), 1)) if k > 0)


def query_key_spectrum(queries: Floats, keys: Floats) -> NDArray[np.float64]:
    """Share of the energy of scores Q Kᵀ (each [p, d]) in each frequency's own sine-cosine block, [p//2]."""
    p = len(queries)
    f = basis(p)
    power = (f @ np.asarray(queries, np.float64) @ (f @ np.asarray(keys, np.float64)).T) ** 2
    power[0, :] = power[:, 0] = 0.0
    total, of_row = power.sum(), row_frequencies(p)
    if not total > 0:
        return np.full(p // 2, np.nan)
    blocks = [power[np.ix_(of_row == k, of_row == k)].sum() for k in frequencies(p)]
    found: NDArray[np.float64] = np.array(blocks) / total
    return found


def neuron_phases(inputs: Floats, outputs: Floats, frequency: NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
    """(input phase, output phase, |mean resultant| of output - 2 × input) of neurons at their frequencies.

    `inputs` [p, n]: W_E W_V W_O W_in, for numbers reach the neurons through attention alone; `outputs` [n, p]:
    W_out W_U; `frequency` [n] in 1..p//2. Phases atan2(-sin, cos), so that a weight cos(wx + φ) has phase φ. A
    resultant near 1 says that neurons add the angles of a and b (the clock).
    """
    p = len(inputs)
    angle = 2 * np.pi * (np.arange(p)[:, None] * np.asarray(frequency)[None, :] % p) / p
    of_in = np.arctan2(-(np.sin(angle) * inputs).sum(0), (np.cos(angle) * inputs).sum(0))
    of_out = np.arctan2(-(np.sin(angle) * outputs.T).sum(0), (np.cos(angle) * outputs.T).sum(0))
    resultant = np.abs(np.exp(1j * (of_out - 2 * of_in)).mean()) if len(of_in) else np.array(np.nan)
    return of_in, of_out, resultant
