"""Order and timing: when layers settle and in which order, critical periods, coordination, types of events, growth."""

from collections.abc import Iterator

import pandas as pd

from ndt_ray.errors import StoreError
from ndt_ray.figures.charts import beside_null, by_layer, forest
from ndt_ray.figures.heatmap import layer_names
from ndt_ray.report.events import layers_of
from ndt_ray.report.parts import Claim, Figure, Plate, Section, Sheet
from ndt_ray.report.source import NAME, Source, quoted
from ndt_ray.report.words import count, interval, level, listed, number, readable, share

ALPHA = 0.05
FLAGS = {
    "never": "never do",
    "noise": "move no more than their noise",
    "constant": "are constant",
    "short": "are too short to tell",
}
"""Why a layer has no step of settling, as `convergence` flags it."""


def settled_layers(source: Source) -> pd.DataFrame | None:
    """When each layer settled: name, layer, step, trial_id, seed; None where that was not computed."""
    if not source.has("convergence", "layer", "step", "mode", "measure"):
        return None
    return source.ask(
        f"SELECT {NAME} AS name, c.trial_id, t.seed, c.layer, c.view, c.step, c.flag FROM convergence c "
        "JOIN trials t USING (sweep, trial_id) WHERE sweep = $sweep AND c.mode = 'default' "
        f"AND c.measure = {quoted(measure_spoken(source, 'convergence', 'default'))} "
        "ORDER BY t.cell, t.seed, c.layer_index"
    ).rows


def order(source: Source) -> Section:
    """The section; each part only where its table has rows."""
    section = Section("order", "Order and timing")
    parts = (
        ("convergence", "Whether layers settle in an order was not asked", "convergence convergence_tests", _settling),
        ("critical_series", "Critical periods were not sought", "critical_periods coordination_tests", _critical),
        ("taxonomy_fits", "Events were not sorted into types", "taxonomy", _types),
        ("phase_verdicts", "The founding claims about timing were not judged", "event_phases", _timing),
        ("growth", "No growth curve was fitted", "growth", _growth),
    )
    for table, what, command, part in parts:
        if source.has(table):
            part(source, section)
        elif table != "taxonomy_fits" or source.has("events"):
            ran = any(table in tables for tables in source.analyses.values())
            if not ran:
                section.missing.append((what, f"ndt analyze {source.sweep} {command}"))
    return section


def measure_spoken(source: Source, table: str, mode: str | None = None) -> str:
    """The measure of a table that is spoken of.

    `mode`: of its rows in this mode alone; a published series may have been judged on another measure.
    """
    own = "" if mode is None else f" AND mode = {quoted(mode)}"
    return source.spoken(
        source.ask(f"SELECT DISTINCT measure FROM {table} WHERE sweep = $sweep{own} ORDER BY 1").rows["measure"]
    )


# -- settling ------------------------------------------------------------------------------------------------------


