"""Tables of one trial, made from planted series, and a store of one sweep that lives in a folder."""

import hashlib
import json
import os
import pickle
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from ndt_ray.analysis.api import AnalysisInput, Partition, Per

TRIAL = "0123456789abcdef"


def trial(steps: int, every: int, trial_id: str = TRIAL) -> pd.DataFrame:
    """The `trials` row that analyses read."""
    spec = json.dumps({"measure": {"every": every}})
    return pd.DataFrame([{"trial_id": trial_id, "steps": steps, "spec": spec}])


def measurements(
    layers: Mapping[str, Any], *, steps: Any, measure: str, every: int, trial_id: str = TRIAL, view: str = "units"
) -> pd.DataFrame:
    """Rows of `measurements`: one series a layer, in the order given."""
    parts = [
        pd.DataFrame(
            {"trial_id": trial_id, "step": steps, "layer": name, "layer_index": i, "view": view, measure: values}
        )
        for i, (name, values) in enumerate(layers.items())
    ]
    return pd.concat(parts, ignore_index=True).sort_values(["step", "layer_index"], ignore_index=True)


def partition(
    rows: pd.DataFrame,
    *,
    steps: int,
    every: int,
    original: pd.DataFrame | None = None,
    scalars: pd.DataFrame | None = None,
    velocity: pd.DataFrame | None = None,
) -> AnalysisInput:
    """What the runner would hand an analysis of one trial."""
    tables = {
        "trials": trial(steps, every),
        "measurements": rows,
        "velocity": velocity,
        "original_measurements": original,
        "scalars": scalars,
    }
    arrow = {n: pa.table({}) if t is None else pa.Table.from_pandas(t) for n, t in tables.items()}
    return AnalysisInput("planted", Partition(TRIAL), arrow)


def noise(n: int, seed: int = 0, level: float = 10.0) -> np.ndarray[Any, np.dtype[np.float64]]:
    return level + np.random.default_rng(seed).normal(size=n)


@dataclass(frozen=True)
class Folder:
    """The tables of one sweep as pickles in a folder: what the runner asks of a store, and no more."""

    root: Path
    sweep: str = "planted"

    def put(self, table: str, trial_id: str, rows: pd.DataFrame) -> None:
        rows.to_pickle(self._folder(f"in/{table}") / trial_id)

    def partitions(self, per: Per) -> list[Partition]:
        return (
            [Partition(p.name) for p in sorted(self._folder("in/trials").iterdir())]
            if per == "trial"
            else [Partition()]
        )

    def layers(self) -> list[str]:
        return []

    def input_hashes(self, reads: Iterable[str], partitions: Sequence[Partition]) -> list[str]:
        found = []
        for partition in partitions:
            files = [self._folder(f"in/{t}") / str(partition.trial_id) for t in sorted(reads)]
            found.append(hashlib.sha256(b"".join(f.read_bytes() for f in files if f.exists())).hexdigest())
        return found

    def read(self, table: str, partition: Partition) -> pa.Table:
        file = self._folder(f"in/{table}") / str(partition.trial_id)
        return pa.Table.from_pandas(pd.read_pickle(file)) if file.exists() else pa.table({})

    def committed(self, analysis: str) -> dict[str, str]:
        return {f.name: pickle.loads(f.read_bytes())[0] for f in self._folder(f"out/{analysis}").iterdir()}

    def write(
        self,
        analysis: str,
        partition: Partition,
        key: str,
        tables: Mapping[str, pa.Table],
        parameters: Mapping[str, Any],
    ) -> Any:
        written = self._folder("written") / f"{key}-{uuid.uuid4().hex}"
        written.write_bytes(pickle.dumps((key, tables)))
        return str(partition), written

    def commit(self, analysis: str, written: Iterable[Any], drop: Iterable[str] = ()) -> None:
        for name, file in written:
            os.replace(file, self._folder(f"out/{analysis}") / name)
        for name in drop:
            (self._folder(f"out/{analysis}") / name).unlink()

    def output(self, analysis: str, table: str) -> pd.DataFrame:
        """All rows of an output, with the partition they came from."""
        found = [pickle.loads(f.read_bytes())[1][table] for f in sorted(self._folder(f"out/{analysis}").iterdir())]
        return pa.concat_tables(found).to_pandas() if found else pd.DataFrame()

    def _folder(self, name: str) -> Path:
        path = self.root / name
        path.mkdir(parents=True, exist_ok=True)
        return path
