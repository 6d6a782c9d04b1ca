"""Across seeds and cells: concordance, comparisons, where variance comes from, and how robust the claims are."""

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from ndt_ray.figures.charts import forest, specification_curve
from ndt_ray.report.order import ALPHA, sheet
from ndt_ray.report.parts import Claim, Figure, Plate, Section
from ndt_ray.report.source import Source, quoted
from ndt_ray.report.words import count, interval, level, listed, number, readable, share

MOST = 40
"""Comparisons in one forest plot."""


def across(source: Source) -> Section:
    """The section; each part only where its table has rows."""
    section = Section("across", "Across seeds and architectures", short="Across seeds")
    parts = (
        ("concordance", "Whether seeds agree on their events was not tested", "concordance", _concordance),
        ("comparisons", "Cells were not compared", "compare", _comparisons),
        ("architecture_claims", "", "", _families),
        ("variance_sources", "", "", _variance),
        ("robustness", "The robustness of the claims over specifications was not computed", "multiverse", _robustness),
        ("interval_coverage", "", "", _coverage),
    )
    for table, what, command, part in parts:
        if source.has(table):
            part(source, section)
        elif what and not any(table in tables for tables in source.analyses.values()):
            section.missing.append((what, f"ndt analyze {source.sweep} {command}"))
    return section


def layer(source: Source, row: Any) -> str:
    """A cell's layer as a phrase."""
    where = "any layer" if row.layer == "*" else row.layer
    return f"{source.label(row.cell)} {where}"


# -- concordance ---------------------------------------------------------------------------------------------------


def _concordance(source: Source, section: Section) -> None:
    family = _family(source)
    answer = source.ask(f"SELECT * FROM concordance WHERE sweep = $sweep{family} ORDER BY cell, layer_index")
    section.claims += list(_concordant(source, answer.rows, answer.sql))
    if source.has("replicated_events", "n_with", "n_seeds", "step", "p"):
        found = source.ask(
            f"SELECT * FROM replicated_events WHERE sweep = $sweep AND layer <> '*'{family} "
            "ORDER BY n_with DESC, p, cell, layer_index, step"
        )
        top = [
            f"{layer(source, r)} at step {number(r.step)} ({r.n_with} of {count(r.n_seeds, 'seed')}, p {level(r.p)})"
            for r in found.rows.head(5).itertuples()
        ]
        if top:
            text = (
                f"{count(len(found.rows), 'event')} {'is' if len(found.rows) == 1 else 'are'} shared by two seeds or "
            )
            text += (
                f"more of a cell; by most: {listed(top)}. Each p is of that many seeds together anywhere in the run, "
            )
            section.claims.append(Claim(text + "not corrected over layers.", "described", found.sql))
    section.sheets += list(sheet(source, "replicated_events", "Events that seeds share"))
    section.sheets += list(sheet(source, "concordance", "Concordance of seeds by layer"))


def _family(source: Source) -> str:
    """The condition that keeps rows of the primary family."""
    if source.family is None:
        return ""
    pairs = [("family", source.family["family"]), ("detector", source.family["detector"])]
    pairs.append(('"null"', source.family["null"]))
    return "".join(f" AND {column} = {quoted(value)}" for column, value in pairs)


