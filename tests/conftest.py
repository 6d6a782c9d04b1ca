"""What every test stands on: one thread, nothing outside a temporary folder, and Ray only where asked for."""

import atexit
import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before numpy, torch or ray is imported by any test: they read these once.
_HOME = Path(tempfile.mkdtemp(prefix="ndt-tests-"))
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ["NDT_CACHE"] = str(_HOME / "cache")
os.environ["NDT_STORE"] = str(_HOME / "store")
# Ray's workers are nicer than others by default, and next to tests that compute they would hardly run.
os.environ["RAY_worker_niceness"] = "0"
os.environ["MPLBACKEND"] = "Agg"
os.environ["MPLCONFIGDIR"] = str(_HOME / "matplotlib")

WEIRD_NAMES = ("plain", "a 0", 'a"=0"', "é=%20&x")
"""Folder names that break careless quoting, URI parsing and hive partition parsing."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files first, so that two processes end together; first of all those with a time limit of their own."""
    weight = {"timeout": 0, "faults": 1, "ray": 2, "bitwise": 3, "slow": 4}
    first: dict[str, int] = {}
    for item in items:
        heaviest = min((weight[m.name] for m in item.iter_markers() if m.name in weight), default=9)
        first[item.nodeid.split("::")[0]] = min(first.get(item.nodeid.split("::")[0], 9), heaviest)
    items.sort(key=lambda item: first[item.nodeid.split("::")[0]])  # stable: order within a file stays


def pytest_collection_finish() -> None:
    """What was imported until now is left alone by the garbage collector, which is called less often: 11 % of the CPU
    time of four files (24.7 s and 21.9 s, mean of two)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(autouse=True)
def _one_torch_thread() -> None:
    """Bitwise claims hold for one thread; torch is not imported for those who do not need it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _planted_tables() -> Iterator[None]:
    """Tables that a test declares for itself are called `planted_...`, and are gone for the next one."""
    yield
    schema = sys.modules.get("ndt_ray.store.schema")
    for name in [name for name in (schema.TABLES if schema else ()) if name.startswith("planted_")]:
        del schema.TABLES[name]


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of data sets; a test that needs it is skipped, by name, where NDT_DATA is not set."""
    root = os.environ.get("NDT_DATA")
    if not root:
        pytest.skip("NDT_DATA is not set: this test reads real data sets; set it to a folder that holds them")
    if not Path(root).is_dir():
        pytest.fail(f"NDT_DATA names no folder: {root}")
    return Path(root)


@pytest.fixture(params=WEIRD_NAMES)
def weird_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An existing folder whose name is hard to quote; the test runs once for each."""
    path = tmp_path / str(request.param)
    path.mkdir()
    return path


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """A local Ray of 2 logical CPUs, shared by the tests of a module and shut down after them."""
    from ndt_ray import cluster

    with cluster.start(cpus=2, gpus=0, object_store=200 * 2**20):
        yield
