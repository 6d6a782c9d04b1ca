"""What `ndt sweep` prints at its end: what was trained, how well, whether jumps outnumber noise, what to ask next.

Every number, and every word that judges (verdicts.py), is computed from the tables.
"""

import io
import re
import shlex
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from ndt_ray.plan import Lane
from ndt_ray.plan.file import read_plan
from ndt_ray.store.reader import Store
from ndt_ray.store.sweep import open_sweep
from ndt_ray.verdicts import LEVEL, Jumps, Null, jump_verdicts

RULE, MEASURE = "difference_z", "participation_ratio"
"""The jumps that get a line a cell; all others that were counted share one line."""
_P = f"p≤{LEVEL:g}"
MAX_NAME = 32
"""Characters of a cell's name that a narrow terminal does not break."""
MIN_SEEDS = 3
"""Below this there is no interval over seeds, and so no verdict."""


@dataclass(frozen=True)
class Cell:
    """What became of the trials of one cell (or of its controls of one kind)."""

    name: str
    planned: int
    finished: int
    failed: int
    diverged: int
    accuracy: float | None
    """Held-out, at the last step: mean over finished trials."""
    accuracy_sd: float | None
    """Over finished trials; None for fewer than two."""
    layers: int
    rows: int
    """Rows of `measurements`."""

    @property
    def unfinished(self) -> int:
        return self.planned - self.finished - self.failed - self.diverged


@dataclass(frozen=True)
class Summary:
    """What a sweep came to. Print it with rich, or take its `text` or (for a program) its `value`."""

    sweep: str
    about: str | None
    facts: str
    """Data sets with their completeness, steps, probe."""
    cells: tuple[Cell, ...]
    jumps: tuple[Jumps, ...]
    others: tuple[Jumps, ...]
    """By other rules, or on other measures."""
    queries: tuple[tuple[str, str], ...]
    """(SQL, what it answers)."""
    where: str | None = None
    events: str | None = None
    """What of the declared family of series survives its null; None where nobody has looked."""

    def value(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "sweep": self.sweep,
            "about": self.about,
            "cells": [{**asdict(cell), "unfinished": cell.unfinished} for cell in self.cells],
            "events": self.events,
            "jumps": [{**asdict(j), "words": j.words} for j in (*self.jumps, *self.others)],
            "queries": [{"sql": sql, "answers": answers} for sql, answers in self.queries],
        }

    def text(self, width: int = 120) -> str:
        """As printed on a terminal of this width, without colours."""
        file = io.StringIO()
        console = Console(file=file, width=width, color_system=None, highlight=False, legacy_windows=False)
        console.print(self)
        return "".join(line.rstrip() + "\n" for line in file.getvalue().splitlines())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text.assemble((self.sweep, "bold"), f"  {self.about or ''}".rstrip())
        yield Text(self.facts, style="dim")
        yield ""
        yield _cell_table(self.cells)
        if self.events:
            yield ""
            yield Text(self.events)
        if self.jumps:
            yield ""
            yield from self._about_jumps()
        yield ""
        option = f" --store {shlex.quote(self.where)}" if self.where else ""
        for sql, answers in self.queries:
            yield Text(f"# {answers}", style="dim")
            yield Text(f'ndt query{option} "{sql}"')

    def _about_jumps(self) -> Iterator[Table | Text]:
        first = self.jumps[0]
        yield Text(f"jumps of {first.measure} counted by {first.detector}, beside its counts on noise [95 %]")
        yield _jump_table(self.jumps)
        notes = [f"{_P}: series whose own count is so rare in AR(1) noise; by chance {LEVEL:.0%} of them at most"]
        judged = [j.ar1.verdict for j in self.others if j.ar1 and j.ar1.verdict]
        if judged:
            counts = ", ".join(f"{judged.count(v)} {v}" for v in ("above", "within", "below"))
            notes.append(f"other measures and rules, beside AR(1) noise: {counts}, of {len(judged)} counts in all")
        if any(n and n.verdict == "above" for j in (*self.jumps, *self.others) for n in (j.white, j.ar1)):
            notes.append("noise has no trend: steep smooth training alone can count more, so more is no proof of jumps")
        yield from (Text(note, style="dim") for note in notes)


def sweep_summary(store: Store, sweep: str, where: str | None = None) -> Summary:
    """The summary of a sweep as far as it is committed; `where`: the --store that the printed commands are to name.

    StoreError for an unknown sweep.
    """
    folder = open_sweep(store, sweep)
    lanes = planned_lanes(store, sweep)
    trials = store.sql(_TRIALS, [sweep])
    measured = store.sql(_MEASURED, [sweep]).set_index("name")
    counts = store.sql(_COUNTS, [sweep])
    names = _names(lanes, trials)
    chosen, others = _jumps(counts, names)
    about = store.sql("SELECT about FROM sweeps WHERE sweep = ?", [sweep])["about"].iloc[0]
    return Summary(
        folder.name,
        about if isinstance(about, str) else None,
        _facts(trials),
        tuple(_cell(label, name, lanes, trials, measured) for name, label in names.items()),
        chosen,
        others,
        tuple(_queries(sweep, trials, chosen if "jumps" in store.snapshot().parts else ())),
        where,
        _events(store, sweep),
    )


