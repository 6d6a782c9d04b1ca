"""Paper figures from the tables of a store: dimensionality by layer and step, jumps beside noise, curves over seeds.

Functions of DataFrames that return a `matplotlib.figure.Figure`; pyplot and its global state stay out of it.
`sweep_figure` queries a store for their rows. Seeds are averaged, and nothing else: cells that differ in anything but
seeds get a panel, a bar or a line of their own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ndt_ray.analysis.events.significant import primary
from ndt_ray.analysis.jumps import compare_with_null
from ndt_ray.errors import SpecError, did_you_mean
from ndt_ray.figures.canvas import (
    INK,
    NORMAL,
    SMALL,
    canvas,
    data_words,
    head,
    labels,
    require,
    require_number,
    save,
    seeds,
    step_axis,
    with_controls_apart,
    words,
)
from ndt_ray.figures.heatmap import MAX_PANELS, layer_step_heatmap
from ndt_ray.plan import Lane
from ndt_ray.store.reader import Store
from ndt_ray.store.schema import TABLES
from ndt_ray.summary import RULE, in_plan_order, planned_lanes
from ndt_ray.verdicts import MIN_SEEDS, t_interval

__all__ = [
    "MAX_PANELS", "accuracy_curves", "counts_against_null", "demo_figure", "layer_step_heatmap", "save", "sweep_figure",
]  # fmt: skip

HUES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#444444")
"""Okabe and Ito's, which colour-blind readers can tell apart, without the yellow that white paper swallows."""
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
OBSERVED, WHITE, AR1 = "#1f4e79", "#d4d4d4", "#9a9a9a"


# -- jumps beside noise --------------------------------------------------------------------------------------------


def counts_against_null(counts: pd.DataFrame, *, measure: str = "participation_ratio", mode: str = "default") -> Figure:
    """Jumps a trial by cell, one panel per rule, beside what the rule counts in white and AR(1) noise.

    `counts`: rows of `jump_counts` with cell, data (control, seed) of their trials. Bars: mean over trials; whiskers:
    95 % interval of that mean under the null, series taken as independent; dots: trials. SpecError for rows that are
    empty, lack a column, or have no such measure or mode.
    """
    needed = ("trial_id", "cell", "data", "mode", "measure", "detector", "observed", "null_white_mean", "null_ar1_mean")
    require(counts, needed, "jump_counts")
    for column, wanted in (("mode", mode), ("measure", measure)):
        known = sorted(counts[column].unique())
        if wanted not in known:
            raise SpecError(f"jump_counts: no {column} '{wanted}'{did_you_mean(wanted, known)}")
        counts = counts[counts[column] == wanted]
    counts = with_controls_apart(counts)
    names, rules = labels(counts), sorted(counts["detector"].unique())
    title = (
        f"{data_words(counts)} · jumps of {words(measure)} beside noise",
        f"sum over the series of a trial, mean of {seeds(counts)}; whiskers: 95 % interval under the null",
    )
    size = (1.6 + 2.5 * len(rules), 0.55 + 0.46 * len(names))
    drawn = canvas(size, (1, len(rules)), len(rules), title, _bar_legend(), sharey=True)
    totals = compare_with_null(counts, by=["detector", "cell"]).set_index(["detector", "cell"])
    for axes, rule in zip(drawn.axes, rules, strict=True):
        head(axes, rule, 2.5)
        for y, cell in enumerate(names):
            own = counts[(counts["detector"] == rule) & (counts["cell"] == cell)]
            if len(own):
                _bars(axes, y, own.groupby("trial_id")["observed"].sum(), totals.loc[(rule, cell)])
        axes.set_ylim(len(names) - 0.45, -0.55)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("jumps per trial", fontsize=NORMAL, color=INK)
        axes.tick_params(axis="y", length=0)
    drawn.axes[0].set_yticks(range(len(names)), list(names.values()))
    return drawn.figure


