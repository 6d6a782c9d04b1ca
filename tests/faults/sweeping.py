"""A small sweep run as a user runs it, and what of its store must be equal whatever happened on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
from ndt_ray.store.reader import open_store
from ndt_ray.store.schema import TABLES

SPEC = """
name: fault
base:
  data: digits
  train: {steps: %(steps)d, batch: 32, optimizer: adam, lr: 1e-3}
  measure: {every: 5, probe: 64}
  evaluate: {every: 50, size: 100}
  checkpoint: {at: [0, 40], fractions: [1]}
axes:
  - {path: model, values: [mlp_narrow, cnn_shallow]}
  - {path: seed, range: 4}
run: {lanes: 2}
"""


def write_spec(folder: Path, steps: int = 120) -> Path:
    path = folder / "fault.yaml"
    path.write_text(SPEC % {"steps": steps})
    return path


def start(spec: Path, store: Path, *more: str, executor: str = "ray", commit: float = 0.3) -> "subprocess.Popen[str]":
    """`ndt sweep` as a process of its own, in a group of its own, committing often."""
    env = {**os.environ, "NDT_COMMIT_SECONDS": str(commit)}
    command = [sys.executable, "-m", "ndt_ray", "sweep", str(spec), "--store", str(store), "--executor", executor]
    return subprocess.Popen(
        [*command, "--json", "--workers", "2", *more] if executor == "ray" else [*command, "--json", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        start_new_session=True,
    )


def finish(process: "subprocess.Popen[str]", timeout: float = 150) -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, events and what was said on stderr."""
    out, err = process.communicate(timeout=timeout)
    return process.returncode, [json.loads(line) for line in out.splitlines() if line.startswith("{")], err


def run(spec: Path, store: Path, *more: str, executor: str = "ray") -> list[dict[str, Any]]:
    code, events, err = finish(start(spec, store, *more, executor=executor))
    assert code == 0, err
    return events


def wait_for_commit(store: Path, packs: int, timeout: float = 90) -> dict[str, int]:
    """Steps of running packs by pack id, as soon as so many have committed past step 0."""
    began = time.monotonic()
    while time.monotonic() - began < timeout:
        if (store / "ndt-store.json").exists():
            steps = {m.pack: m.step for m in open_store(store).manifests("fault") if m.step > 0 and not m.finished}
            if len(steps) >= packs:
                return steps
        time.sleep(0.05)
    raise AssertionError("no pack committed in time")


def worker_pids(store: Path) -> list[int]:
    """Processes that are at work on packs, by their attempts."""
    newest: dict[str, Any] = {}
    for attempt in open_store(store).attempts("fault"):
        newest[attempt.pack] = attempt
    return [a.pid for a in newest.values() if a.status == "running"]


def kill_worker(pid: int) -> None:
    """SIGKILL, once it is certain that this is a Ray worker."""
    assert "ray::" in Path(f"/proc/{pid}/cmdline").read_text()
    os.kill(pid, signal.SIGKILL)


def tables(store: Path) -> dict[str, pa.Table]:
    """Every table of packs, sorted by its key, without what says which pack holds a row."""
    found = {}
    opened = open_store(store)
    for name, table in TABLES.items():
        if not table.order or name not in opened.names():
            continue
        columns = ", ".join(f'"{c.name}"' for c in table.columns)
        order = ", ".join(table.order)
        found[name] = opened.arrow(f"SELECT {columns} FROM {name} WHERE sweep = 'fault' ORDER BY {order}")
    return found


def assert_equal(left: Path, right: Path) -> None:
    a, b = tables(left), tables(right)
    assert a.keys() == b.keys()
    for name in a:
        assert bits(a[name]) == bits(b[name]), name
    assert sum(t.num_rows for t in a.values()) > 1000


def bits(table: pa.Table) -> list[list[Any]]:
    """Values such that NaN equals itself and -0.0 is not 0.0."""
    return [[repr(v) for v in column.to_pylist()] for column in table.columns]