def _settling(source: Source, section: Section) -> None:
    measure = measure_spoken(source, "convergence", "default")
    settled = settled_layers(source)
    assert settled is not None
    answer = source.ask(
        "SELECT coalesce(flag, 'settled') AS how, count(*) AS series FROM convergence WHERE sweep = $sweep "
        f"AND mode = 'default' AND measure = {quoted(measure)} GROUP BY 1 ORDER BY 2 DESC, 1"
    )
    if len(answer.rows):
        ends = dict(zip(answer.rows["how"], answer.rows["series"].astype(int), strict=True))
        if sum(ends.values()) != len(settled):
            raise StoreError(
                f"sweep {source.sweep}: {ends} are not {len(settled)} series of convergence - analyze it again"
            )
        done = f"{ends.pop('settled', 0):,} of {len(settled):,}"
        text = f"{readable(measure).capitalize()} settles within the run in {done} "
        rest = "; " + listed(f"{n:,} {FLAGS.get(how, how)}" for how, n in ends.items()) if ends else ""
        section.claims.append(Claim(f"{text}layer series{rest}.", "described", answer.sql))
    section.claims += [*_direction(source, measure), *_between(source, measure), *_published_order(source)]
    figures = []
    for name in [n for n in source.cells if n in set(settled["name"])]:
        own = settled[(settled["name"] == name) & settled["step"].notna()]
        layers = layers_of(source, name)
        place = {layer: i for i, (layer, _) in enumerate(layers)}
        own = own[own["layer"].isin(place)]
        if own.empty:
            continue
        seeds = own["trial_id"].map(source.seed_labels(name))
        rows = pd.DataFrame({"row": own["layer"].map(place), "value": own["step"], "seed": seeds})
        spec = by_layer(rows, layer_names(layers), "step at which the layer settled", last=source.horizon(name))
        label = source.label(name)
        middle = listed(
            (f"{layers[int(r)][0]} {number(v)}" for r, v in rows.groupby("row")["value"].median().items()), 16
        )
        figures.append(Figure(label, spec, f"{label}: median settling step by layer: {middle}."))
    if figures:
        note = "Ring: a seed; bar: their median. Layers that never settle have no ring. First layer on top."
        title = f"When layers settle ({readable(measure)})"
        section.plates.append(Plate(title, tuple(figures), note))
    for table, title in (
        ("convergence_cells", "Order of settling by cell"),
        ("convergence_architectures", "Order of settling between architectures"),
        ("convergence_ranking", "The clearest bottom-up trials"),
    ):
        section.sheets += list(sheet(source, table, title))


def _direction(source: Source, measure: str) -> Iterator[Claim]:
    if not source.has("convergence_cells", "cell", "mean_rho", "p", "q", "mode", "measure", "n_trials"):
        return
    answer = source.ask(
        f"SELECT * FROM convergence_cells WHERE sweep = $sweep AND mode = 'default' AND measure = {quoted(measure)}"
    )
    rows = answer.rows.dropna(subset=["q"])
    if rows.empty:
        return
    family = f"Benjamini–Hochberg over {count(len(rows), 'cell')}; {readable(measure)}"
    clear = rows[rows["q"] <= ALPHA]
    for sign, words in ((1, "from the first layer to the last"), (-1, "from the last layer to the first")):
        own = clear[clear["mean_rho"] * sign > 0]
        if len(own):
            said = [f"{source.label(r.cell)} (mean ρ = {number(r.mean_rho, 2)}, q {level(r.q)}, "
                    f"{count(r.n_trials, 'seed')})" for r in own.itertuples()]  # fmt: skip
            text = f"Layers settle {words} in {listed(said)}; {family}."
            yield Claim(text, "finding", answer.sql, headline=True)
    rest = rows[~rows.index.isin(clear.index)]
    if len(rest):
        said = [f"{source.label(r.cell)} (mean ρ = {number(r.mean_rho, 2)}, q {level(r.q)})" for r in rest.itertuples()]
        reach = float(rest["q_attainable"].min()) if "q_attainable" in rest else 0.0  # older stores do not say
        if reach > ALPHA:
            text = f"Whether layers settle in an order cannot be shown in {listed(said)}: the smallest q attainable is "
            yield Claim(f"{text}{number(reach, 2)}; {family}.", "caution", answer.sql, headline=clear.empty)
        else:
            text = f"No order of settling is shown in {listed(said)}; {family}."
            yield Claim(text, "nothing", answer.sql, headline=clear.empty)


def _between(source: Source, measure: str) -> Iterator[Claim]:
    if not source.has("convergence_architectures", "factor", "p", "p_attainable", "n_groups"):
        return
    answer = source.ask(
        f"SELECT * FROM convergence_architectures WHERE sweep = $sweep AND mode = 'default' AND "
        f"measure = {quoted(measure)} AND factor = 'model'"
    )
    for row in answer.rows.dropna(subset=["p"]).itertuples():
        of = f"{count(row.n_groups, 'architecture')}, {count(row.n_trials, 'trial')}, permuted within seed and data set"
        yield tested(f"the order of settling differs between architectures ({of})", row.p, row.p_attainable, answer.sql)


