"""Critical periods: when a layer moves fast, whether layers do so together, and whether the loss moves with them.

`original` repeats the founding rule - |velocity| above its own 90th percentile, so that a tenth of every series is
critical by construction - on the published series and their mini-batch loss. `default` reports the same counts and
tests what can be tested: stretches faster than the layer's own smooth slow-down (AR-sieve surrogates that keep it),
and correlations of prewhitened activity against the same with random phases.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.convergence import MEASURES, one_view
from ndt_ray.analysis.critical import rate_tests, rates
from ndt_ray.analysis.critical.tables import (
    COORDINATION,
    COORDINATION_PAIRS,
    CRITICAL_CHANGES,
    CRITICAL_PERIODS,
    CRITICAL_SERIES,
    LOSS_COUPLING,
)
from ndt_ray.analysis.detection import Bools, Floats, Ints, merged
from ndt_ray.analysis.inference.multiplicity import adjusted
from ndt_ray.analysis.nulls import generator
from ndt_ray.analysis.series import Clock, Series, clock, layer_series
from ndt_ray.store.schema import Table

TABLES: tuple[Table, ...] = (
    CRITICAL_SERIES,
    CRITICAL_CHANGES,
    CRITICAL_PERIODS,
    COORDINATION,
    COORDINATION_PAIRS,
    LOSS_COUPLING,
)
COUPLING_WINDOW = 31
"""Measurements over which the common course is smoothed away before correlations: what is slower is not asked about."""


@analysis(
    name="critical_periods",
    reads=("trials", "measurements", "scalars", "original_measurements"),
    writes=TABLES,
    per="trial",
)
def critical_periods(
    data: AnalysisInput,
    *,
    measures: Sequence[str] = MEASURES,
    percentile: float = 90.0,
    n_surrogates: int = 200,
    lags: int = 10,
    modes: Sequence[str] = ("default", "original"),
) -> dict[str, pd.DataFrame]:
    """Fast stretches of each layer, coordination of layers and coupling to the loss, tested without the slow-down."""
    trial = clock(data.frame("trials"), data.frame("measurements"))
    found: dict[str, list[dict[str, Any]]] = {t.name: [] for t in TABLES}
    scalars = data.frame("scalars")
    if "default" in modes:
        by_measure: dict[str, list[Series]] = {}
        for series in layer_series(data.frame("measurements"), measures, trial.every):
            by_measure.setdefault(series.measure, []).append(series)
        loss = _loss(scalars, "probe_loss")
        for group in by_measure.values():
            _default(group, trial, loss, found, percentile, n_surrogates, lags)
    if "original" in modes:
        published = list(layer_series(data.frame("original_measurements"), ("stable_rank",), trial.every))
        if published:
            _original(published, trial, _loss(scalars, "batch_loss"), found, percentile)
    return {name: pd.DataFrame(rows) for name, rows in found.items()}


def _loss(scalars: pd.DataFrame, column: str) -> pd.Series:
    """Loss by step, without gaps; empty where it was not stored."""
    if scalars.empty or column not in scalars:
        return pd.Series(dtype=np.float64)
    return scalars.set_index("step")[column].astype(np.float64).dropna().sort_index()


def above(values: Floats, percentile: float) -> tuple[Bools, float]:
    """Which |values| exceed their own percentile, and that percentile."""
    if values.size == 0:
        return np.zeros(0, dtype=bool), float("nan")
    size = np.abs(values)
    threshold = float(np.percentile(size, percentile))
    return size > threshold, threshold


def _described(
    mode: str, series: Series, trial: Clock, percentile: float, found: dict[str, list[dict[str, Any]]]
) -> tuple[dict[str, Any], Bools]:
    """Founding counts of one series, and which changes are critical by its rule; each goes to `critical_changes`."""
    velocity = np.diff(series.values)
    critical, threshold = above(velocity, percentile)
    acceleration = np.diff(velocity)
    transitions, _ = above(acceleration, percentile)
    for kind, values, flags in (("velocity", velocity, critical), ("acceleration", acceleration, transitions)):
        span = len(velocity) + 1 - len(values)
        found[CRITICAL_CHANGES.name] += [
            {**_identity(series, trial), "mode": mode, "kind": kind}
            | {"step_first": int(series.steps[i]), "step_last": int(series.steps[i + span]), "value": float(values[i])}
            for i in np.flatnonzero(flags)
        ]
    path = np.abs(velocity)
    half, ratio = np.nan, np.nan
    if path.sum() > 0 and trial.steps:
        phase = series.steps[1:] / trial.steps
        half = float(phase[int(np.searchsorted(np.cumsum(path), path.sum() / 2))])
        early = series.steps[:-1] < 0.1 * trial.steps
        late = float(path[~early].mean()) if (~early).any() else 0.0
        ratio = float(path[early].mean()) / late if early.any() and late > 0 else np.nan
    row = {
        **_identity(series, trial),
        "mode": mode,
        "n": len(velocity),
        "threshold": threshold,
        "n_critical": int(critical.sum()),
        "n_runs": len(merged(np.flatnonzero(critical))),
        "n_transitions": int(transitions.sum()),
        "half_path_phase": half,
        "velocity_ratio": ratio,
        **dict.fromkeys(("statistic", "p", "q", "q_attainable", "n_periods", "null_periods", "flag")),
    }
    return row, critical


def _identity(series: Series, trial: Clock) -> dict[str, Any]:
    names = ("layer", "layer_index", "view", "measure")
    return {"trial_id": trial.trial_id} | {name: getattr(series, name) for name in names}


def _original(
    group: Sequence[Series], trial: Clock, loss: pd.Series, found: dict[str, list[dict[str, Any]]], percentile: float
) -> None:
    critical = []
    for series in group:
        row, flags = _described("original", series, trial, percentile, found)
        found["critical_series"].append(row)
        critical.append(flags)
    steps = group[0].steps
    change = np.diff(loss.reindex(steps).to_numpy()) if len(loss) else np.full(max(len(steps) - 1, 0), np.nan)
    flags_LT = np.array(critical)
    row = _together("original", group, trial, flags_LT, change, found["critical_series"][-len(group) :])
    row["share_mean"] *= flags_LT.shape[1] / (flags_LT.shape[1] + 1)  # published: over measurements, not over changes
    found["coordination"].append(row)


def _together(
    mode: str, group: Sequence[Series], trial: Clock, flags_LT: Bools, loss: Floats, rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The founding description of coordination and loss drops; `loss`: its change at each place, or NaN."""
    share = flags_LT.mean(axis=0) if flags_LT.size else np.zeros(0)
    fell = loss < 0
    known = bool(np.isfinite(loss).any())
    drops = [float(fell[layer].mean()) if layer.any() else 0.0 for layer in flags_LT] if known else []
    widest = float(share.max()) if share.size else np.nan
    mean_drops = float(np.mean(drops)) if drops else np.nan
    return {
        "trial_id": trial.trial_id,
        "measure": group[0].measure,
        "mode": mode,
        "n_layers": len(group),
        "n": len(share),
        "critical": sum(r["n_critical"] for r in rows),
        "transitions": sum(r["n_transitions"] for r in rows),
        "share_mean": float(share.mean()) if share.size else np.nan,
        "share_max": widest,
        "coordinated": float((share >= 0.5).mean()) if share.size else np.nan,
        "coordinated_shifted": _shifted(flags_LT, trial.trial_id, mode, group[0].measure),
        "correlation": np.nan,
        "p": np.nan,
        "loss_drops": mean_drops,
        "loss_drops_base": float(fell.mean()) if known else np.nan,
        "loss_p": np.nan,
        "strong": bool(widest > 0.3 and mean_drops > 0.3),
    }


