"""What changes in the networks while layers leave their initialisation."""

from collections.abc import Iterator

import pandas as pd

from ndt_ray.report.order import ALPHA, sheet
from ndt_ray.report.parts import Claim, Section
from ndt_ray.report.source import Answer, Source
from ndt_ray.report.words import count, level, listed, number, readable, share

SPOKEN = 5
"""Findings that a sentence names."""
COLUMNS = ("cell", "layer", "metric", "initial", "after", "final", "share", "time_share", "n_trials", "p", "q", "flag")


def escaping(source: Source, section: Section) -> Section:
    """The section on the initial transient, with what the table `escape` says, where there is one."""
    if not source.has("escape", *COLUMNS):
        return section
    order = "q NULLS LAST, abs(effect) DESC NULLS LAST, cell, layer, metric"
    answer = source.ask(f"SELECT * FROM escape WHERE sweep = $sweep ORDER BY {order}")
    section.claims += list(_claims(source, answer))
    section.sheets += list(sheet(source, "escape", "What changes while layers leave their initialisation"))
    return section


def _claims(source: Source, answer: Answer) -> Iterator[Claim]:
    tested = answer.rows[answer.rows["p"].notna()]
    if tested.empty:
        reasons = listed(f"{readable(str(flag))} ({n})" for flag, n in answer.rows["flag"].value_counts().items())
        text = f"What changes while layers leave their initialisation could not be tested: {reasons}."
        yield Claim(text, "caution", answer.sql)
        return
    found = tested[tested["q"] <= ALPHA]
    what = f"{count(len(tested), 'metric')} of layers and networks"
    if found.empty:
        text = "No metric changes otherwise than an even course would while layers leave their initialisation:"
        text += f" of {what} the smallest q is {number(tested['q'].min())} (Benjamini-Hochberg)."
        yield Claim(text, "nothing", answer.sql)
        return
    named = listed((_spoken(source, row) for _, row in found.head(SPOKEN).iterrows()), most=SPOKEN)
    more = f", and {len(found) - SPOKEN:,} more" if len(found) > SPOKEN else ""
    text = f"While layers leave their initialisation, {len(found):,} of {what} change otherwise than an even course"
    text += f" would (q ≤ {ALPHA}, Benjamini-Hochberg over all of them): {named}{more}. What changes early need not be"
    yield Claim(text + " what lets the network learn.", "finding", answer.sql)


def _spoken(source: Source, row: "pd.Series[object]") -> str:
    name = readable(str(row["metric"])) + ("" if row["layer"] == "*" else f" of {row['layer']}")
    if 0 <= float(row["share"]) <= 1:
        said = f"{share(float(row['share']), 1.0)} of the change of {name}"
    else:  # it comes back, or goes on the other way: a share of the whole change says little
        said = (
            f"{name} goes from {number(row['initial'])} to {number(row['after'])} ({number(row['final'])} at the end)"
        )
    time = share(float(row["time_share"]), 1.0)
    return f"{said} by {time} of the run ({source.label(row['cell'])}, q {level(row['q'])})"
