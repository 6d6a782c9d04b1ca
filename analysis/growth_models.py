"""Curves that a growing or falling dimensionality may follow, compared by Akaike's criterion.

The founding model (TAP) is a logistic curve in time; as it was stated it is one in accumulated gradient norm, for
D' = alpha |grad L| D (1 - D / D_max) has the solution D_max / (1 + exp(-alpha (tau - tau0))), tau the integral of
|grad L|. Whether either describes anything shows only beside simpler curves. Residuals of a curve remember, so the
criterion counts n (1 - phi) / (1 + phi) independent measurements, not n.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from ndt_ray.analysis.detection import Floats
from ndt_ray.analysis.nulls import robust_phi
from ndt_ray.store.schema import Column, Table

RELAXATION = (1e-3, 10.0)
"""Time constants tried, as shares of the run."""
EXPONENT = (-3.0, 3.0)
SIGMOID_STEEPNESS = (1.0, 400.0)

GROWTH_MODELS = Table(
    "growth_models",
    "How well each curve describes the mean dimensionality over layers, against simpler ones.",
    (
        Column("trial_id", "string", "content hash of the trial"),
        Column("measure", "string", "column of the table that was read, meaned over layers"),
        Column("mode", "string", "default: true steps; original: the published series and its clock"),
        Column(
            "model",
            "string",
            "constant, linear, relaxation, power, sigmoid, logistic (TAP as fitted), logistic_gradient (TAP as stated)",
        ),
        Column("n", "int32", "measurements fitted"),
        Column("n_effective", "float64", "n (1 - phi) / (1 + phi), phi of the best curve's residuals"),
        Column("n_parameters", "int32", "fitted parameters, the noise's variance included"),
        Column("r2", "float64", "1 - residual / total sum of squares"),
        Column("aicc", "float64", "corrected Akaike criterion for n_effective measurements"),
        Column("delta", "float64", "aicc - that of the best curve"),
        Column("weight", "float64", "Akaike weight among these curves"),
        Column("best", "bool", "smallest aicc"),
        Column("parameters", "string", "of the fit, as JSON; times as shares of the run"),
        Column("at_bound", "string", "parameters that ended at a bound, comma-separated; empty: none"),
        Column("flag", "string", "why there is no fit: constant, short, no_level, not_converged, no_gradient; or null"),
    ),
    ("trial_id", "mode", "measure", "model"),
)


@dataclass(frozen=True)
class Curve:
    """A fitted curve: its values and parameters; `values` is None where there is none."""

    values: Floats | None
    parameters: Mapping[str, float]
    at_bound: tuple[str, ...] = ()
    flag: str | None = None


def constant(t: Floats, d: Floats) -> Curve:
    """D = a."""
    return Curve(np.full_like(d, d.mean()), {"a": float(d.mean())})


def linear(t: Floats, d: Floats) -> Curve:
    """D = a + b t."""
    return _line(d, t, {})


def relaxation(t: Floats, d: Floats) -> Curve:
    """D = a + b exp(-t / tau)."""
    low, high = (float(np.log(x)) for x in RELAXATION)
    return _profiled(d, lambda x: np.exp(-t / np.exp(x)), low, high, lambda x: {"tau": float(np.exp(x))})


def power(t: Floats, d: Floats) -> Curve:
    """D = a + b (t + h)^c, h the distance of measurements."""
    gap = float(np.diff(t).min())
    return _profiled(d, lambda c: _power(t + gap, c), *EXPONENT, lambda c: {"c": float(c)})


def sigmoid(t: Floats, d: Floats) -> Curve:
    """D = a + b / (1 + exp(-alpha (t - t0))): a logistic step that may also fall, from a level of its own."""
    best: Curve | None = None
    low, high = (float(np.log(x)) for x in SIGMOID_STEEPNESS)
    for t0 in np.linspace(0.02, 0.98, 25).tolist():

        def step(x: float, t0: float = t0) -> Floats:
            shape: Floats = 1 / (1 + np.exp(-np.clip(np.exp(x) * (t - t0), -500, 500)))
            return shape

        def named(x: float, t0: float = t0) -> dict[str, float]:
            return {"alpha": float(np.exp(x)), "t0": t0}

        found = _profiled(d, step, low, high, named, tries=12)
        if best is None or _rss(d, found) < _rss(d, best):
            best = found
    assert best is not None
    return best


def _power(t: Floats, c: float) -> Floats:
    shape: Floats = np.log(t) if abs(c) < 1e-6 else (t**c - 1) / c
    return shape


def _line(d: Floats, shape: Floats, parameters: Mapping[str, float], at_bound: tuple[str, ...] = ()) -> Curve:
    """Least squares of a + b shape."""
    centred = shape - shape.mean()
    length = float(centred @ centred)
    b = float(centred @ d) / length if length > 1e-300 else 0.0
    a = float(d.mean() - b * shape.mean())
    return Curve(a + b * shape, {"a": a, "b": b, **parameters}, at_bound)


def _profiled(
    d: Floats,
    shape: Callable[[float], Floats],
    low: float,
    high: float,
    named: Callable[[float], dict[str, float]],
    tries: int = 40,
) -> Curve:
    """Least squares of a + b shape(x) over x in [low, high]: a grid, then Brent's method around its best point."""

    def rss(x: float) -> float:
        return _rss(d, _line(d, shape(x), {}))

    grid = np.linspace(low, high, tries)
    best = int(np.argmin([rss(x) for x in grid]))
    bounds = (grid[max(0, best - 1)], grid[min(tries - 1, best + 1)])
    x = float(minimize_scalar(rss, bounds=bounds, method="bounded", options={"xatol": 1e-4 * (high - low)}).x)
    x = x if rss(x) <= rss(grid[best]) else float(grid[best])
    at_bound = tuple(list(named(x))[:1]) if min(x - low, high - x) <= 1e-3 * (high - low) else ()
    return _line(d, shape(x), named(x), at_bound)


