"""A spot notice on a real node: the node is drained, and the trial running on it can see so in time."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ndt_ray import cluster, spot

pytestmark = [pytest.mark.ray, pytest.mark.faults]


@pytest.fixture
def two_nodes() -> Iterator[Any]:
    """A head without CPUs and one worker node, as processes of this machine."""
    with cluster._settings(local=True):
        import ray
        from ray.cluster_utils import Cluster

        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            nodes.add_node(num_cpus=1)
            nodes.wait_for_nodes()
            ray.init(address=nodes.address, log_to_driver=False, logging_level="warning")
            yield nodes
        finally:
            ray.shutdown()
            nodes.shutdown()


def test_a_notice_reaches_the_trial_that_runs_there(two_nodes: Any, tmp_path: Path) -> None:
    import ray

    def seen_after(started: Path) -> float | None:
        """Seconds until this worker saw its node drained; what the training loop asks at each heartbeat."""
        start = time.monotonic()
        started.touch()
        while time.monotonic() - start < 30:
            if cluster.draining():
                return time.monotonic() - start
            time.sleep(0.05)
        return None

    assert not cluster.draining()
    (worker,) = (n["NodeID"] for n in ray.nodes() if n["Resources"].get("CPU"))
    running = ray.remote(seen_after).options(num_cpus=1, max_retries=0).remote(tmp_path / "started")
    while not (tmp_path / "started").exists():
        done, _ = ray.wait([running], timeout=0.05)
        assert not done, ray.get(done)
    spot.watch(two_nodes.address, lambda: "terminate", lambda a, n: spot.drain(a, n, worker))
    assert ray.get(running, timeout=60) is not None
    assert not cluster.draining()  # the driver's own node stays
