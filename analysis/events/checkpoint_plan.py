"""Which states of which trials are worth a look: before, during and after representative events, and matched controls.

All in optimizer steps. The plan is for trials that are trained already, whose states a replay brings back, and, in the
founding study's format, for a sweep that is yet to run.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.events.control_windows import Tolerance, matched_windows
from ndt_ray.analysis.events.significant import primary
from ndt_ray.analysis.phases import BINS
from ndt_ray.analysis.taxonomy.representatives import select
from ndt_ray.errors import SpecError
from ndt_ray.store.reader import Store
from ndt_ray.store.sweep import open_sweep

TABLES = (
    "trials",
    "events",
    "event_families",
    "event_types",
    "jumps",
    "jump_counts",
    "dynamics",
    "scalars",
    "checkpoints",
)
"""What a plan is made from; tables that are not there yet are empty."""
FOUNDING_WINDOW = 10
"""Steps before and after an event at which the founding plan saves."""
FALLBACK = {"mode": "default", "detector": "difference_z", "measure": "participation_ratio"}
"""The jumps that stand in where no events were tested."""
MATCHED = Tolerance()
HEADER_BYTES = 4_000
MOMENTS = {"adam": 2, "adamw": 2, "sgd": 1}


@dataclass
class CheckpointPlan:
    """What to save: an entry an event, and what it costs."""

    source: str
    """events, or jumps where no events were tested."""
    entries: list[dict[str, Any]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    storage: list[dict[str, Any]] = field(default_factory=list)
    """A row an experiment: files, bytes, and what a checkpoint at every measurement would take."""

    @property
    def steps(self) -> dict[str, list[int]]:
        """Steps to save by trial, ascending."""
        found: dict[str, set[int]] = {}
        for entry in self.entries:
            found.setdefault(entry["trial_id"], set()).update(_steps(entry))
        return {trial: sorted(steps) for trial, steps in found.items()}

    @property
    def coverage(self) -> dict[str, int]:
        """Planned events by phase; all three ought to be there."""
        return {name: sum(entry["phase_bin"] == name for entry in self.entries) for name in BINS}

    def lacking(self, checkpoints: pd.DataFrame) -> dict[str, list[int]]:
        """`steps` without those of rows of `checkpoints`; without trials that have all of theirs."""
        there = set(zip(checkpoints["trial_id"], checkpoints["step"], strict=True)) if len(checkpoints) else set()
        left = {trial: [step for step in steps if (trial, step) not in there] for trial, steps in self.steps.items()}
        return {trial: steps for trial, steps in left.items() if steps}

    def founding(self) -> dict[str, Any]:
        """{experiment: {jumps, checkpoint_steps}}: what `checkpoint: {plan: FILE}` of a sweep reads."""
        found: dict[str, Any] = {}
        for entry in self.entries:
            own = found.setdefault(entry["experiment"], {"jumps": [], "checkpoint_steps": []})
            own["jumps"].append({k: v for k, v in entry.items() if k != "experiment"})
            own["checkpoint_steps"] = sorted({*own["checkpoint_steps"], *_steps(entry)})
        return found


def planned(store: Store, sweep: str, **options: Any) -> CheckpointPlan:
    """`plan_checkpoints` for a sweep of a store; StoreError for an unknown one."""
    open_sweep(store, sweep)
    known = set(store.names())
    tables = {name: store.table(name, sweep) if name in known else pd.DataFrame() for name in TABLES}
    return plan_checkpoints(tables, **options)


def plan_checkpoints(
    tables: Mapping[str, pd.DataFrame],
    *,
    per_trial: int = 5,
    rule: str = "balanced",
    window: int | None = None,
    controls: int = 0,
    tolerance: Tolerance = MATCHED,
) -> CheckpointPlan:
    """At most `per_trial` events of each trial by a rule of `representatives`, each with three steps and its controls.

    Steps are s - w, s and s + w within the run, with s the located middle of the event (else the measurement behind it)
    and w the `window`: by default the event's width and at least the distance of its measurements, under the founding
    rule 10 steps. `controls`: matched windows of each event, by `matched_windows`. SpecError for what cannot be meant.
    """
    if per_trial < 1 or controls < 0 or (window is not None and window < 1):
        raise SpecError(
            f"a plan needs (per_trial >= 1, window >= 1, controls >= 0), got {per_trial=}, {window=}, {controls=}"
        )
    given = {name: tables.get(name, pd.DataFrame()) for name in TABLES}
    plan, events = _source(given)
    trials = given["trials"]
    if events.empty or trials.empty:
        return plan
    events = _described(events, trials, given["event_types"])
    reach = window if window is not None else FOUNDING_WINDOW if rule == "founding" else None
    for trial_id, own in events.groupby("trial_id", sort=True):
        trial = trials[trials["trial_id"] == trial_id].iloc[0]
        chosen = select(own, per_trial, rule)
        chosen = chosen[~chosen.index.duplicated()]  # of few events the founding rule takes one twice
        plan.entries += [_entry(event, trial, reach) for _, event in chosen.iterrows()]
    if controls:
        _add_controls(plan, events, given, controls, tolerance)
    plan.storage = _storage(plan, trials, given["checkpoints"])
    if absent := [name for name, n in plan.coverage.items() if not n]:
        plan.notices.append(f"no {' and no '.join(absent)} event is among those chosen: {plan.coverage}")
    return plan


def _source(given: Mapping[str, pd.DataFrame]) -> tuple[CheckpointPlan, pd.DataFrame]:
    """Significant events; jumps, with a notice, where no events were tested."""
    if len(given["event_families"]):
        events = primary(given["events"], given["event_families"])
        plan = CheckpointPlan("events")
        if events.empty:
            plan.notices.append("no event of the primary family is significant: there is nothing to plan around")
        return plan, events
    plan, jumps = CheckpointPlan("jumps"), given["jumps"]
    if jumps.empty:
        plan.notices.append("neither events nor jumps were sought: run `ndt analyze` with events first")
        return plan, jumps
    kept = jumps[jumps["counted"].astype(bool)]
    for column, value in FALLBACK.items():
        kept = kept[kept[column] == value]
    noise = ""
    counts = given["jump_counts"]
    if len(counts):
        for column, value in FALLBACK.items():
            counts = counts[counts[column] == value]
        noise = f"; on matched AR(1) noise the same rule flags {counts['null_ar1_mean'].sum():,.0f}"
    plan.notices.append(
        f"no tested events in this sweep: the plan is around {len(kept):,} uncalibrated jumps of "
        f"{FALLBACK['measure']}{noise}. Run the analysis `events` first"
    )
    renamed = {"relative_magnitude": "relative_size"}
    return plan, kept.rename(columns=renamed).drop(columns=["index"]).reset_index(drop=True)


def _described(events: pd.DataFrame, trials: pd.DataFrame, types: pd.DataFrame) -> pd.DataFrame:
    """Events of known trials with what selection rules read: index, magnitude, type, the founding study's cluster."""
    every = {row.trial_id: int(json.loads(row.spec)["measure"]["every"]) for row in trials.itertuples()}
    events = events[events["trial_id"].isin(every)].reset_index(drop=True)
    key = ["trial_id", "layer_index", "view", "measure", "step_before"]
    if len(types) and set(key) <= set(events):
        own = types[types["mode"] == "default"] if "mode" in types else types
        events = events.merge(own[[*key, "type", "label"]].drop_duplicates(key), on=key, how="left")
    cluster = events["type"].astype("Float64").fillna(0).astype(int) - 1 if "type" in events else -1
    size = events["size"] if "size" in events else events.get("magnitude", pd.Series(np.nan, events.index))
    index = events["step_before"] // events["trial_id"].map(every)
    return events.assign(index=index, magnitude=size.abs(), cluster=cluster)


