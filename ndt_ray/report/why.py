"""Why and what next: hypotheses with their verdicts, what foretells events, and where to look in each run."""

from collections.abc import Iterator

import pandas as pd

from ndt_ray.report.order import ALPHA, forest_figure, sheet
from ndt_ray.report.parts import Claim, Figure, Kind, Plate, Section
from ndt_ray.report.source import Source
from ndt_ray.report.words import count, interval, level, listed, number, readable

MOST = 12
"""Hypotheses that are spoken of; the table has all."""


def why(source: Source) -> Section:
    """The section; each part only where its table has rows."""
    section = Section("why", "Why, and where to look", short="Why")
    if source.has("hypotheses", "hypothesis", "scope", "statement", "verdict", "q", "n", "why"):
        _hypotheses(source, section)
    elif source.has("checkpoints") and not source.ran("hypotheses"):
        section.missing.append(("The founding hypotheses were not judged", f"ndt analyze {source.sweep} hypotheses"))
    if source.has("timing_models", "model", "auc", "lo", "hi", "gain", "p", "p_attainable", "flag"):
        _timing(source, section)
    if source.has("investigations", "phenomenon", "kind", "mode"):
        _investigations(source, section)
    return section


def _hypotheses(source: Source, section: Section) -> None:
    """Each with the verdict of its table; supported is a finding only where its q stands behind it."""
    answer = source.ask("SELECT * FROM hypotheses WHERE sweep = $sweep ORDER BY q NULLS LAST, hypothesis, scope")
    rows = answer.rows[answer.rows["verdict"] != "no_data"]
    tested = int(answer.rows["q"].notna().sum())
    for row in rows.head(MOST).itertuples():
        clear = row.q == row.q and row.q is not None and row.q <= ALPHA
        kind: Kind = "finding" if clear else "nothing" if row.verdict == "not_shown" else "described"
        where = "" if row.scope == "*" else f" in {source.label(row.scope)}"
        own = "" if "q = " in row.why else f"{count(int(row.n), 'trial')}, q {level(row.q)}, "
        text = f"“{row.statement}”{where}: {readable(str(row.verdict))} ({row.why}; {own}Benjamini–Hochberg over "
        text += f"{count(tested, 'hypothesis')})."
        section.claims.append(Claim(text, kind, answer.sql))
    if left := len(answer.rows) - len(rows):
        text = f"{left:,} of {len(answer.rows):,} hypotheses could not be judged: their data are not there."
        section.claims.append(Claim(text, "caution", answer.sql))
    section.plates += list(_verdicts(source, rows))
    section.sheets += list(sheet(source, "hypotheses", "Hypotheses"))
    section.sheets += list(sheet(source, "event_mechanisms", "Events with their mechanisms"))


UNITS = (("increase", "mean difference"), ("decrease", "mean difference"), ("|r|", "correlation"), ("R²", "R²"))
"""What an estimate is, by how its prediction begins."""


def _verdicts(source: Source, rows: pd.DataFrame) -> Iterator[Plate]:
    """Estimates with their intervals, those of one unit together; filled where the q stands behind the verdict."""
    if not {"estimate", "lo", "hi", "prediction", "confidence"} <= set(rows):
        return
    known = rows[rows["estimate"].notna()]
    unit = [next((u for p, u in UNITS if str(x).startswith(p)), "estimate") for x in known["prediction"]]
    unit = [
        m.rpartition(", ")[2] if u == "mean difference" and ", SDs" in m else u
        for u, m in zip(unit, known["metric"], strict=True)
    ]
    figures: list[Figure] = []
    for name, own in known.assign(unit=unit).groupby("unit", sort=False):
        scope = ["" if s == "*" else f" in {source.label(s)}" for s in own["scope"]]
        drawn = pd.DataFrame(
            {
                "name": [readable(h) + s for h, s in zip(own["hypothesis"], scope, strict=True)],
                "estimate": own["estimate"].to_numpy(float),
                "low": own["lo"].to_numpy(float),
                "high": own["hi"].to_numpy(float),
                "clear": (own["q"] <= ALPHA).to_numpy(bool),
                "text": [f"{number(r.estimate, 2)} {interval(r.lo, r.hi)}, predicted {r.prediction}, q {level(r.q)}: "
                         f"{readable(str(r.verdict))}, confidence {r.confidence}" for r in own.itertuples()],
            }
        )  # fmt: skip
        title = "SDs of matched windows" if name == "SDs" else str(name)
        figures.append(forest_figure(drawn.head(MOST), title, title))
    if figures:
        note = f"Line: 95 % interval over trials, where there is one. Filled: q ≤ {ALPHA}."
        yield Plate("What the hypotheses' estimates are", tuple(figures), note)


def _timing(source: Source, section: Section) -> None:
    """Whether anything but the phase of training foretells an event, in runs that the model has not seen."""
    answer = source.ask("SELECT * FROM timing_models WHERE sweep = $sweep ORDER BY model")
    judged = answer.rows[answer.rows["auc"].notna()]
    if judged.empty:
        why_not = listed(readable(str(f)) for f in dict.fromkeys(answer.rows["flag"].dropna()))
        text = f"What foretells events could not be fitted: {why_not}."
        section.claims.append(Claim(text, "nothing", answer.sql))
        return
    phase = judged[judged["model"] == "phase"]
    for row in judged[judged["model"] == "all"].itertuples():
        beside = f", the phase of training alone {number(phase['auc'].iloc[0], 2)}" if len(phase) else ""
        text = f"In runs left out, onsets are foretold from phase and drivers with AUC {number(row.auc, 2)} "
        text += f"{interval(row.lo, row.hi)}{beside} (.5 is chance, {count(int(row.n_events), 'event')})"
        kind: Kind
        known = row.p is not None and row.p == row.p
        reach = row.p_attainable is not None and row.p_attainable == row.p_attainable and row.p_attainable > ALPHA
        if known and not reach and row.p <= ALPHA:
            kind, text = "finding", f"{text}; the drivers add {number(row.gain, 2)}, p {level(row.p)}."
        elif known and reach:
            kind, text = "caution", f"{text}; no gain could be shown: smallest p {number(row.p_attainable, 2)}."
        else:
            kind, text = "nothing", f"{text}; that the drivers add anything is not shown, p {level(row.p)}."
        section.claims.append(Claim(text.replace("  ", " "), kind, answer.sql))
    section.sheets += list(sheet(source, "timing_models", "What foretells events"))
    section.sheets += list(sheet(source, "timing_effects", "Drivers of events"))


def _investigations(source: Source, section: Section) -> None:
    answer = source.ask(
        "SELECT phenomenon, count(*) AS runs FROM investigations WHERE sweep = $sweep AND mode = 'default' GROUP BY 1 "
        "ORDER BY 2 DESC, 1"
    )
    if len(answer.rows):
        said = listed(f"{r.phenomenon} {r.runs:,}" for r in answer.rows.itertuples())
        text = f"By rule, {count(int(answer.rows['runs'].sum()), 'run')} show: {said}. The plan of each says where to "
        section.claims.append(Claim(text + "look and with which analyses.", "described", answer.sql))
    section.sheets += list(sheet(source, "investigations", "Plan of investigation"))
    section.sheets += list(sheet(source, "investigation_steps", "Where to look"))
