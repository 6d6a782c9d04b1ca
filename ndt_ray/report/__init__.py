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
PDF = ".pdf"


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

    HTML; PDF, where `out` ends in .pdf, printed by a browser that is on the machine; Markdown, where it ends in .md:
    the same sentences and tables, with a chart's words in its place. StoreError for an unknown sweep, or tables that
    contradict each other; SpecError for a path that cannot be written, and for a PDF without a browser.
    """
    from ndt_ray.report.markdown import render_markdown
    from ndt_ray.report.page import collect, render
    from ndt_ray.report.pdf import printed

    started = time.perf_counter()
    page = collect(store, sweep)
    kind = "" if out is None else Path(out).suffix.lower()
    text = (render_markdown if kind in MARKDOWN else render)(page).encode()
    if kind == PDF:
        text = printed(text)
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
