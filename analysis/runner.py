"""Runs an analysis over every partition of a sweep: in this process, or on a pool of Ray actors.

The pool is a pull loop of our own over `ray.wait`. Ray's ActorPool loses everything after the first dead actor, and
unlimited task retries repeat a partition that kills its worker for ever. Here a partition has a bounded number of
attempts; one that uses them up becomes a dead letter, and all others finish. Outputs are named by key (parameters,
code, inputs) and put in place whole, so that a repeated attempt does no harm and what is computed is not repeated.
"""

import math
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import pyarrow as pa

from ndt_ray import registry
from ndt_ray.analysis.api import Analysis, AnalysisInput, Partition, Per
from ndt_ray.errors import ClusterError, SpecError

Executor = Literal["inline", "ray"]
ATTEMPTS = 3
COMMIT_OUTPUTS = 64
COMMIT_SECONDS = 5.0
"""What a driver that is killed may lose: outputs that were written but not yet put in place."""


class SweepTables(Protocol):
    """What the runner needs of a store: the tables of one sweep, by partition. Picklable, for it goes to workers."""

    @property
    def sweep(self) -> str: ...
    def partitions(self, per: Per) -> list[Partition]:
        """All partitions that have data."""

    def input_hashes(self, reads: Iterable[str], partitions: Sequence[Partition]) -> list[str]:
        """One a partition: it changes whenever the rows of these tables that belong to the partition do."""

    def read(self, table: str, partition: Partition) -> pa.Table:
        """The partition's rows; no rows where the store has no such table yet."""

    def committed(self, analysis: str) -> Mapping[str, str]:
        """The key of the output in place, by partition (as text)."""

    def write(self, analysis: str, partition: Partition, key: str, tables: Mapping[str, pa.Table]) -> Any:
        """Write the files of an output, called by workers; nobody sees them before `commit` gets what this returns."""

    def commit(self, analysis: str, written: Iterable[Any], drop: Iterable[str] = ()) -> None:
        """Put outputs in place, each instead of the one that was there, and drop those of other partitions."""


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

    @property
    def ok(self) -> bool:
        return not self.dead

    def progress(self, partition: Partition | None = None) -> Progress:
        counts = (self.total, self.done, self.skipped, len(self.dead), self.retries)
        return Progress(self.analysis, *counts, partition)


@dataclass(frozen=True)
class Outcome:
    """One attempt: rows written by table, or an error."""

    rows: Mapping[str, int] = field(default_factory=dict)
    written: Any = None
    error: str | None = None
    traceback: str = ""


@dataclass(frozen=True)
class Job:
    """An analysis with its parameters and tables: all that a worker needs to attempt a partition."""

    analysis: Analysis
    parameters: Mapping[str, Any]
    tables: SweepTables
    code: str

    def keys(self, partitions: Sequence[Partition]) -> list[str]:
        """Names of the partitions' outputs, as their inputs are now."""
        hashes = self.tables.input_hashes(self.analysis.reads, partitions)
        return [self.analysis.output_key(self.parameters, self.code, inputs) for inputs in hashes]

    def attempt(self, partition: Partition) -> Outcome:
        """Read, compute, write; what goes wrong is returned, never raised."""
        try:
            (key,) = self.keys([partition])
            read = {name: self.tables.read(name, partition) for name in self.analysis.reads}
            found = self.analysis(AnalysisInput(self.tables.sweep, partition, read), **self.parameters)
            written = self.tables.write(self.analysis.name, partition, key, found)
        except Exception as error:
            return Outcome(error=_line(error), traceback=traceback.format_exc())
        return Outcome({name: table.num_rows for name, table in found.items()}, written)


