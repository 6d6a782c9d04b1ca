"""A paper's skeleton from a sweep's tables: numbers as macros, sentences that hold them, figures, appendix, limits."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ndt_ray.errors import SpecError, StoreError
from ndt_ray.store.filesystem import Location
from ndt_ray.store.reader import Store

if TYPE_CHECKING:
    from ndt_ray.paper.macros import Macros
    from ndt_ray.report.source import Source

__all__ = ["Paper", "Written", "make_paper", "write_paper"]

FOLDER = "paper"
TEXT = "paper.tex"
"""The one file that an author works in."""
_MARK = "% ndt paper, SHA-256 of all lines below: "
PICTURES = (".pdf", ".png")


@dataclass(frozen=True)
class Paper:
    """The files of a paper by their path below its folder, and its macros."""

    files: Mapping[str, bytes]
    macros: "Macros"

    @property
    def missing(self) -> dict[str, list[str]]:
        """Macros that were not computed, by the command that would."""
        return self.macros.missing


@dataclass(frozen=True)
class Written:
    """A paper that was written."""

    folder: str
    """Local path, or URI of the store."""
    files: tuple[str, ...]
    kept: tuple[str, ...]
    """Files that an author changed, and that therefore stand as they are."""
    paper: Paper


def write_paper(store: Store, sweep: str, out: str | Path | None = None, force: bool = False) -> Written:
    """The paper of a sweep, as far as it is committed, in the folder `out`, or `paper` beside the sweep in its store.

    A `paper.tex` that was changed since it was written is kept, unless `force`; all other files are replaced, each as a
    whole. StoreError for an unknown sweep, one without trials, or tables that contradict each other; SpecError for a
    folder that cannot be written.
    """
    paper = make_paper(store, sweep)
    where = store.location if out is None else Location.of(out)
    below = f"sweeps/{sweep}/{FOLDER}/" if out is None else ""
    kept, written = [], []
    try:
        for name, data in paper.files.items():
            if name == TEXT and not force and _changed(where, below + name):
                kept.append(name)
                continue
            where.write(below + name, data)
            written.append(name)
    except StoreError as error:
        if out is None:
            raise
        raise SpecError(f"--out {out}: {str(error).replace('--store', '--out')}") from error
    return Written(where.absolute(below.rstrip("/")), tuple(written), tuple(kept), paper)


def make_paper(store: Store, sweep: str) -> Paper:
    """The files of a sweep's paper, and nothing written. StoreError as `write_paper`."""
    from ndt_ray.paper.appendix import appendix
    from ndt_ray.paper.claims import CLAIMS, founding
    from ndt_ray.paper.limits import limitations, limits
    from ndt_ray.paper.macros import Macros, written
    from ndt_ray.paper.results import RESULTS
    from ndt_ray.paper.scale import scale
    from ndt_ray.paper.text import paper_text
    from ndt_ray.paper.topics import Remembering, collect

    source = Remembering(store, sweep)
    if not source.cells:
        raise StoreError(f"sweep {sweep}: no trial is committed yet, so there is nothing to write about - run it first")
    macros = Macros(source)
    scale(source, macros)
    collect(source, macros, (*RESULTS, *CLAIMS))
    limits(source, macros)
    founding(macros)
    figures = _figures(source)
    last = appendix(source, macros)
    files = {
        "macros.tex": written(macros.known.values(), f"Numbers of the sweep {sweep}.").encode(),
        **{f"figures/{name}": data for name, data in figures.items()},
        **{f"tables/{name}": text.encode() for name, text in last.csv.items()},
        "appendix.tex": last.tex.encode(),
        "limitations.tex": limitations(source, macros).encode(),
        TEXT: _marked(paper_text(source, macros, sorted(figures))),
    }
    return Paper(files, macros)


def _figures(source: "Source") -> dict[str, bytes]:
    """Pictures beside the sweep (`ndt sweep` draws the map of layers there), a PDF before a PNG of the same name.

    Names are as LaTeX takes them in a path: letters, digits, - and _.
    """
    found: dict[str, bytes] = {}
    names = source.store.location.names(source.folder.folder)
    for name in sorted(n for n in names if n.lower().endswith(PICTURES) and not n.startswith(".")):
        stem, suffix = re.sub(r"[^A-Za-z0-9_-]", "-", name.rpartition(".")[0]), name.rpartition(".")[2].lower()
        if f"{stem}.pdf" not in found:
            found[f"{stem}.{suffix}"] = source.store.location.read(f"{source.folder.folder}/{name}")
    return found


def _marked(text: str) -> bytes:
    """With a first line by which a changed file is told from one as it was written."""
    return f"{_MARK}{hashlib.sha256(text.encode()).hexdigest()}\n{text}".encode()


def _changed(where: Location, path: str) -> bool:
    """Whether a file is there that is not as `_marked` wrote it."""
    if where.size(path) is None:
        return False
    data = where.read(path)
    _, _, text = data.partition(b"\n")
    return data != f"{_MARK}{hashlib.sha256(text).hexdigest()}\n".encode() + text
