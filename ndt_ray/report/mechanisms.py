"""Before, during and after: what events change in the network more than windows like them without an event do."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from ndt_ray.report.order import ALPHA, forest_figure, sheet
from ndt_ray.report.parts import Claim, Figure, Plate, Section
from ndt_ray.report.source import Answer, Source
from ndt_ray.report.words import count, interval, level, listed, number, readable

MOST = 24
"""Metrics in one figure, those of the smallest q first; the table has all."""
SPOKEN = 5
"""Findings that a sentence names."""
COLUMNS = (
    "cell",
    "metric",
    "n_trials",
    "n_events",
    "difference",
    "lo",
    "hi",
    "p",
    "q",
    "unmatched_difference",
    "seed_q",
)


def mechanisms(source: Source) -> Section:
    """The section; says which commands would look at the networks where that was not done."""
    section = Section("mechanisms", "What changes in the networks at events", short="Mechanisms")
    if not source.has("checkpoints") and not source.ran("mechanisms"):
        what = "No checkpoint is stored, so what changed inside the networks cannot be looked at"
        section.missing.append((what, "set checkpoint in the sweep file and run the sweep again"))
        return section
    if source.has("mechanism_tests", *COLUMNS):
        answer = source.ask("SELECT * FROM mechanism_tests WHERE sweep = $sweep ORDER BY q NULLS LAST, cell, metric")
        section.claims += [*_exploratory(answer), *_tested(source, answer), *_seeds(source, answer), *_left(answer)]
        section.claims += [*_single(source), *_patterns(source)]
        section.plates += list(_plates(source, answer.rows))
    else:
        ran = source.ran("mechanisms")
        what = (
            "No event lies between checkpoints that are near enough"
            if ran
            else "What events change in the networks was"
        )
        todo = f"ndt plan-checkpoints {source.sweep}" if ran else f"ndt analyze {source.sweep} mechanisms hypotheses"
        section.missing.append((what if ran else f"{what} not asked", todo))
    for table, title in (
        ("mechanism_tests", "Metrics at events against matched windows"),
        ("mechanism_patterns", "The same in all architectures, or not"),
        ("mechanism_changes", "Each event and metric: before, during, after"),
    ):
        section.sheets += list(sheet(source, table, title))
    _elsewhere(source, section)
    return section


def _elsewhere(source: Source, section: Section) -> None:
    """Commands of the sections below that have nothing to show yet."""
    if not any(t in tables for tables in source.analyses.values() for t in ("sae", "sae_transfer")):
        section.missing.append(
            ("No dictionary of features was trained", f"ndt analyze {source.sweep} sae sae_transfer")
        )
    controls = source.trials["control"].fillna("none").astype(str)
    if not source.has("recovery") and not controls.str.contains("@").any():
        what = "Nothing was intervened in, so what events are good for is not known"
        found = source.family is not None and int(source.family["n_events"]) > 0
        where = "--events 2" if found else "--target LAYER --step STEP"
        section.missing.append((what, f"ndt fork {source.sweep} --name {source.sweep}-lesions {where}"))


# -- sentences -----------------------------------------------------------------------------------------------------


def _of_candidates(answer: Answer) -> bool:
    return "exploratory" in answer.rows and bool(answer.rows["exploratory"].fillna(False).astype(bool).any())


def _exploratory(answer: Answer) -> Iterator[Claim]:
    if _of_candidates(answer):
        text = "No event of the declared family is significant: what follows is of its first candidates, which may be "
        yield Claim(f"{text}noise, and says where to look rather than what events do.", "caution", answer.sql)


def _tested(source: Source, answer: Answer) -> Iterator[Claim]:
    """Metrics that events change more than matched windows do, over the trials of a cell."""
    judged = answer.rows[answer.rows["q"].notna()]
    if judged.empty:
        said = listed(f"{readable(str(f))} {n:,}" for f, n in answer.rows["flag"].value_counts().items())
        text = f"That events change anything in the networks could not be tested, by reason: {said}."
        yield Claim(text, "caution", answer.sql, headline=True)
        return
    of = "in SDs of the changes over windows of the same phase, length, rate and displacement; Benjamini–Hochberg over "
    of += count(len(judged), "test")
    clear = judged[judged["q"] <= ALPHA]
    real = not _of_candidates(answer)
    who = "events" if real else "candidates of events, none of them significant,"
    if len(clear):
        parts = [_change(source, r) for r in clear.head(SPOKEN).itertuples()]
        parts += [f"{len(clear) - SPOKEN:,} more in the table"] if len(clear) > SPOKEN else []
        text = (
            f"{who[0].upper()}{who[1:]} change {count(len(clear), 'metric')} of a cell more than matched windows do: "
        )
        yield Claim(f"{text}{'; '.join(parts)} ({of}).", "finding", answer.sql, headline=real)
    else:
        r = next(judged.itertuples())
        text = f"It is not shown that {who} change anything more than matched windows do: smallest q {level(r.q)}, of "
        yield Claim(f"{text}{_change(source, r, False)} ({of}).", "nothing", answer.sql, headline=real)


def _change(source: Source, r: Any, with_q: bool = True) -> str:
    """One metric's difference with interval, n, and what remains unmatched."""
    text = f"{readable(r.metric)} in {source.label(r.cell)} {'+' if r.difference > 0 else ''}{number(r.difference, 2)} "
    text += f"{interval(r.lo, r.hi)}".rstrip()
    beside = f", without matching {number(r.unmatched_difference, 2)}" if pd.notna(r.unmatched_difference) else ""
    return f"{text}, {count(int(r.n_events), 'event')} of {count(int(r.n_trials), 'trial')}{beside}" + (
        f", q {level(r.q)}" if with_q else ""
    )


