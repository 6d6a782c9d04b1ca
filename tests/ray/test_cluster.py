"""The cluster that a sweep starts: whose it is, what its workers import, what `doctor` sees on its nodes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ndt_ray import cluster, doctor

pytestmark = pytest.mark.ray


def test_doctor_asks_every_node(ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MIN_DISK", 1)
    checks = doctor.doctor(store=tmp_path / "store")
    of_node = [c for c in checks if c.node != "this machine"]
    assert {"python", "torch", "gpus", "free disk", "memory", "clock"} <= {c.name for c in of_node}
    assert [c for c in checks if c.status == "fail"] == []


def test_doctor_tells_what_a_node_lacks(ray_cluster: None, tmp_path: Path) -> None:
    import ray

    probe = doctor.Probe(str(tmp_path), ".doctor-gone", "x")
    facts = ray.get(ray.remote(doctor.inspect).options(num_cpus=0).remote(probe))
    assert "another folder" in facts.store_error


def test_a_nested_start_stays_in_the_cluster(ray_cluster: None) -> None:
    import ray

    with cluster.start() as address:
        assert address == ray.get_runtime_context().gcs_address
    assert ray.is_initialized()


@pytest.mark.parametrize(("first", "starts"), [("import ray", 1), ("pass", 2)])
def test_a_worker_imports_our_analysis_not_that_of_the_working_directory(
    tmp_path: Path, first: str, starts: int
) -> None:
    """A folder `analysis/` in the user's working directory shadows a top-level package of that name in workers.

    Ray reads its settings when it is imported: before ours, or after.
    """
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / "__init__.py").write_text("raise RuntimeError('the wrong analysis was imported')")
    script = tmp_path / "driver.py"
    script.write_text(
        f"{first}\n"
        "from ndt_ray import cluster\n"
        "def where():\n"
        "    import ndt_ray.analysis\n"
        "    return ndt_ray.analysis.__file__\n"
        f"for _ in range({starts}):\n"
        "    with cluster.start(cpus=1, gpus=0, object_store=80 * 2**20):\n"
        "        import ray\n"
        "        print(ray.get(ray.remote(where).remote()))\n"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    import ndt_ray.analysis

    assert Path(done.stdout.splitlines()[-1]).samefile(str(ndt_ray.analysis.__file__))
    assert not (tmp_path / ".ray" / "auth_token").exists()  # a later `ray start` of this user would turn tokens on
