"""A small sweep run as a user runs it, and what of its store must be equal whatever happened on the way."""

import contextlib
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from ndt_ray.cli import main
from ndt_ray.store.reader import open_store
from ndt_ray.store.schema import TABLES

T = TypeVar("T")

MODELS = """
import os, pathlib, time
import torch
from torch import nn
from ndt_ray.models.layers import Dropout

PACE = pathlib.Path(__file__).with_name("pace")

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(64, 12), Dropout(0.1, site=0), nn.Linear(12, 10)
        self.tracked = {"first": "units", "last": "units"}
    def forward(self, x):
        if self.training:
            time.sleep(float(PACE.read_text()))
        return self.last(self.drop(torch.relu(self.first(x.flatten(-3)))))

class Bomb(Net):
    def __init__(self, fuse, deadly):
        super().__init__()
        self.fuse, self.deadly, self.calls = fuse, deadly, 0
    def forward(self, x):
        self.calls += self.training
        if self.calls > self.fuse:
            if self.deadly:
                os._exit(9)
            raise RuntimeError("the fuse has burnt down")
        return super().forward(x)

def net(inputs):
    return Net()

def bomb(inputs, *, fuse: int = 5, deadly: bool = False):
    return Bomb(fuse, deadly)
"""

SPEC = """
name: fault
base:
  model: MODELS:net
  data: digits
  train: {steps: 60, batch: 32, optimizer: adam, lr: 1e-3}
  measure: {every: 2, probe: 64}
  evaluate: {every: 50, size: 100}
  checkpoint:
    at: [0, 30]
    fractions: [1]
    on_event: {false_alarms_per_run: 10, keep: 3, spacing: 1, after: 2}
axes:
  - {path: engine, values: [loop, stack]}
  - {path: seed, range: 4}
run: {lanes: 2}
"""

BOMBS = """
name: fault
base: {data: digits, train: {steps: 20}, measure: {probe: 32}, evaluate: {size: 50}}
axes:
  - {path: model, values: ["MODELS:net", {name: "MODELS:bomb"}, {name: "MODELS:bomb", deadly: true}]}
  - {path: seed, range: 2}
run: {retries: 1}
"""


def write_spec(folder: Path, text: str = SPEC) -> Path:
    """The sweep, with its models in a file above it: their path is part of a trial, and so is one for all tests."""
    models = folder.parent / "models.py"
    models.write_text(MODELS)
    path = folder / "fault.yaml"
    path.write_text(text.replace("MODELS", str(models)))
    return path


def pace(spec: Path, seconds: float) -> None:
    """How long a forward pass of training takes from now on, in workers that run already too."""
    whole = spec.parent.parent / "pace.new"
    whole.write_text(str(seconds))
    whole.replace(spec.parent.parent / "pace")


