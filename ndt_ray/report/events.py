"""Calibrated events: what survives over the declared family, beside what the search gives where there is nothing."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.phases import BINS
from ndt_ray.errors import StoreError
from ndt_ray.figures.charts import beside_null, by_layer, event_raster, p_values, phases
from ndt_ray.figures.heatmap import layer_names
from ndt_ray.report.maps import Marks
from ndt_ray.report.parts import Claim, Figure, Plate, Section, Sheet, Sign
from ndt_ray.report.source import NAME, Answer, Source, quoted
from ndt_ray.report.words import count, level, listed, number, readable, share

Row = Mapping[str, Any]
FEW = 400
"""Events a raster draws; beyond that its lines run together, and the table and the maps stand in."""
EVENT_COLUMNS = (
    "layer", "view", "step_before", "step_after", "width", "kind", "direction", "size", "relative_size", "snr",
    "confirm_size", "confirm_lo", "confirm_hi", "phase_bin", "p_event", "q", "near_lr_change", "near_epoch_boundary",
)  # fmt: skip


def events(source: Source) -> tuple[Section, Marks | None]:
    """The section, and what the maps mark: significant events of the primary family."""
    section = Section("events", "Events that survive a null", short="Events")
    families, family = source.families, source.family
    if families is None or family is None:
        what = (
            "Calibrated events were not sought" if not source.ran("events") else "No series could be sought for events"
        )
        section.missing.append((what, f"ndt analyze {source.sweep} series_tests events"))
        text = f"{what}: nothing here says whether a change is real."
        section.claims.append(Claim(text, "caution", headline=True, only_top=True))
        return section, None
    found = source.ask(
        f"SELECT {NAME} AS name, t.seed, e.* EXCLUDE (sweep) FROM events e JOIN trials t USING (sweep, trial_id) "
        f"WHERE sweep = $sweep AND {_of(family)} ORDER BY t.cell, t.seed, e.layer_index, e.step_before"
    )
    own = found.rows[found.rows["significant"].astype(bool)]
    if len(own) != int(family["n_events"]):
        raise StoreError(
            f"sweep {source.sweep}: {int(family['n_events'])} events by the family '{family['family']}', {len(own)} by "
            f"its rows - run `ndt analyze {source.sweep} events` again"
        )
    tests = _tests(source, family)
    cells = _by_cell(source, own, tests)
    section.claims += [*_verdict(source, family, found.rows, families.sql), *_where(source, own, cells, found.sql)]
    section.claims += [*_untested(family, tests), *_confirmed(own, found.sql), *_beside(own, found.sql)]
    section.claims += list(_others(families, family))
    section.plates += list(_plates(source, family, own, cells, tests))
    section.sheets += [
        _cell_sheet(source, cells, tests),
        _event_sheet(source, own, found),
        _family_sheet(source, families),
    ]
    words = f"significant events (family {family['family']}, false discovery rate {number(family['alpha'])})"
    rows = own.rename(columns={"step_before": "from", "step_after": "to"})
    return section, Marks(rows, words, str(family["measure"]))


# -- numbers -------------------------------------------------------------------------------------------------------


def _of(family: Row) -> str:
    """The condition that picks the rows of one family."""
    pairs = [("family", family["family"]), ("detector", family["detector"]), ('"null"', family["null"])]
    return " AND ".join(f"e.{column} = {quoted(value)}" for column, value in pairs)


def _tests(source: Source, family: Row) -> Answer:
    """The tested series of a family, with their trial's name."""
    view = "" if family["view"] == "*" else f" AND e.view = {quoted(family['view'])}"
    return source.ask(
        f"SELECT {NAME} AS name, e.* EXCLUDE (sweep) FROM series_tests e JOIN trials t USING (sweep, trial_id) "
        f"WHERE sweep = $sweep AND e.measure = {quoted(family['measure'])} AND e.detector = "
        f'{quoted(family["detector"])} AND e."null" = {quoted(family["null"])}{view} '
        "ORDER BY t.cell, t.seed, e.layer_index"
    )


