"""Which events stand for the rest: the few around which checkpoints are saved and mechanisms looked at.

`founding` repeats the published choice, five a run: the two largest of type 5, the two largest of type 4, one of type
3, with its fallbacks where a run lacks a type. Its type 3 was drawn without a seed, so that draw cannot be repeated:
here the eligible event nearest to the median phase stands in (the rule of its own fallback). `balanced` is ours: types
(or phases, where there are no types) in turn, largest effect first, none within the reach of another of its trial.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from ndt_ray.errors import SpecError, did_you_mean

TYPE_3, TYPE_4, TYPE_5 = 2, 3, 4
"""Published types are cluster ids plus one."""

FOUNDING_REACH = 10
"""Measurements before and after an event at which the founding plan saved (it took them for steps)."""


def select(events: pd.DataFrame, n: int = 5, rule: str = "balanced") -> pd.DataFrame:
    """At most `n` rows of the events of one run or of several, in order of time; fewer where there are fewer.

    `founding` needs columns cluster, magnitude, phase, index; `balanced` needs step_before, step_after and phase_bin,
    and uses trial_id (without it all are of one run), type, confirm_relative, relative_size, width and q where there.
    SpecError for an unknown rule, a missing column or a negative n.
    """
    if rule not in _RULES:
        raise SpecError(f"unknown selection rule '{rule}'{did_you_mean(rule, _RULES)}")
    if n < 0:
        raise SpecError(f"a number of events cannot be negative, but got ({n=})")
    needed, choose = _RULES[rule]
    missing = [c for c in needed if c not in events]
    if missing and len(events):
        raise SpecError(f"selection rule '{rule}' needs columns {missing} of the events")
    if events.empty or n == 0:
        return events.iloc[:0]
    return choose(events, n)


def rules() -> list[str]:
    """Names of the selection rules."""
    return sorted(_RULES)


def _founding(events: pd.DataFrame, n: int) -> pd.DataFrame:
    of = {k: events[events["cluster"] == k] for k in (TYPE_3, TYPE_4, TYPE_5)}
    largest = {k: of[k].nlargest(2, "magnitude") if len(of[k]) >= 2 else None for k in (TYPE_4, TYPE_5)}
    early = largest[TYPE_5] if largest[TYPE_5] is not None else events.nsmallest(2, "phase")
    late = largest[TYPE_4] if largest[TYPE_4] is not None else events.nlargest(2, "phase")
    eligible = of[TYPE_3] if len(of[TYPE_3]) else events
    middle = eligible.iloc[(eligible["phase"] - eligible["phase"].median()).abs().argsort(kind="stable")[:1]]
    return pd.concat([early, late, middle]).sort_values("index", kind="stable").head(n)


def founding_steps(selected: pd.DataFrame, reach: int = FOUNDING_REACH) -> list[int]:
    """The checkpoints that the founding plan asked for: before, during and after each, clipped at 0, each once."""
    return sorted({int(s) for i in selected["index"] for s in (max(0, i - reach), i, i + reach)})


def eligible_type_3(events: pd.DataFrame) -> pd.DataFrame:
    """The events among which the founding plan drew its third type at random."""
    return events[events["cluster"] == TYPE_3]


def _balanced(events: pd.DataFrame, n: int) -> pd.DataFrame:
    stratum = events["phase_bin"].astype(str)
    if "type" in events:
        stratum = events["type"].map(lambda t: None if pd.isna(t) else f"type {t}").fillna(stratum)
    size = np.full(len(events), np.nan)
    for column in ("confirm_relative", "relative_size"):
        if column in events:
            size = np.where(np.isnan(size), np.abs(events[column].to_numpy(np.float64, na_value=np.nan)), size)
    ranked = events.assign(_stratum=stratum, _size=np.nan_to_num(size, nan=-1.0))
    ranked = ranked.sort_values(["_size", "step_before"], ascending=[False, True], kind="stable")
    queues = {name: list(group.index) for name, group in ranked.groupby("_stratum", sort=True)}
    strata = sorted(queues, key=lambda name: -float(ranked.loc[queues[name][0], "_size"]))
    chosen: list[object] = []
    while len(chosen) < n and any(queues.values()):
        for name in strata:
            if len(chosen) < n and (found := _apart(queues[name], chosen, ranked)) is not None:
                chosen.append(found)
    return events.loc[chosen].sort_values("step_before", kind="stable")


def _apart(queue: list[object], chosen: Sequence[object], events: pd.DataFrame) -> object | None:
    """The next of a queue whose span overlaps none of those chosen of its trial; the queue loses what was looked at."""
    while queue:
        candidate = queue.pop(0)
        low, high = _span(events, candidate)
        near = (_span(events, c) for c in chosen if _trial(events, c) == _trial(events, candidate))
        if all(high < a or b < low for a, b in near):
            return candidate
    return None


def _trial(events: pd.DataFrame, row: object) -> object:
    return events.at[row, "trial_id"] if "trial_id" in events else None


def _span(events: pd.DataFrame, row: object) -> tuple[float, float]:
    before, after = float(events.at[row, "step_before"]), float(events.at[row, "step_after"])
    width = events.at[row, "width"] if "width" in events else np.nan
    slack = max(0.0, (0.0 if pd.isna(width) else float(width)) - (after - before)) / 2
    return before - slack, after + slack


_RULES: dict[str, tuple[tuple[str, ...], Callable[[pd.DataFrame, int], pd.DataFrame]]] = {
    "founding": (("cluster", "magnitude", "phase", "index"), _founding),
    "balanced": (("step_before", "step_after", "phase_bin"), _balanced),
}
