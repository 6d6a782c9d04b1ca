"""Calibrated events in numbers and sentences: every count beside what the null gives, no word beyond what q allows."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.phases import BINS, EDGES
from ndt_ray.errors import StoreError
from ndt_ray.report.parts import Claim
from ndt_ray.report.source import NAME, Answer, Source, quoted
from ndt_ray.report.words import count, listed, number, readable

Row = Mapping[str, Any]


def control_of(family: Row) -> str:
    """The kind of control lane whose series a family holds; `none` where they are no controls."""
    control, colon, _ = str(family["family"]).partition(": ")
    return control if colon else "none"


def candidates_of(source: Source, family: Row) -> Answer:
    """All candidates of a family, significant or not, with name and seed of their trial."""
    pairs = [("family", family["family"]), ("detector", family["detector"]), ('"null"', family["null"])]
    own = " AND ".join(f"e.{column} = {quoted(value)}" for column, value in pairs)
    return source.ask(
        f"SELECT {NAME} AS name, t.seed, e.* EXCLUDE (sweep) FROM events e JOIN trials t USING (sweep, trial_id) "
        f"WHERE sweep = $sweep AND {own} ORDER BY t.cell, t.seed, e.layer_index, e.step_before"
    )


def tests_of(source: Source, family: Row) -> Answer:
    """The tested series of a family, with their trial's name."""
    pairs = [(c, family[c]) for c in ("measure", "detector")] + [('"null"', family["null"])]
    pairs += [("view", family["view"])] if family["view"] != "*" else []
    own = " AND ".join(f"e.{column} = {quoted(value)}" for column, value in pairs)
    return source.ask(
        f"SELECT {NAME} AS name, e.* EXCLUDE (sweep) FROM series_tests e JOIN trials t USING (sweep, trial_id) "
        f"WHERE sweep = $sweep AND {own} AND coalesce(t.control, 'none') = {quoted(control_of(family))} "
        "ORDER BY t.cell, t.seed, e.layer_index"
    )


def by_cell(source: Source, family: Row, found: pd.DataFrame, tests: pd.DataFrame) -> pd.DataFrame:
    """One row a name with tested series: events and candidates, each beside what the null gives.

    The expected false events of the family are spread evenly over its testable series. StoreError where the cells, or
    the phases, do not add up to what the family says.
    """
    own, rows = found[found["significant"].astype(bool)], []
    false = float(family["null_events"]) / max(int(family["n_calibrated"]), 1)
    for name in [n for n in source.labels if n in set(tests["name"]) | set(own["name"])]:
        series, mine = tests[tests["name"] == name], own[own["name"] == name]
        judged = int(series["calibrated"].astype(bool).sum())
        rows.append(
            {
                "name": name,
                "label": source.label(name),
                "seeds": series["trial_id"].nunique(),
                "series": len(series),
                "calibrated": judged,
                "candidates": int((found["name"] == name).sum()),
                "null_candidates": float(series["null_candidates"].fillna(0.0).sum()),
                "events": len(mine),
                "null_events": false * judged,
                "series_with": len(mine[["trial_id", "layer", "view"]].drop_duplicates()),
                "seeds_with": mine["trial_id"].nunique(),
                **{b: int((mine["phase_bin"] == b).sum()) for b in BINS},
            }
        )
    cells = pd.DataFrame(rows)
    totals = {"series": "n_series", "calibrated": "n_calibrated", "candidates": "n_candidates", "events": "n_events"}
    parts = {c: int(cells[c].sum()) if len(cells) else 0 for c in (*totals, *BINS)}
    if any(parts[c] != int(family[total]) for c, total in totals.items()) or (
        sum(parts[b] for b in BINS) != parts["events"]
    ):
        said = {c: f"{parts[c]} of {int(family[total])}" for c, total in totals.items()}
        raise StoreError(
            f"sweep {source.sweep}: the cells do not add up to family '{family['family']}' ({said}, by phase "
            f"{[parts[b] for b in BINS]}) - run `ndt analyze {source.sweep} series_tests events` again"
        )
    return cells


# -- sentences -----------------------------------------------------------------------------------------------------


