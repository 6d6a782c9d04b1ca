"""A plan carried out: the packs that are not finished yet, in this process or through Ray Tune.

Tune is the scheduler and the retry loop, never the record of truth: what is done stands in the manifests, so a
relaunch is the same command, and nothing of Tune's own is kept.
"""

import contextlib
import logging
import math
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Literal, Protocol

from ndt_ray import cluster
from ndt_ray.errors import CheckpointError, ClusterError, StoreError
from ndt_ray.jobs import Job, failure
from ndt_ray.progress import Event, View, event
from ndt_ray.store.filesystem import Location
from ndt_ray.store.manifests import Superseded
from ndt_ray.store.sweep import Sweep as SweepFolder

ExecutorName = Literal["inline", "ray"]
Emit = Callable[[Event], None]
PASSED_ON = ("NDT_DATA", "NDT_CACHE", "NDT_OFFLINE", "NDT_COMMIT_SECONDS", "NDT_NATIVE", "MKL_CBWR")
"""Settings of this process that workers take over where they have none of their own."""
MOST_PACKS = 4000
"""Given to Tune at a time: its driver grows by 30 kB a trial, and its loop slows down with the trials it holds."""
TUNE_SETTINGS = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: Tune's handler would end running packs without a commit
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # its own state is never restored from
}


@dataclass(frozen=True)
class FailedLane:
    """A trial that raised or diverged while the others of its pack went on."""

    trial: str
    error: str
    pack: str
    cell: str
    reproduce: str


@dataclass
class Summary:
    """How a launch ended."""

    finished: int = 0
    stopped: int = 0
    failed: list[Event] = field(default_factory=list)
    lanes_failed: "list[FailedLane]" = field(default_factory=list)
    taken: list[Event] = field(default_factory=list)
    """Packs that another worker took over."""
    interrupted: bool = False

    def count(self, e: Event) -> None:
        """Takes an event into account."""
        if e["event"] == "finish":
            self.finished += 1
            given = {name: e[name] for name in ("pack", "cell", "reproduce") if name in e}
            self.lanes_failed += [FailedLane(trial, error, **given) for trial, error in e["lanes_failed"]]
        elif e["event"] == "stop":
            self.stopped += 1
            self.taken += [e] if e.get("error") else []
        elif e["event"] == "fail":
            self.failed.append(e)


@dataclass(frozen=True)
class Resources:
    """What one pack takes, and how often it is tried again after a crash."""

    cpus: float = 1.0
    gpus: float = 0.0
    retries: int = 3

    @property
    def bundle(self) -> dict[str, float]:
        """As Ray counts them."""
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}


class Executor(Protocol):
    """Runs jobs; every event of theirs goes to `emit`."""

    def start(self) -> None:
        """Gets ready; the second time it does nothing."""

    def run(self, jobs: Sequence[Job], emit: Emit) -> None:
        """Returns when all jobs have finished, failed or stopped."""

    def close(self) -> None:
        """Gives back what `start` took."""


LOG_SECONDS = 5.0
"""Between writes of the event log to an object store, where each write is one more object."""