def _entry(event: pd.Series, trial: pd.Series, window: int | None) -> dict[str, Any]:
    before, after = int(event["step_before"]), int(event["step_after"])
    located = event.get("step_location", np.nan)
    middle = after if pd.isna(located) else min(max(round(float(located)), before), after)
    width = event.get("width", np.nan)
    reach = window or max(after - before, 0 if pd.isna(width) else math.ceil(float(width)))
    last = int(trial["steps"])
    steps = [max(0, middle - reach), middle, min(last, middle + reach)]
    found: dict[str, Any] = {
        "experiment": f"{trial['model']}_{trial['data']}",
        "trial_id": str(event["trial_id"]),
        "seed": None if pd.isna(trial["seed"]) else int(trial["seed"]),
        "layer": str(event["layer"]),
        "layer_index": int(event["layer_index"]),
        "measure": str(event["measure"]),
        "step": middle,
        "checkpoints": steps,
        "clipped": middle - reach < 0 or middle + reach > last,
        "phase": float(event["phase"]),
        "phase_bin": str(event["phase_bin"]),
    }
    for name in ("type", "label", "direction", "relative_size", "q"):
        value = event.get(name)
        found[name] = None if value is None or pd.isna(value) else value.item() if hasattr(value, "item") else value
    return found


def _add_controls(
    plan: CheckpointPlan, events: pd.DataFrame, given: Mapping[str, pd.DataFrame], controls: int, tolerance: Tolerance
) -> None:
    """Matched windows of each entry; events without enough of them are told."""
    columns = ["trial_id", "layer", "layer_index"]
    wanted = pd.DataFrame([{c: e[c] for c in columns} | _ends(e) for e in plan.entries])
    wanted = wanted[wanted["start"] < wanted["end"]]
    found = matched_windows(
        wanted,
        given["trials"],
        given["dynamics"],
        given["scalars"],
        occupied=pd.concat([wanted, _occupied(events)], ignore_index=True),
        tolerance=tolerance,
        most=controls,
    )
    for i, entry in enumerate(plan.entries):
        own = found[found["event"] == i]
        entry["controls"] = [
            {
                "checkpoints": [int(w.start), int(w.start + (entry["step"] - entry["checkpoints"][0])), int(w.end)],
                "displacement": float(w.displacement),
                "event_displacement": float(w.event_displacement),
            }
            for w in own.itertuples()
        ]
    lacking = sum(len(entry["controls"]) < controls for entry in plan.entries)
    if lacking:
        notice = f"{lacking} of {len(plan.entries)} events have fewer than {controls} matched control windows"
        if wide := sum(_too_wide(entry, given["trials"], tolerance) for entry in plan.entries):
            notice += (
                f"; {wide} are looked at over more than {tolerance.phase:.0%} of their run, too long for a window"
                " beside them at their phase: `mechanisms` compares these with other seeds over the same steps"
            )
        plan.notices.append(notice)


