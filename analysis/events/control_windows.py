"""Control windows: stretches of the same trial and layer without an event, which otherwise resemble an event's window.

What a mechanism does around an event means little until it is compared with windows of the same phase, learning rate
and length in which the parameters moved as far. The displacement of a window, ‖Δw‖/‖w‖, is read from `dynamics`: norms
of single updates, integrated over steps, over the norm at the start. That is the length of the path, an upper bound of
the distance from end to end; where checkpoints give the distance itself, it can be handed in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ndt_ray.errors import SpecError

Floats = NDArray[np.float64]
Displacement = Callable[[str, str, int, int], float]
"""(trial_id, layer, first step, last step) -> ‖Δw‖/‖w‖; NaN where it is not known."""

NETWORK = "network"
COLUMNS = (
    "event",
    "trial_id",
    "layer",
    "layer_index",
    "start",
    "end",
    "phase",
    "lr",
    "displacement",
    "event_phase",
    "event_lr",
    "event_displacement",
    "displacement_of",
    "rank",
)


@dataclass(frozen=True)
class Tolerance:
    """How far a control window may differ from the event's: infinity does not match on that."""

    phase: float = 0.05
    """Difference of the phases (start / planned steps)."""
    lr: float = 0.05
    """Relative difference of the mean learning rates."""
    displacement: float = 0.20
    """Relative difference of ‖Δw‖/‖w‖."""
    guard: int = 0
    """Steps that must lie between a control window and any event's."""


