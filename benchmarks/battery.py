"""The mechanistic battery: seconds for one checkpoint, scaling over actors, and false discoveries at pseudo-events.

One checkpoint of cnn_deep (untrained: the cost does not depend on the weights) with a confirm probe of 512 images of
MNIST's shape, everything but the loading of the data set; one core. `--calibrate N` runs N simulated sweeps a design.

`--pseudo N` trains an MLP, a CNN and a transformer on digits, looks at all of their checkpoints with every analysis
that `mechanisms` compares, and draws N sets of pseudo-events in each, with the phases of the sweep's own events or,
where it has none, of the founding study's. Chains, draws and units of the dearer analyses are fewer than by default
(`BRIEF`): their metrics are noisier so, which costs power and no error. Left out are analyses whose tables `mechanisms`
does not read. `--pseudo-models`, `--pseudo-seeds` and `--pseudo-checkpoints` say how large the sweep is.
"""

import contextlib
import math
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pyarrow as pa
import torch

from benchmarks.common import Bar, Ratio, finish, parser, report, spread, start
from ndt_ray import registry
from ndt_ray.analysis.api import AnalysisInput, Partition
from ndt_ray.analysis.mechanisms.before_after import mechanisms
from ndt_ray.analysis.mechanisms.context import Contexts
from ndt_ray.analysis.mechanisms.pseudo import FOUNDING_PHASES, event_phases, false_discoveries, packed
from ndt_ray.analysis.mechanisms.simulated import Design, calibrate
from ndt_ray.analysis.running.runner import Progress, run_together
from ndt_ray.analysis.running.stored import StoredSweep
from ndt_ray.run import Options, run_sweep
from ndt_ray.spec import Trial
from ndt_ray.spec.sweepfile import parse_sweep
from ndt_ray.store.reader import open_store

BATTERY = ("attention", "head_ablation", "filters", "units", "collapse", "linear_probes", "intrinsic_dimension", "llc")
SECONDS = 10.0
SCALING = 0.8
"""Of the ideal: two actors must take at most 1 / (2 x this) of one's time."""
MORE_CORES = 1.25
"""Of one actor's core time two may take at most: more would be work that only sharing makes."""
SAMPLE_SECONDS = 0.2
EVERY = 4
"""Steps between the checkpoints that actors share."""
ALPHA, TESTED = 0.05, 0.25
"""Least share of changes with matched windows: where none has any, no error can be made."""
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
  data: {data}
  train: {{steps: {steps}, batch: 32}}
  measure: {{every: 1000, probe: 128, confirm: 256}}
  evaluate: {{size: 100}}
  checkpoint: {{every: {every}}}
axes:
  - {{path: model, values: [{model}]}}
  - {{path: seed, range: 2}}
"""

PSEUDO = """
name: pseudo
base:
  data: digits
  train: {{steps: {steps}, batch: 32}}
  measure: {{every: {every}, probe: 128}}
  evaluate: {{every: 60}}
  checkpoint: {{every: {every}}}
axes:
  - path: model
    values: [{models}]
  - {{path: seed, range: {seeds}}}
