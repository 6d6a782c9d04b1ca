"""Checkpoint plans: which events, which steps, at what cost; written, read back and brought back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from ndt_ray.analysis.events.checkpoint_plan import TABLES, plan_checkpoints
from ndt_ray.analysis.events.tables import EVENT_FAMILIES, EVENTS
from ndt_ray.analysis.phases import phase_bin
from ndt_ray.cli import app
from ndt_ray.errors import SpecError
from ndt_ray.run import Options, run_sweep
from ndt_ray.spec.sweepfile import parse_sweep, read_checkpoint_plan
from ndt_ray.store.outputs import write_output
from ndt_ray.store.reader import Store, open_store
from ndt_ray.store.schema import register_table

STEPS, EVERY = 1000, 10
PARAMETERS = 5_000


def trials(*ids: str, seed: float = 0) -> pd.DataFrame:
    spec = json.dumps({"measure": {"every": EVERY}, "train": {"momentum": 0.0}})
    row = {"model": "mlp", "data": "digits", "seed": seed, "steps": STEPS, "spec": spec, "optimizer": "adam"}
    return pd.DataFrame([{"trial_id": i, **row, "n_parameters": PARAMETERS} for i in ids])


def event(before: int, size: float = 1.0, trial: str = "t", **more: Any) -> dict[str, Any]:
    row = {"trial_id": trial, "layer": "a", "layer_index": 0, "view": "units", "measure": "participation_ratio"}
    row |= {"detector": "d", "null": "n", "family": "f", "significant": True, "q": 0.01, "direction": "increase"}
    row |= {"step_before": before, "step_after": before + EVERY, "step_location": before + 4.0, "width": 30.0}
    row |= {
        "size": size,
        "relative_size": size / 10,
        "phase": before / STEPS,
        "phase_bin": str(phase_bin([before / STEPS])[0]),
    }
    return row | more


FAMILIES = pd.DataFrame([{"family": "f", "primary": True, "detector": "d", "null": "n"}])


def tables(events: list[dict[str, Any]], **more: pd.DataFrame) -> dict[str, pd.DataFrame]:
    grid = np.arange(0, STEPS + 1, EVERY)
    common = {"trial_id": "t", "step": grid, "weight_norm": 2.0, "update_norm": 0.01}
    dynamics, scalars = pd.DataFrame({**common, "layer": "a", "layer_index": 0}), pd.DataFrame({**common, "lr": 1e-3})
    found = {"trials": trials("t"), "events": pd.DataFrame(events), "event_families": FAMILIES}
    return {**found, "dynamics": dynamics, "scalars": scalars, **more}


def test_before_during_and_after_in_steps_within_the_run() -> None:
    made = plan_checkpoints(tables([event(0), event(400, q=0.04), event(980)]))
    assert [(e["checkpoints"], e["clipped"]) for e in made.entries] == [
        ([0, 4, 34], True), ([374, 404, 434], False), ([954, 984, 1000], True),
    ]  # fmt: skip
    assert (
        made.source == "events" and made.entries[1]["q"] == 0.04 and made.coverage == {"early": 1, "mid": 1, "late": 1}
    )
    assert not made.notices and made.steps == {"t": [0, 4, 34, 374, 404, 434, 954, 984, 1000]}
    narrow = plan_checkpoints(tables([event(400)]), window=7)
    assert narrow.entries[0]["checkpoints"] == [397, 404, 411]
    assert "no early and no late event" in narrow.notices[0]
    unlocated = plan_checkpoints(tables([event(400, step_location=np.nan, width=np.nan)]))
    assert unlocated.entries[0]["checkpoints"] == [400, 410, 420]


def test_the_founding_rule_and_its_fallbacks() -> None:
    """Two of type 5, two of type 4, one of type 3; ten steps either side."""
    events = [event(100 * i, size=float(i)) for i in range(1, 10)]
    types = pd.DataFrame(events)[["trial_id", "layer_index", "view", "measure", "step_before"]].assign(
        mode="default", label=None
    )
    kinds = [5, 5, 5, 4, 4, 4, 3, 1, 1]
    made = plan_checkpoints(tables(events, event_types=types.assign(type=kinds)), rule="founding")
    assert [(e["type"], e["checkpoints"][1] - 4) for e in made.entries] == [
        (5, 200),
        (5, 300),
        (4, 500),
        (4, 600),
        (3, 700),
    ]
    assert all(e["checkpoints"] == [e["step"] - 10, e["step"], e["step"] + 10] for e in made.entries)
    without = plan_checkpoints(tables(events), rule="founding")  # earliest two, latest two, the middle one
    assert [e["step"] - 4 for e in without.entries] == [100, 200, 500, 800, 900]


def test_only_significant_events_of_the_primary_family() -> None:
    events = [event(100), event(300, significant=False), event(500, family="g"), event(700, null="m")]
    assert [e["step"] for e in plan_checkpoints(tables(events)).entries] == [104]
    none = plan_checkpoints(tables([event(100, significant=False)]))
    assert not none.entries and "significant" in none.notices[0] and none.founding() == {} and none.steps == {}


def test_controls_resemble_their_event() -> None:
    made = plan_checkpoints(tables([event(400), event(470)]), controls=3, per_trial=1, window=10)
    (entry,) = made.entries
    assert entry["checkpoints"] == [394, 404, 414] and len(entry["controls"]) == 3 and "control" not in made.notices[-1]
    for control in entry["controls"]:
        a, middle, b = control["checkpoints"]
        assert b - a == 20 and middle - a == 10 and abs(a - 394) <= 50
        assert b <= 394 or (a >= 414 and b <= 470)  # 470 to 480 is an event too, though not chosen
        assert control["displacement"] == pytest.approx(control["event_displacement"])
        assert set(control["checkpoints"]) <= set(made.steps["t"])
    wide = plan_checkpoints(tables([event(400)]), controls=2)  # 60 steps either side of it, and 5 % of the run
    assert wide.entries[0]["controls"] == []
    assert "1 of 1 events have fewer than 2" in " ".join(wide.notices)
    assert "1 are looked at over more than 5% of their run" in " ".join(wide.notices)
    few = " ".join(plan_checkpoints(tables([event(400)]), controls=20, window=10).notices)
    assert "fewer than 20" in few and "looked at" not in few


def test_what_it_costs() -> None:
    made = plan_checkpoints(tables([event(100), event(700)]))
    size = 4 * PARAMETERS * 3 + 4_000
    expected = {"trials": 1, "files": 6, "already": 0, "bytes": 6 * size, "new_bytes": 6 * size}
    assert made.storage == [{"experiment": "mlp_digits", **expected, "uniform_files": 101, "uniform_bytes": 101 * size}]
    saved = pd.DataFrame([{"trial_id": "t", "step": s, "bytes": 70_000} for s in (0, 104)])
    row = plan_checkpoints(tables([event(100), event(700)], checkpoints=saved)).storage[0]
    assert (row["already"], row["bytes"], row["new_bytes"]) == (1, 6 * 70_000, 5 * 70_000)


def test_jumps_stand_in_where_nothing_was_tested_and_that_is_said() -> None:
    jumps = [
        event(i, magnitude=1.0, relative_magnitude=0.1, mode="default", counted=True, index=i // EVERY)
        for i in (100, 600)
    ]
    jumps = [{**j, "detector": "difference_z"} for j in jumps]
    jumps += [{**jumps[0], "measure": "stable_rank"}, {**jumps[0], "counted": False, "step_before": 300}]
    found = pd.DataFrame(jumps).drop(columns=["size", "relative_size", "width", "step_location", "q", "significant"])
    counts = pd.DataFrame(
        [{"mode": "default", "detector": "difference_z", "measure": "participation_ratio", "null_ar1_mean": 2.4}]
    )
    given = tables([], jumps=found, jump_counts=counts) | {"event_families": pd.DataFrame()}
    for rule in ("balanced", "founding"):
        made = plan_checkpoints(given, rule=rule)
        assert made.source == "jumps" and [e["step"] for e in made.entries] == [110, 610]
        assert "2 uncalibrated jumps" in made.notices[0] and "flags 2" in made.notices[0]
    nothing = plan_checkpoints({"trials": trials("t")})
    assert not nothing.entries and "ndt analyze" in nothing.notices[0]


def test_several_trials_share_an_experiment() -> None:
    both = pd.concat([trials("t", seed=0), trials("u", seed=np.nan)])
    made = plan_checkpoints({**tables([event(100), event(300, trial="u"), event(10, trial="gone")]), "trials": both})
    founding = made.founding()["mlp_digits"]
    assert [j["trial_id"] for j in founding["jumps"]] == ["t", "u"] and founding["jumps"][1]["seed"] is None
    assert founding["checkpoint_steps"] == sorted(s for steps in made.steps.values() for s in steps)
    assert json.loads(json.dumps(made.founding())) == made.founding()


@pytest.mark.parametrize("wrong", [{"per_trial": 0}, {"window": 0}, {"controls": -1}, {"rule": "fonding"}])
def test_nonsense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        plan_checkpoints(tables([event(100)]), **wrong)


# -- the command -----------------------------------------------------------------------------------------------------

SPEC = """
name: small
base:
  model: mlp_narrow
  data: digits
  train: {steps: 30, batch: 32, lr: 1e-3}
  measure: {every: 2, probe: 32}
  evaluate: {size: 50}
  checkpoint: {at: [10]}
