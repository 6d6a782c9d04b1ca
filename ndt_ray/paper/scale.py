"""How much a paper rests on: architectures, data sets, seeds, trials, measurements, and what became of them."""

import json
from typing import Any

from ndt_ray.paper.latex import percent
from ndt_ray.paper.macros import Absent, Macros, Tex
from ndt_ray.report.source import Source
from ndt_ray.report.words import listed, span

OWN = "coalesce(t.control, 'none') = 'none'"
"""No control lane: those are counted by themselves."""

ASKED = {
    "Sweep": "name of the sweep",
    "Question": "the question that the sweep asks, from its file",
    "Waiting": "trials of the plan that have not begun",
    "Every": "updates from one measurement to the next, from the trials' specs",
}
TRIALS = {
    "Architectures": "architectures trained, by name",
    "Datasets": "data sets",
    "Cells": "cells: architecture, data set and fixed hyperparameters",
    "Trials": "trials that have begun, control lanes left out",
    "Finished": "of these, finished",
    "Failed": "of these, failed",
    "Diverged": "of these, diverged",
    "Running": "of these, neither finished nor failed nor diverged",
    "Fingerprints": "different numerical environments (engine, processor, versions) that trials ran in",
    "Controls": "control lanes: trials without training, with a lesion, and the like",
}
SPANS = {
    "Seeds": "trials of a cell, fewest to most",
    "Steps": "planned optimizer updates of a trial, fewest to most",
    "Probe": "stimuli of the probe on which layers are measured",
    "Parameters": "trained weights of an architecture, fewest to most",
}
DATA = {"DataNames": "names of the data sets, with whether they are complete"}
MEASURED = {
    "Measurements": "measurements: one a layer, view and step, control lanes left out",
    "MeasuredSteps": "measured steps of all trials together",
    "Series": "layer series: one a trial, layer and view",
}
LEARNED = {
    "AccuracyLowest": "mean held-out accuracy at the end, of the cell with the lowest",
    "AccuracyHighest": "mean held-out accuracy at the end, of the cell with the highest",
    "NeverTrained": "cells that cannot be told from chance",
}


def scale(source: Source, macros: Macros) -> None:
    """Counts that every sweep has."""
    _trials(source, macros)
    if source.has("measurements"):
        found = source.ask(
            "SELECT count(*) AS n, count(DISTINCT (m.trial_id, m.step)) AS steps, "
            "count(DISTINCT (m.trial_id, m.layer, m.view)) AS series FROM measurements m "
            f"JOIN trials t USING (sweep, trial_id) WHERE sweep = $sweep AND {OWN}"
        )
        n, steps, series = found.rows.iloc[0]
        macros.topic(MEASURED, {"Measurements": n, "MeasuredSteps": steps, "Series": series}, found.sql)
    else:
        macros.topic(MEASURED, None, absent=Absent(reason="no measurement is committed"))
    _learned(source, macros)


def _trials(source: Source, macros: Macros) -> None:
    own = source.trials[source.trials["control"].fillna("none") == "none"]
    distance = span(every(list(own["spec"])))
    values = {"Sweep": source.sweep, "Question": source.about, "Waiting": len(source.waiting)}
    macros.topic(ASKED, values | {"Every": _known(distance)}, without="not stated")
    found = source.ask(
        "SELECT count(DISTINCT t.model) AS architectures, count(DISTINCT t.data) AS data, count(DISTINCT t.cell) AS "
        "cells, count(*) AS trials, count(*) FILTER (WHERE o.status = 'finished') AS finished, "
        "count(*) FILTER (WHERE o.status = 'failed') AS failed, "
        "count(*) FILTER (WHERE o.status = 'diverged') AS diverged, "
        "count(*) FILTER (WHERE o.status IS NULL) AS running, count(DISTINCT t.fingerprint) AS fingerprints, "
        f"(SELECT count(*) FROM trials t WHERE sweep = $sweep AND NOT {OWN}) AS controls "
        "FROM trials t LEFT JOIN outcomes o ON o.sweep = t.sweep AND o.pack = t.pack AND o.trial_id = t.trial_id "
        f"WHERE t.sweep = $sweep AND {OWN}"
    )
    counts: dict[str, Any] = dict(zip(TRIALS, map(int, found.rows.iloc[0]), strict=True))
    macros.topic(TRIALS, counts | {"Fingerprints": counts["Fingerprints"] or None}, found.sql, without="not stated")
    found = source.ask(
        "SELECT min(n), max(n), min(steps), max(steps), min(probe), max(probe), min(weights), max(weights) FROM "
        "(SELECT count(*) OVER (PARTITION BY cell) AS n, steps, probe_size AS probe, n_parameters AS weights "
        f"FROM trials t WHERE sweep = $sweep AND {OWN})"
    )
    ends = list(found.rows.iloc[0])
    spans = {name: _known(span(ends[2 * i : 2 * i + 2])) for i, name in enumerate(SPANS)}
    macros.topic(SPANS, spans, found.sql, without="not stated")
    found = source.ask(
        "SELECT data || coalesce(' (' || data_completeness || ')', '') AS name FROM trials t WHERE sweep = $sweep "
        f"AND {OWN} GROUP BY ALL ORDER BY ALL"
    )
    macros.topic(DATA, {"DataNames": listed(found.rows["name"], most=len(found.rows))}, found.sql)


def _known(text: str) -> str | None:
    """What `span` says; None where it says that there is nothing."""
    return None if text == "–" else text


def every(specs: list[Any]) -> list[float]:
    """Distance of measurements in steps, of trials whose resolved spec says it."""
    found = []
    for text in specs:
        try:
            found.append(float(json.loads(text)["measure"]["every"]))
        except (TypeError, ValueError, KeyError):  # trials that were brought in from elsewhere
            continue
    return found


def _learned(source: Source, macros: Macros) -> None:
    found = source.ask(
        "SELECT min(a) AS low, max(a) AS high FROM (SELECT avg(o.final_accuracy) AS a FROM outcomes o "
        "JOIN trials t USING (sweep, trial_id) WHERE sweep = $sweep AND o.status = 'finished' "
        f"AND {OWN} GROUP BY t.cell)"
    )
    low, high = found.rows.iloc[0]
    ends = {"AccuracyLowest": _share(low), "AccuracyHighest": _share(high)}
    macros.topic({name: LEARNED[name] for name in ends}, ends, found.sql, without="no trial has finished")
    never = {"NeverTrained": LEARNED["NeverTrained"]}
    if source.has("cell_status", "excluded"):
        found = source.ask("SELECT count(*) FILTER (WHERE excluded) AS n FROM cell_status WHERE sweep = $sweep")
        macros.topic(never, {"NeverTrained": int(found.rows["n"].iloc[0])}, found.sql)
    else:
        macros.topic(never, None, absent=macros.absence("compare"))


def _share(value: Any) -> Tex | None:
    return None if value is None or value != value else Tex(percent(value), float(value))
