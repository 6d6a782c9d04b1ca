"""The founding study's published measurements (`phase1_full.zip`, Javihaus/ndt at c0e4d12) as tables of this store.

One JSON a run: 55 runs of 15 architectures on 4 data sets, each measured 400 times. What the files say is kept as
published in `original_measurements`; what it means goes to `measurements`, in float64 (in float32 the published jumps
vanish). Two things are put right on the way:

- A row recorded as step s was measured *after* that step's update: `step` = s + 1 updates, `recorded_step` = s.
- Published `stable_rank` divided the squared Frobenius norm by itself, and is 1 - 1e-10 / ‖A‖². The true one follows
  from two other published columns: stable rank = nuclear_norm_ratio² / participation_ratio.
"""

import hashlib
import json
import lzma
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml

from ndt_ray.architectures import family_of
from ndt_ray.errors import DataError
from ndt_ray.store.schema import TABLES, Column, Table
from ndt_ray.store.sweep import create_sweep
from ndt_ray.store.writer import HasLocation, PackWriter

ORIGINAL_MEASUREMENTS = Table(
    "original_measurements",
    "The founding study's measurements as published, float64.",
    (
        Column("trial_id", "string", "content hash of the published run"),
        Column("experiment", "string", "published name of the run"),
        Column("index", "int32", "measurement number, 0 to 399; the study took it for a step"),
        Column("recorded_step", "int32", "step as published: updates done, not counting the one just made", "steps"),
        Column("step", "int32", "optimizer updates done: recorded_step + 1", "steps"),
        Column("epoch", "int32", "as published, from 1", "epochs"),
        Column("layer", "string", "module path"),
        Column("layer_index", "int16", "place in the order of the forward pass"),
        Column("view", "string", "units, gap (mean over positions) or feature_mean (mean over features of each token)"),
        Column("stable_rank", "float64", "as published: 1 - 1e-10 / squared Frobenius norm, no rank at all"),
        Column("participation_ratio", "float64", "as published: of singular values, uncentred", "dimensions"),
        Column("effective_rank_90", "float64", "as published: directions that hold 90 % of the energy", "dimensions"),
        Column("nuclear_norm_ratio", "float64", "as published: sum of singular values / largest", "dimensions"),
        Column("true_stable_rank", "float64", "nuclear_norm_ratio² / participation_ratio", "dimensions"),
    ),
    ("trial_id", "layer_index", "step"),
)

TABLES.setdefault(ORIGINAL_MEASUREMENTS.name, ORIGINAL_MEASUREMENTS)

SWEEP = "original"
NOISE = "random noise images with random labels (negative control)"
SUMMARY = "a summary, no run"
NO_RUN = "no run: not the JSON of one"

ANALYSES = (
    {"name": "series_tests", "measures": ["stable_rank_uncentred", "participation_ratio_sv_uncentred"]},
    {"name": "events", "primary": {"measure": "stable_rank_uncentred"}},
)
"""Nothing was centred; the measure whose jumps were published is the declared one."""

METRICS = ("stable_rank", "participation_ratio", "effective_rank_90", "nuclear_norm_ratio")
_LARGEST = 64 * 2**20
"""Bytes of one unpacked file beyond which it is no published run (the largest has 1.5 MB)."""

_PROTOCOLS = {
    157: {"batch": 64, "n_train": 10_000, "probe": 320},
    47: {"batch": 32, "n_train": 1_500, "probe": 160},
}
"""The two protocols that the study mixed, told apart by updates an epoch."""


@dataclass(frozen=True)
class Published:
    """The published study: its tables, one row a run in `experiments`, and what was left out and why.

    `tables`: trials, outcomes, scalars, measurements, original_measurements. `experiments`: trial_id, experiment,
    arch_name, dataset, family, num_steps, final_accuracy and the published architecture parameters.
    """

    tables: Mapping[str, pa.Table]
    experiments: pd.DataFrame
    skipped: tuple[tuple[str, str], ...]

    @property
    def rows(self) -> pd.DataFrame:
        """The measurements as published."""
        return self.tables["original_measurements"].to_pandas()


