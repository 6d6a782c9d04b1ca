"""What a running sweep shows: the same events drawn as a live table, as plain lines, or as JSON for programs."""

import json
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ndt_ray.analysis.running.runner import Progress

Event = dict[str, Any]
"""`event` is one of plan, start, progress, retry, finish, fail, stop, notice, analysis, done; `time` is seconds since
the epoch. Others may come: who reads events passes over what it does not know."""


class View(Protocol):
    """Something that shows events as they come."""

    def show(self, event: Event) -> None:
        """One event."""

    def close(self) -> None:
        """The sweep is over."""


@dataclass
class PackState:
    """One pack, as its events tell it."""

    cell: str
    trials: int
    steps: int
    step: int = 0
    status: str = "waiting"
    rate: float = 0.0
    """Seed-steps a second."""

    @property
    def work(self) -> int:
        """Seed-steps in all."""
        return self.trials * self.steps

    @property
    def over(self) -> bool:
        return self.status in ("done", "failed", "stopped")


@dataclass
class AnalysisState:
    """One analysis, as its events tell it."""

    total: int
    done: int
    dead: int


@dataclass
class Tally:
    """The state of a sweep as its events tell it."""

    sweep: str = ""
    packs: dict[str, PackState] = field(default_factory=dict)
    analyses: dict[str, AnalysisState] = field(default_factory=dict)
    already: int = 0
    failed: list[Event] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    began: float = 0.0
    pace: tuple[float, float] | None = None
    """Time and share of the first progress: Ray and the first worker take seconds to get there."""
    now: float = 0.0

    def take(self, event: Event) -> None:
        """One more event."""
        self.now = float(event["time"])
        kind = event["event"]
        if kind == "plan":
            self.sweep, self.began, self.already = event["sweep"], self.now, event["finished_trials"]
            self.packs = {p["pack"]: PackState(p["cell"], p["trials"], p["steps"]) for p in event["packs"]}
            self.pace, self.failed, self.analyses = None, [], {}
        elif kind == "analysis":
            done = event["done"] + event["skipped"]
            self.analyses[event["analysis"]] = AnalysisState(event["total"], done, event["dead"])
        elif kind == "notice":
            self.notices.append(event["text"])
        elif pack := self.packs.get(event.get("pack", "")):
            self._take(kind, pack, event)

    def _take(self, kind: str, pack: PackState, event: Event) -> None:
        if kind == "progress":
            pack.status, pack.step, pack.rate = "running", int(event["step"]), float(event["seed_steps_s"])
            self.pace = self.pace or (self.now, self.share)
            return
        pack.rate = 0.0
        if kind == "start":
            pack.status = "running"
        elif kind == "retry":
            pack.status = "retrying"
        elif kind == "finish":
            pack.status, pack.step = "done", pack.steps
            self.pace = self.pace or (self.now, self.share)
        elif kind == "fail":
            pack.status = "failed"
            self.failed.append(event)
        elif kind == "stop":
            pack.status, pack.step = "stopped", max(pack.step, int(event.get("step", 0)))

    @property
    def share(self) -> float:
        """Of the work that is done; what failed is over too."""
        total = sum(p.work for p in self.packs.values())
        done = sum(p.work if p.status in ("done", "failed") else p.trials * p.step for p in self.packs.values())
        return done / total if total else 1.0

    @property
    def rate(self) -> float:
        """Seed-steps a second of all that run."""
        return sum(p.rate for p in self.packs.values() if p.status == "running")

    @property
    def eta(self) -> float | None:
        """Seconds left at the mean rate since the first progress; None before anything is known, and at the end."""
        share = self.share
        if self.pace is None or share - self.pace[1] < 0.01 or all(p.over for p in self.packs.values()):
            return None
        began, before = self.pace
        return (self.now - began) * (1 - share) / (share - before)

    def cells(self) -> dict[str, list[PackState]]:
        """Packs by cell, in the order of the plan."""
        by_cell: dict[str, list[PackState]] = {}
        for pack in self.packs.values():
            by_cell.setdefault(pack.cell, []).append(pack)
        return by_cell


