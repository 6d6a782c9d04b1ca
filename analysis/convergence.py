"""When each layer's dimensionality settles, and whether layers settle in the order of depth.

Two rules. `original`: the first window of 20 measurements whose variance is below (10 % of the series' mean)², which
depends on the scale and calls the published "stable rank" settled at once. `default`: the first measurement from which
the series stays within a band around the mean of its tail *and* shows no slope (SCIENCE §3.3). Few layers make a
Spearman correlation weak evidence: its p is from enumeration of all orders of the layers (exact up to 8 layers).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata, spearmanr
from scipy.stats import t as student

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.detection import Bools, Floats, Ints
from ndt_ray.analysis.nulls import detrended, generator, robust_phi
from ndt_ray.analysis.series import Series, clock, layer_series
from ndt_ray.store.schema import Column, Table

MEASURES = ("participation_ratio", "stable_rank", "participation_ratio_sv_uncentred", "stable_rank_uncentred")
VIEWS = ("units", "positions", "tokens", "feature_mean", "gap", "mean", "flat")
"""Which view stands for a layer that was measured in several."""

EXACT_LAYERS = 8
"""8! = 40,320 orders are enumerated; beyond that 9,999 are drawn."""

DRAWS = 9_999

CONVERGENCE = Table(
    "convergence",
    "When one layer's dimensionality settled.",
    (
        Column("trial_id", "string", "content hash of the trial"),
        Column("layer", "string", "module path"),
        Column("layer_index", "int16", "place in the order of the forward pass"),
        Column("view", "string", "how activations became a matrix"),
        Column("measure", "string", "column of the table that was read"),
        Column("mode", "string", "default: band around the tail and no slope; original: as published"),
        Column("n", "int32", "measurements judged"),
        Column("step", "int32", "first measurement of the settled part; original: its index. Null: never", "steps"),
        Column("phase", "float64", "step / planned steps"),
        Column("tail_mean", "float64", "mean of the last tenth, in units of the measure"),
        Column("range", "float64", "largest - smallest value"),
        Column("tolerance", "float64", "half width of the band: delta x range, or 4 noise SDs where that is wider"),
        Column("noise_sd", "float64", "standard deviation of what a line leaves of the tail"),
        Column("phi", "float64", "lag-1 dependence of it, from differences"),
        Column("flag", "string", "constant, short, noise (range within the band), never (not settled); null: settled"),
    ),
    ("trial_id", "mode", "measure", "layer_index", "view"),
)

CONVERGENCE_ORDER = Table(
    "convergence_order",
    "Do layers settle in the order of depth? One row a trial and measure.",
    (
        Column("trial_id", "string", "content hash of the trial"),
        Column("measure", "string", "column of the table that was read"),
        Column("mode", "string", "default, or original (depth as published: last number of the layer's name, or 999)"),
        Column("n_layers", "int32", "layers ranked; those that never settled share the last place"),
        Column("n_settled", "int32", "of these, layers that settled"),
        Column("rho", "float64", "Spearman correlation of depth and settling; null where one of them does not vary"),
        Column("p", "float64", "two-sided, over all orders of the layers"),
        Column("p_kind", "string", "exact, drawn (over 8 layers), or asymptotic (as published)"),
        Column("null_bottom_up", "float64", "P(rho > .6) for this many layers in random order without ties"),
        Column("spread", "float64", "(last - first settling) / planned steps"),
        Column("label", "string", "bottom_up (rho > .6, p < .05), top_down, simultaneous (|rho| < .3) or unclear"),
    ),
    ("trial_id", "mode", "measure"),
)


@dataclass(frozen=True)
class Settling:
    """Where a series settles; `index` is None where it does not, and `flag` says why."""

    index: int | None = None
    tail_mean: float = np.nan
    range: float = np.nan
    tolerance: float = np.nan
    noise_sd: float = np.nan
    phi: float = np.nan
    flag: str | None = None


@analysis(
    name="convergence",
    reads=("trials", "measurements", "original_measurements"),
    writes=(CONVERGENCE, CONVERGENCE_ORDER),
    per="trial",
)
def convergence(
    data: AnalysisInput,
    *,
    measures: Sequence[str] = MEASURES,
    delta: float = 0.1,
    tail: float = 0.1,
    modes: Sequence[str] = ("default", "original"),
) -> dict[str, pd.DataFrame]:
    """When each layer's dimensionality settles, and whether layers settle bottom-up, with the exact null of few layers.

    `delta`: half width of the band as a share of the range; `tail`: share of the run whose mean is the settled level.
    """
    trial = clock(data.frame("trials"), data.frame("measurements"))
    rows: list[dict[str, Any]] = []
    if "default" in modes:
        for series in layer_series(data.frame("measurements"), measures, trial.every):
            found = settled(series.values, delta, tail)
            step = None if found.index is None else int(series.steps[found.index])
            phase = None if step is None or not trial.steps else step / trial.steps
            rows.append(_row("default", trial.trial_id, series, found, step, phase))
    if "original" in modes:
        for series in layer_series(data.frame("original_measurements"), ("stable_rank",), trial.every):
            found = published_settled(series.values)
            phase = None if found.index is None else found.index / trial.steps
            rows.append(_row("original", trial.trial_id, series, found, found.index, phase))
    table = pd.DataFrame(rows)
    return {"convergence": table, "convergence_order": pd.DataFrame(list(_orders(table, trial.trial_id, trial.steps)))}


def settled(values: Floats, delta: float = 0.1, tail: float = 0.1) -> Settling:
    """The first place from which the series stays in its band and a line through the rest has no slope at 95 %.

    The band is the mean of the last `tail` of the series ± max(delta x range, 4 noise SDs); the slope's standard error
    is widened by sqrt((1 + phi) / (1 - phi)) for noise that remembers.
    """
    n = len(values)
    if n < 20:
        return Settling(flag="short")
    spread = float(np.ptp(values))
    if spread <= 1e-6 * float(np.abs(values).max()):
        return Settling(range=spread, flag="constant")
    end = values[-max(10, round(tail * n)) :]
    rest = detrended(end)
    noise, mean = float(rest.std(ddof=2)), float(end.mean())
    phi = float(np.clip(np.nan_to_num(robust_phi(detrended(values[-max(20, n // 2) :]))), 0.0, 0.95))
    tolerance = max(delta * spread, 4 * noise)
    described = Settling(None, mean, spread, tolerance, noise, phi)
    if 2 * tolerance >= spread:
        return Settling(**{**vars(described), "flag": "noise"})
    outside = np.flatnonzero(np.abs(values - mean) > tolerance)
    first = int(outside[-1]) + 1 if outside.size else 0
    calm = np.flatnonzero(_no_slope(values, phi)[first:])
    if first > n - 10 or calm.size == 0:
        return Settling(**{**vars(described), "flag": "never"})
    return Settling(**{**vars(described), "index": first + int(calm[0])})


def _no_slope(values: Floats, phi: float) -> Bools:
    """For every place: does the 95 % interval of the slope of all that follows hold 0? (Ten points at least.)"""
    y = (values - values.mean())[::-1]
    m = np.arange(1, len(y) + 1, dtype=np.float64)
    t = -(m - 1)
    sy, st, syy, stt, sty = (np.cumsum(x) for x in (y, t, y * y, t * t, t * y))
    var, cov, total = stt - st * st / m, sty - st * sy / m, syy - sy * sy / m
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = cov / var
        error = np.sqrt(np.maximum(total - slope * cov, 0) / (m - 2) / var * (1 + phi) / (1 - phi))
        free = np.maximum(m * (1 - phi) / (1 + phi) - 2, 1)
        calm = np.abs(slope) <= student.ppf(0.975, free) * error
    calm[m < 10] = False
    settled: Bools = calm[::-1]
    return settled


def published_settled(values: Floats, window: int = 20, share: float = 0.1) -> Settling:
    """The founding rule: start of the first window with variance < (share x mean of the series)²."""
    mean = float(values.mean()) if len(values) else np.nan
    if len(values) <= window:
        return Settling(flag="short")
    variance = np.lib.stride_tricks.sliding_window_view(values, window)[:-1].var(axis=1)
    found = np.flatnonzero(variance < (share * mean) ** 2)
    index, flag = (int(found[0]), None) if found.size else (None, "never")
    return Settling(index, float(values[-window:].mean()), float(np.ptp(values)), share * mean, flag=flag)


def published_depth(layer: str) -> int:
    """The founding study's depth of a layer: the last dotted part where it is a number, else 999."""
    last = layer.rsplit(".", 1)[-1]
    return int(last) if last.isdigit() else 999


