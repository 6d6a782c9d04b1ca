"""Where and when: layer by step maps of dimensionality and of representation velocity, with their events."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ndt_ray.figures.charts import layer_map
from ndt_ray.figures.charts.maps import Scale, limits, logarithmic
from ndt_ray.figures.heatmap import layer_names
from ndt_ray.report.parts import Figure, Plate, Ramp, Section, Sign
from ndt_ray.report.source import NAME, Source, quoted
from ndt_ray.report.words import count, listed, number, readable
from ndt_ray.store.schema import TABLES

MOST_CELLS = 42_000
"""Coloured cells in all maps of a page together: about 20 bytes each."""
MEASURES = ("participation_ratio", "participation_ratio_sv_uncentred")
"""The first that the sweep has is drawn; imported series have only the second."""
VIEWS = ("units", "positions", "tokens", "feature_mean", "gap", "mean", "flat")
"""Which view stands for a layer that was measured in several."""


@dataclass(frozen=True)
class Marks:
    """What is marked on the maps: events (name, layer, from, to, direction, trial_id), and what they are."""

    rows: pd.DataFrame
    words: str
    measure: str


@dataclass(frozen=True)
class Periods:
    """Calibrated critical periods of a measure (name, layer, view, from, to, trial_id), and their number by chance."""

    rows: pd.DataFrame
    by_chance: float


@dataclass(frozen=True)
class Grid:
    """The layers of one name, and its values: rows of row (place of the layer), step, value, n."""

    name: str
    layers: list[str]
    """Module paths, in forward order."""
    titles: list[str]
    rows: pd.DataFrame


def maps(source: Source, marks: Marks | None, settled: pd.DataFrame | None) -> Section:
    """The section: dimensionality relative to its first value, and velocity. `settled`: name, layer, step, trial_id."""
    section = Section("maps", "Where and when representations change", short="Maps")
    measure = next((m for m in MEASURES if _any(source, "measurements", m)), None)
    if measure is None:
        section.missing.append(("No dimensionality is stored", "run the sweep, or import measurements"))
        return section
    speed = _any(source, "velocity", "velocity")
    budget = MOST_CELLS // (2 if speed else 1)
    section.plates.append(layer_maps(source, measure, _of(marks, measure), settled, budget))
    if speed:
        section.plates.append(layer_maps(source, "velocity", _of(marks, "velocity"), None, budget))
    else:
        section.missing.append(("No representation velocity is stored", "sweeps measured since version 0.1 have it"))
    return section


def _of(marks: Marks | None, measure: str) -> Marks | None:
    """Events stand on the map of the measure that they were found on."""
    return marks if marks is not None and marks.measure == measure else None


def mapped_measures(source: Source) -> list[str]:
    """What a sweep has maps of: measures of its spectra that have a value, and velocity."""
    names = [c.name for c in TABLES["measurements"].columns if c.type == "measure"]
    if not source.has("measurements"):
        return []
    counts = ", ".join(f'count("{name}") AS "{name}"' for name in names)
    known = source.ask(f"SELECT {counts} FROM measurements WHERE sweep = $sweep").rows.iloc[0]
    found = [name for name in names if known[name]]
    return [*found, "velocity"] if _any(source, "velocity", "velocity") else found


def layer_maps(
    source: Source, measure: str, marks: Marks | None, settled: pd.DataFrame | None = None, budget: int = MOST_CELLS
) -> Plate:
    """Layer by step maps of all cells, one measure, on one scale of colours; at most `budget` coloured cells."""
    if measure == "velocity":
        return _plate(source, _velocity(source), measure, "value", budget, marks, settled)
    rows = _dimensions(source, measure)
    return _plate(source, rows, measure, "ratio", budget, marks, settled, critical(source, measure))


def critical(source: Source, measure: str) -> Periods | None:
    """Stretches in which a layer moves faster than its slow-down explains; None where none were sought or found."""
    if not source.has("critical_periods", "step_first", "step_last", "measure", "view"):
        return None
    rows = source.ask(
        f'SELECT {NAME} AS name, c.trial_id, c.layer, c.view, c.step_first AS "from", c.step_last AS "to" '
        "FROM critical_periods c JOIN trials t USING (sweep, trial_id) WHERE sweep = $sweep "
        f"AND c.measure = {quoted(measure)} ORDER BY 1, c.layer_index, c.step_first, c.trial_id"
    ).rows
    chance = source.ask(
        "SELECT sum(null_periods) AS n FROM critical_series WHERE sweep = $sweep AND mode = 'default' "
        f"AND measure = {quoted(measure)}"
    ).rows["n"]
    return Periods(rows, float(chance.iloc[0])) if len(rows) else None


def _any(source: Source, table: str, column: str) -> bool:
    return source.has(table) and bool(
        source.ask(f"SELECT count({column}) AS n FROM {table} WHERE sweep = $sweep").rows["n"].iloc[0]
    )


def _dimensions(source: Source, measure: str) -> pd.DataFrame:
    """name, layer, layer_index, view, step, value (mean over seeds of log2 of the ratio to the first step), n."""
    return source.ask(
        f"WITH m AS (SELECT {NAME} AS name, m.layer, m.layer_index, m.view, m.step, m.{measure} AS v, "
        f"first_value(m.{measure}) OVER (PARTITION BY m.trial_id, m.layer, m.view ORDER BY m.step) AS v0 "
        "FROM measurements m JOIN trials t USING (sweep, pack, trial_id) WHERE sweep = $sweep) "
        "SELECT name, layer, layer_index, view, step, avg(log2(v / v0)) AS value, count(v / v0) AS n FROM m "
        "WHERE v > 0 AND v0 > 0 AND isfinite(v) AND isfinite(v0) GROUP BY ALL ORDER BY name, layer_index, view, step"
    ).rows


def _velocity(source: Source) -> pd.DataFrame:
    """As `_dimensions`: mean over seeds of 1 - CKA to the previous measurement, a step."""
    return source.ask(
        f"SELECT {NAME} AS name, v.layer, v.layer_index, 'kernel' AS view, v.step, "
        "avg(v.velocity / (v.step - v.previous_step)) AS value, count(v.velocity) AS n FROM velocity v "
        "JOIN trials t USING (sweep, pack, trial_id) WHERE sweep = $sweep AND v.velocity IS NOT NULL "
        "AND v.step > v.previous_step GROUP BY ALL ORDER BY name, layer_index, step"
    ).rows


def grids(source: Source, rows: pd.DataFrame) -> list[Grid]:
    """One per name, in the plan's order; of a layer with several views the first of `VIEWS`."""
    found = []
    for name in source.labels:
        own = rows[rows["name"] == name]
        rank = own["view"].map({v: i for i, v in enumerate(VIEWS)}).fillna(len(VIEWS))
        own = own[rank == rank.groupby(own["layer"]).transform("min")]
        order = own[["layer_index", "layer", "view"]].drop_duplicates("layer").sort_values("layer_index")
        if order.empty:
            continue
        layers = [str(x) for x in order["layer"]]
        place = {layer: i for i, layer in enumerate(layers)}
        titles = layer_names([(x, str(v)) for x, v in zip(layers, order["view"], strict=True)])
        found.append(Grid(name, layers, titles, own.assign(row=own["layer"].map(place))))
    return found