def _published_order(source: Source) -> Iterator[Claim]:
    """The founding study's verdicts, beside the exact null of so few layers."""
    if not source.has("convergence_order", "label", "mode"):
        return
    answer = source.ask(
        "SELECT label, count(*) AS runs, sum(null_bottom_up) AS expected, count(*) FILTER (WHERE rho > .6) AS above "
        "FROM convergence_order WHERE sweep = $sweep AND mode = 'original' GROUP BY 1 ORDER BY 2 DESC"
    )
    if answer.rows.empty:
        return
    total, above = int(answer.rows["runs"].sum()), int(answer.rows["above"].sum())
    said = listed(f"{readable(str(r.label))} {r.runs:,}" for r in answer.rows.itertuples())
    text = (
        f"As published (mode original), {count(total, 'run')} are labelled: {said}. ρ > 0.6 in {above:,}, where random "
    )
    yield Claim(f"{text}orders give {number(answer.rows['expected'].sum())}.", "described", answer.sql)


# -- critical periods and coordination -----------------------------------------------------------------------------


def _critical(source: Source, section: Section) -> None:
    measure = measure_spoken(source, "critical_series", "default")
    answer = source.ask(
        f"SELECT {NAME} AS name, count(*) AS series, count(c.p) AS tested, "
        f"count(*) FILTER (WHERE c.q <= {ALPHA}) AS clear, sum(c.n_periods) AS periods, "
        "sum(c.null_periods) AS expected FROM critical_series c JOIN trials t USING (sweep, trial_id) "
        f"WHERE sweep = $sweep AND c.mode = 'default' AND c.measure = {quoted(measure)} GROUP BY 1 ORDER BY 1"
    )
    rows = answer.rows
    if int(rows["tested"].sum()) == 0:
        text = f"No series of {readable(measure)} was long enough to be tested for critical periods."
        section.claims.append(Claim(text, "nothing", answer.sql))
    else:
        said = [
            f"{source.label(r.name)} {int(r.periods or 0):,} beside {number(r.expected)}"
            for r in rows.sort_values("periods", ascending=False).itertuples()
        ]
        text = f"Periods in which {readable(measure)} moves faster than its slow-down explains, beside their number on "
        text += f"surrogates: {listed(said, 8)}. {int(rows['clear'].sum()):,} of "
        text += f"{count(int(rows['tested'].sum()), 'series')} have q ≤ {ALPHA} (over the layers of one trial: across "
        text += "trials this is not corrected)."
        section.claims.append(Claim(text, "described", answer.sql))
    section.claims += [*_clearest(source, measure), *_together(source, measure)]
    section.plates += list(_coordination(source, measure))
    for table, title in (
        ("coordination_cells", "Do layers move together, and with the loss? By cell"),
        ("critical_periods", "Critical periods"),
        ("critical_ranking", "Trials with the best defined critical periods"),
    ):
        section.sheets += list(sheet(source, table, title))


def _clearest(source: Source, measure: str) -> Iterator[Claim]:
    """The trials that the ranking puts first, of how many, and what stands behind each."""
    if not source.has("critical_ranking", "rank", "n_significant", "smallest_p", "n_tried", "measure"):
        return
    answer = source.ask(
        "SELECT r.*, t.seed FROM critical_ranking r JOIN trials t USING (sweep, trial_id) WHERE sweep = $sweep "
        f"AND r.measure = {quoted(measure)} ORDER BY r.rank"
    )
    if answer.rows.empty:
        return
    said = []
    for r in answer.rows.itertuples():
        seed = f"trial {str(r.trial_id)[:6]}" if pd.isna(r.seed) else f"seed {int(r.seed)}"
        layers = f"{int(r.n_significant)} of {count(int(r.n_layers), 'layer')}"
        said.append(f"{source.label(r.cell)} {seed} ({layers} with q < {ALPHA}, smallest p {number(r.smallest_p, 2)})")
    tried = count(int(answer.rows["n_tried"].max()), "trial")
    text = f"Best defined critical periods, picked from {tried} after looking at all: {listed(said)}."
    yield Claim(text, "described", answer.sql)


