"""Paper figures from the tables of a store: dimensionality by layer and step, jumps beside noise, curves over seeds.

Functions of DataFrames that return a `matplotlib.figure.Figure`; pyplot and its global state stay out of it.
`sweep_figure` queries a store for their rows. Seeds are averaged, and nothing else: cells that differ in anything but
seeds get a panel, a bar or a line of their own.
"""

import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from ndt_ray.analysis.jumps import compare_with_null
from numpy.typing import NDArray
from scipy.special import stdtrit

from ndt_ray.errors import NdtError, SpecError, did_you_mean
from ndt_ray.store.reader import Store
from ndt_ray.store.schema import TABLES
from ndt_ray.summary import cell_labels, in_plan_order, layer_labels

Floats = NDArray[np.float64]
Kind = Literal["heatmap", "jumps", "accuracy"]

MAX_PANELS = 30
SMALL, NORMAL, LARGE = 7.0, 8.0, 11.0
"""Font sizes in points."""
INK, GREY, PALE = "#222222", "#6b6b6b", "#e4e4e4"
HUES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#444444")
"""Okabe and Ito's, which colour-blind readers can tell apart, without the yellow that white paper swallows."""
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
_DIVERGING = LinearSegmentedColormap.from_list(
    "blue_orange", ["#0b3c78", "#2f7fbf", "#9cc8e3", "#f5f2ec", "#fbc07f", "#e07b1a", "#8c3d04"]
)


# -- heatmap of layers by step -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """One cell: the mean over its trials of a measure, `values` [layers, steps], and how many trials stand behind it."""

    cell: str
    layers: tuple[tuple[str, str], ...]
    """(layer, view) in forward order."""
    steps: NDArray[np.int64]
    values: Floats
    counts: NDArray[np.int64]
    trials: frozenset[str]
    horizon: int
    """Planned steps."""


def panels(rows: pd.DataFrame, measure: str, relative: bool) -> list[Panel]:
    """Panels in the order in which their cells appear; values are log2 ratios to step 0 where `relative`.

    A null, not finite or (relative) not positive value is left out of its mean; without any the mean is NaN.
    """
    values = rows[measure].to_numpy(dtype=np.float64, na_value=np.nan)
    if relative:
        values = np.log2(_positive(values)) - np.log2(_positive(_initial(rows, measure)))
    rows = rows.assign(_value=np.where(np.isfinite(values), values, np.nan))
    return [_panel(str(cell), group) for cell, group in rows.groupby("cell", sort=False)]


def _positive(values: Floats) -> Floats:
    return np.where(values > 0, values, np.nan)


def _initial(rows: pd.DataFrame, measure: str) -> Floats:
    """The value at step 0 of each row's series."""
    series = ["trial_id", "layer", "view"]
    first = rows.loc[rows["step"] == 0, [*series, measure]].rename(columns={measure: "_first"})
    if first.empty:
        raise SpecError("no row is of step 0, so nothing is relative to it - give relative=False")
    joined = rows[series].merge(first, on=series, how="left", validate="many_to_one")
    found: Floats = joined["_first"].to_numpy(dtype=np.float64, na_value=np.nan)
    return found


def _panel(cell: str, rows: pd.DataFrame) -> Panel:
    grouped = rows.groupby(["layer_index", "layer", "view", "step"], sort=True)["_value"]
    mean, counts = grouped.mean().unstack("step"), grouped.count().unstack("step", fill_value=0)
    return Panel(
        cell,
        tuple((str(layer), str(view)) for _, layer, view in mean.index),
        mean.columns.to_numpy(np.int64),
        mean.to_numpy(np.float64),
        counts.to_numpy(np.int64),
        frozenset(rows["trial_id"].astype(str)),
        int(max(rows["step"].max(), rows["steps"].max() if "steps" in rows else 0)),
    )


def edges(steps: NDArray[np.int64]) -> Floats:
    """Cell borders of a grid of steps: midway between measurements, half a gap beyond the first and the last."""
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    middle = (steps[1:] + steps[:-1]) / 2
    ends = steps[0] - (steps[1] - steps[0]) / 2, steps[-1] + (steps[-1] - steps[-2]) / 2
    return np.concatenate([ends[:1], middle, ends[1:]])


