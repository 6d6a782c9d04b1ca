"""What measuring everything costs of training: packs on the default schedule against the same packs unmeasured.

Spectra centred and uncentred, Gram sums, delete-block replicates, velocity, norms and scalars of every tracked layer,
every 10 steps. `measured` throws the rows away; `stored` writes them, with a commit and its recovery state at the end
of each round; `plain` does so without the compiled kernels. A run commits every 8,192 rows (1,000 steps of mlp_narrow,
for which `--seconds 7` is about right) or 30 s: shorter rounds overstate what storing costs. 784 -> 10, batch 64, Adam
with 1e-3, one thread; `digits` are the cells of the demo. Neither the start of a run counts nor its first measurements;
the clock starts and stops at heartbeats, five a second as in any run.
"""

import argparse
import functools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common import Bar, Rounds, Timed, finish, parser, rate, ratio, report, start
from benchmarks.sides import IMAGE, best_engine
from ndt_ray import native, registry, train
from ndt_ray.data import Dataset, load
from ndt_ray.data.dataset import build as build_dataset
from ndt_ray.models import build
from ndt_ray.sink import Arrays
from ndt_ray.spec import Trial
from ndt_ray.store.reader import open_store
from ndt_ray.store.writer import PackWriter

LANES = {"mlp_narrow": 16, "cnn_deep": 4, "transformer_shallow": 4}
DEMO = ("mlp_narrow", "cnn_shallow", "transformer_shallow")
DEMO_LANES = 6
LIMIT = 0.40
EVERY = 10
FIRST = 20
"""Steps of a run before its clock starts."""
NEVER = 10**9


class Clock:
    """A sink that lets a run go on for so many steps, and keeps nothing; `inner` takes the rows if it is given."""

    def __init__(self, steps: int, inner: PackWriter | None = None) -> None:
        self.steps, self.inner = steps, inner
        self.began = self.took = (0.0, 0.0)
        self.first: int | None = None
        self.counted = 0
        """Steps between the clock's start and its end."""

    def rows(self, table: str, columns: Mapping[str, Any]) -> None:
        if self.inner is not None:
            self.inner.rows(table, columns)

    def checkpoint(self, trial_id: str, step: int, tensors: Arrays, reason: str) -> None:
        pass

    def heartbeat(self, step: int, state: Callable[[], Arrays], progress: Mapping[str, float]) -> bool:
        if self.first is None and step >= FIRST:
            self.first, self.began = step, (time.process_time(), time.perf_counter())
        if self.first is None or step < self.first + self.steps:
            return False
        self.commit(step, state, False)
        self.took = time.process_time() - self.began[0], time.perf_counter() - self.began[1]
        self.counted = step - self.first
        return True

    def commit(self, step: int, state: Callable[[], Arrays], finished: bool) -> None:
        if self.inner is not None:
            self.inner.commit(step, state())


@functools.cache
def data_of(name: str) -> Dataset:
    """Digits, or random images and labels of MNIST's shape."""
    if name == "digits":
        return load("digits", {})
    g = torch.Generator().manual_seed(0)
    parts = [(torch.randn(n, *IMAGE.shape, generator=g), torch.arange(n) % 10) for n in (12_800, 2_000)]
    return build_dataset("random", IMAGE, *parts, tuple(map(str, range(10))), "generated", "Random noise.")


