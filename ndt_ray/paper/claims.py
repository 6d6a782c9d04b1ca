"""What a sweep says of the founding claims: mechanisms at events, interventions, dynamics, and the architectures."""

import shlex
from typing import Any

from ndt_ray.architectures import family_of
from ndt_ray.paper import jumping
from ndt_ray.paper.latex import between, escape
from ndt_ray.paper.macros import Absent, Macros, Tex
from ndt_ray.paper.scale import OWN
from ndt_ray.paper.topics import Found, Topic, share
from ndt_ray.report.event_claims import by_cell, candidates_of, tests_of
from ndt_ray.report.order import ALPHA
from ndt_ray.report.source import Source
from ndt_ray.report.words import readable

FOUNDING = {
    "FoundingArchitectures": ("44", "architectures"),
    "FoundingMeasurements": ("17,600", "measurements"),
    "FoundingBottomUp": ("73 %", "share of cases in which layers converge bottom-up"),
    "FoundingFeatures": ("r = 0.68", "correlation of jumps with new kinds of features"),
    "FoundingCnnJumps": ("14", "jumps of a CNN, mean"),
    "FoundingTransformerJumps": ("3.1", "jumps of a transformer, mean"),
    "FoundingMlpJumps": ("0.5", "jumps of an MLP, mean"),
}
"""What the founding study's drafts say: text, and of what. None of it is a result."""


def founding(macros: Macros) -> None:
    for name, (text, what) in FOUNDING.items():
        printed = Tex(escape(text).replace(r" \%", r"\,\%"), text)
        macros.topic({name: f"founding claim, no result of this sweep: {what}"}, {name: printed})


FEATURES = {
    "Features": "correlation of the size of events with the kinds of features that are new after them, over trials",
    "FeaturesInterval": "95 % interval of it",
    "FeaturesTrials": "trials that it rests on",
    "FeaturesQ": "q of it, over all hypotheses of the sweep",
    "FeaturesVerdict": "what its table says of the claim, in words",
}
SELECTIVITY = {
    "Selectivity": "mean change of class selectivity over events, trials averaged first",
    "SelectivityInterval": "95 % interval of it",
    "SelectivityTrials": "trials that it rests on",
    "SelectivityQ": "q of it, over all hypotheses of the sweep",
    "SelectivityVerdict": "what its table says of the claim, in words",
}
COMPOSITION = {
    "Composition": "R² of compositional depth on number and size of events, on trials left out",
    "CompositionInterval": "95 % interval of it, where there is one",
    "CompositionTrials": "trials that it rests on",
    "CompositionQ": "q of it, over all hypotheses of the sweep",
    "CompositionVerdict": "what its table says of the claim, in words",
}
JUDGED = {
    "Filters": ("filter_differentiation", "filters become more orthogonal at events than in matched windows"),
    "Attention": ("attention_specialisation", "attention heads become more specific at events than in matched windows"),
    "Separation": ("class_separation", "classes draw together at events more than in matched windows"),
    "Specialisation": ("selectivity", "units become more selective at events than in matched windows"),
}
"""Hypotheses on cells, by the name that their macros begin with."""


def _hypothesis(name: str, names: dict[str, str], analysis: str) -> Topic:
    """The one row of a hypothesis about the sweep: estimate, interval, trials, q and verdict.

    `analysis` measures what it is about.
    """

    def make(source: Source) -> Found | Absent | None:
        if not source.has("hypotheses", "hypothesis", "estimate", "verdict", "q"):
            return None
        found = source.ask(
            "SELECT estimate, lo, hi, n, q, verdict FROM hypotheses WHERE sweep = $sweep "
            f"AND hypothesis = '{name}' AND scope = '*'"
        )
        if found.rows.empty:
            return Absent(reason="there is no event to judge it by")
        row = found.rows.iloc[0]
        if row["verdict"] == "no_data" and not source.ran(analysis):
            return Absent(f"ndt analyze {source.sweep} {analysis} hypotheses")
        limits = between(row["lo"], row["hi"])
        values = (row["estimate"], None if limits == "--" else Tex(limits), row["n"], row["q"])
        return dict(zip(names, (*values, readable(str(row["verdict"]))), strict=True)), found.sql

    return Topic(names, (analysis, "hypotheses"), make, without="too few trials have it")


