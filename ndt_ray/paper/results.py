"""What a sweep's analyses came to, as macros: every count beside what the same gives where there is nothing."""

from typing import Any

import pandas as pd

from ndt_ray.paper import jumping
from ndt_ray.paper.latex import between
from ndt_ray.paper.macros import Absent, Tex
from ndt_ray.paper.scale import OWN
from ndt_ray.paper.topics import Found, Topic, share
from ndt_ray.report.event_claims import candidates_of
from ndt_ray.report.order import ALPHA, measure_spoken
from ndt_ray.report.source import Source, quoted
from ndt_ray.report.words import readable

MEASURE_DEFAULT = "WHERE sweep = $sweep AND mode = 'default' AND measure = "

EVENTS = {
    "Events": "calibrated events: changes that survive in the declared family of series",
    "EventsFalse": "of these, expected to be false at that false discovery rate",
    "EventsAlpha": "false discovery rate over the family's series",
    "EventsSeries": "layer series of the family",
    "EventsTestable": "of these, series that could be tested",
    "EventsSelected": "of these, series selected",
    "EventsCandidates": "candidates before any correction",
    "EventsCandidatesNull": "candidates that the null gives",
    "EventsReach": "smallest q that one series could have had",
    "EventsMeasure": "measure of the family",
    "EventsDetector": "its detector",
    "EventsSurrogates": "what its surrogates are",
    "EventsVerdict": "whether anything survives, in words",
}


def events(source: Source) -> Found | None:
    family = source.family
    if family is None or source.families is None:
        return None
    return {
        "Events": family["n_events"],
        "EventsFalse": family["null_events"],
        "EventsAlpha": share(family["alpha"]),
        "EventsSeries": family["n_series"],
        "EventsTestable": family["n_calibrated"],
        "EventsSelected": family["n_selected"],
        "EventsCandidates": family["n_candidates"],
        "EventsCandidatesNull": family["null_candidates"],
        "EventsReach": family["q_attainable"],
        "EventsMeasure": readable(str(family["measure"])),
        "EventsDetector": readable(str(family["detector"])),
        "EventsSurrogates": readable(str(family["null"])),
        "EventsVerdict": _survives(family),
    }, source.families.sql


FOUND = {
    "EventsTrials": "trials with an event of the family",
    "EventsUnconfirmed": "events whose size could not be measured on the confirm probe",
}


def found_events(source: Source) -> Found | None:
    if source.family is None:
        return None
    answer = candidates_of(source, source.family)
    own = answer.rows[answer.rows["significant"].astype(bool)]
    values = (own["trial_id"].nunique(), int(own["confirm_size"].isna().sum()))
    return dict(zip(FOUND, values, strict=True)), answer.sql


def _survives(family: dict[str, Any]) -> str:
    reach = family["q_attainable"]
    if not int(family["n_calibrated"]):
        return "no series could be tested"
    if reach is None or not float(reach) <= float(family["alpha"]):
        return "no event could have survived, whatever the networks did"
    return "events survive the correction" if int(family["n_events"]) else "no event survives the correction"


JUMPS = {
    "Jumps": "jumps that the founding rule counts",
    "JumpsWhite": "jumps that it counts in white noise of the same length and spread",
    "JumpsWhiteInterval": "95 % interval of that count",
    "JumpsNoise": "jumps that it counts in AR(1) noise of the same dependence",
    "JumpsNoiseInterval": "95 % interval of that count",
    "JumpsSeries": "layer series that it judged",
    "JumpsSeriesAbove": "of these, series whose own count is as rare in AR(1) noise as p <= .05",
    "JumpsRule": "the rule",
    "JumpsMeasure": "the measure that it judged",
    "JumpsVerdict": "the count beside noise, in words",
}