class Runs:
    """Packs of one cell, measured or not, each run of which is timed after its first steps."""

    def __init__(self, model: str, data: str, lanes: int, probe: int) -> None:
        self.model, self.data, self.lanes, self.probe = model, data_of(data), lanes, probe
        self.engine = best_engine(model)

    def pack(self, measured: bool, steps: int) -> train.Pack:
        """A fresh one, of more steps than are timed: its sink ends it."""
        spec = {
            "model": self.model,
            "data": "digits",
            "train": {"steps": FIRST + 2 * steps + 2000, "batch": 64},
            "measure": {"every": EVERY if measured else NEVER, "probe": self.probe},
            "evaluate": {"every": NEVER, "size": 10},
            "engine": self.engine,
        }
        trials = [Trial.model_validate({**spec, "seed": seed}) for seed in range(self.lanes)]
        return train.Pack(trials, self._make, self.data, torch.device("cpu"), [t.cell for t in trials], "")

    def _make(self, trial: Trial) -> nn.Module:
        return build(registry.resolve("model", trial.model.name), self.data.inputs, {}, trial.seed.init)

    def timed(self, side: str, steps: int) -> Timed:
        """One run of at least `steps` steps after the first."""
        without = native.as_recorded("no kernels" if side == "plain" else None)
        with _writer(side in ("stored", "plain")) as writer, without:
            sink = Clock(steps, writer)
            train.train_pack(self.pack(side != "unmeasured", steps), sink)
        return Timed(sink.counted * self.lanes, *sink.took)

    def rounds(self, rounds: int, seconds: float) -> Rounds:
        """Sides in turn, each for about `seconds` unmeasured, in whole tens of steps."""
        self.timed("unmeasured", EVERY)  # the first allocates, and builds what is kept
        first = self.timed("unmeasured", EVERY)
        tens = max(1, round(seconds / EVERY * first.seed_steps / self.lanes / first.wall))
        sides = ["unmeasured", "measured", "stored", "plain"]
        out: Rounds = []
        for r in range(rounds):
            turned = sides[r % len(sides) :] + sides[: r % len(sides)]
            out.append({side: self.timed(side, tens * EVERY) for side in turned})
        return out


@contextmanager
def _writer(wanted: bool) -> Iterator[PackWriter | None]:
    """A pack's writer into a store of its own, which is gone afterwards."""
    if not wanted:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder, PackWriter(open_store(Path(folder), create=True), "s", "p") as writer:
        yield writer


def compare(model: str, data: str, lanes: int, options: argparse.Namespace) -> tuple[dict[str, Any], list[Bar]]:
    """One cell."""
    runs = Runs(model, data, lanes, options.probe)
    rounds = runs.rounds(options.rounds, options.seconds)
    measured, stored, plain = (ratio(rounds, "unmeasured", side, "cpu") for side in ("measured", "stored", "plain"))
    row = {
        "model": model,
        "data": data,
        "engine": runs.engine,
        "lanes": lanes,
        "probe": options.probe,
        "training/s": rate(rounds, "unmeasured", "cpu"),
        "stored/s": rate(rounds, "stored", "cpu"),
        "measured": measured,
        "stored": stored,
        "plain": plain,
    }
    report(f"{model} on {data}: measured {measured}, stored {stored}, without kernels {plain}")
    what = f"{model}: measuring and storing everything over training"
    return row, [Bar(what, stored.median - 1, LIMIT, at_most=True)] if data == "mnist" else []


def main(arguments: list[str] | None = None) -> int:
    """Exit status 1 where a bar was missed."""
    p = parser(__doc__, rounds=9, seconds=3.0)
    p.add_argument("--models", nargs="+", choices=LANES, default=list(LANES))
    p.add_argument("--data", nargs="+", choices=("mnist", "digits"), default=["mnist", "digits"])
    p.add_argument("--probe", type=int, default=128, help="stimuli")
    options = p.parse_args(arguments)
    if options.device != "cpu":
        p.error("the bars are of processor time")
    if options.quick:
        options.rounds, options.seconds = min(options.rounds, 3), min(options.seconds, 0.5)
    load_average = start(torch.device("cpu"))
    cells = [(model, "mnist", LANES[model]) for model in options.models if "mnist" in options.data]
    cells += [(model, "digits", DEMO_LANES) for model in DEMO if "digits" in options.data and not options.quick]
    rows, bars = [], []
    for cell in cells:
        row, found = compare(*cell, options)
        rows.append(row)
        bars += found
    notes = [
        f"kernels: {native.status()}",
        "measured, stored, plain: seconds of a seed-step over those of an unmeasured one",
    ]
    return finish("everything", options, rows, bars, load_average, notes)


if __name__ == "__main__":
    raise SystemExit(main())