def clock(seconds: float | None) -> str:
    """h:mm:ss, or dashes."""
    if seconds is None:
        return "-:--:--"
    whole = int(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


STATES = ("running", "retrying", "failed", "stopped", "waiting", "done")
"""In the order in which cells are shown where there is no room for all."""
OTHER_LINES = 8
"""Of a terminal's height, taken by all that is not a cell."""


class LiveView:
    """A table per cell with a bar below, redrawn in place on a terminal."""

    def __init__(self, console: Console) -> None:
        self.tally = Tally()
        self.console = console
        self.lock = threading.Lock()  # of the tally; never held while printing, which waits for the drawing thread
        self.live = Live(console=console, refresh_per_second=4, get_renderable=self._picture)

    def show(self, event: Event) -> None:
        with self.lock:
            self.tally.take(event)
        if event["event"] == "plan" and event["packs"]:
            self.live.start()
        if event["event"] in ("retry", "fail"):
            self.console.print(_trouble(event), style="red" if event["event"] == "fail" else "yellow", highlight=False)
        elif event["event"] == "notice":
            self.console.print(event["text"], style="yellow", highlight=False)

    def _picture(self) -> Group:
        """Drawn by the thread that refreshes, so that the clock goes on between events."""
        with self.lock:
            t = self.tally
            if t.packs and not all(p.over for p in t.packs.values()):
                t.now = max(t.now, time.time())
            told = [f"{name} {a.done}/{a.total}{_dead(a)}" for name, a in t.analyses.items() if a.total]
            return Group(self._table(), self._bar(), *([Text("   ".join(told))] if told else []))

    def _bar(self) -> Table:
        t = self.tally
        line = Table.grid(padding=(0, 1), expand=True)
        for ratio in (None, 1, None, None):
            line.add_column(ratio=ratio, no_wrap=True)
        left = f"left {clock(t.eta)}"
        if all(p.over for p in t.packs.values()):
            left = "stopped" if any(p.status == "stopped" for p in t.packs.values()) else "done"
        rate = f" · {t.rate:,.0f} seed-steps/s" if t.rate else ""
        line.add_row(t.sweep, ProgressBar(1.0, t.share), f"{t.share:4.0%}", f"{clock(t.now - t.began)} · {left}{rate}")
        return line

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in ("cell", "trials", "step", "seed-steps/s", "state"):
            left = name in ("cell", "state")
            table.add_column(name, justify="left" if left else "right", no_wrap=True, overflow="ellipsis")
        cells = self.tally.cells()
        room = max(3, self.console.height - OTHER_LINES)
        urgent = sorted(cells, key=lambda c: min(STATES.index(p.status) for p in cells[c])) if len(cells) > room else []
        for cell in [c for c in cells if not urgent or c in urgent[:room]]:
            table.add_row(*_cell_row(cell, cells[cell]))
        if hidden := urgent[room:]:
            packs = [p for c in hidden for p in cells[c]]
            table.add_row(f"and {len(hidden)} cells more", f"{sum(p.trials for p in packs)}", "", "", _states(packs))
        return table

    def close(self) -> None:
        if self.live.is_started:
            self.live.stop()


def _cell_row(cell: str, packs: list[PackState]) -> list[str]:
    trials = sum(p.trials for p in packs)
    step = sum(p.step * p.trials for p in packs) / max(1, trials)
    rate = sum(p.rate for p in packs if p.status == "running")
    steps = max(p.steps for p in packs)
    return [cell, str(trials), f"{step:,.0f}/{steps:,}", f"{rate:,.0f}" if rate else "", _states(packs)]


def _states(packs: list[PackState]) -> str:
    counts = [(state, sum(p.status == state for p in packs)) for state in STATES]
    found = [(state, n) for state, n in counts if n]
    return found[0][0] if len(found) == 1 else ", ".join(f"{n} {state}" for state, n in found)


def _dead(analysis: AnalysisState) -> str:
    return f" ({analysis.dead} failed)" if analysis.dead else ""


def _trouble(event: Event) -> str:
    """A failure or a retry in one line."""
    what = "failed" if event["event"] == "fail" else "tried again"
    return f"{event['cell']} (pack {event['pack']}) {what}: {event['error'].partition(chr(10))[0]}"


class PlainView:
    """One line per event that matters and per 5 % of the work: for logs and pipes."""

    def __init__(self, out: IO[str]) -> None:
        self.out = out
        self.tally = Tally()
        self.told = 0

    def show(self, event: Event) -> None:
        self.tally.take(event)
        t, kind = self.tally, event["event"]
        if kind == "plan" and t.packs:
            trials = sum(p.trials for p in t.packs.values())
            done = f", {t.already:,} already done" if t.already else ""
            self._line(f"{t.sweep}: {trials:,} trials in {len(t.packs):,} packs to run{done}")
        elif kind in ("retry", "fail"):
            self._line(_trouble(event))
        elif kind == "notice":
            self._line(event["text"])
        elif kind == "analysis" and event["last"] and event["done"] + event["dead"]:
            state = t.analyses[event["analysis"]]
            self._line(f"{t.sweep}: {event['analysis']} {state.done} of {state.total}{_dead(state)}")
        twentieth = int(t.share * 20 + 1e-9)
        if t.packs and twentieth > self.told:
            self.told = twentieth
            left = f", left {clock(t.eta)}" if t.eta is not None else ""
            self._line(f"{t.sweep}: {twentieth * 5} % after {clock(t.now - t.began)}{left}")

    def _line(self, text: str) -> None:
        print(text, file=self.out, flush=True)

    def close(self) -> None:
        self.out.flush()


class AnalysisLines:
    """How far analyses are, as a line every now and then while one takes long: a callback of `analyze_all`."""

    def __init__(self, out: IO[str], every: float = 20.0) -> None:
        self.out, self.every = out, every
        self.began = self.last = time.monotonic()

    def __call__(self, p: "Progress") -> None:
        now, over = time.monotonic(), p.done + p.skipped + p.dead
        if over < p.total and now - self.last >= self.every:
            self.last = now
            dead = f" ({p.dead} failed)" if p.dead else ""
            print(f"{p.analysis} {over} of {p.total}{dead} after {clock(now - self.began)}", file=self.out, flush=True)


class JsonView:
    """Every event as one line of JSON on stdout."""

    def __init__(self, out: IO[str]) -> None:
        self.out = out

    def show(self, event: Event) -> None:
        print(json.dumps(event, allow_nan=False), file=self.out, flush=True)

    def close(self) -> None:
        self.out.flush()


def make_view(as_json: bool = False, quiet: bool = False) -> View:
    """JSON on stdout if asked for, else a live table where stderr is a terminal, else plain lines on stderr."""
    if as_json:
        return JsonView(sys.stdout)
    if quiet:
        return Silent()
    console = Console(stderr=True)
    return LiveView(console) if console.is_terminal else PlainView(sys.stderr)


class Silent:
    """Shows nothing."""

    def show(self, event: Event) -> None:
        del event

    def close(self) -> None:
        pass


def event(kind: str, **fields: Any) -> Event:
    """An event stamped with the time."""
    return {"event": kind, "time": time.time(), **fields}


def replayed(events: Iterable[Event]) -> Tally:
    """The state that a stored event log leads to."""
    tally = Tally()
    for e in events:
        tally.take(e)
    return tally
