"""In which order analyses run: those that write a table come before those that read it, asked for or not."""

from collections.abc import Callable, Collection, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any

from ndt_ray import registry
from ndt_ray.analysis.api import OF_SIBLINGS, Analysis
from ndt_ray.analysis.running.runner import resolved
from ndt_ray.errors import SpecError
from ndt_ray.original import ORIGINAL_MEASUREMENTS
from ndt_ray.store.schema import TABLES

Named = tuple[str | Analysis, Mapping[str, Any] | None]
"""An analysis, by name or itself, with its parameters."""


def in_order(analyses: Sequence[Named]) -> list[Named]:
    """The analyses and, with default parameters, the registered ones whose tables they need, writers first.

    Tables that are optional bring nobody in, but whoever writes them goes first if asked for. Otherwise in the order
    given. SpecError where two of them wait for each other.
    """
    known: dict[str, Analysis] = {}
    asked: dict[str, Named] = {}
    for named, parameters in analyses:
        found = resolved(named)
        known[found.name] = found
        asked.setdefault(found.name, (named, parameters))
    writers = _writers(known.values())
    before: dict[str, dict[str, Analysis]] = {}
    open_names = list(known)
    while open_names:
        name = open_names.pop(0)
        of = known[name]
        tables = [table for table in of.reads if table not in of.optional]
        before[name] = {w.name: w for table in tables if (w := writers(table)) is not None and w.name != name}
        for other, analysis in before[name].items():
            if other not in known:
                known[other] = analysis
                open_names.append(other)
    needs = {name: list(found) for name, found in before.items()}
    for name, own in needs.items():
        beside = {w.name for table in known[name].optional if (w := writers(table)) is not None}
        own += sorted((beside & known.keys()) - {name, *own})
    try:
        list(TopologicalSorter(needs).static_order())
    except CycleError as error:
        raise SpecError(f"these analyses wait for each other: {' -> '.join(error.args[1])}") from None
    out: list[str] = []

    def place(name: str) -> None:
        if name not in out:
            for other in needs[name]:
                place(other)
            out.append(name)

    for name in asked:
        place(name)
    return [asked.get(name, (name, None)) for name in out]


def _writers(given: Collection[Analysis]) -> Callable[[str], Analysis | None]:
    """Which analysis writes a table: of those given, or of the registered ones, which are only loaded if need be."""
    by_table = {table.name: analysis for analysis in given for table in analysis.writes}
    recorded = {t.name for t in TABLES.values() if t.origin == "pack"} | {ORIGINAL_MEASUREMENTS.name, *OF_SIBLINGS}
    unread = [name for name in registry.names("analysis") if name not in {a.name for a in given}]

    def writer(table: str) -> Analysis | None:
        if table in recorded:
            return None
        while table not in by_table and unread:
            analysis = resolved(unread.pop(0))
            for written in analysis.writes:
                by_table.setdefault(written.name, analysis)
        return by_table.get(table)

    return writer