class Teller:
    """Hands every event to the sweep's log and to a view. A log that cannot be written does not end the sweep."""

    def __init__(self, folder: SweepFolder, view: View, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder, self.view, self.clock = folder, view, clock
        self.held: list[Event] = []
        self.last = -math.inf
        self.logging = True

    def __call__(self, e: Event) -> None:
        self.view.show(e)
        self.held.append(e)
        if self.folder.location.local or self.clock() - self.last >= LOG_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what is held back; to be called at the end."""
        held, self.held, self.last = self.held, [], self.clock()
        if held and self.logging:
            try:
                self.folder.append_events(held)
            except StoreError as error:
                self.logging = False
                self.view.show(event("notice", text=f"events are no longer logged: {error}"))


def launch(
    folder: SweepFolder,
    jobs: Sequence[Job],
    executor: Executor,
    tell: Emit,
    *,
    drain: bool = False,
    fail_fast: bool = False,
) -> Summary:
    """Runs the jobs and returns how they ended.

    The first Ctrl-C (or SIGTERM) asks every running pack to commit and stop, or with `drain` lets running packs end
    and starts no more; the second one ends at once, with KeyboardInterrupt.
    """
    summary = Summary()
    if not jobs:
        return summary
    folder.clear_stop()

    def emit(e: Event) -> None:
        summary.count(e)
        tell(e)
        if fail_fast and e["event"] == "fail":
            folder.request_stop()

    executor.start()  # first: Ray takes the signals for itself
    with _graceful(folder, summary, drain):
        executor.run(jobs, emit)
    folder.clear_stop()
    return summary


@contextlib.contextmanager
def _graceful(folder: SweepFolder, summary: Summary, drain: bool) -> Iterator[None]:
    """Signals ask for a stop by the sweep's stop file; a second one interrupts."""

    def handle(signum: int, frame: FrameType | None) -> None:
        if summary.interrupted:
            raise KeyboardInterrupt
        summary.interrupted = True
        try:
            folder.request_stop("drain" if drain else "stop")
        except StoreError as error:  # nobody would hear of it
            raise KeyboardInterrupt from error

    try:
        before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # signals can be taken only in the main thread; elsewhere `ndt stop` does the same
        yield
        return
    try:
        yield
    finally:
        for s, old in before.items():
            signal.signal(s, old)


def attempt(job: Job, report: Callable[[dict[str, Any]], None]) -> Event:
    """One attempt at a pack, as the event it ends with. What a second attempt could mend (a full disk, an
    unreachable store) is raised for the retry loop; anything else is a failure of this pack alone."""
    from ndt_ray.worker import run_pack

    try:
        return run_pack(job, report).event(job)
    except Superseded as error:
        return event("stop", pack=job.pack, error=str(error))
    except CheckpointError as error:  # of the pack's own recovery state: no second look makes it whole
        return failure(job, error)
    except (StoreError, OSError):
        raise
    except Exception as error:
        return failure(job, error)


class Inline:
    """Packs one after another in this process: a debugger works, and no Ray is needed."""

    def start(self) -> None:
        pass

    def run(self, jobs: Sequence[Job], emit: Emit) -> None:
        for job in jobs:
            emit(event("start", pack=job.pack))
            try:
                emit(attempt(job, lambda fields: emit(event("progress", **fields))))
            except (StoreError, OSError) as error:
                emit(failure(job, error))

    def close(self) -> None:
        pass


class OnRay:
    """Packs as Tune trials over reused actors, on a cluster or on one started for the purpose."""

    def __init__(self, resources: Resources, address: str | None = None, workers: int | None = None) -> None:
        self.resources, self.address, self.workers = resources, address, workers
        self.local = address in (None, "local")
        self.stack = contextlib.ExitStack()
        self.started = False

    def start(self) -> None:
        """ClusterError where no cluster can be had, or one started here can never hold a pack."""
        if not self.started:
            cpus = math.ceil(self.workers * max(1.0, self.resources.cpus)) if self.workers else None
            self.stack.enter_context(cluster.start(self.address, cpus))
            self.started = True

    def close(self) -> None:
        self.stack.close()
        self.started = False

    def run(self, jobs: Sequence[Job], emit: Emit) -> None:
        self._check_room(emit)
        # Whatever Tune logs, of result files never asked for or of failed trials, is told by events.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        with _environment(TUNE_SETTINGS):
            for first in range(0, len(jobs), MOST_PACKS):
                self._tune(jobs[first : first + MOST_PACKS], emit)

    def _tune(self, jobs: Sequence[Job], emit: Emit) -> None:
        from ray import tune

        from ndt_ray.tuning import Relay

        scratch = tempfile.mkdtemp(prefix="ndt-tune-") if self.local else None
        relay = Relay({job.pack: job for job in jobs}, emit)
        try:
            tune.Tuner(
                tune.with_resources(_trainable(jobs), tune.PlacementGroupFactory([self.resources.bundle])),
                param_space={"pack": tune.grid_search([job.pack for job in jobs])},
                tune_config=tune.TuneConfig(reuse_actors=True),
                run_config=tune.RunConfig(
                    name="ndt",
                    storage_path=scratch or f"{jobs[0].store}/tune",  # on a cluster all nodes must see it
                    verbose=0,
                    failure_config=tune.FailureConfig(max_failures=self.resources.retries),
                    callbacks=[relay],
                ),
            ).fit()
        finally:
            relay.close()
            if scratch:
                shutil.rmtree(scratch, ignore_errors=True)
            else:
                Location.of(jobs[0].store).delete_tree("tune")

    def _check_room(self, emit: Emit) -> None:
        """Tune waits for ever for a node that can hold a trial."""
        import ray

        need = self.resources.bundle
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if any(all(node.get(name, 0) >= n for name, n in need.items()) for node in nodes):
            return
        wanted = " and ".join(f"{n:g} {name}" for name, n in need.items())
        if self.local:
            found = " and ".join(f"{max((n.get(name, 0) for n in nodes), default=0):g} {name}" for name in need)
            raise ClusterError(
                f"a pack needs {wanted}, but this machine has {found}: set run.cpus and run.gpus, or give --address"
            )
        emit(event("notice", text=f"no node of the cluster has {wanted} now: waiting for one"))


def _trainable(jobs: Sequence[Job]) -> Callable[[dict[str, Any]], None]:
    """The Tune trainable, with the jobs in Ray's object store: Tune's own state names packs only."""
    from ray import tune

    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    found: Callable[[dict[str, Any]], None] = tune.with_parameters(
        tune_pack, jobs={job.pack: job.dump() for job in jobs}, environment=environment
    )
    return found


def tune_pack(config: dict[str, Any], jobs: Mapping[str, bytes], environment: Mapping[str, str]) -> None:
    """One pack in a (reused) worker process. What is raised for a retry is reported first: Tune keeps its text only."""
    from ray import tune

    for name, value in environment.items():
        os.environ.setdefault(name, value)
    job = Job.load(jobs[config["pack"]])
    try:
        end = attempt(job, lambda fields: tune.report({"ndt": event("progress", **fields)}))
    except Exception as error:
        tune.report({"ndt": {**failure(job, error), "event": "trouble"}})
        raise
    tune.report({"ndt": end})


@contextlib.contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Environment variables, as they were before afterwards."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, old in before.items():
            if old is None:
                del os.environ[name]
            else:
                os.environ[name] = old