def matched_windows(
    events: pd.DataFrame,
    trials: pd.DataFrame,
    dynamics: pd.DataFrame,
    scalars: pd.DataFrame,
    *,
    occupied: pd.DataFrame | None = None,
    tolerance: Tolerance = Tolerance(),
    most: int | None = 5,
    displacement: Displacement | None = None,
) -> pd.DataFrame:
    """Control windows of each event, the closest in displacement first; `COLUMNS`, a row a window, `rank` from 0.

    `events`: rows with trial_id, layer, layer_index and a window, `start` and `end` (or step_before and step_after);
    `event` is their index. Controls have exactly the event's length, begin at a measured step, overlap neither each
    other nor, within the trial and layer, any window of `occupied` (all events of the sweep; by default `events`). The
    phase, rate and displacement of a layer without weights are matched on those of the whole network, which
    `displacement_of` says. An event without controls has no row. SpecError for a table without a needed column.
    """
    chosen, busy = _windows(events), _windows(events if occupied is None else occupied)
    _need("trials", trials, ("trial_id", "steps"))
    planned = dict(zip(trials["trial_id"], trials["steps"], strict=True))
    paths = Paths(dynamics, scalars, displacement)
    taken = {key: g[["start", "end"]].to_numpy(np.int64) for key, g in busy.groupby(["trial_id", "layer"])}
    rows: list[dict[str, Any]] = []
    for (trial, layer), group in chosen.groupby(["trial_id", "layer"], sort=True):
        path = paths.of(str(trial), str(layer))
        if path is None or trial not in planned:
            continue
        avoid = np.concatenate([taken.get((trial, layer), np.zeros((0, 2), np.int64)), group[["start", "end"]]])
        for event in group.itertuples():
            own = (int(event.start), int(event.end))
            found = controls_of(path, own, int(planned[trial]), avoid, tolerance, most)
            common = {"event": event.Index, "trial_id": trial, "layer": layer, "layer_index": event.layer_index}
            rows += [common | control | {"rank": i} for i, control in enumerate(found)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def windows_of_all(
    window: tuple[int, int],
    layer: str,
    trials: pd.DataFrame,
    dynamics: pd.DataFrame,
    scalars: pd.DataFrame,
    *,
    occupied: pd.DataFrame,
    tolerance: Tolerance = Tolerance(),
    most: int | None = None,
) -> list[int]:
    """Starts of windows that are matched to `window` of a layer in every one of the trials, as one fork needs them.

    Each lies within the tolerance of what the window is in the same trial, and overlaps none of `occupied` (trial_id,
    layer, layer_index, start, end: of these trials, any layer that is in it) in any trial; none overlaps another. The
    closest in displacement come first, by the trial in which they are least close.
    """
    _need("trials", trials, ("trial_id", "steps"))
    paths, busy = Paths(dynamics, scalars, None), _windows(occupied)
    own, length = np.array([window], dtype=np.int64), window[1] - window[0]
    off: dict[int, float] | None = None
    for trial, planned in zip(trials["trial_id"], trials["steps"], strict=True):
        path = paths.of(str(trial), layer)
        avoid = np.concatenate([busy.loc[busy["trial_id"] == trial, ["start", "end"]].to_numpy(np.int64), own])
        alike = None if path is None else _alike(path, window, int(planned), avoid, tolerance)
        if alike is None:
            return []
        here = dict(zip(alike.start.astype(int).tolist(), alike.off.tolist(), strict=True))
        off = here if off is None else {a: max(off[a], here[a]) for a in off.keys() & here.keys()}
    found: list[int] = []
    for a in sorted(off or {}, key=lambda a: (round((off or {})[a], 9), abs(a - window[0]), a)):
        if all(abs(a - other) >= length for other in found):
            found.append(a)
    return found[:most]


def _windows(events: pd.DataFrame) -> pd.DataFrame:
    """Events with their windows as `start` and `end`."""
    names = ("start", "end") if {"start", "end"} <= set(events) else ("step_before", "step_after")
    if events.empty and not len(events.columns):
        return pd.DataFrame(columns=["trial_id", "layer", "layer_index", "start", "end"])
    _need("events", events, ("trial_id", "layer", "layer_index", *names))
    kept = events[["trial_id", "layer", "layer_index", *names]].rename(
        columns=dict(zip(names, ("start", "end"), strict=True))
    )
    wrong = kept[~(kept["start"] < kept["end"])]
    if len(wrong):
        row = wrong.iloc[0]
        raise SpecError(f"events: a window ends behind its start, but got ({row['start']=}, {row['end']=})")
    return kept


def _need(table: str, rows: pd.DataFrame, columns: tuple[str, ...]) -> None:
    if missing := [c for c in columns if c not in rows]:
        raise SpecError(f"table '{table}' lacks {missing}: matching windows needs {list(columns)}")


@dataclass(frozen=True)
class _Path:
    """Along the measured steps of one trial and layer: learning rate integrated, path length, norm of the weights."""

    trial: str
    layer: str
    of: str
    steps: Floats
    rate: Floats
    length: Floats
    norm: Floats
    exact: Displacement | None

    def lr(self, start: Floats, end: Floats) -> Floats:
        """Mean learning rate of windows."""
        return (np.interp(end, self.steps, self.rate) - np.interp(start, self.steps, self.rate)) / (end - start)

    def displacement(self, start: Floats, end: Floats) -> Floats:
        """‖Δw‖/‖w‖ of windows; NaN where the weights are 0 or not known."""
        if self.exact is not None:
            pairs = zip(start, end, strict=True)
            return np.array([self.exact(self.trial, self.layer, int(a), int(b)) for a, b in pairs], dtype=np.float64)
        moved = np.interp(end, self.steps, self.length) - np.interp(start, self.steps, self.length)
        norm = np.interp(start, self.steps, self.norm)
        return np.where(norm > 0, moved / np.where(norm > 0, norm, 1.0), np.nan)


class Paths:
    """The paths of all layers, made when asked for."""

    def __init__(self, dynamics: pd.DataFrame, scalars: pd.DataFrame, exact: Displacement | None) -> None:
        self.exact = exact
        self.known: dict[tuple[str, str], _Path | None] = {}
        for name, rows, columns in (
            ("dynamics", dynamics, ("trial_id", "layer", "step", "update_norm", "weight_norm")),
            ("scalars", scalars, ("trial_id", "step", "lr", "update_norm", "weight_norm")),
        ):
            if len(rows.columns):
                _need(name, rows, columns)
        self.layers = dict(iter(dynamics.groupby(["trial_id", "layer"]))) if len(dynamics) else {}
        self.networks = dict(iter(scalars.groupby("trial_id"))) if len(scalars) else {}

    def of(self, trial: str, layer: str) -> _Path | None:
        """None where nothing was measured, or only once."""
        if (trial, layer) not in self.known:
            self.known[trial, layer] = self._of(trial, layer)
        return self.known[trial, layer]

    def _of(self, trial: str, layer: str) -> _Path | None:
        network = self.networks.get(trial)
        if network is None:
            return None
        rows, of = self.layers.get((trial, layer)), "layer"
        if rows is None:
            rows, of = network, NETWORK
        rows, network = rows.sort_values("step"), network.sort_values("step")
        steps = rows["step"].to_numpy(np.float64)
        if len(steps) < 2:
            return None
        lr = np.interp(steps, network["step"].to_numpy(np.float64), network["lr"].to_numpy(np.float64))
        update = rows["update_norm"].astype(np.float64).bfill().to_numpy()  # null at step 0: nothing was updated yet
        norm = rows["weight_norm"].to_numpy(np.float64)
        # A rate is that of the next update, a norm that of the last: rates hold until the next measurement.
        rate = _summed(np.diff(steps) * lr[:-1])
        length = _summed(np.diff(steps) * (update[1:] + update[:-1]) / 2)
        return _Path(trial, layer, of, steps, rate, length, norm, self.exact)


def _summed(parts: Floats) -> Floats:
    return np.concatenate([[0.0], np.cumsum(parts)])


@dataclass(frozen=True)
class _Alike:
    """Windows of one trial and layer that match one of it, and what they were matched on."""

    start: Floats
    rate: Floats
    moved: Floats
    off: Floats
    """Relative difference of the displacements."""
    event_lr: float
    event_displacement: float

    def order(self, own: int) -> NDArray[np.intp]:
        """Closest displacement first, then the nearest."""
        return np.lexsort((np.abs(self.start - own), np.nan_to_num(self.off, nan=np.inf).round(9)))


def _alike(
    path: _Path, own: tuple[int, int], planned: int, avoid: NDArray[np.int64], tolerance: Tolerance
) -> _Alike | None:
    """All windows like `own` that overlap nothing that is to be avoided; None where it was not measured throughout."""
    length = own[1] - own[0]
    if own[1] > path.steps[-1] or own[0] < path.steps[0]:
        return None
    start = path.steps[path.steps + length <= path.steps[-1]]
    first, last = avoid[:, :1] - tolerance.guard, avoid[:, 1:] + tolerance.guard
    start = start[~((start[None] < last) & (start[None] + length > first)).any(0)]
    start = start[np.abs(start - own[0]) <= tolerance.phase * planned]
    here = np.array([own[0]], dtype=np.float64)
    rate, event_rate = path.lr(start, start + length), float(path.lr(here, here + length)[0])
    keep = np.abs(rate - event_rate) <= tolerance.lr * abs(event_rate) if np.isfinite(tolerance.lr) else rate == rate
    start, rate = start[keep], rate[keep]
    moved, event_moved = path.displacement(start, start + length), float(path.displacement(here, here + length)[0])
    off = np.abs(moved - event_moved) / abs(event_moved) if event_moved else np.full(len(moved), np.nan)
    if np.isfinite(tolerance.displacement):
        fits = off <= tolerance.displacement
        start, rate, moved, off = start[fits], rate[fits], moved[fits], off[fits]
    return _Alike(start, rate, moved, off, event_rate, event_moved)


def controls_of(
    path: _Path, own: tuple[int, int], planned: int, avoid: NDArray[np.int64], tolerance: Tolerance, most: int | None
) -> list[dict[str, Any]]:
    """Windows like `own`, closest displacement first, none overlapping another."""
    alike = _alike(path, own, planned, avoid, tolerance)
    if alike is None:
        return []
    length = own[1] - own[0]
    event = {"event_phase": own[0] / planned, "event_lr": alike.event_lr}
    event["event_displacement"] = alike.event_displacement
    found: list[dict[str, Any]] = []
    for i in alike.order(own[0]):
        a = int(alike.start[i])
        if all(a >= f["end"] or a + length <= f["start"] for f in found):
            window = {"start": a, "end": a + length, "phase": a / planned, "lr": float(alike.rate[i])}
            found.append(window | {"displacement": float(alike.moved[i]), "displacement_of": path.of} | event)
            if most is not None and len(found) == most:
                break
    return found
