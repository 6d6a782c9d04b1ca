"""Networks in actors: what a pool finds is what one process finds, and a worker that dies costs the others nothing."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from mech_store import SWEEP, folder, trial_of

from ndt_ray.analysis.api import Analysis, AnalysisInput, Partition, analysis
from ndt_ray.analysis.running.runner import run_together
from ndt_ray.analysis.running.stored import StoredSweep
from ndt_ray.store.reader import Store, open_store
from ndt_ray.store.schema import Column, Table

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(shutil.copytree(folder(), tmp_path / "store")) as found:
        yield found


def watching(name: str, deadly: str = "") -> Analysis:
    """Writes the process, the network's identity and its forward passes; kills its worker for one trial."""
    columns = [Column("trial_id", "string", ""), Column("step", "int32", "")]
    columns += [Column(c, "int64", "") for c in ("pid", "network", "passes")]
    table = Table(f"planted_{name}", "", tuple(columns), ("trial_id", "step"))

    def compute(data: AnalysisInput) -> dict[str, pd.DataFrame]:
        context = data.context()
        float(context.logits.sum())
        if data.partition.trial_id == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        row = {**data.partition.key, "pid": os.getpid(), "network": id(context), "passes": context.passes}
        return {f"planted_{name}": pd.DataFrame([row])}

    return analysis(name=name, reads=("trials", "checkpoints"), writes=(table,), per="checkpoint", context=True)(
        compute
    )


def test_actors_share_a_network_among_analyses_and_agree_with_one_process(store: Store) -> None:
    tables = StoredSweep(store, SWEEP)
    chosen = [Partition(trial_of(store, model), step) for model in ("mlp", "cnn") for step in (0, 40)]
    both = [(watching("one"), None), (watching("two"), None), ("collapse", None)]
    reports = run_together(both, tables, executor="ray", workers=2, partitions=chosen)
    assert all(r.ok and r.done == 4 for r in reports)
    one, two = (store.sql(f"SELECT * FROM planted_{n} ORDER BY trial_id, step") for n in ("one", "two"))
    pd.testing.assert_frame_equal(one, two)  # the same object in the same process, and one pass for both
    assert set(one["passes"]) == {1} and os.getpid() not in set(one["pid"])
    query = "SELECT * EXCLUDE (sweep) FROM collapse_metrics ORDER BY ALL"
    pooled = store.sql(query)
    (alone,) = run_together([("collapse", None)], tables, partitions=chosen)
    assert alone.skipped == 4  # the same key
    shutil.rmtree(Path(store.location.root) / "outputs" / SWEEP / "collapse")
    (alone,) = run_together([("collapse", None)], tables, partitions=chosen)
    assert alone.done == 4
    pd.testing.assert_frame_equal(pooled, store.sql(query))


def test_an_analysis_that_kills_its_worker_is_a_dead_letter_alone(store: Store) -> None:
    deadly, other = trial_of(store, "mlp"), trial_of(store, "cnn")
    both = [(watching("killer", deadly), None), (watching("calm"), None)]
    chosen = [Partition(deadly, 40), Partition(other, 40)]
    killer, calm = run_together(
        both, StoredSweep(store, SWEEP), executor="ray", workers=1, partitions=chosen, attempts=1
    )
    assert calm.ok and calm.done == 2 and calm.retries == 0  # the death it had no part in costs it no attempt
    assert killer.done == 1 and [letter.partition for letter in killer.dead] == [Partition(deadly, 40)]
    assert "the worker died" in killer.dead[0].error
