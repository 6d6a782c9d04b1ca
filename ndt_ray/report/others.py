"""Tables of every other analysis that was run: shown as they are, with the meaning of their columns."""

from ndt_ray.report.parts import MOST_ROWS, Section, Sheet
from ndt_ray.report.source import Source
from ndt_ray.report.words import readable

SHOWN = {
    "series_tests", "event_candidates", "events", "event_families", "transients", "jumps", "jump_counts",
}  # fmt: skip
"""Tables that have a place of their own, or are too many rows for a page."""


def others(source: Source) -> Section:
    """The section: the first rows of each table, and the query for all of them."""
    section = Section("others", "Further analyses")
    tables = sorted({t for found in source.analyses.values() for t in found} - SHOWN)
    for table in tables:
        if not source.has(table):
            continue
        rows = source.rows[table]
        answer = source.ask(f'SELECT * EXCLUDE (sweep) FROM "{table}" WHERE sweep = $sweep LIMIT {MOST_ROWS}')
        docs = {readable(c): text for c, text in source.columns(table).items()}
        sql = source.ask(f'SELECT * FROM "{table}" WHERE sweep = $sweep LIMIT 1').sql.removesuffix(" LIMIT 1")
        section.sheets.append(Sheet(readable(table), answer.rows.rename(columns=readable), docs, sql, rows))
    return section