def jumps(source: Source) -> Found | None:
    if not source.has("jump_counts"):
        return None
    found = jumping.counts(source)
    rows = jumping.spoken(source, found.rows)
    if rows.empty:
        return None
    (one,) = jumping.statistics(rows.assign(name="all"))
    total = one.total
    return {
        "Jumps": total.observed,
        "JumpsWhite": total.white.expected if total.white else None,
        "JumpsWhiteInterval": Tex(between(total.white.low, total.white.high)) if total.white else None,
        "JumpsNoise": total.ar1.expected if total.ar1 else None,
        "JumpsNoiseInterval": Tex(between(total.ar1.low, total.ar1.high)) if total.ar1 else None,
        "JumpsSeries": total.series,
        "JumpsSeriesAbove": total.series_above_ar1 if total.ar1 else None,
        "JumpsRule": readable(total.detector),
        "JumpsMeasure": readable(total.measure),
        "JumpsVerdict": total.words,
    }, found.sql


SETTLING = {
    "BottomUp": "share of trials whose layers settle bottom-up: Spearman rho of depth and settling above .6",
    "BottomUpNull": "the same share expected of layers in random order",
    "BottomUpTrials": "trials with rho above .6",
    "OrderTrials": "trials with an order of settling",
    "OrderCells": "cells whose order could be tested over their seeds",
    "BottomUpCells": "of these, cells with a bottom-up order (mean rho > 0, q <= .05)",
    "TopDownCells": "of these, cells with a top-down order (mean rho < 0, q <= .05)",
    "OrderSmallestP": "smallest p of a cell: random orders within every trial",
    "OrderSmallestQ": "the same after Benjamini-Hochberg over the cells",
    "OrderMeasure": "measure that settles",
    "OrderVerdict": "whether an order is shown, in words",
}


def settling(source: Source) -> Found | None:
    if not source.has("convergence_cells", "bottom_up", "null_bottom_up", "excluded"):
        return None
    measure = measure_spoken(source, "convergence_cells", "default")
    found = source.ask(
        "SELECT coalesce(sum(n_trials), 0) AS trials, coalesce(sum(round(bottom_up * n_trials)), 0) AS up, "
        "sum(null_bottom_up * n_trials) AS expected, count(q) AS tested, "
        f"count(*) FILTER (WHERE q <= {ALPHA} AND mean_rho > 0) AS rising, "
        f"count(*) FILTER (WHERE q <= {ALPHA} AND mean_rho < 0) AS falling, min(p) AS p, min(q) AS q "
        f"FROM convergence_cells {MEASURE_DEFAULT}{quoted(measure)} AND NOT excluded"
    )
    row = found.rows.iloc[0]
    trials, tested, rising, falling = (int(row[c]) for c in ("trials", "tested", "rising", "falling"))
    return {
        "BottomUp": share(row["up"], trials),
        "BottomUpNull": share(row["expected"], trials),
        "BottomUpTrials": int(row["up"]),
        "OrderTrials": trials,
        "OrderCells": tested,
        "BottomUpCells": rising,
        "TopDownCells": falling,
        "OrderSmallestP": row["p"],
        "OrderSmallestQ": row["q"],
        "OrderMeasure": readable(measure),
        "OrderVerdict": _ordered(tested, rising, falling),
    }, found.sql


def _ordered(tested: int, rising: int, falling: int) -> str:
    if not tested:
        return "no cell could be tested"
    if rising and falling:
        return "some cells settle bottom-up and others top-down"
    if rising or falling:
        return f"a {'bottom-up' if rising else 'top-down'} order is shown in some cells and the other one in none"
    return "no order of settling is shown"


BETWEEN = {
    "OrderArchitectures": "architectures whose orders of settling were compared",
    "OrderArchitecturesP": "p of the comparison, architectures permuted within seed and data set",
    "OrderArchitecturesReach": "smallest p that it could have had",
}


def between_architectures(source: Source) -> Found | None:
    if not source.has("convergence_architectures", "factor", "p", "p_attainable"):
        return None
    measure = measure_spoken(source, "convergence_architectures", "default")
    found = source.ask(
        f"SELECT n_groups, p, p_attainable FROM convergence_architectures {MEASURE_DEFAULT}{quoted(measure)} "
        "AND factor = 'model'"
    )
    return _one(found.rows, BETWEEN, found.sql)


