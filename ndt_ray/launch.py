"""A plan carried out: the packs that are not finished yet, in this process or through Ray Tune.

Tune is the scheduler and the retry loop, never the record of truth: what is done stands in the manifests, so a
relaunch is the same command, and nothing of Tune's own is kept.
"""

import contextlib
import json
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Literal, Protocol

from ndt_ray import cluster
from ndt_ray.errors import StoreError
from ndt_ray.progress import Event, View, event
from ndt_ray.store.manifests import Superseded
from ndt_ray.store.sweep import Sweep as SweepFolder
from ndt_ray.worker import Job, Outcome, failure, run_pack

ExecutorName = Literal["inline", "ray"]
PASSED_ON = ("NDT_DATA", "NDT_CACHE", "NDT_OFFLINE", "NDT_COMMIT_SECONDS", "MKL_CBWR")
"""Settings of this process that workers take over where they have none of their own."""


@dataclass
class Summary:
    """How a launch ended."""

    finished: int = 0
    stopped: int = 0
    failed: list[Event] = field(default_factory=list)
    lanes_failed: list[tuple[str, str]] = field(default_factory=list)
    interrupted: bool = False


@dataclass(frozen=True)
class Resources:
    """What one pack takes, and how often it is tried again after a crash."""

    cpus: float = 1.0
    gpus: float = 0.0
    retries: int = 3


class Executor(Protocol):
    """Runs jobs; every event of theirs goes to `emit`."""

    def run(self, jobs: Sequence[Job], emit: Callable[[Event], None]) -> None:
        """Returns when all jobs have finished, failed or stopped."""


def launch(
    folder: SweepFolder,
    jobs: Sequence[Job],
    executor: Executor,
    view: View,
    *,
    finished_trials: int = 0,
    drain: bool = False,
    fail_fast: bool = False,
) -> Summary:
    """Runs the jobs and returns how they ended. Events go to the sweep's log and to `view` alike.

    The first Ctrl-C (or SIGTERM) asks every running pack to commit and stop, or with `drain` lets running packs end
    and starts no more; the second one ends at once.
    """
    folder.clear_stop()
    summary = Summary()

    def emit(e: Event) -> None:
        folder.append_events([e])
        _count(summary, e)
        view.show(e)
        if fail_fast and e["event"] == "fail":
            folder.request_stop()

    emit(_plan_event(folder.name, jobs, finished_trials))
    with _graceful(folder, summary, drain):
        executor.run(jobs, emit)
    folder.clear_stop()
    emit(event("done", finished=summary.finished, failed=len(summary.failed), stopped=summary.stopped))
    return summary


def _plan_event(sweep: str, jobs: Sequence[Job], finished_trials: int) -> Event:
    packs = [
        {"pack": j.pack, "cell": j.cells[0], "trials": len(j.trials), "steps": j.trials[0]["train"]["steps"]}
        for j in jobs
    ]
    return event("plan", sweep=sweep, packs=packs, finished_trials=finished_trials)


def _count(summary: Summary, e: Event) -> None:
    if e["event"] == "finish":
        summary.finished += 1
        summary.lanes_failed += [(trial, error) for trial, error in e.get("lanes_failed", ())]
    elif e["event"] == "stop":
        summary.stopped += 1
    elif e["event"] == "fail":
        summary.failed.append(e)


@contextlib.contextmanager
def _graceful(folder: SweepFolder, summary: Summary, drain: bool) -> Iterator[None]:
    """Signals asked for a stop are turned into the sweep's stop file; a second one interrupts."""

    def handle(signum: int, frame: FrameType | None) -> None:
        if summary.interrupted:
            raise KeyboardInterrupt
        summary.interrupted = True
        folder.request_stop("drain" if drain else "stop")

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
    try:
        outcome = run_pack(job, report)
    except Superseded as error:
        return event("stop", pack=job.pack, error=str(error))
    except (StoreError, OSError):
        raise
    except Exception as error:
        return failure(job, error)
    return _end(outcome)


