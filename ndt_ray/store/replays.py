"""Where replayed states stand in a store: files and rows as those of the run itself, listed in an index of their own.

The run's manifests stay as they are. The rows join its tables through the outputs `replay` of the sweep, one a state.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ndt_ray.store.batches import Batches
from ndt_ray.store.checkpoints import checkpoint_path, encode_tensors
from ndt_ray.store.manifests import Part
from ndt_ray.store.outputs import Output, Outputs
from ndt_ray.store.parquet import encode
from ndt_ray.store.reader import Store
from ndt_ray.store.schema import TABLES, fingerprint

ANALYSIS = "replay"
"""Name of the outputs that list them."""
Tensors = Mapping[str, np.ndarray[Any, Any]]
Rows = Mapping[str, Sequence[Mapping[str, Any]]]
"""Batches of rows by table."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint file: below the store's root, or in a folder that was given."""

    path: str
    bytes: int
    sha256: str


def save_replay(
    store: Store, sweep: str, pack: str, trial_id: str, step: int, tensors: Tensors, rows: Rows, numerics: str
) -> Saved:
    """Puts a state into a sweep as its checkpoint of that step, reason `replay`, with `rows` of the pack's tables.

    The same state twice is one. The file is that which the run itself would have written, to the byte.
    """
    path = checkpoint_path(sweep, trial_id, step)
    with store.location.writing(path) as stream:
        stream.write(encode_tensors(tensors, {"trial_id": trial_id, "step": step}))
    saved = Saved(path, stream.bytes, stream.sha256)
    row = {"trial_id": [trial_id], "step": [step], "reason": ["replay"], "path": [path]}
    index = {**row, "sha256": [saved.sha256], "bytes": [saved.bytes]}
    parts = []
    for table, batches in {**rows, "checkpoints": [index]}.items():
        parts.append(_part(store, table, f"sweep={sweep}/pack={pack}", f"{trial_id}-{step:09d}", batches))
    key = f"{trial_id} step {step}"
    Outputs(store, sweep, ANALYSIS).commit([Output(key, saved.sha256, tuple(parts), {"fingerprint": numerics})])
    return saved


def _part(store: Store, table: str, where: str, name: str, batches: Sequence[Mapping[str, Any]]) -> Part:
    """A file of rows where the pack's own are, so that it is read like one of them."""
    held = Batches(TABLES[table], "float32")
    for columns in batches:
        held.add(columns)
    rows = held.arrow()
    data = encode(rows)
    digest = hashlib.sha256(data).hexdigest()
    path = f"data/{table}/{where}/{ANALYSIS}-{re.sub(r'[^0-9A-Za-z-]', '_', name)}-{digest[:8]}.parquet"
    store.location.write(path, data)
    return Part(table, path, rows.num_rows, data.size, digest, fingerprint(rows.schema))
