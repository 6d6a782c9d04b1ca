"""What counts as a jump in a trial: its calibrated events, else what an uncalibrated rule flags, beside noise."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ndt_ray.analysis.detection.original import DifferenceZ
from ndt_ray.analysis.events.significant import primary
from ndt_ray.analysis.jumps import MEASURES, compare_with_null
from ndt_ray.errors import SpecError, did_you_mean

SOURCES = ("events", "default", "original")
"""Calibrated events; the founding rule on correct measures; the same as published, mistakes included."""

_WHAT = {"default": "jumps (z > 2)", "original": "jumps as published (z > 2)"}


@dataclass(frozen=True)
class Sought:
    """Jumps of a trial with signed `size`, `phase` and their steps; `rows` is None where none were looked for.

    `words`: what they are, or which command computes them. `expected`: how many the same rule flags on white and AR(1)
    noise like the trial's series, by name; empty for events, whose false discovery rate is controlled.
    """

    source: str | None
    rows: pd.DataFrame | None
    words: str
    expected: dict[str, float]


def sought(
    source: str | None,
    measure: str,
    sweep: str,
    events: pd.DataFrame,
    families: pd.DataFrame,
    jumps: pd.DataFrame,
    counts: pd.DataFrame,
) -> Sought:
    """The jumps of a trial from one of SOURCES; by default its events where the sweep has any family of them, else the
    jumps of `measure`. SpecError for another source.

    `families`: rows of the sweep; `events`, `jumps`, `counts` (of `jump_counts`): rows of the trial.
    """
    if source is not None and source not in SOURCES:
        raise SpecError(f"jumps come from one of {', '.join(SOURCES)}{did_you_mean(source, SOURCES)}")
    if source in (None, "events") and len(families):
        words = "significant events of the primary family, false discovery rate controlled"
        return Sought("events", primary(events, families), words, {})
    calibrated = f"`ndt analyze {sweep} series_tests events` computes calibrated events"
    if source == "events":
        return Sought(None, None, f"events were not sought: {calibrated}", {})
    mode = source or "default"
    judged = _of_rule(counts, mode, measure)
    if judged.empty:
        said = "" if mode == "original" or measure in MEASURES else f" --set 'measures=[{measure}]'"
        more = f"`ndt analyze {sweep} jumps{said}` uncalibrated jumps"
        return Sought(None, None, f"no {_WHAT[mode]} of {measure} were sought: {calibrated}, {more}", {})
    noise = compare_with_null(judged).iloc[0]
    judged_any = noise["constant"] < noise["series"]
    expected = {name: float(noise[f"expected_{name}"]) for name in ("white", "ar1") if judged_any}
    flat = f"; {noise['constant']:,} of {noise['series']:,} series are constant" if noise["constant"] else ""
    rows = _of_rule(jumps, mode, measure)
    rows = rows[rows["counted"].astype(bool)] if len(rows) else rows
    if len(rows):
        sign = np.where(rows["direction"] == "decrease", -1.0, 1.0)
        rows = rows.assign(size=sign * rows["magnitude"].astype(np.float64), step_location=np.nan)
    return Sought(mode, rows, f"uncalibrated {_WHAT[mode]}, which noise gives too{flat}; {calibrated}", expected)


def _of_rule(rows: pd.DataFrame, mode: str, measure: str) -> pd.DataFrame:
    if rows.empty:
        return rows
    own = rows[(rows["mode"] == mode) & (rows["detector"] == DifferenceZ.name)]
    return own if mode == "original" else own[own["measure"] == measure]
