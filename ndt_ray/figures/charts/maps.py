"""Layer by step: a measure as colours with its events marked, and the events of every seed as a raster."""

import json
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ndt_ray.errors import SpecError
from ndt_ray.figures.charts.draw import STEP, Spec, chart, data, named, require, steps

Scale = Literal["ratio", "value"]
ROW, SEED_ROW = 15.0, 5.0
"""Pixels of a layer in a map, and of a seed in a raster."""


def binned(rows: pd.DataFrame, most: int) -> pd.DataFrame:
    """Measured steps pooled into at most `most` columns a layer: x and x2 are their borders, midway between steps.

    `rows`: row (place on the axis), step, value, n. A column's value is the mean of its steps', its n their smallest.
    """
    measured = np.unique(rows["step"].to_numpy(np.int64))
    groups = _columns(measured, most)
    borders = _edges(measured)
    first = np.flatnonzero(np.diff(groups, prepend=-1))
    last = np.append(first[1:], len(measured)) - 1
    place = groups[np.searchsorted(measured, rows["step"].to_numpy(np.int64))]
    made = rows.assign(_column=place).groupby(["row", "_column"], sort=True)
    pooled = made.agg(value=("value", "mean"), n=("n", "min")).reset_index()
    at = pooled.pop("_column").to_numpy()
    # Neighbours overlap by a hair: side by side, browsers leave a seam between them.
    lap = 0.0015 * float(measured[-1])
    return pooled.assign(
        x=np.maximum(borders[first[at]], 0.0),
        x2=borders[last[at] + 1] + lap,
        first=measured[first[at]],
        last=measured[last[at]],
    )[["row", "x", "x2", "first", "last", "value", "n"]]