def order(depth: Sequence[float] | Ints, settling: Sequence[float] | Floats, *key: str) -> tuple[float, float, str]:
    """Spearman's rho of depth and settling, its two-sided p over all orders of the layers, and how p was found.

    Settling times that are NaN (never) share the last place. `key` seeds the draws beyond 8 layers.
    """
    x = rankdata(np.asarray(depth, dtype=np.float64))
    late = np.nan_to_num(np.asarray(settling, dtype=np.float64), nan=np.inf)
    y = rankdata(late)
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan, np.nan, "none"
    a, b = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    rho = float(a @ b) / scale
    if len(x) <= EXACT_LAYERS:
        null, kind = _orders_of(len(x)), "exact"
        values = b[null] @ a / scale
        return rho, float((np.abs(values) >= abs(rho) - 1e-9).mean()), kind
    rng = generator("convergence order", *key)
    values = rng.permuted(np.tile(b, (DRAWS, 1)), axis=1) @ a / scale
    return rho, (1 + int((np.abs(values) >= abs(rho) - 1e-9).sum())) / (1 + DRAWS), "drawn"


@lru_cache(maxsize=EXACT_LAYERS)
def _orders_of(n: int) -> Ints:
    return np.array(list(permutations(range(n))), dtype=np.int64)


@lru_cache(maxsize=64)
def null_bottom_up(n: int, threshold: float = 0.6) -> float:
    """P(rho > threshold) for `n` layers in random order, without ties; NaN under 3 layers."""
    if n < 3:
        return float("nan")
    a = np.arange(n) - (n - 1) / 2
    orders = (
        _orders_of(n)
        if n <= EXACT_LAYERS
        else generator("orders", str(n)).permuted(np.tile(np.arange(n), (DRAWS, 1)), axis=1)
    )
    return float(((a[orders] @ a) / float(a @ a) > threshold + 1e-9).mean())


