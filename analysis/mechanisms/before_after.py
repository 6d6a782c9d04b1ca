"""What changed at the events: the battery before, during and after each, against windows like it without an event."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.mechanisms.changes import (
    FEWEST_CONTROLS,
    Change,
    Windows,
    change_over,
    event_p,
    metric_test,
    seed_test,
    spreads,
    with_q,
)
from ndt_ray.analysis.mechanisms.tables import (
    ABLATION,
    ATTENTION,
    CHANGES,
    COLLAPSE,
    DIMENSION,
    DISTANCES,
    FILTERS,
    PROBES,
    SIMILARITY,
    TESTS,
    UNITS,
    WHOLE,
)
from ndt_ray.analysis.windows import Tolerance, matched_windows

BATTERY = (ATTENTION, ABLATION, FILTERS, UNITS, COLLAPSE, PROBES, DIMENSION)
_READS = ("trials", "checkpoints", "events", "event_families", "scalars", DISTANCES.name, SIMILARITY.name)
NETWORK_METRICS = ("nc1", "nc2_norm", "nc2_angle", "nc3", "nc4")
"""Measured on the classifier, said of the network."""
_EVENT = ["trial_id", "layer", "layer_index", "step_before", "step_after", "exploratory"]

COPIES = ("filter_welch_excess", "activation_sparsity")
"""Their changes are those of `filter_squared_cosine` and, negated, of `fraction_active`: one hypothesis is one test."""
REACH = 3
"""Checkpoints on each side of an event that its window may end at."""

Panel = dict[tuple[str, str, str], dict[int, float]]
"""(trial, metric's layer, metric) -> step -> value."""


@analysis(name="mechanisms", reads=(*_READS, *(table.name for table in BATTERY)), writes=(CHANGES, TESTS), per="sweep")
def mechanisms(
    data: AnalysisInput, *, candidates: int = 3, widest: float = 0.25, controls: int = 5
) -> dict[str, pd.DataFrame]:
    """Each metric before, during and after every event, against matched windows and the initialisation.

    Events: the significant ones of the sweep's primary family; without any, the first `candidates` of each trial by
    p_event, called exploratory. Checkpoints around an event may lie `widest` of the run apart at most; the nearest
    that leave it three controls are taken. `controls`: matched windows an event, whose ends have checkpoints too. An
    event without those is in the table, untested.

    A window that matches in phase cannot lie beside an event that lasts over 5 % of the run: there the other seeds of
    the cell in the very same window are what is left to compare with (`seed_…`; phase, rate and length are equal).
    """
    trials = data.frame("trials")
    events = selected(data.frame("events"), data.frame("event_families"), candidates)
    nothing = {CHANGES.name: pd.DataFrame(), TESTS.name: pd.DataFrame()}
    if events.empty or trials.empty:
        return nothing
    panel = panel_of([data.frame(table.name) for table in BATTERY], data.frame(SIMILARITY.name))
    steps = _steps(data.frame("checkpoints"), panel)
    distances = _distances(data.frame(DISTANCES.name))
    matching = Matching(trials, _with_steps(data.frame("scalars"), steps), steps, distances, controls)
    around, windows = best_windows(events, data.frame("events"), matching, widest)
    if around.empty:  # no event lies between two checkpoints that are near enough
        return nothing
    cells = dict(zip(trials["trial_id"], arms(trials), strict=True))
    found = list(_compared(around, windows, panel, distances, cells))
    if not found:
        return nothing
    return {CHANGES.name: change_rows(found, cells), TESTS.name: metric_rows(found, cells)}


# -- events and their windows -----------------------------------------------------------------------------------------


def arms(trials: pd.DataFrame) -> "pd.Series[str]":
    """The cell of each trial, with its control where it has one: the seeds of an arm are alike but for their seeds."""
    control = trials.get("control", pd.Series("none", index=trials.index)).astype(str)
    cell: pd.Series[str] = trials["cell"].astype(str)
    return cell.where(control == "none", cell + " " + control)


def selected(events: pd.DataFrame, families: pd.DataFrame, candidates: int) -> pd.DataFrame:
    """Events of primary families to look at, one row each, with `exploratory`."""
    columns = [*_EVENT, "step_location"]
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


def _steps(checkpoints: pd.DataFrame, panel: Panel) -> dict[str, np.ndarray[Any, Any]]:
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


def _distances(rows: pd.DataFrame) -> Distances:
    """(trial, layer, first step, last step) -> displacement of the layer's weights, or of all where it has none."""
    if rows.empty:
        return lambda *_: float("nan")
    keys = zip(rows["trial_id"], rows["layer"], rows["other_step"], rows["step"], strict=True)
    known = dict(zip(keys, rows["displacement"].astype(np.float64), strict=True))
    own = set(zip(rows["trial_id"], rows["layer"], strict=True))

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

    def windows(self, around: pd.DataFrame, busy: pd.DataFrame) -> list[Windows]:
        """The windows of each row of `around`: matched ones, and all of the same length; ends are checkpoints."""
        matched = matched_windows(
            around,
            self.trials,
            pd.DataFrame(),
            self.scalars,
            occupied=busy,
            tolerance=Tolerance(),
            most=self.most,
            displacement=self.distances,
        )
        by_event: dict[Any, list[tuple[int, int]]] = {}
        for row in matched.itertuples():
            by_event.setdefault(row.event, []).append((int(row.start), int(row.end)))
        taken = {key: list(zip(g["start"], g["end"], strict=True)) for key, g in busy.groupby(["trial_id", "layer"])}
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


def best_windows(
    events: pd.DataFrame, all_events: pd.DataFrame, matching: Matching, widest: float
) -> tuple[pd.DataFrame, list[Windows]]:
    """Each event with the nearest checkpoints that leave it enough controls, or else the most; nothing that is
    compared has a say in it."""
    best: dict[Any, tuple[pd.Series, Windows]] = {}
    for rank in range(REACH**2):
        lacking = [i for i in events.index if i not in best or len(best[i][1].matched) < FEWEST_CONTROLS]
        around = around_events(events.loc[lacking], matching.steps, matching.trials, widest, rank)
        if around.empty:
            break
        for (i, row), windows in zip(
            around.iterrows(), matching.windows(around, occupied(all_events, events, around)), strict=True
        ):
            if i not in best or len(windows.matched) > len(best[i][1].matched):
                best[i] = row, windows
    chosen = [best[i] for i in events.index if i in best]
    around = pd.DataFrame([row for row, _ in chosen]).reset_index(drop=True)
    return around.infer_objects(), [windows for _, windows in chosen]


def occupied(all_events: pd.DataFrame, chosen: pd.DataFrame, around: pd.DataFrame) -> pd.DataFrame:
    """Windows no control may overlap: of the events looked at, and of the significant ones of every family."""
    columns = ["trial_id", "layer", "layer_index", "start", "end"]
    significant = all_events[all_events["significant"].astype(bool)]
    renamed = {"step_before": "start", "step_after": "end"}
    others = pd.concat([significant.rename(columns=renamed)[columns], chosen.rename(columns=renamed)[columns]])
    return pd.concat([around[columns], others.astype(around[columns].dtypes)], ignore_index=True)


def _with_steps(scalars: pd.DataFrame, steps: Mapping[str, np.ndarray[Any, Any]]) -> pd.DataFrame:
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


# -- what was measured ------------------------------------------------------------------------------------------------


def panel_of(battery: list[pd.DataFrame], similarity: pd.DataFrame) -> Panel:
    """Values of whole layers by (trial, layer, metric) and step; similarity to the initialisation and the last
    checkpoint as metrics of their own."""
    panel: Panel = {}
    frames = [rows[rows["part"] == WHOLE] for rows in battery if len(rows)]
    if len(similarity):
        anchored = similarity[similarity["reference"].isin(["initial", "last"])]
        frames.append(anchored.assign(metric=anchored["metric"] + "_to_" + anchored["reference"]))
    for rows in frames:
        known = rows[rows["value"].notna() & ~rows["metric"].isin(COPIES)]
        columns = (known[name] for name in ("trial_id", "layer", "metric", "step", "value"))
        for trial, layer, metric, step, value in zip(*columns, strict=True):
            where = WHOLE if metric in NETWORK_METRICS else layer
            panel.setdefault((trial, where, metric), {})[int(step)] = float(value)
    return panel


def concerned(panel: Panel, trial: str, layer: str) -> Iterator[tuple[str, str, Mapping[int, float]]]:
    """(metric's layer, metric, values) of what bears on an event of a layer: the layer, its block's attention, the
    network; for an event of the mean over layers the means of all layers."""
    mine = {key[1:]: values for key, values in panel.items() if key[0] == trial}
    for (where, metric), values in sorted(mine.items()):
        block = where.rpartition(".self_attn")[0]
        if where in (layer, WHOLE) or (block and layer.startswith(f"{block}.")):
            yield where, metric, values
    if layer == WHOLE:
        metrics = sorted({metric for where, metric in mine if where != WHOLE})
        for metric in metrics:
            all_ = [values for (where, name), values in mine.items() if name == metric and where != WHOLE]
            common = set.intersection(*(set(values) for values in all_))
            yield "mean", metric, {step: float(np.mean([v[step] for v in all_])) for step in sorted(common)}


@dataclass(frozen=True)
class Compared:
    """One metric of one event."""

    event: Any
    where: str
    metric: str
    values: Mapping[int, float]
    change: Change
    displacement: float
    seeds: Mapping[str, float]
    """Change over the event's window in every trial of the cell, its own among them."""

    @property
    def others(self) -> Change:
        """The same comparison with the window in the other trials as controls."""
        changes = np.array([v for t, v in self.seeds.items() if t != self.event.trial_id], dtype=np.float64)
        return Change(self.change.before, self.change.after, changes, changes)


def _compared(
    around: pd.DataFrame, windows: list[Windows], panel: Panel, distances: Distances, cells: Mapping[str, str]
) -> Iterator[Compared]:
    trials = sorted({trial for trial, _, _ in panel})
    for layer, group in around.assign(windows=windows).groupby("layer", sort=True):
        by_trial = {t: {(w, m): values for w, m, values in concerned(panel, t, str(layer))} for t in trials}
        for event in group.itertuples(index=False):
            own, trial = event.windows, event.trial_id
            moved = distances(trial, event.layer, event.start, event.end)
            alike = [t for t in trials if cells.get(t) == cells.get(trial)]
            for (where, metric), values in by_trial.get(trial, {}).items():
                change = change_over(values, own)
                if change is not None:
                    seeds = {t: _change(by_trial[t].get((where, metric), {}), own.own) for t in alike}
                    seeds = {t: value for t, value in seeds.items() if np.isfinite(value)}
                    yield Compared(event, where, metric, values, change, moved, seeds)


def _change(values: Mapping[int, float], window: tuple[int, int]) -> float:
    return values.get(window[1], np.nan) - values.get(window[0], np.nan)


# -- rows -------------------------------------------------------------------------------------------------------------


def change_rows(found: list[Compared], cells: Mapping[str, str]) -> pd.DataFrame:
    """`mechanism_changes`."""
    scale = spreads(_grouped(found, cells))
    p, seed_p = event_p([c.change for c in found]), event_p([c.others for c in found])
    rows = []
    for c, value, seed_value in zip(found, p, seed_p, strict=True):
        event, change, others = c.event, c.change, c.others
        others_sd = float(others.controls.std(ddof=1)) if len(others.controls) > 1 else np.nan
        count, free = len(change.controls), change.unmatched
        sd = scale[_group(c, cells)]
        free_sd = float(free.std(ddof=1)) if len(free) > 1 else np.nan
        flag = "no_controls" if not count else "few_controls" if count < FEWEST_CONTROLS else None
        rows.append(
            {
                **{name: getattr(event, name) for name in _EVENT},
                "metric": c.metric,
                "metric_layer": c.where,
                "checkpoint_before": event.start,
                "checkpoint_during": event.middle if event.middle >= 0 else pd.NA,
                "checkpoint_after": event.end,
                "initial": c.values.get(0, np.nan),
                "before": change.before,
                "during": c.values.get(event.middle, np.nan),
                "after": change.after,
                "change": change.change,
                "n_controls": count,
                "control_mean": float(change.controls.mean()) if count else np.nan,
                "control_sd": float(change.controls.std(ddof=1)) if count > 1 else np.nan,
                "difference": change.difference,
                "effect": change.difference / sd,
                "p": value,
                "n_unmatched": len(free),
                "unmatched_mean": float(free.mean()) if len(free) else np.nan,
                "unmatched_difference": change.unmatched_difference,
                "unmatched_effect": change.unmatched_difference / free_sd if free_sd > 0 else np.nan,
                "displacement": c.displacement,
                "n_seeds": len(others.controls),
                "seed_mean": float(others.controls.mean()) if len(others.controls) else np.nan,
                "seed_difference": others.difference,
                "seed_effect": others.difference / others_sd if others_sd > 0 else np.nan,
                "seed_p": seed_value,
                "flag": flag,
            }
        )
    frame = pd.DataFrame(rows)
    frame["checkpoint_during"] = frame["checkpoint_during"].astype("Int32")
    return with_q(with_q(frame), "seed_")


def metric_rows(found: list[Compared], cells: Mapping[str, str]) -> pd.DataFrame:
    """`mechanism_tests`: layers of a cell together, each in its own control SDs."""
    scale = spreads(_grouped(found, cells))
    free_scale = spreads(_grouped(found, cells, unmatched=True))
    by_metric: dict[tuple[str, str], list[Compared]] = {}
    for c in found:
        by_metric.setdefault((cells.get(c.event.trial_id, ""), c.metric), []).append(c)
    rows = []
    for (cell, metric), group in sorted(by_metric.items(), key=lambda item: item[0]):
        matched: dict[str, list[float]] = {}
        unmatched: dict[str, list[float]] = {}
        for c in group:
            for kept, value in (
                (matched, c.change.difference / scale[_group(c, cells)]),
                (unmatched, c.change.unmatched_difference / free_scale[_group(c, cells)]),
            ):
                if np.isfinite(value):
                    kept.setdefault(c.event.trial_id, []).append(value)
        test, beside = metric_test(matched), metric_test(unmatched)
        seeds = seed_test([(c.event.trial_id, c.seeds) for c in group])
        controlled = any(len(c.change.controls) for c in group)
        flag = None if np.isfinite(test.p) else "no_controls" if not controlled else "few_trials"
        if flag == "few_trials" and not test.n_trials:
            flag = "constant"
        rows.append(
            {
                "cell": cell,
                "metric": metric,
                "exploratory": bool(group[0].event.exploratory),
                "n_trials": test.n_trials,
                "n_events": test.n_events,
                "difference": test.mean,
                "lo": test.lo,
                "hi": test.hi,
                "effect": test.effect,
                "p": test.p,
                "p_sign": test.p_sign,
                "unmatched_difference": beside.mean,
                "unmatched_p": beside.p,
                "n_seeds": seeds.n_trials,
                "seed_difference": seeds.difference,
                "seed_p": seeds.p,
                "flag": flag,
            }
        )
    return with_q(with_q(pd.DataFrame(rows)), "seed_")


def _group(c: Compared, cells: Mapping[str, str]) -> tuple[str, str]:
    return f"{cells.get(c.event.trial_id, '')} {c.event.layer} {c.where}", c.metric


def _grouped(
    found: list[Compared], cells: Mapping[str, str], unmatched: bool = False
) -> dict[tuple[str, str], list[Change]]:
    groups: dict[tuple[str, str], list[Change]] = {}
    for c in found:
        change = (
            Change(c.change.before, c.change.after, c.change.unmatched, c.change.unmatched) if unmatched else c.change
        )
        groups.setdefault(_group(c, cells), []).append(change)
    return groups