def _end(outcome: Outcome) -> Event:
    if outcome.status == "stopped":
        return event("stop", pack=outcome.pack, step=outcome.step)
    return event("finish", pack=outcome.pack, step=outcome.step, lanes_failed=[list(f) for f in outcome.failed])


class Inline:
    """Packs one after another in this process: a debugger works, and no Ray is needed."""

    def run(self, jobs: Sequence[Job], emit: Callable[[Event], None]) -> None:
        for job in jobs:
            emit(event("start", pack=job.pack))
            try:
                emit(attempt(job, lambda fields: emit(event("progress", **fields))))
            except (StoreError, OSError) as error:
                emit(failure(job, error))


class OnRay:
    """Packs as Tune trials over reused actors, on a cluster or on one started for the purpose."""

    def __init__(self, resources: Resources, address: str | None = None, cpus: int | None = None) -> None:
        self.resources, self.address, self.cpus = resources, address, cpus

    def run(self, jobs: Sequence[Job], emit: Callable[[Event], None]) -> None:
        if jobs:
            with cluster.start(self.address, self.cpus):
                self._tune(jobs, emit)

    def _tune(self, jobs: Sequence[Job], emit: Callable[[Event], None]) -> None:
        from ray import tune

        from ndt_ray.tuning import Relay

        scratch = tempfile.mkdtemp(prefix="ndt-tune-") if self.address in (None, "local") else None
        by_pack = {job.pack: job for job in jobs}
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        bundle = {"CPU": self.resources.cpus, **({"GPU": self.resources.gpus} if self.resources.gpus else {})}
        relay = Relay(by_pack, emit)
        # Tune warns of each trial whose result files are missing: they were never asked for.
        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        try:
            tune.Tuner(
                tune.with_resources(tune_pack, tune.PlacementGroupFactory([bundle])),
                param_space={"pack": tune.grid_search(list(by_pack)), "jobs": _JobFile(jobs, environment).as_dict()},
                tune_config=tune.TuneConfig(reuse_actors=True),
                run_config=tune.RunConfig(
                    name="ndt",
                    storage_path=scratch or f"{jobs[0].store}/tune",
                    verbose=0,
                    failure_config=tune.FailureConfig(max_failures=self.resources.retries),
                    callbacks=[relay],
                ),
            ).fit()
        finally:
            if scratch:
                shutil.rmtree(scratch, ignore_errors=True)
        relay.close()


class _JobFile:
    """Where workers find their job: files beside the sweep, so that Tune's own state stays small."""

    def __init__(self, jobs: Sequence[Job], environment: Mapping[str, str]) -> None:
        from ndt_ray.store.filesystem import Location

        self.store, self.sweep, self.environment = jobs[0].store, jobs[0].sweep, dict(environment)
        location = Location.of(self.store)
        for job in jobs:
            text = json.dumps(job.as_dict()).encode()
            location.write(_job_path(self.sweep, job.pack), text, durable=False)

    def as_dict(self) -> dict[str, Any]:
        return {"store": self.store, "sweep": self.sweep, "environment": self.environment}


def _job_path(sweep: str, pack: str) -> str:
    return f"sweeps/{sweep}/jobs/{pack}.json"


def tune_pack(config: dict[str, Any]) -> None:
    """The Tune trainable: one pack in a (reused) worker process."""
    from ray import tune

    from ndt_ray.store.filesystem import Location

    jobs = config["jobs"]
    for name, value in jobs["environment"].items():
        os.environ.setdefault(name, value)
    text = Location.of(jobs["store"]).read(_job_path(jobs["sweep"], config["pack"]))
    end = attempt(Job.from_dict(json.loads(text)), lambda fields: tune.report({"ndt": event("progress", **fields)}))
    tune.report({"ndt": end})
