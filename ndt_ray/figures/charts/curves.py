"""Values over training, and estimates with their intervals."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ndt_ray.figures.charts.draw import Spec, chart, coloured, data, named, require, steps


def curves(
    rows: pd.DataFrame,
    names: Sequence[str],
    last: int,
    title: str,
    *,
    log: bool = False,
    rules: pd.DataFrame | None = None,
) -> Spec:
    """A value by training step, a line a name, with the band of its mean over seeds.

    `rows`: name, step, mean, low, high (null: no band), n. `rules`: at, text; steps to mark. SpecError for no rows.
    """
    require(rows, ("name", "step", "mean", "low", "high", "n"), "curves")
    scale: Spec = {"zero": False, "nice": True}
    axis: Spec = {"tickCount": 5}
    if log and (rows["mean"] > 0).all():
        scale = {"type": "log", "nice": True}
        rows = rows.assign(low=rows["low"].where(rows["low"] > 0))
        axis = {"values": decades(rows["low"].fillna(rows["mean"]).min(), rows["high"].fillna(rows["mean"]).max())}
    y: Spec = {"field": "mean", "type": "quantitative", "title": title, "scale": scale, "axis": axis}
    found = coloured(names)
    band = {"x": steps("step", last), "y": {**y, "field": "low"}, "y2": {"field": "high"}}
    band["color"] = found["color"]
    tip = [{"field": "name", "title": "of"}, {"field": "step", "title": "training step", "format": ",d"}]
    tip += [{"field": c, "title": t, "format": ".4~g"} for c, t in (("mean", "mean"), ("low", "from"), ("high", "to"))]
    line = {"x": steps("step", last), "y": y, **found, "tooltip": [*tip, {"field": "n", "title": "seeds"}]}
    whole = rows[rows["low"].notna() & rows["high"].notna()]
    layers: list[Spec] = [{"mark": {"type": "line", "strokeWidth": 1.8, "point": {"size": 14}}, "encoding": line}]
    if len(whole):
        mark = {"type": "area", "opacity": 0.18, "line": False}
        layers.insert(0, {"data": data(whole), "mark": mark, "encoding": band})
    layers[-1]["data"] = data(rows)
    layers += marked(rules, steps("at", last)) if rules is not None and len(rules) else []
    return chart(220, layers)


def marked(rules: pd.DataFrame, x: Spec, named_too: bool = True) -> list[Spec]:
    """Dashed vertical lines at steps (`at`, `text`), named at their upper end; `x` is the axis that they stand on."""
    where = {"x": {**x, "field": "at"}, "tooltip": [{"field": "text", "title": "at this step"}]}
    mark = {"type": "rule", "style": "muted", "strokeDash": [4, 3], "strokeWidth": 1.2}
    found: list[Spec] = [{"data": data(rules), "mark": mark, "encoding": where}]
    if named_too:
        text = {"type": "text", "style": "muted", "align": "left", "baseline": "top", "dx": 3, "y": 1, "fontSize": 10}
        found.append({"data": data(rules), "mark": text, "encoding": {**where, "text": {"field": "text"}}})
    return found


def decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 of every decade between two positive numbers; powers of ten alone where there are over three."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [m * 10.0**k for k in range(first, last + 1) for m in ((1, 2, 5) if last - first <= 3 else (1,))]


def forest(rows: pd.DataFrame, title: str, *, reference: float | None = 0.0) -> Spec:
    """Estimates with their intervals, one a line, and the value that means no difference.

    `rows`: name, estimate, low, high (null: no interval), clear (whether the claim stands), text, and optionally
    `beside`: the same number by another reckoning, a small bar. SpecError for none.
    """
    require(rows, ("name", "estimate", "low", "high", "clear", "text"), "forest plot")
    kept = rows[np.isfinite(rows["estimate"].to_numpy(np.float64))].reset_index(drop=True)
    require(kept, ("name",), "forest plot")
    kept = kept.assign(row=range(len(kept)))
    x: Spec = {"field": "estimate", "type": "quantitative", "title": title, "scale": {"zero": False, "nice": True}}
    x["axis"] = {"tickCount": 5}
    y = named("row", kept["name"].astype(str).tolist(), labelLimit=320)
    tip = [{"field": "name", "title": "of"}, {"field": "text", "title": "says"}]
    layers: list[Spec] = []
    if reference is not None:
        zero = {"x": {**x, "datum": reference}}
        zero["x"].pop("field")
        mark = {"type": "rule", "style": "muted", "strokeDash": [4, 3]}
        layers.append({"data": {"values": [{}]}, "mark": mark, "encoding": zero})
    line = {"x": {**x, "field": "low"}, "x2": {"field": "high"}, "y": y, "tooltip": tip}
    ends = kept[["low", "high"]].apply(pd.to_numeric).to_numpy(np.float64)
    if len(whole := kept[np.isfinite(ends).all(axis=1)]):
        rule = {"type": "rule", "style": "ink", "strokeWidth": 1.4}
        layers.append({"data": data(whole), "mark": rule, "encoding": line})
    if "beside" in kept and len(other := kept[np.isfinite(kept["beside"].to_numpy(np.float64))]):
        bar = {"type": "tick", "style": "null", "orient": "vertical", "thickness": 3, "size": 13, "opacity": 1}
        layers.append({"data": data(other), "mark": bar, "encoding": {**line, "x": {**x, "field": "beside"}}})
        layers[-1]["encoding"].pop("x2")
    for clear, style in ((True, "observed"), (False, "seed")):
        own = kept[kept["clear"].astype(bool) == clear]
        if len(own):
            point: Spec = {"type": "point", "filled": True, "style": style, "size": 58, "opacity": 1}
            layers.append({"data": data(own), "mark": point, "encoding": {"x": x, "y": y, "tooltip": tip}})
    return chart(max(60.0, 21.0 * len(kept)), layers)


def specification_curve(rows: pd.DataFrame, title: str) -> Spec:
    """A claim's estimate under every specification, smallest first; the primary one is a square.

    `rows`: estimate, significant, primary, text. SpecError for none.
    """
    require(rows, ("estimate", "significant", "primary", "text"), "specification curve")
    kept = rows[np.isfinite(rows["estimate"].to_numpy(np.float64))].sort_values("estimate", kind="stable")
    require(kept, ("estimate",), "specification curve")
    kept = kept.assign(rank=np.arange(1, len(kept) + 1))
    x: Spec = {"field": "rank", "type": "quantitative", "title": "specifications, smallest estimate first"}
    x |= {
        "axis": {"grid": False, "tickCount": 4, "tickMinStep": 1},
        "scale": {"nice": False, "zero": False, "padding": 6},
    }
    y: Spec = {"field": "estimate", "type": "quantitative", "title": title, "axis": {"tickCount": 4}}
    layers: list[Spec] = [
        {
            "data": {"values": [{}]},
            "mark": {"type": "rule", "style": "muted", "strokeDash": [4, 3]},
            "encoding": {"y": {"datum": 0, "type": "quantitative"}},
        }
    ]
    for significant, style in ((False, "seed"), (True, "observed")):
        for primary, shape in ((False, "circle"), (True, "square")):
            own = kept[(kept["significant"].astype(bool) == significant) & (kept["primary"].astype(bool) == primary)]
            if own.empty:
                continue
            mark: Spec = {"type": "point", "filled": True, "style": style, "shape": shape, "opacity": 1}
            mark["size"] = 120 if primary else 34
            tip = [{"field": "text", "title": "specification"}, {"field": "estimate", "format": ".3~g"}]
            layers.append(
                {
                    "data": data(own[["rank", "estimate", "text"]]),
                    "mark": mark,
                    "encoding": {"x": x, "y": y, "tooltip": tip},
                }
            )
    return chart(150, layers)


def by_layer(rows: pd.DataFrame, layers: Sequence[str], title: str, *, last: float | None = None) -> Spec:
    """One number a layer and seed (a ring each) with the median over seeds (a bar).

    `rows`: row, value, seed; steps from 0 to `last` where it is a step. SpecError for none.
    """
    require(rows, ("row", "value", "seed"), "numbers by layer")
    kept = rows[np.isfinite(rows["value"].to_numpy(np.float64))]
    require(kept, ("row",), "numbers by layer")
    middle = kept.groupby("row", sort=True)["value"].agg(["median", "count"]).reset_index()
    middle = middle.rename(columns={"median": "value", "count": "n"})
    x: Spec = {"field": "value", "type": "quantitative", "title": title, "axis": {"tickCount": 5, "format": ",.9~g"}}
    if last is not None:
        x = {**steps("value", last), "title": title}
    y = named("row", layers)
    tip = [{"field": "value", "title": title, "format": ",.4~g"}]
    ring = {"type": "point", "filled": True, "style": "seed", "size": 26, "opacity": 0.9}
    bar = {"type": "tick", "orient": "vertical", "style": "observed", "thickness": 3, "size": 13, "opacity": 1}
    return chart(
        max(60.0, 15.0 * len(layers)),
        [
            {
                "data": data(kept[["row", "value", "seed"]]),
                "mark": ring,
                "encoding": {"x": x, "y": y, "tooltip": [*tip, {"field": "seed"}]},
            },
            {
                "data": data(middle),
                "mark": bar,
                "encoding": {"x": x, "y": y, "tooltip": [*tip, {"field": "n", "title": "seeds"}]},
            },
        ],
    )
