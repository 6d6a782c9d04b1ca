"""`doctor` on planted trouble; the cluster it talks to is in tests/ray/test_cluster.py."""

import dataclasses
import os
import sys
from pathlib import Path

import pytest

from ndt_ray import cluster, doctor
from ndt_ray.errors import ClusterError


@pytest.fixture(autouse=True)
def _small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thresholds that the machine running the tests passes, whatever it is."""
    monkeypatch.setattr(doctor, "MIN_DISK", 1)
    monkeypatch.setattr(doctor, "MIN_MEMORY_A_WORKER", 1)


@pytest.fixture
def here() -> doctor.Facts:
    return doctor.inspect()


def troubles(checks: list[doctor.Check]) -> dict[str, str]:
    return {c.name: c.status for c in checks if c.status != "ok"}


def test_without_ray_the_local_checks_run_and_nothing_is_left(weird_path: Path) -> None:
    checks = doctor.doctor(store=weird_path / "not" / "yet")
    assert troubles(checks) == {}
    assert {"store", "python", "ray", "torch", "gpus", "free disk", "memory", "ray cluster"} <= {c.name for c in checks}
    assert list(weird_path.iterdir()) == []
    assert not cluster.joined()


def test_a_store_that_exists_is_kept(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    doctor.doctor(store=tmp_path / "store")
    assert list(tmp_path.iterdir()) == [tmp_path / "store"]
    assert list((tmp_path / "store").iterdir()) == []


def test_a_store_that_cannot_be_written_fails_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check = doctor.doctor(store=tmp_path / "file" / "store")[0]
    assert (check.name, check.status) == ("store", "fail")
    assert str(tmp_path / "file") in check.found
    assert check.todo


def test_an_unknown_kind_of_store_fails(tmp_path: Path) -> None:
    assert troubles(doctor.doctor(store="gopher://bucket/store")) == {"store": "fail"}


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ({"torch": "2.6.0"}, {"torch": "fail"}),
        ({"ray": "missing"}, {"ray": "fail"}),
        ({"python": "3.10.0", "ndt-ray": "0.0.9"}, {"python": "fail", "ndt-ray": "fail"}),
    ],
)
def test_versions_must_equal_the_drivers(
    here: doctor.Facts, versions: dict[str, str], expected: dict[str, str]
) -> None:
    node = dataclasses.replace(here, versions={**here.versions, **versions})
    assert troubles(doctor.judge("node", node, here)) == expected


def test_builds_of_one_torch_go_together(here: doctor.Facts) -> None:
    cpu = dataclasses.replace(here, versions={**here.versions, "torch": "2.13.0+cpu"})
    gpu = dataclasses.replace(here, versions={**here.versions, "torch": "2.13.0+cu130"})
    assert troubles(doctor.judge("node", gpu, cpu)) == {}


def test_a_gpu_that_ray_promises_and_torch_does_not_see(here: doctor.Facts) -> None:
    none = dataclasses.replace(here, gpus=[])
    assert troubles(doctor.judge("node", none, here, {"CPU": 8, "GPU": 1})) == {"gpus": "fail"}
    one = dataclasses.replace(here, gpus=["H200"])
    assert troubles(doctor.judge("node", one, here, {"CPU": 8, "GPU": 1})) == {}


def test_little_disk_and_memory_warn(here: doctor.Facts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MIN_DISK", 5 * 2**30)
    monkeypatch.setattr(doctor, "MIN_MEMORY_A_WORKER", 600 * 2**20)
    small = dataclasses.replace(here, disk_free=2**30, memory_available=2**30)
    assert troubles(doctor.judge("node", small, here, {"CPU": 4})) == {"free disk": "warn", "memory": "warn"}
    roomy = dataclasses.replace(here, disk_free=2**33, memory_available=2**32)
    assert troubles(doctor.judge("node", roomy, here, {"CPU": 4})) == {}


@pytest.mark.parametrize(
    ("clock", "status"), [(100.5, "ok"), (99.0, "ok"), (130.0, "warn"), (70.0, "warn"), (4000.0, "fail")]
)
def test_clock_skew_is_what_the_round_trip_cannot_explain(clock: float, status: str) -> None:
    assert doctor.judge_clock("node", asked=100.0, answered=101.0, clock=clock).status == status


def test_a_node_with_another_store_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with doctor._probe(tmp_path / "a") as probe:
        assert probe is not None
        assert probe.seen_from_here() is None
        elsewhere = dataclasses.replace(probe, store=str(tmp_path / "b"))
        assert "another folder" in str(elsewhere.seen_from_here())
        (tmp_path / "b" / probe.name).write_text("same name, other store")
        assert "another folder" in str(elsewhere.seen_from_here())


@pytest.mark.slow
def test_no_cluster_at_the_address_is_one_clear_check() -> None:
    last = doctor.doctor(address="127.0.0.1:9")[-1]
    assert (last.name, last.status) == ("ray cluster", "fail")
    assert "127.0.0.1:9" in last.found


def test_joining_takes_no_numbers_of_workers() -> None:
    with pytest.raises(ClusterError, match=r"cpus=3"), cluster.start("127.0.0.1:9", cpus=3):
        pass


def test_the_environment_is_put_back_but_for_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_DEDUP_LOGS", "1")
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that it is put back, whatever happens below
        monkeypatch.delenv(name)
    before = dict(os.environ)
    with cluster._settings(local=False):
        assert "RAY_AUTH_TOKEN" not in os.environ
        assert os.environ["RAY_DEDUP_LOGS"] == "1"
        assert os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] == "1"
    assert dict(os.environ) == before
    with cluster._settings(local=True):
        token = os.environ["RAY_AUTH_TOKEN"]
    with cluster._settings(local=True):
        assert os.environ["RAY_AUTH_TOKEN"] == token


def test_importing_the_modules_imports_no_ray() -> None:
    import subprocess

    code = "import sys, ndt_ray.cluster, ndt_ray.doctor; sys.exit('ray' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_products_that_move_are_a_warning_with_the_way_out(here: doctor.Facts) -> None:
    assert "products" not in troubles(doctor.judge("node", dataclasses.replace(here, moving=False), here))
    (found,) = [c for c in doctor.judge("node", dataclasses.replace(here, moving=True), here) if c.name == "products"]
    assert found.status == "warn" and "MKL_CBWR=AUTO" in found.todo