EARLY = {
    "EarlyEvents": "events in the first tenth of the run",
    "EarlyEventsNull": "the same expected where there is nothing",
    "EarlyLossEvents": "of the early events, those with a loss before and after",
    "EarlyLossFell": "share of these over which the loss fell",
    "EarlyLossFellNull": "the same share of windows of the same length nearby",
    "EarlyLossChange": "mean change of the loss over them, in nats",
    "EarlyLossExcess": "the same beyond windows of the same length nearby, in nats",
    "LateEvents": "events in the second half of the run",
    "LateEventsNull": "the same expected where there is nothing",
}


def early(source: Source) -> Found | None:
    if not source.has("event_phases"):
        return None
    found = source.ask(
        "SELECT phase_bin, n, null_n, n_loss, loss_improving, loss_improving_expected, loss_change, loss_excess "
        "FROM event_phases WHERE sweep = $sweep AND mode = 'default' AND grouping = 'all' ORDER BY phase_bin"
    )
    if found.rows.empty:
        return None
    rows = found.rows.set_index("phase_bin")
    first, last = rows.loc["early"], rows.loc["late"]
    values: dict[str, Any] = {"EarlyEvents": first["n"], "EarlyEventsNull": first["null_n"]}
    values |= {"LateEvents": last["n"], "LateEventsNull": last["null_n"]}
    loss: dict[str, Any] = {
        "EarlyLossEvents": first["n_loss"],
        "EarlyLossFell": share(first["loss_improving"]),
        "EarlyLossFellNull": share(first["loss_improving_expected"]) if first["n_loss"] else None,
        "EarlyLossChange": first["loss_change"],
        "EarlyLossExcess": first["loss_excess"],
    }
    if not source.ran("event_windows"):  # phases are counted without them, the loss is not
        loss = dict.fromkeys(loss, Absent(f"ndt analyze {source.sweep} event_windows event_phases"))
    return values | loss, found.sql


COUPLING = {
    "LossCells": "cells tested for whether layers change when the loss does",
    "LossCoupledCells": "of these, cells with q <= .05",
    "LossCorrelation": "median over cells of the correlation of a layer's changes with those of its own loss",
    "LossCorrelationNull": "the same with the loss of other seeds: what the common course of training explains",
    "LossSmallestQ": "smallest q of a cell, partners exchanged between seeds",
    "LayerCells": "cells tested for whether layers change together",
    "LayerCoupledCells": "of these, cells with q <= .05",
    "LayerCorrelation": "median over cells of the correlation of changes of two layers of a trial",
    "LayerCorrelationNull": "the same with layers of other seeds",
    "LayerSmallestQ": "smallest q of a cell, partners exchanged between seeds",
}


def coupling(source: Source) -> Found | None:
    if not source.has("coordination_cells", "what", "statistic", "across", "q"):
        return None
    measure = measure_spoken(source, "coordination_cells")
    found = source.ask(
        f"SELECT what, count(q) AS tested, count(*) FILTER (WHERE q <= {ALPHA}) AS clear, median(statistic) AS r, "
        "median(across) AS across, min(q) AS q FROM coordination_cells "
        f"WHERE sweep = $sweep AND measure = {quoted(measure)} GROUP BY 1 ORDER BY 1"
    )
    rows = found.rows.set_index("what")
    values: dict[str, Any] = dict.fromkeys(COUPLING)
    for what, name in (("loss", "Loss"), ("layers", "Layer")):
        if what in rows.index:
            row = rows.loc[what]
            values |= {f"{name}Cells": int(row["tested"]), f"{name}CoupledCells": int(row["clear"])}
            values |= {f"{name}Correlation": row["r"], f"{name}CorrelationNull": row["across"]}
            values[f"{name}SmallestQ"] = row["q"]
    return values, found.sql


CRITICAL = {
    "Periods": "critical periods: windows in which a layer moves faster than its slow-down explains",
    "PeriodsNull": "the same on surrogates with that slow-down",
    "PeriodsSeries": "layer series that could be tested for them",
    "PeriodsSelected": "of these, series with q <= .05 over the layers of their trial",
}


