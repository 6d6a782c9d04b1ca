"""The runner on Ray actors: a worker killed in the middle loses nothing, a partition that kills workers stops alone."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ndt_ray.analysis.api import Analysis, AnalysisInput, Partition, analysis
from ndt_ray.analysis.running.pool import Crew
from ndt_ray.analysis.running.runner import Progress, run
from ndt_ray.analysis.running.stored import StoredSweep, analyze
from ndt_ray.store.reader import Store, open_store
from ndt_ray.store.schema import Column, Table
from ndt_ray.store.sweep import create_sweep
from ndt_ray.store.writer import PackWriter

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

TRIALS = tuple(f"{i:016x}" for i in range(8))
SPEC = '{"measure": {"every": 10}}'


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one sweep of eight trials."""
    root = tmp_path_factory.mktemp("runner") / "store"
    with open_store(root, create=True) as store:
        create_sweep(store, "planted", "name: planted\n", {})
        with PackWriter(store, "planted", "pack-a", trials=TRIALS, fingerprint="here") as writer:
            for i, name in enumerate(TRIALS):
                values = 10 + np.random.default_rng(i).normal(size=101)
                key = {"trial_id": name, "layer": "fc", "layer_index": 0, "view": "units"}
                writer.rows("trials", {"trial_id": name, "steps": 1000, "spec": SPEC})
                writer.rows("measurements", {**key, "step": np.arange(101) * 10, "stable_rank": values})
            writer.commit(1000, None, finished=True)
    return root


@pytest.fixture
def store(filled: Path, tmp_path: Path) -> Iterator[Store]:
    """A copy of it of one's own."""
    import shutil

    with open_store(shutil.copytree(filled, tmp_path / "store")) as found:
        yield found


def murderous(marks: Path, name: str, victims: tuple[str, ...], times: int) -> Analysis:
    """An analysis whose worker dies on some partitions, by SIGKILL or os._exit, the first few times each."""
    table = Table(f"planted_{name}", "", (Column("trial_id", "string", ""), Column("pid", "int64", "")), ("trial_id",))

    def compute(data: AnalysisInput) -> dict[str, pd.DataFrame]:
        trial = str(data.partition.trial_id)
        marks.mkdir(exist_ok=True)
        died = len(list(marks.glob(f"{trial}-*")))
        if trial in victims and died < times:
            (marks / f"{trial}-{died}").touch()
            if died % 2:
                os._exit(7)
            os.kill(os.getpid(), signal.SIGKILL)
        return {table.name: pd.DataFrame([{"trial_id": trial, "pid": os.getpid()}])}

    return analysis(name=name, reads=("trials",), writes=(table,), per="trial")(compute)


def test_the_pool_gives_what_one_process_gives(store: Store) -> None:
    report = analyze(store, "planted", "jumps", executor="ray", parameters={"n_surrogates": 20})
    assert report.ok and report.done == 8 and report.retries == 0
    pooled = store.sql("select * exclude (sweep) from jump_counts order by all")
    again = analyze(store, "planted", "jumps", parameters={"n_surrogates": 20})
    assert again.skipped == 8  # the same key from either executor
    alone = analyze(store, "planted", "jumps", parameters={"n_surrogates": 20, "modes": ["default"]})
    assert alone.done == 8
    pd.testing.assert_frame_equal(pooled, store.sql("select * exclude (sweep) from jump_counts order by all"))


def test_a_worker_killed_in_the_middle_loses_nothing(store: Store, tmp_path: Path) -> None:
    told: list[Progress] = []
    job = murderous(tmp_path / "marks", "survivors", victims=TRIALS[2:4], times=1)
    report = run(job, StoredSweep(store, "planted"), executor="ray", workers=2, progress=told.append)
    assert report.ok and report.done == 8 and report.retries == 2
    found = store.sql("select * from planted_survivors order by trial_id")
    assert found["trial_id"].tolist() == list(TRIALS)
    assert os.getpid() not in set(found["pid"]) and len(told) == 9


def test_workers_stay_from_one_analysis_to_the_next_and_a_dead_one_is_replaced(store: Store, tmp_path: Path) -> None:
    first, second, third = (
        murderous(tmp_path / name, name, victims, times=1)
        for name, victims in (("before", ()), ("during", TRIALS[:1]), ("after", ()))
    )
    tables = StoredSweep(store, "planted")
    with Crew(workers=1) as crew:
        reports = [run(job, tables, executor="ray", crew=crew) for job in (first, second, third)]
    assert all(r.ok and r.done == 8 for r in reports)
    pids = [set(store.sql(f"select pid from planted_{name}")["pid"]) for name in ("before", "during", "after")]
    assert len(pids[0]) == 1 and pids[1] == pids[2] and pids[0].isdisjoint(pids[1])


def test_a_worker_that_dies_between_two_analyses_costs_nobody_an_attempt(store: Store, tmp_path: Path) -> None:
    first, second = (murderous(tmp_path / name, name, (), times=0) for name in ("earlier", "later"))
    tables = StoredSweep(store, "planted")
    with Crew(workers=1) as crew:
        assert run(first, tables, executor="ray", crew=crew).ok
        (pid,) = set(store.sql("select pid from planted_earlier")["pid"])
        os.kill(pid, signal.SIGKILL)
        report = run(second, tables, executor="ray", crew=crew, attempts=1)
    assert report.ok and report.done == 8 and report.retries == 0
    assert set(store.sql("select pid from planted_later")["pid"]) != {pid}


def test_a_partition_that_kills_its_worker_every_time_ends_as_a_dead_letter(store: Store, tmp_path: Path) -> None:
    job = murderous(tmp_path / "marks", "poisoned", victims=TRIALS[:1], times=99)
    report = run(job, StoredSweep(store, "planted"), executor="ray", workers=2)
    assert report.done == 7 and report.retries == 2
    (letter,) = report.dead
    assert letter.partition == Partition(TRIALS[0]) and letter.attempts == 3 and "worker died" in letter.error
    assert len(list((tmp_path / "marks").glob("*"))) == 3
    assert len(store.sql("select * from planted_poisoned")) == 7
    report = run(job, StoredSweep(store, "planted"), executor="ray", attempts=1)
    assert report.skipped == 7 and len(report.dead) == 1


def test_an_exception_in_a_worker_comes_back_with_its_traceback(store: Store) -> None:
    table = Table("planted_nothing", "", (Column("trial_id", "string", ""),), ("trial_id",))

    def fail(data: AnalysisInput) -> dict[str, pd.DataFrame]:
        raise ValueError("not this one")

    job = analysis(name="nothing", reads=(), writes=(table,), per="trial")(fail)
    report = run(job, StoredSweep(store, "planted"), executor="ray", attempts=2, workers=2)
    assert len(report.dead) == 8 and all(d.error == "ValueError: not this one" for d in report.dead)
    assert "in fail" in report.dead[0].traceback
