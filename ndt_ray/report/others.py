"""Tables of every other analysis that was run: shown as they are, with the meaning of their columns."""

from ndt_ray.report.order import sheet
from ndt_ray.report.parts import MOST_ROWS, Section
from ndt_ray.report.source import Source
from ndt_ray.report.words import readable

MOST_VALUES = 1_200
"""Values of one table in the page; there may be dozens of tables."""


def others(source: Source, shown: set[str]) -> Section:
    """The section: the first rows of each table that is not among the `shown`, and the query for all of them."""
    section = Section("others", "Further analyses")
    for table in sorted({t for found in source.analyses.values() for t in found} - shown):
        most = max(10, min(MOST_ROWS, MOST_VALUES // max(len(source.columns(table)), 1)))
        section.sheets += list(sheet(source, table, readable(table), most))
    return section