def verdict(family: Row, rows: pd.DataFrame, sql: str) -> Iterator[Claim]:
    """Whether anything survives; what could have; and what the search marks before any correction."""
    alpha, n, tested = float(family["alpha"]), int(family["n_events"]), int(family["n_calibrated"])
    attainable = math.nan if family["q_attainable"] is None else float(family["q_attainable"])
    of = f"family “{family['family']}”: {count(tested, 'series')} that can be tested, of {int(family['n_series']):,}; "
    of += f"measure {readable(str(family['measure']))}, detector {family['detector']}, null {readable(family['null'])}"
    marks = f"Before any correction the search marks {count(int(family['n_candidates']), 'candidate')}, "
    marks += f"where the null gives {number(family['null_candidates'])}."
    reach = f"The smallest q that a series could have had is {number(attainable, 2)}."
    if not tested:
        yield Claim(f"No series could be tested for events ({of}).", "nothing", sql, headline=True)
    elif not attainable <= alpha:
        text = "No event could have survived: the smallest q that a series could have had, "
        text += f"{number(attainable, 2)}, is above {number(alpha)} ({of}). More surrogates or a smaller family are "
        yield Claim(f"{text}needed to say anything. {marks}", "caution", sql, headline=True)
    elif not n:
        best = rows["q"].min() if len(rows) else math.nan
        seen = f"the smallest q found is {number(best, 2)}" if best == best else "no series has a candidate"
        if best <= alpha:
            seen = f"{count(int(family['n_selected']), 'series')} selected (smallest q {number(best, 2)}), but no "
            seen += "change in them passes the level that pays for having selected"
        text = f"No event survives at a false discovery rate of {number(alpha)}: {seen} ({of}). {marks} {reach}"
        yield Claim(text, "nothing", sql, headline=True)
    else:
        text = f"{count(n, 'event')} survive{'s' if n == 1 else ''} at a false discovery rate of {number(alpha)} over "
        text += f"series ({int(family['n_selected']):,} of {tested:,} are selected); at that rate "
        text += f"{number(family['null_events'], 2)} of them are expected to be false ({of}). {marks} {reach}"
        yield Claim(text, "finding", sql, headline=True)
    if not bool(family["primary"]):
        text = "No family was declared primary: the first one by name is shown, which nobody chose beforehand."
        yield Claim(text, "caution", sql, headline=True)


def where(family: Row, own: pd.DataFrame, cells: pd.DataFrame, sql: str) -> Iterator[Claim]:
    """By cell and by phase: counts beside the false ones expected there; no test compares them here."""
    if own.empty or cells.empty:
        return
    have = cells[cells["events"] > 0].sort_values("events", ascending=False, kind="stable")
    said = [
        f"{r.label} {r.events:,} beside {number(r.null_events, 2)} (in {r.seeds_with} of {count(r.seeds, 'seed')})"
        for r in have.itertuples()
    ]
    none = cells[cells["events"] == 0]["label"].tolist()
    rest = f"; none in {listed(none)}." if none else "."
    text = f"By cell, beside the false ones expected there: {listed(said)}{rest}"
    yield Claim(text, "described", sql, headline=True)
    widths = dict(zip(BINS, np.diff([0.0, *EDGES, 1.0]), strict=True))
    false = float(family["null_events"])
    said = [f"{int(cells[b].sum()):,} {b} beside {number(false * widths[b], 2)}" for b in BINS]
    text = "By phase of the onset (early: first tenth of the run, late: second half), beside the false ones expected "
    yield Claim(f"{text}there: {listed(said)}; together {len(own):,}.", "described", sql, headline=True)


FEED_FORWARD = {
    "linear1": "linear1 (into the feed-forward block)",
    "linear2": "linear2 (out of it)",
    "out_proj": "out_proj (out of attention)",
}
"""Parts of a transformer's block, whose names do not say what they do."""


def by_kind(source: Source, mode: str) -> Iterator[Claim]:
    """Events by kind of layer beside what is expected there, with linear2 against linear1; `mode`: of `event_kinds`."""
    if not source.has("event_kinds", "layer_kind", "n", "null_n", "mode"):
        return
    answer = source.ask(
        "SELECT layer_kind, sum(n) AS n, sum(null_n) AS null_n, sum(n_series) AS n_series FROM event_kinds WHERE "
        f"sweep = $sweep AND mode = {quoted(mode)} GROUP BY 1 ORDER BY 2 DESC, 1"
    )
    rows = answer.rows
    if not len(rows) or not rows["n"].sum():
        return
    some = rows[rows["n"] > 0]
    said = [
        f"{FEED_FORWARD.get(r.layer_kind, r.layer_kind)} {int(r.n):,} beside {number(r.null_n, 2)} in "
        f"{int(r.n_series):,} series"
        for r in some.itertuples()
    ]
    what = "Events" if mode == "default" else "Published jumps"
    text = f"{what} by kind of layer, beside what is expected there where there is nothing: {listed(said)}"
    none = [FEED_FORWARD.get(k, k) for k in rows.loc[rows["n"] == 0, "layer_kind"]]
    text += f"; none in {listed(none)}" if none else ""
    n = dict(zip(rows["layer_kind"], rows["n"].astype(int), strict=True))
    if n.get("linear1") and "linear2" in n:
        text += f". linear2 to linear1: {number(n['linear2'] / n['linear1'])}"
    yield Claim(f"{text}.", "described", answer.sql)