def _shifted(flags_LT: Bools, *key: str, count: int = 200) -> float:
    """Share of places with half of the layers critical when each layer is shifted by itself, mean over draws."""
    layers, n = flags_LT.shape if flags_LT.ndim == 2 else (0, 0)
    if n == 0:
        return float("nan")
    shift = generator("shifted", *key).integers(0, n, size=(count, layers))
    places = (np.arange(n)[None, None, :] + shift[:, :, None]) % n
    moved = np.take_along_axis(np.broadcast_to(flags_LT, (count, layers, n)), places, axis=2)
    return float((moved.mean(axis=1) >= 0.5).mean())


def _default(
    group: Sequence[Series],
    trial: Clock,
    loss: pd.Series,
    found: dict[str, list[dict[str, Any]]],
    percentile: float,
    n_surrogates: int,
    lags: int,
) -> None:
    rows = []
    for series in group:
        since = series.since(1)  # the change out of step 0 is a sign step of the optimizer, not the run's own
        row, _ = _described("default", since, trial, percentile, found)
        test, periods = _bursts(since, trial, n_surrogates)
        rows.append(row | test)
        found["critical_periods"] += [_with_loss(p, loss) for p in periods]
    adjusted(rows, 1 / (1 + n_surrogates))
    found["critical_series"] += rows
    steps, values_LT, kept = _common(group)
    if not kept:
        return
    flags_LT = np.array([above(np.diff(v), percentile)[0] for v in values_LT])
    levels = loss.reindex(steps).to_numpy() if len(loss) else np.full(len(steps), np.nan)
    change = np.diff(levels)
    own = [r for r in rows if any(r["layer"] == s.layer and r["view"] == s.view for s in kept)]
    row = _together("default", kept, trial, flags_LT, change, own)
    if len(steps) > rate_tests.SHORT:
        white_LT = np.array([rates.innovations(rates.activity(v, COUPLING_WINDOW)) for v in values_LT])
        key = (trial.trial_id, kept[0].measure)
        pairs, row["correlation"], row["p"] = rate_tests.pair_tests(white_LT, lags, n_surrogates, *key)
        found["coordination_pairs"] += _named(pairs, kept, trial)
        if np.isfinite(levels).all() and np.ptp(levels) > 0:
            moved = rates.innovations(rates.activity(levels, COUPLING_WINDOW))
            tests = rate_tests.couplings(white_LT, moved, lags, n_surrogates, *key)
            found["loss_coupling"] += [
                _identity(s, trial) | {"n": len(moved)} | t for s, t in zip(kept, tests, strict=True)
            ]
            row["loss_p"] = min(1.0, len(tests) * min(t["p"] for t in tests))
    found["coordination"].append(row)


