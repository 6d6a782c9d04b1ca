"""Calibrated events: what survives over the declared family, beside what the search gives where there is nothing."""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from ndt_ray.analysis.phases import BINS
from ndt_ray.figures.charts import beside_null, by_layer, event_raster, p_values, phases
from ndt_ray.figures.heatmap import layer_names
from ndt_ray.report import event_claims as claims
from ndt_ray.report.event_claims import Row, by_cell, candidates_of, tests_of
from ndt_ray.report.maps import Marks
from ndt_ray.report.parts import Claim, Figure, Plate, Section, Sheet, Sign
from ndt_ray.report.source import NAME, Answer, Source, quoted
from ndt_ray.report.words import count, level, listed, number, readable

FEW = 400
"""Events a raster draws; beyond that its lines run together, and the table and the maps stand in."""
MOST_BARS = 16
"""Cells that get bars of their own."""
MOST_COLOURS, OTHERS = 8, "others"
"""Cells told apart by colour; beyond that those with the fewest events are taken together."""
EVENT_COLUMNS = (
    "layer", "view", "step_before", "step_after", "width", "kind", "direction", "size", "relative_size", "snr",
    "confirm_size", "confirm_lo", "confirm_hi", "phase_bin", "p_event", "q", "near_lr_change", "near_epoch_boundary",
)  # fmt: skip


def events(source: Source) -> tuple[Section, Marks | None]:
    """The section, and what the maps mark: significant events of the primary family."""
    section = Section("events", "Events that survive a null", short="Events")
    families, family = source.families, source.family
    if families is None or family is None:
        ran = source.ran("events")
        what = "There was no series to seek events in" if ran else "Calibrated events were not sought"
        section.missing.append((what, f"ndt analyze {source.sweep} series_tests events"))
        text = f"{what}: nothing here says whether a change is real."
        section.claims.append(Claim(text, "caution", headline=True, only_top=True))
        return section, None
    found, tests = candidates_of(source, family), tests_of(source, family)
    own = found.rows[found.rows["significant"].astype(bool)]
    cells = by_cell(source, family, found.rows, tests.rows)
    section.claims += [*claims.verdict(family, found.rows, families.sql), *claims.where(family, own, cells, found.sql)]
    section.claims += claims.by_kind(source, "default")
    section.claims += [*claims.untested(tests), *claims.confirmed(own, found.sql), *claims.beside(own, found.sql)]
    section.claims += [*claims.controls(families, family), *claims.others(families)]
    section.plates += list(_plates(source, family, own, cells, tests))
    section.sheets += [
        _cell_sheet(source, cells, tests),
        _event_sheet(source, own, found),
        _family_sheet(source, families),
    ]
    if len(own) and not source.ran("event_layers"):
        section.missing.append(("Events were not counted by layer", f"ndt analyze {source.sweep} event_layers"))
    section.sheets += list(_kind_sheet(source))
    words = f"significant events (family {family['family']}, false discovery rate {number(family['alpha'])})"
    rows = own.rename(columns={"step_before": "from", "step_after": "to"})
    return section, Marks(rows, words, str(family["measure"]))


# -- charts --------------------------------------------------------------------------------------------------------


def _plates(source: Source, family: Row, own: pd.DataFrame, cells: pd.DataFrame, tests: Answer) -> Iterator[Plate]:
    figures = []
    if len(cells) and cells["calibrated"].sum():
        bars = cells.rename(columns={"candidates": "observed", "null_candidates": "null"})
        bars = bars.assign(name=bars["label"])[["name", "observed", "null"]]
        which = "Candidates beside their null"
        if len(bars) > MOST_BARS:
            bars = bars.loc[bars["observed"].astype(int).nlargest(MOST_BARS).index].sort_index()
            which += f", the {MOST_BARS} cells with most of {len(cells)}"
        said = listed(f"{r.name} {r.observed:,} beside {number(r.null)}" for r in bars.itertuples(index=False))
        spec = beside_null(bars, "candidates in all series")
        figures.append(Figure(which, spec, f"Candidate events and their expected number: {said}."))
    p = tests.rows["p"].dropna()
    if len(p):
        low = int((p <= 0.05).sum())
        even = number(0.05 * len(p))
        alt = f"Histogram of {len(p)} p-values; {low} are at most 0.05, where the null alone gives {even}."
        figures.append(Figure("p of each series", p_values(p), alt))
    if len(own):
        rows = own.assign(name=[source.label(n) for n in own["name"]])
        names = [source.label(n) for n in source.labels if source.label(n) in set(rows["name"])]
        if len(names) > MOST_COLOURS:
            most = set(rows["name"].value_counts().index[: MOST_COLOURS - 1])
            rows["name"] = rows["name"].where(rows["name"].isin(most), OTHERS)
            names = [*(n for n in names if n in most), OTHERS]
        alt = "Onsets of events over the run: " + listed(f"{b} {int(cells[b].sum())}" for b in BINS)
        figures.append(Figure("Onsets over the run", phases(rows[["name", "phase"]], names), alt))
    if figures:
        note = "Candidates: local maxima above a series' own 5 % critical value. Null: mean count on the surrogates of "
        note += "the same series. Dashed: how p would be spread if there were nothing."
        keys: tuple[tuple[Sign, str], ...] = (("bars", "observed; grey: expected where there is nothing"),)
        yield Plate("Events beside what chance gives", tuple(figures), note, keys=keys)
    if len(own):
        yield from _rasters(source, own)
        yield from _anatomy(source, own)


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


