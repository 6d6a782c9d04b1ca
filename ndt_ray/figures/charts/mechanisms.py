"""What changed in the network: matrices with their numbers written in, and panels of one run over one time axis."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from ndt_ray.analysis.mechanisms.sae.matrix import band
from ndt_ray.figures.charts.curves import decades, marked
from ndt_ray.figures.charts.draw import STEP, Spec, chart, coloured, data, named, require, steps

MATRIX_ROW = 26.0
"""Pixels of a matrix' row: a number and some air."""
EXTENT = 46
"""Pixels left of every panel of a run, so that their time axes are one."""
BANDS = {"universal": "high", "partially universal": "middle", "model-specific": "low"}
"""Style of a cell by what the founding document calls its value."""


def matrix(
    rows: pd.DataFrame, sources: Sequence[str], targets: Sequence[str], title: str, *, how: Literal["ramp", "bands"]
) -> Spec:
    """Numbers by source (rows) and target (columns), written into their cells; grey where there is none.

    `rows`: source, target (places), value, text. Colours: `ramp` from 0 to 1, or the founding document's `bands`.
    SpecError for no rows.
    """
    require(rows, ("source", "target", "value", "text"), "matrix")
    axis = {"orient": "top", "labelAngle": -35, "labelAlign": "left", "labelLimit": 110}
    x, y = named("target", targets, **axis), named("source", sources, labelLimit=150)
    tip = [{"field": "text", "title": "transfer"}, {"field": "value", "title": title, "format": ".3~f"}]
    where: Spec = {"x": x, "y": y, "tooltip": tip}
    known = np.isfinite(rows["value"].to_numpy(np.float64))
    rows = rows.assign(
        shown=[f"{v:.2f}".replace("0.", ".") if k else "–" for v, k in zip(rows["value"], known, strict=True)]
    )
    none = rows.loc[~known, ["source", "target", "shown", "text"]]
    found: list[Spec] = []
    if len(none):
        found.append({"data": data(none), "mark": {"type": "rect", "style": "absent"}, "encoding": {"x": x, "y": y}})
        found.append(_written(none, {"x": x, "y": y}, "muted"))
    cells = rows[known]
    if len(cells) and how == "bands":
        words = cells["value"].map(band)
        for word, style in BANDS.items():
            if len(own := cells[words == word]):
                found.append({"data": data(own), "mark": {"type": "rect", "style": style}, "encoding": where})
        found.append(_written(cells, where, "on_band"))
    elif len(cells):
        colour: Spec = {"field": "value", "type": "quantitative", "legend": None}
        colour["scale"] = {"domain": [0, 1], "clamp": True, "interpolate": "rgb", "range": "ramp"}
        found.append({"data": data(cells), "mark": {"type": "rect"}, "encoding": {**where, "color": colour}})
        for own, style in ((cells[cells["value"] < 0.5], "ink"), (cells[cells["value"] >= 0.5], "reversed")):
            if len(own):
                found.append(_written(own, where, style))
    return chart(MATRIX_ROW * len(sources), found)


def _written(rows: pd.DataFrame, where: Spec, style: str) -> Spec:
    mark = {"type": "text", "style": style, "fontSize": 11}
    return {"data": data(rows), "mark": mark, "encoding": {**where, "text": {"field": "shown", "type": "nominal"}}}


def panel(
    rows: pd.DataFrame,
    names: Sequence[str],
    last: float,
    title: str,
    *,
    log: bool = False,
    domain: tuple[float, float] | None = None,
    spans: pd.DataFrame | None = None,
    rules: pd.DataFrame | None = None,
    top: bool = False,
    bottom: bool = False,
    height: float = 92.0,
) -> Spec:
    """One of several charts of a run that stand over one another: a line a name, events as bands, landmarks as rules.

    `rows`: name, step, value. `spans`: from, to, direction, text. `rules`: at, text; named in the `top` panel. Only the
    `bottom` one has the labels of the steps. SpecError for no rows.
    """
    require(rows, ("name", "step", "value"), f"panel of {title}")
    kept = rows[np.isfinite(rows["value"].to_numpy(np.float64))]
    kept = kept[kept["value"] > 0] if log else kept
    require(kept, ("name",), f"panel of {title}")
    x = steps("step", last, **({} if bottom else {"labels": False, "ticks": False, "title": None}))
    axis: Spec = {"tickCount": 3, "minExtent": EXTENT, "maxExtent": EXTENT, "format": ",.9~g"}
    scale: Spec = {"zero": False, "nice": True}
    if domain is not None:
        scale = {"domain": list(domain), "nice": False}
    elif log:
        found = decades(kept["value"].min(), kept["value"].max())
        scale, axis = {"type": "log", "nice": False}, {**axis, "values": found}
    y: Spec = {"field": "value", "type": "quantitative", "title": title, "scale": scale, "axis": axis}
    colour = coloured(names)
    colour["color"]["legend"] |= {"orient": "top", "offset": 1, "columns": 4, "labelLimit": 190, "padding": 0}
    tip = [{"field": "name", "title": "of"}, {"field": "step", "title": STEP, "format": ",d"}]
    tip.append({"field": "value", "title": title, "format": ".4~g"})
    made: list[Spec] = []
    if spans is not None and len(spans):
        made += _spans(spans, last, x)
    line = {"x": x, "y": y, **colour, "tooltip": tip}
    made.append({"data": data(kept), "mark": {"type": "line", "strokeWidth": 1.6, "clip": True}, "encoding": line})
    made += marked(rules, x, top) if rules is not None and len(rules) else []
    return chart(height, made)


def _spans(spans: pd.DataFrame, last: float, x: Spec) -> list[Spec]:
    """Events as bands, at least wide enough to be seen."""
    wide = spans.assign(to=np.maximum(spans["to"], spans["from"] + (last or 1) * 0.006))
    made = []
    for direction, style in (("increase", "rise"), ("decrease", "fall")):
        if len(own := wide.loc[wide["direction"] == direction, ["from", "to", "text"]]):
            where = {
                "x": {**x, "field": "from"},
                "x2": {"field": "to"},
                "tooltip": [{"field": "text", "title": "event"}],
            }
            mark = {"type": "rect", "style": style, "opacity": 0.28}
            made.append({"data": data(own), "mark": mark, "encoding": where})
    return made
