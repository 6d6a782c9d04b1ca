"""What changes at events beside windows like them: the tables as CSV, and the tests with their intervals."""

from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ndt_ray.figures.album import Album
from ndt_ray.figures.canvas import GREY, INK, NORMAL, SMALL, canvas, require
from ndt_ray.report.mechanisms import MOST
from ndt_ray.report.order import ALPHA
from ndt_ray.report.words import count, interval, level, listed, number, readable

SECTION = "What changes at events"
CAPTIONS = {
    "mechanism_tests": "One test a metric and cell: do events change it more than matched windows do?",
    "mechanism_changes": "Each metric before, during and after each event, beside its control windows.",
    "mechanism_patterns": "Which changes at events are the same in all architectures.",
    "hypotheses": "The founding claims with prediction, estimate, q and verdict.",
    "recovery": "What interventions did, lane by lane, and how it healed.",
    "recovery_contrasts": "Interventions over seeds: against untouched lanes, and at events against other steps.",
}
TABLES = tuple(CAPTIONS)
COMMANDS = {"mechanism_tests": "mechanisms", "hypotheses": "hypotheses"}
"""Analyses whose tables every sweep with events can have."""
WHY = {
    "no_controls": "no event has enough windows like it (`lacking` of mechanism_changes.csv says what leaves too few)",
    "few_trials": "under three trials have an event with enough windows like it",
    "constant": "it changes in no trial, or in all alike",
}
REACH = 2.5
"""An interval may be so many times as far from 0 as the farthest estimate before the axis cuts it."""
CLEAR = "#0072b2"


def write(album: Album, tables: Mapping[str, pd.DataFrame], ran: Collection[str]) -> None:
    """Files of `TABLES`, any of them empty: a CSV each that has rows, and a figure of the tests a cell.

    `ran`: analyses that have run, which need not be asked for.
    """
    for name, caption in CAPTIONS.items():
        if len(tables[name]):
            album.text(SECTION, f"{name}.csv", tables[name].to_csv(index=False), caption)
        elif name in COMMANDS:
            nothing = "it ran, and had nothing to compare: there is no event, or none between checkpoints near enough"
            todo = f"no rows: {album.analyze(COMMANDS[name])}, or `ndt mechanisms {album.sweep} --run` for all it needs"
            album.skip(SECTION, readable(name), nothing if COMMANDS[name] in ran else todo)
    tests = tables["mechanism_tests"]
    for cell, rows in tests.groupby("cell", sort=True) if len(tests) else ():
        _cell(album, str(cell), rows)


def _cell(album: Album, cell: str, rows: pd.DataFrame) -> None:
    left = rows[rows["q"].isna()]
    for flag, own in left.groupby(left["flag"].fillna("no reason given"), sort=True):
        names = listed((readable(str(m)) for m in own["metric"]), most=len(own))
        album.skip(SECTION, f"{cell}, not tested: {names}", WHY.get(str(flag), readable(str(flag))))
    if not rows["difference"].notna().any() or not album.room(SECTION):
        return
    tested = int(rows["q"].notna().sum())
    caption = (
        f"Changes at events less those of matched windows, in SDs of the latter, with 95 % intervals over trials: "
        f"{count(tested, 'test')} of {count(len(rows), 'metric')} of {cell}. q: Benjamini–Hochberg over all tests of "
        "the sweep."
    )
    name = "tests_" + "".join(c if c.isalnum() else "_" for c in cell)
    album.figure(SECTION, name, tests_figure(rows, cell), caption, _who(rows))


