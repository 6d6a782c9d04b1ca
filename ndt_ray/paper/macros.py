"""The numbers of a paper as LaTeX macros: each with its meaning, the query that gives it, or what would compute it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from ndt_ray.paper.latex import amount, comment, escape
from ndt_ray.report.parts import plain
from ndt_ray.report.source import Source

PREFIX = "ndt"
NOT_COMPUTED, NO_VALUE = r"\ndtmissing", r"\ndtnovalue"
"""What a macro prints instead of a number: nobody computed it, or it was computed and there is none."""


@dataclass(frozen=True)
class Tex:
    """LaTeX that is written already (`text`), with the plain value it says."""

    text: str
    value: Any = None


@dataclass(frozen=True)
class Absent:
    """Why there is no number: the command that would compute it, or, where it was computed, the reason."""

    command: str = ""
    reason: str = ""

    @property
    def text(self) -> str:
        """The marker in its place."""
        return rf"{NOT_COMPUTED}{{{escape(self.command)}}}" if self.command else rf"{NO_VALUE}{{{escape(self.reason)}}}"


@dataclass(frozen=True)
class Macro:
    """One number, or computed word, of the text."""

    name: str
    text: str
    """LaTeX."""
    meaning: str
    value: Any = None
    """As a plain value; None where there is none."""
    sql: str = ""
    absent: Absent | None = None

    @property
    def lines(self) -> Iterator[str]:
        yield comment(self.meaning)
        if self.sql:
            yield comment(f"SQL: {self.sql}")
        yield rf"\newcommand{{\{PREFIX}{self.name}}}{{{self.text}}}"


@dataclass
class Macros:
    """All macros of a paper, by name, in the order in which they were made."""

    source: Source
    known: dict[str, Macro] = field(default_factory=dict)

    def topic(
        self,
        meanings: Mapping[str, str],
        values: Mapping[str, Any] | None,
        sql: str = "",
        absent: Absent | None = None,
        without: str = "there is none",
    ) -> None:
        """Macros of one table: `values` by name, or, where it has no rows, None and why.

        A value is a number, text (which is escaped), Tex, or Absent; one that is missing prints why, `without`.
        """
        assert values is None or set(values) == set(meanings), set(values) ^ set(meanings)
        assert values is not None or absent is not None, meanings
        why = absent if values is None and absent is not None else Absent(reason=without)
        for name, meaning in meanings.items():
            assert name.isalpha() and name not in self.known, name
            made = _macro(name, meaning, None if values is None else values[name], sql, why)
            self.known[name] = made

    def absence(self, *analyses: str, otherwise: str = "nothing to compute it from") -> Absent:
        """Of a table without rows: the analyses that were not run, or else that they found nothing."""
        left = [name for name in analyses if not self.source.ran(name)]
        return Absent(f"ndt analyze {self.source.sweep} {' '.join(left)}") if left else Absent(reason=otherwise)

    def value(self, name: str) -> Any:
        """The plain value of a macro; None where there is none."""
        return self.known[name].value

    def has(self, *names: str) -> bool:
        """Whether all of these have a value."""
        return all(self.known[name].absent is None for name in names)

    @property
    def missing(self) -> dict[str, list[str]]:
        """Names of the macros that were not computed, by the command that would."""
        found: dict[str, list[str]] = {}
        for macro in self.known.values():
            if macro.absent and macro.absent.command:
                found.setdefault(macro.absent.command, []).append(macro.name)
        return found


def _macro(name: str, meaning: str, value: Any, sql: str, absent: Absent) -> Macro:
    if isinstance(value, Tex):
        known = plain(value.value)
        return Macro(name, value.text, meaning, value.text if known is None else known, sql)
    if isinstance(value, Absent):
        return Macro(name, value.text, meaning, None, sql, value)
    known = plain(value)
    if known is None or known is pd.NA or known == "":
        return Macro(name, absent.text, meaning, None, sql, absent)
    return Macro(name, escape(known) if isinstance(known, str) else amount(known), meaning, known, sql)


def written(macros: Iterable[Macro], about: str) -> str:
    r"""`macros.tex`: what a marker looks like, then every macro below its meaning and its query."""
    head = [
        comment(about),
        comment("Written by `ndt paper`: run it again for new numbers, and change nothing here."),
        comment("In place of a number that nobody computed, with the command that would compute it."),
        rf"\newcommand{{{NOT_COMPUTED}}}[1]{{\textbf{{[not computed: \texttt{{#1}}]}}}}",
        comment("In place of a number that was asked for and does not exist, with the reason."),
        rf"\newcommand{{{NO_VALUE}}}[1]{{\textbf{{[no value: #1]}}}}",
    ]
    return "\n".join([*head, *(line for macro in macros for line in ["", *macro.lines]), ""])