def label(rho: float, p: float) -> str:
    """The founding words for a correlation with depth; `unclear` where there is none."""
    if rho > 0.6 and p < 0.05:
        return "bottom_up"
    if rho < -0.6 and p < 0.05:
        return "top_down"
    return "simultaneous" if abs(rho) < 0.3 else "unclear"


def one_view(rows: pd.DataFrame) -> pd.DataFrame:
    """Of every layer one view: the first of VIEWS that it was measured in."""
    rank = rows["view"].map({v: i for i, v in enumerate(VIEWS)}).fillna(len(VIEWS))
    ordered = rows.assign(_rank=rank).sort_values(["layer_index", "_rank", "view"], kind="stable")
    return ordered.drop_duplicates("layer_index").drop(columns="_rank")


def _orders(table: pd.DataFrame, trial_id: str, steps: int) -> Iterator[dict[str, Any]]:
    if table.empty:
        return
    for (mode, measure), group in table.groupby(["mode", "measure"], sort=True):
        rows = one_view(group)
        rows = rows[~rows["flag"].isin(["constant", "short", "noise"])]
        when = rows["step"].to_numpy(dtype=np.float64, na_value=np.nan)
        if mode == "original":
            kept = np.isfinite(when)
            depth = np.array([published_depth(name) for name in rows["layer"]], dtype=np.float64)
            rho, p, kind = published_order(depth[kept], when[kept])
        else:
            rho, p, kind = order(rows["layer_index"].to_numpy(np.float64), when, trial_id, str(measure))
        known = when[np.isfinite(when)]
        yield {
            "trial_id": trial_id,
            "measure": measure,
            "mode": mode,
            "n_layers": len(rows),
            "n_settled": len(known),
            "rho": rho,
            "p": p,
            "p_kind": kind,
            "null_bottom_up": null_bottom_up(len(rows)),
            "spread": float(np.ptp(known)) / steps if len(known) and steps else np.nan,
            "label": label(rho, p),
        }


def published_order(depth: Floats, settling: Floats) -> tuple[float, float, str]:
    """Spearman's rho and its asymptotic p, as published; NaN where one of the two is constant."""
    if len(depth) < 3 or np.ptp(depth) == 0 or np.ptp(settling) == 0:
        return np.nan, np.nan, "none"
    found = spearmanr(depth, settling)
    return float(found.statistic), float(found.pvalue), "asymptotic"


def _row(
    mode: str, trial_id: str, series: Series, found: Settling, step: int | None, phase: float | None
) -> dict[str, Any]:
    return {
        "trial_id": trial_id,
        "layer": series.layer,
        "layer_index": series.layer_index,
        "view": series.view,
        "measure": series.measure,
        "mode": mode,
        "n": len(series.values),
        "step": step,
        "phase": phase,
        "tail_mean": found.tail_mean,
        "range": found.range,
        "tolerance": found.tolerance,
        "noise_sd": found.noise_sd,
        "phi": found.phi,
        "flag": found.flag,
    }
