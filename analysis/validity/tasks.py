"""What a scorecard asks of a detector: tasks of some series each, computed in any process, kept as files.

A task's file holds what the detector said, one line of JSON a series, and nothing that the families can give again.
It is written whole and then renamed: a run that is stopped goes on with the tasks that have no file.
"""

import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from ndt_ray.analysis.validity import battery, families
from ndt_ray.analysis.validity.families import Floats
from ndt_ray.analysis.validity.subject import Found, Subject, subject
from ndt_ray.errors import NdtError, SpecError

CHUNK = 50
"""Series of one task."""
CURVES = ("step", "sigmoid_20", "sigmoid_60", "kink")
"""Shapes whose power is measured at every SNR; the others at `BAR_SNR` only."""
BAR_SNR = 8.0
NEEDLE_SNR = 12.0
SMALL_BATCHES: Mapping[str, Any] = {"n_surrogates": 67}
"""First batch of surrogates of the default detector: series that 10 of these match are decided, the others get twice as
many more, the fewest whose largest fifth can carry a tail. With the usual 500 it takes three times as long."""


@dataclass(frozen=True)
class Size:
    """Series per null family (calibrated ones, those that may be marked, those beyond the requirements), per point of
    a power curve, per shape at `BAR_SNR`; simulated families of 40 for the false discovery rate; 12 SD events among
    many series."""

    nulls: int
    marked: int
    others: int
    planted: int
    bars: int
    families: int
    needles: int

    def __post_init__(self) -> None:
        needed = -(-self.families * families.FAMILY_SIZE // len(families.CALIBRATED))
        if (
            self.nulls < needed
            or min(self.marked, self.others, self.planted, self.bars, self.families, self.needles) < 1
        ):
            raise SpecError(f"{self.families} families need {needed} series per null family, but got ({self=})")

    def fraction(self, share: float) -> "Size":
        """The same scorecard on so many of its series."""
        parts = (self.nulls, self.marked, self.others, self.planted, self.bars, self.families, self.needles)
        return Size(*(max(1, round(share * part)) for part in parts))


FULL = Size(nulls=2500, marked=2000, others=400, planted=200, bars=400, families=500, needles=200)
QUICK = FULL.fraction(0.1)


@dataclass(frozen=True)
class Task:
    """Some series: of a null family, of a planted shape, of events inside null families, or the battery."""

    kind: str
    name: str = ""
    snr: float = 0.0
    phi: float = 0.0
    first: int = 0
    count: int = 0
    n: int = families.LENGTH

    @property
    def id(self) -> str:
        return f"{self.kind}-{self.name}-snr{self.snr:g}-phi{self.phi:g}-n{self.n}-{self.first}+{self.count}"

    def series(self) -> list[Floats]:
        """Groups of series of one length, `[count, n]` each."""
        if self.kind == "null":
            return [families.null(self.name, self.count, self.n, self.first)]
        if self.kind == "planted":
            return [self.planted().values]
        if self.kind == "in_nulls":
            return [families.in_nulls(self.count, self.n, self.first).values]
        return [fixture.values[None] for fixture in battery.fixtures()]

    def planted(self) -> families.Planted:
        """The series of a `planted` task with their truths."""
        return families.planted(self.name, self.snr, self.phi, self.count, self.n, self.first)


def plan(size: Size, required: bool = False) -> list[Task]:
    """All tasks of a scorecard, or those alone that a requirement is `required` of."""
    tasks = [Task("battery")]
    for name, null in families.NULLS.items():
        tasks += _chunks(Task("null", name), size.marked if null.may_be_marked else size.nulls)
    for name in () if required else families.OTHERS:
        tasks += _chunks(Task("null", name), size.others)
    for name, shape in families.PLANTED.items():
        for phi in families.PHIS:
            for snr in families.SNRS if name in CURVES else (BAR_SNR,):
                needle = name == "step" and snr == NEEDLE_SNR and phi == 0
                if required and not needle and not (shape.bar and snr == BAR_SNR):
                    continue
                count = size.bars if snr == BAR_SNR else max(size.planted, size.needles if needle else 0)
                tasks += _chunks(Task("planted", name, snr, phi), count)
    true = max(round(share * families.FAMILY_SIZE) for share in families.TRUE_SHARES)
    return tasks + list(_chunks(Task("in_nulls"), size.families * true))


def plan_rates(size: Size) -> list[Task]:
    """Null series that a detector of rates is judged on, which is asked nothing else."""
    return [task for name in families.RATES for task in _chunks(Task("null", name), size.marked)]


def _chunks(task: Task, count: int) -> Iterator[Task]:
    for first in range(0, count, CHUNK):
        yield Task(task.kind, task.name, task.snr, task.phi, first, min(CHUNK, count - first), task.n)


def compute(task: Task, judged: Subject) -> list[Found]:
    """What the detector says of the task's series."""
    said: list[Found] = []
    for values in task.series():
        said += judged.judge(
            values, [f"{task.kind} {task.name} {task.first + len(said) + i}" for i in range(len(values))]
        )
    return said


@dataclass(frozen=True)
class Progress:
    """Tasks done of all, those found done from before, and CPU seconds spent on the series of all of them."""

    done: int
    total: int
    skipped: int
    cpu_seconds: float


def run(
    judged: Subject,
    tasks: Sequence[Task],
    folder: Path,
    workers: int = 1,
    progress: Callable[[Progress], None] | None = None,
) -> tuple[dict[Task, list[Found]], float]:
    """What the detector says, by task, and the CPU seconds it took; tasks with a file are read, not computed again.

    One worker: in this process. More: that many processes, of one thread each, which make the detector anew from its
    name and parameters. NdtError where one of them dies.
    """
    place = folder / f"{judged.label}-{_source_of_series()}"
    place.mkdir(parents=True, exist_ok=True)
    tell = progress or (lambda _: None)
    results: dict[Task, list[Found]] = {}
    cpu, skipped = 0.0, 0
    for task in tasks:
        if (kept := _read(place, task)) is not None:
            results[task], seconds = kept
            cpu, skipped = cpu + seconds, skipped + 1
    tell(Progress(skipped, len(tasks), skipped, cpu))
    todo = [task for task in tasks if task not in results]
    for task, seconds in _computed(judged, todo, place, workers):
        kept = _read(place, task)
        assert kept is not None, task
        results[task], cpu = kept[0], cpu + seconds
        tell(Progress(len(results), len(tasks), skipped, cpu))
    return results, cpu


def _computed(judged: Subject, todo: Sequence[Task], place: Path, workers: int) -> Iterator[tuple[Task, float]]:
    if workers <= 1 or len(todo) <= 1:
        for task in todo:
            yield task, _work(judged, task, place)
        return
    threads = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ.update(dict.fromkeys(threads, "1"))  # read once, when a child imports NumPy
    pool = ProcessPoolExecutor(workers, get_context("spawn"))
    try:
        queue, running = iter(todo), dict[Future[float], Task]()
        for task in itertools.islice(queue, 2 * workers):
            running[pool.submit(_remote, judged.name, dict(judged.parameters), task, place)] = task
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                task = running.pop(future)
                if (following := next(queue, None)) is not None:
                    submitted = pool.submit(_remote, judged.name, dict(judged.parameters), following, place)
                    running[submitted] = following
                yield task, future.result()
    except BrokenProcessPool as error:
        raise NdtError(
            "a worker died, perhaps for lack of memory - run the same again: it goes on from here"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for name, value in threads.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


_SUBJECTS: dict[str, Subject] = {}


def _remote(name: str, parameters: Mapping[str, Any], task: Task, place: Path) -> float:
    key = json.dumps([name, dict(parameters)], sort_keys=True)
    if key not in _SUBJECTS:
        _SUBJECTS[key] = subject(name, parameters)
    return _work(_SUBJECTS[key], task, place)


def _work(judged: Subject, task: Task, place: Path) -> float:
    started = time.process_time()
    said = compute(task, judged)
    seconds = time.process_time() - started
    lines = [json.dumps({"cpu_seconds": seconds})]
    for f in said:
        of_events = None if f.p_event is None else f.p_event.tolist()
        lines.append(json.dumps([f.location.tolist(), None if np.isnan(f.p) else f.p, of_events, f.marked]))
    temporary = place / f".{task.id}.{os.getpid()}"
    temporary.write_text("\n".join(lines) + "\n")
    temporary.replace(place / f"{task.id}.jsonl")
    return seconds


def _read(place: Path, task: Task) -> tuple[list[Found], float] | None:
    """What a task's file says, or None where there is none."""
    file = place / f"{task.id}.jsonl"
    if not file.is_file():
        return None
    head, *lines = file.read_text().splitlines()
    found = []
    for line in lines:
        location, p, of_events, marked = json.loads(line)
        events = None if of_events is None else np.array(of_events, dtype=np.float64)
        found.append(
            Found(np.array(location, dtype=np.float64), float("nan") if p is None else float(p), events, marked)
        )
    return found, float(json.loads(head)["cpu_seconds"])


def _source_of_series() -> str:
    """8 hex digits of the source of all series: other series, other files."""
    modules = (families.__file__, battery.__file__)
    return hashlib.sha256(b"".join(Path(m).read_bytes() for m in modules)).hexdigest()[:8]
