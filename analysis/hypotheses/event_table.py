"""The table of the founding plan's third phase: events, and what was measured of their layers before and after."""

import math
from dataclasses import dataclass

import pandas as pd

from ndt_ray.analysis.inference.sample import relative_sizes
from ndt_ray.architectures import family_of
from ndt_ray.store.schema import Column, Table

EVENT_MECHANISMS = Table(
    "event_mechanisms",
    "One row per event of the declared family: what was measured of its layer before and after.",
    (
        Column("trial_id", "string", "content hash of the trial (experiment_id)"),
        Column("cell", "string", "architecture × data set"),
        Column("arch_type", "string", "family of the architecture: mlp, cnn, transformer or other"),
        Column("layer", "string", "layer of the event"),
        Column("jump_step", "int32", "onset of the event", "steps"),
        Column("jump_magnitude", "float64", "|relative size|; from the confirm probe where it was measured"),
        Column("num_jumps", "int32", "significant events of the trial"),
        Column("new_feature_types_after", "int32", "kinds of features that were not there at the checkpoint before"),
        Column(
            "new_feature_types_window",
            "int32",
            "the same over the window that controls were matched to: its checkpoints may lie further apart",
        ),
        Column("new_feature_types_controls", "float64", "mean of the same over the matched windows without an event"),
        Column("feature_types_changed", "float64", "share of units whose word changes over the event's window"),
        Column("feature_types_changed_controls", "float64", "mean of the same over the matched windows"),
        Column("feature_types_changed_chance", "float64", "share whose word differs by the ascent's seed, at its ends"),
        Column("n_feature_controls", "int32", "matched windows with features at both ends"),
        Column("selectivity_before_jump", "float64", "mean class selectivity at the last checkpoint before"),
        Column("selectivity_after_jump", "float64", "the same at the first checkpoint after"),
        Column("selectivity_increase", "float64", "after - before"),
        Column("compositional_depth", "float64", "longest chain of dependent units at the first checkpoint after"),
    ),
    ("trial_id", "layer", "jump_step"),
)


def event_table(
    trials: pd.DataFrame,
    events: pd.DataFrame,
    features: pd.DataFrame,
    unit_metrics: pd.DataFrame,
    composition: pd.DataFrame,
    windows: pd.DataFrame,
) -> pd.DataFrame:
    """Rows of `event_mechanisms` for the events of one family; values whose checkpoints are missing are null.

    `windows`: rows of `mechanism_windows`, whose matched windows are what an event's features are compared with.
    """
    if events.empty:
        return pd.DataFrame()
    known = trials.set_index("trial_id")
    kept = events[events["trial_id"].isin(known.index)]
    selectivity = _series(unit_metrics, "class_selectivity")
    depth = _series(composition, "compositional_depth")
    words = _words(features)
    compared = _windows(windows)
    counts = kept.groupby("trial_id").size()
    rows = []
    for e, size in zip(kept.itertuples(), relative_sizes(kept), strict=True):
        trial, layer, first, last = str(e.trial_id), str(e.layer), int(e.step_before), int(e.step_after)
        before, after = _around(selectivity.get((trial, layer), {}), first, last)
        rows.append(
            {
                "trial_id": trial,
                "cell": known.loc[trial, "cell"],
                "arch_type": family_of(str(known.loc[trial, "model"])),
                "layer": layer,
                "jump_step": first,
                "jump_magnitude": float(size),
                "num_jumps": int(counts[trial]),
                "new_feature_types_after": _new(words.get((trial, layer), {}), first, last),
                **_against(words.get((trial, layer), {}), compared.get((trial, layer, first, last), [])),
                "selectivity_before_jump": before,
                "selectivity_after_jump": after,
                "selectivity_increase": after - before,
                "compositional_depth": _around(depth.get((trial, "*"), {}), first, last)[1],
            }
        )
    return pd.DataFrame(rows)


