"""Variance components of crossed random effects: which seed makes trials of one cell differ.

y = mean + sum over sources of (its level's effect) + rest. Quadratic estimates, reweighted a few times (iterated
MINQUE, Rao 1971: REML without its bounds; the ANOVA estimates where the design is balanced), for any missing trials.
Intervals by inverting the estimate's own distribution: the smallest and largest variance of a source under which the
estimate is not in a 2.5 % tail, the other components at their estimates, normal effects. p by permuting values within
combinations of the other sources.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
REST = "rest"
DRAWS = 2000
ROUNDS = 4
"""Of reweighting; a balanced design needs none, and 20 of 25 trials moved by 1-5 % at most after three."""


@dataclass(frozen=True)
class Component:
    """A variance with its interval; NaN where it cannot be estimated. p: NaN where nothing can be permuted."""

    source: str
    levels: int
    variance: float
    lo: float = math.nan
    hi: float = math.nan
    p: float = math.nan


def grouped_sources(codes: dict[str, Ints]) -> dict[str, Ints]:
    """Sources that vary; those that always vary together as one, their names joined by +."""
    names: dict[tuple[int, ...], list[str]] = {}
    for name, values in codes.items():
        _, own = np.unique(values, return_inverse=True)
        seen: dict[int, int] = {}
        canonical = tuple(seen.setdefault(int(c), len(seen)) for c in own)  # the same partition, whatever its labels
        if len(seen) > 1:
            names.setdefault(canonical, []).append(name)
    return {"+".join(own): np.array(code, np.int64) for code, own in names.items()}


def components(y: Floats, codes: dict[str, Ints], rng: np.random.Generator) -> list[Component] | None:
    """One component for each source and the rest; None where the design cannot tell them apart.

    `y` [trials]; `codes`: level of each trial, by source (of `grouped_sources`).
    """
    n = len(y)
    if n < 3 or not codes:
        return None
    incidence = {name: (code[:, None] == np.unique(code)[None, :]).astype(np.float64) for name, code in codes.items()}
    incidence[REST] = np.eye(n)
    unbiased = _quadratic_forms([z @ z.T for z in incidence.values()], y)
    if unbiased is None:
        return None
    found = np.array([y @ b @ y for b in unbiased])
    # Those draws serve every candidate variance: the estimate is then a smooth function of it.
    noise = {name: rng.standard_normal((DRAWS, z.shape[1])) @ z.T for name, z in incidence.items()}
    rows = []
    for k, name in enumerate(incidence):
        others = sum(math.sqrt(max(found[j], 0.0)) * noise[other] for j, other in enumerate(incidence) if other != name)
        lo, hi = _inverted(float(found[k]), unbiased[k], np.asarray(others), noise[name])
        p = math.nan if name == REST else _permuted(y, unbiased[k], name, codes, rng)
        rows.append(Component(name, incidence[name].shape[1], float(found[k]), lo, hi, p))
    return rows


def _quadratic_forms(covariances: list[Floats], y: Floats) -> list[Floats] | None:
    """B_k with E[y' B_k y] = variance k, weighted by what the last round found; None where they are not unique."""
    n, floor = len(y), 1e-3 * float(np.var(y)) or 1.0
    ones = np.ones((n, 1))
    guess = np.ones(len(covariances))
    unbiased: list[Floats] = []
    for _ in range(ROUNDS):
        inverse = np.linalg.inv(sum((g * v for g, v in zip(guess, covariances, strict=True)), np.zeros((n, n))))
        seen = inverse @ ones
        project = inverse - seen @ seen.T / float((ones.T @ seen)[0, 0])
        forms = [project @ v @ project for v in covariances]
        inner = np.array([[float((a * v).sum()) for v in covariances] for a in forms])
        if np.linalg.matrix_rank(inner, tol=1e-8 * float(np.abs(inner).max())) < len(forms):
            return None
        weights = np.linalg.inv(inner)
        unbiased = [np.tensordot(row, np.array(forms), axes=1) for row in weights]
        guess = np.maximum([y @ b @ y for b in unbiased], 0.0)
        guess[-1] = max(guess[-1], floor)
    return unbiased


def total(y: Floats) -> Component:
    """The variance between trials, with its chi-square interval."""
    n = len(y)
    if n < 2:
        return Component("total", n, math.nan)
    variance = float(np.var(y, ddof=1))
    low, high = chi2.ppf((0.975, 0.025), n - 1)
    return Component("total", n, variance, (n - 1) * variance / low, (n - 1) * variance / high)


def _inverted(found: float, form: Floats, others: Floats, own: Floats, tail: float = 0.025) -> tuple[float, float]:
    """Ends of the interval of one component."""
    constant = ((others @ form) * others).sum(axis=1)
    cross = 2 * ((others @ form) * own).sum(axis=1)
    square = ((own @ form) * own).sum(axis=1)

    def above(variance: float) -> float:
        return float(np.mean(constant + cross * math.sqrt(variance) + square * variance >= found))

    top = max(float(np.mean(np.abs(constant))), abs(found), 1e-300)
    while above(top) < 1 - tail and top < 1e12 * max(abs(found), 1e-300):
        top *= 2
    lo = 0.0 if above(0.0) >= tail else _bisected(above, tail, top)
    return lo, _bisected(above, 1 - tail, top) if above(0.0) < 1 - tail else 0.0


def _bisected(above: Callable[[float], float], wanted: float, top: float) -> float:
    low, high = 0.0, top
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if above(middle) < wanted else (low, middle)
    return (low + high) / 2


def _permuted(y: Floats, form: Floats, name: str, codes: dict[str, Ints], rng: np.random.Generator) -> float:
    """p of a source: its estimate when values are permuted where all other sources agree."""
    rest = [code for other, code in codes.items() if other != name]
    blocks = np.unique(np.stack(rest), axis=1, return_inverse=True)[1].ravel() if rest else np.zeros(len(y), np.int64)
    movable = any(len(np.unique(codes[name][blocks == b])) > 1 for b in np.unique(blocks))
    if not movable or np.ptp(y) == 0:
        return math.nan
    order = np.argsort(blocks[None, :] + rng.random((DRAWS // 2, len(y))), axis=1)
    places = np.argsort(blocks, kind="stable")
    moved = np.empty(order.shape)
    moved[:, places] = y[order]
    drawn = ((moved @ form) * moved).sum(axis=1)
    observed = float(y @ form @ y)
    slack = 1e-9 * max(abs(observed), float(np.abs(drawn).max()))
    return (1 + int((drawn >= observed - slack).sum())) / (1 + len(drawn))
