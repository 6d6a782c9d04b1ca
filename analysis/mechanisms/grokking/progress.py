"""Progress measures of Nanda et al. (arXiv:2301.05217): what the loss would be with, or without, key frequencies."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ndt_ray.analysis.mechanisms.grokking.fourier import Floats, frequencies, sum_energy
from ndt_ray.errors import SpecError

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class LogitScores:
    """Loss (nats, mean), accuracy and mean margin of the correct logit over the next best."""

    loss: float
    accuracy: float
    margin: float


def scores(logits_abc: Floats, pairs: Mask | None = None) -> LogitScores:
    """Scores of logits [p, p, p] over (a, b, c) against (a + b) mod p, on the pairs [p, p] that are True; default all.

    NaN where no pair is chosen.
    """
    logits = np.asarray(logits_abc, dtype=np.float64)
    p = len(logits)
    keep = np.ones((p, p), dtype=bool) if pairs is None else pairs
    if keep.shape != (p, p):
        raise SpecError(f"pairs must be [{p}, {p}], but are {list(keep.shape)}")
    rows = logits[keep]
    if not len(rows):
        return LogitScores(*[float("nan")] * 3)
    a, b = np.nonzero(keep)
    answer = (a + b) % p
    own = rows[np.arange(len(rows)), answer]
    top = rows.max(1)
    # The answer is left out of the sum, and log1p taken: a loss of 1e-20 keeps its digits.
    gaps = np.exp(rows - top[:, None])
    gaps[np.arange(len(rows)), answer] = 0.0
    others = gaps.sum(1)
    loss = np.where(own >= top, np.log1p(others), np.log(others + np.exp(own - top)) + top - own)
    rivals = rows.copy()
    rivals[np.arange(len(rows)), answer] = -np.inf
    margin = own - rivals.max(1)
    return LogitScores(float(loss.mean()), float((rows.argmax(1) == answer).mean()), float(margin.mean()))


def sum_directions(p: int, chosen: Iterable[int]) -> NDArray[np.float64]:
    """Orthonormal cos and sin of w_k(a + b) over all pairs, [p², 2 × frequencies]; SpecError for an unknown one."""
    known = set(frequencies(p).tolist())
    wanted = sorted(set(chosen))
    if strange := [k for k in wanted if k not in known]:
        raise SpecError(f"no frequency {strange[0]} modulo {p}: give some of 1..{p // 2}")
    total = np.add.outer(np.arange(p), np.arange(p)).ravel()
    columns: list[Any] = []
    for k in wanted:
        angle = 2 * np.pi * (k * total % p) / p
        columns += [np.cos(angle)] if 2 * k == p else [np.cos(angle), np.sin(angle)]
    if not columns:
        return np.zeros((p * p, 0))
    found: NDArray[np.float64] = np.stack(columns, 1)
    found /= np.linalg.norm(found, axis=0)
    return found


def projected(logits_abc: Floats, chosen: Iterable[int]) -> NDArray[np.float64]:
    """The part of logits [p, p, p] that is cos or sin of w_k(a + b), for the chosen k, as a function of the pair."""
    logits = np.asarray(logits_abc, dtype=np.float64)
    p = len(logits)
    directions = sum_directions(p, chosen)
    flat = logits.reshape(p * p, p)
    return (directions @ (directions.T @ flat)).reshape(p, p, p)


def restricted(logits_abc: Floats, chosen: Iterable[int]) -> NDArray[np.float64]:
    """Logits of which only the mean over pairs and the chosen frequencies' cos and sin of w_k(a + b) are left."""
    logits = np.asarray(logits_abc, dtype=np.float64)
    mean: NDArray[np.float64] = logits.mean((0, 1), keepdims=True)
    return projected(logits, chosen) + mean


def excluded(logits_abc: Floats, chosen: Iterable[int]) -> NDArray[np.float64]:
    """Logits without the chosen frequencies' cos and sin of w_k(a + b)."""
    return np.asarray(logits_abc, dtype=np.float64) - projected(logits_abc, chosen)


def explained(logits_abc: Floats, chosen: Iterable[int]) -> float:
    """Share of the centred logits' energy that cos and sin of w_k(a + b - c) of the chosen frequencies explain."""
    energy = sum_energy(logits_abc)
    return float(energy[[k - 1 for k in sorted(set(chosen))]].sum())
