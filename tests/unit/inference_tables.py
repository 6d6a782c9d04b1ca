"""Tables of a made-up sweep, as analyses of inference read them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from ndt_ray.analysis.api import AnalysisInput, Partition, conform
from ndt_ray.analysis.events.tables import EVENT_CANDIDATES, EVENT_FAMILIES, EVENTS, SERIES_TESTS
from ndt_ray.spec import Trial
from ndt_ray.spec.axes import make_sweep
from ndt_ray.spec.sweepfile import dump_sweep
from ndt_ray.store.schema import TABLES

STEPS, EVERY = 1000, 10
FAMILY = {"measure": "participation_ratio", "detector": "calibrated", "null": "ar_sieve"}
LAYERS = ("a", "b", "c")


def sweep_row(models: Sequence[str], seeds: int, data: Sequence[str] = ("digits",), axes: Sequence[dict] = ()) -> Any:
    value = {
        "name": "t",
        "base": {"train": {"steps": STEPS, "batch": 8, "optimizer": "adam", "lr": 1e-3}},
        "axes": [{"path": "model", "values": list(models)}, {"path": "data", "values": list(data)}, *axes],
    }
    if not any(axis["path"].startswith("seed") for axis in axes):
        value["axes"] = [*value["axes"], {"path": "seed", "range": seeds}]
    return dump_sweep(make_sweep(value))


def trial_row(model: str, seed: Any, data: str = "digits", control: str = "none", every: int = EVERY) -> dict[str, Any]:
    trial = Trial.model_validate(
        {
            "model": model,
            "data": data,
            "train": {"steps": STEPS, "batch": 8, "optimizer": "adam", "lr": 1e-3},
            "measure": {"every": every},
            "seed": seed,
            "control": control,
        }
    )
    own = {f"seed_{name}": getattr(trial.seed, name) for name in ("init", "order", "dropout", "data")}
    known = {"trial_id": trial.trial_id, "cell": f"{model}/{data}", "model": model, "data": data, "control": control}
    known |= {"steps": STEPS, "spec": trial.model_dump_json(), **own}
    return {c.name: known.get(c.name) for c in TABLES["trials"].columns}


def frame(table: Any, rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows with every column of the table, null where not given."""
    return pd.DataFrame([{c.name: row.get(c.name) for c in table.columns} for row in rows])


def series_rows(trial_id: str, layers: Sequence[str] = LAYERS, **over: Any) -> list[dict[str, Any]]:
    common = {**FAMILY, "trial_id": trial_id, "view": "units", "grid_start": EVERY, "grid_every": EVERY, "n": 100}
    common |= {"n_missing": 0, "kind": "calibrated", "calibrated": True, "n_surrogates": 500, "p_attainable": 1e-9}
    common |= {"candidates": 0, **over}
    return [common | {"layer": layer, "layer_index": i} for i, layer in enumerate(layers)]


def event_row(trial_id: str, layer: str, step: float, layers: Sequence[str] = LAYERS, **over: Any) -> dict[str, Any]:
    before = int(step // EVERY) * EVERY
    row = {**FAMILY, "family": "main", "trial_id": trial_id, "layer": layer, "layer_index": list(layers).index(layer)}
    row |= {"view": "units", "step_before": before, "step_after": before + EVERY, "step_location": float(step)}
    row |= {"width": float(EVERY), "direction": "increase", "phase": before / STEPS, "significant": True}
    return row | over


def family_row(**over: Any) -> dict[str, Any]:
    return {**FAMILY, "family": "main", "primary": True, "view": "*", "alpha": 0.05} | over


def evaluation_rows(trial_id: str, accuracy: Sequence[float], n: int = 500) -> dict[str, Any]:
    """The last evaluation: accuracy of each class."""
    values = np.array(accuracy, dtype=np.float32)
    row = {"trial_id": trial_id, "step": STEPS, "loss": 1.0, "accuracy": float(values.mean()), "n": n}
    return row | {"class_accuracy": values}


def given(reads: Sequence[str], **tables: Any) -> AnalysisInput:
    """An input of the sweep as a whole; tables that are not given do not exist yet."""
    known = {**TABLES, "series_tests": SERIES_TESTS, "events": EVENTS, "event_families": EVENT_FAMILIES}
    known["event_candidates"] = EVENT_CANDIDATES
    made: dict[str, pa.Table] = {}
    for name in reads:
        rows = tables.get(name)
        if name == "sweeps":
            made[name] = pa.table({"sweep": ["t"], "spec": [rows]}) if rows else pa.table({})
        elif rows is None:
            made[name] = pa.table({})
        else:
            made[name] = conform(known[name], frame(known[name], rows))
    return AnalysisInput("t", Partition(), made)
