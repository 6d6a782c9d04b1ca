"""The table of the founding plan's third phase: events, and what was measured of their layers before and after."""

import math

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
) -> pd.DataFrame:
    """Rows of `event_mechanisms` for the events of one family; values whose checkpoints are missing are null."""
    if events.empty:
        return pd.DataFrame()
    known = trials.set_index("trial_id")
    kept = events[events["trial_id"].isin(known.index)]
    selectivity = _series(unit_metrics, "class_selectivity")
    depth = _series(composition, "compositional_depth")
    words = _words(features)
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


def _words(features: pd.DataFrame) -> dict[tuple[str, str], dict[int, set[str]]]:
    if features.empty:
        return {}
    own = features[features["flag"].isna()]
    found: dict[tuple[str, str], dict[int, set[str]]] = {}
    for (trial, layer, step), g in own.groupby(["trial_id", "layer", "step"]):
        found.setdefault((str(trial), str(layer)), {})[int(step)] = set(g["feature_type"])
    return found


def _around(series: dict[int, float], first: int, last: int) -> tuple[float, float]:
    """Values at the last checkpoint at or before `first` and the first at or after `last`."""
    before = [s for s in series if s <= first]
    after = [s for s in series if s >= last]
    return (series[max(before)] if before else math.nan, series[min(after)] if after else math.nan)


def _new(words: dict[int, set[str]], first: int, last: int) -> float:
    before, after = [s for s in words if s <= first], [s for s in words if s >= last]
    return float(len(words[min(after)] - words[max(before)])) if before and after else math.nan
