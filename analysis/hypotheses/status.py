"""One table of verdicts: every claim that the sweep's analyses judge, with its status and how sure it is.

The founding study ended in such a table, written by hand (attention specialisation "partially supported, medium", …).
Here both words are rules over the rows that carry the numbers; which rows these were stands beside them.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.architectures import FAMILIES
from ndt_ray.store.schema import Column, Table

FEWEST = 4
"""Trials below which a claim is not judged."""

STATUS = Table(
    "hypothesis_status",
    "Every claim with its status and confidence, from whichever table judges it.",
    (
        Column("hypothesis", "string", "its name"),
        Column("source", "string", "table that judges it"),
        Column("status", "string", "supported, partially_supported, not_supported, undecided or no_data"),
        Column("confidence", "string", "very_high, high, medium or low; see `rule`"),
        Column("n_judged", "int32", "scopes (cells, or the sweep) with a verdict"),
        Column("n_for", "int32", "of these, supported"),
        Column("n_against", "int32", "of these, contradicted or not supported"),
        Column("n_trials", "int32", "most trials that one of these verdicts rests on"),
        Column("q", "float64", "largest q (p where there is no q) among those that agree with the status; null: none"),
        Column("rule", "string", "how status and confidence follow"),
        Column("why", "string", "counts, as a sentence"),
    ),
    ("hypothesis", "source"),
)
FOR = ("supported",)
AGAINST = ("contradicted", "not_supported", "not_shown", "both_discrete", "weaker_than_predicted")
SILENT = ("no_data", "no_events", "no_checkpoints")
RULE = (
    "supported: all judged scopes; partially_supported: some; not_supported: none, and one against; else undecided."
    " very_high: q <= .001 and 12 trials; high: q <= .01 and 6; medium: q <= .05 and 4, or without a test 6 trials that"
    " agree; low: else"
)


@analysis(
    name="hypothesis_status",
    reads=(
        "trials",
        "hypotheses",
        "phase_verdicts",
        "architecture_claims",
        "discreteness_tests",
        "taxonomy_phase_tests",
        "late_change_tests",
    ),
    writes=(STATUS,),
    per="sweep",
)
def hypothesis_status(data: AnalysisInput) -> dict[str, pd.DataFrame]:
    """Status and confidence of every claim that an analysis of the sweep judges, in one place."""
    rows = [
        {"hypothesis": name, "source": source} | combined(own)
        for source, name, own in _judged(data)
    ]  # fmt: skip
    return {STATUS.name: pd.DataFrame(rows)}


def _judged(data: AnalysisInput) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """(table, claim, rows with verdict, n and q) of every claim."""
    for source, name, scopes, n, q in (
        ("hypotheses", "hypothesis", None, "n", "q"),
        ("phase_verdicts", "claim", ("grouping", "all"), "n_trials", "p"),
        ("architecture_claims", "claim", ("scope", "*"), "n_trials", "q"),
        ("discreteness_tests", None, ("scope", "*"), "n_trials", "p"),
        ("taxonomy_phase_tests", "claim", None, "n_trials", "p"),
        ("late_change_tests", "claim", ("scope", "*"), "n_trials", None),
    ):
        rows = data.frame(source)
        if rows.empty:
            continue
        own = rows if scopes is None else rows[rows[scopes[0]] == scopes[1]]
        if "mode" in own:
            own = own[own["mode"] == "default"]
        if source == "hypotheses":  # a family's own trials are among all: they ask whether the same holds there
            own = own[~own["scope"].isin(FAMILIES)]
        own = own[own["verdict"].notna()]
        plain = pd.DataFrame({"verdict": own["verdict"], "n": own[n], "q": own[q] if q in own else np.nan})
        names = pd.Series("discrete_capabilities", index=own.index) if name is None else own[name]
        for claim, part in plain.groupby(names, sort=True):
            yield source, str(claim), part


def combined(rows: pd.DataFrame) -> dict[str, Any]:
    """Status, confidence and their reasons from the verdicts of one claim (columns verdict, n, q)."""
    judged = rows[~rows["verdict"].isin(SILENT)]
    supports, opposes = judged["verdict"].isin(FOR), judged["verdict"].isin(AGAINST)
    if not len(judged):
        status = "no_data"
    elif supports.all():
        status = "supported"
    elif supports.any():
        status = "partially_supported"
    else:
        status = "not_supported" if opposes.any() else "undecided"
    agree = judged[supports] if supports.any() else judged[opposes]
    n = int(judged["n"].max()) if len(judged) else 0
    q = agree["q"].astype(float).dropna()
    worst = float(q.max()) if len(q) and len(q) == len(agree) else math.nan
    counts = {"n_judged": len(judged), "n_for": int(supports.sum()), "n_against": int(opposes.sum()), "n_trials": n}
    said = ", ".join(f"{count} {name}" for name, count in rows["verdict"].value_counts().sort_index().items())
    confidence = _confidence(status, worst, n, untested=not len(q))
    return {"status": status, "confidence": confidence, **counts, "q": worst, "rule": RULE,
            "why": f"{said}; up to {n} trials"}  # fmt: skip


def _confidence(status: str, q: float, n: int, untested: bool) -> str:
    if status in ("no_data", "undecided") or n < FEWEST:
        return "low"
    if untested:
        return "medium" if n >= 6 else "low"
    for word, level, fewest in (("very_high", 0.001, 12), ("high", 0.01, 6), ("medium", 0.05, FEWEST)):
        if q <= level and n >= fewest:
            return word
    return "low"
