"""How good a dictionary is: what it explains on rows it has not seen, and whether another seed finds the same."""

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.optimize import linear_sum_assignment
from scipy.stats import beta, rankdata
from torch import Tensor

from ndt_ray.analysis.mechanisms.sae.model import Saes
from ndt_ray.analysis.nulls import generator

Floats = NDArray[np.floating[Any]]

BLOCKS = 16
"""Blocks of stimuli that jackknife errors leave out one by one."""


def residuals(rows: Floats, made: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(squared error, squared distance from the mean row) of each stimulus, [n], of rows [n, per stimulus, d]."""
    x, y = np.asarray(rows, np.float64), np.asarray(made, np.float64)
    return ((x - y) ** 2).sum((1, 2)), ((x - x.mean((0, 1))) ** 2).sum((1, 2))


def explained(error: Floats, total: Floats) -> float:
    """1 - sum of squared errors / sum of squared distances from the mean; NaN where nothing varies."""
    return float(1 - np.sum(error) / np.sum(total)) if np.sum(total) > 0 else float("nan")


def jackknife(values: NDArray[np.float64]) -> float:
    """Standard error from the values with each block left out."""
    n = len(values)
    return float(np.sqrt((n - 1) / n * ((values - values.mean()) ** 2).sum())) if n > 1 else float("nan")


def without_blocks(error: Floats, total: Floats, blocks: int = BLOCKS) -> NDArray[np.float64]:
    """`explained` without each block of stimuli; stimulus i belongs to block i mod `blocks`."""
    of = np.arange(len(error)) % min(blocks, len(error))
    e, t = (np.bincount(of, weights=np.asarray(v, np.float64)) for v in (error, total))
    with np.errstate(invalid="ignore", divide="ignore"):
        return cast(NDArray[np.float64], 1 - (e.sum() - e) / (t.sum() - t))


def held_out(saes: Saes, rows: Tensor) -> list[dict[str, float]]:
    """For each lane, on rows [S, n, d] it was not trained on: explained variance, mean squared error of normalised
    rows, L0 (active features a row), share of dead features, shrinkage (norm of what is made / norm of the rows)."""
    with torch.no_grad():
        x = saes.normalised(rows)
        features = saes.encode(x)
        made = saes.decode(features)
        error = ((x - made).double() ** 2).sum((1, 2))
        total = ((x - x.mean(1, keepdim=True)).double() ** 2).sum((1, 2))
        active = features > 0
        shrunk = made.norm(dim=-1).mean(1) / x.norm(dim=-1).mean(1).clamp_min(1e-12)
    return [
        {
            "explained_variance": float(1 - error[s] / total[s]) if total[s] > 0 else float("nan"),
            "mse": float(error[s]) / x[s].numel(),
            "l0": float(active[s].float().sum(-1).mean()),
            "dead": float((~active[s].any(0)).float().mean()),
            "shrinkage": float(shrunk[s]),
        }
        for s in range(len(saes))
    ]


def recovered(intact: float, spliced: float, zeroed: float, least: float = 1e-3) -> float | None:
    """Share of the loss recovered, (L_zero - L_sae) / (L_zero - L_intact); null where taking the layer away costs
    under `least` nats, so that there is nothing to recover."""
    cost = zeroed - intact
    return (zeroed - spliced) / cost if np.isfinite(cost) and cost >= least else None


def mcc(one: Floats, other: Floats) -> float:
    """Mean |cosine| of atoms [F, d] and [G, d] matched one to one (Hungarian); atoms left over by the shorter
    dictionary do not count. NaN where one is empty."""
    if not len(one) or not len(other):
        return float("nan")
    return float(np.mean(_matched(np.abs(_cosines(one, other)))[1]))


def pairwise_mcc(dictionaries: list[Floats]) -> float:
    """Mean of `mcc` over all pairs: consistency across seeds (PW-MCC, arXiv:2505.20254); NaN under two."""
    pairs = [(i, j) for i in range(len(dictionaries)) for j in range(i)]
    return float(np.mean([mcc(dictionaries[i], dictionaries[j]) for i, j in pairs])) if pairs else float("nan")


def chance_mcc(features: int, others: int, d: int, draws: int = 3) -> float:
    """`mcc` of random dictionaries of these sizes: mean over draws, a function of the sizes alone."""
    rng = generator("chance mcc", str(features), str(others), str(d))
    pairs = [(rng.standard_normal((features, d)), rng.standard_normal((others, d))) for _ in range(draws)]
    return float(np.mean([mcc(one, other) for one, other in pairs]))


def feature_f1(truth: Floats, found: Floats, atoms: Floats, true_atoms: Floats) -> float:
    """Mean F1 of "is active" of matched features: truth [n, G], found [n, F], matched by |cosine| of their atoms."""
    (rows, columns), _ = _matched(np.abs(_cosines(atoms, true_atoms)))
    active, wanted = np.asarray(found)[:, rows] > 0, np.asarray(truth)[:, columns] > 0
    hits = (active & wanted).sum(0)
    total = active.sum(0) + wanted.sum(0)
    return float(np.mean(np.where(total > 0, 2 * hits / np.maximum(total, 1), 0.0)))


def chance_max_cosine(d: int, atoms: int) -> float:
    """Expected largest cosine of a random direction in `d` dimensions to `atoms` random ones.

    0.088 for 16,384 in 2,048 dimensions (a simulation of 50 directions gave 0.0868). Exact: the cosine t has
    t² ~ Beta(1/2, (d - 1)/2), and E max = ∫ 1 - F^n - [t < 0] dt.
    """
    if d < 2:
        return 1.0 - 2.0**-atoms * 2 if d == 1 else float("nan")
    edge = min(1.0, 12 / d**0.5)
    up = quad(lambda t: 1 - _below(t, d) ** atoms, 0, edge, limit=200)[0]
    down = quad(lambda t: _below(t, d) ** atoms, -edge, 0, limit=200)[0]
    return float(up - down)


def chance_over(level: float, d: int, atoms: int) -> float:
    """Share of random directions in `d` dimensions with a cosine over `level` to the nearest of `atoms` random ones."""
    return 1 - _below(level, d) ** atoms if d > 0 else float("nan")


def _below(t: float, d: int) -> float:
    """P(cosine of two random directions in `d` dimensions <= t), -1 <= t < 1."""
    if d == 1:
        return 0.5
    half = 0.5 * float(beta(0.5, (d - 1) / 2).cdf(t * t))
    return 0.5 + half if t >= 0 else 0.5 - half


def permuted_spearman(one: Floats, other: Floats, draws: int = 199) -> float:
    """95 % quantile of the rank correlation of two vectors with the entries of one permuted; NaN for a constant one."""
    a, b = (rankdata(v) - (len(v) + 1) / 2 for v in (one, other))
    size = np.linalg.norm(a) * np.linalg.norm(b)
    if not size > 0:
        return float("nan")
    shuffled = generator("permuted spearman", str(len(a))).permuted(np.tile(b, (draws, 1)), axis=1)
    return float(np.quantile(shuffled @ a / size, 0.95))


def max_cosines(source: Floats, target: Floats) -> NDArray[np.float64]:
    """The largest cosine of each source atom [m, d] to any target atom [G, d], [m]."""
    return cast(NDArray[np.float64], _cosines(source, target).max(1))


def matched_correlation(
    one: Floats, other: Floats, key: tuple[str, ...], *, top: int = 64, draws: int = 19
) -> tuple[float, float, float]:
    """(mean correlation of matched features, its mean and its 95 % quantile with the stimuli of one side permuted).

    Feature activations [n stimuli, F] and [n, G] of the same stimuli; the `top` of each by variance, matched one to
    one by correlation. NaN where nothing varies.
    """
    a, b = (_standardised(v, top) for v in (one, other))
    if not a.shape[1] or not b.shape[1]:
        return (float("nan"),) * 3
    found = float(np.mean(_matched(a.T @ b)[1]))
    rng = generator("matched correlation", *key)
    null = [float(np.mean(_matched(a.T @ b[rng.permutation(len(b))])[1])) for _ in range(draws)]
    return found, float(np.mean(null)), float(np.quantile(null, 0.95))


def _standardised(values: Floats, top: int) -> NDArray[np.float64]:
    """Unit columns [n, up to `top`]: those of largest variance, centred."""
    x = np.asarray(values, np.float64)
    x = x - x.mean(0)
    norm = np.linalg.norm(x, axis=0)
    best = np.argsort(-norm, kind="stable")[:top]
    best = best[norm[best] > 1e-9]
    return cast(NDArray[np.float64], x[:, best] / norm[best])


def _cosines(one: Floats, other: Floats) -> NDArray[np.float64]:
    a, b = (np.asarray(v, np.float64) for v in (one, other))
    a, b = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in (a, b))
    return cast(NDArray[np.float64], a @ b.T)


def _matched(gain: NDArray[np.float64]) -> tuple[tuple[NDArray[Any], NDArray[Any]], NDArray[np.float64]]:
    rows, columns = linear_sum_assignment(gain, maximize=True)
    return (rows, columns), gain[rows, columns]