def _concordant(source: Source, rows: pd.DataFrame, sql: str) -> Iterator[Claim]:
    rows = rows[rows["layer"] != "*"]
    judged = rows.dropna(subset=["q"])
    if judged.empty:
        why = listed(f"{readable(str(r))} ({n:,})" for r, n in rows["reason"].value_counts().items())
        yield Claim(f"Whether seeds agree on their events could not be tested: {why}.", "nothing", sql)
        return
    of = f"Benjamini–Hochberg over {count(len(judged), 'layer')} of all cells; two nulls that keep the common rate"
    clear = judged[judged["q"] <= ALPHA].sort_values("q", kind="stable")
    if len(clear):
        said = [
            f"{layer(source, r)} ({count(r.coincidences, 'coincidence')} beside "
            f"{number(max(r.expected_jitter, r.expected_redraw), 2)} by chance, {r.seeds_with} of "
            f"{count(r.n_seeds, 'seed')}{_false(r, 'null_seeds_with')}, q {level(r.q)})"
            for r in clear.itertuples()
        ]
        text = f"Seeds agree on when events happen, beyond their common rate, in {listed(said, 5)}; {of}."
        yield Claim(text, "finding", sql, headline=True)
    elif float(judged["q_attainable"].min()) > ALPHA:
        text = "Seeds cannot be shown to agree on their events: the smallest q attainable is "
        yield Claim(f"{text}{number(judged['q_attainable'].min(), 2)} ({of}).", "caution", sql, headline=True)
    else:
        best = judged.sort_values("q", kind="stable").iloc[0]
        text = "It is not shown that seeds agree on when events happen, beyond their common rate: smallest q "
        text += f"{level(best['q'])} ({of})."
        yield Claim(text, "nothing", sql, headline=True)


def _false(row: Any, column: str) -> str:
    """What false events alone are expected to give; nothing where the table does not say."""
    expected = getattr(row, column, math.nan)
    return "" if expected is None or math.isnan(expected) else f", where false events give {number(expected, 2)}"


# -- comparisons ---------------------------------------------------------------------------------------------------


def outcome(name: str) -> str:
    """An outcome as words."""
    known = {
        "events_per_series": "events per series",
        "event_phase": "mean onset (share of the run)",
        "event_size": "size of events (share of the level before)",
        "final_accuracy": "held-out accuracy",
    }
    measure, at, phase = name.partition("@")
    return known.get(name, f"{readable(measure)} at {100 * float(phase):.0f} % of the run" if at else readable(name))


def _comparisons(source: Source, section: Section) -> None:
    answer = source.ask(
        "SELECT * FROM comparisons WHERE sweep = $sweep ORDER BY outcome, axis, stratum, level_a, level_b"
    )
    own = answer.rows
    if source.family is not None:
        own = own[own["family"].isna() | (own["family"] == source.family["family"])]
    section.claims += list(_compared(own, answer.sql))
    drawn = own[own["outcome"].isin(spoken(own["outcome"]))].dropna(subset=["hedges_g", "g_lo", "g_hi"]).head(MOST)
    figures = []
    for name, group in drawn.groupby("outcome", sort=False):
        label = [f"{_between(r)}" for r in group.itertuples()]
        text = [f"g = {number(r.hedges_g, 2)} {interval(r.g_lo, r.g_hi)}, adjusted p {level(r.p_adjusted)}"
                for r in group.itertuples()]  # fmt: skip
        rows = pd.DataFrame(
            {
                "name": label,
                "estimate": group["hedges_g"].to_numpy(),
                "low": group["g_lo"].to_numpy(),
                "high": group["g_hi"].to_numpy(),
                "clear": group["significant"].fillna(False).to_numpy(bool),
                "text": text,
            }
        )
        said = listed((f"{a}: {b}" for a, b in zip(label, text, strict=True)), 8)
        figures.append(
            Figure(outcome(str(name)), forest(rows, "Hedges' g (95 % CI)"), f"{outcome(str(name))}: {said}.")
        )
    if figures:
        note = "First minus second, in standard deviations between seeds. Filled: survives its correction."
        section.plates.append(Plate("Effect sizes", tuple(figures), note))
    section.sheets += list(sheet(source, "comparisons", "Comparisons"))
    section.sheets += list(sheet(source, "cell_estimates", "Estimates by cell"))


