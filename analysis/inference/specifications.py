"""Specifications of the multiverse: which measure, centring, view, detector, threshold and window found which events.

Rules without a null are run here, through the detectors' one interface; calibrated families are read from the sweep's
tested series and candidates, at several false discovery rates. Neither says anything of the other.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ndt_ray.analysis import detection
from ndt_ray.analysis.events.cases import KERNEL, cases
from ndt_ray.analysis.inference import sample
from ndt_ray.analysis.inference.multiplicity import benjamini_bogomolov, bh
from ndt_ray.analysis.series import Series, layer_series
from ndt_ray.errors import SpecError

CONSTANT = 1e-6
"""Relative SD at and below which a series is constant: measures are stored in float32."""
NO_NULL = "none"
EACH_OWN = "*"
_KEY = ["trial_id", "layer_index", "view"]


class Found(NamedTuple):
    """An event, however it was found; `reach`: half its width, in steps."""

    trial_id: str
    layer: str
    time: float
    reach: float


@dataclass(frozen=True)
class Choices:
    """One specification."""

    measure: str
    centring: str
    view: str
    detector: str
    threshold: float | None
    window: float | None
    null: str

    @property
    def name(self) -> str:
        """Short and unique."""
        parts = [self.measure, self.centring, None if self.view == EACH_OWN else self.view, self.detector]
        parts += [f">{self.threshold:g}" if self.threshold is not None else None]
        parts += [f"w{self.window:g}" if self.window is not None else None]
        parts += [self.null if self.null != NO_NULL else None]
        return " ".join(p for p in parts if p)


Place = tuple[str, str]
"""Trial and layer."""


@dataclass
class Specified:
    """What a specification found. `events`: by trial and layer, each its time and reach; `spans`: what was judged."""

    choices: Choices
    primary: bool = False
    events: dict[Place, list[tuple[float, float]]] = field(default_factory=dict)
    spans: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    """First and last step judged, by trial, by layer."""

    def judged(self, trial_id: str, layer: str, first: float, last: float) -> None:
        self.spans.setdefault(trial_id, {})[layer] = (first, last)

    def add(self, events: Iterable[Found]) -> None:
        for event in events:
            self.events.setdefault((event.trial_id, event.layer), []).append((event.time, event.reach))

    def per_series(self) -> dict[str, float]:
        """Events per layer-series of every trial it judged."""
        counts: dict[str, int] = dict.fromkeys(self.spans, 0)
        for (trial, _), own in self.events.items():
            counts[trial] += len(own)
        return {trial: counts[trial] / len(layers) for trial, layers in self.spans.items()}


def by_rules(
    rows: pd.DataFrame,
    moves: pd.DataFrame,
    every: Mapping[str, int],
    measures: Sequence[str],
    velocities: Sequence[str],
    rules: Sequence[Mapping[str, Any]],
) -> list[Specified]:
    """Every measure × centring × view × rule over all trials, and every velocity × rule; every: grid by trial_id.

    `rows`: measurements, of layers with several views those of their own first; `moves`: of the table velocity.
    Where there are several views, each of any layer is a specification: layers without it are judged in their own, so
    that all compare the same layers. A measure's uncentred twin is its column `…_uncentred`. Runs of flagged neighbours
    are one event, at the strongest. The change from step 0 is left out, as everywhere (Adam's first step is a sign
    step).
    """
    made = [(dict(rule), detection.make(rule["detector"], _parameters(rule))) for rule in rules]
    given = [_rule(rule) for rule, _ in made]
    if len(set(given)) < len(given):
        raise SpecError("multiverse: two rules are alike in detector, threshold and window - leave one out")
    columns = [c for m in measures for c in (m, f"{m}_uncentred") if c in rows]
    found: dict[Choices, Specified] = {}
    seen = rows.drop_duplicates(["trial_id", "layer", "view"]) if len(rows) else rows
    further = sorted(seen.loc[seen.duplicated(["trial_id", "layer"]), "view"].unique()) if len(rows) else []
    of_trial, moving = (dict(iter(t.groupby("trial_id"))) if len(t) else {} for t in (rows, moves))
    for trial_id, grid in sorted(every.items()):
        own = of_trial.get(trial_id, rows.iloc[:0])
        views_of = own.groupby("layer", sort=False)["view"].unique() if len(own) else {}
        moved = moving.get(trial_id, moves.iloc[:0])
        rates = cases(own.iloc[:0], moved, measures=(), velocities=velocities, grid="linear", every=grid)
        each = (*layer_series(own, columns, grid), *(case.judged for case in rates))
        for series in each:
            tested = series.since(1)
            if len(tested.steps) < 4:
                continue
            if series.view == KERNEL:  # velocity has no other view
                views = [EACH_OWN]
            else:
                known = list(views_of[series.layer])
                is_own = series.view == known[0]
                views = [v for v in further if series.view == v or (is_own and v not in known)]
                views += [EACH_OWN] if is_own else []
            for rule, detector in made:
                events = [] if _constant(tested) else list(_events(trial_id, tested, detector))
                for view in views:
                    choices = _choices(series, view, rule)
                    into = found.setdefault(choices, Specified(choices))
                    into.judged(trial_id, series.layer, float(tested.steps[0]), float(tested.steps[-1]))
                    into.add(events)
    return list(found.values())


def by_families(
    tests: pd.DataFrame,
    candidates: pd.DataFrame,
    families: Sequence[sample.Family],
    trials: Sequence[str],
    alphas: Sequence[float],
    declared: float,
) -> list[Specified]:
    """Every calibrated family at every rate; `declared`: the rate of the primary specification.

    Selection over a family is done again at each rate, with the p-values of its series.
    """
    found = []
    for family in families:
        own = sample.calibrated(family, tests)
        own = own[own["trial_id"].isin(trials)]
        if own.empty:
            continue
        q = bh(own["p"].astype(float))
        name, centring = _centring(family.measure, str(own["view"].iloc[0]))
        for alpha in alphas:
            choices = Choices(name, centring, family.view, family.detector, alpha, None, family.null)
            into = Specified(choices, primary=family.primary and alpha == declared)
            for row in own.itertuples(index=False):
                into.judged(
                    row.trial_id, row.layer, float(row.grid_start), float(row.grid_start + row.grid_every * row.n)
                )
            level = benjamini_bogomolov(int((q <= alpha).sum()), int(np.isfinite(q).sum()), alpha)
            into.add(_selected(family, own[q <= alpha], candidates, level))
            found.append(into)
    return found


def _selected(family: sample.Family, series: pd.DataFrame, candidates: pd.DataFrame, level: float) -> Iterator[Found]:
    if candidates.empty or series.empty:
        return
    mine = candidates[family.has(candidates) & (candidates["p_event"].astype(float) <= level)]
    for row in mine.merge(series[_KEY], on=_KEY).drop_duplicates([*_KEY, "step_before"]).itertuples(index=False):
        middle = row.step_location
        middle = (row.step_before + row.step_after) / 2 if pd.isna(middle) else middle
        yield Found(row.trial_id, row.layer, float(middle), 0.0 if pd.isna(row.width) else float(row.width) / 2)


def _events(trial_id: str, series: Series, detector: detection.Detector) -> Iterator[Found]:
    events = detector(series.steps, series.values)
    start = 0
    for run in detection.merged(events.index):
        strongest = start + int(np.argmax(np.abs(events.z[start : start + len(run)])))
        start += len(run)
        before, after = float(events.step_before[strongest]), float(events.step_after[strongest])
        yield Found(trial_id, series.layer, (before + after) / 2, (after - before) / 2)


def _constant(series: Series) -> bool:
    return float(np.std(series.values)) <= CONSTANT * float(np.abs(series.values).max())


def _choices(series: Series, view: str, rule: Mapping[str, Any]) -> Choices:
    (measure, centring), (detector, threshold, window) = _centring(series.measure, series.view), _rule(rule)
    return Choices(measure, centring, view, detector, threshold, window, NO_NULL)


def _rule(rule: Mapping[str, Any]) -> tuple[str, float | None, float | None]:
    """Detector, threshold and window."""
    window = next((float(rule[key]) for key in ("window", "sigma") if key in rule), None)
    threshold = next((float(rule[key]) for key in ("threshold", "penalty") if key in rule), None)
    return rule["detector"], threshold, window


def _centring(column: str, view: str) -> tuple[str, str]:
    if view == KERNEL:
        return column, KERNEL
    name = column.removesuffix("_uncentred")
    return name, "centred" if name == column else "uncentred"


def _parameters(rule: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in rule.items() if key != "detector"}
