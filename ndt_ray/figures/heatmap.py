"""The figure that a sweep ends with: dimensionality by layer and training step, one panel per cell."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from ndt_ray.errors import SpecError, did_you_mean
from ndt_ray.figures.canvas import (
    GREY,
    HEADER,
    INK,
    NORMAL,
    SMALL,
    Canvas,
    canvas,
    data_words,
    head,
    labels,
    require,
    require_number,
    seeds,
    step_axis,
    stimuli,
    with_controls_apart,
    words,
)
from ndt_ray.store.schema import TABLES

Floats = NDArray[np.float64]
Scale = Literal["linear", "log"]
Marks = Mapping[str, pd.DataFrame]

MAX_PANELS = 30
DIVERGING = LinearSegmentedColormap.from_list(
    "blue_orange", ["#0b3c78", "#2f7fbf", "#9cc8e3", "#f5f2ec", "#fbc07f", "#e07b1a", "#8c3d04"]
)
_ABSENT: dict[str, Any] = {"facecolor": "#d9d9d9", "hatch": "//////", "edgecolor": "#a3a3a3", "linewidth": 0}
_PARTIAL: dict[str, Any] = {"fill": False, "hatch": "....", "edgecolor": "#00000066", "linewidth": 0}


@dataclass(frozen=True)
class Panel:
    """One cell: the mean over its trials of a measure, `values` [layers, steps], and how many `counts` had a value."""

    cell: str
    layers: tuple[tuple[str, str], ...]
    """(layer, view) in forward order."""
    steps: NDArray[np.int64]
    values: Floats
    counts: NDArray[np.int64]
    trials: frozenset[str]
    horizon: int
    """Planned steps, where known; else the last one."""

    @property
    def partial(self) -> NDArray[np.bool_]:
        """Where some trials have a value, and some have not."""
        return (self.counts > 0) & (self.counts < len(self.trials))

    @property
    def quorum(self) -> int:
        """Half of the trials, and two if there are two: how many must show a change for it to be marked."""
        return max(min(2, len(self.trials)), math.ceil(len(self.trials) / 2))


def layer_step_heatmap(
    rows: pd.DataFrame,
    measure: str = "participation_ratio",
    *,
    relative: bool = True,
    events: pd.DataFrame | None = None,
    calibrated: bool = False,
    scale: Scale = "linear",
    limit: float | None = None,
) -> Figure:
    """A measure by layer (forward order, downwards) and training step, one panel per cell, mean over seeds.

    `rows`: measurements with their trial's columns (trial_id, cell, data, layer, layer_index, view, step, the measure;
    control, steps, seed, probe_size and data_completeness where known). Relative: log2 of the ratio to the same series
    at step 0, colours symmetric about no change, up to the largest change or `limit` (log2 units). `events`: rows of
    `jumps` by one rule, of which a change at the same step in half of the seeds is marked; or, `calibrated`,
    significant rows of `events`, each of which is. Hatched: no value; dotted: some seeds have none. SpecError for rows
    that are empty, too many, or without a column that is needed.
    """
    require(rows, ("trial_id", "cell", "data", "layer", "layer_index", "view", "step"), "measurements")
    require_number(rows, measure, "measurements")
    if scale not in ("linear", "log"):
        raise SpecError(f"unknown scale '{scale}'{did_you_mean(scale, ('linear', 'log'))}")
    rows = with_controls_apart(rows)
    made = panels(rows, measure, relative)
    if len(made) > MAX_PANELS:
        raise SpecError(f"{len(made)} cells are too many panels for one figure ({MAX_PANELS=}) - choose one data set")
    need = 1 if calibrated else None
    marks = {} if events is None else {panel.cell: concordant(panel, events, measure, need) for panel in made}
    drawn = _canvas(made, _title(rows, measure, relative), _legend(made, marks, events, calibrated))
    norm, names = _norm(made, relative, limit), labels(rows)
    alike = len({panel.horizon for panel in made}) == 1
    pitch = (drawn.figure.get_size_inches()[0] - 0.8) / _columns(made)
    for axes, panel in zip(drawn.axes, made, strict=True):
        head(axes, names[panel.cell], pitch)
        mesh = _draw(axes, panel, norm, DIVERGING if relative else colormaps["viridis"])
        _mark(axes, panel, marks.get(panel.cell))
        last = max(float(edges(p.steps)[-1]) for p in (made if alike else [panel]))
        step_axis(axes, panel.horizon, log=scale == "log")
        axes.set_xlim(float(edges(panel.steps)[0]), max(last, panel.horizon))
    _colour_bar(drawn, mesh, measure, relative, limit is not None, seeds(rows))
    return drawn.figure


# -- numbers -------------------------------------------------------------------------------------------------------


def panels(rows: pd.DataFrame, measure: str, relative: bool) -> list[Panel]:
    """Panels in the order in which their cells appear; values are log2 ratios to step 0 where `relative`.

    A value that is null, not finite or (relative) not positive is left out of its mean; without any the mean is NaN.
    """
    values = rows[measure].to_numpy(dtype=np.float64, na_value=np.nan)
    if relative:
        values = _log2(values) - _log2(_initial(rows, measure))
    rows = rows.assign(_value=np.where(np.isfinite(values), values, np.nan))
    made = [_panel(str(cell), group) for cell, group in rows.groupby("cell", sort=False)]
    if not any(np.isfinite(panel.values).any() for panel in made):
        raise SpecError(f"'{measure}' has no value at step 0 and after it - give relative=False, or another measure")
    return made


def edges(steps: NDArray[np.int64]) -> Floats:
    """Borders of a grid of steps: midway between measurements, half a gap beyond the first and the last."""
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    half = np.diff(steps) / 2
    return np.concatenate([[steps[0] - half[0]], steps[:-1] + half, [steps[-1] + half[-1]]])


def concordant(panel: Panel, events: pd.DataFrame, measure: str, need: int | None = None) -> pd.DataFrame:
    """Changes that a quorum of a panel's trials show in one layer, one direction, between the same measurements.

    `need`: so many trials, instead of the panel's quorum. Columns layer, step_before, step_after, direction, (view,)
    trials. SpecError for events of several rules.
    """
    columns = ["layer", "step_before", "step_after", "direction"]
    require(events, ("trial_id", *columns), "events", empty=True)
    kept = events["trial_id"].isin(panel.trials) & events["layer"].isin({layer for layer, _ in panel.layers})
    for column, wanted in (("counted", True), ("measure", measure)):
        if column in events:
            kept &= events[column] == wanted
    found = events[kept]
    for column in ("mode", "detector"):
        if column in found and found[column].nunique() > 1:
            several = ", ".join(sorted(found[column].unique()))
            raise SpecError(f"events are of more than one {column} ({several}) - give those of one")
    columns += ["view"] if "view" in events else []
    counted = found.groupby(columns, sort=True)["trial_id"].nunique().rename("trials").reset_index()
    return counted[counted["trials"] >= (panel.quorum if need is None else need)].reset_index(drop=True)


def layer_names(layers: Sequence[tuple[str, str]]) -> list[str]:
    """Module paths to read: `transformer.layers.1.linear2` as `block 1 linear2`, the output of an attention as `attn`.

    Paths as they are where two would read the same; the view is added where a layer has several.
    """
    paths = [layer for layer, _ in layers]
    short = [re.sub(r"^(?:.*\.)?(?:layers|blocks)\.(\d+)\.", r"block \1 ", path) for path in paths]
    short = [name.replace("self_attn.out_proj", "attn") for name in short]
    names = short if len(set(short)) == len(set(paths)) else paths
    return [f"{n} ({view})" if paths.count(p) > 1 else n for n, (p, view) in zip(names, layers, strict=True)]


def _log2(values: Floats) -> Floats:
    found: Floats = np.log2(np.where(values > 0, values, np.nan))
    return found


def _initial(rows: pd.DataFrame, measure: str) -> Floats:
    """The value at step 0 of each row's series."""
    series = ["trial_id", "layer", "view"]
    first = rows.loc[rows["step"] == 0, [*series, measure]].rename(columns={measure: "_first"})
    if first.duplicated(series).any():
        raise SpecError("measurements: a trial has two rows of one layer at step 0 - give rows of one sweep")
    found: Floats = rows[series].merge(first, on=series, how="left")["_first"].to_numpy(np.float64, na_value=np.nan)
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


