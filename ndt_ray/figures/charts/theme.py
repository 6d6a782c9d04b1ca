"""How charts look on light and on dark ground. Charts name roles (a style, a range); the theme gives them colours."""

from typing import Any

FONT = "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', Arial, sans-serif"

LIGHT: dict[str, Any] = {
    "ground": "#fcfcfa", "ink": "#1d2329", "muted": "#56606b", "rule": "#d5d7d4", "absent": "#e3e4e1",
    "observed": "#1f4e79", "null": "#a3a8ad", "rise": "#b04a00", "fall": "#0b5394",
    "high": "#a9d8b0", "middle": "#f2e2a0", "low": "#f0b3a4", "on_band": "#1d2329",
    "diverging": ("#0b3c78", "#2f7fbf", "#9cc8e3", "#f3f1eb", "#fbc07f", "#e07b1a", "#8c3d04"),
    "heatmap": ("#f3f1eb", "#c9ddd2", "#86bfae", "#3f9384", "#16655c", "#073b38"),
    "category": ("#0072b2", "#d55e00", "#00805f", "#b2588d", "#a87000", "#3b8fc4", "#7a5195", "#444444"),
}  # fmt: skip
"""The categories are Okabe and Ito's, darkened where 3 : 1 against the ground asks for it."""

DARK: dict[str, Any] = {
    "ground": "#14181c", "ink": "#e6e8e6", "muted": "#a4adb5", "rule": "#353c43", "absent": "#2a3036",
    "observed": "#7db7ec", "null": "#737c85", "rise": "#f2a65a", "fall": "#86c1f5",
    "high": "#6fb584", "middle": "#d6bd62", "low": "#d9806c", "on_band": "#14181c",
    "diverging": ("#a6d5ff", "#4f9bdb", "#2a5e8c", "#22282d", "#7c4d1c", "#d4862f", "#ffca8a"),
    "heatmap": ("#1c2226", "#1d4541", "#256d63", "#3f9a89", "#79c7b2", "#c6f0e0"),
    "category": ("#5ab0e8", "#f2894b", "#3fc9a0", "#e39ac4", "#e0b04a", "#9bd0f2", "#b99bd6", "#c4c9cd"),
}  # fmt: skip


def config(dark: bool = False) -> dict[str, Any]:
    """The Vega-Lite configuration of a theme; `vega_config(dark)` of every chart, wherever it is drawn."""
    c = DARK if dark else LIGHT
    text = {"font": FONT, "color": c["ink"]}
    return {
        "background": c["ground"],
        "font": FONT,
        "aria": False,  # a chart is one image with a description: thousands of cells are not read out one by one
        "padding": 2,
        "view": {"stroke": None, "fill": None},
        "axis": {
            "labelColor": c["ink"], "titleColor": c["muted"], "tickColor": c["rule"], "domainColor": c["rule"],
            "gridColor": c["rule"], "gridOpacity": 0.6, "labelFontSize": 11, "titleFontSize": 11,
            "titleFontWeight": "normal", "labelLimit": 220, "titlePadding": 6,
        },
        "legend": {
            "labelColor": c["ink"], "titleColor": c["muted"], "labelFontSize": 11, "titleFontSize": 11,
            "titleFontWeight": "normal", "labelLimit": 260, "orient": "bottom", "symbolStrokeWidth": 2,
        },
        "header": {"labelColor": c["ink"], "titleColor": c["muted"]},
        "title": {**text, "fontSize": 12, "anchor": "start", "fontWeight": "bold"},
        "range": {"diverging": c["diverging"], "ramp": c["heatmap"], "category": c["category"]},
        "style": {  # Vega-Lite takes a mark's fill from `color`, and its stroke, where it has both, from `stroke`
            "absent": {"color": c["absent"]},
            "observed": {"color": c["observed"]},
            "null": {"color": c["null"]},
            "ink": {"color": c["ink"]},
            "muted": {"color": c["muted"]},
            "event": {"color": c["ink"], "stroke": c["ground"], "strokeWidth": 0.8},
            "settled": {"color": c["ground"], "stroke": c["ink"], "strokeWidth": 1.2},
            "seed": {"color": c["ground"], "stroke": c["ink"], "strokeWidth": 0.9},
            "rise": {"color": c["rise"]},
            "fall": {"color": c["fall"]},
            "high": {"color": c["high"]}, "middle": {"color": c["middle"]}, "low": {"color": c["low"]},
            "on_band": {"color": c["on_band"]}, "reversed": {"color": c["ground"]},
        },
    }  # fmt: skip
