"""Curves that a growing or falling dimensionality may follow, compared by Akaike's criterion.

The founding model (TAP) is a logistic curve in time; as it was stated it is one in accumulated gradient norm, for
D' = alpha |grad L| D (1 - D / D_max) has the solution D_max / (1 + exp(-alpha (tau - tau0))), tau the integral of
|grad L|. Whether either describes anything shows only beside simpler curves. What a curve leaves remembers, so each is
judged as curve + AR(1) noise, with the smallest phi that any of the curves leaves: with one of its own, a constant
with phi = .99 would pass for any trend; with none, any wave would decide, for it is counted once a measurement.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from ndt_ray.analysis.detection import Floats
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
        Column("phi", "float64", "of the noise: smallest lag-1 correlation of the residuals of any curve"),
        Column("n_parameters", "int32", "fitted parameters, the noise's variance and phi included"),
        Column("r2", "float64", "1 - residual / total sum of squares"),
        Column("aicc", "float64", "corrected Akaike criterion of curve + AR(1) noise"),
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
    "constant": (constant, 3),
    "linear": (linear, 4),
    "relaxation": (relaxation, 5),
    "power": (power, 5),
    "sigmoid": (sigmoid, 6),
}
"""Curve and number of parameters, the variance and phi of the noise included."""


def _remembers(left: Floats) -> float:
    """Lag-1 correlation of residuals, held to [0, .99]."""
    power = float(left @ left)
    return float(np.clip(left[1:] @ left[:-1] / power, 0.0, 0.99)) if power > 0 else 0.0


def _innovations(left: Floats, phi: float) -> float:
    """Sum of squares of what AR(1) noise of this phi leaves of residuals."""
    rest = left[1:] - phi * left[:-1]
    return float(rest @ rest) + (1 - phi * phi) * float(left[0]) ** 2


def compared(t: Floats, d: Floats, others: Mapping[str, tuple[Curve, int]]) -> Iterator[dict[str, Any]]:
    """Rows of `growth_models` without their identity: the simple curves and `others`, on t in [0, 1]."""
    n = len(d)
    usable = n >= 10 and float(np.ptp(d)) > 0
    flag = None if usable else "short" if n < 10 else "constant"
    blank = Curve(None, {}, flag=flag)
    fitted = {name: ((fit(t, d) if usable else blank), k) for name, (fit, k) in SIMPLE.items()} | dict(others)
    sums = {name: _rss(d, curve) for name, (curve, _) in fitted.items()}
    total = float((d - d.mean()) @ (d - d.mean())) if n else 0.0
    floor = 1e-12 * max(total, 1e-300)  # a curve that fits to rounding is not better than another that does
    left = {name: d - curve.values for name, (curve, _) in fitted.items() if usable and curve.values is not None}
    phi = min((_remembers(x) for x in left.values()), default=0.0)
    aicc = dict.fromkeys(fitted, np.nan)
    for name, (_, k) in fitted.items():
        if name in left and n > k + 2:
            white = max(_innovations(left[name], phi), floor)
            aicc[name] = float(n * np.log(white / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1))
    scores = np.array([x for x in aicc.values() if np.isfinite(x)])
    lowest = float(scores.min()) if scores.size else np.nan
    weights = float(np.exp(-(scores - lowest) / 2).sum()) if scores.size else np.nan
    for name, (curve, k) in fitted.items():
        delta = aicc[name] - lowest
        yield {
            "model": name,
            "n": n,
            "phi": phi if left else None,
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