def _bar_legend() -> list[Any]:
    return [
        Patch(color=OBSERVED, label="observed"),
        Line2D([], [], marker="o", color="white", mec=INK, mew=0.5, ls="", ms=3, label="one seed"),
        Patch(color=WHITE, label="white noise"),
        Patch(color=AR1, label="AR(1) noise"),
    ]


def _bars(axes: Axes, y: int, observed: "pd.Series[int]", total: Any) -> None:
    """Three bars at one cell; no bar of a null that no series has."""
    n = len(observed)
    axes.barh(y - 0.25, observed.mean(), height=0.24, color=OBSERVED)
    jitter = y - 0.25 + 0.2 * (np.arange(n) / max(n - 1, 1) - 0.5)
    axes.scatter(observed, jitter, s=7, facecolors="white", edgecolors=INK, linewidths=0.4, zorder=3, clip_on=False)
    for family, place, colour in (("white", y, WHITE), ("ar1", y + 0.25, AR1)):
        if total[f"verdict_{family}"] == "no null":
            continue
        mean, low, high = (float(total[c]) / n for c in (f"expected_{family}", f"{family}_lo", f"{family}_hi"))
        axes.barh(place, mean, height=0.24, color=colour)
        whisker = [[mean - max(low, 0.0)], [high - mean]]
        axes.errorbar(mean, place, xerr=whisker, color=INK, elinewidth=0.8, capsize=1.8, capthick=0.8)


# -- curves over seeds ---------------------------------------------------------------------------------------------


def accuracy_curves(rows: pd.DataFrame, value: str = "accuracy", *, log: bool = False) -> Figure:
    """A value by training step, one line per cell, one panel per data set: mean over seeds, with a band.

    `rows`: of `evaluations` or `scalars`, with cell and data (control, seed) of their trials. Band: Student's 95 %
    interval of the mean where three or more seeds have a value, the range where two have; the legend says n. `log`:
    logarithmic steps. SpecError for rows that are empty, lack a column or have no such value.
    """
    require(rows, ("trial_id", "cell", "data", "step"), "evaluations")
    require_number(rows, value, "evaluations")
    rows = with_controls_apart(rows)
    sets = list(dict.fromkeys(rows["data"].astype(str)))
    columns = min(len(sets), 3)
    shape = (-(-len(sets) // columns), columns)
    of_trial = {"accuracy": "held-out accuracy", "loss": "held-out loss"}.get(value, words(value))
    title = (f"{data_words(rows)} · {of_trial}", f"mean of {seeds(rows)}; {_band_words(rows, value)}")
    drawn = canvas((3.3 * columns + 1.9, 2.5 * shape[0]), shape, len(sets), title, sharey=value.endswith("accuracy"))
    named = {data: labels(rows[rows["data"] == data]) for data in sets}
    styles = {label: i for i, label in enumerate(dict.fromkeys(n for names in named.values() for n in names.values()))}
    for axes, data in zip(drawn.axes, sets, strict=True):
        for cell, label in named[data].items():
            _curve(axes, rows[rows["cell"] == cell], value, label, styles[label])
        last = float(rows.loc[rows["data"] == data, "step"].max())
        step_axis(axes, last, log)
        axes.set_xlabel("training step", fontsize=NORMAL, color=INK)
        axes.set_xlim(0, last or 1)
        axes.tick_params(labelleft=True)
        if len(sets) > 1:
            head(axes, data, 3.3)
        style: dict[str, Any] = {"fontsize": SMALL, "frameon": False, "labelcolor": INK, "borderaxespad": 0.2}
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), **style)
    if value.endswith("accuracy"):
        drawn.axes[0].set_ylim(top=min(1.0, drawn.axes[0].get_ylim()[1]))
    unit = {c.name: c.unit for t in ("scalars", "evaluations") for c in TABLES[t].columns}.get(value, "")
    drawn.axes[0].set_ylabel(f"{of_trial}{f' ({unit})' if unit else ''}", fontsize=NORMAL, color=INK)
    return drawn.figure