def _common(group: Sequence[Series]) -> tuple[Ints, Floats, list[Series]]:
    """The steps that all varying layers share, one view a layer: steps [T], values [L, T], and their series."""
    table = pd.DataFrame({"layer_index": [s.layer_index for s in group], "view": [s.view for s in group]})
    series = [group[i] for i in one_view(table).index] if len(table) else []
    varying = [s.since(1) for s in series if len(s.values) > 3]
    varying = [s for s in varying if len(s.values) and np.ptp(s.values) > rates.RESOLUTION * np.abs(s.values).max()]
    if not varying:
        return np.zeros(0, np.int64), np.zeros((0, 0)), []
    first, last = max(s.steps[0] for s in varying), min(s.steps[-1] for s in varying)
    cut = [s.values[(s.steps >= first) & (s.steps <= last)] for s in varying]
    longest = varying[0].steps
    steps = longest[(longest >= first) & (longest <= last)]
    return (steps, np.array(cut), varying) if len(steps) > 3 else (steps, np.zeros((0, 0)), [])


def _bursts(series: Series, trial: Clock, count: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The test of one series for its row, and its critical periods."""
    key = (trial.trial_id, series.layer, series.view, series.measure)
    found = rate_tests.bursts(series.values, count, *key)
    test = {
        "statistic": found.statistic,
        "p": found.p,
        "n_periods": len(found.stretches) if found.flag is None else None,
        "null_periods": found.null_stretches,
        "flag": found.flag,
    }
    periods = []
    for stretch in found.stretches:
        first, last = int(series.steps[stretch.first]), int(series.steps[stretch.last + 1])
        row = _identity(series, trial) | {"step_first": first, "step_last": last}
        row |= {"phase": first / trial.steps if trial.steps else None}
        periods.append(row | {k: getattr(stretch, k) for k in ("scale", "ratio", "statistic", "p")})
    return test, periods


def _with_loss(period: dict[str, Any], loss: pd.Series) -> dict[str, Any]:
    before, after = loss.get(period["step_first"]), loss.get(period["step_last"])
    return period | {"loss_change": None if before is None or after is None else float(after - before)}


def _named(pairs: Sequence[dict[str, Any]], kept: Sequence[Series], trial: Clock) -> list[dict[str, Any]]:
    rows = []
    for pair in pairs:
        a, b = kept[pair["a"]], kept[pair["b"]]
        names = {"layer_a": a.layer, "layer_b": b.layer, "index_a": a.layer_index, "index_b": b.layer_index}
        rest = {k: pair[k] for k in ("r0", "lag", "r", "p", "q", "q_attainable")}
        rows.append({"trial_id": trial.trial_id, "measure": a.measure} | names | rest)
    return rows
