"""The mechanistic battery: seconds for one checkpoint, scaling over actors, and false discoveries at pseudo-events.

One checkpoint of cnn_deep (untrained: the cost does not depend on the weights) with a confirm probe of 512 images of
MNIST's shape, everything but the loading of the data set; one core. `--calibrate N` runs N simulated sweeps a design.
"""

import math
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from benchmarks.common import Bar, finish, parser, report, start
from ndt_ray import registry
from ndt_ray.analysis.api import AnalysisInput, Partition
from ndt_ray.analysis.mechanisms.context import Contexts
from ndt_ray.analysis.mechanisms.simulated import Design, calibrate
from ndt_ray.analysis.runner import run_together
from ndt_ray.analysis.stored import StoredSweep
from ndt_ray.run import Options, run_sweep
from ndt_ray.spec import Trial
from ndt_ray.spec.sweepfile import parse_sweep
from ndt_ray.store.reader import open_store

BATTERY = ("attention", "head_ablation", "filters", "units", "collapse", "linear_probes", "intrinsic_dimension", "llc")
SECONDS = 10.0
SCALING = 0.8
"""Of the ideal: two actors must take at most 1 / (2 x this) of one's time."""
ALPHA = 0.05
POWER, SHOULD_BE_FOUND = 0.8, 2.0
"""Share of planted changes of at least so many noise SDs that must be found; 1 SD is shown (0.24 and 0.68, n=200)."""
DESIGNS: dict[str, Design] = {
    "gaussian": Design(),
    "persistent": Design(phi=0.9),
    "heavy tails": Design(heavy=True),
    "fading noise": Design(fading=3.0),
    "steep trends": Design(trend=50.0),
    "planted 1 SD": Design(planted=1.0, planted_metrics=4),
    "planted 2 SD": Design(planted=2.0, planted_metrics=4),
}
SWEEP = """
name: scaling
base:
  data: digits
  train: {{steps: {steps}, batch: 32}}
  measure: {{every: 1000, probe: 128, confirm: 512}}
  evaluate: {{size: 100}}
  checkpoint: {{every: {every}}}
axes:
  - {{path: model, values: [cnn_medium]}}
  - {{path: seed, range: 2}}
"""


class Untrained:
    """A store of one trial that was never run."""

    def __init__(self, model: str, probe: int) -> None:
        spec = {"model": model, "data": "mnist", "train": {"steps": 1}, "measure": {"probe": probe}}
        self.spec = Trial.model_validate(spec).model_dump_json()

    def read(self, table: str, partition: Partition) -> pa.Table:
        return pa.Table.from_pylist([{"spec": self.spec}])

    def checkpoint(self, trial_id: str, step: int) -> Mapping[str, Any]:
        raise AssertionError("its initialisation is all there is")


def one_checkpoint(model: str) -> tuple[list[dict[str, Any]], float]:
    """CPU seconds of each analysis, forward pass in the first, and of all."""
    Contexts(Untrained(model, 512))("t", 0)  # the data set stays in memory
    contexts = Contexts(Untrained(model, 512))
    rows, began = [], time.process_time()
    for name in BATTERY:
        at = time.process_time()
        found = registry.resolve("analysis", name)(AnalysisInput("s", Partition("t", 0), {}, contexts))
        rows.append({"what": f"{model} {name}", "s": time.process_time() - at, "rows": sum(map(len, found.values()))})
    assert contexts("t", 0).passes == 1
    return rows, time.process_time() - began


def scaling(checkpoints: int) -> tuple[list[dict[str, Any]], float]:
    """Wall seconds of the battery over a sweep's checkpoints with one actor and with two, and their ratio / 2."""
    names = [name for name in BATTERY if name != "llc"]
    every = 4
    took = {}
    for workers in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "store"
            run_sweep(parse_sweep(SWEEP.format(steps=every * checkpoints // 2, every=every)), root, Options("inline"))
            with open_store(root) as store:
                began = time.perf_counter()
                given = [(name, None) for name in names]
                done = run_together(given, StoredSweep(store, "scaling"), executor="ray", workers=workers)
                took[workers] = time.perf_counter() - began
                assert all(r.ok for r in done), done
        report(f"{workers} actors: {took[workers]:.1f} s for {done[0].done} networks")
    rows = [{"what": f"{checkpoints} checkpoints, {w} actors", "s": s, "rows": ""} for w, s in took.items()]
    return rows, took[1] / took[2] / 2


def main(arguments: list[str] | None = None) -> int:
    """Exit status 1 where a bar was missed."""
    p = parser(__doc__, rounds=1, seconds=0)
    p.add_argument("--calibrate", type=int, default=0, help="simulated sweeps a design")
    p.add_argument("--designs", nargs="*", default=list(DESIGNS), help="some of the designs")
    p.add_argument("--checkpoints", type=int, default=0, help="of the sweep that actors share")
    p.add_argument("--model", default="cnn_deep")
    options = p.parse_args(arguments)
    load = start(torch.device("cpu"))
    rows, seconds = one_checkpoint(options.model)
    bars = [Bar(f"{options.model}: whole battery on one checkpoint, CPU s", seconds, SECONDS, at_most=True)]
    if options.checkpoints:
        more, ratio = scaling(options.checkpoints)
        rows += more
        bars.append(Bar("speed-up of two actors / 2", ratio, SCALING))
    for name in options.designs if options.calibrate else ():
        at = time.process_time()
        found = calibrate(DESIGNS[name], options.calibrate, name)
        report(f"{name}: {found}")
        rows.append({"what": f"{name}, {options.calibrate} sweeps", "s": time.process_time() - at, "rows": ""})
        if DESIGNS[name].planted:
            if DESIGNS[name].planted >= SHOULD_BE_FOUND:
                bars.append(Bar(f"{name}: share of planted changes found", found["power"], POWER))
            rows.append({"what": f"{name}: found beside matched windows", "s": found["power"], "rows": ""})
            rows.append({"what": f"{name}: found beside other seeds", "s": found["seed_power"], "rows": ""})
            continue
        limit = ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / options.calibrate)
        for which in ("any_event", "any_test", "any_seed_event", "any_seed_test"):
            bars.append(Bar(f"{name}: P({which} q < {ALPHA})", found[which], limit, at_most=True))
    return finish("battery", options, rows, bars, load)