def _families(source: Source, section: Section) -> None:
    """The founding sentence on CNNs and MLPs: its parts with their ratios, and what follows for all of it."""
    answer = source.ask("SELECT * FROM architecture_claims WHERE sweep = $sweep AND scope = '*' ORDER BY claim")
    rows = answer.rows.set_index("claim")
    if rows["ratio"].notna().any() and "more_events_of_similar_size" in rows.index:
        names = ("more_events_of_similar_size", "more_events_per_series", "similar_size")
        whole, more, size = (rows.loc[name] for name in names)
        text = "Founding claim “CNNs have more discrete events than MLPs, of similar size”: "
        text += f"{readable(str(whole['verdict']))}. Events a layer-series: ratio {_ratio(more)}, "
        text += f"q {level(more['q'])}; their size: ratio {_ratio(size)}, {readable(str(size['verdict']))} "
        text += f"({size['rule']}); {whole['n_cnn']:,} against {count(int(whole['n_mlp']), 'seed')}, "
        text += "Benjamini–Hochberg over the counts."
        clear = more["q"] == more["q"] and more["q"] <= ALPHA and whole["verdict"] in ("supported", "contradicted")
        section.claims.append(Claim(text, "finding" if clear else "described", answer.sql))
    section.sheets += list(sheet(source, "architecture_claims", "CNNs against MLPs"))


def _ratio(row: Any) -> str:
    return f"{number(row['ratio'], 2)} {interval(row['lo'], row['hi'])}".strip()


def _between(row: Any) -> str:
    return f"{row.level_a} - {row.level_b}{_stratum(row)}"


def spoken(outcomes: pd.Series) -> set[str]:
    """Outcomes that get sentences: of a measure at several phases only the last one; the table has the others."""
    last: dict[str, str] = {}
    for name in dict.fromkeys(outcomes):
        measure, at, phase = str(name).partition("@")
        known = last.get(measure, "").partition("@")[2]
        if not at or not known or float(phase) > float(known):
            last[measure] = str(name)
    return set(last.values())


def _compared(rows: pd.DataFrame, sql: str) -> Iterator[Claim]:
    judged = rows.dropna(subset=["p_adjusted"])
    for name, group in judged[judged["outcome"].isin(spoken(judged["outcome"]))].groupby("outcome", sort=False):
        what, top = outcome(str(name)), name == "events_per_series"
        what = what[0].upper() + what[1:]
        clear = group[group["significant"].astype(bool)]
        families = {"holm": "Holm", "bh": "Benjamini–Hochberg"}
        if len(clear):
            said = [
                f"{r.level_a} {number(r.mean_a)} against {r.level_b} {number(r.mean_b)}{_stratum(r)} (difference "
                f"{number(r.difference)} {interval(r.lo, r.hi)}, Hedges' g = {number(r.hedges_g, 2)}, {r.n_a} against "
                f"{count(r.n_b, 'seed')}, adjusted p {level(r.p_adjusted)})"
                for r in clear.itertuples()
            ]
            how = " and ".join(sorted(set(clear["design"])))
            family = families[str(clear["adjustment"].iloc[0])]
            text = f"{what} differs: {listed(said, 4)}; {how} permutation of seeds, {family} over "
            text += count(clear["n_comparisons"].iloc[0], "comparison")
            text += _false(clear.iloc[0], "null_mean")
            yield Claim(f"{text}.", "finding", sql, headline=top)
        rest = group[~group["significant"].astype(bool)]
        if rest.empty:
            continue
        reach = float(rest["smallest_p_adjusted"].min())
        pairs = listed((f"{_between(r)} (adjusted p {level(r.p_adjusted)})" for r in rest.itertuples()), 4)
        if clear.empty and reach == reach and reach > ALPHA:
            text = f"{what}: with these seeds no difference could have survived alone (smallest adjusted p attainable "
            text += f"{number(reach, 2)}); not shown: {pairs}."
            yield Claim(text, "caution", sql, headline=top)
        else:
            yield Claim(f"{what}: no difference is shown for {pairs}.", "nothing", sql, headline=top and clear.empty)