def _norm(made: Sequence[Panel], relative: bool, limit: float | None) -> Normalize:
    if limit is not None and not (relative and limit > 0):
        raise SpecError(f"a limit goes with relative values, and limit > 0 must hold, but got ({relative=}, {limit=})")
    found = np.concatenate([p.values[np.isfinite(p.values)] for p in made])
    if not relative:
        return Normalize(float(found.min()), float(found.max()))
    top = limit or float(np.abs(found).max()) or 1.0
    return Normalize(-top, top)


# -- drawing -------------------------------------------------------------------------------------------------------


def _title(rows: pd.DataFrame, measure: str, relative: bool) -> tuple[str, str]:
    """Two lines; the mean of log ratios is a geometric mean."""
    what = f"{data_words(rows)} · {words(measure)}{' relative to initialisation' if relative else ''}"
    return what, " · ".join(filter(None, (f"{'geometric ' if relative else ''}mean of {seeds(rows)}", stimuli(rows))))


def _canvas(made: Sequence[Panel], title: tuple[str, str], handles: Sequence[Any]) -> Canvas:
    """Panels as high as their layers need, with layers named."""
    columns = _columns(made)
    deepest = [max(len(p.layers) for p in made[i : i + columns]) for i in range(0, len(made), columns)]
    heights = [min(max(1.5, 0.15 * layers), 8.0) for layers in deepest]
    width = 5.4 if columns == 1 else (3.3 if columns <= 3 else 2.6) * columns + 0.8
    size = (width, sum(heights) + 0.42 * len(heights) + 0.2)
    drawn = canvas(size, (len(heights), columns), len(made), title, handles, gridspec_kw={"height_ratios": heights})
    for i, (axes, panel) in enumerate(zip(drawn.axes, made, strict=True)):
        points = min(NORMAL - 0.5, heights[i // columns] * 72 / len(panel.layers) * 0.75)
        shown = range(0, len(panel.layers), max(1, math.ceil(4.5 / points)))
        names = layer_names(panel.layers)
        axes.set_yticks(shown, [names[row] for row in shown], fontsize=max(points, 4.5))
        axes.tick_params(axis="y", length=0)
        if i + columns >= len(made):
            axes.set_xlabel("training step", fontsize=NORMAL, color=INK)
    return drawn


def _columns(made: Sequence[Panel]) -> int:
    return min(len(made), 3 if len(made) <= 9 else 5)


def _draw(axes: Axes, panel: Panel, norm: Normalize, colours: Any) -> QuadMesh:
    """The mesh over a hatched ground, so that what has no value stays hatched."""
    axes.patch.set(**_ABSENT)
    x, y = edges(panel.steps), np.arange(len(panel.layers) + 1) - 0.5
    values = np.ma.masked_invalid(panel.values)
    # Rasterized: thousands of vector cells show seams in every PDF viewer.
    mesh = axes.pcolormesh(x, y, values, norm=norm, cmap=colours, antialiased=False, rasterized=True)
    for row, start, end in _runs(panel.partial):
        axes.add_patch(Rectangle((x[start], y[row]), x[end] - x[start], 1, **_PARTIAL))
    axes.hlines(y[1:-1], x[0], x[-1], colors="white", linewidths=0.7)
    axes.set_ylim(y[-1], y[0])
    return mesh


def _runs(mask: NDArray[np.bool_]) -> Iterator[tuple[int, int, int]]:
    """(row, first, behind last) of every stretch of True."""
    for row, line in enumerate(mask):
        turns = np.flatnonzero(np.diff(np.concatenate([[False], line, [False]]).astype(np.int8)))
        for start, end in zip(turns[::2], turns[1::2], strict=True):
            yield row, int(start), int(end)


def _mark(axes: Axes, panel: Panel, marks: pd.DataFrame | None) -> None:
    for mark in [] if marks is None else marks.to_dict("records"):
        wanted = (mark["layer"], mark.get("view"))
        y = [i for i, (layer, view) in enumerate(panel.layers) if wanted in ((layer, view), (layer, None))]
        x = [(mark["step_before"] + mark["step_after"]) / 2] * len(y)
        shape = "^" if mark["direction"] == "increase" else "v"
        axes.scatter(x, y, s=15, marker=shape, color="black", edgecolors="white", linewidths=0.5, zorder=3)


def _colour_bar(drawn: Canvas, mesh: QuadMesh, measure: str, relative: bool, clipped: bool, of: str) -> None:
    unit = {c.name: c.unit for table in TABLES.values() for c in table.columns}.get(measure, "")
    height = drawn.figure.get_size_inches()[1] - HEADER - 0.8
    shrink = min(1.0, 2.6 / height)
    ends = "both" if clipped else "neither"
    bar = drawn.figure.colorbar(
        mesh, ax=drawn.axes, shrink=shrink, aspect=height * shrink / 0.13, fraction=0.05, pad=0.015, extend=ends
    )
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=SMALL, length=2.5, width=0.6, color=GREY, labelcolor=INK)
    if relative:
        ticks = octaves(mesh.get_clim()[1] or 1.0)
        bar.set_ticks(ticks, labels=[f"×{2.0**t:.2g}" for t in ticks])
    text = f"{words(measure)}{f' ({unit})' if unit else ''}\n{'ratio to step 0' if relative else 'mean'}, {of}"
    bar.set_label(text, fontsize=SMALL, color=INK, linespacing=1.4)


def octaves(top: float) -> list[float]:
    """Ticks at even log2 ratios within ±top, symmetric about 0, five or seven of them."""
    step = 2.0 ** math.floor(math.log2(top / 2))
    count = math.floor(top / step + 1e-9)
    return [i * step for i in range(-count, count + 1)]


def _legend(made: Sequence[Panel], marks: Marks, events: pd.DataFrame | None, calibrated: bool) -> list[Any]:
    handles: list[Any] = []
    if events is not None and any(len(found) for found in marks.values()):
        rule = f" by {events['detector'].iloc[0]}" if "detector" in events else ""
        of = {(p.quorum, len(p.trials)) for p in made}
        share = "half of the" if len(of) > 1 else "≥ {} of {}".format(*of.pop())
        what = f"flagged{rule} (uncalibrated) at the same step in {share} seeds"
        if calibrated:
            what = "event of a seed that survives its null"
        for shape, text in (("^", "rise"), ("v", f"fall, {what}")):
            handles.append(Line2D([], [], marker=shape, color="black", linestyle="", markersize=3.8, label=text))
    if any(not np.isfinite(p.values).all() for p in made):
        handles.append(Patch(**_ABSENT, label="no value"))
    if any(p.partial.any() for p in made):
        handles.append(Patch(**_PARTIAL, label="some seeds without a value"))
    return handles