def _columns(measured: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """The column of every measured step, none of them empty."""
    every = math.ceil(len(measured) / max(most, 1))
    found: NDArray[np.int64] = np.arange(len(measured)) // every
    return found


def _edges(measured: NDArray[np.int64]) -> NDArray[np.float64]:
    """Borders midway between measurements; the last column ends at its measurement."""
    middles = (measured[1:] + measured[:-1]) / 2
    return np.concatenate([[measured[0] - 0.5], middles, [measured[-1] + 0.5]])


def layer_map(
    rows: pd.DataFrame,
    layers: Sequence[str],
    last: int,
    *,
    scale: Scale = "ratio",
    domain: tuple[float, float] | None = None,
    title: str = "",
    events: pd.DataFrame | None = None,
    settled: pd.DataFrame | None = None,
    periods: pd.DataFrame | None = None,
    trials: int = 0,
    most: int = 200,
    legend: bool = False,
) -> Spec:
    """A measure by layer (forward order, downwards) and training step, mean over seeds.

    `rows`: row, step, value, n; with `ratio` the value is log2 of the ratio to step 0, coloured symmetrically about no
    change. `events`: row, at (step), direction, seeds (of `trials`), text; a triangle, larger where more seeds have it.
    `settled`: row, at, text; a bar where the layer settled. `periods`: row, from, to, text; a line below the layer's
    middle. SpecError for no rows, or none with a value.
    """
    require(rows, ("row", "step", "value", "n"), "layer map")
    cells = binned(rows, most)
    cells = cells[np.isfinite(cells["value"])]
    if cells.empty:
        raise SpecError("layer map: no layer has a value - choose another measure")
    low, high = domain or limits(cells["value"], scale)
    colour: Spec = {"field": "value", "type": "quantitative", "legend": _legend(title, scale) if legend else None}
    colour["scale"] = {
        "domain": [low, high],
        "clamp": True,
        "interpolate": "rgb",
        "range": "diverging" if scale == "ratio" else "ramp",
    }
    if scale == "value" and logarithmic((low, high)):
        colour["scale"]["type"] = "log"
    shown = "pow(2, datum.value)" if scale == "ratio" else "datum.value"
    where = {"x": steps("x", last), "x2": {"field": "x2"}, "y": named("row", layers)}
    words = json.dumps(list(layers))
    ground = pd.DataFrame({"row": range(len(layers)), "x": 0.0, "x2": float(last or 1)})
    found: list[Spec] = [
        {"data": data(ground), "mark": {"type": "rect", "style": "absent"}, "encoding": where},
        {
            "data": data(cells),
            "transform": [
                {"calculate": f"{words}[datum.row]", "as": "layer"},
                {"calculate": f"format({shown}, '.3~g')", "as": "shown"},
                {
                    "calculate": "datum.first == datum.last ? format(datum.first, ',d')"
                    " : format(datum.first, ',d') + ' – ' + format(datum.last, ',d')",
                    "as": "when",
                },
            ],
            "mark": {"type": "rect"},
            "encoding": {
                **where,
                "color": colour,
                "tooltip": [
                    {"field": "layer", "title": "layer"},
                    {"field": "when", "title": STEP},
                    {"field": "shown", "title": title or "value"},
                    {"field": "n", "title": "seeds"},
                ],
            },
        },
    ]
    height = max(60.0, min(ROW * len(layers), 460.0))
    if periods is not None and len(periods):
        found.append(_spans(periods, layers, last, height / len(layers)))
    if settled is not None and len(settled):
        found.append(_bars(settled, layers, last))
    if events is not None and len(events):
        found.append(_marks(events, layers, last, trials))
    return chart(height, found)


def limits(values: "pd.Series[float]", scale: Scale) -> tuple[float, float]:
    """The colours' domain: symmetric for ratios; robust to a few cells (1 %) beyond it."""
    finite = values[np.isfinite(values)].to_numpy(np.float64)
    if scale == "ratio":
        top = float(np.quantile(np.abs(finite), 0.99)) if len(finite) else 1.0
        return -max(top, 0.05), max(top, 0.05)
    low, high = (float(v) for v in np.quantile(finite, [0.01, 0.99])) if len(finite) else (0.0, 1.0)
    return (low, high) if high > low else (low, low + max(abs(low), 1e-12))


def logarithmic(domain: tuple[float, float]) -> bool:
    """Whether colours of plain values are spread by their logarithm."""
    return domain[0] > 0 and domain[1] / domain[0] > 50


def _legend(title: str, scale: Scale) -> Spec:
    found: Spec = {"title": title, "orient": "right", "gradientLength": 120, "gradientThickness": 10, "tickCount": 5}
    if scale == "ratio":
        found["labelExpr"] = "'×' + format(pow(2, datum.value), '.2~g')"
    return found


def _marks(events: pd.DataFrame, layers: Sequence[str], last: int, trials: int) -> Spec:
    top = max(trials, int(events["seeds"].max()), 1)
    size = (
        {"domain": [1, top], "range": [42, 130], "type": "linear"} if top > 1 else {"domain": [0, 1], "range": [60, 60]}
    )
    shape = {"domain": ["increase", "decrease"], "range": ["triangle-up", "triangle-down"]}
    return {
        "data": data(events[["row", "at", "direction", "seeds", "text"]]),
        "mark": {"type": "point", "filled": True, "style": "event", "opacity": 0.92},
        "encoding": {
            "x": steps("at", last),
            "y": named("row", layers),
            "shape": {"field": "direction", "type": "nominal", "scale": shape, "legend": None},
            "size": {"field": "seeds", "type": "quantitative", "scale": size, "legend": None},
            "tooltip": [{"field": "text", "title": "event"}],
        },
    }


def _bars(settled: pd.DataFrame, layers: Sequence[str], last: int) -> Spec:
    return {
        "data": data(settled[["row", "at", "text"]]),
        "mark": {"type": "tick", "orient": "vertical", "style": "settled", "thickness": 2.4, "size": 11},
        "encoding": {
            "x": steps("at", last),
            "y": named("row", layers),
            "tooltip": [{"field": "text", "title": "settled"}],
        },
    }


def _spans(periods: pd.DataFrame, layers: Sequence[str], last: int, pixels: float) -> Spec:
    """Lines at the foot of their rows of `pixels`, so that marks of events stay to be seen."""
    thick = min(4.0, pixels / 3)
    return {
        "data": data(periods[["row", "from", "to", "text"]]),
        "mark": {"type": "bar", "style": "event", "size": thick, "yOffset": pixels / 2 - thick / 2 - 1},
        "encoding": {
            "x": steps("from", last),
            "x2": {"field": "to"},
            "y": named("row", layers),
            "tooltip": [{"field": "text", "title": "critical period"}],
        },
    }


def event_raster(events: pd.DataFrame, layers: Sequence[str], seeds: Sequence[str], last: int) -> Spec:
    """Every significant event of every seed: a band a layer, a line a seed, from its onset to its end.

    `events`: row (layer), seed (one of `seeds`), from, to, direction, text. SpecError for none.
    """
    require(events, ("row", "seed", "from", "to", "direction", "text"), "event raster")
    lines = len(layers) * len(seeds)
    spot = events.assign(line=events["row"] * len(seeds) + events["seed"].map({s: i for i, s in enumerate(seeds)}))
    spot = spot.assign(to=np.maximum(spot["to"], spot["from"] + (last or 1) * 0.006))
    pixels = max(SEED_ROW, min(10.0, 34.0 / len(seeds))) if lines <= 160 else max(1.5, 800.0 / lines)
    bands = pd.DataFrame({"y": np.arange(len(layers)) * len(seeds) - 0.5, "row": range(len(layers))})
    bands = bands.assign(y2=bands["y"] + len(seeds), middle=bands["y"] + len(seeds) / 2)
    extent = {"domain": [lines - 0.5, -0.5], "nice": False, "zero": False}
    names = {str(m): name for m, name in zip(bands["middle"].map(_number), layers, strict=True)}
    axis: dict[str, Any] = {"values": bands["middle"].tolist(), "grid": False, "ticks": False, "domain": False}
    axis["labelExpr"] = f"{json.dumps(names)}[toString(datum.value)]"
    place = {"field": "y", "type": "quantitative", "scale": extent, "title": None, "axis": axis}
    band = {"y": place, "y2": {"field": "y2"}}
    made: list[Spec] = []
    if len(layers) > 1:
        mark = {"type": "rect", "style": "absent", "opacity": 0.55}
        made.append({"data": data(bands.iloc[1::2][["y", "y2"]]), "mark": mark, "encoding": band})
    half = 0.5 - 0.6 / max(pixels, 1.5)
    spot = spot.assign(y=spot["line"] - half, y2=spot["line"] + half)
    for direction, style in (("increase", "rise"), ("decrease", "fall")):
        own = spot.loc[spot["direction"] == direction, ["from", "to", "y", "y2", "seed", "text"]]
        over = [{"field": "text", "title": "event"}, {"field": "seed", "title": "seed"}]
        where = {"x": steps("from", last), "x2": {"field": "to"}, **band, "tooltip": over}
        made.append({"data": data(own), "mark": {"type": "rect", "style": style}, "encoding": where})
    return chart(max(60.0, pixels * lines), made)


def _number(value: float) -> str:
    return f"{value:g}"
