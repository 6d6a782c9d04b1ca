"""Workers and drivers are killed and interrupted; the finished tables are those of an undisturbed run, bit for bit."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ndt_ray import cluster
from ndt_ray.store.reader import open_store
from ndt_ray.store.sweep import Sweep

sys.path.insert(0, str(Path(__file__).parent))
from sweeping import (
    BOMBS,
    assert_equal,
    eventually,
    finish,
    finished,
    half_done,
    kill,
    kill_worker,
    ndt,
    pace,
    run,
    start,
    worker_pids,
    write_spec,
)

pytestmark = [pytest.mark.ray, pytest.mark.faults]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the models' file, whose path is part of every trial, and a folder for each test."""
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> Path:
    """The same sweep, in one process, with nothing going wrong."""
    (folder / "undisturbed").mkdir()
    store = folder / "undisturbed" / "store"
    run(write_spec(folder / "undisturbed"), store)
    assert open_store(store).tables()["triggers"], "no checkpoint was triggered: what is compared lacks them"
    return store


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of two CPUs that outlives its drivers."""
    with cluster.start(cpus=2, gpus=0, object_store=200 * 2**20) as address:
        yield address


@pytest.fixture
def spec(folder: Path, request: pytest.FixtureRequest) -> Path:
    """The sweep's file, in a folder of the test's own."""
    own = folder / request.node.name[:40]
    own.mkdir()
    return write_spec(own)


def test_killed_workers_are_retried_from_their_packs_checkpoint(spec: Path, undisturbed: Path, address: str) -> None:
    store = spec.parent / "store"
    process = start(spec, store, address=address)
    eventually(lambda: half_done(store), process)
    killed = worker_pids(store)
    for pid in killed:
        kill_worker(pid)
    code, events, err = finish(process)
    assert (code, err) == (0, "")
    assert killed and sum(e["event"] == "retry" for e in events) == len(killed)
    again = [a for a in open_store(store).attempts("fault") if a.generation > 1]
    assert len(again) == len(killed)
    assert any(a.from_step and a.from_step > 0 for a in again), "nothing was resumed from a commit"
    assert_equal(store, undisturbed)


def test_killed_driver_is_relaunched_by_the_same_command(spec: Path, undisturbed: Path) -> None:
    store = spec.parent / "store"
    process = start(spec, store, slow=0.1, new=True)
    committed = eventually(lambda: half_done(store), process)
    orphans = worker_pids(store)
    kill(process, signal.SIGKILL)
    process.communicate()
    process = start(spec, store, slow=0.1)  # at once, while Ray's processes are still dying
    eventually(lambda: not any(map(psutil.pid_exists, orphans)), process)
    pace(spec, 0)
    code, events, err = finish(process)
    assert (code, err) == (0, "")
    resumed = {a.pack: a.from_step or 0 for a in open_store(store).attempts("fault") if a.generation > 1}
    assert all(resumed[pack] >= step for pack, step in committed.items() if pack in resumed)
    assert any(resumed.values()) and events[-1]["event"] == "done"
    assert_equal(store, undisturbed)
    events = run(spec, store)
    assert [e["event"] for e in events] == ["plan", "done"] and events[0]["finished_trials"] == 8


def test_ctrl_c_commits_and_a_second_one_ends_at_once_and_the_same_command_goes_on(
    spec: Path, undisturbed: Path, address: str
) -> None:
    store = spec.parent / "store"
    process = start(spec, store, address=address)
    eventually(lambda: half_done(store), process)
    kill(process, signal.SIGINT)
    code, events, err = finish(process)
    assert (code, err) == (130, "")
    stops = [e for e in events if e["event"] == "stop"]
    left = half_done(store)
    assert stops and left and len(finished(store)) < 4
    attempts = {a.pack: a for a in open_store(store).attempts("fault")}
    assert all(attempts[pack].status == "stopped" for pack in left), "workers were killed, not asked"
    assert {pack: attempts[pack].to_step for pack in left} == left
    assert set(attempts) == set(left) | finished(store), "a pack was begun only to be stopped"

    process = start(spec, store, "--drain", address=address, slow=0.1)  # longer than it takes to interrupt it twice
    eventually(lambda: half_done(store) != left and half_done(store), process)
    kill(process, signal.SIGINT)
    stopping = Sweep(open_store(store).location, "fault")
    eventually(stopping.stop_requested, process)
    began = time.monotonic()
    kill(process, signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130 and err.startswith("interrupted at once")
    assert time.monotonic() - began < 15
    run(spec, store)
    assert_equal(store, undisturbed)
    assert not (store / "tune").exists()


def test_every_other_way_to_stop(spec: Path, undisturbed: Path) -> None:
    """In one process: a drain, `ndt stop`, SIGTERM; each time the same command goes on."""
    store = spec.parent / "store"
    process = start(spec, store, "--drain", executor="inline")
    first = set(eventually(lambda: half_done(store), process))
    kill(process, signal.SIGINT)
    code, _, err = finish(process)
    assert (code, err) == (130, "") and finished(store) == first and not half_done(store)

    process = start(spec, store, executor="inline", slow=0.2)  # four commands have to be heard meanwhile
    eventually(lambda: half_done(store), process)
    code, _, err = ndt("rm", "fault", "--store", store, "--yes")
    assert code == 3 and f"process {process.pid}" in err
    code, _, err = ndt("sweep", spec, "--store", store)
    assert code == 3 and "being run" in err
    assert ndt("stop", "fault", "--store", store)[0] == 0
    code, events, err = finish(process)
    assert (code, err) == (1, "") and half_done(store)
    assert sum(e["event"] == "stop" for e in events) == 4 - len(finished(store))

    before = half_done(store)
    process = start(spec, store, executor="inline", slow=0.05)
    eventually(lambda: half_done(store) != before and half_done(store), process)
    kill(process, signal.SIGTERM)
    code, _, err = finish(process)
    assert (code, err) == (130, "")
    run(spec, store)
    assert_equal(store, undisturbed)


def test_a_worker_that_was_taken_for_dead_is_never_seen(spec: Path, undisturbed: Path) -> None:
    """Frozen in the middle of a pack, replaced, and awake again: it finds itself superseded, and its rows are gone."""
    store = spec.parent / "store"
    zombie = start(spec, store, executor="inline")
    (pack,) = eventually(lambda: half_done(store), zombie)
    kill(zombie, signal.SIGSTOP)
    (store / "sweeps/fault/driver.json").unlink()  # as if it were on another machine
    run(spec, store)
    assert_equal(store, undisturbed)
    kill(zombie, signal.SIGCONT)
    code, events, err = finish(zombie)
    assert (code, err) == (1, "")
    (stop,) = [e for e in events if e["event"] == "stop"]
    assert stop["pack"] == pack and "superseded by 2" in stop["error"]
    assert {a.status for a in open_store(store).attempts("fault") if a.generation == 1} >= {"superseded"}
    assert_equal(store, undisturbed)


def test_failing_packs_end_alone_and_say_how_to_reproduce_them(spec: Path, address: str) -> None:
    """A lane that raises, and a pack that kills its worker each time it is tried."""
    store = spec.parent / "store"
    code, events, err = finish(start(write_spec(spec.parent, BOMBS), store, address=address, slow=0))
    assert (code, err) == (1, "")
    done = {e["cell"]: e for e in events if e["event"] == "finish" and e["lanes_failed"]}
    assert [len(e["lanes_failed"]) for e in done.values()] == [2]
    (failed,) = [e for e in events if e["event"] == "fail"]
    assert "deadly=True" in failed["cell"] and "the worker died" in failed["error"]
    assert sum(e["event"] == "retry" for e in events) == 1
    ended = open_store(store).sql("SELECT status, error, count(*) n FROM outcomes GROUP BY ALL ORDER BY status")
    assert list(ended["status"]) == ["failed", "finished"] and list(ended["n"]) == [2, 2]
    assert "the fuse has burnt down" in ended["error"][0]
    again = subprocess.run(failed["reproduce"].replace("ndt", f"{sys.executable} -m ndt_ray", 1), shell=True)
    assert again.returncode == 9  # the very process that runs the command dies