def _by_cell(name: str, hypothesis: str, statement: str) -> Topic:
    """In how many cells a hypothesis is supported, of how many that could be judged."""
    names = {f"{name}Cells": f"cells that could be judged: {statement}", f"{name}Supported": "of these, supported"}

    def make(source: Source) -> Found | Absent | None:
        if not source.has("hypotheses", "hypothesis", "verdict"):
            return None
        found = source.ask(
            "SELECT count(*) FILTER (WHERE verdict <> 'no_data') AS n, "
            f"count(*) FILTER (WHERE verdict = 'supported') AS supported FROM hypotheses WHERE sweep = $sweep "
            f"AND hypothesis = '{hypothesis}'"
        )
        if not int(found.rows["n"].iloc[0]):
            if not source.ran("mechanisms"):
                return Absent(f"ndt analyze {source.sweep} mechanisms hypotheses")
            return Absent(reason="no cell has an event with this metric")
        return dict(zip(names, (int(v) for v in found.rows.iloc[0]), strict=True)), found.sql

    return Topic(names, ("mechanisms", "hypotheses"), make)


DISRUPTION = {
    "DropNear": "accuracy that a disruption at an event costs at once: mean over trials, in points of accuracy",
    "DropAway": "accuracy that the same costs in windows matched to these events",
    "DropTrials": "untouched trials with disruptions at an event and in a window matched to it",
    "DropLanes": "intervened lanes that were compared with their untouched trials",
    "DropVerdict": "whether a disruption costs more at an event, in words",
}


def disruption(source: Source) -> Found | Absent | None:
    """From `recovery` rows of any sweep of the store that intervenes in trials of this one: forks do."""
    if not source.snapshot.parts.get("recovery"):
        return _forked(source)
    ours = "(SELECT trial_id FROM trials WHERE sweep = $sweep)"
    found = source.ask(
        "SELECT count(*) AS trials, avg(near) AS near, avg(away) AS away, (SELECT count(DISTINCT trial_id) FROM "
        f"recovery WHERE untouched IN {ours} AND flag IS NULL) AS lanes FROM (SELECT untouched, avg(near) AS near, "
        "avg(away) AS away FROM (SELECT untouched, avg(impact) FILTER (WHERE role = 'event') AS near, avg(impact) "
        "FILTER (WHERE role = 'control' AND NOT near_event) AS away FROM (SELECT DISTINCT trial_id, untouched, kind, "
        "target, dose, event_layer, event_at, role, impact, near_event FROM recovery WHERE untouched IN "
        f"{ours} AND flag IS NULL AND lr_from IS NULL AND kind NOT IN ('lr', 'schedule')) GROUP BY untouched, kind, "
        "target, dose, event_layer, event_at) WHERE near IS NOT NULL AND away IS NOT NULL GROUP BY untouched)"
    )
    row = found.rows.iloc[0]
    if not int(row["lanes"]):
        return _forked(source)
    return {
        "DropNear": share(row["near"]),
        "DropAway": share(row["away"]),
        "DropTrials": int(row["trials"]),
        "DropLanes": int(row["lanes"]),
        "DropVerdict": _vulnerable(source, ours),
    }, found.sql


def _vulnerable(source: Source, ours: str) -> str | Absent:
    forks = f"(SELECT sweep FROM recovery WHERE untouched IN {ours})"
    if not source.snapshot.parts.get("hypotheses"):
        names = sorted(source.ask(f"SELECT DISTINCT sweep FROM {forks}").rows["sweep"])
        return Absent(f"ndt analyze {names[0]} hypotheses")
    rows = source.ask(
        f"SELECT verdict FROM hypotheses WHERE hypothesis = 'critical_periods' AND sweep IN {forks} "
        "AND verdict <> 'no_data'"
    ).rows
    if rows.empty:
        return "no cell could be judged"
    n = int((rows["verdict"] == "supported").sum())
    return f"supported in {n:,} of {len(rows):,} cells that could be judged"