def _seeds(source: Source, answer: Answer) -> Iterator[Claim]:
    """The other control: the same windows in the other seeds of the cell."""
    judged = answer.rows[answer.rows["seed_q"].notna()]
    if judged.empty:
        return
    of = f"permuted among the events; Benjamini–Hochberg over {count(len(judged), 'test')}"
    clear = judged[judged["seed_q"] <= ALPHA].sort_values("seed_q", kind="stable")
    if len(clear):
        said = [
            f"{readable(r.metric)} in {source.label(r.cell)} {number(r.seed_difference, 2)} SDs over seeds, "
            f"{count(int(r.n_seeds), 'trial')}, q {level(r.seed_q)}"
            for r in clear.head(SPOKEN).itertuples()
        ]
        text = f"More than in the other seeds over the very same windows: {'; '.join(said)} (trials {of})."
        yield Claim(text, "finding", answer.sql)
        return
    text = (
        "It is not shown that trials change more over their own events than the other seeds do over the same windows: "
    )
    yield Claim(f"{text}smallest q {level(judged['seed_q'].min())} (trials {of}).", "nothing", answer.sql)


def _left(answer: Answer) -> Iterator[Claim]:
    left = answer.rows[answer.rows["q"].isna()]
    if len(left) and len(left) < len(answer.rows):
        said = listed(f"{readable(str(f))} {n:,}" for f, n in left["flag"].fillna("no reason").value_counts().items())
        text = f"{len(left):,} of {count(len(answer.rows), 'metric')} by cell have no test, by reason: {said}."
        yield Claim(text, "caution", answer.sql)


def _single(source: Source) -> Iterator[Claim]:
    """Single events: how many of their changes lie outside what their own controls predict."""
    if not source.has("mechanism_changes", "p", "q", "n_controls", "flag"):
        return
    answer = source.ask(
        f"SELECT count(*) AS n, count(p) AS tested, count(*) FILTER (WHERE q <= {ALPHA}) AS clear, min(q) AS q, "
        "count(DISTINCT (trial_id, layer, step_before)) AS events, bool_or(exploratory) AS exploratory, "
        "count(*) FILTER (WHERE flag = 'no_controls') AS alone FROM mechanism_changes WHERE sweep = $sweep"
    )
    r = next(answer.rows.itertuples())
    who = count(int(r.events), "candidate" if r.exploratory is True else "event")
    text = f"Taken one by one, {who} give{'s' if r.events == 1 else ''} {count(int(r.n), 'change')} of a metric, "
    text += f"{r.tested:,} with enough matched windows to be judged; {r.alone:,} have none. {_lacking(source)}"
    of = f"smallest q {level(r.q)}, Benjamini–Hochberg over {count(int(r.tested), 'change')}"
    if not r.tested:
        yield Claim(f"{text}None can be tested.", "caution", answer.sql)
    elif r.clear:
        text += f"{r.clear:,} lie{'s' if r.clear == 1 else ''} outside what their controls predict ({of})."
        yield Claim(text, "finding", answer.sql)
    else:
        yield Claim(f"{text}None lies outside what its controls predict ({of}).", "nothing", answer.sql)


