"""Which events are looked at, the checkpoints that stand around them, and windows like these without an event."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.events.control_windows import Paths, Tolerance, controls_of
from ndt_ray.analysis.mechanisms.changes import FEWEST_CONTROLS, Windows
from ndt_ray.analysis.mechanisms.tables import WHOLE

EVENT_COLUMNS = ["trial_id", "layer", "layer_index", "step_before", "step_after", "exploratory"]

REACH = 3
"""Checkpoints on each side of an event that its window may end at."""


def arms(trials: pd.DataFrame) -> "pd.Series[str]":
    """The cell of each trial, with its control where it has one: the seeds of an arm are alike but for their seeds."""
    control = trials.get("control", pd.Series("none", index=trials.index)).astype(str)
    cell: pd.Series[str] = trials["cell"].astype(str)
    return cell.where(control == "none", cell + " " + control)


def selected(events: pd.DataFrame, families: pd.DataFrame, candidates: int) -> pd.DataFrame:
    """Events of primary families to look at, one row each, with `exploratory`."""
    columns = [*EVENT_COLUMNS, "step_location"]
    if events.empty:
        return pd.DataFrame(columns=columns)
    primary = set(families.loc[families["primary"].astype(bool), "family"]) if len(families) else set()
    rows = events[events["family"].isin(primary)] if primary else events
    chosen = rows[rows["significant"].astype(bool)].assign(exploratory=False)
    if chosen.empty:
        ranked = rows.sort_values(["p_event", "trial_id", "layer_index", "step_before"], kind="stable")
        chosen = ranked.groupby("trial_id", sort=True).head(candidates).assign(exploratory=True)
    chosen = chosen.drop_duplicates(["trial_id", "layer", "step_before", "step_after"])
    return chosen.sort_values(["trial_id", "layer_index", "step_before"], kind="stable")[columns].reset_index(drop=True)


def steps_with_networks(
    checkpoints: pd.DataFrame, panel: Mapping[tuple[str, str, str], Mapping[int, float]]
) -> dict[str, np.ndarray[Any, Any]]:
    """Steps of each trial at which there is a network: its checkpoints, and 0 where the battery looked at it."""
    found: dict[str, set[int]] = {}
    for trial, step in zip(checkpoints.get("trial_id", ()), checkpoints.get("step", ()), strict=True):
        found.setdefault(trial, set()).add(int(step))
    for (trial, _, _), values in panel.items():
        found.setdefault(trial, set()).update(values)
    return {trial: np.array(sorted(steps)) for trial, steps in found.items()}


def around_events(
    events: pd.DataFrame,
    steps: Mapping[str, np.ndarray[Any, Any]],
    trials: pd.DataFrame,
    widest: float,
    rank: int = 0,
) -> pd.DataFrame:
    """Events with checkpoints around them, the index kept: `start`, `middle` (-1 for none) and `end`.

    `rank` 0 takes the nearest pair, 1 the next shortest of the three before with the three behind, and so on; events
    that have no such pair are left out.
    """
    planned = dict(zip(trials["trial_id"], trials["steps"], strict=True))
    rows, index = [], []
    for event in events.itertuples():
        saved = steps.get(event.trial_id, np.zeros(0, dtype=np.int64))
        before, after = saved[saved <= event.step_before][-REACH:], saved[saved >= event.step_after][:REACH]
        most = widest * planned.get(event.trial_id, 0)
        pairs = sorted((int(b - a), -int(a), int(b)) for a in before for b in after if b - a <= most)
        if rank >= len(pairs):
            continue
        start, end = -pairs[rank][1], pairs[rank][2]
        inside = saved[(saved > start) & (saved < end)]
        location = event.step_location
        location = (event.step_before + event.step_after) / 2 if pd.isna(location) else location
        middle = int(inside[np.abs(inside - location).argmin()]) if len(inside) else -1
        own = {name: getattr(event, name) for name in events.columns}
        rows.append({**own, "start": start, "middle": middle, "end": end})
        index.append(event.Index)
    return pd.DataFrame(rows, columns=[*events.columns, "start", "middle", "end"], index=index)


Distances = Callable[[str, str, int, int], float]
Taken = Mapping[tuple[str, str], Sequence[tuple[int, int]]]
"""Windows (start, end) of each trial and layer that no control may overlap."""


def displacements(rows: pd.DataFrame) -> Distances:
    """(trial, layer, first step, last step) -> displacement of the layer's weights, or of all where it has none."""
    if rows.empty:
        return lambda *_: float("nan")
    # As lists: a trial of 100 checkpoints has 5,000 pairs a layer, and columns of Arrow are slow one by one.
    trials, layers = rows["trial_id"].tolist(), rows["layer"].tolist()
    keys = zip(trials, layers, rows["other_step"].tolist(), rows["step"].tolist(), strict=True)
    known = dict(zip(keys, rows["displacement"].astype(np.float64).tolist(), strict=True))
    own = set(zip(trials, layers, strict=True))

    def moved(trial: str, layer: str, start: int, end: int) -> float:
        return float(known.get((trial, layer if (trial, layer) in own else WHOLE, start, end), np.nan))

    return moved


