"""What a worker's heartbeat does, what becomes of signals and of errors, and who may run a sweep."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

from ndt_ray import launch as launching
from ndt_ray import lease
from ndt_ray.errors import CheckpointError, DataError, NdtError, StoreError
from ndt_ray.jobs import Job, Outcome, failure, reproduce
from ndt_ray.launch import Inline, Resources, Teller, attempt, launch
from ndt_ray.plan import Lane
from ndt_ray.progress import Event, event
from ndt_ray.spec import Named, Trial
from ndt_ray.store.manifests import Superseded
from ndt_ray.store.reader import open_store
from ndt_ray.store.sweep import Sweep
from ndt_ray.worker import DRAIN_COMMIT_SECONDS, MOST_POLL_SECONDS, POLL_SECONDS, REPORT_SECONDS, StoreSink

TRIAL = Trial.model_validate({"model": "mlp_narrow", "data": "digits", "train": {"steps": 10, "batch": 8, "lr": 0.1}})


def job(pack: str = "p1", store: str = "/a store") -> Job:
    lanes = tuple(
        Lane(TRIAL.model_copy(update={"seed": {"init": s}}).cell + str(s), "mlp/digits", (s, s, s, s), 0.1, 0.0, "none")
        for s in range(2)
    )
    return Job(store, "sweep", pack, TRIAL.model_dump_json(), lanes)


@pytest.fixture
def folder(tmp_path: Path) -> Sweep:
    return Sweep(open_store(tmp_path / "store", create=True).location, "sweep")


class Kept(list[Event]):
    def show(self, event: Event) -> None:
        self.append(event)

    def close(self) -> None:
        pass


# -- jobs ------------------------------------------------------------------------------------------------------------


def test_a_job_survives_the_way_to_a_worker() -> None:
    sent = job()
    got = Job.load(sent.dump())
    assert got == sent and got.cell == "mlp/digits" and got.cells == ("mlp/digits",) * 2
    assert [t.seed.order for t in got.trials] == [0, 1] and got.trials[0].model == Named(name="mlp_narrow")


def test_a_failure_says_what_it_was_and_how_to_see_it_again() -> None:
    found = failure(job(), DataError("no such file - fetch it"))
    assert found["error"] == "no such file - fetch it" and found["code"] == 2 and "traceback" not in found
    words = shlex.split(found["reproduce"])
    assert words[:3] == ["ndt", "sweep", "/a store/sweeps/sweep/spec.yaml"] and words[-2:] == ["--pack", "p1"]
    assert reproduce(job(store="s3://bucket/x")).startswith("ndt sweep sweep --store s3://bucket/x")
    try:
        raise ZeroDivisionError("oh")
    except ZeroDivisionError as error:
        found = failure(job(), error)
    assert found["error"] == "ZeroDivisionError: oh" and found["code"] == 1
    assert "in test_a_failure" in found["traceback"]


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (Superseded("taken over by 2"), "stop"),
        (CheckpointError("torn"), "fail"),
        (DataError("gone"), "fail"),
        (RuntimeError("bug"), "fail"),
        (StoreError("full"), None),
        (OSError("cut off"), None),
    ],
)
def test_what_is_tried_again(monkeypatch: pytest.MonkeyPatch, error: Exception, end: str | None) -> None:
    def run_pack(job: Job, report: Any) -> Outcome:
        raise error

    monkeypatch.setattr("ndt_ray.worker.run_pack", run_pack)
    if end is None:
        with pytest.raises(type(error)):
            attempt(job(), lambda fields: None)
    else:
        assert attempt(job(), lambda fields: None)["event"] == end


# -- launching -------------------------------------------------------------------------------------------------------


class Scripted:
    """An executor that does what a test says for each job."""

    def __init__(self, act: Callable[[Job], Event]) -> None:
        self.act = act

    def start(self) -> None:
        pass

    def run(self, jobs: Sequence[Job], emit: Callable[[Event], None]) -> None:
        for one in jobs:
            emit(self.act(one))

    def close(self) -> None:
        pass


def stopped_or_finished(folder: Sweep) -> Callable[[Job], Event]:
    def act(one: Job) -> Event:
        stop = folder.stop_requested()
        return event("stop", pack=one.pack) if stop else event("finish", pack=one.pack, lanes_failed=[])

    return act


@pytest.mark.parametrize("drain", [False, True])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_asks_for_a_stop(folder: Sweep, signum: signal.Signals, drain: bool) -> None:
    asked = []

    def act(one: Job) -> Event:
        if one.pack == "p2":
            os.kill(os.getpid(), signum)
        asked.append(folder.stop_requested())
        return stopped_or_finished(folder)(one)

    before = signal.getsignal(signum)
    found = launch(folder, [job(p) for p in ("p1", "p2", "p3")], Scripted(act), lambda e: None, drain=drain)
    assert asked == [None, *(["drain" if drain else "stop"] * 2)]
    assert (found.finished, found.stopped, found.interrupted) == (1, 2, True)
    assert folder.stop_requested() is None and signal.getsignal(signum) is before


def test_a_second_signal_ends_at_once(folder: Sweep) -> None:
    def act(one: Job) -> Event:
        os.kill(os.getpid(), signal.SIGINT)
        return event("stop", pack=one.pack)

    with pytest.raises(KeyboardInterrupt):
        launch(folder, [job("p1"), job("p2")], Scripted(act), lambda e: None)
    assert folder.stop_requested() == "stop"  # whoever still runs heeds it; the next launch takes it away
    assert launch(folder, [job()], Scripted(stopped_or_finished(folder)), lambda e: None).finished == 1


def test_fail_fast_stops_at_the_first_failure(folder: Sweep) -> None:
    def act(one: Job) -> Event:
        return failure(one, "broken") if one.pack == "p1" else stopped_or_finished(folder)(one)

    found = launch(folder, [job(p) for p in ("p1", "p2")], Scripted(act), lambda e: None, fail_fast=True)
    assert len(found.failed) == 1 and found.stopped == 1


def test_nothing_to_run_starts_nothing(folder: Sweep) -> None:
    class Never(Scripted):
        def start(self) -> None:
            raise AssertionError

    assert launch(folder, [], Never(lambda j: {}), lambda e: None).finished == 0


def test_inline_tells_a_store_that_fails_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def attempt(one: Job, report: Any) -> Event:
        if one.pack == "p1":
            raise StoreError("the disk is full - free some space")
        report({"step": 1})
        return event("finish", pack=one.pack, lanes_failed=[])

    monkeypatch.setattr(launching, "attempt", attempt)
    events: list[Event] = []
    Inline().run([job("p1"), job("p2")], events.append)
    assert [e["event"] for e in events] == ["start", "fail", "start", "progress", "finish"] and events[1]["code"] == 3


def test_a_log_that_cannot_be_written_does_not_end_the_sweep(folder: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StoreError("the disk is full")

    view = Kept()
    tell = Teller(folder, view)
    tell(event("start", pack="a"))
    monkeypatch.setattr(Sweep, "append_events", full)
    tell(event("start", pack="b"))
    tell(event("start", pack="c"))
    assert [e["event"] for e in view] == ["start", "start", "notice", "start"]
    monkeypatch.undo()
    assert len(folder.events()) == 1


def test_an_object_store_gets_many_events_in_one_object(tmp_path: Path) -> None:
    bucket = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())  # taken for one: it is not local
    store = open_store("store", create=True, filesystem=bucket)
    now = 0.0
    far = Sweep(store.location, "sweep")
    tell = Teller(far, Kept(), lambda: now)
    for i in range(100):
        now = i / 10
        tell(event("progress", pack="a", step=i))
    tell.flush()
    assert [e["step"] for e in far.events()] == list(range(100))
    assert len(store.location.names(far.folder)) == 3


def test_resources_as_ray_counts_them() -> None:
    assert Resources().bundle == {"CPU": 1.0} and Resources(2, 0.5).bundle == {"CPU": 2, "GPU": 0.5}


# -- heartbeats ------------------------------------------------------------------------------------------------------


class Writer:
    """What a heartbeat asks of a writer."""

    def __init__(self) -> None:
        self.commits: list[int] = []
        self.due = False

    def should_commit(self) -> bool:
        return self.due

    def commit(self, step: int, state: Any, finished: bool = False) -> None:
        self.commits.append(step)


class World:
    """A clock, a stop file and a node, with a sink that looks at them."""

    def __init__(self) -> None:
        self.now, self.asked, self.asking = 0.0, 0, 0.0
        self.stop = self.draining = False
        self.writer, self.reports = Writer(), list[dict[str, Any]]()
        self.sink = StoreSink(
            self.writer,  # type: ignore[arg-type]
            "p",
            self.reports.append,
            self._should_stop,
            lambda: self.draining,
            lambda: self.now,
            local=False,
        )

    def _should_stop(self) -> bool:
        self.asked += 1
        self.now += self.asking
        return self.stop

    def beat(self, seconds: float) -> bool:
        self.now += seconds
        return self.sink.heartbeat(round(self.now * 10), dict, {"step": 1.0})


@pytest.fixture
def world() -> Iterator[World]:
    yield World()


def test_the_stop_file_is_looked_for_now_and_then(world: World) -> None:
    for _ in range(100):
        assert not world.beat(POLL_SECONDS / 10)
    assert 9 <= world.asked <= 11 and world.writer.commits == []


def test_asking_a_slow_store_costs_one_hundredth(world: World) -> None:
    world.asking = 0.04
    for _ in range(1000):
        world.beat(0.1)
    assert world.asked * world.asking <= 0.0101 * world.now
    world.asking, before, then = 1.0, world.asked, world.now
    for _ in range(1000):
        world.beat(0.1)
    assert world.asked - before >= (world.now - then) / (MOST_POLL_SECONDS + 1.2)  # but a stop is heard in time


def test_a_local_disk_that_is_slow_for_once_is_asked_again_soon(world: World) -> None:
    world.sink.local, world.asking = True, 0.3
    world.beat(0.6)
    world.asking = 0.0
    world.beat(0.6)
    assert world.asked == 2


def test_a_stop_commits_and_leaves(world: World) -> None:
    world.stop = True
    assert not world.beat(POLL_SECONDS / 2) and world.writer.commits == []
    assert world.beat(POLL_SECONDS) and len(world.writer.commits) == 1


def test_a_preemption_notice_commits_at_once_and_training_goes_on(world: World) -> None:
    world.beat(1.0)
    world.draining = True
    assert not world.beat(1.0) and len(world.writer.commits) == 1
    for _ in range(int(DRAIN_COMMIT_SECONDS) - 1):
        assert not world.beat(1.0)
    assert len(world.writer.commits) == 1
    world.beat(1.0)
    assert len(world.writer.commits) == 2


def test_a_writer_that_wants_to_commit_does(world: World) -> None:
    world.writer.due = True
    assert not world.beat(0.1) and world.writer.commits == [1]


def test_reports_are_few(world: World) -> None:
    for _ in range(100):
        world.beat(0.2)
    assert 9 <= len(world.reports) <= 20 / REPORT_SECONDS and world.reports[0]["pack"] == "p"


# -- leases ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_driver_at_a_time(folder: Sweep) -> None:
    script = (
        "import sys\n"
        "from ndt_ray import lease\n"
        "from ndt_ray.store.reader import open_store\n"
        "from ndt_ray.store.sweep import Sweep\n"
        "with lease.held(Sweep(open_store(sys.argv[1]).location, 'sweep')):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, folder.location.root]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        found = lease.driver(folder)
        assert found is not None and found.alive and found.pid == other.pid
        with pytest.raises(StoreError, match=rf"process {other.pid}.*cannot be removed"):
            lease.refuse(folder, "removed")
        other.kill()
        other.wait()
        assert not found.alive
    with lease.held(folder):  # a driver that was killed holds nothing
        lease.refuse(folder, "run twice")  # its own
    assert lease.driver(folder) is None


def test_a_note_that_is_none_holds_nothing(folder: Sweep) -> None:
    folder.location.write(f"{folder.folder}/driver.json", b"{half")
    lease.refuse(folder, "removed")
    folder.location.write(f"{folder.folder}/driver.json", b'{"host": "elsewhere", "pid": 1, "began": 0}')
    lease.refuse(folder, "removed")  # nothing is known of another machine's processes
    assert isinstance(lease.driver(folder), lease.Driver)


def test_errors_keep_their_codes() -> None:
    assert [failure(job(), e)["code"] for e in (NdtError("x"), DataError("x"), StoreError("x"))] == [1, 2, 3]