def _by_cell(source: Source, own: pd.DataFrame, tests: Answer) -> pd.DataFrame:
    """One row a name with tested series: series, events, seeds with events, candidates beside their null."""
    rows = []
    for name in [n for n in source.labels if n in set(tests.rows["name"]) | set(own["name"])]:
        series, mine = tests.rows[tests.rows["name"] == name], own[own["name"] == name]
        judged = series[series["calibrated"].astype(bool)]
        rows.append(
            {
                "name": name,
                "label": source.label(name),
                "seeds": series["trial_id"].nunique(),
                "series": len(series),
                "calibrated": len(judged),
                "candidates": int(judged["candidates"].sum()),
                "null_candidates": float(judged["null_candidates"].sum()),
                "events": len(mine),
                "series_with": len(mine[["trial_id", "layer", "view"]].drop_duplicates()),
                "seeds_with": mine["trial_id"].nunique(),
                **{b: int((mine["phase_bin"] == b).sum()) for b in BINS},
            }
        )
    cells = pd.DataFrame(rows)
    if len(cells):
        if (parts := int(cells["events"].sum())) != len(own):
            raise StoreError(f"sweep {source.sweep}: {parts} events by cell, {len(own)} in all - analyze it again")
        bins = int(cells[list(BINS)].to_numpy().sum())
        if bins != len(own):
            raise StoreError(f"sweep {source.sweep}: {bins} events by phase, {len(own)} in all - analyze it again")
    return cells


# -- sentences -----------------------------------------------------------------------------------------------------


def _verdict(source: Source, family: Row, rows: pd.DataFrame, sql: str) -> Iterator[Claim]:
    alpha, attainable = float(family["alpha"]), float(family["q_attainable"])
    n, tested = int(family["n_events"]), int(family["n_calibrated"])
    of = f"family “{family['family']}”: {count(tested, 'series')} that can be tested, of {int(family['n_series']):,}; "
    of += f"measure {readable(str(family['measure']))}, detector {family['detector']}, null {family['null']}"
    candidates = f"Before any correction the search marks {count(int(family['n_candidates']), 'candidate')}, "
    candidates += f"where the null gives {number(family['null_candidates'])}."
    reach = f"The smallest q that a series could have had is {number(attainable, 2)}."
    if not tested:
        yield Claim(f"No series could be tested for events ({of}).", "nothing", sql, headline=True)
    elif attainable > alpha:
        text = (
            f"No event could have survived: the smallest q that a series could have had, {number(attainable, 2)}, is "
        )
        text += f"above {number(alpha)} ({of}). More surrogates or a smaller family are needed to say anything. "
        yield Claim(text + candidates, "caution", sql, headline=True)
    elif not n:
        best = rows["q"].min() if len(rows) else math.nan
        seen = f"the smallest q found is {number(best, 2)}" if best == best else "no series has a candidate"
        text = f"No event survives at a false discovery rate of {number(alpha)}: {seen} ({of}). {candidates} {reach}"
        yield Claim(text, "nothing", sql, headline=True)
    else:
        text = (
            f"{count(n, 'event')} in {count(int(family['n_selected']), 'series')} survive{'s' if n == 1 else ''} at a "
        )
        text += f"false discovery rate of {number(alpha)}; at that rate {number(family['null_events'], 2)} of them are "
        text += f"expected to be false ({of}). {candidates} {reach}"
        yield Claim(text, "finding", sql, headline=True)
    if not bool(family["primary"]):
        yield Claim("No family was declared primary: the first one is shown, chosen after the fact.", "caution", sql)