def _rss(d: Floats, curve: Curve) -> float:
    if curve.values is None:
        return float("inf")
    left = d - curve.values
    return float(left @ left)


SIMPLE: dict[str, tuple[Callable[[Floats, Floats], Curve], int]] = {
    "constant": (constant, 2),
    "linear": (linear, 3),
    "relaxation": (relaxation, 4),
    "power": (power, 4),
    "sigmoid": (sigmoid, 5),
}
"""Curve and number of parameters, the variance included."""


def compared(t: Floats, d: Floats, others: Mapping[str, tuple[Curve, int]]) -> Iterator[dict[str, Any]]:
    """Rows of `growth_models` without their identity: the simple curves and `others`, on t in [0, 1]."""
    n = len(d)
    usable = n >= 10 and float(np.ptp(d)) > 0
    flag = None if usable else "short" if n < 10 else "constant"
    blank = Curve(None, {}, flag=flag)
    fitted = {name: ((fit(t, d) if usable else blank), k) for name, (fit, k) in SIMPLE.items()} | dict(others)
    sums = {name: _rss(d, curve) for name, (curve, _) in fitted.items()}
    best = min(sums, key=lambda name: sums[name])
    phi = 0.0
    if usable and (values := fitted[best][0].values) is not None:
        phi = float(np.clip(np.nan_to_num(robust_phi(d - values)), 0.0, 0.99))
    effective = n * (1 - phi) / (1 + phi)
    total = float((d - d.mean()) @ (d - d.mean())) if n else 0.0
    floor = 1e-12 * max(total, 1e-300)  # a curve that fits to rounding is not better than another that does
    aicc = {}
    for name, (curve, k) in fitted.items():
        room = effective - k - 1
        known = usable and curve.values is not None and room > 0
        score = effective * np.log(max(sums[name], floor) / n) + 2 * k + 2 * k * (k + 1) / room if known else np.nan
        aicc[name] = float(score)
    scores = np.array([x for x in aicc.values() if np.isfinite(x)])
    lowest = float(scores.min()) if scores.size else np.nan
    weights = float(np.exp(-(scores - lowest) / 2).sum()) if scores.size else np.nan
    for name, (curve, k) in fitted.items():
        delta = aicc[name] - lowest
        yield {
            "model": name,
            "n": n,
            "n_effective": effective if usable else None,
            "n_parameters": k,
            "r2": 1 - sums[name] / total if usable and curve.values is not None else None,
            "aicc": aicc[name],
            "delta": delta,
            "weight": float(np.exp(-delta / 2)) / weights if np.isfinite(delta) else None,
            "best": bool(delta == 0),
            "parameters": dict(curve.parameters),
            "at_bound": ",".join(curve.at_bound),
            "flag": curve.flag,
        }
