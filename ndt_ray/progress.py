"""What a running sweep shows: the same events drawn as a live table, as plain lines, or as JSON for programs."""

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import IO, Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

Event = dict[str, Any]
"""`event` is one of plan, start, progress, retry, finish, fail, stop, done; `time` is seconds since the epoch."""


class View(Protocol):
    """Something that shows events as they come."""

    def show(self, event: Event) -> None:
        """One event."""

    def close(self) -> None:
        """The sweep is over."""


@dataclass
class PackState:
    cell: str
    trials: int
    steps: int
    step: int = 0
    status: str = "waiting"
    rate: float = 0.0
    eta: float = 0.0


@dataclass
class Tally:
    """The state of a sweep as its events tell it."""

    sweep: str = ""
    packs: dict[str, PackState] = field(default_factory=dict)
    already: int = 0
    failed: list[Event] = field(default_factory=list)
    began: float = 0.0
    now: float = 0.0

    def take(self, event: Event) -> None:
        self.now = float(event["time"])
        kind = event["event"]
        if kind == "plan":
            self.sweep, self.began, self.already = event["sweep"], self.now, event["finished_trials"]
            self.packs = {p["pack"]: PackState(p["cell"], p["trials"], p["steps"]) for p in event["packs"]}
            return
        pack = self.packs.get(event.get("pack", ""))
        if pack is None:
            return
        if kind == "progress":
            pack.step, pack.rate = int(event["step"]), float(event["seed_steps_s"])
            pack.status = "running"
        elif kind == "start":
            pack.status = "running"
        elif kind == "retry":
            pack.status = "retrying"
        elif kind == "finish":
            pack.status, pack.step, pack.rate = "done", pack.steps, 0.0
        elif kind == "fail":
            pack.status, pack.rate = "failed", 0.0
            self.failed.append(event)
        elif kind == "stop":
            pack.status, pack.rate = "stopped", 0.0

    @property
    def total_work(self) -> float:
        return float(sum(p.trials * p.steps for p in self.packs.values()))

    @property
    def done_work(self) -> float:
        return float(sum(p.trials * p.step for p in self.packs.values()))

    @property
    def share(self) -> float:
        return self.done_work / self.total_work if self.total_work else 1.0

    @property
    def eta(self) -> float | None:
        """Seconds left at the mean rate so far; None before anything is known."""
        elapsed = self.now - self.began
        return elapsed * (1 - self.share) / self.share if self.share > 0.01 else None

    def cells(self) -> dict[str, list[PackState]]:
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


class LiveView:
    """A table per cell with a bar below, redrawn in place on a terminal."""

    def __init__(self, console: Console) -> None:
        self.tally = Tally()
        self.bar = Progress(TextColumn("{task.description}"), BarColumn(None), TextColumn("{task.percentage:>3.0f} %"))
        self.task: TaskID = self.bar.add_task("", total=1.0)
        self.live = Live(console=console, refresh_per_second=4, transient=False)
        self.live.start()

    def show(self, event: Event) -> None:
        self.tally.take(event)
        t = self.tally
        failed = f" · failed {len(t.failed)}" if t.failed else ""
        text = f"{t.sweep}  {clock(t.now - t.began)} · left {clock(t.eta)}{failed}"
        self.bar.update(self.task, completed=t.share, description=text)
        self.live.update(Group(self._table(), self.bar))

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in ("cell", "trials", "step", "seed-steps/s", "state"):
            table.add_column(name, justify="left" if name in ("cell", "state") else "right")
        for cell, packs in self.tally.cells().items():
            states = sorted({p.status for p in packs})
            steps = sum(p.step * p.trials for p in packs) / max(1, sum(p.trials for p in packs))
            rate = sum(p.rate for p in packs if p.status == "running")
            row = [cell, str(sum(p.trials for p in packs)), f"{steps:,.0f}/{packs[0].steps:,}"]
            table.add_row(*row, f"{rate:,.0f}" if rate else "", ", ".join(states))
        return table

    def close(self) -> None:
        self.live.stop()


class PlainView:
    """One line per event that matters and per 5 % of the work: for logs and pipes."""

    def __init__(self, out: IO[str]) -> None:
        self.out = out
        self.tally = Tally()
        self.told = 0

    def show(self, event: Event) -> None:
        self.tally.take(event)
        t = self.tally
        if event["event"] == "plan":
            trials = sum(p.trials for p in t.packs.values())
            done = f", {t.already} already done" if t.already else ""
            self._line(f"{t.sweep}: {trials} trials in {len(t.packs)} packs to run{done}")
        elif event["event"] in ("retry", "fail"):
            self._line(f"{event['event']} {event['pack']} {event.get('cell', '')}: {event.get('error', '')}")
        twentieth = int(t.share * 20)
        if twentieth > self.told:
            self.told = twentieth
            self._line(f"{t.sweep}: {twentieth * 5} % after {clock(t.now - t.began)}, left {clock(t.eta)}")

    def _line(self, text: str) -> None:
        print(text, file=self.out, flush=True)

    def close(self) -> None:
        self.out.flush()


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