analyses: [events]
"""
PSEUDO_EVERY = 6
PSEUDO_MODELS = {
    "mlp": "mlp_narrow",
    "cnn": "{name: cnn, channels: [6, 8]}",
    "transformer": "{name: transformer, width: 16, heads: 4, depth: 1}",
}
BRIEF: dict[str, dict[str, Any]] = {
    "units": {"draws": 10, "per_unit": False},
    "unit_ablation": {"most": 4, "draws": 20},
    "composition": {"draws": 5},
    "symmetry": {"draws": 5},
    "llc": {"chains": 1, "draws": 10, "burn_in": 5},
}
KEPT_LAYERS = ("network.0", "network.2")
KEPT_METRICS = (
    *("loss", "accuracy", "nc1", "nc3", "llc", "class_selectivity", "fraction_active", "diversity", "effective_units"),
    *("filter_squared_cosine", "linear_probe_accuracy", "intrinsic_dimension", "unit_weight_similarity"),
    *("unit_response_similarity", "cka_to_last", "baseline_loss", "dependent_share", "hoyer_lifetime"),
)
"""Of the MLP, what `--keep` puts into the table that tests/unit/test_mech_pseudo.py draws pseudo-events from."""
COMPARED = (*BATTERY, "unit_ablation", "composition", "symmetry", "similarity", "weights")


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


class CoreTime(threading.Thread):
    """Processor seconds of this process and all that it starts, of those that ended up to their last sample."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.me, self.seen, self.ended = psutil.Process(), dict[tuple[int, float], float](), threading.Event()

    def sample(self) -> None:
        for process in (self.me, *self.me.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                self.seen[process.pid, process.create_time()] = times.user + times.system

    def run(self) -> None:
        while not self.ended.wait(SAMPLE_SECONDS):
            self.sample()

    def __enter__(self) -> "CoreTime":
        self.sample()
        self.before = sum(self.seen.values())
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.sample()
        self.ended.set()
        self.join()
        self.seconds = sum(self.seen.values()) - self.before


@dataclass
class Shared:
    """What one run over a sweep's checkpoints took: wall and processor seconds, and seconds a network at work."""

    wall: float
    cores: float
    networks: int
    at_work: float


def shared(store: Path, workers: int) -> Shared:
    """The battery but `llc` over all checkpoints of a copy of a store, by so many actors.

    `at_work` leaves out starting: it is counted from the first network that is done to the last.
    """
    names = [(name, None) for name in BATTERY if name != "llc"]
    beats: list[tuple[float, int]] = []

    def progress(p: Progress) -> None:
        if p.partition is not None and p.analysis == "units":
            beats.append((time.perf_counter(), p.done))

    with tempfile.TemporaryDirectory() as folder:
        with open_store(shutil.copytree(store, Path(folder) / "store")) as own, CoreTime() as cores:
            began = time.perf_counter()
            given: dict[str, Any] = {"executor": "ray", "workers": workers, "progress": progress}
            done = run_together(names, StoredSweep(own, "scaling"), **given)
            wall = time.perf_counter() - began
    assert all(r.ok for r in done), done
    (first, so_far), (last, total) = beats[0], beats[-1]
    return Shared(wall, cores.seconds, total, (last - first) / max(1, total - so_far))


def scaling(checkpoints: int, model: str, data: str, rounds: int) -> tuple[list[dict[str, Any]], dict[str, Ratio]]:
    """One actor and two over the same checkpoints in turn: rows, and ratios within rounds (one / two)."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "store"
        text = SWEEP.format(steps=EVERY * checkpoints // 2, every=EVERY, model=model, data=data)
        run_sweep(parse_sweep(text), root, Options("inline"))
        took = []
        for number in range(rounds):
            order = (1, 2) if number % 2 == 0 else (2, 1)
            took.append({workers: shared(root, workers) for workers in order})
            report(f"{model}, round {number + 1}: {took[-1]}")
    rows = [
        {"what": f"{model}: {t[w].networks} networks, {w} actors, round {i + 1}, {kind}", "s": value, "rows": ""}
        for i, t in enumerate(took)
        for w in (1, 2)
        for kind, value in (("wall", t[w].wall), ("cores", t[w].cores), ("a network", t[w].at_work))
    ]
    fields = ("wall", "cores", "at_work")
    return rows, {f: spread([getattr(t[1], f) / getattr(t[2], f) for t in took]) for f in fields}


def looked_into(sweep: StoredSweep) -> dict[str, pd.DataFrame]:
    """Tables of `COMPARED` at all checkpoints; in memory, for putting them into the store takes longer."""
    contexts, found = Contexts(sweep), dict[str, list[pd.DataFrame]]()
    analyses = [registry.resolve("analysis", name) for name in COMPARED]
    for per in ("checkpoint", "trial"):
        for partition in sweep.partitions(per):
            for analysis in (a for a in analyses if a.per == per):
                read = {} if per == "checkpoint" else {t: sweep.read(t, partition) for t in analysis.reads}
                given = AnalysisInput(sweep.sweep, partition, read, contexts)
                for table, rows in analysis(given, **BRIEF.get(analysis.name, {})).items():
                    if table in mechanisms.reads:
                        found.setdefault(table, []).append(rows.to_pandas())
    return {name: pd.concat(frames, ignore_index=True) for name, frames in found.items()}


def pseudo(
    replicates: int, models: Sequence[str], seeds: int, checkpoints: int, keep: str | None = None
) -> tuple[list[dict[str, Any]], dict[str, dict[str, float]]]:
    """What took how long, and false discoveries at pseudo-events of trained runs, by cell: a family is a cell's."""
    values = ", ".join(PSEUDO_MODELS[name] for name in models)
    text = PSEUDO.format(steps=PSEUDO_EVERY * checkpoints, every=PSEUDO_EVERY, seeds=seeds, models=values)
    rows, began = [], time.process_time()

    def done(what: str, count: object = "") -> None:
        nonlocal began
        rows.append({"what": f"pseudo-events: {what}", "s": time.process_time() - began, "rows": count})
        report(f"{rows[-1]}")
        began = time.process_time()

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "store"
        run_sweep(parse_sweep(text), root, Options("inline"))
        done("training and its events")
        with open_store(root) as store:
            sweep = StoredSweep(store, "pseudo")
            tables = {name: store.table(name, "pseudo") for name in mechanisms.reads if name in store.names()}
            layers = store.sql("SELECT DISTINCT trial_id, layer, layer_index FROM measurements WHERE sweep = 'pseudo'")
            tables |= looked_into(sweep)
            done(", ".join(COMPARED), len(sweep.partitions("checkpoint")))
    phases = event_phases(*(tables.get(name, pd.DataFrame()) for name in ("events", "event_families", "trials")))
    done("phases of founding events" if phases is FOUNDING_PHASES else "phases of own events", len(phases))
    found = {}
    for cell, trials in tables["trials"].groupby("cell"):
        ids = set(trials["trial_id"])
        own = {
            n: t[t["trial_id"].isin(ids)] if "trial_id" in t else t for n, t in (tables | {"layers": layers}).items()
        }
        if keep is not None and len(models) == 1:
            packed(own, KEPT_LAYERS, KEPT_METRICS).to_parquet(keep, compression="zstd", index=False)
        found[str(cell)] = false_discoveries(own, phases, replicates, str(cell))
        report(f"{cell}, pseudo-events: {found[str(cell)]}")
        done(f"{replicates} replicates in {cell}", len(ids))
    return rows, found


def _false(name: str, found: Mapping[str, float], replicates: int) -> list[Bar]:
    limit = ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / replicates)
    kinds = ("any_event", "any_test", "any_seed_event", "any_seed_test")
    bars = [Bar(f"{name}: P({kind} q < {ALPHA})", found[kind], limit, at_most=True) for kind in kinds]
    return [*bars, Bar(f"{name}: share of changes that could be tested", found["tested"], TESTED)]