def _coordination(source: Source, measure: str) -> Iterator[Plate]:
    """Correlation within a trial beside that with other seeds, by cell."""
    if not source.has("coordination_cells", "what", "q", "statistic", "across"):
        return
    answer = source.ask(f"SELECT * FROM coordination_cells WHERE sweep = $sweep AND measure = {quoted(measure)}")
    known = answer.rows.dropna(subset=["statistic"])
    figures = []
    for what, title in (("layers", "a trial's layers"), ("loss", "a trial's layers and its loss")):
        own = known[known["what"] == what]
        if own.empty:
            continue
        says = (f"r = {number(r.statistic, 2)} beside {number(r.across, 2)}, q {level(r.q)}" for r in own.itertuples())
        rows = pd.DataFrame({"name": own["cell"].map(source.label), "estimate": own["statistic"], "text": list(says)})
        rows = rows.assign(low=float("nan"), high=float("nan"), beside=own["across"], clear=own["q"] <= ALPHA)
        figures.append(forest_figure(rows, title, "correlation of changes"))
    if figures:
        note = (
            f"Point: within a trial (filled: q ≤ {ALPHA}). Grey bar: with other seeds of the cell, which is what their "
        )
        yield Plate("Do layers move together?", tuple(figures), f"{note}common course of training explains.")


def _together(source: Source, measure: str) -> Iterator[Claim]:
    if not source.has("coordination_cells", "what", "q", "statistic", "across", "p_attainable"):
        return
    answer = source.ask(f"SELECT * FROM coordination_cells WHERE sweep = $sweep AND measure = {quoted(measure)}")
    for what, words in (("layers", "a trial's layers"), ("loss", "a trial's layers and its loss")):
        rows = answer.rows[answer.rows["what"] == what].dropna(subset=["q"])
        if rows.empty:
            continue
        clear = rows[rows["q"] <= ALPHA]
        said = [
            f"{source.label(r.cell)} (r = {number(r.statistic, 2)} beside {number(r.across, 2)}, q {level(r.q)})"
            for r in (clear if len(clear) else rows).itertuples()
        ]
        how = "correlation within a trial beside that with other seeds of the cell"
        if len(clear):
            text = f"In {listed(said)}, {words} move together more than the common course of training explains ({how})."
            yield Claim(text, "finding", answer.sql, headline=True)
        elif float(rows["p_attainable"].min()) > ALPHA:
            text = f"Whether {words} move together cannot be shown with so few seeds: the smallest p attainable is "
            yield Claim(f"{text}{number(rows['p_attainable'].min(), 2)}.", "caution", answer.sql)
        else:
            text = (
                f"Nowhere do {words} move together more than the common course of training explains: {listed(said)}; "
            )
            yield Claim(f"{text}{how}.", "nothing", answer.sql)


# -- types of events -----------------------------------------------------------------------------------------------


