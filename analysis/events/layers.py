"""Where in the network events happen: by layer and kind of layer, with each cell's totals and what they rest on."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.detection import Floats
from ndt_ray.analysis.events.significant import primary, primary_family, replicates, tests_of, with_names
from ndt_ray.store.schema import Column, Table

_CELL = (
    Column("mode", "string", "default: significant events; original: the published jumps"),
    Column("cell", "string", "everything but seeds"),
    Column("model", "string", "architecture"),
    Column("data", "string", "data set"),
)

EVENT_LAYERS = Table(
    "event_layers",
    "Events by layer of a cell.",
    (
        *_CELL,
        Column("layer", "string", "module path"),
        Column("layer_index", "int16", "place in the order of the forward pass"),
        Column("layer_kind", "string", "last word of the path without its number: linear1, conv_layers, fc, network …"),
        Column("n", "int32", "events of the layer, all trials"),
        Column("percent", "float64", "of the cell's events"),
        Column("per_trial", "float64", "events a trial"),
        Column("null_per_trial", "float64", "events a trial expected of the layer where there is nothing"),
        Column("n_trials", "int32", "trials in which the layer was judged"),
    ),
    ("mode", "cell", "layer_index", "layer"),
)

EVENT_KINDS = Table(
    "event_kinds",
    "Events by kind of layer of a cell: linear2 against linear1, the attention's output (out_proj) apart.",
    (
        *_CELL,
        Column("layer_kind", "string", "as in event_layers"),
        Column("n", "int32", "events of the layers of this kind, all trials"),
        Column("null_n", "float64", "events expected of them where there is nothing"),
        Column("percent", "float64", "of the cell's events"),
        Column("n_layers", "int32", "layers of this kind"),
        Column("n_series", "int32", "layer-series of them that were judged"),
        Column("per_series", "float64", "events a layer-series"),
        Column("to_linear1", "float64", "events for each event of a linear1 of the cell; null where these have none"),
    ),
    ("mode", "cell", "layer_kind"),
)

EVENT_SUMMARY = Table(
    "event_summary",
    "Events of each cell: how many, how large, when, in how many of its layers.",
    (
        *_CELL,
        Column("n_trials", "int32", "trials judged"),
        Column("n_series", "int32", "layer-series judged"),
        Column("n_events", "int32", "events of all trials"),
        Column("null_events", "float64", "events expected where there is nothing"),
        Column("per_series", "float64", "events a layer-series, mean over trials"),
        Column("per_series_lo", "float64", "95 % interval over trials (t); null for one trial"),
        Column("per_series_hi", "float64", "upper end of it"),
        Column("phase", "float64", "mean phase of the events; original: as published"),
        Column("size", "float64", "mean |relative size|; original: mean magnitude as published"),
        Column("covered", "int32", "layers with at least one event"),
        Column("n_layers", "int32", "layers judged"),
        Column("loss_improving", "float64", "share of events over which the loss fell"),
    ),
    ("mode", "cell"),
)


@analysis(
    name="event_layers",
    reads=(
        "trials",
        "outcomes",
        "evaluations",
        "events",
        "event_families",
        "series_tests",
        "event_windows",
        "jumps",
        "jump_counts",
    ),
    writes=(EVENT_LAYERS, EVENT_KINDS, EVENT_SUMMARY),
    per="sweep",
)
def event_layers(data: AnalysisInput) -> dict[str, pd.DataFrame]:
    """Events by layer, kind of layer and cell, beside what is expected where there is nothing; none are listed too."""
    trials = replicates(data)
    layers: list[dict[str, Any]] = []
    summary: list[dict[str, Any]] = []
    windows = data.frame("event_windows")
    for mode, events, judged in _cases(data, trials) if len(trials) else ():
        loss = windows[windows["mode"] == mode] if len(windows) else windows
        for cell, series in judged.groupby("cell", sort=True):
            own = events[events["cell"] == cell]
            names = {"mode": mode, "cell": cell, "model": series["model"].iloc[0], "data": series["data"].iloc[0]}
            layers += [names | row for row in _by_layer(own, series)]
            own_loss = loss[loss["trial_id"].isin(series["trial_id"])] if len(loss) else loss
            summary.append(names | _summary(own, series, own_loss))
    by_layer = pd.DataFrame(layers)
    return {"event_layers": by_layer, "event_kinds": kinds(by_layer), "event_summary": pd.DataFrame(summary)}


def _cases(data: AnalysisInput, trials: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, pd.DataFrame]]:
    """Mode; events with layer, phase and size; judged series with the number of events expected of noise."""
    tests, families = data.frame("series_tests"), data.frame("event_families")
    chosen = primary_family(families)
    if len(tests) and chosen is not None:
        events = primary(data.frame("events"), families)
        tests = tests_of(tests, chosen)
        null = float(chosen.get("alpha", 0.05)) * len(events) / max(len(tests), 1)
        columns = ["trial_id", "layer", "layer_index", "phase", "relative_size"]
        rows = pd.DataFrame(columns=columns) if events.empty else events[columns]
        yield "default", _sized(rows, "relative_size", trials), with_names(tests.assign(null_n=null), trials)
    jumps, counts = data.frame("jumps"), data.frame("jump_counts")
    if len(jumps) and len(counts):
        rule = jumps[(jumps["mode"] == "original") & (jumps["detector"] == "difference_z")]
        judged = counts[(counts["mode"] == "original") & (counts["detector"] == "difference_z")]
        if len(judged):
            judged = judged.assign(null_n=judged["null_white_mean"].fillna(0.0))
            yield "original", _sized(rule, "magnitude", trials), with_names(judged, trials)


def _sized(rows: pd.DataFrame, column: str, trials: pd.DataFrame) -> pd.DataFrame:
    return with_names(rows.assign(_size=rows[column].astype(np.float64).abs()), trials)


def layer_kind(layer: str) -> str:
    """The last word of a module path that is no number: `linear2` of transformer.layers.0.linear2."""
    words = [w for w in layer.split(".") if not w.isdigit()]
    return words[-1] if words else layer


def _by_layer(events: pd.DataFrame, series: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for (index, layer), judged in series.groupby(["layer_index", "layer"], sort=True):
        n, trials = int((events["layer"] == layer).sum()), judged["trial_id"].nunique()
        yield {
            "layer": layer,
            "layer_index": index,
            "layer_kind": layer_kind(str(layer)),
            "n": n,
            "percent": 100 * n / len(events) if len(events) else np.nan,
            "per_trial": n / trials,
            "null_per_trial": float(judged["null_n"].sum()) / trials,
            "n_trials": trials,
        }


def _summary(events: pd.DataFrame, series: pd.DataFrame, loss: pd.DataFrame) -> dict[str, Any]:
    of_trial = series.groupby("trial_id").size()
    rate = (events.groupby("trial_id").size().reindex(of_trial.index, fill_value=0) / of_trial).to_numpy(np.float64)
    half = _half_width(rate)
    change = loss["loss_change"].to_numpy(np.float64, na_value=np.nan) if len(loss) else np.zeros(0)
    change = change[np.isfinite(change)]
    return {
        "n_trials": len(of_trial),
        "n_series": len(series),
        "n_events": len(events),
        "null_events": float(series["null_n"].sum()),
        "per_series": float(rate.mean()),
        "per_series_lo": float(rate.mean() - half),
        "per_series_hi": float(rate.mean() + half),
        "phase": float(events["phase"].mean()) if len(events) else None,
        "size": float(events["_size"].mean()) if len(events) else None,
        "covered": events["layer"].nunique(),
        "n_layers": series["layer"].nunique(),
        "loss_improving": float((change < 0).mean()) if len(change) else None,
    }


def _half_width(values: Floats) -> float:
    n = len(values)
    return float(student.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")


def kinds(layers: pd.DataFrame) -> pd.DataFrame:
    """Rows of `event_kinds` from those of `event_layers` (the founding "linear2 against linear1")."""
    if layers.empty:
        return pd.DataFrame()
    rows = layers.assign(_null=layers["null_per_trial"] * layers["n_trials"])
    by = rows.groupby(["mode", "cell", "model", "data", "layer_kind"], sort=True)
    sums = {"n": ("n", "sum"), "null_n": ("_null", "sum"), "n_layers": ("layer", "nunique")}
    table = by.agg(**sums, n_series=("n_trials", "sum")).reset_index()
    cell = [table["mode"], table["cell"]]
    total = table["n"].groupby(cell).transform("sum")
    first = table["n"].where(table["layer_kind"] == "linear1").groupby(cell).transform("sum")
    return table.assign(
        percent=100 * table["n"] / total.where(total > 0),
        per_series=table["n"] / table["n_series"],
        to_linear1=table["n"] / first.where(first > 0),
    )
