"""Interleaved rounds, medians of ratios, and records that say hardware and n."""

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import psutil
import torch

from ndt_ray.lanes.numerics import configure, fingerprint

RECORDS = Path(__file__).parent / "records"
Clock = Literal["cpu", "wall"]


class Side(Protocol):
    """One of the things compared."""

    lanes: int
    """Seed-steps of one step."""
    charge: float
    """Seconds a seed-step that are spent outside `run`, once an epoch."""

    def run(self, steps: int) -> None:
        """Does so many steps; everything queued on a device has ended when it returns."""


@dataclass(frozen=True)
class Timed:
    """What one side did in one round: seconds of this process and of the wall."""

    seed_steps: int
    cpu: float
    wall: float

    def rate(self, clock: Clock) -> float:
        """Seed-steps a second."""
        return self.seed_steps / (self.cpu if clock == "cpu" else self.wall)


@dataclass(frozen=True)
class Ratio:
    """Median over rounds of a ratio taken within each round, with the smallest and the largest."""

    median: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f}, n={self.n})"


Rounds = list[dict[str, Timed]]


def interleave(sides: Mapping[str, Side], rounds: int, seconds: float) -> Rounds:
    """A B, B A, A B ...: every side runs about `seconds` in every round, at least one step."""
    steps = {name: _calibrate(side, seconds) for name, side in sides.items()}
    out: Rounds = []
    for r in range(rounds):
        names = list(sides)
        order = names[r % len(names) :] + names[: r % len(names)]
        out.append({name: timed(sides[name], steps[name]) for name in order})
    return out


def timed(side: Side, steps: int) -> Timed:
    """Runs a side once under both clocks."""
    wall, cpu = time.perf_counter(), time.process_time()
    side.run(steps)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    extra = side.charge * steps * side.lanes
    return Timed(steps * side.lanes, cpu + extra, wall + extra)


class OtherLoad:
    """What share of all cores other processes took (or a hypervisor withheld) since this was made."""

    def __init__(self) -> None:
        self.busy, self.wall = _busy(), time.perf_counter()

    def share(self, own: float) -> float:
        """`own`: processor seconds of the processes that are compared."""
        return max(0.0, (_busy() - self.busy - own) / ((time.perf_counter() - self.wall) * (os.cpu_count() or 1)))


def _busy() -> float:
    times = psutil.cpu_times()
    # Guests are counted in user and nice already.
    idle = ("idle", "iowait", "guest", "guest_nice")
    return float(sum(v for k, v in times._asdict().items() if k not in idle))


def _calibrate(side: Side, seconds: float) -> int:
    side.run(2)  # the first step allocates, and tunes kernels
    steps = 1
    while (took := timed(side, steps).wall) < seconds / 4:
        steps *= 2
    return max(1, round(steps * seconds / took))


def ratio(rounds: Rounds, of: str, to: str, clock: Clock) -> Ratio:
    """Rate of side `of` over that of side `to`."""
    return spread([r[of].rate(clock) / r[to].rate(clock) for r in rounds])


def spread(values: Sequence[float]) -> Ratio:
    """Median and range."""
    return Ratio(statistics.median(values), min(values), max(values), len(values))


def rate(rounds: Rounds, side: str, clock: Clock) -> float:
    """Median seed-steps a second."""
    return statistics.median(r[side].rate(clock) for r in rounds)


@dataclass(frozen=True)
class Bar:
    """A requirement and what was measured against it."""

    what: str
    value: float | None
    """None: the circumstances that the requirement names were not there."""
    limit: float
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        return bool(self.value <= self.limit if self.at_most else self.value >= self.limit)

    def __str__(self) -> str:
        verdict = {True: "met       ", False: "MISSED    ", None: "not tested"}[self.met]
        value = "-" if self.value is None else f"{self.value:.3g}"
        return f"{verdict} {self.what}: {value} ({'<=' if self.at_most else '>='} {self.limit:g})"


def parser(description: str | None, rounds: int, seconds: float) -> argparse.ArgumentParser:
    """Options that every benchmark has."""
    p = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--quick", action="store_true", help="less than a minute; no record unless --record")
    p.add_argument("--record", action=argparse.BooleanOptionalAction, default=None, help="write a record")
    p.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    p.add_argument("--rounds", type=int, default=rounds)
    p.add_argument("--seconds", type=float, default=seconds, help="of each side in each round")
    return p