def _types(source: Source, section: Section) -> None:
    answer = source.ask(
        "SELECT * FROM (SELECT *, max(k) OVER (PARTITION BY mode) AS tried FROM taxonomy_fits WHERE sweep = $sweep "
        "AND source = 'events') WHERE chosen ORDER BY mode"
    )
    types = source.ask("SELECT * FROM taxonomy_types WHERE sweep = $sweep AND source = 'events' ORDER BY mode, type")
    for fit in answer.rows.to_dict("records"):
        mode = "" if fit["mode"] == "default" else " (mode original: published jumps)"
        own = types.rows[types.rows["mode"] == fit["mode"]]
        if len(own) and int(own["n"].sum()) != int(fit["n"]):
            section.claims.append(
                Claim(f"The types{mode} do not add up to their events; run taxonomy again.", "caution")
            )
            continue
        k, p = int(fit["k"]), fit["p_silhouette"]
        sizes = listed(f"{t.label if isinstance(t.label, str) else f'type {t.type} (not stable)'} {t.n:,}"
                       for t in own.itertuples())  # fmt: skip
        if int(fit["tried"]) == 1:
            text = f"{count(int(fit['n']), 'event')}{mode} are too few to be sorted into types: one type was assumed."
            section.claims.append(Claim(text, "nothing", answer.sql))
        elif k == 1:
            text = f"{count(int(fit['n']), 'event')}{mode} form no distinct types: the gap statistic sees one cloud."
            section.claims.append(Claim(text, "nothing", answer.sql))
        elif p is not None and p == p and p <= ALPHA:
            text = f"{count(int(fit['n']), 'event')}{mode} form {k} types (silhouette {number(fit['silhouette'], 2)}; "
            text += f"events found in noise cluster as well with p {level(p)}): {sizes}."
            section.claims.append(Claim(text, "finding", answer.sql))
        else:
            text = f"{count(int(fit['n']), 'event')}{mode} are cut into {k} clusters: {sizes}; "
            known = p is not None and p == p
            text += f"events found in noise cluster as well (p {level(p)})" if known else "not compared with noise"
            section.claims.append(
                Claim(text + ", so they are no types.", "nothing" if known else "described", answer.sql)
            )
    if source.has("taxonomy_association", "factor", "p", "p_attainable"):
        found = source.ask("SELECT * FROM taxonomy_association WHERE sweep = $sweep AND mode = 'default'")
        for row in found.rows.dropna(subset=["p"]).itertuples():
            of = f"{count(row.n_events, 'event')} of {count(row.n_trials, 'trial')}"
            text = f"the type of an event goes with its {row.factor} ({of}, Cramér's V = {number(row.cramers_v, 2)})"
            section.claims.append(tested(text, row.p, row.p_attainable, found.sql))
    section.plates += list(_type_bars(types.rows))
    section.sheets += list(sheet(source, "taxonomy_types", "Types of events"))


def _type_bars(types: pd.DataFrame) -> Iterator[Plate]:
    """How many events each type has; a type without a name is not told from what noise gives, or does not come back."""
    own = types[types["mode"] == "default"]
    if len(own) < 2:
        return
    names = [t.label if isinstance(t.label, str) else f"type {t.type}, no type by itself" for t in own.itertuples()]
    rows = pd.DataFrame({"name": names, "observed": own["n"].to_numpy(float)})
    said = listed((f"{n} {int(k):,}" for n, k in zip(names, own["n"], strict=True)), 10)
    spec = beside_null(rows, "events", families=())
    yield Plate("Events by type", (Figure("significant events", spec, f"Events by type: {said}."),))


# -- the founding claims about timing ------------------------------------------------------------------------------


def _timing(source: Source, section: Section) -> None:
    answer = source.ask(
        "SELECT * FROM phase_verdicts WHERE sweep = $sweep AND grouping = 'all' AND verdict IS NOT NULL "
        "ORDER BY mode, claim"
    )
    for row in answer.rows.itertuples():
        mode = "" if row.mode == "default" else ", as published"
        rest = (
            f"{count(row.n_events, 'event')} of {count(row.n_trials, 'trial')}"
            if row.n_events
            else count(row.n_trials, "trial")
        )
        value = f"{number(row.value)} {interval(row.lo, row.hi)}".strip()
        p = getattr(row, "p", None)  # stores from before there was one
        value += "" if p is None or p != p else f", p {level(p)}"
        text = (
            f"Founding claim “{readable(row.claim)}”{mode}: {readable(row.verdict)} ({row.rule}; here {value}, {rest})."
        )
        section.claims.append(Claim(text, "described", answer.sql))
    section.sheets += list(sheet(source, "event_phases", "Events by phase, beside their null"))
    section.sheets += list(sheet(source, "phase_verdicts", "Claims about timing"))


