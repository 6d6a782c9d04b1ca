"""The page: sections of a sweep put together, and rendered into one HTML file that needs nothing else."""

import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.errors import SpecError
from ndt_ray.figures.charts import config
from ndt_ray.figures.charts.theme import DARK, LIGHT
from ndt_ray.report.across import across
from ndt_ray.report.dictionaries import dictionaries
from ndt_ray.report.escape import escaping
from ndt_ray.report.events import events, transients
from ndt_ray.report.grokking import grokking
from ndt_ray.report.interventions import interventions
from ndt_ray.report.learning import learning
from ndt_ray.report.maps import maps
from ndt_ray.report.mechanisms import mechanisms
from ndt_ray.report.noise import noise, rule_marks
from ndt_ray.report.order import order, settled_layers
from ndt_ray.report.others import others
from ndt_ray.report.parts import MOST_ROWS, Claim, Section, Sheet, headlines, plain
from ndt_ray.report.provenance import provenance
from ndt_ray.report.questions import questions
from ndt_ray.report.source import Source
from ndt_ray.report.why import why
from ndt_ray.report.words import number
from ndt_ray.store.reader import Store

LIMIT = 4 * 2**20
"""Bytes that a page stays under."""
PLACED = {
    "series_tests", "event_candidates", "events", "event_families", "transients", "jumps", "jump_counts",
    "grokking_onsets", "grokking_measures",
}  # fmt: skip
"""Tables that the sections show in other forms, or that are too long to show."""
BADGES = {"finding": "finding", "nothing": "nothing found", "described": "description", "caution": "caution"}


@dataclass(frozen=True)
class Page:
    """All that a report says, before it is rendered."""

    sweep: str
    about: str
    sections: tuple[Section, ...]
    facts: tuple[tuple[str, str], ...]
    spec: str
    seconds: float

    @property
    def claims(self) -> list[Claim]:
        return [claim for section in self.sections for claim in section.claims]

    def value(self) -> dict[str, Any]:
        """What it says, as plain values."""
        return {
            "sweep": self.sweep,
            "about": self.about,
            "claims": [
                {"section": s.id, "kind": c.kind, "text": c.text, "sql": c.sql} for s in self.sections for c in s.claims
            ],
            "missing": [{"section": s.id, "what": w, "command": c} for s in self.sections for w, c in s.missing],
        }


def collect(store: Store, sweep: str) -> Page:
    """What the tables of a sweep allow to say, as of now. StoreError for an unknown sweep."""
    started = time.perf_counter()
    source = Source(store, sweep)
    found, marks = events(source)
    measure = marks.measure if marks else None
    sections = [found]
    parts: list[tuple[str, str, Callable[[], Section]]] = [
        ("maps", "Maps", lambda: maps(source, marks or rule_marks(source), settled_layers(source))),
        ("across", "Across seeds", lambda: across(source)),
        ("order", "Order and timing", lambda: order(source)),
        ("grokking", "Grokking", lambda: grokking(source)),
        ("mechanisms", "Mechanisms", lambda: mechanisms(source)),
        ("dictionaries", "Dictionaries", lambda: dictionaries(source)),
        ("recovery", "Recovery", lambda: interventions(source)),
        ("why", "Why", lambda: why(source)),
        ("transients", "Transients", lambda: escaping(source, transients(source, measure))),
        ("learning", "Training", lambda: learning(source)),
        ("jumps", "Threshold rules", lambda: noise(source)),
    ]
    sections += [_made(source, *part) for part in parts]
    sections.append(questions(source, sections))
    sections.append(others(source, PLACED | {table for s in sections for table in s.tables}))
    last, facts, spec = provenance(source)
    kept = tuple(section for section in [*sections, last] if section)
    return Page(sweep, source.about, kept, tuple(facts), spec, time.perf_counter() - started)


def _made(source: Source, name: str, title: str, make: Callable[[], Section]) -> Section:
    """A section; where its tables lack a column (they were written by another version), a line that says so."""
    try:
        return make()
    except (SpecError, KeyError, AttributeError) as error:
        what = f"This part could not be made: its tables are not as this version writes them ({error})"
        return Section(name, title, missing=[(what, f"ndt analyze {source.sweep}")])


def render(page: Page) -> str:
    """The page as HTML: styles, scripts and data inside, no address that a browser would ask.

    Tables show fewer rows, and say so, where the page would else be larger than `LIMIT`.
    """
    most = MOST_ROWS
    while len(text := _rendered(page, most)) > LIMIT and most > 4:
        most //= 2
    return text


def _rendered(page: Page, most: int) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    env = Environment(
        loader=PackageLoader("ndt_ray.report", "templates"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {"cell": cell, "data": _data, "numeric": _numeric, "places": places}
    charts = {
        f"{section.id}-{i}-{j}-{k}": spec
        for section in page.sections
        for i, plate in enumerate(section.plates)
        for j, figure in enumerate(plate.figures)
        for k, spec in enumerate(figure.specs)
    }
    text: str = env.get_template("page.html").render(
        page=page,
        headlines=list(headlines(page.sections)),
        badges=BADGES,
        most=most,
        light=colours(LIGHT),
        dark=colours(DARK),
        charts=embedded({"specs": charts, "light": config(False), "dark": config(True)}),
        drawn=bool(charts),
        vega=vega() if charts else "",
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    return text


@functools.cache
def vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, from the wheel of vl-convert."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle.replace("</script", "<\\/script")


def embedded(value: Mapping[str, Any]) -> str:
    """JSON that is safe inside a script element."""
    return json.dumps(value, separators=(",", ":"), default=plain).replace("</", "<\\/").replace("<!--", "<\\!--")


def colours(theme: Mapping[str, Any]) -> dict[str, str]:
    """A theme as the values of CSS variables; ranges of colours as gradients."""
    ramps = {name: f"linear-gradient(to right, {', '.join(theme[name])})" for name in ("diverging", "heatmap")}
    return {k: v for k, v in theme.items() if isinstance(v, str)} | ramps


# -- tables --------------------------------------------------------------------------------------------------------


def _numeric(sheet: Sheet) -> list[bool]:
    """Which columns are numbers, and stand to the right."""
    kinds: Sequence[Any] = sheet.rows.dtypes
    return [bool(pd.api.types.is_numeric_dtype(k) and not pd.api.types.is_bool_dtype(k)) for k in kinds]


def places(sheet: Sheet) -> list[int | None]:
    """Decimal places of every column: about four digits of its larger numbers; None for what is not a fraction."""
    found: list[int | None] = []
    for (_, column), numeric in zip(sheet.rows.items(), _numeric(sheet), strict=True):
        values = column.dropna().to_numpy(np.float64) if numeric else np.empty(0)
        values = np.abs(values[np.isfinite(values)])
        if not len(values) or np.array_equal(values, np.round(values)):
            found.append(None)
        else:
            top = float(np.quantile(values, 0.9)) or float(values.max())
            found.append(int(np.clip(3 - np.floor(np.log10(top)), 0, 4)))
    return found


def cell(value: Any, places: int | None = None) -> str:
    """A value as the table shows it; all of it is in the CSV."""
    value = plain(value)
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if places is None or not np.isfinite(value) or 0 < abs(value) < 0.5 * 10.0**-places:
        return number(value, 3)
    return f"{value:,.{places}f}"


def _data(value: Any) -> str:
    """A value as it is sorted and saved: all digits, empty where it is missing."""
    value = plain(value)
    if value is None:
        return ""
    return repr(value) if isinstance(value, float) and np.isfinite(value) else str(value)
