"""A store with one small real sweep of three architectures, for the tests of mechanistic analyses."""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from ndt_ray.run import Options, run_sweep
from ndt_ray.spec.sweepfile import parse_sweep
from ndt_ray.store.reader import Store, open_store

SPEC = """
name: looked-at
base:
  data: digits
  train: {steps: 40, batch: 32, optimizer: adam, lr: 1e-3}
  measure: {every: 10, probe: 64, confirm: 128}
  evaluate: {size: 50}
  checkpoint: {at: [20, 30, 40]}
axes:
  - path: model
    role: compare
    values: [{name: mlp, hidden: [16, 12]}, {name: cnn, channels: [6, 8]}, {name: transformer, width: 16, depth: 2}]
  - {path: seed, role: replicate, range: 2}
"""
SWEEP = "looked-at"


@functools.cache
def folder() -> Path:
    """The store's folder, made once a process; never write into it."""
    root = Path(tempfile.mkdtemp(prefix="ndt-mech-")) / "store"
    atexit.register(shutil.rmtree, root.parent, ignore_errors=True)
    assert run_sweep(parse_sweep(SPEC), root, Options(executor="inline")).ok
    return root


def looked_at() -> Store:
    return open_store(folder())


def trial_of(store: Store, model: str, seed: int = 0) -> str:
    found = store.sql("SELECT trial_id FROM trials WHERE model = ? AND seed = ?", [model, seed])["trial_id"]
    return str(found.item())