# -- growth --------------------------------------------------------------------------------------------------------


def _growth(source: Source, section: Section) -> None:
    answer = source.ask(
        "SELECT mode, measure, count(*) AS runs, count(r2) AS fitted, median(r2) AS r2, "
        "count(*) FILTER (WHERE r2 > .8) AS excellent, count(*) FILTER (WHERE r2 > .5 AND r2 <= .8) AS moderate, "
        "count(*) FILTER (WHERE r2 <= .5) AS poor, count(*) FILTER (WHERE at_bound <> '') AS bound "
        "FROM growth WHERE sweep = $sweep GROUP BY 1, 2 ORDER BY 1, 2"
    )
    for row in answer.rows.itertuples():
        assert row.excellent + row.moderate + row.poor == row.fitted, row
        mode = "" if row.mode == "default" else " as published"
        text = f"Logistic growth of mean {readable(row.measure)}{mode} fits {row.excellent:,} of "
        text += f"{count(row.runs, 'run')} well (R² > 0.8), {row.moderate:,} moderately, {row.poor:,} poorly (median "
        text += f"R² {number(row.r2, 2)}); "
        text += f"{share(row.bound, row.runs)} of the fits end at a bound, and are no estimates."
        section.claims.append(Claim(text, "described", answer.sql))
    if source.has("growth_models", "model", "best", "mode"):
        found = source.ask(
            "SELECT model, count(*) AS runs, sum(count(*)) OVER () AS total FROM growth_models WHERE sweep = $sweep "
            "AND best AND mode = 'default' GROUP BY 1 ORDER BY 2 DESC, 1"
        )
        if len(found.rows):
            said = listed(f"{r.model} in {r.runs:,}" for r in found.rows.itertuples())
            text = f"Of the curves compared by AICc, best in {count(int(found.rows['total'].iloc[0]), 'run')}: {said}."
            section.claims.append(Claim(text.replace("best in", "the best over"), "described", found.sql))


# -- what several parts use ----------------------------------------------------------------------------------------


def tested(what: str, p: float, attainable: float, sql: str, headline: bool = False) -> Claim:
    """One p against 0.05, and what could have been reached: nobody finds what no outcome could have shown."""
    if attainable is not None and attainable == attainable and attainable > ALPHA:
        text = f"Whether {what} cannot be shown: the smallest p attainable is {number(attainable, 2)}."
        return Claim(text, "caution", sql)
    if p <= ALPHA:
        return Claim(f"{what[0].upper()}{what[1:]}: p {level(p)}, one test.", "finding", sql, headline)
    return Claim(f"It is not shown that {what}: p {level(p)}, one test.", "nothing", sql, headline)


def sheet(source: Source, table: str, title: str, most: int = 100) -> Iterator[Sheet]:
    """A table as it is stored, its first rows; nothing where it has none."""
    if source.has(table):
        answer = source.ask(f'SELECT * EXCLUDE (sweep) FROM "{table}" WHERE sweep = $sweep')
        docs = {readable(c): text for c, text in source.columns(table).items()}
        rows = answer.rows.head(most).rename(columns=readable)
        yield Sheet(title, rows, docs, answer.sql, len(answer.rows), table, folded=True)


def forest_figure(rows: pd.DataFrame, title: str, axis: str, reference: float | None = 0.0) -> Figure:
    """Estimates with intervals (columns of charts.forest), described."""
    said = listed((f"{r.name} {r.text}" for r in rows.itertuples(index=False)), 10)
    return Figure(title, forest(rows, axis, reference=reference), f"{title}: {said}.")