def _anatomy(source: Source, own: pd.DataFrame) -> Iterator[Plate]:
    """What events of the early, the middle and the late part of the run are like."""
    last = own.groupby("name")["layer_index"].transform("max")
    depths = {name: max(len(layers_of(source, name)) - 1, 1) for name in set(own["name"])}
    rows = own.assign(
        row=own["phase_bin"].map({b: i for i, b in enumerate(BINS)}),
        seed=[source.label(n) for n in own["name"]],
        relative=own["relative_size"].abs(),
        depth=own["layer_index"] / np.maximum(own["name"].map(depths), last).clip(lower=1),
    )
    columns = {"relative": "|relative size|", "width": "width (steps)", "depth": "depth, 0 first to 1 last layer"}
    if source.has("event_windows", "loss_change", "step_before", "measure", "mode"):
        found = source.ask("SELECT * FROM event_windows WHERE sweep = $sweep AND mode = 'default'").rows
        keys = ["trial_id", "layer", "view", "measure", "step_before"]
        rows = rows.merge(found[[*keys, "loss_change"]], on=keys, how="left")
        columns["loss_change"] = "change of the loss (nats)"
    figures = []
    for column, title in columns.items():
        known = rows[["row", column, "seed"]].rename(columns={column: "value"}).dropna()
        if len(known):
            middle = known.groupby("row")["value"].median()
            said = listed(f"{BINS[int(str(i))]} {number(v)}" for i, v in middle.items())
            figures.append(
                Figure(title, by_layer(known, BINS, title), f"{title} by phase of the onset, medians: {said}.")
            )
    if figures:
        note = "Ring: an event; bar: median. By phase of the onset; counts only, no test compares the phases here."
        yield Plate("What the events are like", tuple(figures), note)


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
        "null_candidates": "null gives", "events": "events", "null_events": "false expected",
        "series_with": "series with", "seeds_with": "seeds with", **{b: b for b in BINS},
    }  # fmt: skip
    docs = {
        "testable": "series on which the detector holds its level",
        "candidates": "local maxima above a series' 5 % critical value, in testable series",
        "null gives": "mean number of candidates on surrogates of the same series",
        "events": "candidates that survive over the family",
        "false expected": "false discovery rate × events of the family, spread evenly over its testable series",
        "series with": "series with an event",
        "seeds with": "seeds with an event in any layer",
        "early": "onset in the first tenth of the run",
        "mid": "onset before half of the run",
        "late": "onset in the second half",
    }
    table = cells[list(columns)].rename(columns=columns) if len(cells) else pd.DataFrame(columns=list(columns.values()))
    return Sheet("Events and candidates by cell", table, docs, tests.sql)


def _kind_sheet(source: Source) -> Iterator[Sheet]:
    """Events (and published jumps) by kind of layer, beside what is expected of it where there is nothing."""
    if source.has("event_kinds", "layer_kind", "null_n", "to_linear1"):
        answer = source.ask("SELECT * EXCLUDE (sweep, model, data) FROM event_kinds WHERE sweep = $sweep ORDER BY ALL")
        rows = answer.rows.assign(cell=[source.label(cell) for cell in answer.rows["cell"]]).rename(columns=readable)
        docs = {readable(c): text for c, text in source.columns("event_kinds").items()}
        yield Sheet("Events by kind of layer", rows, docs, answer.sql, table="event_kinds", folded=True)


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
    widest = 1.1 * float(fitted["half_life"].max()) if len(fitted) else math.nan
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
        spec = by_layer(rows, layer_names(order), "half-life (steps)", last=min(widest, source.horizon(name)))
        label = source.label(name)
        alt = f"{label}: half-life of the initial transient by layer, median {number(rows['value'].median())} steps."
        figures.append(Figure(label, spec, alt))
    if figures:
        note = "Ring: a seed; bar: their median. Half-lives beyond the run are drawn at its end."
        section.plates.append(Plate("Half-life of the initial transient", tuple(figures), note))
    return section