class Command:
    """`ndt` in a process and process group of its own, forked from one that has imported what it needs.

    To start an interpreter and import takes 4 to 5 s of CPU, which each of these tests would spend several times.
    """

    returncode: int | None = None

    def __init__(self, arguments: list[str], said: Path) -> None:
        said.mkdir()
        self._said = said
        self._process = FORKS.Process(target=_main, args=(arguments, said))
        self._process.start()
        self.pid = int(self._process.pid or 0)

    def poll(self) -> int | None:
        self.returncode = self._process.exitcode
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it wrote to stdout and stderr, once it has ended."""
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired("ndt", timeout or 0)
        return (self._said / "out").read_text(), (self._said / "err").read_text()


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["ndt_ray.run", "ndt_ray.catalogue", "ray.tune", "torch._dynamo"])


def _main(arguments: list[str], said: Path) -> None:
    os.setsid()
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(said / name, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, descriptor)
        os.close(file)
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", 1, closefd=False) for descriptor in (1, 2))
    os.environ["NDT_COMMIT_SECONDS"] = COMMIT
    main(arguments)


COMMIT = "0.2"
"""Seconds between commits."""


def start(
    spec: Path,
    store: Path,
    *more: str,
    executor: str = "ray",
    address: str = "",
    slow: float = 0.015,
    new: bool = False,
) -> "Command | subprocess.Popen[str]":
    """`ndt sweep` as a process in a group of its own, committing often; `slow` seconds a forward pass of training.

    On Ray it starts a cluster of two workers for itself, unless there is an `address`. `new`: in a new interpreter.
    """
    pace(spec, slow)
    arguments = ["sweep", str(spec), "--store", str(store), "--no-report", "--executor", executor]
    if executor == "ray":
        arguments += ["--address", address] if address else ["--workers", "2"]
    arguments += ["--json", *more]
    if not new:
        return Command(arguments, spec.parent / f"said-{len(list(spec.parent.glob('said-*')))}")
    return subprocess.Popen(
        [sys.executable, "-m", "ndt_ray", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NDT_COMMIT_SECONDS": COMMIT},
        start_new_session=True,
    )


def finish(process: "Command | subprocess.Popen[str]", timeout: float = 150) -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, events and what was said on stderr; every line of stdout is an event."""
    out, err = process.communicate(timeout=timeout)
    assert process.returncode is not None
    return process.returncode, [json.loads(line) for line in out.splitlines()], err


def ndt(*arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line in this process: a new one imports for seconds."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(a) for a in arguments])
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue(), err.getvalue()


def run(spec: Path, store: Path, *more: str) -> list[dict[str, Any]]:
    """A launch that ends well, in silence and in this process, at full pace."""
    pace(spec, 0)
    code, out, err = ndt("sweep", spec, "--store", store, "--no-report", "--executor", "inline", "--json", *more)
    assert (code, err) == (0, ""), err
    return [json.loads(line) for line in out.splitlines()]


def kill(process: "Command | subprocess.Popen[str]", how: signal.Signals) -> None:
    """A signal to the whole group, as a terminal sends it."""
    os.killpg(process.pid, how)


def eventually(found: Callable[[], T], process: "Command | subprocess.Popen[str]", timeout: float = 90) -> T:
    """What `found` gives as soon as it is true."""
    began = time.monotonic()
    while time.monotonic() - began < timeout:
        if result := found():
            return result
        if process.poll() is not None:
            out, err = process.communicate()
            raise AssertionError(f"the sweep ended early ({process.returncode}): {out} {err}")
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def half_done(store: Path) -> dict[str, int]:
    """Steps of packs that have committed something past step 0, and are not finished."""
    if not (store / "ndt-store.json").exists():
        return {}
    return {m.pack: m.step for m in open_store(store).manifests("fault") if m.step > 0 and not m.finished}


def finished(store: Path) -> set[str]:
    """Packs that are finished."""
    return {m.pack for m in open_store(store).manifests("fault") if m.finished}


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


def tables(store: Path, without: tuple[str, ...] = ()) -> dict[str, pa.Table]:
    """Every table of packs, sorted by its key, without what says which pack holds a row, and some columns."""
    found = {}
    opened = open_store(store)
    for name, table in TABLES.items():
        if not table.order or name not in opened.names():
            continue
        columns = ", ".join(f'"{c.name}"' for c in table.columns if c.name not in without)
        order = ", ".join(f'"{name}"' for name in table.order)
        found[name] = opened.arrow(f"SELECT {columns} FROM {name} ORDER BY {order}")
    return found


def assert_equal(left: Path, right: Path, least: int = 1000, without: tuple[str, ...] = ()) -> None:
    """Table by table, bit for bit."""
    a, b = tables(left, without), tables(right, without)
    assert a.keys() == b.keys()
    for name in a:
        assert bits(a[name]) == bits(b[name]), name
    assert sum(t.num_rows for t in a.values()) > least


def bits(table: pa.Table) -> list[list[str]]:
    """Values such that NaN equals itself and -0.0 is not 0.0."""
    return [[repr(v) for v in column.to_pylist()] for column in table.columns]