def _events(store: Store, sweep: str) -> str | None:
    """One sentence on the declared family, with what chance gives beside each count."""
    if "event_families" not in store.names():
        return None
    rows = store.sql('SELECT * FROM event_families WHERE sweep = ? AND "primary"', [sweep])
    if rows.empty:
        return None
    f = rows.iloc[0]
    return (
        f"calibrated events of {f['measure']}: {f['n_events']} in {f['n_selected']} of {f['n_calibrated']} testable"
        f" series (false discovery rate {f['alpha']:.0%}); before correction {f['n_candidates']} candidates,"
        f" where the null gives {f['null_candidates']:.1f}"
    )


_NAME = "t.cell || CASE WHEN t.control = 'none' THEN '' ELSE ' ' || t.control END AS name"
_TRIALS = f"""
SELECT t.trial_id, t.cell, t.data, {_NAME}, t.data_completeness, t.steps, t.probe_size, o.status, o.final_accuracy
FROM trials t LEFT JOIN outcomes o ON o.sweep = t.sweep AND o.pack = t.pack AND o.trial_id = t.trial_id
WHERE t.sweep = ? ORDER BY t.cell, t.control, t.trial_id"""
_MEASURED = f"""
SELECT {_NAME}, count(*) AS rows, count(DISTINCT m.layer) AS layers
FROM measurements m JOIN trials t ON t.sweep = m.sweep AND t.pack = m.pack AND t.trial_id = m.trial_id
WHERE m.sweep = ? GROUP BY 1"""
_COUNTS = f"""
SELECT j.* EXCLUDE (layer), {_NAME} FROM jump_counts j JOIN trials t ON t.sweep = j.sweep AND t.trial_id = j.trial_id
WHERE j.sweep = ? AND j.mode = 'default'"""


# -- cells ---------------------------------------------------------------------------------------------------------


def planned_lanes(store: Store, sweep: str) -> list[Lane]:
    """The trials of a sweep's plan, in the order of its grid; none where the store has no plan (an imported sweep)."""
    path = f"{open_sweep(store, sweep).folder}/plan.json"
    if store.location.size(path) is None:
        return []
    text = store.location.read(path).decode()
    if '"imported"' in text[:64]:  # an imported sweep says here what came in; it planned nothing
        return []
    lines = text.splitlines(keepends=True)
    return [lane for pack in read_plan(lines, store.location.absolute(path)).packs for lane in pack.lanes]