def start(device: torch.device) -> tuple[float, float, float]:
    """One thread and the numerics that every run of ndt-ray has; returns the load average before."""
    configure(device)
    return os.getloadavg()


def finish(
    name: str,
    options: argparse.Namespace,
    rows: Sequence[Mapping[str, Any]],
    bars: Sequence[Bar],
    load: tuple[float, float, float],
    notes: Sequence[str] = (),
) -> int:
    """Prints table, bars and load; writes the record if it is to be kept. Exit status: 1 where a bar was missed."""
    device = torch.device(options.device)
    loads = {"start": load[0], "end": os.getloadavg()[0], "cores": os.cpu_count()}
    print(f"\n{name}: {hardware(device)['name']}, {fingerprint(device)}")
    print(f"load average (1 min) {load[0]:.2f} at the start, {loads['end']:.2f} at the end, {loads['cores']} cores")
    print(table(rows))
    print("\n".join([*notes, *map(str, bars)]))
    keep = not options.quick if options.record is None else options.record
    if keep:
        record = {
            "benchmark": name,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": ["python", "-m", "benchmarks", name, *_given(options)],
            "commit": _git("rev-parse", "HEAD"),
            "changed": bool(_git("status", "--porcelain", "--", "ndt_ray", "benchmarks/*.py")),
            "hardware": hardware(device),
            "software": {"fingerprint": fingerprint(device), "python": platform.python_version()},
            "load_average": loads,
            "rows": [{k: asdict(v) if isinstance(v, Ratio) else v for k, v in row.items()} for row in rows],
            "bars": [{**asdict(bar), "met": bar.met} for bar in bars],
            "notes": list(notes),
        }
        print(f"record: {_write(name, record)}")
    return 1 if any(bar.met is False for bar in bars) else 0


def _given(options: argparse.Namespace) -> list[str]:
    return [f"--{k.replace('_', '-')}={v}" for k, v in vars(options).items() if v not in (None, False)]


def _write(name: str, record: Mapping[str, Any]) -> Path:
    """A new file: an earlier record is never written over."""
    slug = re.sub(r"[^a-z0-9]+", "-", str(record["hardware"]["name"]).lower()).strip("-")
    stem = f"{record['date'][:10]}_{name}_{slug}"
    RECORDS.mkdir(exist_ok=True)
    path, again = RECORDS / f"{stem}.json", 2
    while path.exists():
        path, again = RECORDS / f"{stem}_{again}.json", again + 1
    path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    return path


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of one shape in aligned columns."""
    if not rows:
        return ""
    head = list(rows[0])
    cells = [head, *([_cell(row.get(k, "")) for k in head] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def hardware(device: torch.device) -> dict[str, Any]:
    """The processor or GPU, cores and memory, as far as the system tells."""
    cpu, cores = _cpu_model(), os.cpu_count()
    found: dict[str, Any] = {"cpu": cpu, "cores": cores, "capability": torch.backends.cpu.get_cpu_capability()}
    found["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    if device.type == "cuda":
        p = torch.cuda.get_device_properties(device)
        return {"name": p.name, **found, "gpu": p.name, "gpu_memory_gib": round(p.total_memory / 2**30, 1)}
    return {"name": f"{cpu}, {cores} cores", **found}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2] for line in lines if line.startswith("model name")]
    if not names:
        return platform.machine()
    return re.sub(r"\s+", " ", re.sub(r"\(R\)|\(TM\)|CPU|Processor|@.*", "", names[0])).strip()


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=RECORDS.parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None  # not a clone
    return done.stdout.strip()


def report(line: str) -> None:
    """Progress, so that a long run is seen to live."""
    print(line, file=sys.stderr, flush=True)


def median_seconds(action: Callable[[], object], n: int = 5) -> float:
    """Median CPU seconds of an action."""
    took = []
    for _ in range(n):
        began = time.process_time()
        action()
        took.append(time.process_time() - began)
    return statistics.median(took)
