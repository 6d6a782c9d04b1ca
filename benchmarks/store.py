"""The store at ten million measurement rows: how long to write, how many bytes a row, how long three queries take.

    python -m benchmarks store [--rows 9600000] [--dir FOLDER] [--keep]

12 architectures × 4 data sets × 25 seeds × 5 layers × 1,600 steps, one pack of 25 lanes per architecture and data
set, each written through PackWriter in parts of 8,000 rows and compacted, with its trials and scalars. Fewer rows are
fewer steps. Measures are random walks with noise in all bits. Times are in ms, the median of `--rounds` warm runs over
the files of a finished sweep.
"""

import hashlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Bar, finish, parser
from ndt_ray.store.reader import Store, open_store
from ndt_ray.store.schema import MEASURES
from ndt_ray.store.writer import PackWriter

ARCHITECTURES = [f"architecture_{n}" for n in range(12)]
DATA = ["mnist", "fashion_mnist", "qmnist", "ag_news"]
SEEDS, LAYERS = 25, 5
EVERY = 5
SPECTRUM = 128
SWEEP = "bench"
EVERY_CELL = "mean_ci_of_every_cell_layer_step_ms"


def main(arguments: list[str] | None = None) -> int:
    p = parser(__doc__, rounds=7, seconds=0)
    p.add_argument("--rows", type=int, default=9_600_000, help="measurement rows; a tenth with --quick")
    p.add_argument("--dir", type=Path, help="where to make the store (default: a temporary folder)")
    p.add_argument("--keep", action="store_true", help="leave the store there; a full one is used again")
    p.add_argument("--threads", type=int, help="of DuckDB (default: all cores)")
    options = p.parse_args(arguments)
    load = os.getloadavg()
    folder = options.dir or Path(tempfile.mkdtemp(prefix="ndt-bench-store-"))
    rows = options.rows // 10 if options.quick else options.rows
    steps = max(rows // (len(ARCHITECTURES) * len(DATA) * SEEDS * LAYERS), 2)
    try:
        store = open_store(folder, create=True, threads=options.threads)
        written = write(store, steps) if not store.manifests() else {}
        found = {**written, **sizes(store), **times(folder, options.threads, options.rounds)}
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    full = rows >= 9_600_000
    bars = [
        Bar("one series, ms", found["series_by_name_ms"] if full else None, 30, at_most=True),
        Bar(
            "mean and CI of every cell, ms", found["mean_ci_of_every_cell_layer_step_ms"] if full else None, 1000, True
        ),
        Bar("bytes a row, six float32 measures and energy-90", found["bytes_per_row_7_measures"], 20, at_most=True),
    ]
    return finish("store", options, [{"what": k, "value": v} for k, v in found.items()], bars, load)


def write(store: Store, steps: int) -> dict[str, float]:
    begin, cells = time.perf_counter(), [(a, d) for a in ARCHITECTURES for d in DATA]
    for n, (model, data) in enumerate(cells):
        write_pack(PackWriter(store, SWEEP, f"{n:04d}"), model, data, steps, np.random.default_rng(n))
    seconds = time.perf_counter() - begin
    rows = len(cells) * SEEDS * LAYERS * steps
    return {"write_seconds": round(seconds, 1), "write_rows_per_second": round(rows / seconds)}


def write_pack(writer: PackWriter, model: str, data: str, steps: int, rng: np.random.Generator) -> None:
    """One cell: rows go to the store step by step, as from a training run, 25 lanes at a time."""
    trials = [hashlib.sha256(f"{model} {data} {seed}".encode()).hexdigest()[:16] for seed in range(SEEDS)]
    lanes = np.arange(SEEDS)
    cell = {"model": model, "data": data, "cell": f"{model}/{data}", "control": "none", "steps": EVERY * (steps - 1)}
    writer.rows("trials", {"trial_id": trials, "lane": lanes, "seed": lanes, **cell})
    names = measures()
    batch = 8_000 // (SEEDS * LAYERS)
    level = np.full((len(names), SEEDS, LAYERS), 20.0)
    for first in range(0, steps, batch):
        count = min(batch, steps - first)
        noise = 0.006 * rng.standard_normal((count, *level.shape))
        walk = level * np.exp(np.cumsum(noise, axis=0))  # [step, measure, seed, layer]
        level = walk[-1]
        at = np.arange(first, first + count) * EVERY
        who, when = np.tile(trials, count), np.repeat(at, SEEDS)
        for layer in range(LAYERS):
            place = {"layer": f"network.{2 * layer}", "layer_index": layer, "view": "units", "n_stimuli": 256}
            columns = {name: value(name, walk[:, i, :, layer]) for i, name in enumerate(names)}
            writer.rows("measurements", {"trial_id": who, "step": when, **place, **columns})
        loss = walk[:, 0, :, 0].reshape(-1) / 10
        writer.rows("scalars", {"trial_id": who, "step": when, "lr": 1e-3, "probe_loss": loss, "batch_loss": loss})
        if first + count < steps:
            writer.commit(int(at[-1]), {"weights": np.zeros(1)})
    writer.commit((steps - 1) * EVERY, None, finished=True)


def measures() -> list[str]:
    return [name for name, _, _, _ in MEASURES]


def value(name: str, walk: np.ndarray) -> np.ndarray:
    flat = walk.reshape(-1)
    return (flat * 0.7).astype(np.int16) if name == "energy_90" else flat.astype(np.float32)


def sizes(store: Store) -> dict[str, Any]:
    """Bytes a row of what was written, and of full rows of `measurements` and `spectra` in a store of their own."""
    parts = store.snapshot().parts
    seven = sum(p.bytes for p in parts["measurements"]) / sum(p.rows for p in parts["measurements"])
    return {
        "rows": sum(p.rows for p in parts["measurements"]),
        "files": sum(len(found) for found in parts.values()),
        "bytes_per_row_7_measures": round(seven, 2),
        **full_rows(),
    }


def full_rows() -> dict[str, float]:
    rng = np.random.default_rng(0)
    steps, trials = 320, [f"{n:016x}" for n in range(SEEDS)]
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(Path(folder) / "store", create=True)
        writer = PackWriter(store, SWEEP, "full")
        names = [*measures(), *(f"{name}_uncentred" for name in measures()), "participation_ratio_corrected"]
        walk = 20 * np.exp(np.cumsum(0.006 * rng.standard_normal((steps, len(names), SEEDS, LAYERS)), axis=0))
        decay = 100 * np.arange(1, SPECTRUM + 1) ** -1.2
        who, when = np.tile(trials, steps), np.repeat(np.arange(steps) * EVERY, SEEDS)
        for layer in range(LAYERS):
            place = {"layer": f"network.{2 * layer}", "layer_index": layer, "view": "units", "n_stimuli": 256}
            columns = {n: value(n.removesuffix("_uncentred"), walk[:, i, :, layer]) for i, n in enumerate(names)}
            writer.rows("measurements", {"trial_id": who, "step": when, **place, **columns})
            drift = np.exp(np.cumsum(0.01 * rng.standard_normal((2, steps, SEEDS, SPECTRUM)), axis=1))
            spectra, uncentred = (decay * drift).reshape(2, -1, SPECTRUM).astype(np.float32)
            totals = spectra.astype(np.float64).sum(1)
            sums = {
                "trace": totals,
                "trace_uncentred": uncentred.astype(np.float64).sum(1),
                "mean_norm": np.sqrt(totals),
            }
            sums |= {"gram_sums": totals[:, None] * rng.random(4), "n_rows": 256, "n_features": SPECTRUM}
            blocks = {"delete_block_pr": walk[:, 0, :, layer].reshape(-1, 1) * (1 + 0.01 * rng.random((len(who), 16)))}
            both = {"eigenvalues": spectra, "eigenvalues_uncentred": uncentred}
            writer.rows("spectra", {"trial_id": who, "step": when, **place, **sums, **blocks, **both})
        writer.commit(steps, None, finished=True)
        found = {name: parts[0] for name, parts in store.snapshot().parts.items()}
    return {
        "bytes_per_row_measurements_full": round(found["measurements"].bytes / found["measurements"].rows, 1),
        f"bytes_per_row_spectra_2x{SPECTRUM}": round(found["spectra"].bytes / found["spectra"].rows, 1),
    }


def times(folder: Path, threads: int | None, repeats: int) -> dict[str, float]:
    begin = time.perf_counter()
    store = open_store(folder, threads=threads)
    store.tables()
    opened = time.perf_counter() - begin
    trial = store.sql("SELECT trial_id FROM trials WHERE model = 'architecture_3' AND seed = 7 ORDER BY data").trial_id[
        0
    ]
    series = f"SELECT step, participation_ratio FROM measurements WHERE trial_id = '{trial}' AND layer = 'network.2'"
    named = "SELECT step, participation_ratio FROM wide WHERE model = 'architecture_3' AND data = 'mnist' AND seed = 7 "
    band = (
        "SELECT model, data, layer, step, avg(participation_ratio) AS mean, "
        "1.96 * stddev(participation_ratio) / sqrt(count(*)) AS half_width FROM wide GROUP BY ALL"
    )
    queries: dict[str, Callable[[], Any]] = {
        "series_of_a_trial": lambda: store.arrow(series + " ORDER BY step"),
        "series_by_name": lambda: store.arrow(named + "AND layer = 'network.2' ORDER BY step"),
        "series_method": lambda: store.measurements(trial=trial, layer="network.2", columns=["step", "rankme"]),
        "mean_ci_of_every_cell_layer_step": lambda: store.arrow(band),
        "mean_ci_as_data_frame": lambda: store.sql(band),
    }
    found = {"open_ms": round(1e3 * opened, 1)}
    for name, query in queries.items():
        spent = []
        for _ in range(repeats + 1):
            begin = time.perf_counter()
            query()
            spent.append(1e3 * (time.perf_counter() - begin))
        found |= {f"{name}_ms": round(statistics.median(spent[1:]), 1), f"{name}_first_ms": round(spent[0], 1)}
    return found


if __name__ == "__main__":
    raise SystemExit(main())
