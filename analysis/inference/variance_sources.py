"""Where the differences between trials of a cell come from: initialisation, batch order, dropout masks, or data."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.inference import sample
from ndt_ray.analysis.inference.compare import MEASURES
from ndt_ray.analysis.inference.components import Component, Ints, components, grouped_sources, total
from ndt_ray.analysis.inference.outcomes import READS, Outcome, all_outcomes, number
from ndt_ray.analysis.inference.tables import VARIANCE_SOURCES
from ndt_ray.analysis.nulls import generator
from ndt_ray.plan.design import SOURCES


@analysis(name="variance_sources", reads=READS, writes=(VARIANCE_SOURCES,), per="sweep")
def variance_sources(
    data: AnalysisInput, *, measures: Sequence[str] = MEASURES, phases: Sequence[float] = (0.0, 0.1, 0.5, 1.0)
) -> dict[str, pd.DataFrame]:
    """Variance of event times, event counts, measures and accuracy by seed source, with intervals, per cell.

    Sources are told apart where they are axes of their own (`seed.init`, `seed.order`, …); those that varied together
    are one row, and each of them a row without a number that says so.
    """
    trials = sample.usable(data.frame("trials"), data.frame("outcomes"))
    rows: list[dict[str, Any]] = []
    for outcome in all_outcomes(data, trials, measures, phases) if len(trials) else []:
        for cell, own in trials.groupby("cell", sort=True):
            values = own["trial_id"].map(outcome.values)
            known = values.notna()
            if known.any():
                rows += _rows(str(cell), outcome, own[known], values[known].to_numpy(float))
    return {"variance_sources": pd.DataFrame(rows)}


def _rows(cell: str, outcome: Outcome, trials: pd.DataFrame, y: Any) -> Iterator[dict[str, Any]]:
    codes = {source: trials[f"seed_{source}"].to_numpy(np.int64) for source in SOURCES}
    groups = grouped_sources(codes)
    alone = {name: code for name, code in groups.items() if len(np.unique(code)) == len(y)}
    crossed = {name: code for name, code in groups.items() if name not in alone}
    common = {"family": outcome.family, "cell": cell, "outcome": outcome.name, "n_trials": len(y)}
    found = components(y, crossed, generator("variance", str(outcome.family), cell, outcome.name)) if crossed else None
    whole = total(y)
    if found is None and len(alone) == 1 and not crossed:
        found = [Component(next(iter(alone)), whole.levels, whole.variance, whole.lo, whole.hi)]
    positive = sum(max(c.variance, 0.0) for c in found or [])
    for c in [*(found or []), whole]:
        share = None if c is whole or not positive > 0 else max(c.variance, 0.0) / positive
        yield common | _row(c, share, None if math.isfinite(c.variance) else "one trial")
    named = {c.source for c in found or []}
    for source in SOURCES:
        if source not in named:
            reason = _reason(source, groups, crossed, codes, found is None)
            yield common | _row(Component(source, len(np.unique(codes[source])), math.nan), None, reason)


def _row(c: Component, share: float | None, reason: str | None) -> dict[str, Any]:
    known = math.isfinite(c.variance)
    row = {"source": c.source, "n_levels": c.levels, "variance": number(c.variance), "share": share, "reason": reason}
    row |= {"sd": math.sqrt(max(c.variance, 0.0)) if known else None}
    return row | {"lo": number(c.lo), "hi": number(c.hi), "p": number(c.p)}


def _reason(
    source: str, groups: dict[str, Ints], crossed: dict[str, Ints], codes: dict[str, Ints], unresolved: bool
) -> str:
    """Why a source has no variance of its own."""
    if len(np.unique(codes[source])) < 2:
        return "did not vary"
    group = next(name for name in groups if source in name.split("+"))
    if group != source:
        return f"varied together: {group}"
    if unresolved and source in crossed:
        return "the design cannot tell it from the others"
    return "every trial has its own: part of the rest"
