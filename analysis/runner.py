"""Runs an analysis over every partition of a sweep: in this process, or on a pool of Ray actors.

The pool is a pull loop of our own over `ray.wait`. Ray's ActorPool loses everything after the first dead actor, and
unlimited task retries repeat a partition that kills its worker for ever. Here a partition has a bounded number of
attempts; one that uses them up becomes a dead letter, and all others finish. Outputs are named by key (parameters,
code, inputs) and put in place whole, so that a repeated attempt does no harm and what is computed is not repeated.

Analyses that look at networks run together: a worker loads a checkpoint once, passes the probe through it once, and
attempts all of them before it goes on to the next.
"""

import math
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pyarrow as pa

from ndt_ray import registry
from ndt_ray.analysis.api import Analysis, AnalysisInput, Partition, Per
from ndt_ray.errors import ClusterError, SpecError

if TYPE_CHECKING:
    from ndt_ray.analysis.mechanisms.context import Contexts

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

    def checkpoint(self, trial_id: str, step: int) -> Mapping[str, Any]:
        """Arrays of a saved checkpoint by name; CheckpointError where there is none, or it is corrupt."""

    def artifact(self, kind: str, key: str) -> tuple[str, bytes] | None:
        """(path, bytes) of what an analysis kept under this key; None where nothing was kept."""

    def keep_artifact(self, kind: str, key: str, data: bytes) -> str:
        """Keep a file that is dear to make; its path."""

    def committed(self, analysis: str) -> Mapping[str, str]:
        """The key of the output in place, by partition (as text)."""

    def write(
        self,
        analysis: str,
        partition: Partition,
        key: str,
        tables: Mapping[str, pa.Table],
        parameters: Mapping[str, Any],
    ) -> Any:
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
    """From start to end, of all analyses that ran together."""
    busy: float = 0.0
    """Seconds of its own attempts, all workers together; of a network's loading and pass, what fell to it."""
    slowest: tuple[float, str] = (0.0, "")
    """(seconds, partition) of the longest attempt."""
    notes: list[str] = field(default_factory=list)
    """What attempts had to say, each with its partition."""

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
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """An analysis with its parameters and tables: all that a worker needs to attempt a partition."""

    analysis: Analysis
    parameters: Mapping[str, Any]
    tables: SweepTables
    code: str

    def partitions(self) -> list[Partition]:
        """All that has data; for networks per checkpoint, the initialisations as well, saved or not."""
        found = self.tables.partitions(self.analysis.per)
        if self.analysis.context is None or self.analysis.per != "checkpoint":
            return found
        both = {*found, *(Partition(p.trial_id, 0) for p in self.tables.partitions("trial"))}
        return sorted(both, key=lambda p: (p.trial_id or "", p.step or 0))

    def keys(self, partitions: Sequence[Partition]) -> list[str]:
        """Names of the partitions' outputs, as their inputs are now."""
        hashes = self.tables.input_hashes(self.analysis.reads, partitions)
        return [self.analysis.output_key(self.parameters, self.code, inputs) for inputs in hashes]

    def attempt(
        self,
        partition: Partition,
        contexts: "Contexts | None" = None,
        key: str | None = None,
        known: dict[str, pa.Table] | None = None,
    ) -> Outcome:
        """Read, compute, write; what goes wrong is returned, never raised.

        `known`: tables that were read for another analysis; `key` is then the output's name from before they were.
        """
        known = {} if known is None else known
        started, notes = time.monotonic(), list[str]()
        try:
            key = key or self.keys([partition])[0]
            for name in self.analysis.reads:
                if name not in known:
                    known[name] = self.tables.read(name, partition)
            read = {name: known[name] for name in self.analysis.reads}
            given = AnalysisInput(self.tables.sweep, partition, read, contexts, self.tables, notes)
            found = self.analysis(given, **self.parameters)
            written = self.tables.write(self.analysis.name, partition, key, found, self.parameters)
        except Exception as error:
            took = time.monotonic() - started
            return Outcome(error=_line(error), traceback=traceback.format_exc(), seconds=took, notes=tuple(notes))
        rows = {name: table.num_rows for name, table in found.items()}
        return Outcome(rows, written, seconds=time.monotonic() - started, notes=tuple(notes))


@dataclass(frozen=True)
class Task:
    """What a worker is given at once: one partition, and which of the jobs are to be attempted on it."""

    partition: Partition
    jobs: tuple[int, ...]


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
) -> list[Report]:
    """Run analyses, none of which reads what another writes, with their parameters; a report each.

    `partitions` narrows the choice. `workers` actors of `cpus` logical CPUs each (as many as fit, by default) on the
    cluster at `address`, or on one started here for the run. What they want of one partition is done by one worker
    in one go, so that a network is loaded once for all.
    """
    started = time.monotonic()
    if executor not in ("inline", "ray") or attempts < 1 or (workers is not None and workers < 1):
        raise SpecError(
            "executor is inline or ray, attempts and workers are positive,"
            f" but got ({executor=}, {attempts=}, {workers=})"
        )
    jobs = tuple(_job(analysis, parameters, tables) for analysis, parameters in analyses)
    _check_independent(jobs)
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
            pool = _inline(jobs) if executor == "inline" else _ray(jobs, len(tasks), workers, cpus, address)
            with pool as attempted, ExitStack() as open_commits:
                commits = [open_commits.enter_context(closing(_Commits(job))) for job in jobs]
                _Drain(attempted, commits, attempts, reports, tell).run(tasks)
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


