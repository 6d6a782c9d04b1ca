"""What a topic of the paper is: names with their meanings, the analyses behind them, and how the values are asked."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ndt_ray.errors import SpecError
from ndt_ray.paper.latex import percent
from ndt_ray.paper.macros import Absent, Macros, Tex
from ndt_ray.report.source import Answer, Source
from ndt_ray.store.reader import Store


class Remembering(Source):
    """A sweep whose answers are kept: several topics, and the appendix, ask the same. Nobody may change their rows."""

    def __init__(self, store: Store, sweep: str) -> None:
        super().__init__(store, sweep)
        self._answers: dict[str, Answer] = {}

    def ask(self, sql: str) -> Answer:
        if sql not in self._answers:
            self._answers[sql] = super().ask(sql)
        return self._answers[sql]


Found = tuple[dict[str, Any], str]
"""Values by name of the macro, and the query that gives them."""


@dataclass(frozen=True)
class Topic:
    """Macros that come from one place. `make` gives None where its tables have no rows."""

    meanings: Mapping[str, str]
    analyses: tuple[str, ...]
    make: Callable[[Source], Found | Absent | None]
    otherwise: str = "nothing to compute it from"
    """The reason where the analyses ran, and `make` still gives None."""
    without: str = "there is none"
    """The reason where `make` gives values, and one of them is missing."""


def collect(source: Source, macros: Macros, topics: Iterable[Topic]) -> None:
    """All macros of the topics. A table that another version wrote counts as not computed."""
    for topic in topics:
        try:
            found = topic.make(source)
        except (SpecError, KeyError, AttributeError):  # as the report's sections do
            found = Absent(f"ndt analyze {source.sweep} {' '.join(topic.analyses)}")
        if isinstance(found, tuple):
            macros.topic(topic.meanings, *found, without=topic.without)
        else:
            absent = found or macros.absence(*topic.analyses, otherwise=topic.otherwise)
            macros.topic(topic.meanings, None, absent=absent)


def share(part: Any, whole: Any = 1.0) -> Tex | None:
    """A percentage as a value of a macro; None of nothing."""
    if part is None or part != part or not whole:
        return None
    return Tex(percent(part, whole), float(part) / float(whole))