axes:
  - {path: seed, range: 2}
"""


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A sweep of two trials, with a planted event in one."""
    store = tmp_path_factory.mktemp("plan") / "store"
    run_sweep(parse_sweep(SPEC), store, Options(executor="inline"))
    there = open_store(store)
    trial = there.sql("SELECT trial_id FROM trials WHERE seed = 1")["trial_id"].item()
    layer = there.sql("SELECT layer, view FROM measurements WHERE layer_index = 0 LIMIT 1").iloc[0]
    row = event(
        12, trial=trial, step_after=14, step_location=13.0, width=4.0, layer=layer["layer"], phase=0.4, phase_bin="mid"
    )
    written = {}
    for table, given in ((EVENTS, row), (EVENT_FAMILIES, FAMILIES.iloc[0].to_dict())):
        register_table(table)
        written[table.name] = {c.name: [given.get(c.name)] for c in table.columns}
    write_output(there, "small", "events", "sweep", written, cache_key="planted")
    return there


@pytest.mark.slow
def test_the_plan_is_written_and_the_states_come_back(swept: Store, tmp_path: Path) -> None:
    out, where = tmp_path / "plan.json", ["--store", swept.location.root]
    runner = CliRunner()
    done = runner.invoke(app(), ["plan-checkpoints", "small", "--out", str(out), *where])
    assert done.exit_code == 0, done.output
    assert "[9, 13, 17]" in done.stdout and "mlp_narrow_digits" in done.stdout and str(out) in done.stderr
    assert read_checkpoint_plan(out) == {"mlp_narrow_digits": [9, 13, 17]}
    # A sweep takes it as it is.
    sweep = parse_sweep(SPEC.replace("at: [10]", "plan: plan.json"), folder=tmp_path)
    assert sweep.base["checkpoint"]["plan"] == {"mlp_narrow_digits": [9, 13, 17]}
    done = runner.invoke(
        app(), ["plan-checkpoints", "small", "--out", "-", "--controls", "1", "--replay", "--json", *where]
    )
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    (replayed,) = said["replayed"]
    assert {9, 13, 17} <= {s["step"] for s in replayed["states"]} and replayed["compared"] == replayed["updates"] > 0
    trial = replayed["trial_id"]
    kept = swept.sql("SELECT step FROM checkpoints WHERE trial_id = ? AND reason = 'replay'", [trial])["step"]
    assert {9, 13, 17} <= set(kept)


def test_every_table_it_reads_is_known() -> None:
    from ndt_ray import registry
    from ndt_ray.store.schema import TABLES as KNOWN

    for name in registry.names("analysis"):
        registry.resolve("analysis", name)
    register_table(EVENTS), register_table(EVENT_FAMILIES)
    assert set(TABLES) <= set(KNOWN)
