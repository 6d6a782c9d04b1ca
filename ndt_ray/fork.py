"""A sweep of interventions or siblings from a sweep that ran: what would have become of a cell, had it been otherwise?

A fork asks the question at the events of the cell, or at any steps, and at windows of the same trials that resemble
an event's but have none - in every seed, for one arm is done to all of them. Which arm is at which event, in which
trials, and which windows were matched to it goes with the sweep, as the parameter `matched` of `recovery`.

Its untouched lanes are the parent's trials, and every arm equals them, bit for bit, until its step: it branches off the
untouched lane of its pack there (`branching`), and needs no checkpoint. Siblings are arms to which nothing is done:
from their step on they see the same data in orders of their own.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from ndt_ray.analysis.events.control_windows import windows_of_all
from ndt_ray.analysis.events.families import PRIMARY
from ndt_ray.analysis.events.significant import primary, reach
from ndt_ray.errors import SpecError, did_you_mean
from ndt_ray.spec import Control, Trial
from ndt_ray.spec.axes import Sweep, make_sweep
from ndt_ray.store.reader import Store
from ndt_ray.store.sweep import open_sweep

WINDOWED = ("frozen", "damage")
WHOLE = "*"
"""As the layer of an event: the mean over layers."""
FEWEST_SIBLINGS = 3
FILLED_IN = ("seed", "control", "width", "source")
EVALUATIONS = 20
"""Least number of held-out evaluations after an intervention that a recovery curve is drawn from."""


@dataclass(frozen=True)
class Question:
    """What is to be done, where and when: `steps`, or the `events` most replicated ones with `controls` windows each.

    A layer's event is asked of that layer alone, `steps` of all targets. `length` of the windows of `frozen` and
    `damage` in steps, and so of what is matched to them; `doses` of `ablate` and `perturb`; with `siblings`, so many
    branches at each step and nothing else.
    """

    kind: str = "ablate"
    targets: Sequence[str] = ()
    steps: Sequence[int] = ()
    events: int = 0
    controls: int = 2
    doses: Sequence[float] = (1.0,)
    length: int = 100
    siblings: int = 0
    lr_matched: bool = False
    """Arms at later steps (matched windows) once more, followed by the learning rates of the first ones (events)."""
    restart: bool = False
    """Every arm once more, with the schedule restarted behind it."""


def fork(store: Store, sweep: str, name: str, question: Question, cell: str | None = None) -> Sweep:
    """The sweep that asks `question` of one cell of `sweep`, with all of its seeds.

    SpecError where there is nothing to fork, no step to intervene at, or no such cell, layer or kind.
    """
    if 0 < question.siblings < FEWEST_SIBLINGS:
        raise SpecError(
            f"{question.siblings} siblings say nothing about chance: at least {FEWEST_SIBLINGS}, and 19 for a p of 0.05"
        )
    parent = open_sweep(store, sweep)
    trials = store.sql("SELECT * FROM trials WHERE sweep = ? AND control = 'none' ORDER BY trial_id", [sweep])
    if trials.empty:
        raise SpecError(f"sweep '{sweep}' has no trials yet: run it first (`ndt sweep {sweep}`)")
    cells = sorted(trials["cell"].unique())
    if cell is None and len(cells) > 1:
        raise SpecError(f"sweep '{sweep}' has {len(cells)} cells: choose one with --cell ({', '.join(cells[:6])}…)")
    cell = cell or cells[0]
    if cell not in cells:
        raise SpecError(f"sweep '{sweep}' has no cell '{cell}'{did_you_mean(cell, cells)}")
    own = trials[trials["cell"] == cell]
    specs = [Trial.model_validate_json(text) for text in own["spec"]]
    targets = list(question.targets)
    does = f"what {question.kind} does to {cell}"
    if question.siblings:
        does = f"{question.siblings} siblings of each trial of {cell}, which differ in batch order alone, branched"
    about = f"Forked from {parent.name}: {does}"
    chosen = _at_events(store, parent.name, own, question, targets) if question.events else []
    if chosen:
        about += f" at {_told(chosen, len(own))}"
    if not chosen and not question.steps:
        raise SpecError("a fork needs steps to intervene at: give --step, or --events for those of the sweep's events")
    if question.siblings:
        targets = [""]
    targets = targets or list(dict.fromkeys(event.layer for event in chosen if event.layer != WHOLE))
    if not targets:
        raise SpecError(f"a fork needs something to act on: give --target, a layer for {question.kind}, or --events")
    where = {(target, step) for target in targets for step in question.steps}
    for event in chosen:
        acted_on = targets if _everywhere(question) else [event.layer]
        where |= {(target, step) for target in acted_on for step in (event.step, *event.controls)}
    places = sorted(where, key=lambda place: (targets.index(place[0]), place[1]))
    arms = [arm for target, step in places for arm in _arms(question, target, step)]
    lead = [event.step for event in chosen] or list(question.steps[:1])
    arms += _other_rates(question, specs[0], arms, lead)
    return make_sweep(
        {
            "name": name,
            "about": about,
            "base": _base(specs[0]),
            "axes": [
                {"path": "seed", "role": "replicate", "values": _seeds(specs)},
                {"path": "control", "role": "compare", "values": ["none", *arms]},
            ],
            "analyses": _analyses(question, chosen),
        }
    )


def _analyses(question: Question, chosen: Sequence["_Event"]) -> list[Any]:
    if not question.siblings:
        matched = [
            {"layer": e.layer, "event": e.step, "trials": list(e.trials), "controls": list(e.controls)} for e in chosen
        ]
        return [{"name": "recovery", "matched": matched}] if matched else ["recovery"]
    declared = {**PRIMARY, "null": "siblings"}
    return [{"name": "series_tests", "nulls": ["siblings"]}, {"name": "events", "primary": declared}]


def _arms(question: Question, target: str, step: int) -> list[str]:
    if question.siblings:
        return [str(Control(kind="reorder", branch=k + 1, at=step)) for k in range(question.siblings)]
    windowed = question.kind in WINDOWED
    doses = question.doses if question.kind in ("ablate", "perturb") else (1.0,)
    out = []
    for dose in doses:
        where: dict[str, Any] = {"damage" if question.kind == "damage" else "layer": target, "at": step, "dose": dose}
        if windowed:
            where["until"] = step + question.length
        try:
            control = Control.model_validate({"kind": question.kind, **where})
        except ValueError as error:
            raise SpecError(f"cannot intervene with {question.kind} on '{target}' at {step}: {error}") from error
        if dose > 0:
            out.append(str(control))
    return out


def _other_rates(question: Question, trial: Trial, arms: Sequence[str], lead: Sequence[int]) -> list[str]:
    """Arms followed by other learning rates than their own, and the lanes that nothing but this is done to."""
    if not (question.lr_matched or question.restart):
        return []
    if trial.train.schedule.name == "constant" and not trial.train.schedule.warmup:
        raise SpecError("the learning rate of these trials is constant: all arms are matched, and a restart is none")
    controls = [Control.model_validate(arm) for arm in arms]
    ends = {c.at: c.ends for c in controls if c.at in lead}
    found: dict[str, None] = {}
    for c in controls:
        froms = [0] if question.restart else []
        froms += [end for at, end in ends.items() if question.lr_matched and end is not None and c.at not in lead]
        for lr_from in (f for f in froms if f != c.ends):
            found[str(Control.model_validate({"kind": "schedule", "lr_from": lr_from, "at": c.ends}))] = None
            found[str(c.model_copy(update={"lr_from": lr_from}))] = None
    return list(found)


def _base(trial: Trial) -> dict[str, Any]:
    """Everything that the trials of a cell share, as a sweep file writes it."""
    base: dict[str, Any] = json.loads(trial.model_dump_json(exclude=set(FILLED_IN), exclude_defaults=True))
    if trial.evaluate.every is None:
        every = max(1, min(trial.measure.every, trial.train.steps // EVALUATIONS))
        base["evaluate"] = {**base.get("evaluate", {}), "every": every}
    return base


def _seeds(trials: Sequence[Trial]) -> list[Any]:
    seeds = sorted((t.seed.model_dump() for t in trials), key=lambda s: tuple(s.values()))
    return [s["init"] if len(set(s.values())) == 1 else s for s in seeds]


@dataclass(frozen=True)
class _Event:
    """Events of one layer whose brackets touch, and the windows without any that are like theirs in all seeds."""

    layer: str
    step: int
    """Median over trials, as `length` is."""
    length: int
    size: float
    trials: tuple[str, ...]
    """Those that have it."""
    controls: tuple[int, ...] = ()


def _told(chosen: Sequence[_Event], seeds: int) -> str:
    said = ", ".join(f"{e.step} of {e.layer} ({len(e.trials)} of {seeds} seeds)" for e in chosen)
    windows = [", ".join(map(str, e.controls)) or "none" for e in chosen]
    return f"{said}; windows matched in all seeds at {'; '.join(windows)}"


def _everywhere(question: Question) -> bool:
    """Whether what is done is done to the network as a whole."""
    return bool(question.kind == "damage" or question.siblings)


def _at_events(
    store: Store, sweep: str, trials: pd.DataFrame, question: Question, targets: Sequence[str]
) -> list[_Event]:
    """The events that most seeds share, each with windows matched to it."""
    if not {"events", "event_families"} <= set(store.names()):
        raise SpecError(f"sweep '{sweep}' has no events yet: `ndt analyze {sweep} events` looks for them")
    every, families = (store.sql(f"SELECT * FROM {t} WHERE sweep = ?", [sweep]) for t in ("events", "event_families"))
    every = every[every["trial_id"].isin(trials["trial_id"])]
    events = primary(every, families)
    layers = set() if _everywhere(question) else set(targets)
    if layers:
        events = events[events["layer"].isin(layers)]
    elif not _everywhere(question):
        events = events[events["layer"] != WHOLE]  # the mean over layers is nothing to act on
    if events.empty:
        among = f" in {', '.join(sorted(layers))}" if layers else ""
        raise SpecError(f"no significant event of sweep '{sweep}'{among}: give --step instead of --events")
    chosen = _shared(events, question.events)
    return _with_controls(store, sweep, chosen, every, trials, question) if question.controls else chosen


def _shared(events: pd.DataFrame, most: int) -> list[_Event]:
    """Events of a layer whose brackets touch are one; those that most seeds share first, then the largest."""
    found: list[_Event] = []
    for layer, rows in events.sort_values("step_before").groupby("layer"):
        group: list[Any] = []
        end = -1
        for row in [*rows.itertuples(), None]:
            if group and (row is None or row.step_before > end):
                found.append(_one(str(layer), group))
                group = []
            if row is not None:
                group.append(row)
                end = max(end, row.step_after) if len(group) > 1 else row.step_after
    return sorted(found, key=lambda e: (-len(e.trials), -e.size, e.step))[:most]


def _one(layer: str, group: Sequence[Any]) -> _Event:
    before = pd.Series([r.step_before for r in group])
    length = pd.Series([r.step_after - r.step_before for r in group])
    size = max(abs(r.relative_size) for r in group)
    trials = tuple(sorted({str(r.trial_id) for r in group}))
    return _Event(layer, int(before.median()), int(length.median()), size, trials)


def _movement(store: Store, sweep: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What windows are matched on: `dynamics` and `scalars`."""
    dynamics, scalars = (store.sql(f"SELECT * FROM {t} WHERE sweep = ?", [sweep]) for t in ("dynamics", "scalars"))
    return dynamics, scalars


