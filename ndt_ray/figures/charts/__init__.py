"""Charts as Vega-Lite specifications: pure functions of rows, drawn alike in a page, a notebook and a PNG."""

from ndt_ray.figures.charts.counts import beside_null, p_values, phases
from ndt_ray.figures.charts.curves import by_layer, curves, forest, specification_curve
from ndt_ray.figures.charts.draw import Spec, png, svg
from ndt_ray.figures.charts.maps import event_raster, layer_map
from ndt_ray.figures.charts.mechanisms import matrix, panel
from ndt_ray.figures.charts.theme import config

__all__ = [
    "Spec", "beside_null", "by_layer", "config", "curves", "event_raster", "forest", "layer_map", "matrix", "p_values",
    "panel", "phases", "png", "specification_curve", "svg",
]  # fmt: skip