def layer_step_heatmap(
    rows: pd.DataFrame,
    measure: str = "participation_ratio",
    *,
    relative: bool = True,
    events: pd.DataFrame | None = None,
    scale: Literal["linear", "log"] = "linear",
    limit: float | None = None,
) -> Figure:
    """A measure by layer (forward order, downwards) and training step, one panel per cell, mean over seeds.

    `rows`: measurements with their trial's columns (trial_id, cell, data, layer, layer_index, view, step, the measure;
    steps, seed, probe_size and data_completeness where known). Relative: log2 of the ratio to the same series at step
    0, colours symmetric about no change, up to the largest change or `limit` (in log2 units). `events`: rows of `jumps`
    by one rule; changes between the same two measurements in at least half of the seeds are marked. Hatched: no value;
    dotted: fewer seeds than the panel has. SpecError for rows that are empty, too many, or without a column needed.
    """
    _require(rows, ("trial_id", "cell", "data", "layer", "layer_index", "view", "step"), "measurements")
    _require_measure(rows, measure)
    if scale not in ("linear", "log"):
        raise SpecError(f"unknown scale '{scale}'{did_you_mean(scale, ('linear', 'log'))}")
    made = panels(rows, measure, relative)
    if len(made) > MAX_PANELS:
        raise SpecError(f"{len(made)} cells are too many panels for one figure ({MAX_PANELS=}) - choose a data set")
    if not any(np.isfinite(panel.values).any() for panel in made):
        raise SpecError(f"{measure}: every value is null - choose another measure")
    labels = cell_labels(rows)
    marks = {panel.cell: _marks(panel, events, measure) for panel in made} if events is not None else {}
    what = f"{_words(measure)} {'relative to initialisation' if relative else 'of activations'}"
    canvas = _heatmap_canvas(made, [f"{_data_words(rows)} · {what}", f"mean of {_about(rows)}"])
    norm = _norm(made, relative, limit)
    alike = len({panel.horizon for panel in made}) == 1
    for axes, panel in zip(canvas.axes, made, strict=True):
        mesh = _draw_panel(axes, panel, norm, relative, scale)
        axes.set_title(labels[panel.cell], fontsize=NORMAL + 0.5, color=INK, pad=4)
        last = max(edges(p.steps)[-1] for p in made) if alike else edges(panel.steps)[-1]
        axes.set_xlim(edges(panel.steps)[0], max(last, panel.horizon))
        _draw_marks(axes, panel, marks.get(panel.cell))
    _colour_bar(canvas.figure, mesh, canvas.axes, measure, relative, limit is not None, _seeds(rows))
    _heatmap_legend(canvas, made, marks, events)
    return canvas.figure


def _norm(made: Sequence[Panel], relative: bool, limit: float | None) -> Normalize:
    found = np.concatenate([p.values[np.isfinite(p.values)] for p in made])
    if not relative:
        return Normalize(float(found.min()), float(found.max()))
    if limit is not None and not limit > 0:
        raise SpecError(f"limit > 0 must hold, but got ({limit=})")
    top = limit or float(np.abs(found).max()) or 1.0
    return Normalize(-top, top)


@dataclass(frozen=True)
class _Canvas:
    figure: Figure
    axes: list[Axes]
    footer: float
    """Height of the strip below the panels, as a fraction."""


def _canvas(size: tuple[float, float], shape: tuple[int, int], count: int, title: Sequence[str], **grid: Any) -> _Canvas:
    """Axes in a grid below a left-aligned title of two lines, above a strip for a legend. Sizes in inches."""
    width, height = size[0], size[1] + 0.52 + 0.3
    figure = Figure(figsize=(width, height), facecolor="white")
    figure.set_layout_engine(
        ConstrainedLayoutEngine(rect=(0.0, 0.3 / height, 1.0, size[1] / height), w_pad=0.06, h_pad=0.05, wspace=0.03)
    )
    found = figure.subplots(*shape, squeeze=False, **grid).ravel()
    for axes in found[count:]:
        axes.remove()
    for axes in found[:count]:
        axes.tick_params(labelsize=SMALL, length=2.5, width=0.6, color=GREY, labelcolor=INK)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set(linewidth=0.6, color=GREY)
    for text, above, style in zip(
        title, (0.11, 0.32), ({"fontsize": LARGE, "fontweight": "bold"}, {"fontsize": NORMAL, "color": GREY}), strict=True
    ):
        figure.text(0.08 / width, 1 - above / height, text, ha="left", va="top", **{"color": INK, **style})
    return _Canvas(figure, list(found[:count]), 0.3 / height)