def tests_figure(rows: pd.DataFrame, cell: str) -> Figure:
    """A line a metric of one cell: difference with its interval, the unmatched one as a grey bar, and q; below them
    metrics without a test, with the reason. At most `MOST` of either, those of the smallest q first.

    `rows`: of mechanism_tests. SpecError for none.
    """
    require(
        rows,
        ("metric", "difference", "lo", "hi", "p", "q", "unmatched_difference", "n_events", "n_trials", "flag"),
        "mechanism_tests",
    )
    tested = rows[rows["q"].notna()].sort_values(["q", "p", "metric"], kind="stable")
    untested = rows[rows["q"].isna()].sort_values(["flag", "metric"], kind="stable")
    shown = pd.concat([part.head(MOST) for part in (tested, untested) if len(part)], ignore_index=True)
    beyond = len(rows) - len(shown)
    told = f"{_who(rows)}; in SDs over matched windows" + (f"; {beyond} more in mechanism_tests.csv" if beyond else "")
    drawn = canvas((7.6, 0.215 * len(shown) + 0.45), (1, 1), 1, (f"Changes at events: {cell}", told), _legend())
    (axes,) = drawn.axes
    reach = _reach(shown)
    for y, row in enumerate(shown.to_dict("records")):
        _line(axes, y, row, reach)
    axes.axvline(0, color=GREY, lw=0.7, ls=(0, (4, 3)), zorder=0)
    if len(tested) and len(untested):
        axes.axhline(min(len(tested), MOST) - 0.5, color=GREY, lw=0.5)
    axes.set(xlim=(-reach, reach), ylim=(len(shown) - 0.4, -0.6))
    axes.set_yticks(range(len(shown)), [readable(str(m)) for m in shown["metric"]])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("change at events - change over matched windows (SDs)", fontsize=NORMAL, color=INK)
    return drawn.figure


def _reach(rows: pd.DataFrame) -> float:
    """Half the width of the axis: all estimates, and intervals as far as they leave those to be seen."""
    centres = float(np.nanmax(np.abs(rows[["difference", "unmatched_difference"]].to_numpy(np.float64)), initial=0.0))
    ends = np.nan_to_num(np.abs(rows[["lo", "hi"]].to_numpy(np.float64)))
    return 1.06 * max(centres, min(float(ends.max(initial=0.0)), REACH * centres)) or 1.0


def _line(axes: Axes, y: int, row: Mapping[str, object], reach: float) -> None:
    estimate, low, high, beside, q = (
        float(row[c])  # type: ignore[arg-type]
        if pd.notna(row[c])
        else np.nan
        for c in ("difference", "lo", "hi", "unmatched_difference", "q")
    )
    tested = np.isfinite(q)
    if np.isfinite([low, high]).all():
        axes.plot([max(low, -reach), min(high, reach)], [y, y], color=INK if tested else GREY, lw=1.1, zorder=2)
        for end, beyond, mark in ((-reach, low < -reach, "<"), (reach, high > reach, ">")):
            if beyond:
                axes.plot(end, y, mark, ms=3.5, color=INK if tested else GREY, clip_on=False)
    axes.plot(beside, y, "|", ms=8, mew=2.2, color="#b5b5b5", zorder=1)
    fill = CLEAR if tested and q <= ALPHA else "white"
    axes.plot(estimate, y, "o", ms=4.5, color=CLEAR if tested else GREY, mfc=fill, zorder=3)
    if tested:
        said = f"{number(estimate, 2)} {interval(low, high)}, q {level(q)}"
    else:
        said = f"not tested: {readable(str(row['flag'] if pd.notna(row['flag']) else 'no reason given'))}"
    events, trials = int(row["n_events"]), int(row["n_trials"])  # type: ignore[call-overload]
    said += f", {count(events, 'event')} of {count(trials, 'trial')}" if events else ""
    axes.annotate(
        said,
        (1.025, y),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=SMALL,
        color=INK if tested else GREY,
        annotation_clip=False,
    )


def _who(rows: pd.DataFrame) -> str:
    guess = "exploratory" in rows and bool(rows["exploratory"].fillna(False).astype(bool).any())
    return "first candidates, none of them a significant event" if guess else "significant events"


def _legend() -> list[Line2D]:
    def mark(label: str, **style: object) -> Line2D:
        return Line2D([], [], label=label, **{"ls": "", "marker": "o", "ms": 4.5, "color": CLEAR, **style})  # type: ignore[arg-type]

    return [
        mark(f"q ≤ {ALPHA}"),
        mark(f"q > {ALPHA}", mfc="white"),
        mark("not tested", color=GREY, mfc="white"),
        mark("against windows of the same length alone", marker="|", ms=8, mew=2.2, color="#b5b5b5"),
        Line2D([], [], label="95 % over trials", color=INK, lw=1.1),
    ]
