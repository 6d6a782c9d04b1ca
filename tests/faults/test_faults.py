"""Workers and drivers are killed and interrupted; the finished tables are those of an undisturbed run, bit for bit."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from ndt_ray.store.reader import open_store

sys.path.insert(0, str(Path(__file__).parent))
from sweeping import assert_equal, finish, kill_worker, run, start, wait_for_commit, worker_pids, write_spec  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.faults]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same sweep, in one process, with nothing going wrong."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run(write_spec(folder), folder / "store", executor="inline")
    return folder / "store"


def test_killed_workers_are_retried_from_their_packs_checkpoint(tmp_path: Path, undisturbed: Path) -> None:
    store = tmp_path / "store"
    process = start(write_spec(tmp_path), store)
    wait_for_commit(store, packs=1)
    killed = worker_pids(store)
    for pid in killed:
        kill_worker(pid)
    code, events, err = finish(process)
    assert code == 0, err
    assert killed and sum(e["event"] == "retry" for e in events) >= 1
    again = [a for a in open_store(store).attempts("fault") if a.generation > 1]
    assert again and any(a.from_step and a.from_step > 0 for a in again), "nothing was resumed from a commit"
    assert_equal(store, undisturbed)


def test_killed_driver_is_relaunched_by_the_same_command(tmp_path: Path, undisturbed: Path) -> None:
    store, spec = tmp_path / "store", write_spec(tmp_path)
    process = start(spec, store)
    committed = wait_for_commit(store, packs=1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(3.0)  # Ray's own processes notice within 2.2 s that their driver is gone
    run(spec, store)
    resumed = {a.pack: a.from_step for a in open_store(store).attempts("fault") if a.generation > 1}
    assert all((resumed[pack] or 0) >= step for pack, step in committed.items() if pack in resumed)
    assert any(step for step in resumed.values())
    assert_equal(store, undisturbed)
    events = run(spec, store)
    assert [e["event"] for e in events] == ["plan", "done"] and events[0]["finished_trials"] == 8


def test_ctrl_c_commits_and_the_same_command_goes_on(tmp_path: Path, undisturbed: Path) -> None:
    store, spec = tmp_path / "store", write_spec(tmp_path)
    process = start(spec, store)
    wait_for_commit(store, packs=1)
    os.kill(process.pid, signal.SIGINT)
    code, events, err = finish(process)
    assert code == 130, err
    assert any(e["event"] == "stop" for e in events)
    manifests = open_store(store).manifests("fault")
    assert not all(m.finished for m in manifests) or len(manifests) < 4
    run(spec, store)
    assert_equal(store, undisturbed)


def test_a_failing_pack_ends_alone_and_says_how_to_reproduce_it(tmp_path: Path) -> None:
    model = tmp_path / "own.py"
    model.write_text(
        "import torch\n"
        "class Bomb(torch.nn.Module):\n"
        "    def __init__(self, fuse):\n"
        "        super().__init__(); self.layer = torch.nn.Linear(64, 10); self.fuse = fuse; self.calls = 0\n"
        "    def forward(self, x):\n"
        "        self.calls += self.training\n"
        "        if self.calls > self.fuse: raise RuntimeError('the fuse has burnt down')\n"
        "        return self.layer(x.flatten(1))\n"
        "def bomb(inputs, *, fuse: int = 10):\n"
        "    return Bomb(fuse)\n"
    )
    spec = tmp_path / "fault.yaml"
    spec.write_text(
        "name: fault\n"
        "base: {data: digits, train: {steps: 20}, measure: {probe: 32}, evaluate: {size: 50}}\n"
        "axes:\n"
        f"  - {{path: model, values: [{{name: '{model}:bomb', fuse: 5}}, mlp_narrow]}}\n"
        "  - {path: seed, range: 2}\n"
    )
    code, events, err = finish(start(spec, tmp_path / "store"))
    assert code == 1, err
    finished = [e for e in events if e["event"] == "finish"]
    assert len(finished) == 2 and sum(len(e["lanes_failed"]) for e in finished) == 2
    store = open_store(tmp_path / "store")
    ended = store.sql("SELECT status, error, count(*) n FROM outcomes GROUP BY ALL ORDER BY status")
    assert list(ended["status"]) == ["failed", "finished"] and list(ended["n"]) == [2, 2]
    assert "the fuse has burnt down" in ended["error"][0]
