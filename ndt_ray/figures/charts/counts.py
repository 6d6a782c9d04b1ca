"""Counts beside what chance gives: events, jumps, p-values, phases."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.phases import EDGES
from ndt_ray.figures.charts.draw import Spec, chart, data, named, require

BAR = 13.0
"""Pixels of a bar."""
LONG = 18
"""Letters of a name beyond which two do not fit into a line of the legend."""


def beside_null(rows: pd.DataFrame, title: str, *, families: Sequence[str] = ("null",)) -> Spec:
    """A bar of what was observed and one of each null, by name; a line where the null has an interval.

    `rows`: name, observed, and of each family `<family>`, optionally `<family>_lo` and `<family>_hi`; a null that is
    null (no series could be judged) has no bar. SpecError for no rows.
    """
    require(rows, ("name", "observed", *families), "counts beside their null")
    names = list(dict.fromkeys(rows["name"].astype(str)))
    kinds = ["observed", *families]
    long = []
    for i, row in enumerate(rows.to_dict("records")):
        for kind in kinds:
            low, high = row.get(f"{kind}_lo"), row.get(f"{kind}_hi")
            long.append({"row": i, "name": row["name"], "kind": kind, "value": row[kind], "lo": low, "hi": high})
    frame = pd.DataFrame(long).astype({"value": float, "lo": float, "hi": float})
    frame = frame[np.isfinite(frame["value"])]
    offset: Spec = {"field": "kind", "type": "nominal", "scale": {"domain": kinds, "paddingInner": 0.1}}
    axis = {"grid": True, "tickCount": 5, "format": ",.9~g"}
    x: Spec = {"field": "value", "type": "quantitative", "title": title, "axis": axis, "scale": {"zero": True}}
    y = named("row", names)
    y["scale"]["paddingInner"] = 0.32
    layers: list[Spec] = []
    for i, kind in enumerate(kinds):
        style = "observed" if kind == "observed" else "null"
        layers.append(
            {
                "transform": [{"filter": f"datum.kind == '{kind}'"}],
                "mark": {"type": "bar", "style": style, "opacity": 1.0 if i < 2 else 0.6},
                "encoding": {"x": x, "y": y, "yOffset": offset, "tooltip": _tip(title)},
            }
        )
    if frame["lo"].notna().any():
        line = {"x": {**x, "field": "lo"}, "x2": {"field": "hi"}, "y": y, "yOffset": offset}
        found = [{"filter": "isValid(datum.lo) && isFinite(datum.lo)"}]
        layers.append({"transform": found, "mark": {"type": "rule", "style": "ink"}, "encoding": line})
    return chart(max(56.0, BAR * len(kinds) * len(names) * 1.35), layers, data=data(frame))


def _tip(title: str) -> list[Spec]:
    return [
        {"field": "name", "title": "of"},
        {"field": "kind", "title": "count"},
        {"field": "value", "title": title, "format": ",.3~f"},
        {"field": "lo", "title": "95 % from", "format": ",.3~f"},
        {"field": "hi", "title": "to", "format": ",.3~f"},
    ]


def p_values(values: "pd.Series[float]", bins: int = 20) -> Spec:
    """How the p-values of a family's series are spread, beside the even spread that the null gives (a line).

    SpecError where there is none.
    """
    finite = values[np.isfinite(values.to_numpy(np.float64))].to_numpy(np.float64)
    counts, edges = np.histogram(finite, bins=bins, range=(0.0, 1.0))
    rows = pd.DataFrame({"from": edges[:-1], "to": edges[1:], "series": counts})
    require(rows[rows["series"] > 0], ("from", "to", "series"), "p-values")
    even = pd.DataFrame({"from": [0.0], "to": [1.0], "series": [len(finite) / bins]})
    x: Spec = {"field": "from", "type": "quantitative", "title": "p of a series", "scale": {"domain": [0, 1]}}
    x["axis"] = {"grid": False, "tickCount": 5}
    y: Spec = {"field": "series", "type": "quantitative", "title": "series", "axis": {"tickCount": 4, "tickMinStep": 1}}
    tip = [{"field": c, "title": t} for c, t in (("from", "p from"), ("to", "to"), ("series", "series"))]
    bars = {"x": x, "x2": {"field": "to"}, "y": y, "y2": {"datum": 0}, "tooltip": tip}
    line = {"x": x, "x2": {"field": "to"}, "y": y}
    return chart(
        150,
        [
            {"data": data(rows), "mark": {"type": "rect", "style": "observed", "opacity": 0.9}, "encoding": bars},
            {"data": data(even), "mark": {"type": "rule", "style": "ink", "strokeDash": [5, 3]}, "encoding": line},
        ],
    )


def phases(rows: pd.DataFrame, names: Sequence[str], bins: int = 20) -> Spec:
    """Onsets of events over the run, by name, with the borders of early, mid and late.

    `rows`: name, phase in [0, 1]. SpecError for none.
    """
    require(rows, ("name", "phase"), "event phases")
    edges = np.linspace(0.0, 1.0, bins + 1)
    made, base = [], np.zeros(bins)
    for name in names:
        counts, _ = np.histogram(rows.loc[rows["name"] == name, "phase"].to_numpy(np.float64), bins=edges)
        top = base + counts
        columns = {"name": name, "from": edges[:-1], "to": edges[1:], "low": base, "high": top, "events": counts}
        made.append(pd.DataFrame(columns)[counts > 0])
        base = top
    domain = {"domain": list(names)}
    x: Spec = {"field": "from", "type": "quantitative", "title": "onset, share of the run", "scale": {"domain": [0, 1]}}
    x["axis"] = {"grid": False, "format": ".0%", "tickCount": 5}
    y: Spec = {"field": "low", "type": "quantitative", "title": "events"}
    highest = int(base.max())
    y["axis"] = {"values": list(range(0, highest + 1, max(1, math.ceil(highest / 4)))), "format": "d"}
    tip = [{"field": "name", "title": "of"}, {"field": "events"}]
    tip += [{"field": "from", "format": ".0%"}, {"field": "to", "format": ".0%"}]
    legend = {"columns": 1 if max(map(len, names)) > LONG else min(len(names), 2)}
    colour = {"field": "name", "type": "nominal", "title": None, "scale": domain, "legend": legend}
    bars = {"x": x, "x2": {"field": "to"}, "y": y, "y2": {"field": "high"}, "color": colour, "tooltip": tip}
    rule: dict[str, Any] = {"type": "rule", "style": "muted", "strokeDash": [3, 3]}
    borders = pd.DataFrame({"from": list(EDGES)})
    marks = pd.DataFrame({"from": [0.0, *EDGES], "text": ["early", "mid", "late"]})
    label = {"type": "text", "style": "muted", "align": "left", "dx": 4, "y": -6, "fontSize": 10}
    text = {"field": "text", "type": "nominal"}
    return chart(
        150,
        [
            {"data": data(pd.concat(made)), "mark": {"type": "rect"}, "encoding": bars},
            {"data": data(borders), "mark": rule, "encoding": {"x": x}},
            {"data": data(marks), "mark": label, "encoding": {"x": x, "text": text}},
        ],
    )