def _where(source: Source, own: pd.DataFrame, cells: pd.DataFrame, sql: str) -> Iterator[Claim]:
    """By cell; counts only, for no test compares the cells here."""
    if own.empty or cells.empty:
        return
    have = cells[cells["events"] > 0].sort_values("events", ascending=False, kind="stable")
    said = [f"{r.label} {r.events:,} (in {r.seeds_with} of {count(r.seeds, 'seed')})" for r in have.itertuples()]
    text = f"By cell: {listed(said)}"
    none = cells[cells["events"] == 0]["label"].tolist()
    text += f"; none in {listed(none)}." if none else "."
    yield Claim(text, "described", sql, headline=True)
    shares = [f"{int(cells[b].sum()):,} {b} ({share(cells[b].sum(), len(own))})" for b in BINS]
    text = f"By phase of the onset (early: first tenth of the run, late: second half): {listed(shares)}"
    yield Claim(f"{text}; together {len(own):,}.", "described", sql, headline=True)


def _untested(family: Row, tests: Answer) -> Iterator[Claim]:
    left = tests.rows[~tests.rows["calibrated"].astype(bool)]
    if left.empty:
        return
    kinds = left["kind"].value_counts()
    why = listed(f"{n:,} {readable(str(kind))}" for kind, n in kinds.items())
    text = (
        f"{len(left):,} of {count(len(tests.rows), 'series')} cannot be tested ({why}): the detector does not hold its "
    )
    yield Claim(
        text + "level on such series, so they get no p and no q, and no claim covers them.", "caution", tests.sql
    )


def _confirmed(own: pd.DataFrame, sql: str) -> Iterator[Claim]:
    """Effect sizes on the probe on which the events were not found."""
    both = own.dropna(subset=["confirm_size", "size"])
    both = both[both["size"] != 0]
    if own.empty:
        return
    if both.empty:
        text = (
            "No event lies between two checkpoints, so none has an effect size on the confirm probe: the sizes below "
        )
        yield Claim(
            text + "are those of the probe on which the events were found, and too large on average.", "caution", sql
        )
        return
    kept = float(np.median(both["confirm_size"] / both["size"]))
    clear = int(((both["confirm_lo"] > 0) | (both["confirm_hi"] < 0)).sum())
    text = f"On the confirm probe, on which they were not found, {count(len(both), 'event')} of {len(own):,} can be "
    text += (
        f"measured between checkpoints: their median size there is {number(kept, 2)} of the detected one, and the 95 % "
    )
    text += f"interval of {clear:,} of {len(both):,} leaves out no change."
    yield Claim(text, "described", sql)


def _beside(own: pd.DataFrame, sql: str) -> Iterator[Claim]:
    """Events that something ordinary happened beside."""
    if own.empty:
        return
    lr, epoch = int(own["near_lr_change"].fillna(False).sum()), int(own["near_epoch_boundary"].fillna(False).sum())
    if lr or epoch:
        text = (
            f"Of {count(len(own), 'event')}, beside a change of the learning rate: {lr:,}; beside the end of an epoch: "
        )
        yield Claim(f"{text}{epoch:,}. Either may be their cause.", "caution", sql)


def _others(families: Answer, family: Row) -> Iterator[Claim]:
    rest = families.rows[1:]
    if rest.empty:
        return
    some = int((rest["n_events"] > 0).sum())
    text = f"Of {count(len(rest), 'other family')} (other measures, detectors or nulls), {some:,} have events; "
    yield Claim(
        text + "they are the multiverse of the primary one, and support no claim of their own.",
        "described",
        families.sql,
    )


# -- charts --------------------------------------------------------------------------------------------------------


