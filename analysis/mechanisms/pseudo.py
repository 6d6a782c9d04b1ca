"""Pseudo-events in trained runs: windows without an event, drawn with the phases that events have.

What the comparison at events finds there is false: it is what the real comparison is calibrated on.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from ndt_ray.analysis.api import conform
from ndt_ray.analysis.events.significant import primary
from ndt_ray.analysis.mechanisms.before_after import at_events, looked_at
from ndt_ray.analysis.mechanisms.matching import REACH, selected
from ndt_ray.analysis.mechanisms.simulated import outcomes
from ndt_ray.analysis.mechanisms.tables import CHANGES, DISTANCES, TESTS, WHOLE
from ndt_ray.analysis.nulls import generator

FOUNDING_PHASES = (
    *(0.01, *[0.02] * 8, *[0.03] * 3, 0.07, *[0.1] * 6, 0.3, 0.43, 0.56, 0.66, 0.67, 0.7, 0.7, 0.72, 0.72, 0.73, 0.77),
    *(0.8, 0.85, 0.87, 0.88, 0.93, 0.93, 0.94, 0.94, 0.96),
)
"""Of the 39 events in the founding study's true stable rank (docs/events.md)."""
LONGEST = 3
"""Distances of checkpoints that a pseudo-event lasts at most."""
PRIMARY = pd.DataFrame([{"family": "primary", "primary": True}])
TRIES = 1000
"""Draws after which a layer is left without a window: its events and the others leave no room."""


def pseudo_events(
    layers: pd.DataFrame, checkpoints: pd.DataFrame, phases: Sequence[float], busy: pd.DataFrame, key: Sequence[str]
) -> pd.DataFrame:
    """Rows of `events`, one a trial and layer: windows from one checkpoint to the next but two at most.

    `layers`: trial_id, layer, layer_index and steps (planned); `phases`: of real events, drawn from with replacement
    and moved by up to 2 % of the run; `busy`: real events, which a window keeps clear of in its own trial, all layers.
    """
    rng = generator("pseudo-events", *key)
    saved = {trial: np.unique(group["step"]) for trial, group in checkpoints.groupby("trial_id")}
    taken = {trial: list(zip(g["step_before"], g["step_after"], strict=True)) for trial, g in busy.groupby("trial_id")}
    found = []
    for row in layers.sort_values(["trial_id", "layer_index"]).itertuples(index=False):  # one draw, whatever the order
        steps = saved[row.trial_id]
        for _ in range(TRIES):
            phase = rng.choice(np.asarray(phases)) + rng.uniform(-0.02, 0.02)
            start = int(np.searchsorted(steps, phase * row.steps))
            end = start + int(rng.integers(1, LONGEST + 1))
            if not (0 < start and end < len(steps)):
                continue
            a, b = int(steps[start]), int(steps[end])
            if all(b <= since or a >= to for since, to in taken.get(row.trial_id, ())):
                of = {"trial_id": row.trial_id, "layer": row.layer, "layer_index": row.layer_index}
                found.append(of | {"step_before": a, "step_after": b})
                break
    rows = pd.DataFrame(found, columns=["trial_id", "layer", "layer_index", "step_before", "step_after"])
    return rows.assign(family="primary", significant=True, step_location=np.nan, p_event=0.01)


def event_phases(events: pd.DataFrame, families: pd.DataFrame, trials: pd.DataFrame) -> tuple[float, ...]:
    """Phases (step_before / planned steps) of a sweep's significant primary events; the founding ones without any."""
    own = primary(events, families)
    if own.empty:
        return FOUNDING_PHASES
    planned = own["trial_id"].map(dict(zip(trials["trial_id"], trials["steps"], strict=True)))
    return tuple(float(phase) for phase in (own["step_before"] / planned).dropna().sort_values()) or FOUNDING_PHASES


def false_discoveries(
    tables: Mapping[str, pd.DataFrame], phases: Sequence[float], replicates: int, name: str
) -> dict[str, float]:
    """Shares of `replicates` with any q < 0.05, by table, when all events are pseudo-events.

    `tables`: what the analysis `mechanisms` reads, of one sweep, and its `layers`. The runs are the same in all
    replicates: it is the choice of windows that is repeated.
    """
    layers = tables["layers"].merge(tables["trials"][["trial_id", "steps"]], on="trial_id")
    events = tables["events"]
    busy = events[events["significant"].astype(bool)] if len(events) else events
    busy = busy if len(busy) else pd.DataFrame(columns=["trial_id", "step_before", "step_after"])
    looked = looked_at(lambda name: tables.get(name, pd.DataFrame()))
    found: dict[str, list[float]] = {}
    for i in range(replicates):
        drawn = pseudo_events(layers, tables["checkpoints"], phases, busy, (name, str(i)))
        compared = at_events(looked, selected(drawn, PRIMARY, 0), drawn)
        rows, tests = (conform(table, compared[table.name]).to_pandas() for table in (CHANGES, TESTS))
        for what, value in outcomes(rows, tests).items():
            found.setdefault(what, []).append(value)
    return {what: float(np.mean(values)) for what, values in found.items()}