def run(
    analysis: str | Analysis,
    tables: SweepTables,
    *,
    parameters: Mapping[str, Any] | None = None,
    partitions: Iterable[Partition] | None = None,
    executor: Executor = "inline",
    workers: int | None = None,
    cpus: float = 1.0,
    address: str | None = None,
    attempts: int = ATTEMPTS,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Run an analysis (by name, or itself) over the partitions of a sweep that lack an output of its key.

    `partitions` narrows the choice. `workers` actors of `cpus` logical CPUs each (as many as fit, by default) on the
    cluster at `address`, or on one started here for the run. Failures of partitions are reported, not raised;
    SpecError for unknown names and parameters, ClusterError where no worker can start.
    """
    started = time.monotonic()
    if executor not in ("inline", "ray") or attempts < 1 or (workers is not None and workers < 1):
        raise SpecError(
            "executor is inline or ray, attempts and workers are positive,"
            f" but got ({executor=}, {attempts=}, {workers=})"
        )
    job = _job(analysis, parameters, tables)
    wanted = list(tables.partitions(job.analysis.per) if partitions is None else partitions)
    committed = tables.committed(job.analysis.name)
    todo = [p for p, key in zip(wanted, job.keys(wanted), strict=True) if committed.get(str(p)) != key]
    report = Report(job.analysis.name, tables.sweep, total=len(wanted), skipped=len(wanted) - len(todo))
    tell = progress or (lambda _: None)
    tell(report.progress())
    if partitions is None and (gone := set(committed) - {str(p) for p in wanted}):
        tables.commit(job.analysis.name, [], drop=gone)
    try:
        if todo:
            pool = _inline(job) if executor == "inline" else _ray(job, len(todo), workers, cpus, address)
            with pool as attempted, closing(_Commits(job)) as commits:
                _drain(attempted, commits, todo, attempts, report, tell)
    finally:
        report.seconds = time.monotonic() - started
    return report


def _job(analysis: str | Analysis, parameters: Mapping[str, Any] | None, tables: SweepTables) -> Job:
    found = registry.resolve("analysis", analysis) if isinstance(analysis, str) else analysis
    if not isinstance(found, Analysis):
        raise SpecError(f"{analysis!r} is no analysis - declare it with @analysis(name=…, reads=…, writes=…, per=…)")
    return Job(found, found.parameters(parameters), tables, found.code_hash())


def _drain(
    pool: "Pool",
    commits: "_Commits",
    todo: list[Partition],
    attempts: int,
    report: Report,
    tell: Callable[[Progress], None],
) -> None:
    """Keep the pool busy until every partition is done or dead; a failed one goes to the end of the queue."""
    queue, tries, running = deque(todo), Counter[Partition](), 0
    while queue or running:
        while queue and pool.room > 0:
            pool.submit(queue.popleft())
            running += 1
        for partition, outcome in pool.collect():
            running -= 1
            tries[partition] += 1
            if outcome.error is None:
                commits.add(outcome.written)
                report.done += 1
                report.rows.update(outcome.rows)
            elif tries[partition] < attempts:
                report.retries += 1
                queue.append(partition)
                continue
            else:
                report.dead.append(DeadLetter(partition, tries[partition], outcome.error, outcome.traceback))
            tell(report.progress(partition))


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


class Pool(Protocol):
    """Where attempts are made."""

    @property
    def room(self) -> int:
        """How many more partitions it takes now."""

    def submit(self, partition: Partition) -> None: ...

    def collect(self) -> list[tuple[Partition, Outcome]]:
        """Wait for at least one attempt to end."""


class _InlinePool:
    """One attempt at a time, in this process: breakpoints work, and a crash is a crash."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._waiting: list[Partition] = []

    @property
    def room(self) -> int:
        return 1 - len(self._waiting)

    def submit(self, partition: Partition) -> None:
        self._waiting.append(partition)

    def collect(self) -> list[tuple[Partition, Outcome]]:
        partition = self._waiting.pop()
        return [(partition, self._job.attempt(partition))]


@contextmanager
def _inline(job: Job) -> Iterator[Pool]:
    yield _InlinePool(job)


class _Worker:
    """What an actor is: it holds the job, and attempts one partition after another."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def ready(self) -> bool:
        return True

    def attempt(self, partition: Partition) -> Outcome:
        return self._job.attempt(partition)


class _RayPool:
    """Actors with one attempt each in flight; one that dies costs an attempt, and is replaced."""

    def __init__(self, job: Job, size: int, cpus: float) -> None:
        import ray

        self._size = size
        # Restarts and retries are the pull loop's: only it counts attempts.
        self._worker = ray.remote(num_cpus=cpus, max_restarts=0, max_task_retries=0)(_Worker)
        self._job = ray.put(job)
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, Partition]] = {}
        first = self._worker.remote(self._job)
        try:
            ray.get(first.ready.remote())
        except ray.exceptions.RayError as error:
            raise ClusterError(
                f"no worker could load analysis '{job.analysis.name}': {_line(error)} - is the same ndt-ray installed"
                " on every node? (`ndt doctor` says)"
            ) from error
        self._idle.append(first)

    @property
    def room(self) -> int:
        return self._size - len(self._busy)

    def submit(self, partition: Partition) -> None:
        actor = self._idle.pop() if self._idle else self._worker.remote(self._job)
        self._busy[actor.attempt.remote(partition)] = (actor, partition)

    def collect(self) -> list[tuple[Partition, Outcome]]:
        import ray

        ready, _ = ray.wait(list(self._busy), num_returns=1)
        return [self._ended(ref) for ref in ready]

    def _ended(self, ref: Any) -> tuple[Partition, Outcome]:
        import ray

        actor, partition = self._busy.pop(ref)
        try:
            outcome: Outcome = ray.get(ref)
        except ray.exceptions.RayError as error:
            ray.kill(actor)  # dead, or of unknown state behind a broken network: its place is taken by a new one
            return partition, Outcome(error=f"the worker died: {_line(error)}", traceback=str(error))
        self._idle.append(actor)
        return partition, outcome

    def close(self) -> None:
        import ray

        for actor in [*self._idle, *(actor for actor, _ in self._busy.values())]:
            ray.kill(actor)


@contextmanager
def _ray(job: Job, partitions: int, workers: int | None, cpus: float, address: str | None) -> Iterator[Pool]:
    """A pool on the cluster at `address`, or on a local one that ends with it."""
    from ndt_ray import cluster

    local = address in (None, "local") and not cluster.joined()
    with cluster.start(address, cpus=math.ceil(workers * cpus) if workers and local else None):
        import ray

        fitting = max(1, int(ray.cluster_resources().get("CPU", 1) // cpus)) if cpus > 0 else partitions
        pool = _RayPool(job, min(partitions, workers or fitting), cpus)
        try:
            yield pool
        finally:
            pool.close()


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
