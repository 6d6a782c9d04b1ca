"""When each class is learned, and whether that happens at once: sustained crossings of class accuracy.

The founding plan asked whether capabilities come in jumps while representations change smoothly. A class is *learned*
at the first measurement from which its accuracy stays above half way between chance and its final level; how abrupt
that was is the time from a quarter to three quarters of the way. Smoothing over three measurements keeps one lucky
probe from counting; a class of few stimuli cannot be resolved, and its quantum is recorded.
"""

from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.detection import Floats, Ints
from ndt_ray.analysis.events.significant import primary
from ndt_ray.store.schema import Column, Table

LEAST = 0.1
"""Accuracy above chance under which nothing was learned."""

CAPABILITIES = Table(
    "capabilities",
    "When a run learned each class, how abruptly, and how far that is from its nearest event.",
    (
        Column("trial_id", "string", "content hash of the trial"),
        Column("source", "string", "probe (every measured step) or held_out (evaluations)"),
        Column("class", "int32", "label; -1 for the accuracy over all classes"),
        Column("first", "float64", "accuracy at the first measurement"),
        Column("final", "float64", "mean accuracy over the last tenth"),
        Column("quantum", "float64", "smallest change of accuracy seen, at best one stimulus of the class"),
        Column("step", "int32", "first measurement from which it stays half way up; null: not learned", "steps"),
        Column("phase", "float64", "step / last measured step"),
        Column("rise", "float64", "steps from a quarter to three quarters of the way, both sustained", "steps"),
        Column("abrupt", "bool", "the rise took at most one measurement"),
        Column("event_distance", "float64", "step - onset of the nearest event; null without events", "steps"),
        Column("flag", "string", "short, never (it ends under a tenth above chance, or fell back) or null"),
    ),
    ("trial_id", "source", "class"),
)


@analysis(
    name="capabilities",
    reads=("trials", "scalars", "evaluations", "events", "event_families"),
    writes=(CAPABILITIES,),
    per="trial",
)
def capabilities(data: AnalysisInput) -> dict[str, pd.DataFrame]:
    """When each class was learned (first sustained crossing of its accuracy), how abruptly, and near which event."""
    trials = data.frame("trials")
    if trials.empty:
        return {"capabilities": pd.DataFrame()}
    events = primary(data.frame("events"), data.frame("event_families"))
    onsets = np.unique(events["step_before"].to_numpy(np.int64)) if len(events) else np.zeros(0, np.int64)
    rows: list[dict[str, Any]] = []
    for source, table, prefix in (
        ("probe", data.frame("scalars"), "probe_"),
        ("held_out", data.frame("evaluations"), ""),
    ):
        if table.empty or f"{prefix}accuracy" not in table:
            continue
        ordered = table.sort_values("step")
        steps = ordered["step"].to_numpy(np.int64)
        whole = ordered[f"{prefix}accuracy"].to_numpy(np.float64, na_value=np.nan)
        series = (
            {-1: whole} | _classes(ordered[f"{prefix}class_accuracy"])
            if f"{prefix}class_accuracy" in ordered
            else {-1: whole}
        )
        for label, values in series.items():
            known = np.isfinite(values)
            if known.any():
                row = learned(steps[known], values[known], 1 / (len(series) - 1) if len(series) > 1 else None)
                at = row["step"]
                near = None if at is None or not len(onsets) else float(at - onsets[np.abs(onsets - at).argmin()])
                identity = {"trial_id": trials["trial_id"].iloc[0], "source": source, "class": label}
                rows.append(identity | row | {"event_distance": near})
    return {"capabilities": pd.DataFrame(rows)}


def _classes(column: pd.Series) -> dict[int, Floats]:
    """Accuracy of each class over time; classes that a row lacks are NaN."""
    known = [np.atleast_1d(np.asarray(v, dtype=np.float64)) if v is not None else np.zeros(0) for v in column]
    width = max((len(v) for v in known), default=0)
    table = np.full((len(known), width), np.nan)
    for i, values in enumerate(known):
        table[i, : len(values)] = values
    return {k: table[:, k] for k in range(width)}


def learned(steps: Ints, values: Floats, chance: float | None = None) -> dict[str, Any]:
    """Row of `capabilities` without its identity, for one accuracy over time (no gaps).

    The way up begins at `chance`, or at the first value where that is not known: a network that answers with one class
    from the start has not learned it.
    """
    row: dict[str, Any] = {"first": float(values[0]), "final": float(values[-max(1, len(values) // 10) :].mean())}
    moves = np.abs(np.diff(values))
    quantum = float(moves[moves > 1e-9].min()) if (moves > 1e-9).any() else None
    row |= {"quantum": quantum, "step": None, "phase": None, "rise": None, "abrupt": None, "flag": None}
    if len(values) < 5:
        return row | {"flag": "short"}
    base = row["first"] if chance is None else chance
    climb = row["final"] - base
    if climb < LEAST:
        return row | {"flag": "never"}
    middle = np.median(np.lib.stride_tricks.sliding_window_view(np.pad(values, 1, mode="edge"), 3), axis=1)
    quarter, half, three = (_sustained(middle, base + share * climb) for share in (0.25, 0.5, 0.75))
    if half is None:
        return row | {"flag": "never"}
    rise = None if quarter is None or three is None else float(steps[three] - steps[quarter])
    return row | {
        "step": int(steps[half]),
        "phase": float(steps[half] / steps[-1]) if steps[-1] > 0 else None,
        "rise": rise,
        "abrupt": None if quarter is None or three is None else bool(three - quarter <= 1),
    }


def _sustained(values: Floats, level: float) -> int | None:
    """The first place from which values stay at or above a level; None where the last one does not."""
    below = np.flatnonzero(values < level)
    first = int(below[-1]) + 1 if below.size else 0
    return first if first < len(values) else None
