"""A tiny training run for tests of the store: what each trial measures at each step is a function of both alone."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from bucket import Bucket

from ndt_ray.store import filesystem
from ndt_ray.store.reader import Store, open_store
from ndt_ray.store.writer import PackWriter

TRIALS = ("1f00aa", "2e00bb")
LAYERS = ("network.0", "network.2")
STEPS = 12

filesystem.to_disk = lambda descriptor: None  # no test cuts the power, and 5 ms a file would be half of their time


def local(tmp_path: Path, name: str = "store") -> Store:
    return open_store(tmp_path / name, create=True)


def object_store(tmp_path: Path, name: str = "bucket") -> Store:
    """A store that goes the way of s3:// and gs://."""
    return open_store(f"{name}/store", create=True, filesystem=pafs.PyFileSystem(Bucket()))


def mounted(tmp_path: Path, name: str = "mounted") -> Store:
    """The same way, on a filesystem of Arrow's own: an error in one written in Python makes Arrow's threads hang."""
    (tmp_path / name).mkdir(exist_ok=True)
    return open_store(
        "store", create=True, filesystem=pafs.SubTreeFileSystem(str(tmp_path / name), pafs.LocalFileSystem())
    )


def draw(trial: str, step: int, n: int) -> np.ndarray:
    seed = int(hashlib.sha256(f"{trial} {step}".encode()).hexdigest()[:8], 16)
    return np.random.default_rng(seed).random(n)


def start(writer: PackWriter) -> None:
    """What a pack says before its first step."""
    lanes = np.arange(len(TRIALS))
    writer.rows(
        "trials",
        {"trial_id": TRIALS, "lane": lanes, "model": "mlp_narrow", "data": "digits", "seed": lanes, "steps": STEPS},
    )


def measure(writer: PackWriter, step: int) -> None:
    """Rows of one measured step of all trials."""
    values = np.stack([draw(trial, step, 8) for trial in TRIALS])
    for index, layer in enumerate(LAYERS):
        place = {"trial_id": TRIALS, "step": step, "layer": layer, "layer_index": index, "view": "units"}
        ranks = values[:, index] * 10
        writer.rows("measurements", {**place, "stable_rank": ranks, "energy_90": ranks.astype(int), "n_stimuli": 64})
        writer.rows("spectra", {**place, "eigenvalues": values, "trace": values.sum(1)})
    writer.rows("scalars", {"trial_id": TRIALS, "step": step, "probe_loss": values[:, 0], "lr": 0.1})


def train(writer: PackWriter, commit_at: Callable[[int], bool], last: int = STEPS) -> None:
    """Go on from where the pack stands to the end, like a training loop that was killed before."""
    first = 0
    if writer.resume is None:
        start(writer)
    else:
        first = writer.resume[0] + 1
        assert writer.resume[1]["weights"].tolist() == [first - 1.0] * 3
    for step in range(first, last + 1):
        measure(writer, step)
        if step % 4 == 0:
            for trial in TRIALS:
                writer.checkpoint(trial, step, {"w": draw(trial, step, 3)}, "planned")
        if step < last and commit_at(step):
            writer.commit(step, {"weights": np.full(3, float(step))})
    if last == STEPS:
        writer.rows("outcomes", {"trial_id": TRIALS, "status": "finished", "last_step": last})
        writer.commit(last, None, finished=True)


def contents(store: Store) -> dict[str, pa.Table]:
    """All committed rows by table, in order of key."""
    found = {}
    for name, rows in store.tables().items():
        if rows:
            order = ", ".join(store.schema(name).order)
            found[name] = store.arrow(f"SELECT * FROM {name} ORDER BY sweep, pack, {order}")
    return found


def files(store: Store) -> dict[str, str]:
    """SHA-256 of each committed file by table; of a finished pack there is one a table."""
    return {name: part.sha256 for name, parts in store.snapshot().parts.items() for part in parts}


def part_files(store: Store, table: str) -> list[Path]:
    return [Path(store.location.absolute(p.path)) for p in store.snapshot().parts.get(table, [])]


def rows_on_disk(path: Path) -> int:
    return int(pq.read_metadata(path).num_rows)
