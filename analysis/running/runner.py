"""Runs an analysis over every partition of a sweep: in this process, or on a pool of Ray actors.

A partition has a bounded number of attempts; one that uses them up becomes a dead letter, and all others finish.
Outputs are named by key (parameters, code, inputs) and put in place whole, so that a repeated attempt does no harm and
what is computed is not repeated.

Analyses that look at networks run together: a worker loads a checkpoint once, passes the probe through it once, and
attempts all of them before it goes on to the next.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

from ndt_ray import registry
from ndt_ray.analysis.api import Analysis, Partition
from ndt_ray.analysis.running.pool import Crew, InlinePool, Job, Outcome, Pool, SweepTables, Task
from ndt_ray.errors import SpecError, did_you_mean

Executor = Literal["inline", "ray"]
ATTEMPTS = 3
COMMIT_OUTPUTS = 64
COMMIT_SECONDS = 5.0
"""What a driver that is killed may lose: outputs that were written but not yet put in place."""


@dataclass(frozen=True)
class DeadLetter:
    """A partition that used up its attempts, and why the last one failed."""

    partition: Partition
    attempts: int
    error: str
    traceback: str = ""


@dataclass(frozen=True)
class Progress:
    """Where a run stands; sent after every partition. `partition` is None in the first one, after the skipping."""

    analysis: str
    total: int
    done: int
    skipped: int
    dead: int
    retries: int
    partition: Partition | None = None


@dataclass
class Report:
    """What came of a run. `retries`: failed attempts that were made good."""

    analysis: str
    sweep: str
    total: int = 0
    done: int = 0
    skipped: int = 0
    retries: int = 0
    dead: list[DeadLetter] = field(default_factory=list)
    rows: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    """From start to end, of all analyses that ran together."""
    busy: float = 0.0
    """Seconds of its own attempts, all workers together; of a network's loading and pass, what fell to it."""
    slowest: tuple[float, str] = (0.0, "")
    """(seconds, partition) of the longest attempt."""
    noted: dict[str, list[Partition]] = field(default_factory=dict)
    """What attempts had to say, with the partitions that said it."""

    @property
    def ok(self) -> bool:
        return not self.dead

    @property
    def notes(self) -> list[str]:
        """What attempts had to say, a line each: the first partition that said it, and how many others did."""
        return [
            f"{said[0]}{f' and {len(said) - 1} more' if len(said) > 1 else ''}: {note}"
            for note, said in self.noted.items()
        ]

    def progress(self, partition: Partition | None = None) -> Progress:
        counts = (self.total, self.done, self.skipped, len(self.dead), self.retries)
        return Progress(self.analysis, *counts, partition)


def run(
    analysis: str | Analysis,
    tables: SweepTables,
    *,
    parameters: Mapping[str, Any] | None = None,
    **options: Any,
) -> Report:
    """Run an analysis (by name, or itself) over the partitions of a sweep that lack an output of its key.

    Options as in `run_together`. Failures of partitions are reported, not raised; SpecError for unknown names and
    parameters, ClusterError where no worker can start.
    """
    return run_together([(analysis, parameters)], tables, **options)[0]


def run_together(
    analyses: Sequence[tuple[str | Analysis, Mapping[str, Any] | None]],
    tables: SweepTables,
    *,
    partitions: Iterable[Partition] | None = None,
    executor: Executor = "inline",
    workers: int | None = None,
    cpus: float = 1.0,
    address: str | None = None,
    attempts: int = ATTEMPTS,
    progress: Callable[[Progress], None] | None = None,
    crew: Crew | None = None,
) -> list[Report]:
    """Run analyses, none of which reads what another writes, with their parameters; a report each.

    `partitions` narrows the choice. `workers` actors of `cpus` logical CPUs each (as many as fit, by default) on the
    cluster at `address`, or on one started here for the run; a `crew` is such actors that are there already. What they
    want of one partition is done by one worker in one go, so that a network is loaded once for all.
    """
    started = time.monotonic()
    if executor not in ("inline", "ray") or attempts < 1 or (workers is not None and workers < 1):
        raise SpecError(
            "executor is inline or ray, attempts and workers are positive,"
            f" but got ({executor=}, {attempts=}, {workers=})"
        )
    jobs = tuple(_job(analysis, parameters, tables) for analysis, parameters in analyses)
    _check_independent(jobs)
    for job in jobs:
        check_layers(job.analysis, job.parameters, tables)
    chosen = None if partitions is None else list(partitions)
    tell = progress or (lambda _: None)
    todo: dict[Partition, list[int]] = {}
    reports = []
    for number, job in enumerate(jobs):
        wanted = job.partitions() if chosen is None else chosen
        committed = tables.committed(job.analysis.name)
        lacking = [p for p, key in zip(wanted, job.keys(wanted), strict=True) if committed.get(str(p)) != key]
        for partition in lacking:
            todo.setdefault(partition, []).append(number)
        reports.append(Report(job.analysis.name, tables.sweep, total=len(wanted), skipped=len(wanted) - len(lacking)))
        tell(reports[-1].progress())
        if chosen is None and (gone := set(committed) - {str(p) for p in wanted}):
            tables.commit(job.analysis.name, [], drop=gone)
    tasks = [Task(partition, tuple(numbers)) for partition, numbers in todo.items()]
    try:
        if tasks:
            with ExitStack() as stack:
                if executor == "ray":
                    own = Crew(workers, cpus, address) if crew is None else nullcontext(crew)
                    pool: Pool = stack.enter_context(stack.enter_context(own).pool(jobs, len(tasks)))
                else:
                    pool = InlinePool(jobs)
                commits = [stack.enter_context(closing(_Commits(job))) for job in jobs]
                _Drain(pool, commits, attempts, reports, tell).run(tasks)
    finally:
        for report in reports:
            report.seconds = time.monotonic() - started
    return reports


