"""From trained networks to controls: what is planted at a step is found beside windows like it, and nothing else is."""

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from ndt_ray import registry
from ndt_ray.analysis.api import conform
from ndt_ray.analysis.events.tables import EVENT_FAMILIES, EVENTS
from ndt_ray.analysis.running.runner import run_together
from ndt_ray.analysis.running.stored import StoredSweep
from ndt_ray.run import Options, run_sweep
from ndt_ray.spec.sweepfile import parse_sweep
from ndt_ray.store.outputs import write_output
from ndt_ray.store.reader import Store, open_store
from ndt_ray.store.schema import TABLES

AT, EVERY, STEPS = 100, 2, 200
LESION = f"ablate:network.2@{AT}*0.5"
SPEC = f"""
name: planted
base:
  data: digits
  model: {{name: mlp, hidden: [24, 16]}}
  train: {{steps: {STEPS}, batch: 64, optimizer: adam, lr: 2e-3}}
  measure: {{every: 10, probe: 64, confirm: 128}}
  evaluate: {{size: 50}}
  checkpoint: {{at: {list(range(AT - 10, AT + 13, EVERY))}}}
axes:
  - {{path: seed, role: replicate, range: 5}}
  - {{path: control, role: compare, values: [none, "{LESION}"]}}
"""


def put_events(store: Store, trials: pd.DataFrame) -> None:
    """An event of the first layer in every lane, where half of the second one's units are zeroed in some of them: the
    weights of the first move as they do beside it."""
    registry.resolve("analysis", "events")  # so that its tables are known
    known = {"layer": "network.0", "layer_index": 0, "view": "units", "significant": True, "family": "primary"}
    known |= {"step_before": AT - EVERY, "step_after": AT, "step_location": AT - 1.0, "p_event": 0.001}
    known |= {"measure": "participation_ratio", "detector": "profile", "null": "ar_sieve"}
    empty: dict[str, Any] = {column.name: None for column in EVENTS.columns}
    events = pd.DataFrame([empty | known | {"trial_id": trial} for trial in trials["trial_id"]])
    family: dict[str, Any] = {column.name: None for column in EVENT_FAMILIES.columns}
    family |= {"family": "primary", "primary": True, "detector": "profile", "null": "ar_sieve"}
    rows = {"events": conform(EVENTS, events), "event_families": conform(EVENT_FAMILIES, pd.DataFrame([family]))}
    tables = {name: pa.Table.from_pylist(table.to_pylist(), TABLES[name].arrow()) for name, table in rows.items()}
    write_output(store, "planted", "events", "sweep", tables, cache_key="planted")


@pytest.mark.slow
def test_what_is_planted_in_trained_networks_is_found_beside_matched_windows_and_nothing_where_nothing_is(
    tmp_path: Path,
) -> None:
    assert run_sweep(parse_sweep(SPEC), tmp_path / "store", Options("inline")).ok
    with open_store(tmp_path / "store") as store:
        put_events(store, store.sql("SELECT trial_id FROM trials"))
        sweep = StoredSweep(store, "planted")
        assert all(r.ok for r in run_together([("collapse", None), ("units", {"draws": 5, "per_unit": False})], sweep))
        assert run_together([("weights", None)], sweep)[0].ok
        report = run_together([("mechanisms", None)], sweep)[0]
        assert report.ok, report.dead
        rows, tests = store.table("mechanism_changes"), store.table("mechanism_tests")
    arm = tests["cell"].str.endswith(LESION)
    assert (rows["n_controls"] >= 3).all() and rows["checkpoint_before"].eq(AT - EVERY).all()
    assert rows["flag"].isna().all() and (rows["n_unmatched"] >= rows["n_controls"]).all()
    found = tests[arm].set_index("metric")
    assert found.loc[["loss", "accuracy"], "n_trials"].eq(5).all()
    assert (found.loc[["loss", "accuracy"], "q"] < 0.05).all() and found.loc["loss", "difference"] > 5
    assert found.loc["accuracy", "difference"] < -5 and found.loc["loss", "lo"] > 0  # in SDs of the controls
    of_network = {"loss", "accuracy", "nc1", "nc2_norm", "nc2_angle", "nc3", "nc4"}
    assert set(found.index[found["q"] < 0.05]) <= of_network  # the units of the first layer are what they were
    nothing = tests[~arm].set_index("metric")
    assert set(nothing.index) == set(found.index) and nothing["p"].notna().sum() >= 15
    assert not (nothing["q"] < 0.05).any() and abs(nothing.loc["loss", "difference"]) < 2
