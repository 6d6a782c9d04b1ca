"""Over the seeds of a cell: does a trial's own partner - another layer, its loss - move with it more than a stranger's?

Seeds of a cell share the course of training, so what two layers of *different* seeds have in common is that course and
nothing else. Exchanging partners between seeds keeps it exactly, whatever its shape: the test needs no smoothing and no
model of the noise, only independent seeds (SCIENCE §3.0). Table `coordination` has the tests of single trials.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.convergence import MEASURES, one_view
from ndt_ray.analysis.critical import rates
from ndt_ray.analysis.critical.rate_tests import upper_p
from ndt_ray.analysis.critical.tables import COORDINATION_CELLS, CRITICAL_RANKING
from ndt_ray.analysis.detection import Floats
from ndt_ray.analysis.events.significant import replicates
from ndt_ray.analysis.inference.multiplicity import adjusted
from ndt_ray.analysis.nulls import generator
from ndt_ray.analysis.series import clock, layer_series

FEWEST = 10
"""Shared measurements under which correlations are not worth having."""


@analysis(
    name="coordination_tests",
    reads=("trials", "outcomes", "evaluations", "measurements", "scalars", "critical_series"),
    writes=(COORDINATION_CELLS, CRITICAL_RANKING),
    per="sweep",
)
def coordination_tests(
    data: AnalysisInput, *, measures: Sequence[str] = MEASURES, permutations: int = 999, clearest: int = 3
) -> dict[str, pd.DataFrame]:
    """Coordination of layers and coupling to the loss per cell, against other seeds; the clearest critical periods."""
    trials, rows, scalars = replicates(data), data.frame("measurements"), data.frame("scalars")
    if trials.empty or rows.empty:
        return {"coordination_cells": pd.DataFrame(), "critical_ranking": pd.DataFrame()}
    rows_of = dict(tuple(rows.groupby("trial_id")))
    loss_of = dict(tuple(scalars.groupby("trial_id"))) if "probe_loss" in scalars else {}
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell, group in trials.groupby("cell", sort=True):
        own = [t for t in group.sort_values("trial_id").to_dict("records") if t["trial_id"] in rows_of]
        names = {"cell": cell, "model": group["model"].iloc[0], "data": group["data"].iloc[0]}
        for measure in measures:
            speeds, losses = _cell(own, rows_of, loss_of, measure)
            tested = list(_tests(speeds, losses, permutations, data.sweep, str(cell), measure))
            if group["untrained"].all():  # what networks do that never learn is no evidence about learning
                tested = [row | {"p": None, "flag": row["flag"] or "untrained"} for row in tested]
            for row in tested:
                found.setdefault((measure, row["what"]), []).append(names | {"measure": measure} | row)
    return {
        "coordination_cells": pd.DataFrame([row for group in found.values() for row in adjusted(group)]),
        "critical_ranking": _ranking(data.frame("critical_series"), trials[~trials["untrained"]], clearest),
    }


def _ranking(series: pd.DataFrame, trials: pd.DataFrame, clearest: int) -> pd.DataFrame:
    """The trials with most layers that have a critical period, of those with any; first by p among equals."""
    tested = series[(series["mode"] == "default") & series["p"].notna()] if len(series) else series
    if tested.empty:
        return pd.DataFrame()
    tested = tested.assign(significant=tested["q"] < 0.05).merge(trials[["trial_id", "cell"]], on="trial_id")
    if tested.empty:
        return pd.DataFrame()
    parts = []
    for measure, group in tested.groupby("measure", sort=True):
        by = group.groupby(["trial_id", "cell"], sort=True)
        table = by.agg(
            n_layers=("p", "size"), n_significant=("significant", "sum"), smallest_p=("p", "min")
        ).reset_index()
        ordered = table.sort_values(["n_significant", "smallest_p", "trial_id"], ascending=[False, True, True])
        best = ordered[ordered["n_significant"] > 0].head(clearest)
        parts.append(best.assign(measure=measure, rank=np.arange(1, len(best) + 1), n_tried=len(table)))
    return pd.concat(parts, ignore_index=True)


def _cell(
    trials: Sequence[dict[str, Any]], rows_of: dict[str, pd.DataFrame], loss_of: dict[str, pd.DataFrame], measure: str
) -> tuple[Floats, Floats | None]:
    """Standardised log speeds [seeds, layers, T] on the steps that all share, and of the probe loss [seeds, T]."""
    tables, losses = [], []
    for trial in trials:
        rows = rows_of[trial["trial_id"]]
        every = clock(pd.DataFrame([trial]), rows).every
        series = list(layer_series(rows, (measure,), every))
        if not series:
            continue
        chosen = one_view(pd.DataFrame([{"layer_index": s.layer_index, "view": s.view} for s in series])).index
        columns = {series[i].layer: pd.Series(series[i].values, series[i].steps) for i in chosen}
        tables.append(pd.DataFrame(columns).loc[1:])
        scalars = loss_of.get(trial["trial_id"])
        losses.append(pd.Series(dtype=float) if scalars is None else scalars.set_index("step")["probe_loss"])
    if not tables:
        return np.zeros((0, 0, 0)), None
    layers = [c for c in tables[0] if all(c in t and _varies(t[c]) for t in tables)]
    whole = [t[layers].dropna() for t in tables]
    steps = sorted(set.intersection(*(set(t.index) for t in whole))) if layers else []
    if len(steps) <= FEWEST:
        return np.zeros((len(tables), 0, 0)), None
    speeds = np.array([_standard(rates.log_speed(t.loc[steps].to_numpy(np.float64).T)) for t in whole])
    levels = [loss.reindex(steps).to_numpy(np.float64) for loss in losses]
    known = all(np.isfinite(level).all() and np.ptp(level) > 0 for level in levels)
    return speeds, _standard(rates.log_speed(np.array(levels))) if known else None


def _varies(values: pd.Series) -> bool:
    known = values.dropna().to_numpy(np.float64)
    return bool(known.size and np.ptp(known) > rates.RESOLUTION * np.abs(known).max())


def _standard(values: Floats) -> Floats:
    centred = values - values.mean(axis=-1, keepdims=True)
    spread = centred.std(axis=-1, keepdims=True)
    standard: Floats = np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0)
    return standard


def _tests(speeds_SLT: Floats, losses_ST: Floats | None, count: int, *key: str) -> Iterator[dict[str, Any]]:
    seeds, layers, n = speeds_SLT.shape
    base = {"n_trials": seeds, "n_layers": layers, "n": n}
    empty = base | dict.fromkeys(("statistic", "across", "p", "p_attainable", "q", "q_attainable"))
    flag = "one_seed" if seeds < 2 else "no_layers" if layers == 0 else None
    if flag or layers < 2:
        yield empty | {"what": "layers", "flag": flag or "one_layer"}
    else:
        yield base | {"what": "layers", "flag": None, "q": None} | partners(speeds_SLT, count, *key, "layers")
    if flag or losses_ST is None:
        yield empty | {"what": "loss", "flag": flag or "no_loss"}
    else:
        mean_S1T = _standard(speeds_SLT.mean(axis=1))[:, None, :]
        both = np.concatenate([mean_S1T, losses_ST[:, None, :]], axis=1)
        yield base | {"what": "loss", "flag": None, "q": None} | partners(both, count, *key, "loss")


def partners(standard_SLT: Floats, count: int, *key: str) -> dict[str, Any]:
    """Mean correlation over pairs of rows of the same seed, and its p when each row's seeds are exchanged.

    `standard_SLT`: seeds × rows × time, each series with mean 0 and SD 1. Every row but the first is permuted over
    seeds by itself; S!^(L-1) outcomes, drawn `count` times.
    """
    seeds, layers, n = standard_SLT.shape
    flat = standard_SLT.transpose(1, 0, 2).reshape(layers * seeds, n)
    correlation = (flat @ flat.T / n).reshape(layers, seeds, layers, seeds)
    a, b = np.triu_indices(layers, 1)

    def statistic(order_LS: Any) -> float:
        return float(np.mean([correlation[i, order_LS[i], j, order_LS[j]].mean() for i, j in zip(a, b, strict=True)]))

    straight = np.tile(np.arange(seeds), (layers, 1))
    observed = statistic(straight)
    rng = generator("partners", *key)
    null = np.array([statistic(rng.permuted(straight, axis=1)) for _ in range(count)])
    ways = float(np.prod(np.arange(1, seeds + 1, dtype=np.float64))) ** (layers - 1)
    apart = (correlation[a, :, b, :].sum(axis=(1, 2)) - np.trace(correlation[a, :, b, :], axis1=1, axis2=2)).mean()
    across = float(apart / (seeds * (seeds - 1))) if seeds > 1 else float("nan")
    p = upper_p(null, observed - 1e-12)
    return {"statistic": observed, "across": across, "p": p, "p_attainable": max(1 / ways, 1 / (1 + count))}
