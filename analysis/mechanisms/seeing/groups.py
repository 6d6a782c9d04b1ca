"""The founding plan's qualitative log, computed: what groups of units answer to before, during and after an event.

A group is the units of a layer that had one word at the checkpoint before. Its observation is a sentence made of
counts: what became of the word, how the response to the made image changed, and how many units the ascent drives
further than any image of the probe.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.events.significant import primary
from ndt_ray.store.schema import Column, Table

FEATURE_GROUPS = Table(
    "feature_groups",
    "Groups of units by what they answered to before an event, and what became of them: a log in computed sentences.",
    (
        Column("trial_id", "string", "content hash of the trial"),
        Column("layer", "string", "module path"),
        Column("layer_index", "int16", "place of a tracked layer in the forward pass"),
        Column("event", "bool", "around an event; false: around the middle of a run without events in this layer"),
        Column("step_before", "int32", "onset of the event, or first checkpoint", "steps"),
        Column("step_after", "int32", "measurement after it, or last checkpoint", "steps"),
        Column("feature_type", "string", "the group's word at the checkpoint before"),
        Column("units", "list:int32", "which units these are"),
        Column("n", "int32", "how many"),
        Column("checkpoint_before", "int32", "last checkpoint at or before step_before", "steps"),
        Column("checkpoint_during", "int32", "checkpoint inside, nearest to the middle; null for none", "steps"),
        Column("checkpoint_after", "int32", "first checkpoint at or after step_after", "steps"),
        Column("during_type", "string", "their commonest word during; null for none"),
        Column("after_type", "string", "their commonest word after"),
        Column("kept", "float64", "share whose word after is the one before"),
        Column("gain", "float64", "mean log ratio of the responses, after / before; null where one is not above 0"),
        Column("beats_data_after", "float64", "share that the made image drives further than any image of the probe"),
        Column("observation", "string", "these numbers as a sentence"),
    ),
    ("trial_id", "layer_index", "step_before", "step_after", "feature_type"),
)


@analysis(name="feature_groups", reads=("features", "events", "event_families"), writes=(FEATURE_GROUPS,), per="trial")
def feature_groups(data: AnalysisInput) -> dict[str, pd.DataFrame]:
    """Neuron groups by feature type before, during and after events of their layer, with a computed observation."""
    rows = data.frame("features")
    if rows.empty:
        return {FEATURE_GROUPS.name: pd.DataFrame()}
    events = primary(data.frame("events"), data.frame("event_families"))
    found: list[dict[str, Any]] = []
    for (index, layer), own in rows[rows["flag"].isna()].groupby(["layer_index", "layer"], sort=True):
        who = {"trial_id": str(data.partition.trial_id), "layer": layer, "layer_index": index}
        known = events[events["layer"] == layer] if len(events) else events
        windows = sorted({(int(e.step_before), int(e.step_after)) for e in known.itertuples()})
        steps = sorted(int(s) for s in own["step"].unique())
        whole = [(steps[0], steps[-1])] if len(steps) > 1 else []
        for first, last in windows or whole:
            found += [who | {"event": bool(windows)} | row for row in groups(own, first, last)]
    return {FEATURE_GROUPS.name: pd.DataFrame(found)}


def groups(features: pd.DataFrame, first: int, last: int) -> Iterator[dict[str, Any]]:
    """Rows of a layer for one window; none where no checkpoint lies on either side of it.

    `features`: rows of the table `features` of one layer, without flags.
    """
    steps = np.sort(features["step"].unique())
    before, after = steps[steps <= first], steps[steps >= last]
    if not len(before) or not len(after):
        return
    at = {"before": int(before[-1]), "after": int(after[0])}
    inside = steps[(steps > first) & (steps < last)]
    if len(inside):
        at["during"] = int(inside[np.abs(inside - (first + last) / 2).argmin()])
    by_unit = {name: features[features["step"] == step].set_index("unit") for name, step in at.items()}
    common = by_unit["before"].index
    for rows in by_unit.values():
        common = common.intersection(rows.index)
    seen = {name: rows.loc[common] for name, rows in by_unit.items()}
    for word, group in seen["before"].groupby("feature_type", sort=True):
        then = {name: rows.loc[group.index] for name, rows in seen.items()}
        yield {"step_before": first, "step_after": last} | _row(str(word), then, at)


def _row(word: str, then: dict[str, pd.DataFrame], at: dict[str, int]) -> dict[str, Any]:
    before, after = then["before"], then["after"]
    words = {name: _commonest(rows["feature_type"]) for name, rows in then.items()}
    start, end = (rows["activation"].to_numpy(np.float64, na_value=np.nan) for rows in (before, after))
    positive = (start > 0) & (end > 0)
    gain = float(np.log(end[positive] / start[positive]).mean()) if positive.any() else float("nan")
    kept = float((after["feature_type"] == word).mean())
    beats = float(after["beats_data"].astype(float).mean())
    row = {
        "feature_type": word,
        "units": np.asarray(before.index, dtype=np.int32),
        "n": len(before),
        "checkpoint_before": at["before"],
        "checkpoint_during": at.get("during"),
        "checkpoint_after": at["after"],
        "during_type": words.get("during"),
        "after_type": words["after"],
        "kept": kept,
        "gain": gain,
        "beats_data_after": beats,
    }
    return row | {"observation": observation(row, after["feature_type"])}


def observation(row: dict[str, Any], after: pd.Series) -> str:
    """A sentence made of a group's numbers; `after`: its units' words at the checkpoint after."""
    n, word = row["n"], row["feature_type"]
    who = f"{n} unit{'' if n == 1 else 's'} of type {word} at step {row['checkpoint_before']}"
    other = after[after != word].value_counts()
    became = ", ".join(f"{count} {name}" for name, count in sorted(other.items(), key=lambda x: (-x[1], x[0])))
    said = [f"{n - int(other.sum())} keep it at step {row['checkpoint_after']}" + (f", {became}" if became else "")]
    if row["during_type"] is not None:
        said.insert(0, f"mostly {row['during_type']} at step {row['checkpoint_during']}")
    if np.isfinite(row["gain"]):
        said.append(f"responses to made images x {np.exp(row['gain']):.2f}")
    said.append(f"{round(row['beats_data_after'] * n)} driven further than by any probe image")
    return f"{who}: {'; '.join(said)}."


def _commonest(words: pd.Series) -> str:
    counts = words.value_counts()
    return str(sorted(counts[counts == counts.max()].index)[0])
