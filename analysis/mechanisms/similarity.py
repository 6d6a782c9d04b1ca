"""How alike two representations of the same stimuli are: debiased CKA and Procrustes distance.

Representations are `[P, d]` and `[P, e]`, a row a stimulus; neither measure sees rotations or a common scale.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ndt_ray.errors import SpecError
from ndt_ray.measurement.velocity import debiased_cka

Floats = NDArray[np.float64]

__all__ = ["cka_permutation_p", "debiased_cka", "procrustes_align", "procrustes_chance", "procrustes_distance"]


def _pair(x: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b):
        raise SpecError(f"representations must be of the same stimuli, [P, d] and [P, e], but got {a.shape}, {b.shape}")
    return a - a.mean(0), b - b.mean(0)


def cka_permutation_p(x: ArrayLike, y: ArrayLike, rng: np.random.Generator, draws: int = 200) -> float:
    """Share of permutations of the stimuli of `y` with at least this debiased CKA; NaN where one is constant."""
    a, b = _pair(x, y)
    left, right = _centred_u(a @ a.T), _centred_u(b @ b.T)
    if not (np.isfinite(left).all() and np.isfinite(right).all() and left.any() and right.any()):
        return float("nan")
    observed = float(np.vdot(left, right))
    null = np.empty(draws)
    for i in range(draws):
        order = rng.permutation(len(right))
        null[i] = np.vdot(left, right[np.ix_(order, order)])
    return float((1 + (null >= observed).sum()) / (1 + draws))


def _centred_u(kernel: Floats) -> Floats:
    """The U-centred kernel (Székely & Rizzo 2014), whose inner product is the unbiased HSIC."""
    n = len(kernel)
    if n < 4:
        return np.full_like(kernel, np.nan)
    kernel = kernel - np.diag(np.diag(kernel))
    rows = kernel.sum(1) / (n - 2)
    out: Floats = kernel - rows - rows[:, None] + kernel.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(out, 0.0)
    return out


def procrustes_distance(x: ArrayLike, y: ArrayLike) -> float:
    """Distance of two centred representations of unit norm after the best rotation: sqrt(2 - 2 ‖XᵀY‖_*).

    0 for representations equal up to rotation and scale, at most √2; different widths are as if padded by zeros
    (Williams et al. 2021). It is biased: independent representations come near each other where d approaches P, and
    `procrustes_chance` says how near. NaN where one is constant.
    """
    units = _units(x, y)
    return float("nan") if units is None else _after_rotation(*units)


def procrustes_chance(x: ArrayLike, y: ArrayLike, rng: np.random.Generator) -> float:
    """The Procrustes distance when the stimuli of `y` are permuted: that of two spectra without a common order.

    One permutation does: from one to another the distance of representations [256, 10] has an SD of .007, of
    [256, 128] one of .003. NaN where one is constant.
    """
    units = _units(x, y)
    return float("nan") if units is None else _after_rotation(units[0], rng.permutation(units[1]))


def _units(x: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats] | None:
    """Both centred and of unit norm, in at most P columns; None where one is constant."""
    a, b = _pair(x, y)
    norms = np.linalg.norm(a), np.linalg.norm(b)
    if not (np.isfinite(norms).all() and min(norms) > 0):
        return None
    return _compact(a / norms[0]), _compact(b / norms[1])


def _after_rotation(a: Floats, b: Floats) -> float:
    nuclear = np.linalg.svd(a.T @ b, compute_uv=False).sum()
    return float(np.sqrt(max(0.0, 2 - 2 * nuclear)))


def _compact(x: Floats) -> Floats:
    """The same inner products of stimuli from at most P columns."""
    if x.shape[1] <= x.shape[0]:
        return x
    left, singular, _ = np.linalg.svd(x, full_matrices=False)
    return np.asarray(left * singular)


def procrustes_align(source: ArrayLike, target: ArrayLike) -> "Alignment":
    """The rotation and scale that bring `source` [P, d] nearest to `target` [P, d], fitted on these stimuli.

    Apply it to held-out ones: on its own it fits noise. SpecError for different widths.
    """
    a, b = np.asarray(source, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if a.shape != b.shape:
        raise SpecError(f"only equal widths can be rotated onto each other, but got {a.shape} and {b.shape}")
    centre, goal = a.mean(0), b.mean(0)
    left, singular, right = np.linalg.svd((a - centre).T @ (b - goal))
    power = float(((a - centre) ** 2).sum())
    return Alignment(centre, goal, left @ right, float(singular.sum() / power) if power else 1.0)


class Alignment:
    """x -> (x - centre) · rotation · scale + goal."""

    def __init__(self, centre: Floats, goal: Floats, rotation: Floats, scale: float) -> None:
        self.centre, self.goal, self.rotation, self.scale = centre, goal, rotation, scale

    def __call__(self, x: ArrayLike) -> Floats:
        return np.asarray((np.asarray(x, dtype=np.float64) - self.centre) @ self.rotation * self.scale + self.goal)

    def __repr__(self) -> str:
        return f"Alignment({self.rotation.shape[0]} features, scale {self.scale:.3g})"


def pairwise(representations: dict[Any, Floats], procrustes: bool = True) -> dict[tuple[Any, Any], tuple[float, float]]:
    """(debiased CKA, Procrustes distance) of every two representations of the same stimuli; NaN where not wanted."""
    names = list(representations)
    found = {}
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            pair = representations[a], representations[b]
            found[a, b] = (debiased_cka(*pair), procrustes_distance(*pair) if procrustes else float("nan"))
    return found
