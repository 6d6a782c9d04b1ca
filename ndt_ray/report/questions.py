"""Conclusions and open questions: what survives, what was asked without an answer, and which command asks the rest."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from ndt_ray.report.parts import Claim, Section, Sheet
from ndt_ray.report.source import Source
from ndt_ray.report.words import count, listed


@dataclass(frozen=True)
class Question:
    """One of the founding plan's open questions, with the analyses that answer it."""

    text: str
    analyses: tuple[str, ...]
    forks: bool = False
    """Whether answering it takes an intervention."""


QUESTIONS = (
    Question("What changes in the networks at events?", ("mechanisms", "hypotheses")),
    Question("Why do events stop - what comes with the late ones?", ("event_phases", "capabilities")),
    Question("What drives their timing: loss, gradients, learning rate?", ("timing",)),
    Question("Are events the same across seeds and architectures?", ("concordance", "compare")),
    Question("Can events be brought about, and what do they cost to disturb?", ("recovery",), True),
)


def questions(source: Source, sections: Sequence[Section]) -> Section:
    """The section, from what the others say."""
    section = Section("conclusions", "Conclusions and open questions", short="Conclusions")
    told = [(s, c) for s in sections for c in s.claims]
    if not told:
        return section
    by = {kind: [(s, c) for s, c in told if c.kind == kind] for kind in ("finding", "nothing")}
    if by["finding"]:
        where = list(dict.fromkeys(s.short or s.title for s, _ in by["finding"]))
        text = (
            f"{count(len(by['finding']), 'statement')} of this report survive{'s' if len(by['finding']) == 1 else ''} "
        )
        text += f"the correction that {'it names' if len(by['finding']) == 1 else 'they name'} ({listed(where, 12)})"
    else:
        text = "No statement of this report survives a correction"
    text += f"; {count(len(by['nothing']), 'question')} {'was' if len(by['nothing']) == 1 else 'were'} put to the data "
    section.claims.append(
        Claim(f"{text}and got no answer. Corrections are made within a family, not over the report.", "described")
    )
    rows = pd.DataFrame([_row(source, q, told) for q in QUESTIONS])
    section.sheets.append(Sheet("Open questions, and what answers them", rows))
    if by["finding"]:
        found = pd.DataFrame([{"section": s.title, "finding": c.text} for s, c in by["finding"]])
        section.sheets.append(Sheet("All findings", found, folded=True))
    return section


def _row(source: Source, question: Question, told: Sequence[tuple[Section, Claim]]) -> dict[str, object]:
    """What the claims on a question's tables say; the command where its analyses were not run."""
    tables = {t for a in question.analyses for t in source.analyses.get(a, set())}
    own = [(s, c) for s, c in told if any(f"FROM {t} " in c.sql or f"FROM {t})" in c.sql for t in tables)]
    kinds = [c.kind for _, c in own]
    run = [a for a in question.analyses if source.ran(a)]
    if "finding" in kinds:
        state = f"answered in part: {count(kinds.count('finding'), 'finding')}"
    elif "nothing" in kinds:
        state = "asked; nothing was found"
    else:
        state = "computed; no test of it stands in this report" if run else "not asked"
    where = list(dict.fromkeys(s.short or s.title for s, _ in own))
    left = [a for a in question.analyses if a not in run]
    command = f"ndt analyze {source.sweep} {' '.join(left)}" if left else "–"
    if question.forks and left:
        command = f"ndt fork {source.sweep} --name {source.sweep}-lesions --events 2"
    return {"question": question.text, "state": state, "see": ", ".join(where) or "–", "next": command}