def _plate(
    source: Source,
    rows: pd.DataFrame,
    measure: str,
    scale: Scale,
    budget: int,
    marks: Marks | None,
    settled: pd.DataFrame | None,
    periods: Periods | None = None,
) -> Plate:
    made = grids(source, rows)
    most = max(24, min(200, budget // (sum(len(g.layers) for g in made) or 1)))
    low, high = limits(rows["value"], scale)
    domain = (low, high) if scale == "ratio" else (max(low, high / 1e4), high)
    first = f"its value at step {int(rows['step'].min())}"
    title = f"{readable(measure)} / {first}" if scale == "ratio" else "1 - CKA a step"
    figures = []
    for grid in made:
        horizon = source.horizon(grid.name) or int(grid.rows["step"].max())
        trials = len(source.seeds(grid.name))
        of_grid = None if marks is None else marked(grid, marks.rows, horizon, trials, most)
        where = None if settled is None else _settled(grid, settled)
        spans = None if periods is None else _spans(grid, periods.rows, trials)
        values = grid.rows[["row", "step", "value", "n"]]
        spec = layer_map(
            values,
            grid.titles,
            horizon,
            scale=scale,
            domain=domain,
            title=title,
            events=of_grid,
            settled=where,
            periods=spans,
            trials=trials,
            most=most,
        )
        label = source.label(grid.name)
        figures.append(Figure(label, spec, _alt(grid, label, measure, scale, of_grid, spans)))
    heading = f"{readable(measure).capitalize()} relative to {first}" if scale == "ratio" else "Representation velocity"
    note = "Mean over seeds" + (
        " of the log ratio." if scale == "ratio" else " of 1 - debiased CKA to the measurement before."
    )
    return Plate(
        heading,
        tuple(figures),
        note,
        _ramp(title, scale, domain),
        _keys(marks, settled, periods, any(_gaps(source, grid) for grid in made)),
    )


def marked(grid: Grid, events: pd.DataFrame, horizon: int, trials: int, most: int) -> pd.DataFrame | None:
    """Events of one map: those of several seeds in one column of the map and one direction are one mark."""
    own = events[(events["name"] == grid.name) & events["layer"].isin(grid.layers)]
    if own.empty:
        return None
    width = max(1.0, (horizon or 1) / min(most, 100))
    own = own.assign(
        row=own["layer"].map({x: i for i, x in enumerate(grid.layers)}), middle=(own["from"] + own["to"]) / 2
    )
    own = own.assign(column=(own["middle"] // width).astype(int))
    found = []
    for (row, _, direction), group in own.groupby(["row", "column", "direction"], sort=True):
        seeds = group["trial_id"].nunique()
        first, last = int(group["from"].min()), int(group["to"].max())
        text = f"{grid.titles[int(row)]}: {direction} between steps {first:,} and {last:,} in {seeds} of {trials} seeds"
        at = float(group["middle"].mean())
        found.append({"row": row, "at": at, "direction": direction, "seeds": seeds, "text": text})
    return pd.DataFrame(found)


def _spans(grid: Grid, periods: pd.DataFrame, trials: int) -> pd.DataFrame | None:
    """Periods of one map: those of several seeds that overlap in a layer are one span."""
    own = periods[periods["name"] == grid.name].merge(grid.rows[["layer", "view"]].drop_duplicates())
    found = []
    for layer, group in own.groupby("layer", sort=False):
        ordered, row = group.sort_values("from"), grid.layers.index(str(layer))
        apart = ordered["from"] > ordered["to"].cummax().shift(fill_value=-1)
        for _, span in ordered.groupby(apart.cumsum()):
            first, last, seeds = int(span["from"].min()), int(span["to"].max()), span["trial_id"].nunique()
            text = f"{grid.titles[row]}: faster than its slow-down explains between steps {first:,} and {last:,} in "
            found.append({"row": row, "from": first, "to": last, "text": f"{text}{seeds} of {trials} seeds"})
    return pd.DataFrame(found) if found else None


def _settled(grid: Grid, settled: pd.DataFrame) -> pd.DataFrame | None:
    """The median step, over the seeds that settled, at which each layer did."""
    own = settled[(settled["name"] == grid.name) & settled["layer"].isin(grid.layers)].dropna(subset=["step"])
    if own.empty:
        return None
    found = []
    for layer, group in own.groupby("layer"):
        text = f"settled at step {number(group['step'].median())} (median of the {count(len(group), 'seed')} that did)"
        found.append({"row": grid.layers.index(str(layer)), "at": float(group["step"].median()), "text": text})
    return pd.DataFrame(found)


def _ramp(title: str, scale: Scale, domain: tuple[float, float]) -> Ramp:
    low, high = domain
    if scale == "ratio":
        step = 2.0 ** math.floor(math.log2(high / 2))
        places = [i * step for i in range(-int(high / step), int(high / step) + 1)]
        ticks = tuple((f"×{number(2.0**p, 2)}", (p - low) / (high - low)) for p in places)
        return Ramp(title, "diverging", ticks)
    if not logarithmic(domain):
        return Ramp(title, "heatmap", tuple((number(low + k * (high - low) / 4, 2), k / 4) for k in range(5)))
    logs = np.arange(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    span = math.log10(high / low)
    ticks = tuple((f"{10.0**k:.0e}".replace("e-0", "e-"), (float(k) - math.log10(low)) / span) for k in logs)
    return Ramp(title, "heatmap", ticks)


def _gaps(source: Source, grid: Grid) -> bool:
    """Whether a part of the map has no value: the run is not finished, or a layer has lost measurements."""
    steps = grid.rows["step"].nunique()
    whole = (grid.rows.groupby("row")["step"].nunique() == steps).all()
    return not whole or int(grid.rows["step"].max()) < source.horizon(grid.name)


def _keys(
    marks: Marks | None, settled: pd.DataFrame | None, periods: Periods | None, gaps: bool
) -> tuple[tuple[Sign, str], ...]:
    found: list[tuple[Sign, str]] = []
    if marks is not None and len(marks.rows):
        found.append(("event", f"rise or fall: {marks.words}; larger where more seeds have it"))
    if settled is not None and len(settled):
        found.append(("settled", "where the layer settled (median over seeds)"))
    if periods is not None:
        text = f"critical period of a seed: it moves faster than its slow-down explains ({len(periods.rows):,} in all, "
        found.append(("period", f"{text}{number(periods.by_chance)} on surrogates)"))
    if gaps:
        found.append(("absent", "no value, or none yet"))
    return tuple(found)


def _alt(
    grid: Grid, label: str, measure: str, scale: Scale, events: pd.DataFrame | None, spans: pd.DataFrame | None
) -> str:
    if scale == "ratio":
        ends = grid.rows[grid.rows["step"] == grid.rows["step"].max()].sort_values("row")
        found = zip(ends["row"], ends["value"], strict=True)
        said = listed((f"{grid.titles[int(r)]} ×{number(2.0**v, 2)}" for r, v in found), 12)
        text = f"{label}: {readable(measure)} by layer and step. At the end, relative to the first measurement: {said}."
    else:
        top = grid.rows.loc[grid.rows["value"].idxmax()]
        where = f"{grid.titles[int(top['row'])]} at step {int(top['step']):,}"
        text = f"{label}: representation velocity by layer and step, fastest in {where}."
    text += "" if events is None else f" {count(len(events), 'mark')} of events."
    return text + ("" if spans is None else f" {count(len(spans), 'span')} of critical periods.")