def untested(tests: Answer) -> Iterator[Claim]:
    """Series that got no p - the detector does not hold its level on them, or the null has too little - by kind."""
    left = tests.rows[~tests.rows["calibrated"].astype(bool)]
    if left.empty:
        return
    why = listed(f"{n:,} {readable(str(kind))}" for kind, n in left["kind"].value_counts().items())
    text = f"{len(left):,} of {count(len(tests.rows), 'series')} cannot be tested ({why}): they get no p and no q, and "
    text += "no claim covers them."
    yield Claim(text, "caution", tests.sql)


def confirmed(own: pd.DataFrame, sql: str) -> Iterator[Claim]:
    """Effect sizes on the probe on which the events were not found."""
    if own.empty:
        return
    both = own.dropna(subset=["confirm_size", "size"])
    both = both[both["size"] != 0]
    if both.empty:
        text = "No event lies between two checkpoints that are close enough, so none has an effect size on the confirm "
        text += "probe: the sizes below are of the probe on which the events were found, and too large on average."
        yield Claim(text, "caution", sql)
        return
    kept = float(np.median(both["confirm_size"] / both["size"]))
    other = ", a change the other way" if kept < 0 else ""
    clear = int(((both["confirm_lo"] > 0) | (both["confirm_hi"] < 0)).sum())
    text = f"On the confirm probe, on which they were not found, {len(both):,} of {count(len(own), 'event')} can be "
    text += (
        f"measured between checkpoints: their median size there is {number(kept, 2)} of the detected one{other}, and "
    )
    text += f"the 95 % interval of {clear:,} of {len(both):,} leaves out no change."
    yield Claim(text, "described", sql)


def beside(own: pd.DataFrame, sql: str) -> Iterator[Claim]:
    """Events that something ordinary happened beside."""
    if own.empty:
        return
    lr, epoch = (int(own[c].fillna(False).astype(bool).sum()) for c in ("near_lr_change", "near_epoch_boundary"))
    if lr or epoch:
        text = (
            f"Of {count(len(own), 'event')}, beside a change of the learning rate: {lr:,}; beside the end of an epoch: "
        )
        yield Claim(f"{text}{epoch:,}. Either may be their cause.", "caution", sql)


def controls(families: Answer, family: Row) -> Iterator[Claim]:
    """What the same search finds where something was taken away: without training it must find nothing."""
    rows = families.rows
    same = (rows["measure"] == family["measure"]) & (rows["detector"] == family["detector"])
    found = [
        (control, row)
        for row in rows[same & (rows["null"] == family["null"])].to_dict("records")
        if (control := control_of(row)) != "none" and row["family"] != family["family"]
    ]
    for control, row in found:
        if control == "lr0" and row["n_events"]:
            text = f"Control {_searched(control, row)}, where nothing was trained: the search finds events that are "
            yield Claim(f"{text}none.", "caution", families.sql, headline=True)
    said = [_searched(control, row) for control, row in found if not (control == "lr0" and row["n_events"])]
    if said:
        text = f"Lanes with a control or an intervention, each a family of its own: {'; '.join(said)}."
        yield Claim(text, "described", families.sql)


def _searched(control: str, row: Row) -> str:
    """A control, what was found in it and in how much."""
    said = f"{control}: {count(int(row['n_events']), 'event')} in {count(int(row['n_series']), 'series')}"
    return said if row["n_calibrated"] == row["n_series"] else f"{said} ({int(row['n_calibrated']):,} testable)"


def others(families: Answer) -> Iterator[Claim]:
    """The multiverse of families."""
    rest = [row for row in families.rows.to_dict("records")[1:] if control_of(row) == "none"]
    if rest:
        some = sum(int(row["n_events"]) > 0 for row in rest)
        text = (
            f"Of {count(len(rest), 'other family')} (other measures, detectors or nulls), {some:,} with events; they "
        )
        text += "are the multiverse of the primary one, and support no claim of their own."
        yield Claim(text, "described", families.sql)