def critical(source: Source) -> Found | None:
    if not source.has("critical_series", "n_periods", "null_periods", "p", "q"):
        return None
    measure = measure_spoken(source, "critical_series", "default")
    found = source.ask(
        "SELECT sum(c.n_periods) AS n, sum(c.null_periods) AS expected, count(c.p) AS tested, "
        f"count(*) FILTER (WHERE c.q <= {ALPHA}) AS clear FROM critical_series c JOIN trials t USING (sweep, trial_id) "
        f"{MEASURE_DEFAULT}{quoted(measure)} AND {OWN}"
    )
    return _one(found.rows, CRITICAL, found.sql)


GROWTH = {
    "GrowthRuns": "runs to whose mean dimensionality logistic growth was fitted",
    "GrowthMean": "mean R² of these fits",
    "GrowthGood": "fits with R² above .8",
    "GrowthGoodShare": "the same as a share of the runs",
    "GrowthMeasure": "measure that was fitted",
}


def growth(source: Source) -> Found | None:
    if not source.has("growth", "r2", "mode", "measure"):
        return None
    measure = measure_spoken(source, "growth", "default")
    found = source.ask(
        "SELECT count(*) AS runs, avg(g.r2) AS mean, count(*) FILTER (WHERE g.r2 > .8) AS good FROM growth g "
        f"JOIN trials t USING (sweep, trial_id) {MEASURE_DEFAULT}{quoted(measure)} AND {OWN}"
    )
    runs, mean, good = found.rows.iloc[0]
    values: dict[str, Any] = {"GrowthRuns": int(runs), "GrowthMean": mean, "GrowthGood": int(good)}
    return values | {"GrowthGoodShare": share(good, runs), "GrowthMeasure": readable(measure)}, found.sql


PUBLISHED = {
    "GrowthPublished": "mean R² of the fits as published",
    "GrowthPublishedGood": "published fits with R² above .8",
    "GrowthPublishedShare": "the same as a share of the published runs",
}


def published_growth(source: Source) -> Found | Absent | None:
    """Of imported sweeps, whose tables have the mode `original` too."""
    if source.lanes:
        return Absent(reason="trained here, not published")
    if not source.has("growth", "r2", "mode"):
        return None
    found = source.ask(
        "SELECT avg(r2) AS mean, count(*) FILTER (WHERE r2 > .8) AS good, count(*) AS runs FROM growth "
        "WHERE sweep = $sweep AND mode = 'original'"
    )
    mean, good, runs = found.rows.iloc[0]
    if not int(runs):
        return None
    return dict(zip(PUBLISHED, (mean, int(good), share(good, runs)), strict=True)), found.sql


def _one(rows: pd.DataFrame, names: dict[str, str], sql: str) -> Found | None:
    """The first row, its columns in the order of the names."""
    return (dict(zip(names, rows.iloc[0], strict=True)), sql) if len(rows) else None


RESULTS = (
    Topic(EVENTS, ("series_tests", "events"), events, "no series was judged"),
    Topic(FOUND, ("series_tests", "events"), found_events, "no series was judged"),
    Topic(JUMPS, ("jumps",), jumps, "no series was judged", "series are constant or too short"),
    Topic(SETTLING, ("convergence", "convergence_tests"), settling, "no layer settles", "no trial has an order"),
    Topic(BETWEEN, ("convergence", "convergence_tests"), between_architectures, "nothing to compare"),
    Topic(EARLY, ("event_windows", "event_phases"), early, "no series was judged", "no such event"),
    Topic(COUPLING, ("critical_periods", "coordination_tests"), coupling, "no cell could be tested", "no cell tested"),
    Topic(CRITICAL, ("critical_periods",), critical, "no series was judged", "no series is long enough"),
    Topic(GROWTH, ("growth",), growth, "nothing could be fitted", "no fit"),
    Topic(PUBLISHED, ("growth",), published_growth, "nothing as published"),
)