@dataclass(frozen=True)
class _Run:
    """One published run, checked."""

    trial_id: str
    experiment: str
    meta: Mapping[str, Any]
    layers: tuple[str, ...]
    recorded: np.ndarray[Any, np.dtype[np.int64]]
    epoch: np.ndarray[Any, np.dtype[np.int64]]
    loss: np.ndarray[Any, np.dtype[np.float64]]
    grad_norm: np.ndarray[Any, np.dtype[np.float64]]
    metrics: np.ndarray[Any, np.dtype[np.float64]]
    """[measurements, layers, METRICS]"""

    @property
    def arch(self) -> str:
        return str(self.meta["arch_name"])

    @property
    def steps_per_epoch(self) -> int | None:
        """Updates an epoch: the known protocol that gives every recorded epoch."""
        fits = [n for n in _PROTOCOLS if (self.epoch == self.recorded // n + 1).all()]
        return fits[0] if len(fits) == 1 else None

    @property
    def protocol(self) -> Mapping[str, int]:
        return _PROTOCOLS.get(self.steps_per_epoch or 0, {})


def read_published(path: str | Path) -> Published:
    """Read the published zip; nothing is unpacked to disk.

    Raises DataError for a file that is missing, no zip, damaged, or holds a run that is not as published.
    """
    runs, skipped = [], []
    for name, content in _members(Path(path)):
        run = _run(f"{path}:{name}", PurePosixPath(name).stem, content)
        if isinstance(run, str):
            skipped.append((name, run))
        else:
            runs.append(run)
    if not runs:
        raise DataError(f"{path} holds no published run - expected phase1_full.zip of the founding study")
    names = [r.experiment for r in runs]
    if len(set(names)) < len(names):
        raise DataError(f"{path} holds run '{max(names, key=names.count)}' twice")
    tables = {
        "trials": _table("trials", [_trial(r) for r in runs]),
        "outcomes": _table("outcomes", [_outcome(r) for r in runs]),
        "scalars": _concat("scalars", [_scalars(r) for r in runs]),
        "measurements": _concat("measurements", [_measurements(r) for r in runs]),
        "original_measurements": _concat("original_measurements", [_as_published(r) for r in runs]),
    }
    return Published(tables, pd.DataFrame([_experiment(r) for r in runs]), tuple(skipped))


def import_published(path: str | Path, store: HasLocation, sweep: str = SWEEP) -> Published:
    """Read the published zip into a sweep of a store; doing it again changes nothing.

    Raises DataError for a bad zip, before anything is written, and StoreError where the sweep holds something else.
    """
    published = read_published(path)
    about = "The founding study's published measurements, imported; nothing was trained here."
    skipped = [{"file": name, "why": why} for name, why in published.skipped]
    source = {"imported": Path(path).name, "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()}
    trials = tuple(published.experiments["trial_id"])
    with PackWriter(store, sweep, "phase1", trials=trials, fingerprint="published", precision="float64") as writer:
        if not writer.finished:
            create_sweep(
                store,
                sweep,
                yaml.safe_dump({"name": sweep, "about": about, "analyses": list(ANALYSES)}, sort_keys=False),
                {**source, "skipped": skipped},
            )
            for name, table in published.tables.items():
                writer.rows(
                    name, {c: table[c].to_numpy() for c in table.column_names if table[c].null_count < len(table)}
                )
            writer.commit(int(published.experiments["num_steps"].max()), None, finished=True)
    return published


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(path) as archive:
            for info in sorted(archive.infolist(), key=lambda i: i.filename):
                if info.is_dir():
                    continue
                if info.file_size > _LARGEST:
                    raise DataError(
                        f"{path}:{info.filename} unpacks to {info.file_size} bytes - that is no published run"
                    )
                yield info.filename, archive.read(info)
    except FileNotFoundError:
        raise DataError(f"no such file: {path}") from None
    except (OSError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise DataError(f"{path} is no zip file, or a damaged one: {error} - fetch it again") from error


def _run(where: str, experiment: str, content: bytes) -> _Run | str:
    """The checked run, or why this file is none."""
    try:
        found = json.loads(content)
    except ValueError as error:
        if not where.endswith(".json"):
            return NO_RUN
        raise DataError(f"{where} is no JSON: {error} - fetch the zip again") from error
    if isinstance(found, dict) and "results" in found and "measurements" not in found:
        return SUMMARY
    if not isinstance(found, dict) or "measurements" not in found:
        return NO_RUN
    if found.get("dataset_name") == "cifar10":
        return NOISE
    try:
        return _checked(experiment, content, found)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{where} is not a run as published: {error!r}") from error


def _checked(experiment: str, content: bytes, found: Mapping[str, Any]) -> _Run:
    rows = found["measurements"]
    layers = tuple(rows[0]["layer_metrics"])
    if any(tuple(row["layer_metrics"]) != layers for row in rows):
        raise ValueError("its layers change during the run")
    recorded = np.array([row["step"] for row in rows])
    every, steps = int(found["measurement_interval"]), int(found["num_steps"])
    if recorded.dtype.kind != "i" or not np.array_equal(recorded, every * np.arange(len(rows))):
        raise ValueError(f"its steps are not 0, {every}, {2 * every}, …")
    if not 0 < len(rows) * every <= steps:
        raise ValueError(f"{len(rows)} measurements every {every} steps do not fit {steps} steps")
    metrics = [[[row["layer_metrics"][layer][m] for m in METRICS] for layer in layers] for row in rows]
    trial = hashlib.sha256(b"ndt original\n" + experiment.encode() + b"\n" + content).hexdigest()[:16]
    meta = {k: found[k] for k in ("arch_name", "dataset_name", "num_steps", "measurement_interval", "final_accuracy")}
    meta |= {"elapsed_time": found.get("elapsed_time"), **found["architecture_params"]}
    loss, grad_norm = (np.array([row[c] for row in rows], dtype=np.float64) for c in ("loss", "grad_norm"))
    epoch = np.array([row["epoch"] for row in rows], dtype=np.int64)
    return _Run(trial, experiment, meta, layers, recorded, epoch, loss, grad_norm, np.array(metrics, dtype=float))


def _view(arch: str, layer: str) -> str:
    """What the study did to an activation of more than two dimensions: a mean over everything beyond the second."""
    if layer.startswith("conv_layers."):
        return "gap"
    return "feature_mean" if family_of(arch) == "transformer" and layer != "fc" else "units"


def _spec(run: _Run) -> str:
    train = {"steps": run.meta["num_steps"], "batch": run.protocol.get("batch"), "optimizer": "adam", "lr": 1e-3}
    return json.dumps(
        {
            "source": "original",
            "experiment": run.experiment,
            "model": {"name": run.arch},
            "data": {"name": run.meta["dataset_name"]},
            "train": train | {"subset": run.protocol.get("n_train")},
            "measure": {"every": run.meta["measurement_interval"], "probe": run.protocol.get("probe")},
            "published": dict(run.meta),
        }
    )


def _trial(run: _Run) -> dict[str, Any]:
    return {
        "trial_id": run.trial_id,
        "lane": 0,
        "cell": f"{run.arch}/{run.meta['dataset_name']}",
        "model": run.arch,
        "data": run.meta["dataset_name"],
        "control": "none",
        "engine": "original",
        "width": 0,
        "steps": run.meta["num_steps"],
        "steps_per_epoch": run.steps_per_epoch,
        "batch": run.protocol.get("batch"),
        "optimizer": "adam",
        "lr": 1e-3,
        "weight_decay": 0.0,
        "n_parameters": run.meta.get("num_params"),
        "n_train": run.protocol.get("n_train"),
        "probe_size": run.protocol.get("probe"),
        "data_completeness": "subset",
        "spec": _spec(run),
    }


def _outcome(run: _Run) -> dict[str, Any]:
    accuracy = float(run.meta["final_accuracy"])
    steps = run.meta["num_steps"]
    return {"trial_id": run.trial_id, "status": "finished", "last_step": steps, "final_accuracy": accuracy}


def _experiment(run: _Run) -> dict[str, Any]:
    names = {"arch_name": run.arch, "dataset": run.meta["dataset_name"], "family": family_of(run.arch)}
    rest = {k: v for k, v in run.meta.items() if k not in ("arch_name", "dataset_name")}
    return {"trial_id": run.trial_id, "experiment": run.experiment} | names | rest


def _scalars(run: _Run) -> dict[str, Any]:
    per_epoch = run.steps_per_epoch
    done = run.recorded + 1
    return {
        "trial_id": np.full(len(done), run.trial_id),
        "step": done,
        "epoch": done / per_epoch if per_epoch else np.full(len(done), np.nan),
        "lr": np.full(len(done), 1e-3),
        "batch_loss": run.loss,
        "grad_norm": run.grad_norm,
    }


def _long(run: _Run) -> dict[str, Any]:
    """Identity of every (measurement, layer), layers fastest."""
    n, m = len(run.recorded), len(run.layers)
    return {
        "trial_id": np.full(n * m, run.trial_id),
        "step": np.repeat(run.recorded + 1, m),
        "layer": np.tile(np.array(run.layers), n),
        "layer_index": np.tile(np.arange(m), n),
        "view": np.tile(np.array([_view(run.arch, layer) for layer in run.layers]), n),
    }


def _true_stable_rank(participation: Any, nuclear: Any) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):  # a lost measurement was published as 0: NaN here, then null
        return nuclear**2 / participation


def _as_published(run: _Run) -> dict[str, Any]:
    m = len(run.layers)
    columns = {name: run.metrics[:, :, k].ravel() for k, name in enumerate(METRICS)}
    extra = {
        "experiment": np.full(run.metrics[:, :, 0].size, run.experiment),
        "index": np.repeat(np.arange(len(run.recorded)), m),
        "recorded_step": np.repeat(run.recorded, m),
        "epoch": np.repeat(run.epoch, m),
        "true_stable_rank": _true_stable_rank(columns["participation_ratio"], columns["nuclear_norm_ratio"]),
    }
    return _long(run) | columns | extra


def _measurements(run: _Run) -> dict[str, Any]:
    """The uncentred measures that can be had from what was published; 0 and NaN mean a measurement that was lost."""
    values = run.metrics.reshape(-1, len(METRICS))
    whole = np.all(np.isfinite(values) & (values > 0), axis=1)
    _, participation, energy, nuclear = np.where(whole[:, None], values, np.nan).T
    return _long(run) | {
        "n_stimuli": pd.array([run.protocol.get("probe")] * len(values), dtype="Int32"),
        "stable_rank_uncentred": _true_stable_rank(participation, nuclear),
        "participation_ratio_sv_uncentred": participation,
        "energy_90_uncentred": pd.array(np.round(energy), dtype="Int16"),
        "nuclear_norm_ratio_uncentred": nuclear,
        "flag": pd.Series("lost", index=range(len(whole))).mask(whole, None),
    }


def _schema(name: str) -> pa.Schema:
    return TABLES[name].arrow("float64")


def _table(name: str, rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=_schema(name))


def _concat(name: str, parts: list[dict[str, Any]]) -> pa.Table:
    schema = _schema(name)
    return pa.concat_tables(
        pa.Table.from_arrays([_column(f, part, len(part["trial_id"])) for f in schema], schema=schema) for part in parts
    )


def _column(field: pa.Field, part: Mapping[str, Any], n: int) -> pa.Array:
    if field.name not in part:
        return pa.nulls(n, field.type)
    return pa.array(part[field.name], type=field.type, from_pandas=True)