def _forked(source: Source) -> Absent:
    """What would bring interventions about."""
    intervened = source.trials["control"].fillna("none").astype(str).str.contains("@").any()
    if intervened and not source.ran("recovery"):
        return Absent(f"ndt analyze {source.sweep} recovery")
    which = f" --cell {shlex.quote(source.cells[0])}" if len(source.cells) > 1 else ""
    return Absent(f"ndt fork {source.sweep} --name {source.sweep}-lesions{which} --events 2")


DYNAMICS = {
    "RunsCascade": "runs that rule classes as cascades of events",
    "RunsDiscrete": "runs with discrete events",
    "RunsSmooth": "runs that grow smoothly, without an event",
    "RunsFlat": "runs in which nothing moves",
    "RunsOther": "runs that did not train, or could not be judged",
    "InvestigateShare": "mean share of the measured steps that the plans of investigation look at",
    "InvestigateRecall": "mean share of events that they bracket",
    "InvestigateRecallUniform": "the same of as many evenly spaced steps",
}


def dynamics(source: Source) -> Found | None:
    if not source.has("investigations", "phenomenon", "mode", "share_of_steps", "recall"):
        return None
    found = source.ask(
        "SELECT count(*) FILTER (WHERE i.phenomenon = 'cascade') AS cascade, count(*) FILTER (WHERE i.phenomenon = "
        "'discrete') AS discrete, count(*) FILTER (WHERE i.phenomenon = 'smooth') AS smooth, count(*) FILTER (WHERE "
        "i.phenomenon = 'flat') AS flat, count(*) FILTER (WHERE i.phenomenon IN ('untrained', 'unjudged')) AS other, "
        "avg(i.share_of_steps) AS share, avg(i.recall) AS recall, avg(i.recall_uniform) AS uniform "
        "FROM investigations i JOIN trials t USING (sweep, trial_id) WHERE sweep = $sweep AND i.mode = 'default' "
        f"AND {OWN}"
    )
    row = found.rows.iloc[0]
    values: dict[str, Any] = dict(zip(DYNAMICS, (int(v) for v in row.iloc[:5]), strict=False))
    shares = {name: share(row[c]) for name, c in zip(list(DYNAMICS)[5:], ("share", "recall", "uniform"), strict=True)}
    return values | shares, found.sql


COMPARED = {
    "Comparisons": "comparisons of levels of an axis that could be tested",
    "ComparisonsSignificant": "of these, significant after their correction",
}
REPLICATED = {
    "AgreeSeries": "layers of cells tested for whether seeds agree on when events happen",
    "AgreeClear": "of these, with q <= .05",
    "AgreeEvents": "events that two or more seeds of a cell share",
}


def compared(source: Source) -> Found | None:
    if not source.has("comparisons", "significant", "p_adjusted"):
        return None
    found = source.ask(
        "SELECT count(p_adjusted) AS n, count(*) FILTER (WHERE significant AND p_adjusted IS NOT NULL) AS clear "
        "FROM comparisons WHERE sweep = $sweep"
    )
    return dict(zip(COMPARED, (int(v) for v in found.rows.iloc[0]), strict=True)), found.sql


def replicated(source: Source) -> Found | None:
    if not source.has("concordance", "q", "layer"):
        return None
    events = "0" if not source.has("replicated_events") else (
        "(SELECT count(*) FROM replicated_events WHERE sweep = $sweep AND layer <> '*')"
    )  # fmt: skip
    found = source.ask(
        f"SELECT count(q) AS n, count(*) FILTER (WHERE q <= {ALPHA}) AS clear, {events} AS events FROM concordance "
        "WHERE sweep = $sweep AND layer <> '*'"
    )
    return dict(zip(REPLICATED, (int(v) for v in found.rows.iloc[0]), strict=True)), found.sql


