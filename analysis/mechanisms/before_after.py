"""What changed at the events: the battery before, during and after each, against windows like it without an event."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
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
from ndt_ray.analysis.mechanisms.matching import (
    EVENT_COLUMNS,
    Distances,
    Matching,
    arms,
    best_windows,
    displacements,
    selected,
    steps_with_networks,
    with_steps,
)
from ndt_ray.analysis.mechanisms.seeing.feature_metrics import BY_SEED, SHARE
from ndt_ray.analysis.mechanisms.symmetry import SYMMETRY
from ndt_ray.analysis.mechanisms.tables import (
    ABLATION,
    ATTENTION,
    CHANGES,
    COLLAPSE,
    COMPOSITION,
    DIMENSION,
    DISTANCES,
    FEATURE_METRICS,
    FILTERS,
    LLC,
    PROBES,
    SIMILARITY,
    TESTS,
    UNIT_ABLATION_METRICS,
    UNITS,
    WHOLE,
    WINDOWS,
)

BATTERY = (ATTENTION, ABLATION, FILTERS, UNITS, COLLAPSE, PROBES, DIMENSION)
DEARER = (UNIT_ABLATION_METRICS, COMPOSITION, SYMMETRY, LLC, FEATURE_METRICS)
"""Compared as well, where they were computed at checkpoints."""
_READS = ("trials", "checkpoints", "events", "event_families", "scalars", DISTANCES.name, SIMILARITY.name)
NETWORK_METRICS = ("nc1", "nc2_norm", "nc2_angle", "nc3", "nc4")
"""Measured on the classifier, said of the network."""

COPIES = (
    "filter_welch_excess", "activation_sparsity", "llc_loss_excess", "llc_step_size",
    "mean_ablation_accuracy", "zero_ablation_accuracy", "weights_zeroed_accuracy", BY_SEED,
)  # fmt: skip
"""Their changes are those of `filter_squared_cosine`, `fraction_active` (negated), `llc`, and of `baseline_accuracy`
less `…_impact`; a step size is a setting, and how often words differ by the seed of an ascent is a chance level. One
hypothesis is one test."""
MOST_CONTROLS = 5
Panel = dict[tuple[str, str, str], dict[int, float]]
"""(trial, metric's layer, metric) -> step -> value."""


@analysis(
    name="mechanisms",
    reads=(*_READS, *(table.name for table in BATTERY)),
    writes=(CHANGES, TESTS, WINDOWS),
    per="sweep",
    optional=tuple(table.name for table in DEARER),
)
def mechanisms(
    data: AnalysisInput, *, candidates: int = 3, widest: float = 0.25, controls: int = MOST_CONTROLS
) -> dict[str, pd.DataFrame]:
    """Each metric before, during and after every event, against matched windows and the initialisation.

    Events: the significant ones of the sweep's primary family; without any, the first `candidates` of each trial by
    p_event, called exploratory. Checkpoints around an event may lie `widest` of the run apart at most; the nearest
    that leave it three controls are taken. `controls`: matched windows an event, whose ends have checkpoints too. An
    event without those is in the table, untested.

    A window that matches in phase cannot lie beside an event that lasts over 5 % of the run: there the other seeds of
    the cell in the very same window are what is left to compare with (`seed_…`; phase, rate and length are equal).
    """
    if data.frame("trials").empty:
        return nothing()
    events = selected(data.frame("events"), data.frame("event_families"), candidates)
    if events.empty:
        return nothing()
    return at_events(looked_at(data.frame), events, data.frame("events"), widest=widest, controls=controls)


def nothing() -> dict[str, pd.DataFrame]:
    """No changes, no tests and no windows."""
    return {table.name: pd.DataFrame() for table in (CHANGES, TESTS, WINDOWS)}


@dataclass(frozen=True)
class Looked:
    """What a sweep's checkpoints came to, whatever its events are."""

    trials: pd.DataFrame
    scalars: pd.DataFrame
    steps: Mapping[str, np.ndarray[Any, Any]]
    panel: "Panel"
    distances: Distances

    @cached_property
    def matching(self) -> Matching:
        """Kept, for it reads each trial's path once, whatever events are compared."""
        return Matching(self.trials, self.scalars, self.steps, self.distances, MOST_CONTROLS)


def looked_at(table: Callable[[str], pd.DataFrame]) -> Looked:
    """From the tables that `mechanisms` reads, by name."""
    panel = panel_of([table(t.name) for t in (*BATTERY, *DEARER)], table(SIMILARITY.name))
    steps = steps_with_networks(table("checkpoints"), panel)
    scalars = with_steps(table("scalars"), steps)
    return Looked(table("trials"), scalars, steps, panel, displacements(table(DISTANCES.name)))


def at_events(
    looked: Looked,
    events: pd.DataFrame,
    all_events: pd.DataFrame,
    *,
    widest: float = 0.25,
    controls: int = MOST_CONTROLS,
) -> dict[str, pd.DataFrame]:
    """`mechanism_changes` and `mechanism_tests` of chosen events; controls keep clear of `all_events`."""
    matching = replace(looked.matching, most=controls) if controls != MOST_CONTROLS else looked.matching
    around, windows = best_windows(events, all_events, matching, widest)
    if around.empty:  # no event lies between two checkpoints that are near enough
        return nothing()
    cells = dict(zip(looked.trials["trial_id"], arms(looked.trials), strict=True))
    found = list(_compared(around, windows, looked.panel, looked.distances, cells))
    if not found:
        return nothing()
    return {
        CHANGES.name: change_rows(found, cells),
        TESTS.name: metric_rows(found, cells),
        WINDOWS.name: window_rows(around, windows),
    }


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
        columns = (known[name].tolist() for name in ("trial_id", "layer", "metric", "step", "value"))
        for trial, layer, metric, step, value in zip(*columns, strict=True):
            where = WHOLE if metric in NETWORK_METRICS else layer
            panel.setdefault((trial, where, metric), {})[int(step)] = float(value)
    return _without_unused_words(panel)


def _without_unused_words(panel: Panel) -> Panel:
    """A word that no unit of a layer has in any trial is no hypothesis about it."""
    told = {key[1:] for key, values in panel.items() if any(values.values())}
    return {key: v for key, v in panel.items() if not key[2].startswith(SHARE) or key[1:] in told}


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
    lacking: str | None = None
    """What leaves the event too few controls."""

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
                    yield Compared(event, where, metric, values, change, moved, seeds, own.lacking)


def _change(values: Mapping[int, float], window: tuple[int, int]) -> float:
    return values.get(window[1], np.nan) - values.get(window[0], np.nan)


def window_rows(around: pd.DataFrame, windows: list[Windows]) -> pd.DataFrame:
    """`mechanism_windows`."""
    rows = []
    for event, own in zip(around.itertuples(index=False), windows, strict=True):
        who = {name: getattr(event, name) for name in EVENT_COLUMNS}
        for i, (start, end) in enumerate((own.own, *own.matched), start=-1):
            rows.append({**who, "control": i, "start": start, "end": end})
    return pd.DataFrame(rows)


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
                **{name: getattr(event, name) for name in EVENT_COLUMNS},
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
                "lacking": c.lacking,
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