def _heatmap_canvas(made: Sequence[Panel], title: Sequence[str]) -> _Canvas:
    columns = min(len(made), 3 if len(made) <= 9 else 5)
    count = math.ceil(len(made) / columns)
    deepest = [max(len(p.layers) for p in made[i * columns : (i + 1) * columns]) for i in range(count)]
    heights = [min(max(1.5, 0.155 * layers), 8.0) for layers in deepest]
    width = 5.6 if columns == 1 else 3.25 * columns + 0.9 if columns <= 3 else 2.5 * columns + 0.9
    size = (width, sum(heights) + 0.45 * count + 0.25)
    canvas = _canvas(size, (count, columns), len(made), title, gridspec_kw={"height_ratios": heights})
    for i, (axes, panel) in enumerate(zip(canvas.axes, made, strict=True)):
        points = min(NORMAL - 0.5, heights[i // columns] * 72 / len(panel.layers) * 0.85)
        every = max(1, math.ceil(4.5 / points))
        rows = range(0, len(panel.layers), every)
        names = layer_labels(panel.layers)
        axes.set_yticks(rows, [names[r] for r in rows], fontsize=max(points, 4.5))
        axes.tick_params(axis="y", length=0)
        if i + columns >= len(made):
            axes.set_xlabel("training step", fontsize=NORMAL, color=INK)
    return canvas


def _draw_panel(
    axes: Axes, panel: Panel, norm: Normalize, relative: bool, scale: Literal["linear", "log"]
) -> QuadMesh:
    """The mesh over a hatched ground, so that what has no value stays hatched; dots where some seeds are missing."""
    axes.patch.set(facecolor="#d9d9d9", hatch="//////", edgecolor="#a3a3a3", linewidth=0)
    x, y = edges(panel.steps), np.arange(len(panel.layers) + 1) - 0.5
    mesh = axes.pcolormesh(
        x,
        y,
        np.ma.masked_invalid(panel.values),
        norm=norm,
        cmap=_DIVERGING if relative else colormaps["viridis"],
        antialiased=False,
        rasterized=True,  # thousands of vector cells show seams in every PDF viewer
    )
    for row, start, end in _runs((panel.counts > 0) & (panel.counts < len(panel.trials))):
        box = Rectangle((x[start], y[row]), x[end] - x[start], 1, fill=False, hatch="....", linewidth=0)
        box.set_edgecolor("#00000055")
        axes.add_patch(box)
    axes.hlines(y[1:-1], x[0], x[-1], colors="white", linewidths=0.7)
    axes.set_ylim(y[-1], y[0])
    if scale == "log":
        axes.set_xscale("symlog", linthresh=1, linscale=0.3)
        axes.set_xticks([t for t in (0, 1, 10, 100, 1e3, 1e4, 1e5, 1e6) if t <= panel.horizon])
        axes.xaxis.set_minor_locator(MaxNLocator(1))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    return mesh


def _runs(mask: NDArray[np.bool_]) -> Iterator[tuple[int, int, int]]:
    """(row, first, behind last) of every stretch of True."""
    for row, line in enumerate(mask):
        turns = np.flatnonzero(np.diff(np.concatenate([[False], line, [False]]).astype(np.int8)))
        for start, end in zip(turns[::2], turns[1::2], strict=True):
            yield row, int(start), int(end)


def _colour_bar(
    figure: Figure, mesh: QuadMesh, axes: Sequence[Axes], measure: str, relative: bool, clipped: bool, seeds: str
) -> None:
    columns = {c.name: c for table in TABLES.values() for c in table.columns}
    unit = columns[measure].unit if measure in columns else ""
    extend = "both" if relative and clipped else "neither"
    bar = figure.colorbar(mesh, ax=list(axes), fraction=0.05, pad=0.015, aspect=18, extend=extend)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=SMALL, length=2.5, width=0.6, color=GREY, labelcolor=INK)
    if relative:
        ticks = _octaves(float(mesh.norm.vmax))
        bar.set_ticks(ticks, labels=[f"×{2.0**t:.3g}" for t in ticks])
        text = f"{_words(measure)}: ratio to step 0\n{unit + ', ' if unit else ''}log scale, geometric mean of {seeds}"
    else:
        text = f"{_words(measure)}{f' ({unit})' if unit else ''}\nmean of {seeds}"
    bar.set_label(text, fontsize=SMALL, color=INK, linespacing=1.4)


def _octaves(top: float) -> Floats:
    """Ticks at even log2 ratios, symmetric about 0, three to nine of them."""
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 1e9) if top / s < 4.001)
    count = math.floor(top / step + 1e-9)
    return np.arange(-count, count + 1) * step


