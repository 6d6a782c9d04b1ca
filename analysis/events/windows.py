"""What happened around each event: its layer, the other layers and the loss, before, during and after.

A loss that falls during an event proves nothing while the loss falls all the time: beside the change stands the mean
change over windows of the same length nearby, and the difference is what the event may claim. `original` repeats the
founding lookup, which read the loss at a fifth of the jump's index.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.detection import Floats, uniform_grid
from ndt_ray.analysis.events.significant import primary
from ndt_ray.analysis.phases import published_phase_bin
from ndt_ray.analysis.series import clock
from ndt_ray.store.schema import Column, Table

NEARBY = 20
"""Measurements on either side from which windows of the same length are taken for comparison."""

EVENT_WINDOWS = Table(
    "event_windows",
    "Layers and loss before, during and after each event.",
    (
        Column("trial_id", "string", "content hash of the trial"),
        Column("layer", "string", "module path"),
        Column("layer_index", "int16", "place in the order of the forward pass"),
        Column("view", "string", "how activations became a matrix"),
        Column("measure", "string", "column of the table that was read"),
        Column("mode", "string", "default: significant events; original: the published jumps and lookup"),
        Column("step_before", "int32", "measurement before the change: its onset", "steps"),
        Column("step_after", "int32", "measurement after it (the end of a wide event)", "steps"),
        Column("phase_bin", "string", "early, mid or late; original drops phase 0, as published"),
        Column("before", "float64", "measure at step_before"),
        Column("during", "float64", "measure half way"),
        Column("after", "float64", "measure at step_after"),
        Column("change", "float64", "after - before"),
        Column("n_layers", "int32", "other layers compared"),
        Column("n_coordinated", "int32", "of these, layers that changed by over 3 noise SDs and 1 % of their level"),
        Column("coordinated_expected", "float64", "mean number of the same over nearby windows of the same length"),
        Column("top_layers", "string", "the three layers with the largest change in noise SDs, as JSON"),
        Column("loss_before", "float64", "probe loss at step_before; original: mini-batch loss", "nats"),
        Column("loss_after", "float64", "the same at step_after", "nats"),
        Column("loss_change", "float64", "after - before", "nats"),
        Column("loss_expected", "float64", "mean change over nearby windows of the same length", "nats"),
        Column("loss_fell_expected", "float64", "share of those windows in which the loss fell"),
    ),
    ("trial_id", "mode", "measure", "layer_index", "view", "step_before"),
)


@analysis(
    name="event_windows",
    reads=("trials", "events", "event_families", "measurements", "scalars", "jumps"),
    writes=(EVENT_WINDOWS,),
    per="trial",
)
def event_windows(data: AnalysisInput, *, modes: Sequence[str] = ("default", "original")) -> dict[str, pd.DataFrame]:
    """Layers and loss before, during and after each event, beside windows of the same length nearby."""
    trial = clock(data.frame("trials"), data.frame("measurements"))
    rows: list[dict[str, Any]] = []
    scalars = data.frame("scalars")
    events = primary(data.frame("events"), data.frame("event_families"))
    if "default" in modes and len(events):
        loss = _column(scalars, "probe_loss")
        for measure, own in events.groupby("measure", sort=True):
            wide = _wide(data.frame("measurements"), str(measure), trial.every)
            rows += [_window(event, wide, loss, trial.every) for event in own.to_dict("records")]
    jumps = data.frame("jumps")
    if "original" in modes and len(jumps):
        published = jumps[(jumps["mode"] == "original") & (jumps["detector"] == "difference_z")]
        rows += _published(published, _column(scalars, "batch_loss"))
    table = pd.DataFrame(rows)
    return {"event_windows": table.drop_duplicates(list(EVENT_WINDOWS.order)) if len(table) else table}


def _column(scalars: pd.DataFrame, name: str) -> pd.Series:
    if scalars.empty or name not in scalars:
        return pd.Series(dtype=np.float64)
    return scalars.set_index("step")[name].astype(np.float64).dropna().sort_index()


def _wide(rows: pd.DataFrame, measure: str, every: int) -> pd.DataFrame:
    """Steps of the grid × (layer index, layer, view); a measure that is not in the rows gives no columns."""
    if rows.empty or measure not in rows:
        return pd.DataFrame()
    wide = rows.pivot_table(index="step", columns=["layer_index", "layer", "view"], values=measure, dropna=False)
    return wide.iloc[uniform_grid(wide.index.to_numpy(), every)]


def _window(event: dict[str, Any], wide: pd.DataFrame, loss: pd.Series, every: int) -> dict[str, Any]:
    before, after = _ends(event, wide)
    identity = {k: event[k] for k in ("trial_id", "layer", "layer_index", "view", "measure", "phase_bin")}
    row = identity | {"mode": "default", "step_before": int(event["step_before"]), "step_after": after}
    key = (event["layer_index"], event["layer"], event["view"])
    if key in wide:
        own = wide[key]
        middle = _nearest(own, (before + after) / 2)
        values = (own.get(before), middle, own.get(after))
        row |= dict(zip(("before", "during", "after"), values, strict=True))
        known = values[0] is not None and values[2] is not None
        row["change"] = values[2] - values[0] if known else None
    else:
        row |= dict.fromkeys(("before", "during", "after", "change"))
    others = wide[[c for c in wide.columns if c != key]]
    return row | _others(others, before, after) | _loss(loss, before, after, every)


def _ends(event: dict[str, Any], wide: pd.DataFrame) -> tuple[int, int]:
    """The measurements that bracket an event: its own, or those that hold a width larger than theirs."""
    before, after = int(event["step_before"]), int(event["step_after"])
    width, at = event.get("width"), event.get("step_location")
    if width is None or at is None or pd.isna(width) or pd.isna(at) or width <= after - before or wide.empty:
        return before, after
    steps = wide.index.to_numpy()
    first = steps[np.searchsorted(steps, at - width / 2, side="right") - 1] if steps[0] <= at - width / 2 else steps[0]
    last = steps[min(int(np.searchsorted(steps, at + width / 2)), len(steps) - 1)]
    return min(before, int(first)), max(after, int(last))


def _nearest(values: pd.Series, step: float) -> float | None:
    known = values.dropna()
    return float(known.iloc[int(np.abs(known.index.to_numpy() - step).argmin())]) if len(known) else None


def _changes(values: Floats, length: int) -> Floats:
    """Changes over `length` measurements, from every place `[T - length, ...]`."""
    found: Floats = values[length:] - values[:-length]
    return found


def _places(steps: Any, before: int, after: int) -> tuple[int, int] | None:
    i, j = np.searchsorted(steps, (before, after))
    inside = j < len(steps) and j > i and steps[i] == before and steps[j] == after
    return (int(i), int(j)) if inside else None


def _around(n: int, i: int, j: int) -> list[int]:
    """Starts of windows of the same length within NEARBY measurements that do not touch the event."""
    length = j - i
    starts = [*range(max(0, i - NEARBY - length), i - length + 1), *range(j, min(n - length, j + NEARBY + 1))]
    return [s for s in starts if 0 <= s and s + length < n]


def _others(others: pd.DataFrame, before: int, after: int) -> dict[str, Any]:
    blank: dict[str, Any] = {"n_layers": 0, "n_coordinated": None, "coordinated_expected": None, "top_layers": "[]"}
    places = _places(others.index.to_numpy(), before, after) if len(others.columns) else None
    if places is None:
        return blank
    i, j = places
    others = others.loc[:, others.notna().sum() > 1]
    if others.empty:
        return blank
    values = others.to_numpy(np.float64)
    steps = np.diff(values, axis=0)
    noise = 1.4826 * np.nanmedian(np.abs(steps - np.nanmedian(steps, axis=0)), axis=0)
    moved = np.abs(_changes(values, j - i))
    floor = np.maximum(3 * noise, 0.01 * np.abs(values[: len(moved)]))
    coordinated = (moved > floor) & np.isfinite(moved)
    score = np.nan_to_num(np.divide(moved[i], noise, out=np.zeros_like(noise), where=noise > 0))
    top = [str(others.columns[k][1]) for k in np.argsort(-score, kind="stable")[:3] if score[k] > 0]
    near = _around(len(values), i, j)
    return {
        "n_layers": values.shape[1],
        "n_coordinated": int(coordinated[i].sum()),
        "coordinated_expected": float(coordinated[near].sum(axis=1).mean()) if near else None,
        "top_layers": json.dumps(top),
    }


def _loss(loss: pd.Series, before: int, after: int, every: int) -> dict[str, Any]:
    names = ("loss_before", "loss_after", "loss_change", "loss_expected", "loss_fell_expected")
    grid = loss.iloc[uniform_grid(loss.index.to_numpy(), every)]
    places = _places(grid.index.to_numpy(), before, after)
    if places is None:
        return dict.fromkeys(names)
    i, j = places
    values = grid.to_numpy()
    near = _changes(values, j - i)[_around(len(values), i, j)]
    expected = (float(near.mean()), float((near < 0).mean())) if len(near) else (None, None)
    return dict(zip(names, (values[i], values[j], values[j] - values[i], *expected), strict=True))


def published_loss_change(index: Any, loss: Floats) -> Floats:
    """The founding "loss change" of jumps: loss two measurements after - before measurement index // 5.

    NaN where that lies within two measurements of an end: those jumps were passed over.
    """
    place = np.asarray(index) // 5
    inside = (place > 2) & (place < len(loss) - 2)
    found = np.full(len(place), np.nan)
    found[inside] = loss[place[inside] + 2] - loss[place[inside] - 2]
    return found


def _published(jumps: pd.DataFrame, loss: pd.Series) -> list[dict[str, Any]]:
    names = ["trial_id", "layer", "layer_index", "view", "measure", "step_before", "step_after"]
    change = published_loss_change(jumps["index"].to_numpy(), loss.to_numpy()) if len(loss) else np.nan
    absent = ("before", "during", "after", "n_coordinated", "coordinated_expected", "loss_before", "loss_after")
    table = jumps[names].assign(
        mode="original",
        phase_bin=published_phase_bin(jumps["phase"]),
        change=np.where(jumps["direction"] == "increase", 1, -1) * jumps["magnitude"],
        loss_change=change,
        n_layers=0,
        top_layers="[]",
        **dict.fromkeys((*absent, "loss_expected", "loss_fell_expected")),
    )
    return list(table.to_dict("records"))