def _too_wide(entry: Mapping[str, Any], trials: pd.DataFrame, tolerance: Tolerance) -> bool:
    """Whether windows as long as an event's all overlap it that begin within the tolerance of its phase."""
    (steps,) = trials.loc[trials["trial_id"] == entry["trial_id"], "steps"]
    start, end = _ends(entry).values()
    return bool(end - start > tolerance.phase * steps)


def _ends(entry: Mapping[str, Any]) -> dict[str, int]:
    return {"start": entry["checkpoints"][0], "end": entry["checkpoints"][-1]}


def _occupied(events: pd.DataFrame) -> pd.DataFrame:
    """The windows of all events, chosen or not."""
    renamed = events.rename(columns={"step_before": "start", "step_after": "end"})
    return renamed[["trial_id", "layer", "layer_index", "start", "end"]]


def _steps(entry: Mapping[str, Any]) -> Iterable[int]:
    yield from entry["checkpoints"]
    for control in entry.get("controls", ()):
        yield from control["checkpoints"]


def _storage(plan: CheckpointPlan, trials: pd.DataFrame, checkpoints: pd.DataFrame) -> list[dict[str, Any]]:
    """By experiment: the planned files, those that are there, and the saving over a checkpoint at every measurement."""
    here: dict[str, set[int]] = {}
    sizes: dict[str, float] = {}
    if len(checkpoints):
        here = {str(t): set(g["step"]) for t, g in checkpoints.groupby("trial_id")}
        sizes = {str(t): float(b) for t, b in checkpoints.groupby("trial_id")["bytes"].mean().items()}
    rows: dict[str, dict[str, Any]] = {}
    experiments = {entry["trial_id"]: entry["experiment"] for entry in plan.entries}
    for trial in trials.itertuples():
        steps = plan.steps.get(str(trial.trial_id))
        if steps is None:
            continue
        size = sizes.get(str(trial.trial_id), _bytes(trial))
        uniform = int(trial.steps) // int(json.loads(str(trial.spec))["measure"]["every"]) + 1
        row = rows.setdefault(experiments[str(trial.trial_id)], dict.fromkeys(_STORAGE, 0))
        there = len(here.get(str(trial.trial_id), set()) & set(steps))
        for name, value in zip(
            _STORAGE,
            (1, len(steps), there, size * len(steps), size * (len(steps) - there), uniform, uniform * size),
            strict=True,
        ):
            row[name] += round(value)
    return [{"experiment": name, **rows[name]} for name in sorted(rows)]


_STORAGE = ("trials", "files", "already", "bytes", "new_bytes", "uniform_files", "uniform_bytes")


def _bytes(trial: Any) -> float:
    """Of a checkpoint file that nobody has seen yet: weights and moments, float32."""
    moments = MOMENTS.get(str(trial.optimizer), 2)
    if trial.optimizer == "sgd" and not json.loads(str(trial.spec)).get("train", {}).get("momentum"):
        moments = 0
    return 4.0 * int(trial.n_parameters) * (1 + moments) + HEADER_BYTES