def _plates(source: Source, family: Row, own: pd.DataFrame, cells: pd.DataFrame, tests: Answer) -> Iterator[Plate]:
    figures = []
    if len(cells) and cells["calibrated"].sum():
        bars = cells.rename(columns={"candidates": "observed", "null_candidates": "null"})
        bars = bars.assign(name=bars["label"])[["name", "observed", "null"]]
        said = listed(f"{r.name} {r.observed:,} beside {number(r.null)}" for r in bars.itertuples(index=False))
        spec = beside_null(bars, "candidates in all series")
        figures.append(
            Figure("Candidates beside their null", spec, f"Candidate events and their expected number: {said}.")
        )
    p = tests.rows["p"].dropna()
    if len(p):
        low = int((p <= 0.05).sum())
        even = number(0.05 * len(p))
        alt = f"Histogram of {len(p)} p-values; {low} are at most 0.05, where the null alone gives {even}."
        figures.append(Figure("p of each series", p_values(p), alt))
    if len(own):
        rows = own.assign(name=[source.label(n) for n in own["name"]])
        names = [source.label(n) for n in source.labels if source.label(n) in set(rows["name"])]
        alt = "Onsets of events over the run: " + listed(f"{b} {int(cells[b].sum())}" for b in BINS)
        figures.append(Figure("Onsets over the run", phases(rows[["name", "phase"]], names), alt))
    if figures:
        note = "Candidates: local maxima above a series' own 5 % critical value. Null: mean count on the surrogates of "
        note += "the same series. Dashed: how p would be spread if there were nothing."
        keys: tuple[tuple[Sign, str], ...] = (("bars", "observed; grey: expected where there is nothing"),)
        yield Plate("Events beside what chance gives", tuple(figures), note, keys=keys)
    if len(own):
        yield from _rasters(source, own)


def _rasters(source: Source, own: pd.DataFrame) -> Iterator[Plate]:
    figures = []
    for name in [n for n in source.cells if n in set(own["name"])]:
        mine = own[own["name"] == name]
        if len(mine) > FEW:
            continue
        layers = mine[["layer_index", "layer", "view"]].drop_duplicates("layer").sort_values("layer_index")
        order = layers_of(source, name) or [
            (str(a), str(b)) for a, b in zip(layers["layer"], layers["view"], strict=True)
        ]
        place = {layer: i for i, (layer, _) in enumerate(order)}
        mine = mine[mine["layer"].isin(place)]
        labels = source.seed_labels(name)
        texts = [
            f"{r.direction}, steps {int(r.step_before):,} – {int(r.step_after):,}, q {level(r.q)}"
            for r in mine.itertuples()
        ]
        rows = pd.DataFrame(
            {
                "row": mine["layer"].map(place),
                "seed": mine["trial_id"].map(labels),
                "from": mine["step_before"],
                "to": mine["step_after"],
                "direction": mine["direction"],
                "text": texts,
            }
        )
        if rows.empty:
            continue
        spec = event_raster(rows, layer_names(order), list(labels.values()), source.horizon(name))
        label = source.label(name)
        alt = f"{label}: {count(len(rows), 'event')} of {count(len(labels), 'seed')}, by layer and seed."
        figures.append(Figure(label, spec, alt))
    if figures:
        note = (
            "A band is a layer, a line in it a seed; a bar runs from the measurement before the change to that after."
        )
        keys: tuple[tuple[Sign, str], ...] = (("rise_fall", "orange: rise; blue: fall"),)
        yield Plate("Do seeds agree? Every event of every seed", tuple(figures), note, keys=keys)


def layers_of(source: Source, name: str) -> list[tuple[str, str]]:
    """(layer, view) of a name in forward order, one view a layer."""
    found = source.ask(
        f"SELECT m.layer, min(m.view) AS view, min(m.layer_index) AS i FROM measurements m "
        f"JOIN trials t USING (sweep, pack, trial_id) WHERE sweep = $sweep AND {NAME} = {quoted(name)} "
        "GROUP BY 1 ORDER BY i"
    ).rows
    return [(str(a), str(b)) for a, b in zip(found["layer"], found["view"], strict=True)]


# -- tables --------------------------------------------------------------------------------------------------------


