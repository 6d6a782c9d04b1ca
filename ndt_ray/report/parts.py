"""What a report is made of: sentences with the query they were computed from, charts, tables, sections."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from ndt_ray.figures.charts import Spec

Kind = Literal["finding", "nothing", "described", "caution"]
"""What a sentence claims: a test that it names stands behind it; a test found nothing; no test; a limit."""

Sign = Literal["event", "settled", "rise_fall", "bars", "absent", "period"]
"""Marks of charts that a key explains; drawn by the page."""

MOST_ROWS = 300
"""Rows of a table in the page; the rest is a query away, and the page says which."""


@dataclass(frozen=True)
class Claim:
    """A sentence of the report. Its numbers are those that `sql` gives, and it says no more than they allow."""

    text: str
    kind: Kind
    sql: str = ""
    headline: bool = False
    """Whether it stands at the top of the page too."""
    only_top: bool = False
    """Whether it stands only there, for its section says it in another form."""


@dataclass(frozen=True)
class Figure:
    """A chart with what a reader who does not see it needs to know."""

    title: str
    spec: Spec
    alt: str
    below: tuple[Spec, ...] = ()
    """Charts that stand under it on the same axis."""

    @property
    def specs(self) -> tuple[Spec, ...]:
        return (self.spec, *self.below)


@dataclass(frozen=True)
class Ramp:
    """The key of a colour scale that several charts share: (label, place from 0 to 1) of its ticks."""

    title: str
    range: Literal["diverging", "heatmap"]
    ticks: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Plate:
    """Charts that are read together, side by side where there is room."""

    title: str
    figures: tuple[Figure, ...]
    note: str = ""
    ramp: Ramp | None = None
    keys: tuple[tuple[Sign, str], ...] = ()
    """(sign, meaning) of the marks."""
    wide: bool = False
    """One chart a line."""


@dataclass(frozen=True)
class Sheet:
    """A table: rows with a title, the meaning of each column, and the query that gives all of them."""

    title: str
    rows: pd.DataFrame
    docs: dict[str, str] = field(default_factory=dict)
    sql: str = ""
    total: int | None = None
    """Rows that there are, where `rows` has not all of them."""
    table: str = ""
    """Table of the store that this is, where it is one."""
    folded: bool = False
    """Whether only its title is shown until it is asked for."""

    @property
    def count(self) -> int:
        return len(self.rows) if self.total is None else self.total


@dataclass
class Section:
    """A part of the page; what is empty is left out."""

    id: str
    title: str
    claims: list[Claim] = field(default_factory=list)
    plates: list[Plate] = field(default_factory=list)
    sheets: list[Sheet] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)
    """(what is not there, the command that would compute it, or what else would help)."""
    about: str = ""
    short: str = ""
    """Its title in the contents, where that is shorter."""

    @property
    def told(self) -> list[Claim]:
        """Sentences of the section itself."""
        return [claim for claim in self.claims if not claim.only_top]

    @property
    def tables(self) -> set[str]:
        """Tables of the store that are shown as they are."""
        return {sheet.table for sheet in self.sheets if sheet.table}

    def __bool__(self) -> bool:
        return bool(self.claims or self.plates or self.sheets or self.missing)


def headlines(sections: Sequence[Section]) -> Iterator[tuple[Claim, str]]:
    """Sentences that stand at the top, each with the section it belongs to."""
    for section in sections:
        for claim in section.claims:
            if claim.headline:
                yield claim, section.id


SHOWN_VALUES = 8
"""Of a list in a cell of a table; a longer one says how many it has."""


def plain(value: Any) -> Any:
    """A value as JSON takes it; None for what is missing."""
    if isinstance(value, np.ndarray | list | tuple):
        several = [str(plain(v)) for v in np.ravel(np.asarray(value))[: SHOWN_VALUES + 1]]
        return ", ".join(several) if len(several) <= SHOWN_VALUES else f"{np.size(value)} values"
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float) and value != value:
        return None
    return value if isinstance(value, str | int | float | bool) else str(value)