# -- architectures -------------------------------------------------------------------------------------------------

KINDS = {"cnn": "Cnn", "transformer": "Transformer", "mlp": "Mlp"}
"""Kinds of architecture that the founding study speaks of, by the name that their macros begin with."""


def kinds(source: Source) -> list[str]:
    """Those of `KINDS` that the sweep has, in their order."""
    have = {family_of(str(m)) for m in source.trials["model"]}
    return [kind for kind in KINDS if kind in have]


def _kind_jumps(kind: str) -> Topic:
    name = KINDS[kind]
    names = {
        f"{name}Trials": f"trials of a {kind} with counted jumps",
        f"{name}JumpsMean": "jumps a trial by the founding rule, all of its layers together",
        f"{name}JumpsNoise": "jumps a trial that it counts in AR(1) noise",
        f"{name}JumpsMost": "most jumps of a trial",
        f"{name}JumpsShare": "share of trials with a jump",
        f"{name}JumpsVerdict": "the count beside noise, in words",
    }

    def make(source: Source) -> Found | Absent | None:
        if kind not in kinds(source):
            return Absent(reason=f"no {kind} in this sweep")
        if not source.has("jump_counts"):
            return None
        found = jumping.counts(source)
        rows = jumping.spoken(source, found.rows)
        own = rows[rows["model"].map(lambda m: family_of(str(m)) == kind)]
        if own.empty:
            return None
        (one,) = jumping.statistics(own.assign(name=kind))
        total = one.total
        noise = None if total.ar1 is None else total.ar1.expected / total.trials
        values = (total.trials, one.mean, noise, one.most, share(one.with_jumps, total.trials), total.words)
        return dict(zip(names, values, strict=True)), found.sql

    return Topic(names, ("jumps",), make, "no series was judged")


def _kind_events(kind: str) -> Topic:
    name = KINDS[kind]
    names = {
        f"{name}Events": f"calibrated events in trials of a {kind}",
        f"{name}EventsFalse": "of these, expected to be false: those of the family, spread over its testable series",
    }

    def make(source: Source) -> Found | Absent | None:
        if kind not in kinds(source):
            return Absent(reason=f"no {kind} in this sweep")
        family = source.family
        if family is None:
            return None
        tests = tests_of(source, family)
        cells = by_cell(source, family, candidates_of(source, family).rows, tests.rows)
        own = cells[cells["name"].map(_models(source)) == kind] if len(cells) else cells
        values = (int(own["events"].sum()), float(own["null_events"].sum())) if len(own) else (0, 0.0)
        return dict(zip(names, values, strict=True)), tests.sql

    return Topic(names, ("series_tests", "events"), make)


def _models(source: Source) -> dict[str, str]:
    """Kind of architecture by the name of what seeds are averaged over."""
    pairs = zip(source.trials["name"], source.trials["model"], strict=True)
    return {str(name): family_of(str(model)) for name, model in pairs}


CLAIMS = (
    _hypothesis("magnitude_and_new_features", FEATURES, "features"),
    _hypothesis("selectivity_unmatched", SELECTIVITY, "units"),
    _hypothesis("composition", COMPOSITION, "composition"),
    *(_by_cell(name, hypothesis, statement) for name, (hypothesis, statement) in JUDGED.items()),
    Topic(DISRUPTION, ("recovery",), disruption),
    Topic(DYNAMICS, ("investigation",), dynamics, "no run was classed"),
    Topic(COMPARED, ("compare",), compared, "nothing to compare"),
    Topic(REPLICATED, ("concordance",), replicated, "no cell has several seeds"),
    *(topic(kind) for kind in KINDS for topic in (_kind_jumps, _kind_events)),
)
