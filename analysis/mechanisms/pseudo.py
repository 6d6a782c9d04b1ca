"""Pseudo-events in trained runs: windows without an event, drawn with the phases that events have.

What the comparison at events finds there is false: it is what the real comparison is calibrated on.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from ndt_ray.analysis.api import conform
from ndt_ray.analysis.events.significant import primary
from ndt_ray.analysis.mechanisms.before_after import at_events, looked_at
from ndt_ray.analysis.mechanisms.matching import selected
from ndt_ray.analysis.mechanisms.simulated import outcomes
from ndt_ray.analysis.mechanisms.tables import CHANGES, TESTS
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