def _with_controls(
    store: Store, sweep: str, chosen: Sequence[_Event], every: pd.DataFrame, trials: pd.DataFrame, question: Question
) -> list[_Event]:
    """The events with at most `controls` windows each. A window is as long as what is done, keeps as clear of all
    significant events as `recovery` asks of an arm away from them, and is of one event alone."""
    dynamics, scalars = _movement(store, sweep)
    columns = ["trial_id", "layer", "layer_index", "start", "end"]
    busy = reach(every[every["significant"].astype(bool)])[columns]
    lengths = [max(e.length, question.length) if question.kind in WINDOWED else e.length for e in chosen]
    taken = [(e.layer, e.step, e.step + n) for e, n in zip(chosen, lengths, strict=True)]
    found = []
    for event, length in zip(chosen, lengths, strict=True):
        own = [(trial, *window) for trial in trials["trial_id"] for window in taken]
        others = pd.DataFrame(own, columns=["trial_id", "layer", "start", "end"]).assign(layer_index=0)
        occupied = pd.concat([busy, others[columns]], ignore_index=True)
        if not _everywhere(question):
            occupied = occupied[occupied["layer"] == event.layer]
        window = (event.step, event.step + length)
        starts = windows_of_all(
            window, event.layer, trials, dynamics, scalars, occupied=occupied, most=question.controls
        )
        taken += [(event.layer, start, start + length) for start in starts]
        found.append(replace(event, controls=tuple(starts)))
    return found
