"""`ndt doctor`: is every node fit to train?

The checks of this machine work without Ray and start none.
"""

import os
import secrets
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from ndt_ray import cluster
from ndt_ray.cluster import first_line
from ndt_ray.errors import ClusterError

Status = Literal["ok", "warn", "fail"]

PACKAGES = ("ndt-ray", "ray", "torch", "numpy", "pyarrow")
NODE_TIMEOUT = 60.0
"""Seconds that a node has to answer; the first answer imports torch."""
MIN_DISK = 5 * 2**30
MIN_MEMORY_A_WORKER = 600 * 2**20
"""An idle worker with torch holds about 310 MiB; a pack of large models as much again."""
MAX_SKEW = 2.0
"""Seconds. Attempts are ordered by generation, never by clock; skew makes times in `attempts` and logs misleading."""
FAIL_SKEW = 300.0
"""Seconds; object stores refuse requests signed by a clock 15 minutes wrong."""


@dataclass(frozen=True)
class Check:
    """One thing looked at on one node: how it stands, what was found and, unless ok, what to do."""

    node: str
    name: str
    status: Status
    found: str
    todo: str = ""

    def asdict(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True)
class Facts:
    """What one node says of itself; `clock` is its time in seconds since the epoch."""

    versions: dict[str, str]
    gpus: list[str]
    cores: int
    disk_free: int
    memory_available: int
    clock: float
    store_error: str | None
    scratch: str = field(default_factory=tempfile.gettempdir)
    solver: str = ""
    moving: bool = False


def doctor(store: str | Path | None = None, address: str | None = None) -> list[Check]:
    """Check this machine and, where a cluster is named or joined, each of its nodes.

    `store` is a path or a URI of `pyarrow.fs`; a probe file is written there, read back by every node, and removed.
    Starts no Ray: without a cluster the checks are those of this machine alone. Never raises for what it finds.
    """
    with _probe(store) as probe:
        here = inspect(probe)
        checks = [*_store_checks(probe), *judge("this machine", here, here)]
        if address is None and not cluster.joined():
            note = "not running; `ndt sweep` starts one on this machine for as long as it needs it"
            return [*checks, Check("this machine", "ray cluster", "ok", note)]
        try:
            with cluster.start(address):
                return [*checks, *_cluster_checks(here, probe)]
        except ClusterError as error:
            return [*checks, Check("cluster", "ray cluster", "fail", str(error), "see the message")]


def inspect(probe: "Probe | None" = None) -> Facts:
    """What this node has; called on each of them."""
    import psutil

    scratch = tempfile.gettempdir()
    return Facts(
        versions={"python": sys.version.split()[0], **{name: _version(name) for name in PACKAGES}},
        gpus=_gpus(),
        cores=os.cpu_count() or 1,
        disk_free=shutil.disk_usage(scratch).free,
        memory_available=int(psutil.virtual_memory().available),
        clock=time.time(),
        store_error=None if probe is None else probe.seen_from_here(),
        solver=_solver(),
        moving=_moving(),
    )


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def _solver() -> str:
    try:
        from ndt_ray import native
    except ImportError:  # no torch, which is said already
        return ""
    return native.status()


def _moving() -> bool:
    try:
        from ndt_ray.lanes.numerics import products_stand_still
    except ImportError:
        return False
    return not products_stand_still()


def _gpus() -> list[str]:
    try:
        import torch
    except ImportError:
        return []
    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def judge(node: str, facts: Facts, driver: Facts, resources: Mapping[str, float] | None = None) -> list[Check]:
    """What the facts of one node mean, beside the driver's and beside the `resources` that Ray thinks it has."""
    checks = []
    for name, found in facts.versions.items():
        expected = driver.versions[name]
        same = found.split("+")[0] == expected.split("+")[0]  # 2.13.0+cpu and 2.13.0+cu130 go together
        if found == "missing":
            checks.append(Check(node, name, "fail", "missing", f"install {name} {expected} there: see setup_commands"))
        elif not same:
            todo = f"install {expected} there: trials resume only on equal versions"
            checks.append(Check(node, name, "fail", f"{found}, but {expected} on the driver", todo))
        else:
            checks.append(Check(node, name, "ok", found))
    checks.append(_judge_gpus(node, facts, resources))
    checks.append(
        _at_least(node, "free disk", facts.disk_free, MIN_DISK, f"in {facts.scratch}", "free some, or set TMPDIR")
    )
    workers = max(1, int((resources or {}).get("CPU", facts.cores)))
    need = workers * MIN_MEMORY_A_WORKER
    todo = f"use fewer workers: {workers} need about this much"
    checks.append(_at_least(node, "memory", facts.memory_available, need, "available", todo))
    if facts.solver:
        checks.append(Check(node, "spectra", "ok", f"solved by {facts.solver}"))
    if facts.moving:
        todo = "set MKL_CBWR=AUTO before Python starts: a lane is else not bit for bit the same in every pack"
        checks.append(Check(node, "products", "warn", "depend on where in memory their operands lie", todo))
    if facts.store_error:
        todo = "give every node the same store: a shared folder or an object store, with credentials in its environment"
        checks.append(Check(node, "sees the store", "fail", facts.store_error, todo))
    return checks