def cell_labels(cells: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Short names of (cell, data) pairs, in their order: without the data set where all have the same one."""
    pairs = dict(cells)
    if len(set(pairs.values())) != 1:
        return {cell: cell for cell in pairs}
    short = {cell: re.sub(rf"/{re.escape(data)}(?=\s|$)", "", cell, count=1) for cell, data in pairs.items()}
    return short if len(set(short.values())) == len(short) else {cell: cell for cell in pairs}


def _names(lanes: Sequence[Lane], trials: pd.DataFrame) -> dict[str, str]:
    """Labels of cells and controls by name, those of the plan first."""
    data = dict(zip(trials["cell"], trials["data"], strict=True))
    known = [(_lane_name(lane), data.get(lane.cell, _data_of(lane.cell))) for lane in lanes]
    return cell_labels([*known, *zip(trials["name"], trials["data"], strict=True)])


def _lane_name(lane: Lane) -> str:
    return lane.cell if lane.control == "none" else f"{lane.cell} {lane.control}"


def _data_of(cell: str) -> str:
    return cell.partition("/")[2].split(" ")[0].split("(")[0]


def _cell(label: str, name: str, lanes: Sequence[Lane], trials: pd.DataFrame, measured: pd.DataFrame) -> Cell:
    own = trials[trials["name"] == name]
    planned = {lane.trial_id for lane in lanes if _lane_name(lane) == name} | set(own["trial_id"])
    ended = own["status"].value_counts()
    scores = own.loc[own["status"] == "finished", "final_accuracy"].dropna()
    return Cell(
        name=label,
        planned=len(planned),
        finished=int(ended.get("finished", 0)),
        failed=int(ended.get("failed", 0)),
        diverged=int(ended.get("diverged", 0)),
        accuracy=float(scores.mean()) if len(scores) else None,
        accuracy_sd=float(scores.std(ddof=1)) if len(scores) > 1 else None,
        layers=int(measured["layers"].get(name, 0)),
        rows=int(measured["rows"].get(name, 0)),
    )


def _facts(trials: pd.DataFrame) -> str:
    if trials.empty:
        return "nothing is committed yet"
    pairs = trials[["data", "data_completeness"]].drop_duplicates().itertuples(index=False)
    data = ", ".join(f"{data} ({known})" if isinstance(known, str) else str(data) for data, known in pairs)
    spans = []
    for column, text in (("steps", "steps"), ("probe_size", "probe stimuli")):
        numbers = trials[column].dropna()
        if len(numbers):
            span = dict.fromkeys(f"{int(n):,}" for n in (numbers.min(), numbers.max()))
            spans.append(f"{'–'.join(span)} {text}")
    return " · ".join([data, *spans])


def in_plan_order(rows: pd.DataFrame, lanes: Sequence[Lane]) -> pd.DataFrame:
    """Rows with a column `cell`, those of the plan's first cell first; cells that it does not name come last."""
    cells = list(dict.fromkeys(lane.cell for lane in lanes))
    place = rows["cell"].map({cell: i for i, cell in enumerate(cells)}).fillna(len(cells))
    return rows.iloc[np.argsort(place.to_numpy(), kind="stable")].reset_index(drop=True)


def _jumps(counts: pd.DataFrame, names: dict[str, str]) -> tuple[tuple[Jumps, ...], tuple[Jumps, ...]]:
    """Jumps of every cell by the rule and measure that get lines of their own, and all others."""
    place = {name: i for i, name in enumerate(names)}
    made = sorted(jump_verdicts(counts), key=lambda j: (j.detector, j.measure, place[j.name]))
    made = [replace(j, name=names[j.name]) for j in made]
    pairs = [(j.detector, j.measure) for j in made]
    first = (RULE, MEASURE) if (RULE, MEASURE) in pairs else next(iter(pairs), None)
    chosen = tuple(j for j, pair in zip(made, pairs, strict=True) if pair == first)
    return chosen, tuple(j for j, pair in zip(made, pairs, strict=True) if pair != first)


# -- what to ask next ----------------------------------------------------------------------------------------------


def _queries(sweep: str, trials: pd.DataFrame, jumps: Sequence[Jumps]) -> Iterator[tuple[str, str]]:
    if trials["status"].isin(["failed", "diverged"]).any():
        yield (
            "SELECT cell, seed, status, last_step, error FROM outcomes JOIN trials USING (sweep, pack, trial_id) "
            f"WHERE sweep = '{sweep}' AND status <> 'finished'",
            "what failed",
        )
    yield (
        f"SELECT cell, layer, step, round(avg({MEASURE}), 1) AS dimensions FROM wide WHERE sweep = '{sweep}' AND "
        "control = 'none' AND phase IN (0, 1) GROUP BY cell, layer, layer_index, step ORDER BY cell, layer_index, step",
        "dimensionality before and after training",
    )
    if jumps:
        yield (
            "SELECT cell, layer, step_before, direction, count(DISTINCT trial_id) AS seeds FROM jumps JOIN trials "
            f"USING (sweep, trial_id) WHERE sweep = '{sweep}' AND counted AND detector = '{jumps[0].detector}' AND "
            f"measure = '{jumps[0].measure}' GROUP BY ALL ORDER BY seeds DESC, cell, layer, step_before LIMIT 10",
            "jumps that seeds agree on",
        )


# -- tables --------------------------------------------------------------------------------------------------------


def _cell_table(cells: Sequence[Cell]) -> Table:
    rare = [name for name in ("diverged", "unfinished") if any(getattr(cell, name) for cell in cells)]
    rows = [
        (
            cell.name,
            *(f"{n:,}" for n in (cell.planned, cell.finished, cell.failed, *(getattr(cell, name) for name in rare))),
            _accuracy(cell),
            f"{cell.layers}",
            f"{cell.rows:,}",
        )
        for cell in cells
    ]
    columns = ("cell", "trials", "finished", "failed", *rare, "held-out accuracy ± SD", "layers", "measured rows")
    return _table(columns, rows, numbers=len(columns) - 1)


def _accuracy(cell: Cell) -> str:
    if cell.accuracy is None:
        return "-"
    return f"{cell.accuracy:.3f}" + ("" if cell.accuracy_sd is None else f" ± {cell.accuracy_sd:.3f}")


def _jump_table(jumps: Sequence[Jumps]) -> Table:
    columns = ("cell", "observed", "white noise", "AR(1) noise", _P, "")
    rows = [
        (
            j.name,
            f"{j.observed:,}",
            _interval(j.white),
            _interval(j.ar1),
            "-" if j.ar1 is None else f"{j.series_above_ar1} of {j.series}",
            j.words,
        )
        for j in jumps
    ]
    return _table(columns, rows, numbers=4)


def _interval(null: Null | None) -> str:
    if null is None:
        return "-"
    digits = 0 if null.expected >= 10 else 1
    return f"{null.expected:,.{digits}f} [{null.low:,.{digits}f}, {null.high:,.{digits}f}]"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: int) -> Table:
    """A name, then `numbers` columns of numbers, which are never broken (their headers are), then prose."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for i, column in enumerate(columns):
        longest = max((len(row[i]) for row in rows), default=0)
        if i == 0:
            table.add_column(column, overflow="fold", no_wrap=longest <= MAX_NAME)
        elif i <= numbers:
            header = "\n".join(textwrap.wrap(column, max([longest, *map(len, column.split())])))
            table.add_column(header, justify="right", no_wrap=True)
        else:
            table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _plural(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
