"""Which trials are looked at, and at which checkpoints: around events, or at both ends and the middle of training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ndt_ray.analysis.mechanisms.matching import arms, around_events, selected
from ndt_ray.analysis.mechanisms.tables import WHOLE
from ndt_ray.analysis.taxonomy.representatives import select
from ndt_ray.errors import SpecError, did_you_mean

CANDIDATES = 3
"""Of a trial, where no event is significant: as in the analysis `mechanisms`."""
WIDEST = 0.25
"""Of the run, between the checkpoints around an event: as there."""
AROUND, ALONG = ("before", "during", "after"), ("first", "middle", "last")


@dataclass(frozen=True)
class Moment:
    """A trial and up to three steps of it, by word; `layer` is the event's, None for all of them."""

    trial: str
    cell: str
    steps: Mapping[str, int]
    layer: str | None = None
    event: tuple[int, int] | None = None
    exploratory: bool = False

    @property
    def name(self) -> str:
        """Of its folder."""
        layer = "" if self.layer is None else f"_{self.layer}"
        ends = list(self.steps.values())
        return f"{self.trial[:6]}_{ends[0]}-{ends[-1]}{layer if self.event else ''}"

    @property
    def words(self) -> str:
        """The event, or that there is none."""
        if self.event is None:
            return "no event: first, middle and last checkpoint"
        what = "candidate, not significant," if self.exploratory else "event"
        where = "the mean over layers" if self.layer is None else self.layer
        return f"{what} of {where} between steps {self.event[0]:,} and {self.event[1]:,}"

    @property
    def shows(self) -> str:
        """Trial and steps, for a caption."""
        at = ", ".join(f"{step:,} ({word})" for word, step in self.steps.items())
        return f"{self.cell}, trial {self.trial[:12]}, steps {at}; {self.words}"


@dataclass(frozen=True)
class Left:
    """An event or cell that cannot be looked at."""

    what: str
    reason: str


def chosen_trials(trials: pd.DataFrame, wanted: Sequence[str]) -> pd.DataFrame:
    """Rows of the trials whose ids begin with one of `wanted`; all without any. SpecError for what fits none."""
    known = trials["trial_id"].astype(str)
    for start in wanted:
        if not known.str.startswith(start).any():
            raise SpecError(f"no trial of this sweep begins with '{start}'{did_you_mean(start, list(known))}")
    return trials[known.str.startswith(tuple(wanted))] if wanted else trials


def saved_steps(trials: pd.DataFrame, checkpoints: pd.DataFrame) -> dict[str, NDArray[np.int64]]:
    """Steps of each trial at which there is a network: its checkpoints, and the initialisation."""
    saved = checkpoints.groupby("trial_id")["step"].agg(list).to_dict() if len(checkpoints) else {}
    return {str(t): np.array(sorted({0, *map(int, saved.get(t, []))})) for t in trials["trial_id"]}


def moments(
    trials: pd.DataFrame,
    checkpoints: pd.DataFrame,
    events: pd.DataFrame,
    families: pd.DataFrame,
    *,
    wanted: Sequence[str] = (),
    per_cell: int = 2,
) -> tuple[list[Moment], list[Left]]:
    """At most `per_cell` events of each cell that have checkpoints around them; else one trial of it, along training.

    Significant events of primary families, or else candidates, which say so. `wanted`: beginnings of trials' ids; each
    such trial is looked at. The trial that stands for a cell without events is its first seed of those trained longest.
    """
    if per_cell < 0:
        raise SpecError(f"a number of events cannot be negative, but got ({per_cell=})")
    own = chosen_trials(trials, wanted)
    own = own[own["control"].astype(str) == "none"] if not wanted and "control" in own else own
    own = own.assign(_cell=arms(own)) if len(own) else own.assign(_cell=[])
    steps, left, found = saved_steps(own, checkpoints), [], []
    spread = _events(events[events["trial_id"].isin(own["trial_id"])] if len(events) else events, families)
    near = around_events(spread, steps, own, WIDEST) if len(spread) else spread
    for event in spread.loc[spread.index.difference(near.index)].itertuples() if len(spread) else ():
        kind = "candidate, not significant," if event.exploratory else "event"
        what = (
            f"{kind} of {event.layer} at {event.step_before:,}-{event.step_after:,}, trial {str(event.trial_id)[:12]}"
        )
        # Only what is significant is planned around.
        mend = "`checkpoint: {every: …}` keeps some from the start" if event.exploratory else "--run brings them back"
        left.append(Left(what, f"no checkpoints within {WIDEST:.0%} of the run: {mend}"))
    for cell, group in own.groupby("_cell", sort=True):
        mine = near[near["trial_id"].isin(group["trial_id"])] if len(near) else near
        mine = select(mine, per_cell) if len(mine) else mine
        found += [_around(row, str(cell)) for row in mine.itertuples()]
        seen = {moment.trial for moment in found}
        for trial in group["trial_id"].astype(str) if wanted else [] if len(mine) else [_longest(group, steps)]:
            if trial not in seen:
                found.append(Moment(trial, str(cell), _along(steps[trial])))
            if len(steps[trial]) == 1:
                left.append(Left(f"trial {trial[:12]}", "no checkpoints were saved: only its initialisation is shown"))
    return found, left


def _events(events: pd.DataFrame, families: pd.DataFrame) -> pd.DataFrame:
    """The events that `mechanisms` looks at, with what a choice among them needs."""
    if events.empty:
        return events
    keys = ["trial_id", "layer", "step_before", "step_after"]
    chosen = selected(events, families, CANDIDATES)
    more = [c for c in ("phase_bin", "confirm_relative", "relative_size", "width", "q") if c in events]
    return chosen.merge(events.drop_duplicates(keys)[[*keys, *more]], on=keys, how="left")


def _around(row: Any, cell: str) -> Moment:
    at = dict(zip(AROUND, (int(row.start), int(row.middle), int(row.end)), strict=True))
    steps = {name: step for name, step in at.items() if step >= 0}
    layer = None if row.layer == WHOLE else str(row.layer)
    event = (int(row.step_before), int(row.step_after))
    return Moment(str(row.trial_id), cell, steps, layer, event, bool(row.exploratory))


def _longest(group: pd.DataFrame, steps: Mapping[str, NDArray[np.int64]]) -> str:
    ordered = group.sort_values([c for c in ("seed", "trial_id") if c in group])["trial_id"].astype(str)
    return str(max(ordered, key=lambda trial: int(steps[trial][-1])))


def _along(saved: NDArray[np.int64]) -> dict[str, int]:
    if len(saved) < 3:
        return {word: int(step) for word, step in zip(("first", "last"), saved, strict=False)}
    return dict(zip(ALONG, (int(saved[0]), int(saved[len(saved) // 2]), int(saved[-1])), strict=True))