def main(arguments: list[str] | None = None) -> int:
    """Exit status 1 where a bar was missed."""
    p = parser(__doc__, rounds=1, seconds=0)
    p.add_argument("--calibrate", type=int, default=0, help="simulated sweeps a design")
    p.add_argument("--pseudo", type=int, default=0, help="sets of pseudo-events in each trained cell")
    p.add_argument("--pseudo-models", nargs="*", default=list(PSEUDO_MODELS), choices=list(PSEUDO_MODELS))
    p.add_argument("--keep", help="a Parquet file for the small tables of the one model that is trained")
    p.add_argument("--pseudo-seeds", type=int, default=6, help="of each of these cells")
    p.add_argument("--pseudo-checkpoints", type=int, default=100, help="of each of their runs")
    p.add_argument("--designs", nargs="*", default=list(DESIGNS), help="some of the designs")
    p.add_argument("--checkpoints", type=int, default=0, help="of the sweep that actors share")
    p.add_argument("--model", default="cnn_deep")
    p.add_argument("--scaling", nargs="*", default=["cnn_medium", "transformer_shallow"], help="models of that sweep")
    p.add_argument("--data", default="digits", help="data set of that sweep")
    options = p.parse_args(arguments)
    load = start(torch.device("cpu"))
    rows, seconds = one_checkpoint(options.model)
    bars = [Bar(f"{options.model}: whole battery on one checkpoint, CPU s", seconds, SECONDS, at_most=True)]
    for model in options.scaling if options.checkpoints else ():
        more, ratios = scaling(options.checkpoints, model, options.data, options.rounds)
        rows += more
        for kind, found in ratios.items():
            report(f"{model}: {kind}, one actor / two: {found}")
        bars.append(Bar(f"{model}: speed-up of two actors at work / 2", ratios["at_work"].median / 2, SCALING))
        bars.append(
            Bar(f"{model}: core time of two actors / one", 1 / ratios["cores"].median, MORE_CORES, at_most=True)
        )
        rows.append(
            {"what": f"{model}: wall of one actor / two, starts included", "s": ratios["wall"].median, "rows": ""}
        )
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
        bars += _false(name, found, options.calibrate)
    if options.pseudo:
        more, by_cell = pseudo(
            options.pseudo, options.pseudo_models, options.pseudo_seeds, options.pseudo_checkpoints, options.keep
        )
        rows += more
        for cell, found in by_cell.items():
            bars += _false(f"{cell}, pseudo-events", found, options.pseudo)
    return finish("battery", options, rows, bars, load)
