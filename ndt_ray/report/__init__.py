"""One self-contained page about a sweep: what was found, in sentences that its tables support."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ndt_ray.errors import SpecError
from ndt_ray.store.reader import Store

if TYPE_CHECKING:
    from ndt_ray.report.page import Page

__all__ = ["Written", "write_report"]

NAME = "report.html"
MARKDOWN = (".md", ".markdown")


@dataclass(frozen=True)
class Written:
    """A report that was written."""

    path: str
    """Local path, or URI in the store."""
    bytes: int
    seconds: float
    page: "Page"


def write_report(store: Store, sweep: str, out: str | Path | None = None) -> Written:
    """The report of a sweep, as far as it is committed, written to `out` or beside the sweep in its store.

    HTML; Markdown, where `out` ends in .md: the same sentences and tables, with a chart's words in its place.
    StoreError for an unknown sweep, or tables that contradict each other; SpecError for a path that cannot be written.
    """
    from ndt_ray.report.markdown import render_markdown
    from ndt_ray.report.page import collect, render

    started = time.perf_counter()
    page = collect(store, sweep)
    plain = out is not None and str(out).lower().endswith(MARKDOWN)
    text = (render_markdown if plain else render)(page).encode()
    if out is None:
        where = f"sweeps/{sweep}/{NAME}"
        store.location.write(where, text)
        path = store.location.absolute(where)
    else:
        path = str(out)
        try:
            Path(out).parent.mkdir(parents=True, exist_ok=True)
            Path(out).write_bytes(text)
        except OSError as error:
            raise SpecError(f"{out}: the report cannot be written: {error.strerror or error}") from error
    return Written(path, len(text), time.perf_counter() - started, page)