_SCARCE = {
    "length": "as long as the event and without one",
    "phase": "within 5 % of the run of it",
    "lr": "at its learning rate",
    "displacement": "that move the weights as far, within 20 %",
}


def _lacking(source: Source) -> str:
    """What leaves events without enough matched windows, in words; empty where nothing does or it is not known."""
    if not source.has("mechanism_changes", "lacking"):
        return ""
    rows = source.ask(
        "SELECT lacking, count(DISTINCT (trial_id, layer, step_before)) AS n FROM mechanism_changes "
        "WHERE sweep = $sweep AND lacking IS NOT NULL GROUP BY lacking"
    ).rows
    if rows.empty:
        return ""
    n = dict(zip(rows["lacking"], rows["n"].astype(int), strict=True))
    said = "; ".join(f"{words} ({n[what]:,})" for what, words in _SCARCE.items() if what in n)
    return f"Events with under three, by the first thing that fewer windows meet: {said}. "


def _patterns(source: Source) -> Iterator[Claim]:
    if not source.has("mechanism_patterns", "metric", "pattern", "n_cells"):
        return
    answer = source.ask(
        "SELECT * FROM mechanism_patterns WHERE sweep = $sweep AND n_cells > 1 ORDER BY pattern, metric"
    )
    judged = source.has("hypotheses", "hypothesis")
    names = source.ask("SELECT DISTINCT hypothesis FROM hypotheses WHERE sweep = $sweep").rows if judged else None
    of_families = answer.rows["metric"].isin([] if names is None else names["hypothesis"])
    metrics, asked = answer.rows[~of_families], answer.rows[of_families]
    if len(metrics):
        said = _said(metrics[metrics["pattern"] != "none"], "cell")
        text = f"Of {count(len(metrics), 'metric')} that were tested in several cells, changed at the events of any: "
        yield Claim(f"{text}{said}.", "described", answer.sql)
    if len(asked):
        text = "Claims about events that could be tested in several families of architectures: "
        yield Claim(f"{text}{_said(asked, 'family')}.", "described", answer.sql)


def _said(rows: pd.DataFrame, what: str) -> str:
    return listed(
        f"{readable(r.metric)} ({r.pattern}, {r.up} up and {r.down} down of {count(r.n_cells, what)})"
        for r in rows.itertuples()
    )


# -- figures -------------------------------------------------------------------------------------------------------


def _plates(source: Source, rows: pd.DataFrame) -> Iterator[Plate]:
    """Differences of every metric by cell, with the unmatched one beside."""
    known = rows[rows["difference"].notna()]
    figures: list[Figure] = []
    for cell, own in known.groupby("cell", sort=False):
        top = own.sort_values(["q", "p"], kind="stable", na_position="last").head(MOST)
        drawn = pd.DataFrame(
            {
                "name": [readable(m) for m in top["metric"]],
                "estimate": top["difference"].to_numpy(float),
                "low": top["lo"].to_numpy(float),
                "high": top["hi"].to_numpy(float),
                "beside": top["unmatched_difference"].to_numpy(float),
                "clear": (top["q"] <= ALPHA).to_numpy(bool),
                "text": [f"{number(r.difference, 2)} {interval(r.lo, r.hi)}, q {level(r.q)}" for r in top.itertuples()],
            }
        )
        figures.append(forest_figure(drawn, source.label(cell), "events - matched windows, SDs"))
    if figures:
        note = (
            "Zero: what windows of the same phase, length, learning rate and displacement of the weights change. Line: "
        )
        note += (
            f"95 % over trials. Filled: q ≤ {ALPHA}. Grey bar: against windows of the same length alone, so what phase "
        )
        note += f"and speed explain is in it. At most {MOST} metrics a cell, smallest q first."
        yield Plate("Changes at events, beside windows like them", tuple(figures), note)