# -- a run's tables in small -----------------------------------------------------------------------------------------

SMALL = ("table", "trial", "layer", "metric", "step", "other_step", "value")


def packed(tables: Mapping[str, pd.DataFrame], layers: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """What a calibration needs of one cell's run, as one long table of 32-bit numbers (columns `SMALL`): some metrics
    of some layers, distances as far as windows reach, scalars and events. `unpacked` gives tables again."""
    trials = tables["trials"].sort_values("trial_id")
    number = {trial: i for i, trial in enumerate(trials["trial_id"])}
    saved = np.union1d([0], tables["checkpoints"]["step"])  # weights have moved from the initialisation on
    panel = looked_at(lambda name: tables.get(name, pd.DataFrame())).panel
    rows: list[tuple[str, int, str, str, int, int, float]] = [
        ("trials", i, "", "", int(steps), 0, 0.0) for i, steps in enumerate(trials["steps"])
    ]
    for (trial, where, metric), values in sorted(panel.items()):
        if metric in metrics and where in (*layers, WHOLE):
            rows += [("panel", number[trial], where, metric, step, 0, value) for step, value in sorted(values.items())]
    moved = tables[DISTANCES.name]
    apart = np.abs(np.searchsorted(saved, moved["step"]) - np.searchsorted(saved, moved["other_step"]))
    moved = moved[moved["layer"].isin([*layers, WHOLE]) & (apart <= LONGEST + REACH)]
    for row in moved.itertuples():
        rows.append(("moved", number[row.trial_id], row.layer, "", row.step, row.other_step, row.displacement))
    scalars = tables["scalars"]
    for row in scalars[scalars["step"].isin(saved)].itertuples():
        for name in ("lr", "update_norm", "weight_norm"):
            rows.append(("scalars", number[row.trial_id], "", name, row.step, 0, getattr(row, name)))
    for row in primary(tables["events"], tables["event_families"]).itertuples():
        rows.append(("events", number[row.trial_id], row.layer, "", row.step_before, row.step_after, 0.0))
    small = pd.DataFrame(rows, columns=list(SMALL))
    kinds = {"trial": "int8", "step": "int32", "other_step": "int32", "value": "float32"}
    return small.astype(kinds | dict.fromkeys(("table", "layer", "metric"), "category"))


def unpacked(small: pd.DataFrame, cell: str = "kept") -> dict[str, pd.DataFrame]:
    """Tables as `false_discoveries` reads them; all metrics stand in `unit_metrics`."""
    names = small.astype({"table": str, "layer": str, "metric": str, "value": "float64"})
    names["trial_id"] = names["trial"].map("{:016x}".format)
    by = {name: rows.drop(columns=["table", "trial"]) for name, rows in names.groupby("table")}
    trials = by["trials"].rename(columns={"step": "steps"})[["trial_id", "steps"]].assign(cell=cell)
    panel = by["panel"].drop(columns="other_step").assign(part=WHOLE)
    columns = ["trial_id", "layer", "step_before", "step_after"]
    events = by.get("events", by["trials"].iloc[:0]).rename(columns={"step": "step_before", "other_step": "step_after"})
    layers = panel.loc[panel["layer"] != WHOLE, ["trial_id", "layer"]].drop_duplicates()
    index = {layer: i for i, layer in enumerate(sorted(layers["layer"].unique()))}
    return {
        "trials": trials,
        "layers": layers.assign(layer_index=layers["layer"].map(index)),
        "checkpoints": panel[["trial_id", "step"]].drop_duplicates(),
        "events": events[columns].assign(significant=True),
        "unit_metrics": panel.assign(layer_index=panel["layer"].map(index).fillna(-1).astype(int)),
        DISTANCES.name: by["moved"].rename(columns={"value": "displacement"}),
        "scalars": by["scalars"].pivot(index=["trial_id", "step"], columns="metric", values="value").reset_index(),
    }