def _judge_gpus(node: str, facts: Facts, resources: Mapping[str, float] | None) -> Check:
    seen, promised = len(facts.gpus), (resources or {}).get("GPU", 0)
    text = f"{seen} ({', '.join(sorted(set(facts.gpus)))})" if seen else "none"
    if promised > seen:
        todo = "the driver, the CUDA build of torch, or the container's GPU runtime is missing there"
        return Check(node, "gpus", "fail", f"Ray promises {promised:g}, torch sees {text}", todo)
    return Check(node, "gpus", "ok", text)


def _at_least(node: str, name: str, found: int, need: int, where: str, todo: str) -> Check:
    text = f"{found / 2**30:.1f} GiB {where}"
    return (
        Check(node, name, "ok", text)
        if found >= need
        else Check(node, name, "warn", f"{text} < {need / 2**30:.1f}", todo)
    )


def judge_clock(node: str, asked: float, answered: float, clock: float) -> Check:
    """The skew of a node's clock, from the driver's times (s) before the question and after the answer."""
    skew = max(asked - clock, clock - answered, 0.0)  # inside the round trip it cannot be told from none
    if skew <= MAX_SKEW:
        return Check(node, "clock", "ok", f"{skew:.1f} s off")
    status: Status = "fail" if skew > FAIL_SKEW else "warn"
    return Check(node, "clock", status, f"{skew:.0f} s off the driver's", "run a time daemon (chrony, ntpd) on it")


def _cluster_checks(driver: Facts, probe: "Probe | None") -> list[Check]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked: dict[Any, tuple[str, Mapping[str, float], float]] = {}
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        # No CPU is asked for: a node busy with trials, or a head without CPUs, answers too.
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ray.remote(inspect).options(num_cpus=0, max_retries=0, scheduling_strategy=strategy)
        name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        asked[task.remote(probe)] = (name, node["Resources"], time.time())
    checks, waiting, deadline = [], list(asked), time.monotonic() + NODE_TIMEOUT
    while waiting:
        done, waiting = ray.wait(waiting, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
        if not done:
            break
        name, resources, at = asked[done[0]]
        try:
            facts = ray.get(done[0])
        except Exception as error:
            todo = "see setup_commands of cluster.yaml: ndt-ray and its dependencies must be installed on every node"
            checks.append(Check(name, "answers", "fail", _cause(error), todo))
            continue
        checks += [*judge(name, facts, driver, resources), judge_clock(name, at, time.time(), facts.clock)]
    for late in waiting:
        ray.cancel(late, force=True)
        todo = "look at `ray status` and the node's raylet log; drain it if it hangs"
        checks.append(Check(asked[late][0], "answers", "fail", f"no answer in {NODE_TIMEOUT:.0f} s", todo))
    return checks


def _cause(error: BaseException) -> str:
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {first_line(cause)}"


# ------------------------------------------------------------------------------------------- the store's probe


@dataclass(frozen=True)
class Probe:
    """A file written to the store by the driver, with contents that only the same store can show."""

    store: str
    name: str
    content: str
    error: str | None = None

    def seen_from_here(self) -> str | None:
        """None if this node reads the file and can write beside it, else what went wrong."""
        if self.error:
            return None  # said once, for the driver
        try:
            fs, root = _filesystem(self.store)
            with fs.open_input_file(f"{root}/{self.name}") as file:
                if file.read().decode() != self.content:
                    return f"{self.store} is another folder there"
            own = f"{root}/{self.name}-{uuid.uuid4().hex}"
            with fs.open_output_stream(own) as file:
                file.write(b"probe")
            fs.delete_file(own)
        except FileNotFoundError:
            return f"{self.store} is another folder there, or not mounted"
        except Exception as error:  # pyarrow raises OSError for most, ArrowInvalid or ValueError for the rest
            return f"{self.store}: {first_line(error)}"
        return None


def _filesystem(store: str) -> tuple[Any, str]:
    from pyarrow import fs

    if "://" in store:
        filesystem, root = fs.FileSystem.from_uri(store)
        return filesystem, root
    return fs.LocalFileSystem(), os.path.abspath(store)


@contextmanager
def _probe(store: str | Path | None) -> Iterator[Probe | None]:
    """Write the probe file, and remove it, with the folders made for it."""
    if store is None:
        yield None
        return
    # The name starts with '.' and does not end in .parquet: no reader takes it for data.
    probe = Probe(str(store), f".doctor-{uuid.uuid4().hex}", secrets.token_hex(16))
    made = _missing_folders(str(store))
    try:
        fs, root = _filesystem(probe.store)
        fs.create_dir(root, recursive=True)
        with fs.open_output_stream(f"{root}/{probe.name}") as file:
            file.write(probe.content.encode())
    except Exception as error:
        yield Probe(probe.store, probe.name, probe.content, error=first_line(error))
        return
    try:
        yield probe
    finally:
        fs.delete_file(f"{root}/{probe.name}")
        for folder in made:
            if not any(folder.iterdir()):
                folder.rmdir()


def _missing_folders(store: str) -> list[Path]:
    """Folders of a local path that do not exist yet, deepest first."""
    if "://" in store:
        return []
    path = Path(store).absolute()
    return [p for p in (path, *path.parents) if not p.exists()]


def _store_checks(probe: Probe | None) -> list[Check]:
    if probe is None:
        return []
    if probe.error:
        todo = "check that the folder or bucket exists and may be written, and the credentials in the environment"
        return [Check("this machine", "store", "fail", f"{probe.store}: {probe.error}", todo)]
    return [Check("this machine", "store", "ok", f"{probe.store}: written, read and removed a file")]