def _marks(panel: Panel, events: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Changes that at least half of a panel's trials (and two, if it has them) show between the same measurements."""
    columns = ["layer", "step_before", "step_after", "direction"]
    _require(events, ("trial_id", *columns), "events", empty=True)
    for column in ("mode", "detector"):
        if column in events and events[column].nunique() > 1:
            several = ", ".join(sorted(events[column].unique()))
            raise SpecError(f"events are of more than one {column} ({several}) - give those of one")
    kept = events["trial_id"].isin(panel.trials) & events["layer"].isin({layer for layer, _ in panel.layers})
    for column, wanted in (("counted", True), ("measure", measure)):
        if column in events:
            kept &= events[column] == wanted
    columns += ["view"] if "view" in events else []
    found = events[kept].groupby(columns, sort=True)["trial_id"].nunique().rename("trials").reset_index()
    return found[found["trials"] >= _least(len(panel.trials))]


def _least(trials: int) -> int:
    return max(min(2, trials), math.ceil(trials / 2))


def _draw_marks(axes: Axes, panel: Panel, marks: pd.DataFrame | None) -> None:
    if marks is None or marks.empty:
        return
    for direction, shape in (("increase", "^"), ("decrease", "v")):
        chosen = marks[marks["direction"] == direction]
        x = (chosen["step_before"] + chosen["step_after"]) / 2
        y = [_row(panel, mark) for mark in chosen.to_dict("records")]
        axes.scatter(x, y, s=15, marker=shape, color="black", edgecolors="white", linewidths=0.5, zorder=3)


def _row(panel: Panel, mark: dict[str, Any]) -> int:
    same = [i for i, (layer, view) in enumerate(panel.layers) if (layer, mark.get("view", view)) == (mark["layer"], view)]
    return same[0]


def _heatmap_legend(
    canvas: _Canvas, made: Sequence[Panel], marks: dict[str, pd.DataFrame], events: pd.DataFrame | None
) -> None:
    handles: list[Any] = []
    if any(len(found) for found in marks.values()) and events is not None:
        rule = f" by {events['detector'].iloc[0]}" if "detector" in events else ""
        sizes = [(_least(len(p.trials)), len(p.trials)) for p in made]
        share = f"≥ {sizes[0][0]} of {sizes[0][1]}" if len(set(sizes)) == 1 else "at least half"
        for shape, word in (("^", "rise"), ("v", "fall")):
            text = f"{word} flagged{rule} at the same step in {share} seeds"
            handles.append(Line2D([], [], marker=shape, color="black", linestyle="", markersize=3.8, label=text))
    if any(not np.isfinite(p.values).all() for p in made):
        handles.append(Patch(facecolor="#d9d9d9", hatch="//////", edgecolor="#a3a3a3", linewidth=0, label="no value"))
    if any(((p.counts > 0) & (p.counts < len(p.trials))).any() for p in made):
        handles.append(
            Patch(facecolor="white", hatch="....", edgecolor="#00000055", linewidth=0, label="some seeds have no value")
        )
    _legend(canvas, handles)


def _legend(canvas: _Canvas, handles: list[Any]) -> None:
    """One line in the strip below the axes."""
    if handles:
        canvas.figure.legend(
            handles=handles,
            loc="center left",
            bbox_to_anchor=(0.0, canvas.footer / 2),
            ncols=len(handles),
            fontsize=SMALL,
            frameon=False,
            labelcolor=INK,
            columnspacing=1.6,
            handletextpad=0.5,
        )
