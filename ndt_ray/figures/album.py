"""The files of one bundle: what each shows, what was left out and why, and a page that lists both."""

import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from ndt_ray.errors import SpecError, did_you_mean
from ndt_ray.figures.canvas import FORMATS, save
from ndt_ray.report.data_sets import DataSet, records, sentences
from ndt_ray.store.filesystem import Location

INDEX = "index.html"
PICTURES = (".png", ".svg")


@dataclass(frozen=True)
class Entry:
    """A file of the bundle; `shows`: the trials and steps in it."""

    section: str
    path: Path
    caption: str
    shows: str = ""


@dataclass(frozen=True)
class Skip:
    """What was not drawn, and why."""

    section: str
    what: str
    reason: str


@dataclass
class Album:
    """Files below `folder`, figures in `format`, at most `limit` figures a section; the rest is listed as left out.

    `sweep`: what the commands name that would compute what is not there; `data`: what its trials learned from.
    """

    folder: Path
    format: str = "png"
    limit: int | None = None
    sweep: str = "SWEEP"
    data: Sequence[DataSet] = ()
    entries: list[Entry] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    _beyond: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise SpecError(f"a figure is png, pdf or svg, but got '{self.format}'{did_you_mean(self.format, FORMATS)}")
        if self.limit is not None and self.limit < 1:
            raise SpecError(f"a limit is a number of figures a section, 1 or more, but got ({self.limit=})")

    @property
    def files(self) -> list[Path]:
        """Everything written so far, in order."""
        return [entry.path for entry in self.entries]

    def room(self, section: str) -> bool:
        """Whether another figure of the section is wanted; one that is not is counted, and told in the index."""
        drawn = sum(e.section == section and e.path.suffix[1:] == self.format for e in self.entries)
        if self.limit is None or drawn < self.limit:
            return True
        self._beyond[section] = self._beyond.get(section, 0) + 1
        return False

    def figure(self, section: str, name: str, figure: Figure, caption: str, shows: str = "", dpi: int = 200) -> Path:
        """Save a figure as `name` (no suffix, folders with /) and list it."""
        path = save(figure, self.folder / f"{name}.{self.format}", dpi)
        self.entries.append(Entry(section, path, caption, shows))
        return path

    def text(self, section: str, name: str, text: str, caption: str, shows: str = "") -> Path:
        """Write a text file and list it."""
        Location.of(self.folder).write(name, text.encode(), durable=False)
        path = self.folder / name
        self.entries.append(Entry(section, path, caption, shows))
        return path

    def add(self, section: str, paths: Iterable[Path], caption: str, shows: str = "") -> None:
        """List files that were written elsewhere."""
        self.entries += [Entry(section, path, caption, shows) for path in paths]

    def skip(self, section: str, what: str, reason: str) -> None:
        """Say once what is not there, and why."""
        found = Skip(section, what, reason)
        if found not in self.skips:
            self.skips.append(found)

    def analyze(self, *analyses: str) -> str:
        """The command that would compute what is not there."""
        return f"`ndt analyze {self.sweep} {' '.join(analyses)}`"

    def index(self, title: str) -> Path:
        """`index.html`: all files by section with captions, and all that was left out; links are relative."""
        for section, count in sorted(self._beyond.items()):
            self.skip(section, f"{count} more figures", f"--limit {self.limit} figures a section")
        self._beyond.clear()
        path = self.folder / INDEX
        self.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(_page(title, self))
        return path


_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;color:#222;max-width:1180px;margin:2em auto;padding:0 1em}
h2{border-bottom:1px solid #ddd;padding-bottom:.2em;margin-top:2em}
.g{display:flex;flex-wrap:wrap;gap:14px;align-items:flex-start}
figure{margin:0;max-width:560px;border:1px solid #e5e5e5;padding:8px;border-radius:4px}
figure img{max-width:100%;max-height:420px;display:block}
figcaption{font-size:13px;margin-top:6px}.s{color:#666;font-size:12px}
.d{font-weight:600}
table{border-collapse:collapse;font-size:13px}td,th{border:1px solid #ddd;padding:3px 8px;text-align:left}
nav a{margin-right:1em}
"""


def _page(title: str, album: Album) -> str:
    sections = list(dict.fromkeys([*(e.section for e in album.entries), *(s.section for s in album.skips)]))
    say = html.escape
    links = "".join(f'<a href="#s{i}">{say(name)}</a>' for i, name in enumerate(sections))
    told = f"{len(album.entries)} files; {len(album.skips)} things left out, each with its reason below its section."
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{say(title)}</title>',
        f"<style>{_STYLE}</style></head><body><h1>{say(title)}</h1><p>{say(told)}</p>",
        *(f"<p{' class=d' if limits else ''}>{say(text)}</p>" for text, limits in sentences(album.data)),
        f"<nav>{links}</nav>",
    ]
    for i, name in enumerate(sections):
        parts.append(f'<h2 id="s{i}">{say(name)}</h2><div class="g">')
        parts += [_entry(e, album.folder) for e in album.entries if e.section == name]
        parts.append("</div>")
        left = [s for s in album.skips if s.section == name]
        if left:
            rows = "".join(f"<tr><td>{say(s.what)}</td><td>{say(s.reason)}</td></tr>" for s in left)
            parts.append(f"<p>Left out:</p><table><tr><th>what</th><th>why</th></tr>{rows}</table>")
    return "\n".join([*parts, "</body></html>", ""])


def _entry(entry: Entry, folder: Path) -> str:
    where = html.escape(entry.path.relative_to(folder).as_posix())
    picture = entry.path.suffix in PICTURES
    inner = f'<img loading="lazy" src="{where}" alt="{html.escape(entry.caption)}">' if picture else where
    shows = f'<div class="s">{html.escape(entry.shows)}</div>' if entry.shows else ""
    name = f'<div class="s">{where}</div>' if picture else ""
    caption = f"<figcaption>{html.escape(entry.caption)}{shows}{name}</figcaption>"
    return f'<figure><a href="{where}">{inner}</a>{caption}</figure>'


def to_json(album: Album) -> str:
    """The same as JSON: data sets, files (path, section, caption, shows) and skips (section, what, reason)."""
    files = [
        {"path": e.path.relative_to(album.folder).as_posix(), "section": e.section, "caption": e.caption}
        | {"shows": e.shows}
        for e in album.entries
    ]
    found = {"data_sets": records(album.data), "files": files, "skipped": [s.__dict__ for s in album.skips]}
    return json.dumps(found, indent=2) + "\n"
