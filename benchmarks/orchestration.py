"""What orchestration costs: one-step trials through Ray Tune on one worker, against the same trials in one process.

Three sides alternate within a round: `work` trains and measures and keeps nothing, `inline` is the same with the store,
`ray` the same through Tune. Seconds a trial are taken between the end of the first pack and the end of the last, so
that no side's start counts: processes, imports, and the first pack of a worker.
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.common import Bar, OtherLoad, finish, parser, report, spread, start
from ndt_ray import cluster
from ndt_ray.progress import Event
from ndt_ray.run import Options, run_sweep
from ndt_ray.spec.axes import Sweep
from ndt_ray.spec.sweepfile import parse_sweep
from ndt_ray.worker import train_nowhere

SPEC = """
name: orchestration
base:
  data: digits
  model: mlp_narrow
  train: {{steps: 1, batch: 64}}
  measure: {{every: 1, dense_until: 0, probe: 64}}
  evaluate: {{size: 100}}
axes: [{{path: seed, range: {trials}}}]
run: {{lanes: {lanes}}}
"""
LIMIT = 0.05
PACKED = 16
MIB = 2**20


@dataclass
class Ends:
    """A view that notes when packs end, and how large a worker is."""

    times: list[float] = field(default_factory=list)
    uss: int = 0

    def show(self, event: Event) -> None:
        if event["event"] != "finish":
            return
        self.times.append(event["time"])
        if len(self.times) % 25 == 2:
            self.uss = max(self.uss, *(worker_sizes() or [0]))

    def close(self) -> None:
        pass


def worker_sizes() -> list[int]:
    """Memory of its own (USS) of each worker process of this cluster that is on a trial, in bytes."""
    sizes = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "ImplicitFunc" in " ".join(process.cmdline()):  # Ray calls an actor by its class
                sizes.append(int(process.memory_full_info().uss))
        except psutil.Error:
            continue  # ended meanwhile
    return sizes


def seconds_a_trial(ends: Sequence[float], lanes: int) -> float:
    """From the end of the first pack to the end of the last."""
    return (ends[-1] - ends[0]) / ((len(ends) - 1) * lanes)


def work(sweep: Sweep, lanes: int) -> float:
    """The trials with nothing kept."""
    from ndt_ray.run import plan_sweep

    ends = []
    for pack in plan_sweep(sweep, None, Options(executor="inline"), measured=False).packs:
        train_nowhere(pack.trials)
        ends.append(time.time())
    return seconds_a_trial(ends, lanes)


def launched(sweep: Sweep, lanes: int, executor: Any, folder: Path) -> tuple[float, int]:
    """The trials with the store, and the size of a worker."""
    ends = Ends()
    shutil.rmtree(folder, ignore_errors=True)
    result = run_sweep(sweep, folder, Options(executor=executor, workers=1), ends)
    assert result.ok, result.launch
    return seconds_a_trial(sorted(ends.times), lanes), ends.uss


def main(arguments: list[str]) -> int:
    p = parser(__doc__, rounds=3, seconds=0.0)
    p.add_argument("--trials", type=int, default=200)
    options = p.parse_args(arguments)
    if options.quick:
        options.trials, options.rounds = 48, 1
    load = start(torch.device("cpu"))
    other = OtherLoad()
    rows, bars, used, size = [], [], time.process_time(), 0
    folder = Path(tempfile.mkdtemp(prefix="ndt-orchestration-"))
    with cluster.start(cpus=1, gpus=0):
        for lanes in (1, PACKED):
            sweep = parse_sweep(SPEC.format(trials=options.trials, lanes=lanes))
            rounds = []
            for r in range(options.rounds):
                report(f"{lanes} lanes a pack, round {r + 1} of {options.rounds}")
                found = {"work": work(sweep, lanes)}
                for name in ("inline", "ray") if r % 2 == 0 else ("ray", "inline"):
                    found[name], uss = launched(sweep, lanes, name, folder / "store")
                    size = max(size, uss)
                rounds.append(found)
            tune = spread([1e3 * (f["ray"] - f["inline"]) for f in rounds])
            store = spread([1e3 * (f["inline"] - f["work"]) for f in rounds])
            sides = {f"{n} ms": spread([1e3 * f[n] for f in rounds]) for n in ("work", "inline", "ray")}
            rows.append({"lanes a pack": lanes, **sides, "store adds ms": store, "Tune adds ms": tune})
            both = spread([f["ray"] - f["work"] for f in rounds])
            for what, seconds in (("training and its store", tune.median / 1e3), ("training alone", both.median)):
                bars.append(Bar(f"s a trial on top of {what}, {lanes} a pack", seconds, LIMIT, True))
    shutil.rmtree(folder, ignore_errors=True)
    busy = other.share(time.process_time() - used)
    notes = [
        f"one worker after packs: {size / MIB:.0f} MiB of its own (USS); trials: {options.trials}",
        f"other processes (Ray's own and the worker's among them) took {100 * busy:.0f} % of all cores",
    ]
    return finish("orchestration", options, rows, bars, load, notes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