def _cell_sheet(source: Source, cells: pd.DataFrame, tests: Answer) -> Sheet:
    columns = {
        "label": "cell", "seeds": "seeds", "series": "series", "calibrated": "testable", "candidates": "candidates",
        "null_candidates": "null gives", "events": "events", "series_with": "series with", "seeds_with": "seeds with",
        **{b: b for b in BINS},
    }  # fmt: skip
    docs = {
        "testable": "series on which the detector holds its level",
        "candidates": "local maxima above a series' 5 % critical value, in testable series",
        "null gives": "mean number of candidates on surrogates of the same series",
        "events": "candidates that survive over the family",
        "series with": "series with an event",
        "seeds with": "seeds with an event in any layer",
        "early": "onset in the first tenth of the run",
        "mid": "onset before half of the run",
        "late": "onset in the second half",
    }
    table = cells[list(columns)].rename(columns=columns) if len(cells) else pd.DataFrame(columns=list(columns.values()))
    return Sheet("Events and candidates by cell", table, docs, tests.sql)


def _event_sheet(source: Source, own: pd.DataFrame, found: Answer) -> Sheet:
    ranked = own.sort_values(["q", "p_event", "step_before"], kind="stable")
    table = pd.DataFrame({"cell": [source.label(n) for n in ranked["name"]], "seed": ranked["seed"].to_numpy()})
    for column in EVENT_COLUMNS:
        if column in ranked:
            table[readable(column)] = ranked[column].to_numpy()
    docs = {readable(c): text for c, text in source.columns("events").items()}
    return Sheet("Events", table, docs, found.sql)


def _family_sheet(source: Source, families: Answer) -> Sheet:
    table = families.rows.drop(columns=["sweep"]).rename(columns=readable)
    docs = {readable(c): text for c, text in source.columns("event_families").items()}
    return Sheet("Families of series", table, docs, families.sql)


def transients(source: Source, measure: str | None) -> Section:
    """The initial transient of each layer: its half-life, by seed. Reported, never an event."""
    section = Section("transients", "The initial transient", short="Transients")
    if not source.has("transients", "half_life", "flag"):
        return section
    found = source.ask(
        f"SELECT {NAME} AS name, t.seed, e.* EXCLUDE (sweep) FROM transients e JOIN trials t USING (sweep, trial_id) "
        "WHERE sweep = $sweep AND e.layer <> '*' ORDER BY t.cell, t.seed, e.layer_index"
    )
    known = list(dict.fromkeys(found.rows["measure"]))
    chosen = measure if measure in known else (known[0] if known else None)
    own = found.rows[found.rows["measure"] == chosen]
    fitted = own[own["flag"].isna() & own["half_life"].notna()]
    if own.empty:
        return section
    text = f"{readable(str(chosen)).capitalize()} relaxes from its initial value in {len(fitted):,} of "
    text += count(len(own), "series")
    if len(fitted):
        middle = fitted.groupby("name", sort=False)["half_life"].median()
        text += "; median half-life: " + listed(f"{source.label(n)} {number(v)} steps" for n, v in middle.items())
    section.claims.append(
        Claim(text + ". The transient is described, and never counted as an event.", "described", found.sql)
    )
    figures = []
    for name in [n for n in source.cells if n in set(fitted["name"])]:
        mine = fitted[fitted["name"] == name]
        order = layers_of(source, name)
        place = {layer: i for i, (layer, _) in enumerate(order)}
        mine = mine[mine["layer"].isin(place)]
        if mine.empty:
            continue
        rows = pd.DataFrame(
            {
                "row": mine["layer"].map(place),
                "value": mine["half_life"],
                "seed": mine["trial_id"].map(source.seed_labels(name)),
            }
        )
        spec = by_layer(rows, layer_names(order), "half-life (steps)", last=source.horizon(name))
        label = source.label(name)
        alt = f"{label}: half-life of the initial transient by layer, median {number(rows['value'].median())} steps."
        figures.append(Figure(label, spec, alt))
    if figures:
        note = "Ring: a seed; bar: their median. Half-lives beyond the run are drawn at its end."
        section.plates.append(Plate("Half-life of the initial transient", tuple(figures), note))
    return section
