"""What charts share: how rows become data of a specification, axes, and a PNG without a browser."""

import copy
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ndt_ray.errors import SpecError
from ndt_ray.figures.charts.theme import config

Spec = dict[str, Any]
DIGITS = 5
"""Significant digits of numbers in a chart; tables keep them all."""
STEP = "training step"


def data(rows: pd.DataFrame, digits: int = DIGITS) -> Spec:
    """Rows as inline CSV, a third of the size of JSON records; numbers keep `digits` significant digits."""
    kinds = {c: "number" if pd.api.types.is_numeric_dtype(t) else "string" for c, t in rows.dtypes.items()}
    lines = [",".join(str(c) for c in rows.columns)]
    columns = [_texts(rows[c], digits) if kinds[c] == "number" else [_quoted(v) for v in rows[c]] for c in rows.columns]
    lines += [",".join(row) for row in zip(*columns, strict=True)]
    return {"values": "\n".join(lines), "format": {"type": "csv", "parse": {str(c): k for c, k in kinds.items()}}}


def _texts(values: "pd.Series[Any]", digits: int) -> list[str]:
    numbers = pd.to_numeric(values).astype("float64")
    return ["" if not math.isfinite(v) else f"{v:.{digits}g}" if v != int(v) else f"{v:.0f}" for v in numbers]


def _quoted(value: Any) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ""
    text = str(value)
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\n') else text


def require(rows: pd.DataFrame, columns: Sequence[str], table: str) -> None:
    """SpecError for rows that are empty or lack a column."""
    missing = [c for c in columns if c not in rows]
    if missing:
        raise SpecError(f"{table}: columns {', '.join(missing)} are missing from the rows of this chart")
    if rows.empty:
        raise SpecError(f"{table}: no rows to draw")


def chart(height: float, layers: Sequence[Spec], **more: Any) -> Spec:
    """Layers over one another, as wide as the place they are put in."""
    return {"width": "container", "height": height, "layer": list(layers), **more}


def steps(field: str, last: float, **more: Any) -> Spec:
    """The axis of training steps, from 0 to the last one."""
    axis = {"grid": False, "tickCount": 5, "format": ",d", "labelFlush": True}
    scale = {"domain": [0, last or 1], "nice": False, "zero": True, "clamp": True}
    return {"field": field, "type": "quantitative", "title": STEP, "scale": scale, "axis": {**axis, **more}}


def named(field: str, names: Sequence[str], **more: Any) -> Spec:
    """An axis of rows 0 … n-1 with names, the first on top."""
    axis = {"labelExpr": f"{json.dumps(list(names))}[datum.value]", "ticks": False, "domain": False, **more}
    return {
        "field": field,
        "type": "ordinal",
        "title": None,
        "axis": axis,
        "scale": {"domain": list(range(len(names))), "paddingInner": 0.06, "paddingOuter": 0},
    }


def coloured(names: Sequence[str], title: str | None = None) -> Mapping[str, Spec]:
    """Colour by category, and dashes where there are more categories than eight colours."""
    dashes = [[1.0, 0.0], [5.0, 2.0], [1.5, 1.5], [6.0, 2.0, 1.5, 2.0]]
    legend = {"symbolType": "stroke", "symbolOpacity": 1, "symbolStrokeWidth": 2.5, "columns": min(len(names), 2)}
    found: dict[str, Spec] = {"color": {"field": "name", "type": "nominal", "title": title}}
    found["color"] |= {"scale": {"domain": list(names)}, "legend": legend}
    if len(names) > 8:
        scale = {"domain": list(names), "range": [dashes[i // 8 % 4] for i in range(len(names))]}
        found["strokeDash"] = {"field": "name", "type": "nominal", "title": title, "scale": scale}
    return found


def png(
    spec: Spec, path: str | Path | None = None, *, width: int = 640, dark: bool = False, scale: float = 2.0
) -> bytes:
    """The chart as a PNG, drawn without a browser; written to `path` if given."""
    import vl_convert

    drawn: bytes = vl_convert.vegalite_to_png(_sized(spec, width), scale=scale, config=config(dark))
    if path is not None:
        Path(path).write_bytes(drawn)
    return drawn


def svg(spec: Spec, *, width: int = 640, dark: bool = False) -> str:
    """The chart as SVG text, for papers."""
    import vl_convert

    drawn: str = vl_convert.vegalite_to_svg(_sized(spec, width), config=config(dark))
    return drawn


def _sized(spec: Spec, width: int) -> Spec:
    made = copy.deepcopy(spec)
    if made.get("width") == "container":
        made["width"] = width
    return made
