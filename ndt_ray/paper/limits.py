"""The limitations of a paper: sentences that stand in it only where they are true of the sweep."""

from collections.abc import Iterator
from typing import Any

from ndt_ray.paper.macros import PREFIX, Macros
from ndt_ray.paper.scale import OWN
from ndt_ray.report.event_claims import control_of
from ndt_ray.report.source import MINIMUM, Source
from ndt_ray.report.words import listed

LIMITS = {
    "SeedsFewest": "trials of the cell that has fewest",
    "SmallestSignP": "smallest two-sided p that sign flips of so many seeds allow",
    "EventsUntestable": "series of the family that could not be tested",
    "PartialData": "data sets that are not complete, with what they are",
    "FeatureImages": "units whose preferred image was made and named",
    "NotComputed": "numbers of this text that were not computed",
}


def limits(source: Source, macros: Macros) -> None:
    """Macros that only the limitations use; made last, for one of them counts the others."""
    fewest = source.ask(
        f"SELECT min(n) AS n FROM (SELECT count(*) AS n FROM trials t WHERE sweep = $sweep AND {OWN} GROUP BY cell)"
    )
    n = int(fewest.rows["n"].iloc[0])
    _put(macros, {"SeedsFewest": n, "SmallestSignP": 2.0 ** (1 - n)}, fewest.sql)
    data = source.ask(
        "SELECT DISTINCT data, data_completeness AS how FROM trials t WHERE sweep = $sweep "
        f"AND data_completeness IN ('subset', 'surrogate') AND {OWN} ORDER BY ALL"
    )
    partial = [f"{row.data} ({row.how})" for row in data.rows.itertuples()]
    _put(macros, {"PartialData": listed(partial, len(partial))}, data.sql)
    family, families = source.family, source.families
    if family is None or families is None:
        _put(macros, {"EventsUntestable": macros.absence("series_tests", "events")})
    else:
        _put(macros, {"EventsUntestable": int(family["n_series"]) - int(family["n_calibrated"])}, families.sql)
    if source.has("features", "flag"):
        images = source.ask("SELECT count(*) FILTER (WHERE flag IS NULL) AS n FROM features WHERE sweep = $sweep")
        _put(macros, {"FeatureImages": int(images.rows["n"].iloc[0])}, images.sql)
    else:
        _put(macros, {"FeatureImages": macros.absence("features", otherwise="no unit has one")})
    missing = sum(len(names) for names in macros.missing.values())
    _put(macros, {"NotComputed": missing})


def _put(macros: Macros, values: dict[str, Any], sql: str = "") -> None:
    macros.topic({name: LIMITS[name] for name in values}, values, sql)


def m(name: str) -> str:
    return rf"\{PREFIX}{name}{{}}"


def limitations(source: Source, macros: Macros) -> str:
    """`limitations.tex`: an itemised list."""
    items = [*_meaning(source, macros), *_events(source, macros), *_scale(source, macros)]
    head = "% Written by `ndt paper`: run it again for new numbers, and change nothing here."
    return "\n".join([head, r"\begin{itemize}", *(rf"\item {text}" for text in items), r"\end{itemize}", ""])


def _meaning(source: Source, macros: Macros) -> Iterator[str]:
    """What the measurements can mean at all."""
    yield (
        "Events and jumps are changes of a metric of activations. They say when and in which layer something changed, "
        "not what it means and not why."
    )
    if macros.value("DropLanes"):
        yield (
            f"Interventions were made in {m('DropLanes')} lanes, each beside its untouched trial; whether a disruption "
            f"costs more at an event is {m('DropVerdict')}. All else in this text is correlational, not causal."
        )
    else:
        yield (
            "No intervention was made: everything here is correlational, not causal. Lesions at events would be one: "
            f"{m('DropLanes')}."
        )
    if macros.value("FeatureImages"):
        yield (
            f"Features were visualised for {m('FeatureImages')} units (a unit at a checkpoint); the words for them "
            "follow a rule on the images, and nobody has looked at each."
        )
    else:
        yield f"No feature was visualised: {m('FeatureImages')}. What units compute is not known from this sweep."


def _events(source: Source, macros: Macros) -> Iterator[str]:
    family = source.family
    if family is None:
        yield (
            "No event was calibrated: the only jumps here are those of a threshold rule, which flags them in pure "
            f"noise too. {m('Events')}."
        )
        return
    if macros.value("EventsUntestable"):
        yield (
            f"{m('EventsUntestable')} of {m('EventsSeries')} series could not be tested for events: they are "
            "uncalibrated, and no claim covers them."
        )
    if not bool(family["primary"]):
        yield "No family of series was declared primary before the data were seen."
    if macros.value("EventsUnconfirmed"):
        yield (
            f"{m('EventsUnconfirmed')} of {m('Events')} events have no size on the confirm probe: theirs is of the "
            "probe on which they were found, and too large on average."
        )
    families = source.families
    kinds = {control_of(row) for row in families.rows.to_dict("records")} if families else set()
    if "lr0" not in kinds:
        yield "No control lane without training was searched, so false events of untrained networks were not counted."


def _scale(source: Source, macros: Macros) -> Iterator[str]:
    """How far it may reach."""
    yield (
        f"The sweep has {m('Architectures')} architectures and {m('Datasets')} data sets ({m('DataNames')}); nothing "
        "here extends to others."
    )
    if macros.value("PartialData") != "none":
        yield (
            f"Some data are a subset of what was published or stand in for it: {m('PartialData')}. No claim extends to "
            "the published sets."
        )
    if macros.value("SeedsFewest") < MINIMUM:
        yield (
            f"A cell has as few as {m('SeedsFewest')} trials: what is said of it describes these trials, and no more."
        )
    else:
        yield (
            f"The cell with fewest trials has {m('SeedsFewest')}; tests that flip their signs cannot give a p below "
            f"{m('SmallestSignP')}."
        )
    lost = [name for name in ("Failed", "Diverged") if macros.value(name)]
    if lost:
        said = " and ".join(f"{m(name)} {name.lower()}" for name in lost)
        yield f"Of {m('Trials')} trials, {said}; what they would have shown is not known."
    if macros.value("Running") or macros.value("Waiting"):
        yield (
            f"{m('Running')} trials are not finished and {m('Waiting')} of the plan have not begun: the numbers are of "
            "what is committed so far."
        )
    if macros.value("NeverTrained"):
        yield f"{m('NeverTrained')} cells cannot be told from chance, and say nothing about learning."
    if (macros.value("Fingerprints") or 0) > 1:
        yield f"Trials ran in {m('Fingerprints')} numerical environments, among which last digits differ."
    if not source.lanes:
        yield "The measurements were brought in from elsewhere: they cannot be trained again, bit for bit, from here."
    if macros.value("NotComputed"):
        yield (
            f"{m('NotComputed')} numbers of this text were not computed; each prints the command that would compute it."
        )
