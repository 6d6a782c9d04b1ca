"""Where attempts of analyses are made: in this process, or on Ray actors that stay from one analysis to the next.

Ray's ActorPool loses everything after the first dead actor, and unlimited task retries repeat a partition that kills
its worker for ever: hence actors of our own, of which one that dies is replaced and costs its task an attempt.
"""

import math
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
from threadpoolctl import ThreadpoolController

from ndt_ray import cluster
from ndt_ray.analysis.api import Analysis, AnalysisInput, Partition, Per
from ndt_ray.errors import ClusterError

if TYPE_CHECKING:
    from ndt_ray.analysis.mechanisms.context import Contexts


class SweepTables(Protocol):
    """What the runner needs of a store: the tables of one sweep, by partition. Picklable, for it goes to workers."""

    @property
    def sweep(self) -> str: ...
    def partitions(self, per: Per) -> list[Partition]:
        """All partitions that have data."""

    def layers(self) -> list[str]:
        """Paths of all tracked layers of all its networks; none where that is not known."""

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
            return Outcome(error=one_line(error), traceback=traceback.format_exc(), seconds=took, notes=tuple(notes))
        rows = {name: table.num_rows for name, table in found.items()}
        return Outcome(rows, written, seconds=time.monotonic() - started, notes=tuple(notes))


@dataclass(frozen=True)
class Task:
    """What a worker is given at once: one partition, and which of the jobs are to be attempted on it."""

    partition: Partition
    jobs: tuple[int, ...]


class Pool(Protocol):
    """Where attempts are made."""

    @property
    def room(self) -> int:
        """How many more tasks it takes now."""

    def submit(self, task: Task) -> None: ...

    def collect(self) -> list[tuple[Task, list[Outcome] | Outcome]]:
        """Wait for at least one task to end: an outcome for each of its jobs, or one for a worker that died."""


class Worker:
    """Attempts tasks of some jobs, one after another, and holds the networks that these share."""

    def __init__(self, jobs: tuple[Job, ...]) -> None:
        self._jobs = jobs
        self._contexts = _contexts(jobs)

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


class InlinePool:
    """One attempt at a time, in this process: breakpoints work, and a crash is a crash.

    On one thread, as Ray's workers: last bits of products and decompositions depend on how many there are, and two
    threads that wait for a busy core in turn can make small ones a hundred times slower.
    """

    def __init__(self, jobs: tuple[Job, ...]) -> None:
        self._worker = Worker(jobs)
        self._threads = ThreadpoolController()  # after the jobs' libraries were loaded
        self._waiting: list[Task] = []

    @property
    def room(self) -> int:
        return 1 - len(self._waiting)

    def submit(self, task: Task) -> None:
        self._waiting.append(task)

    def collect(self) -> list[tuple[Task, list[Outcome] | Outcome]]:
        task = self._waiting.pop()
        with self._threads.limit(limits=1):
            return [(task, self._worker.attempt(task))]


class _Actor:
    """A worker in a process of its own. What it holds of some jobs is let go when others come."""

    def __init__(self) -> None:
        self._worker: tuple[Any, Worker] | None = None

    def load(self, jobs: list[Any]) -> Worker:
        """`jobs`: one reference, in a list so that Ray leaves it one: they travel once, not with each task."""
        import ray

        if self._worker is None or self._worker[0] != jobs[0]:
            self._worker = None
            self._worker = jobs[0], Worker(ray.get(jobs[0]))
        return self._worker[1]

    def ready(self, jobs: list[Any]) -> bool:
        return self.load(jobs) is not None

    def attempt(self, jobs: list[Any], task: Task) -> list[Outcome]:
        return self.load(jobs).attempt(task)


class Crew:
    """Ray actors of `cpus` logical CPUs each, `workers` or as many as fit, that serve one analysis after another.

    On the cluster at `address`, or on a local one, which is started with the first work and ends with the crew. A new
    process takes two seconds to import what an analysis needs; most analyses of a small sweep take less.
    """

    def __init__(self, workers: int | None = None, cpus: float = 1.0, address: str | None = None) -> None:
        self._workers, self._cpus, self._address = workers, cpus, address
        self._stack = ExitStack()
        self._idle: list[Any] = []
        self._started = False

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def pool(self, jobs: tuple[Job, ...], tasks: int) -> Iterator[Pool]:
        """A pool for so many tasks; ClusterError where no worker can start, or load the jobs."""
        self._start()
        import ray

        fitting = max(1, int(ray.cluster_resources().get("CPU", 1) // self._cpus)) if self._cpus > 0 else tasks
        pool = _RayPool(self, jobs, min(tasks, self._workers or fitting))
        try:
            yield pool
        finally:
            pool.abandon()

    def muster(self, jobs: list[Any]) -> None:
        """Idle actors load the jobs; those that died since they were last at work are let go, which costs no task an
        attempt. Where none is left, one is hired."""
        import ray

        asked = [(actor, actor.ready.remote(jobs)) for actor in self._idle]
        self._idle = []
        for actor, answer in asked:
            try:
                ray.get(answer)
            except ray.exceptions.RayActorError:
                ray.kill(actor)
            else:
                self._idle.append(actor)
        if not self._idle:
            first = self.hire()
            ray.get(first.ready.remote(jobs))
            self.release(first)

    def hire(self) -> Any:
        """An idle actor, or a new one."""
        import ray

        # Restarts and retries are the pull loop's: only it counts attempts.
        options = {"num_cpus": self._cpus, "max_restarts": 0, "max_task_retries": 0}
        return self._idle.pop() if self._idle else ray.remote(**options)(_Actor).remote()

    def release(self, actor: Any) -> None:
        self._idle.append(actor)

    def close(self) -> None:
        if self._idle:
            import ray

            for actor in self._idle:
                ray.kill(actor)
        self._idle, self._started = [], False
        self._stack.close()

    def _start(self) -> None:
        if self._started:
            return
        local = self._address in (None, "local") and not cluster.joined()
        cpus = math.ceil(self._workers * self._cpus) if self._workers and local else None
        self._stack.enter_context(cluster.start(self._address, cpus=cpus))
        self._started = True


class _RayPool:
    """A crew's actors at one group of jobs, one task each; one that dies costs an attempt, and is replaced."""

    def __init__(self, crew: Crew, jobs: tuple[Job, ...], size: int) -> None:
        import ray

        self._crew, self._size = crew, size
        self._jobs = [ray.put(jobs)]
        self._busy: dict[Any, tuple[Any, Task]] = {}
        try:
            crew.muster(self._jobs)
        except ray.exceptions.RayError as error:
            names = ", ".join(f"'{job.analysis.name}'" for job in jobs)
            raise ClusterError(
                f"no worker could load analysis {names}: {one_line(error)} - is the same ndt-ray installed"
                " on every node? (`ndt doctor` says)"
            ) from error

    @property
    def room(self) -> int:
        return self._size - len(self._busy)

    def submit(self, task: Task) -> None:
        actor = self._crew.hire()
        self._busy[actor.attempt.remote(self._jobs, task)] = (actor, task)

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
            return task, Outcome(error=f"the worker died: {one_line(error)}", traceback=str(error))
        self._crew.release(actor)
        return task, outcomes

    def abandon(self) -> None:
        """Whoever is still at work when the run ends, by an error or Ctrl-C, is not waited for."""
        import ray

        for actor, _ in self._busy.values():
            ray.kill(actor)


def one_line(error: BaseException) -> str:
    """Type and first line of an error's message."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