def together(analyses: Sequence[tuple[str | Analysis, Mapping[str, Any] | None]]) -> list[list[int]]:
    """Places of consecutive analyses that may run together: they look at networks, and none reads another's tables."""
    found: list[list[int]] = []
    group: list[Analysis] = []
    for place, (named, _) in enumerate(analyses):
        analysis = resolved(named)
        written = {table.name for other in group for table in other.writes}
        joins = analysis.context is not None and bool(group) and not written & set(analysis.reads)
        if not joins:
            found.append([])
            group = []
        found[-1].append(place)
        group = [*group, analysis] if analysis.context is not None else []
    return found


def resolved(named: str | Analysis) -> Analysis:
    """An analysis, by name or itself; SpecError for anything else."""
    found = registry.resolve("analysis", named) if isinstance(named, str) else named
    if not isinstance(found, Analysis):
        raise SpecError(f"{named!r} is no analysis - declare it with @analysis(name=…, reads=…, writes=…, per=…)")
    return found


def _job(analysis: str | Analysis, parameters: Mapping[str, Any] | None, tables: SweepTables) -> Job:
    found = resolved(analysis)
    return Job(found, found.parameters(parameters), tables, found.code_hash())


def _check_independent(jobs: Sequence[Job]) -> None:
    names = [job.analysis.name for job in jobs]
    if len(set(names)) < len(names):
        raise SpecError(f"an analysis runs once at a time, but got {', '.join(names)}")
    for job in jobs:
        for other in jobs:
            if read := {table.name for table in other.analysis.writes} & set(job.analysis.reads):
                raise SpecError(
                    f"analysis '{job.analysis.name}' reads {', '.join(sorted(read))}, which '{other.analysis.name}'"
                    " writes: run them one after the other"
                )


def check_layers(analysis: Analysis, parameters: Mapping[str, Any], tables: SweepTables) -> None:
    """SpecError for a layer that is asked for and that no network of the sweep has; where that is known."""
    paths = [] if analysis.layers is None else list(analysis.layers(analysis.parameters(parameters)))
    known = tables.layers() if paths else []
    for path in paths if known else ():
        if path not in known:
            where = f"no network of '{tables.sweep}' has a layer '{path}'"
            raise SpecError(f"{analysis.name}: {where}{did_you_mean(path, known)}")


class _Drain:
    """Keeps the pool busy until every partition is done or dead; a failed one goes to the end of the queue."""

    def __init__(
        self,
        pool: Pool,
        commits: Sequence["_Commits"],
        attempts: int,
        reports: Sequence[Report],
        tell: Callable[[Progress], None],
    ) -> None:
        self.pool, self.commits, self.attempts, self.reports, self.tell = pool, commits, attempts, reports, tell
        self.queue: deque[Task] = deque()
        self.tries: Counter[tuple[int, Partition]] = Counter()

    def run(self, tasks: Iterable[Task]) -> None:
        self.queue.extend(tasks)
        running = 0
        while self.queue or running:
            while self.queue and self.pool.room > 0:
                self.pool.submit(self.queue.popleft())
                running += 1
            for task, outcomes in self.pool.collect():
                running -= 1
                if isinstance(outcomes, Outcome) and len(task.jobs) > 1:
                    # Which of them killed the worker is not known: each is tried alone, and it costs none an attempt.
                    self.queue.extend(Task(task.partition, (number,)) for number in task.jobs)
                    continue
                found = [outcomes] if isinstance(outcomes, Outcome) else outcomes
                for number, outcome in zip(task.jobs, found, strict=True):
                    self._ended(number, task.partition, outcome)

    def _ended(self, number: int, partition: Partition, outcome: Outcome) -> None:
        report = self.reports[number]
        self.tries[number, partition] += 1
        tries = self.tries[number, partition]
        report.busy += outcome.seconds
        report.slowest = max(report.slowest, (outcome.seconds, str(partition)))
        for note in dict.fromkeys(outcome.notes):
            report.noted.setdefault(note, []).append(partition)
        if outcome.error is None:
            self.commits[number].add(outcome.written)
            report.done += 1
            report.rows.update(outcome.rows)
        elif tries < self.attempts:
            report.retries += 1
            self.queue.append(Task(partition, (number,)))
            return
        else:
            report.dead.append(DeadLetter(partition, tries, outcome.error, outcome.traceback))
        self.tell(report.progress(partition))


class _Commits:
    """Puts finished outputs in place, some at a time: each commit rewrites the index of all."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._written: list[Any] = []
        self._last = time.monotonic()

    def add(self, written: Any) -> None:
        self._written.append(written)
        if len(self._written) >= COMMIT_OUTPUTS or time.monotonic() - self._last > COMMIT_SECONDS:
            self.close()

    def close(self) -> None:
        if self._written:
            self._job.tables.commit(self._job.analysis.name, self._written)
        self._written, self._last = [], time.monotonic()
