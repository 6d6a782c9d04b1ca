"""Is the order in which layers settle the same over seeds, and does it differ between architectures?

A trial with five layers says next to nothing about its order (P(rho > .6) by chance is .117); seeds of a cell together
do. Cells: the mean rho against random orders within every trial (without ties this is Page's L). Architectures: trials
exchange their architecture within seed and data set; Kruskal-Wallis, which knows no blocks, stands beside it.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import kruskal, rankdata

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.blocks import between_groups, codes, permuted
from ndt_ray.analysis.convergence import null_bottom_up, one_view
from ndt_ray.analysis.detection import Floats
from ndt_ray.analysis.events.significant import replicates
from ndt_ray.analysis.inference.multiplicity import adjusted
from ndt_ray.analysis.nulls import generator
from ndt_ray.architectures import family_of
from ndt_ray.store.schema import Column, Table

CONVERGENCE_CELLS = Table(
    "convergence_cells",
    "Do the seeds of a cell settle in the order of depth?",
    (
        Column("cell", "string", "everything but seeds"),
        Column("model", "string", "architecture"),
        Column("data", "string", "data set"),
        Column("measure", "string", "column of the table that was read"),
        Column("mode", "string", "default or original"),
        Column("n_trials", "int32", "trials with an order"),
        Column("n_without", "int32", "trials without one (layers that do not vary, or all settle at once)"),
        Column("n_layers", "float64", "mean number of layers"),
        Column("mean_rho", "float64", "mean Spearman correlation of depth and settling over trials"),
        Column("p", "float64", "two-sided, random orders within every trial (Page's L, without ties)"),
        Column("p_attainable", "float64", "smallest p any outcome could have had"),
        Column("q", "float64", "Benjamini-Hochberg over the cells of a measure and mode"),
        Column("q_attainable", "float64", "smallest q that the cell could have had, alone among them"),
        Column("bottom_up", "float64", "share of trials with rho > .6"),
        Column("null_bottom_up", "float64", "the same expected of random orders"),
        Column("excluded", "bool", "never trained: no part of q, of the architectures or of the ranking"),
    ),
    ("mode", "measure", "cell"),
)

CONVERGENCE_ARCHITECTURES = Table(
    "convergence_architectures",
    "Does the order of settling differ between architectures?",
    (
        Column("measure", "string", "column of the table that was read"),
        Column("mode", "string", "default or original"),
        Column("factor", "string", "what was compared: model, or family (mlp, cnn, transformer, other)"),
        Column("n_groups", "int32", "architectures compared"),
        Column("n_trials", "int32", "trials compared"),
        Column("statistic", "float64", "sum over groups of n x (mean rho - grand mean)²"),
        Column("p", "float64", "permutation of architectures within seed and data set"),
        Column("p_attainable", "float64", "smallest p any outcome could have had"),
        Column("p_kruskal", "float64", "Kruskal-Wallis over trials, blocks ignored"),
    ),
    ("mode", "measure", "factor"),
)

CONVERGENCE_RANKING = Table(
    "convergence_ranking",
    "The clearest bottom-up trials: smallest p first, then largest rho.",
    (
        Column("measure", "string", "column of the table that was read"),
        Column("mode", "string", "default or original"),
        Column("rank", "int32", "1 is the clearest"),
        Column("trial_id", "string", "content hash of the trial"),
        Column("cell", "string", "everything but seeds"),
        Column("n_layers", "int32", "layers ranked"),
        Column("rho", "float64", "Spearman correlation of depth and settling"),
        Column("p", "float64", "two-sided, of this trial alone"),
        Column("n_tried", "int32", "trials it was picked from"),
    ),
    ("mode", "measure", "rank"),
)


@analysis(
    name="convergence_tests",
    reads=("trials", "outcomes", "evaluations", "convergence", "convergence_order"),
    writes=(CONVERGENCE_CELLS, CONVERGENCE_ARCHITECTURES, CONVERGENCE_RANKING),
    per="sweep",
)
def convergence_tests(data: AnalysisInput, *, permutations: int = 9_999, clearest: int = 5) -> dict[str, pd.DataFrame]:
    """Order of settling over the seeds of a cell and across architectures, by permutation; the clearest trials."""
    trials, orders = replicates(data), data.frame("convergence_order")
    if trials.empty or orders.empty:
        return {t.name: pd.DataFrame() for t in (CONVERGENCE_CELLS, CONVERGENCE_ARCHITECTURES, CONVERGENCE_RANKING)}
    names = trials[["trial_id", "cell", "model", "data", "untrained", *(c for c in ("seed",) if c in trials)]]
    joined = orders.merge(names, on="trial_id", validate="many_to_one")
    series = data.frame("convergence").merge(names, on="trial_id", validate="many_to_one")
    cells, architectures, ranking = [], [], []
    for (mode, measure), group in joined.groupby(["mode", "measure"], sort=True):
        key = (data.sweep, str(mode), str(measure))
        own = series[(series["mode"] == mode) & (series["measure"] == measure)]
        rows = [row | {"mode": mode, "measure": measure} for row in _cells(group, own, permutations, key)]
        adjusted([row for row in rows if not row["excluded"]])
        cells += rows
        group = group[~group["untrained"]]
        for row in _architectures(group[group["rho"].notna()], permutations, key):
            architectures.append(row | {"mode": mode, "measure": measure})
        ranking += [row | {"mode": mode, "measure": measure} for row in _ranked(group, clearest)]
    return {
        "convergence_cells": pd.DataFrame(cells),
        "convergence_architectures": pd.DataFrame(architectures),
        "convergence_ranking": pd.DataFrame(ranking),
    }


def _cells(group: pd.DataFrame, series: pd.DataFrame, count: int, key: Sequence[str]) -> Iterator[dict[str, Any]]:
    for cell, own in group.groupby("cell", sort=True):
        known = own[own["rho"].notna()]
        ranked = [_ranks(series[series["trial_id"] == t]) for t in known["trial_id"]]
        row: dict[str, Any] = {"cell": cell, "model": own["model"].iloc[0], "data": own["data"].iloc[0]}
        row |= {"n_trials": len(known), "n_without": len(own) - len(known), "n_layers": own["n_layers"].mean()}
        row |= {"mean_rho": known["rho"].mean() if len(known) else np.nan}
        row |= {"q": np.nan, "q_attainable": np.nan}
        row["p"] = mean_order(ranked, count, *key, str(cell)) if own["mode"].iloc[0] == "default" else np.nan
        orders = math.prod(math.factorial(len(depth)) for depth, _ in ranked)
        row["p_attainable"] = min(1.0, max(2 / orders, 1 / (1 + count))) if np.isfinite(row["p"]) else np.nan
        row["bottom_up"] = float((known["rho"] > 0.6).mean()) if len(known) else np.nan
        expected = [null_bottom_up(int(n)) for n in known["n_layers"]]
        row["null_bottom_up"] = float(np.mean(expected)) if expected else np.nan
        yield row | {"excluded": bool(own["untrained"].all())}


def _ranks(rows: pd.DataFrame) -> tuple[Floats, Floats]:
    """Centred unit vectors of depth and settling of one trial: their product is rho."""
    rows = one_view(rows[~rows["flag"].isin(["constant", "short", "noise"])])
    when = np.nan_to_num(rows["step"].to_numpy(dtype=np.float64, na_value=np.nan), nan=np.inf)
    return _unit(rankdata(rows["layer_index"])), _unit(rankdata(when))


def _unit(ranks: Floats) -> Floats:
    centred = ranks - ranks.mean()
    length = float(np.sqrt(centred @ centred))
    unit: Floats = centred / length if length > 0 else centred
    return unit


def mean_order(trials: Sequence[tuple[Floats, Floats]], count: int, *key: str) -> float:
    """Two-sided p of the mean rho over trials (unit vectors of depth and settling) against random orders in each."""
    if not trials:
        return float("nan")
    rng = generator("convergence cell", *key)
    observed, null = 0.0, np.zeros(count)
    for depth, settling in trials:
        observed += float(depth @ settling)
        null += rng.permuted(np.tile(settling, (count, 1)), axis=1) @ depth
    return (1 + int((np.abs(null) >= abs(observed) - 1e-9).sum())) / (1 + count)


def _architectures(group: pd.DataFrame, count: int, key: Sequence[str]) -> Iterator[dict[str, Any]]:
    blocks = codes(group, ("seed", "data"))
    factors = {"model": group["model"], "family": group["model"].astype(str).map(family_of)}
    for factor, names in factors.items():
        labels, groups = pd.factorize(names, sort=True)
        found = permuted(
            between_groups(group["rho"].to_numpy(np.float64)),
            labels.astype(np.int64),
            blocks,
            count,
            generator("convergence", factor, *key),
        )
        values = [group["rho"].to_numpy()[labels == k] for k in range(len(groups))]
        several = len(values) > 1 and np.ptp(group["rho"].to_numpy()) > 0
        yield {
            "factor": factor,
            "n_groups": len(groups),
            "n_trials": len(group),
            "statistic": found.statistic,
            "p": found.p,
            "p_attainable": found.p_attainable,
            "p_kruskal": float(kruskal(*values).pvalue) if several else np.nan,
        }


def _ranked(group: pd.DataFrame, clearest: int) -> list[dict[str, Any]]:
    rising = group[group["rho"] > 0].sort_values(["p", "rho", "trial_id"], ascending=[True, False, True])
    kept = rising.head(clearest).assign(rank=range(1, 1 + min(clearest, len(rising))), n_tried=len(group))
    return list(kept[["rank", "trial_id", "cell", "n_layers", "rho", "p", "n_tried"]].to_dict("records"))