class _Drain:
    """Keeps the pool busy until every partition is done or dead; a failed one goes to the end of the queue."""

    def __init__(
        self,
        pool: "Pool",
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
        report.notes += [f"{partition}: {note}" for note in outcome.notes]
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


class Pool(Protocol):
    """Where attempts are made."""

    @property
    def room(self) -> int:
        """How many more tasks it takes now."""

    def submit(self, task: Task) -> None: ...

    def collect(self) -> list[tuple[Task, list[Outcome] | Outcome]]:
        """Wait for at least one task to end: an outcome for each of its jobs, or one for a worker that died."""


class _Worker:
    """What an actor is: it holds the jobs, the networks they share, and attempts one task after another."""

    def __init__(self, jobs: tuple[Job, ...]) -> None:
        self._jobs = jobs
        self._contexts = _contexts(jobs)

    def ready(self) -> bool:
        return True

    def attempt(self, task: Task) -> list[Outcome]:
        chosen = [self._jobs[number] for number in task.jobs]
        if len(chosen) == 1:
            return [chosen[0].attempt(task.partition, self._of(chosen[0]))]
        try:  # before anything is read: rows that arrive meanwhile must make the output stale, not part of its name
            keys = [job.keys([task.partition])[0] for job in chosen]
        except Exception:
            return [job.attempt(task.partition, self._of(job)) for job in chosen]
        known: dict[str, pa.Table] = {}
        pairs = zip(chosen, keys, strict=True)
        return [job.attempt(task.partition, self._of(job), key, known) for job, key in pairs]

    def _of(self, job: Job) -> "Contexts | None":
        return None if job.analysis.context is None else self._contexts


def _contexts(jobs: Sequence[Job]) -> "Contexts | None":
    """Where the jobs' networks come from; torch is imported only for those that want any."""
    wanted = [job.analysis.context for job in jobs if job.analysis.context is not None]
    if not wanted:
        return None
    from ndt_ray.analysis.mechanisms.context import Contexts

    return Contexts(jobs[0].tables, sorted({pattern for patterns in wanted for pattern in patterns}))


class _InlinePool:
    """One attempt at a time, in this process: breakpoints work, and a crash is a crash."""

    def __init__(self, jobs: tuple[Job, ...]) -> None:
        self._worker = _Worker(jobs)
        self._waiting: list[Task] = []

    @property
    def room(self) -> int:
        return 1 - len(self._waiting)

    def submit(self, task: Task) -> None:
        self._waiting.append(task)

    def collect(self) -> list[tuple[Task, list[Outcome] | Outcome]]:
        task = self._waiting.pop()
        return [(task, self._worker.attempt(task))]


@contextmanager
def _inline(jobs: tuple[Job, ...]) -> Iterator[Pool]:
    yield _InlinePool(jobs)


class _RayPool:
    """Actors with one task each in flight; one that dies costs an attempt, and is replaced."""

    def __init__(self, jobs: tuple[Job, ...], size: int, cpus: float) -> None:
        import ray

        self._size = size
        # Restarts and retries are the pull loop's: only it counts attempts.
        self._worker = ray.remote(num_cpus=cpus, max_restarts=0, max_task_retries=0)(_Worker)
        self._jobs = ray.put(jobs)
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, Task]] = {}
        first = self._worker.remote(self._jobs)
        try:
            ray.get(first.ready.remote())
        except ray.exceptions.RayError as error:
            names = ", ".join(f"'{job.analysis.name}'" for job in jobs)
            raise ClusterError(
                f"no worker could load analysis {names}: {_line(error)} - is the same ndt-ray installed"
                " on every node? (`ndt doctor` says)"
            ) from error
        self._idle.append(first)

    @property
    def room(self) -> int:
        return self._size - len(self._busy)

    def submit(self, task: Task) -> None:
        actor = self._idle.pop() if self._idle else self._worker.remote(self._jobs)
        self._busy[actor.attempt.remote(task)] = (actor, task)

    def collect(self) -> list[tuple[Task, list[Outcome] | Outcome]]:
        import ray

        ready, _ = ray.wait(list(self._busy), num_returns=1)
        return [self._ended(ref) for ref in ready]

    def _ended(self, ref: Any) -> tuple[Task, list[Outcome] | Outcome]:
        import ray

        actor, task = self._busy.pop(ref)
        try:
            outcomes: list[Outcome] = ray.get(ref)
        except ray.exceptions.RayError as error:
            ray.kill(actor)  # dead, or of unknown state behind a broken network: its place is taken by a new one
            return task, Outcome(error=f"the worker died: {_line(error)}", traceback=str(error))
        self._idle.append(actor)
        return task, outcomes

    def close(self) -> None:
        import ray

        for actor in [*self._idle, *(actor for actor, _ in self._busy.values())]:
            ray.kill(actor)


@contextmanager
def _ray(jobs: tuple[Job, ...], tasks: int, workers: int | None, cpus: float, address: str | None) -> Iterator[Pool]:
    """A pool on the cluster at `address`, or on a local one that ends with it."""
    from ndt_ray import cluster

    local = address in (None, "local") and not cluster.joined()
    with cluster.start(address, cpus=math.ceil(workers * cpus) if workers and local else None):
        import ray

        fitting = max(1, int(ray.cluster_resources().get("CPU", 1) // cpus)) if cpus > 0 else tasks
        pool = _RayPool(jobs, min(tasks, workers or fitting), cpus)
        try:
            yield pool
        finally:
            pool.close()


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