def _series(rows: pd.DataFrame, metric: str) -> dict[tuple[str, str], dict[int, float]]:
    """(trial, layer) -> {checkpoint: value} of a metric of the whole layer."""
    if rows.empty:
        return {}
    own = rows[(rows["metric"] == metric) & (rows["part"] == "*")].dropna(subset=["value"])
    return {
        (str(t), str(layer)): dict(zip(g["step"].astype(int), g["value"].astype(float), strict=True))
        for (t, layer), g in own.groupby(["trial_id", "layer"])
    }


@dataclass(frozen=True)
class _Words:
    """Units of a layer at a checkpoint: the word of each, and from another seed of the ascent of some."""

    first: pd.Series
    again: pd.Series

    @property
    def kinds(self) -> set[str]:
        return set(self.first)


def _words(features: pd.DataFrame) -> dict[tuple[str, str], dict[int, _Words]]:
    if features.empty:
        return {}
    own = features[features["flag"].isna()]
    found: dict[tuple[str, str], dict[int, _Words]] = {}
    for (trial, layer, step), g in own.groupby(["trial_id", "layer", "step"]):
        rows = g.set_index("unit")
        again = rows["again_type"].dropna() if "again_type" in rows else rows["feature_type"].iloc[:0]
        found.setdefault((str(trial), str(layer)), {})[int(step)] = _Words(rows["feature_type"], again)
    return found


Window = tuple[int, int]


def _windows(rows: pd.DataFrame) -> dict[tuple[str, str, int, int], list[Window]]:
    """Windows by event, the event's own first."""
    found: dict[tuple[str, str, int, int], list[Window]] = {}
    if rows.empty:
        return found
    names = ("trial_id", "layer", "step_before", "step_after", "start", "end")
    columns = (rows.sort_values("control", kind="stable")[name].tolist() for name in names)
    for trial, layer, first, last, start, end in zip(*columns, strict=True):
        found.setdefault((str(trial), str(layer), int(first), int(last)), []).append((int(start), int(end)))
    return found


def _against(words: dict[int, _Words], windows: list[Window]) -> dict[str, float]:
    """Features over an event's window and the ones matched to it, where there are features at both ends."""
    pairs = [(words.get(start), words.get(end)) for start, end in windows]
    new = [float(len(b.kinds - a.kinds)) if a and b else math.nan for a, b in pairs]
    changed = [_changed(a.first, b.first) if a and b else math.nan for a, b in pairs]
    ends = [w for w in (pairs[0] if pairs else ()) if w is not None]
    by_seed = [_changed(w.first, w.again) for w in ends]
    return {
        "new_feature_types_window": new[0] if new else math.nan,
        "new_feature_types_controls": _mean(new[1:]),
        "feature_types_changed": changed[0] if changed else math.nan,
        "feature_types_changed_controls": _mean(changed[1:]),
        "feature_types_changed_chance": _mean(by_seed),
        "n_feature_controls": sum(map(math.isfinite, changed[1:])),
    }


def _changed(before: pd.Series, after: pd.Series) -> float:
    """Share of the units in both whose word differs."""
    both = before.index.intersection(after.index)
    return float((before.loc[both] != after.loc[both]).mean()) if len(both) else math.nan


def _mean(values: list[float]) -> float:
    known = [v for v in values if math.isfinite(v)]
    return sum(known) / len(known) if known else math.nan


def _around(series: dict[int, float], first: int, last: int) -> tuple[float, float]:
    """Values at the last checkpoint at or before `first` and the first at or after `last`."""
    before = [s for s in series if s <= first]
    after = [s for s in series if s >= last]
    return (series[max(before)] if before else math.nan, series[min(after)] if after else math.nan)


def _new(words: dict[int, _Words], first: int, last: int) -> float:
    before, after = [s for s in words if s <= first], [s for s in words if s >= last]
    return float(len(words[min(after)].kinds - words[max(before)].kinds)) if before and after else math.nan