@dataclass(frozen=True)
class Matching:
    """What control windows are sought in."""

    trials: pd.DataFrame
    scalars: pd.DataFrame
    steps: Mapping[str, np.ndarray[Any, Any]]
    distances: Distances
    most: int

    @cached_property
    def paths(self) -> Paths:
        return Paths(pd.DataFrame(), self.scalars, self.distances)

    @cached_property
    def planned(self) -> dict[str, int]:
        return dict(zip(self.trials["trial_id"], self.trials["steps"].astype(int), strict=True))

    def windows(self, around: pd.DataFrame, taken: Taken) -> list[Windows]:
        """The windows of each row of `around`: matched ones, and all of the same length; ends are checkpoints."""
        by_event = self._matched(around, taken, Tolerance(), self.most)
        found = []
        for row in around.itertuples():
            length, saved = row.end - row.start, set(self.steps[row.trial_id].tolist())
            free = [
                (a, a + length)
                for a in sorted(saved)
                if a + length in saved and all(a + length <= s or a >= e for s, e in taken[row.trial_id, row.layer])
            ]
            found.append(Windows((int(row.start), int(row.end)), tuple(by_event.get(row.Index, ())), tuple(free)))
        return found

    def lacking(self, around: pd.DataFrame, taken: Taken) -> dict[Any, str]:
        """For rows of `around` with too few controls: the first thing to match on that leaves too few."""
        short: dict[Any, str] = {}
        for name, tolerance in _ONE_BY_ONE.items():
            enough = self._matched(around, taken, tolerance, FEWEST_CONTROLS)
            for i in around.index:
                if len(enough.get(i, ())) < FEWEST_CONTROLS:
                    short.setdefault(i, name)
        return short

    def _matched(
        self, around: pd.DataFrame, taken: Taken, tolerance: Tolerance, most: int
    ) -> dict[Any, list[tuple[int, int]]]:
        found: dict[Any, list[tuple[int, int]]] = {}
        columns = (around[name].tolist() for name in ("trial_id", "layer", "start", "end"))
        for i, trial, layer, start, end in zip(around.index, *columns, strict=True):
            path = self.paths.of(trial, layer)
            if path is not None and trial in self.planned:
                avoid = np.array(taken[trial, layer], dtype=np.int64)
                own = (int(start), int(end))
                alike = controls_of(path, own, self.planned[trial], avoid, tolerance, most)
                found[i] = [(window["start"], window["end"]) for window in alike]
        return found


_ANY = float("inf")
_ONE_BY_ONE = {
    "length": Tolerance(_ANY, _ANY, _ANY),
    "phase": Tolerance(lr=_ANY, displacement=_ANY),
    "lr": Tolerance(displacement=_ANY),
    "displacement": Tolerance(),
}
"""What a control must have in common with an event, one thing more each time."""


def best_windows(
    events: pd.DataFrame, all_events: pd.DataFrame, matching: Matching, widest: float
) -> tuple[pd.DataFrame, list[Windows]]:
    """Each event with the nearest checkpoints that leave it enough controls, or else the most; nothing that is
    compared has a say in it."""
    best: dict[Any, tuple[pd.Series, Windows]] = {}
    eventful = occupied(all_events[all_events["significant"].astype(bool)], events)
    for rank in range(REACH**2):
        lacking = [i for i in events.index if i not in best or len(best[i][1].matched) < FEWEST_CONTROLS]
        around = around_events(events.loc[lacking], matching.steps, matching.trials, widest, rank)
        if around.empty:
            break
        for (i, row), windows in zip(
            around.iterrows(), matching.windows(around, _and_around(eventful, around)), strict=True
        ):
            if i not in best or len(windows.matched) > len(best[i][1].matched):
                best[i] = row, windows
    chosen = [best[i] for i in events.index if i in best]
    around = pd.DataFrame([row for row, _ in chosen]).reset_index(drop=True).infer_objects()
    taken = [windows for _, windows in chosen]
    few = around[[len(w.matched) < FEWEST_CONTROLS for w in taken]] if len(around) else around
    if len(few):
        for i, what in matching.lacking(few, _and_around(eventful, few)).items():
            taken[i] = replace(taken[i], lacking=what)
    return around, taken


def occupied(significant: pd.DataFrame, chosen: pd.DataFrame) -> Taken:
    """Windows no control may overlap: of the events looked at, and of the significant ones of every family."""
    found: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for events in (significant, chosen):
        _add(found, events, "step_before", "step_after")
    return found


def _and_around(taken: Taken, around: pd.DataFrame) -> Taken:
    """Those, and the windows between checkpoints that are compared."""
    both = {key: list(windows) for key, windows in taken.items()}
    _add(both, around, "start", "end")
    return both


def _add(found: dict[tuple[str, str], list[tuple[int, int]]], rows: pd.DataFrame, start: str, end: str) -> None:
    columns = (rows[name].tolist() for name in ("trial_id", "layer", start, end))
    for trial, layer, a, b in zip(*columns, strict=True):
        found.setdefault((trial, layer), []).append((int(a), int(b)))


def with_steps(scalars: pd.DataFrame, steps: Mapping[str, np.ndarray[Any, Any]]) -> pd.DataFrame:
    """Scalars with rows at checkpoints that were not measured, interpolated: windows begin at measured steps."""
    names = ["lr", "update_norm", "weight_norm"]
    parts = []
    for trial, rows in scalars.groupby("trial_id", sort=True) if len(scalars) else ():
        rows = rows.sort_values("step")
        measured = rows["step"].to_numpy(np.float64)
        both = np.union1d(measured, steps.get(trial, np.zeros(0)))
        both = both[(both >= measured[0]) & (both <= measured[-1])]
        filled = {n: np.interp(both, measured, rows[n].astype(np.float64).bfill().to_numpy()) for n in names}
        parts.append(pd.DataFrame({"trial_id": trial, "step": both.astype(np.int64), **filled}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
