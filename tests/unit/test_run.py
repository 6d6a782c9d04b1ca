"""Running a sweep from a program: what is told, what is skipped, and a trial continued from any checkpoint."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from ndt_ray import run as running
from ndt_ray.errors import CheckpointError, SpecError, StoreError
from ndt_ray.jobs import ForeignFingerprint
from ndt_ray.run import Options, Result, continue_from, run_sweep
from ndt_ray.spec.axes import Sweep
from ndt_ray.spec.sweepfile import load_sweep, parse_sweep, with_overrides
from ndt_ray.store.reader import Store, open_store
from ndt_ray.worker import prepared

SPEC = """
name: small
base:
  data: digits
  train: {steps: 12, batch: 32, optimizer: adam, lr: 1e-3, schedule: {name: cosine}}
  measure: {every: 4, probe: 32}
  evaluate: {size: 50}
  checkpoint: {at: [0, 5, 9], fractions: [1]}
axes:
  - {path: model, values: [mlp_narrow, cnn_shallow]}
  - {path: seed, range: 2}
analyses: [jumps]
"""
INLINE = Options(executor="inline")


@pytest.fixture(scope="module")
def small() -> Sweep:
    return parse_sweep(SPEC)


@pytest.fixture(scope="module")
def done(small: Sweep, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Result]:
    store = tmp_path_factory.mktemp("run") / "store"
    result = run_sweep(small, store, INLINE)
    return open_store(store), result


def test_a_run_ends_with_everything_done(done: tuple[Store, Result]) -> None:
    store, result = done
    assert result.ok and result.exit_code == 0 and result.launch.finished == 2 and result.already == 0
    assert [r.analysis for r in result.analyses] == ["jumps"]
    assert store.sql("SELECT count(*) AS n FROM outcomes WHERE status = 'finished'")["n"].item() == 4
    events = running.SweepFolder(store.location, "small").events()
    assert [e["event"] for e in events if e["event"] in ("plan", "done")] == ["plan", "done"]


def test_a_finished_sweep_is_known_without_planning(
    done: tuple[Store, Result], small: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("planned")

    monkeypatch.setattr(running, "plan_sweep", refuse)
    result = run_sweep(small, done[0], Options(executor="ray"))  # nor is Ray started
    assert result.ok and result.already == 4 and result.launch.finished == 0
    assert result.analyses[0].skipped == 4
    with pytest.raises(AssertionError, match="planned"):
        run_sweep(with_overrides(small, ["train.lr=0.1"]), done[0], INLINE)
    monkeypatch.setattr(running, "code_hash", lambda: "another version")
    with pytest.raises(AssertionError, match="planned"):
        run_sweep(small, done[0], INLINE)


@pytest.mark.parametrize("engine", ["mlp_narrow", "cnn_shallow"])  # stack and loop
@pytest.mark.parametrize(("step", "until"), [(0, 5), (5, 9), (5, None), (9, 12)])
def test_a_trial_goes_on_from_any_checkpoint_bit_for_bit(
    done: tuple[Store, Result], engine: str, step: int, until: int | None
) -> None:
    store = done[0]
    trial = store.sql("SELECT trial_id FROM trials WHERE model = ? AND seed = 1", [engine])["trial_id"].item()
    state = continue_from(store, trial, step, until).lane_state(0)
    stored, _ = store.checkpoint(trial, until or 12)
    assert state.keys() == stored.keys()
    assert all(np.array_equal(state[name], stored[name]) for name in stored)


def test_a_pack_has_one_thread_and_the_process_is_as_it_was_afterwards() -> None:
    def threads() -> tuple[int, set[int]]:
        return torch.get_num_threads(), {library["num_threads"] for library in threadpool_info()}

    own = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with threadpool_limits(limits=2):
            before = threads()
            with prepared(0.0):
                assert threads() == (1, {1})
            assert threads() == before and before[0] == 2
    finally:
        torch.set_num_threads(own)


def test_a_trial_does_not_go_on_elsewhere(done: tuple[Store, Result], monkeypatch: pytest.MonkeyPatch) -> None:
    store = done[0]
    trial = store.sql("SELECT trial_id FROM trials LIMIT 1")["trial_id"].item()
    monkeypatch.setattr("ndt_ray.lanes.numerics.fingerprint", lambda device: "another machine")
    with pytest.raises(ForeignFingerprint, match="this machine is 'another machine'"):
        continue_from(store, trial, 5)


def test_what_cannot_be_continued_is_said(done: tuple[Store, Result]) -> None:
    store = done[0]
    trial = store.sql("SELECT trial_id FROM trials LIMIT 1")["trial_id"].item()
    with pytest.raises(CheckpointError, match="has no checkpoint at step 6 - there are: 0, 5, 9, 12"):
        continue_from(store, trial, 6)
    with pytest.raises(CheckpointError, match="no trial nowhere"):
        continue_from(store, "nowhere", 5)
    with pytest.raises(SpecError, match="step <= until <= 12"):
        continue_from(store, trial, 5, 13)


def test_a_store_is_made_only_for_a_sweep_that_makes_sense(small: Sweep, tmp_path: Path) -> None:
    bad = with_overrides(small, ["model=mlp_narow"])
    with pytest.raises(SpecError, match="mlp_narrow"):
        run_sweep(bad, tmp_path / "store", INLINE)
    assert not (tmp_path / "store").exists()
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match="holds other files"):
        run_sweep(small, tmp_path, INLINE)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_pack_runs_alone_and_again_on_request(done: tuple[Store, Result], small: Sweep) -> None:
    store, result = done
    pack = result.plan.packs[0].pack_id
    assert run_sweep(small, store, Options(executor="inline", packs=(pack,))).launch.finished == 0
    before = store.sql("SELECT * FROM losses ORDER BY ALL")
    again = run_sweep(small, store, Options(executor="inline", packs=(pack,), restart=True))
    assert again.launch.finished == 1 and again.analyses == []
    assert store.sql("SELECT * FROM losses ORDER BY ALL").equals(before)
    assert max(a.generation for a in store.attempts() if a.pack == pack) == 2
    with pytest.raises(SpecError, match="no such pack"):
        run_sweep(small, store, Options(executor="inline", packs=("nope",)))


def test_the_exit_code_is_that_of_the_one_thing_wrong(done: tuple[Store, Result]) -> None:
    result = Result(done[1].plan, running.Summary(), 0)
    assert result.exit_code == 0
    result.launch.failed = [{"code": 3}, {"code": 3}]
    assert result.exit_code == 3
    result.launch.finished = 1
    assert result.exit_code == 1
    result.launch.interrupted = True
    assert result.exit_code == 130


WEIGHED = """
name: weighed
base:
  data: digits
  train: {steps: 60, batch: 32, optimizer: adam, lr: 1e-3}
  measure: {every: 5, probe: 64}
  evaluate: {every: 20}
  checkpoint: {at: [0], fractions: [1]}