def _stratum(row: Any) -> str:
    return "" if row.stratum in ("*", "", None) else f" ({row.stratum})"


# -- variance and robustness ---------------------------------------------------------------------------------------


def _variance(source: Source, section: Section) -> None:
    answer = source.ask("SELECT * FROM variance_sources WHERE sweep = $sweep ORDER BY outcome, cell, source")
    parts = answer.rows[~answer.rows["source"].isin(["seed", "rest", "total"])].dropna(subset=["share"])
    for name, group in parts.groupby("outcome", sort=False):
        middle = group.groupby("source")["share"].median().sort_values(ascending=False)
        said = listed(f"{s} {share(v, 1)}" for s, v in middle.items())
        text = f"Variance of {outcome(str(name))} between trials of a cell, by seed (median over cells): {said}."
        section.claims.append(Claim(text, "described", answer.sql))
    section.sheets += list(sheet(source, "variance_sources", "Where the variance between trials comes from"))


def _robustness(source: Source, section: Section) -> None:
    answer = source.ask("SELECT * FROM robustness WHERE sweep = $sweep ORDER BY claim")
    for r in answer.rows.itertuples():
        if r.same_verdict is None or r.same_verdict != r.same_verdict:
            section.claims.append(
                Claim(f"“{r.claim}”: no multiverse ({readable(str(r.reason))}).", "nothing", answer.sql)
            )
            continue
        text = f"“{r.claim}” {'holds' if r.significant else 'does not hold'} under the primary specification; of "
        text += f"{count(r.n_specifications, 'specification')} {share(r.same_verdict, 1)} give the same verdict and "
        text += f"{share(r.same_sign, 1)} the same sign"
        divisive = f"; most depends on the {readable(r.most_divisive)}" if isinstance(r.most_divisive, str) else ""
        section.claims.append(Claim(f"{text}{divisive}.", "described", answer.sql, headline=True))
    if source.has("specification_curve", "estimate", "significant", "declared", "specification", "claim"):
        found = source.ask("SELECT * FROM specification_curve WHERE sweep = $sweep ORDER BY claim, specification").rows
        figures = []
        for claim, group in found.groupby("claim", sort=False):
            rows = group.rename(columns={"declared": "primary", "specification": "text"})
            rows = rows[["estimate", "significant", "primary", "text"]]
            rows = rows.assign(significant=rows["significant"].fillna(False).astype(bool)).dropna(subset=["estimate"])
            if len(rows):
                low, high = rows["estimate"].min(), rows["estimate"].max()
                alt = (
                    f"{claim}: estimates of {count(len(rows), 'specification')} from {number(low)} to {number(high)}; "
                )
                alt += f"{int(rows['significant'].sum())} significant."
                figures.append(Figure(str(claim), specification_curve(rows, "estimate"), alt))
        if figures:
            note = "Filled: significant under that specification. Square: the primary specification."
            section.plates.append(Plate("The multiverse of each claim", tuple(figures), note))
    section.sheets += list(sheet(source, "robustness", "Robustness of claims"))


def _coverage(source: Source, section: Section) -> None:
    answer = source.ask(
        "SELECT n, interval, min(coverage) AS low, max(coverage) AS high, count(*) AS populations, "
        "min(simulations) AS simulations FROM interval_coverage WHERE sweep = $sweep AND recommended "
        "GROUP BY 1, 2 ORDER BY 1"
    )
    said = [
        f"{count(r.n, 'seed')} ({r.interval}) {100 * r.low:.1f}–{100 * r.high:.1f} %"
        for r in answer.rows.itertuples()
        if not math.isnan(r.low)
    ]
    if said:
        populations = count(int(answer.rows["populations"].max()), "simulated population")
        text = f"The 95 % intervals over seeds hold the true mean in: {listed(said)}, over {populations}."
        section.claims.append(Claim(text, "described", answer.sql))