def band(rows: pd.DataFrame, value: str) -> pd.DataFrame:
    """By step: mean over the trials that have a value, low and high of the band (null for one trial), and n."""
    made = []
    for step, group in rows.dropna(subset=[value]).groupby("step", sort=True)[value]:
        values: NDArray[np.float64] = group.to_numpy(np.float64)
        low, high = np.nan, np.nan
        if len(values) >= MIN_SEEDS:
            low, high = t_interval(values)
        elif len(values) == 2:
            low, high = float(values.min()), float(values.max())
        made.append({"step": step, "mean": float(values.mean()), "low": low, "high": high, "n": len(values)})
    return pd.DataFrame(made, columns=["step", "mean", "low", "high", "n"])


def _curve(axes: Axes, rows: pd.DataFrame, value: str, label: str, place: int) -> None:
    line = band(rows, value)
    if line.empty:
        return
    least, most = line["n"].min(), line["n"].max()
    n = f"{least}" if least == most else f"{least}–{most}"
    style: dict[str, Any] = {"color": HUES[place % len(HUES)], "linestyle": DASHES[place // len(HUES) % len(DASHES)]}
    axes.plot(line["step"], line["mean"], linewidth=1.3, label=f"{label} (n = {n})", **style)
    axes.fill_between(line["step"], line["low"], line["high"], color=style["color"], alpha=0.18, linewidth=0)


def _band_words(rows: pd.DataFrame, value: str) -> str:
    ns = rows.dropna(subset=[value]).groupby(["cell", "step"])["trial_id"].nunique()
    said = ["band: 95 % t-interval of the mean"] if (ns >= MIN_SEEDS).any() else []
    return ", ".join([*said, *(["range where n = 2"] if (ns == 2).any() else [])]) or "no band: n = 1"


# -- from a store --------------------------------------------------------------------------------------------------


def sweep_figure(
    store: Store, sweep: str, kind: str = "heatmap", *, data: str | None = None, controls: bool = False, **options: Any
) -> Figure:
    """A figure of one sweep: `heatmap`, `jumps` or `accuracy`, of one data set if given; `options` as its function's.

    Cells stand in the order of the plan; controls are left out unless asked for. The heatmap takes `marks`: events
    (significant ones of the primary family, on its measure), a rule whose uncalibrated jumps are marked, or None; by
    default the events where there are any, else the jumps of difference_z. SpecError for an unknown kind, data set or
    measure, StoreError for an unknown sweep.
    """
    if kind not in _KINDS:
        raise SpecError(f"unknown figure '{kind}'{did_you_mean(kind, _KINDS)}")
    lanes = planned_lanes(store, sweep)
    if data is not None:
        known = set(store.sql("SELECT DISTINCT data FROM trials WHERE sweep = ?", [sweep])["data"])
        if data not in known:
            raise SpecError(f"sweep {sweep}: no trial of data set '{data}'{did_you_mean(data, known)}")

    return _KINDS[kind](_Reader(store, sweep, lanes, data, controls), **options)


def demo_figure(store: Store, sweep: str, path: str | Path) -> Path:
    """The heatmap of a sweep, written to a file; errors of `sweep_figure` and `save`.

    Its events are marked, or its jumps where there are none. Of a sweep with more cells than one figure has room for:
    its first data set (the title says which).
    """
    cells = store.sql(
        "SELECT DISTINCT cell, data FROM trials WHERE sweep = ? AND control = 'none' ORDER BY ALL", [sweep]
    )
    several = len(cells) > MAX_PANELS and cells["data"].nunique() > 1
    first = in_plan_order(cells, planned_lanes(store, sweep))["data"].iloc[0] if several else None
    return save(sweep_figure(store, sweep, data=first), path)


@dataclass(frozen=True)
class _Reader:
    """Rows of one sweep, those of each trial with its columns, in the order of the plan."""

    store: Store
    sweep: str
    lanes: list[Lane]
    data: str | None
    controls: bool

    def __call__(self, columns: str, table: str) -> pd.DataFrame:
        query = f"SELECT x.trial_id, {columns}, {_OF_TRIAL} FROM {table} x JOIN trials t USING (sweep, trial_id)"
        chosen = "x.sweep = $sweep AND ($controls OR t.control = 'none') AND ($data IS NULL OR t.data = $data)"
        values = {"sweep": self.sweep, "controls": self.controls, "data": self.data}
        return in_plan_order(self.store.sql(f"{query} WHERE {chosen} ORDER BY ALL", values), self.lanes)

    def events(self, measure: str) -> pd.DataFrame:
        """Significant events of the primary family, if they are of this measure; none where none were sought."""
        if not {"events", "event_families"} <= set(self.store.names()):
            return pd.DataFrame()
        columns = "x.layer, x.layer_index, x.view, x.step_before, x.step_after, x.direction, x.measure, x.family, "
        rows = self(columns + 'x.detector, x."null", x.significant', "events")
        own = primary(rows, self.store.table("event_families", self.sweep))
        return own[own["measure"] == measure]


_OF_TRIAL = "t.cell, t.data, t.control, t.seed, t.steps, t.probe_size, t.data_completeness"


def _heatmap(
    read: _Reader, measure: str = "participation_ratio", *, marks: str | None = "auto", **options: Any
) -> Figure:
    known = _numbers("velocity", "measurements")
    if measure not in known:
        raise SpecError(f"no measure '{measure}'{did_you_mean(measure, known)}")
    table = known[measure]
    view = "x.view" if table == "measurements" else "'*' AS view"  # velocity is of the layer, whatever its view
    rows = read(f'x.step, x.layer, x.layer_index, {view}, x."{measure}"', table)
    events = read.events(measure) if marks in ("auto", "events") else None
    if events is not None and (len(events) or marks == "events"):
        own = events if table == "measurements" else events.assign(view="*")
        return layer_step_heatmap(rows, measure, events=own if len(own) else None, calibrated=True, **options)
    if marks is None:
        return layer_step_heatmap(rows, measure, **options)
    columns = "x.layer, x.view, x.step_before, x.step_after, x.direction, x.counted, x.measure, x.mode, x.detector"
    jumps = read(columns, "jumps")
    jumps = jumps[(jumps["mode"] == "default") & (jumps["detector"] == (RULE if marks == "auto" else marks))]
    return layer_step_heatmap(rows, measure, events=jumps, **options)


def _jumps(read: _Reader, **options: Any) -> Figure:
    nulls = ", ".join(f"x.null_{family}_{c}" for family in ("white", "ar1") for c in ("mean", "sd"))
    rows = read(f"x.layer_index, x.view, x.mode, x.measure, x.detector, x.observed, x.merged, {nulls}", "jump_counts")
    return counts_against_null(rows, **options)


def _accuracy(read: _Reader, value: str = "accuracy", **options: Any) -> Figure:
    known = _numbers("scalars", "evaluations")
    if value not in known:
        raise SpecError(f"no column '{value}' in evaluations or scalars{did_you_mean(value, known)}")
    return accuracy_curves(read(f'x.step, x."{value}"', known[value]), value, **options)


def _numbers(*tables: str) -> dict[str, str]:
    """Columns that can be drawn, each with the last of the tables that has it."""
    kinds, keys = ("measure", "float32", "float64", "int16"), ("layer_index",)
    return {c.name: t for t in tables for c in TABLES[t].columns if c.type in kinds and c.name not in keys}


_KINDS: dict[str, Callable[..., Figure]] = {"heatmap": _heatmap, "jumps": _jumps, "accuracy": _accuracy}