axes:
  - {path: model, values: [mlp_verywide, cnn_shallow]}
  - {path: seed, range: 4}
"""
IN_ITS_OWN_PROCESS = """
import sys
from pathlib import Path
from ndt_ray.run import Options, run_sweep
from ndt_ray.spec.sweepfile import load_sweep
assert run_sweep(load_sweep(sys.argv[1]), Path(sys.argv[2]), Options(executor="inline")).ok
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from Linux's /proc")
def test_a_plan_s_disk_and_memory_are_within_twice_of_what_the_sweep_then_takes(tmp_path: Path) -> None:
    file, store = tmp_path / "weighed.yaml", tmp_path / "store"
    file.write_text(WEIGHED)
    planned = running.plan_sweep(load_sweep(file), None, INLINE, measured=False).total
    command = [sys.executable, "-c", IN_ITS_OWN_PROCESS, str(file), str(store)]
    peak = 1024 * int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])

    def bytes_in(folder: Path) -> int:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    by_table = {folder.name: bytes_in(folder) for folder in (store / "data").iterdir()}
    taken = {
        "memory": (peak, planned.memory),
        "disk": (bytes_in(store), planned.disk_bytes),
        "checkpoints": (bytes_in(store / "checkpoints"), planned.disk["checkpoint files"]),
        "tables": (sum(by_table.values()), planned.disk_bytes - planned.disk["checkpoint files"]),
        "spectra": (by_table["spectra"], planned.disk["spectra"]),
    }
    off = {what: (is_, said) for what, (is_, said) in taken.items() if not said / 2 <= is_ <= 2 * said}
    assert not off, off
    assert by_table.keys() - {"attempts"} <= planned.disk.keys()
