"""How much a paper rests on: architectures, data sets, seeds, trials, measurements, and what became of them."""

import json
from typing import Any

from ndt_ray.paper.latex import percent
from ndt_ray.paper.macros import Absent, Macros, Tex
from ndt_ray.report.source import Source
from ndt_ray.report.words import listed, span

OWN = "coalesce(t.control, 'none') = 'none'"
"""No control lane: those are counted by themselves."""

TRIALS = {
    "Sweep": "name of the sweep",
    "Question": "the question that the sweep asks",
    "Architectures": "architectures trained, by name",
    "Datasets": "data sets",
    "DataNames": "their names, with whether they are complete",
    "Cells": "cells: architecture, data set and fixed hyperparameters",
    "Trials": "trials that have begun, control lanes left out",
    "Finished": "of these, finished",
    "Failed": "of these, failed",
    "Diverged": "of these, diverged",
    "Running": "of these, neither finished nor failed nor diverged",
    "Waiting": "trials of the plan that have not begun",
    "Controls": "control lanes: trials without training, with a lesion, and the like",
    "Seeds": "trials of a cell, fewest to most",
    "Steps": "planned optimizer updates of a trial, fewest to most",
    "Every": "updates from one measurement to the next",
    "Probe": "stimuli of the probe on which layers are measured",
    "Parameters": "trained weights of an architecture, fewest to most",
    "Fingerprints": "different numerical environments (engine, processor, versions) that trials ran in",
}
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
    found = source.ask(
        "SELECT count(DISTINCT t.model) AS models, count(DISTINCT t.data) AS data, count(DISTINCT t.cell) AS cells, "
        "count(*) AS trials, count(*) FILTER (WHERE o.status = 'finished') AS finished, "
        "count(*) FILTER (WHERE o.status = 'failed') AS failed, "
        "count(*) FILTER (WHERE o.status = 'diverged') AS diverged, "
        "count(*) FILTER (WHERE o.status IS NULL) AS running, count(DISTINCT t.fingerprint) AS fingerprints, "
        f"(SELECT count(*) FROM trials t WHERE sweep = $sweep AND NOT {OWN}) AS controls "
        "FROM trials t LEFT JOIN outcomes o ON o.sweep = t.sweep AND o.pack = t.pack AND o.trial_id = t.trial_id "
        f"WHERE t.sweep = $sweep AND {OWN}"
    )
    own = source.trials[source.trials["control"].fillna("none") == "none"]
    row: dict[str, Any] = {str(k): int(v) for k, v in found.rows.iloc[0].items()}
    data = own[["data", "data_completeness"]].drop_duplicates().itertuples(index=False)
    named = [f"{d} ({c})" if isinstance(c, str) else str(d) for d, c in data]
    values = {
        "Sweep": source.sweep,
        "Question": source.about,
        "Architectures": row["models"],
        "Datasets": row["data"],
        "DataNames": listed(named, most=len(named)),
        "Cells": row["cells"],
        "Trials": row["trials"],
        "Finished": row["finished"],
        "Failed": row["failed"],
        "Diverged": row["diverged"],
        "Running": row["running"],
        "Waiting": len(source.waiting),
        "Controls": row["controls"],
        "Seeds": _span(own.groupby("cell")["trial_id"].nunique()),
        "Steps": _span(own["steps"]),
        "Every": _span(every(list(own["spec"]))),
        "Probe": _span(own["probe_size"]),
        "Parameters": _span(own["n_parameters"]),
        "Fingerprints": row["fingerprints"] or None,
    }
    macros.topic(TRIALS, values, found.sql)


def every(specs: list[Any]) -> list[float]:
    """Distance of measurements in steps, of trials whose resolved spec says it."""
    found = []
    for text in specs:
        try:
            found.append(float(json.loads(text)["measure"]["every"]))
        except (TypeError, ValueError, KeyError):  # trials that were brought in from elsewhere
            continue
    return found


def _span(values: Any) -> str | None:
    text = span(list(values))
    return None if text == "–" else text


def _learned(source: Source, macros: Macros) -> None:
    found = source.ask(
        "SELECT min(a) AS low, max(a) AS high FROM (SELECT avg(o.final_accuracy) AS a FROM outcomes o "
        "JOIN trials t USING (sweep, trial_id) WHERE sweep = $sweep AND o.status = 'finished' "
        f"AND {OWN} GROUP BY t.cell)"
    )
    low, high = found.rows.iloc[0]
    ends = {"AccuracyLowest": _share(low), "AccuracyHighest": _share(high)}
    macros.topic({name: LEARNED[name] for name in ends}, ends, found.sql)
    never = {"NeverTrained": LEARNED["NeverTrained"]}
    if source.has("cell_status", "excluded"):
        found = source.ask("SELECT count(*) FILTER (WHERE excluded) AS n FROM cell_status WHERE sweep = $sweep")
        macros.topic(never, {"NeverTrained": int(found.rows["n"].iloc[0])}, found.sql)
    else:
        macros.topic(never, None, absent=macros.absence("compare"))


def _share(value: Any) -> Tex | None:
    return None if value is None or value != value else Tex(percent(value), float(value))
