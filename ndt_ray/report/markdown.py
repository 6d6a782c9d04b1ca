"""The page as Markdown: the same sentences, tables and commands, with a chart's words in its place."""

from collections.abc import Iterator

from ndt_ray.report.page import BADGES, Page, cell, places
from ndt_ray.report.parts import Claim, Section, Sheet, headlines

MOST_ROWS = 30
"""Rows of a table; the query under it gives all of them."""


def render_markdown(page: Page) -> str:
    """GitHub-flavoured Markdown; queries are numbered and stand at the end."""
    queries: dict[str, int] = {}
    lines = [f"# {page.sweep}", *([page.about] if page.about else []), *_top(page, queries)]
    for section in page.sections:
        lines += _section(section, queries)
    if page.facts:
        lines += ["## About this sweep", _table(["", ""], [[k, v] for k, v in page.facts])]
    lines += [f"```yaml\n{page.spec.strip()}\n```"] if page.spec.strip() else []
    if queries:
        lines += ["## Queries", "`ndt query` takes them, with the name of the sweep for `$sweep`."]
        lines += [f"{number}.\n```sql\n{sql.strip()}\n```" for sql, number in queries.items()]
    return "\n\n".join(lines) + "\n"


def _top(page: Page, queries: dict[str, int]) -> Iterator[str]:
    top = [claim for claim, _ in headlines(page.sections)]
    if top:
        yield "\n".join(_claim(claim, queries) for claim in top)


def _section(section: Section, queries: dict[str, int]) -> Iterator[str]:
    yield f"## {section.title}"
    if section.about:
        yield section.about
    if section.told:
        yield "\n".join(_claim(claim, queries) for claim in section.told)
    for plate in section.plates:
        yield f"### {plate.title}"
        yield "\n".join(f"- Chart: {figure.title}. {figure.alt}" for figure in plate.figures)
        if plate.note:
            yield plate.note
    for sheet in section.sheets:
        yield from _sheet(sheet, queries)
    if section.missing:
        yield "\n".join(f"- {what}: `{command}`" for what, command in section.missing)


def _claim(claim: Claim, queries: dict[str, int]) -> str:
    return f"- **{BADGES[claim.kind]}** {claim.text}{_query(claim.sql, queries)}"


def _query(sql: str, queries: dict[str, int]) -> str:
    return f" (query {queries.setdefault(sql, len(queries) + 1)})" if sql else ""


def _sheet(sheet: Sheet, queries: dict[str, int]) -> Iterator[str]:
    shown = sheet.rows.head(MOST_ROWS)
    more = f", the first {len(shown)} of {sheet.count:,} rows" if sheet.count > len(shown) else ""
    yield f"**{sheet.title}**{more}{_query(sheet.sql, queries)}"
    if len(shown):
        decimals = places(sheet)
        rows = [
            [cell(value, p) for value, p in zip(row, decimals, strict=True)]
            for row in shown.itertuples(index=False, name=None)
        ]
        yield _table([str(c) for c in shown.columns], rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str]) -> str:
        return f"| {' | '.join(c.replace('|', chr(92) + '|').replace(chr(10), ' ') for c in cells)} |"

    return "\n".join([line(head), f"|{' --- |' * len(head)}", *map(line, rows)])
