"""`Phase2Infrastructure`: the founding API guide on a small store, with checkpoints and torch, and without either."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mech_store import SWEEP, folder, trial_of

from ndt_ray import Phase2Infrastructure, registry
from ndt_ray.analysis.api import Partition, conform
from ndt_ray.analysis.events.sought import sought
from ndt_ray.analysis.events.tables import EVENT_FAMILIES, EVENTS
from ndt_ray.analysis.running.stored import StoredSweep
from ndt_ray.analysis.tables import JUMP_COUNTS, JUMPS
from ndt_ray.errors import SpecError, StoreError
from ndt_ray.store.reader import open_store

FAMILY = {"family": "primary", "detector": "d", "null": "n"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three architectures with checkpoints at 20, 30 and 40, and two events planted into a transformer."""
    registry.resolve("analysis", "events")  # so that its tables are known
    where = Path(shutil.copytree(folder(), tmp_path_factory.mktemp("phase2") / "store"))
    with open_store(where) as opened:
        trial = trial_of(opened, "transformer")
        common = {**FAMILY, "trial_id": trial, "view": "tokens", "measure": "stable_rank", "significant": True}
        small = {"layer": "fc", "layer_index": 9, "step_before": 0, "step_after": 10, "size": 0.2, "phase": 0.0}
        large = {"layer": "transformer.layers.0.linear2", "layer_index": 2, "step_before": 20, "step_after": 40}
        large |= {"size": -3.0, "phase": 0.5, "step_location": 31.0}
        empty = {c.name: None for c in EVENTS.columns}
        events = pd.DataFrame([{**empty, **common, **e} for e in (small, large)])
        families = pd.DataFrame(
            [{c.name: None for c in EVENT_FAMILIES.columns} | {**FAMILY, "primary": True, "measure": "stable_rank"}]
        )
        found = {"events": conform(EVENTS, events), "event_families": conform(EVENT_FAMILIES, families)}
        tables = StoredSweep(opened, SWEEP)
        tables.commit("planted", [tables.write("planted", Partition(), "k", found, {})])
    return where


def test_a_summary_has_the_founding_keys(store: Path) -> None:
    infra = Phase2Infrastructure(store)
    assert infra.experiments == ["cnn_digits", "mlp_digits", "transformer_digits"]
    found = infra.get_experiment_summary("transformer_digits")
    assert found["experiment"] == "transformer_digits" and found["num_jumps"] == 2
    summary = found["jump_summary"]
    assert summary["mean_magnitude"] == pytest.approx(1.6) and summary["phases"] == [0.5, 0.0]
    assert summary["mean_speed"] == pytest.approx((0.2 / 10 + 3 / 20) / 2) and found["critical_periods"] == []


def test_moments_stand_around_the_largest_events_first(store: Path) -> None:
    infra = Phase2Infrastructure(store)
    moments = infra.identify_moments("transformer_digits", num_jumps=5)
    assert [(m.jump, m.kind, m.step, m.checkpoint) for m in moments] == [
        (0, "before", 20, 20),
        (0, "during", 30, 30),
        (0, "after", 40, 40),
        (1, "before", 0, None),
        (1, "during", 5, None),
        (1, "after", 10, 20),
    ]
    assert moments[0].magnitude == 3 and moments[0].layer == "transformer.layers.0.linear2"
    assert infra.identify_moments("transformer_digits", 1) == moments[:3]
    with pytest.raises(SpecError, match="negative"):
        infra.identify_moments("transformer_digits", -1)


def test_before_and_after_with_checkpoints(store: Path) -> None:
    infra = Phase2Infrastructure(store)
    moments = infra.identify_moments("transformer_digits")
    found = infra.compare_representations(moments[0], moments[2])
    m = found.measurements
    trial = moments[0].trial_id
    assert (m["step_before"], m["step_after"]) == (20, 40) and found.missing == {}
    assert (m["loss_is"], m["measure"]) == ("probe_loss", "stable_rank")
    losses = infra.store.sql("SELECT step, probe_loss FROM scalars WHERE trial_id = ?", [trial]).set_index("step")
    assert m["loss_change"] == pytest.approx(losses["probe_loss"][40] - losses["probe_loss"][20])
    rows = infra.store.measurements(trial=trial, layer=moments[0].layer).set_index("step")["stable_rank"]
    change = m["layer_changes"][moments[0].layer]
    assert (change["before"], change["after"]) == (rows[20], rows[40])
    assert change["relative_change"] == pytest.approx((rows[40] - rows[20]) / rows[20])
    a, b = (infra.store.checkpoint(trial, step)[0]["model.fc.weight"] for step in (20, 40))
    assert m["weights"]["fc.weight"]["l2_norm"] == pytest.approx(float(np.linalg.norm(b - a)), rel=1e-6)
    attention = next(iter(m["attention"].values()))
    assert attention["entropy_change"] == attention["entropy_after"] - attention["entropy_before"]
    assert all(-0.1 < row["cka"] < 1 + 1e-9 for row in m["activations"].values())


def test_what_is_missing_is_said_and_the_rest_is_there(store: Path) -> None:
    infra = Phase2Infrastructure(store)
    moments = infra.identify_moments("transformer_digits")
    early = infra.compare_representations(moments[3], moments[5])
    assert early.missing.keys() == {"weights", "attention", "activations"} and "ndt replay" in early.missing["weights"]
    assert early.measurements["layer_changes"] and "weights" not in early.measurements
    plain = infra.get_experiment_summary("mlp/digits")
    assert plain["num_jumps"] == 0 and math.isnan(plain["jump_summary"]["mean_magnitude"])
    assert infra.identify_moments("mlp_digits") == []
    other = Phase2Infrastructure(store, seed=1).identify_moments("transformer_digits")
    assert other == []  # the events are of the first seed


def test_a_store_without_events_or_trials_gives_nothing(tmp_path: Path) -> None:
    open_store(tmp_path / "empty", create=True).close()
    infra = Phase2Infrastructure(tmp_path / "empty")
    assert infra.experiments == []
    with pytest.raises(SpecError, match="no experiment 'mlp_digits'"):
        infra.get_experiment_summary("mlp_digits")
    with pytest.raises(StoreError):
        Phase2Infrastructure(tmp_path / "nowhere")


RULE = {"layer": "fc", "layer_index": 3, "view": "units", "detector": "difference_z", "grid_every": 10}


@pytest.fixture(scope="module")
def flagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same networks with uncalibrated jumps, and no events, of one multilayer perceptron."""
    where = Path(shutil.copytree(folder(), tmp_path_factory.mktemp("flagged") / "store"))
    with open_store(where) as opened:
        common = RULE | {"trial_id": trial_of(opened, "mlp"), "measure": "participation_ratio", "mode": "default"}
        down = {"index": 2, "step_before": 20, "step_after": 30, "magnitude": 0.5, "direction": "decrease"}
        up = {"index": 3, "step_before": 30, "step_after": 40, "magnitude": 0.1, "direction": "increase"}
        first = {"index": 0, "step_before": 0, "step_after": 10, "magnitude": 9.0, "direction": "increase"}
        more = {"counted": True, "phase": 0.5}
        rows = [common | more | down, common | more | up, common | first | {"counted": False, "phase": 0.0}]
        rows += [common | more | up | {"mode": "original", "measure": "stable_rank", "index": 1}]
        noise = {f"null_{kind}_{c}": 0.5 for kind in ("white", "ar1") for c in ("mean", "sd", "lo", "hi")}
        counts = [common | noise | {"observed": 2, "merged": 1}]
        counts += [common | noise | {"mode": "original", "measure": "stable_rank", "observed": 1, "merged": 1}]
        found = {}
        for table, own in ((JUMPS, rows), (JUMP_COUNTS, counts)):
            empty = {c.name: None for c in table.columns}
            found[table.name] = conform(table, pd.DataFrame([empty | row for row in own]))
        tables = StoredSweep(opened, SWEEP)
        tables.commit("planted", [tables.write("planted", Partition(), "k", found, {})])
    return where


def test_without_events_there_are_uncalibrated_jumps_named_so_beside_noise(
    flagged: Path, caplog: pytest.LogCaptureFixture
) -> None:
    infra = Phase2Infrastructure(flagged)
    found = infra.get_experiment_summary("mlp_digits")
    assert found["num_jumps"] == 2 and found["expected_on_noise"] == {"white": 0.5, "ar1": 0.5}
    assert "uncalibrated" in found["jumps_are"] and f"ndt analyze {SWEEP} series_tests events" in found["jumps_are"]
    moments = infra.identify_moments("mlp_digits")
    assert [(m.step, m.magnitude) for m in moments[::3]] == [(20, 0.5), (30, 0.1)]
    assert "mlp_digits: 2 uncalibrated" in caplog.text and "0.5 on white noise" in caplog.text
    measured = infra.compare_representations(moments[0], moments[2]).measurements
    assert measured["measure"] == "participation_ratio" and measured["layer_changes"]
    published = Phase2Infrastructure(flagged, jumps="original").get_experiment_summary("mlp_digits")
    assert published["num_jumps"] == 1 and "as published" in published["jumps_are"]


def test_what_nobody_looked_for_is_not_zero_and_says_what_computes_it(flagged: Path) -> None:
    for infra, experiment in (
        (Phase2Infrastructure(flagged), "cnn_digits"),
        (Phase2Infrastructure(flagged, jumps="events"), "mlp_digits"),
        (Phase2Infrastructure(flagged, measure="stable_rank"), "mlp_digits"),
    ):
        found = infra.get_experiment_summary(experiment)
        assert found["num_jumps"] is None and "ndt analyze looked-at series_tests events" in found["jumps_are"]
        assert infra.identify_moments(experiment) == []
    for measure, command in (
        ("stable_rank", f"`ndt analyze {SWEEP} jumps`"),
        ("rankme", f"`ndt analyze {SWEEP} jumps --set 'measures=[rankme]'`"),
    ):
        assert command in sought(None, measure, SWEEP, *[pd.DataFrame()] * 4).words
    with pytest.raises(SpecError, match="did you mean 'events'"):
        sought("event", "stable_rank", SWEEP, *[pd.DataFrame()] * 4)


def test_bad_names_are_refused(store: Path) -> None:
    with pytest.raises(SpecError, match="did you mean 'mlp_digits'"):
        Phase2Infrastructure(store).identify_moments("mlp_digit")
    with pytest.raises(SpecError, match="no sweep"):
        Phase2Infrastructure(store, sweep="other")
    infra = Phase2Infrastructure(store, measure="stable_rnk")
    moments = infra.identify_moments("transformer_digits")
    with pytest.raises(SpecError, match="did you mean 'stable_rank'"):
        infra.compare_representations(moments[0], moments[2])


WITHOUT_TORCH = """
import json, sys
class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from ndt_ray import Phase2Infrastructure
infra = Phase2Infrastructure(sys.argv[1])
moments = infra.identify_moments("transformer_digits")
found = infra.compare_representations(moments[0], moments[2])
assert "torch" not in sys.modules
print(json.dumps([infra.get_experiment_summary("transformer_digits")["num_jumps"], found.measurements, found.missing]))
"""


@pytest.mark.slow
def test_without_torch_there_are_dimensionality_and_weights(store: Path) -> None:
    said = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, str(store)], capture_output=True, text=True, check=True)
    jumps, measurements, missing = json.loads(said.stdout)
    infra = Phase2Infrastructure(store)
    moments = infra.identify_moments("transformer_digits")
    whole = infra.compare_representations(moments[0], moments[2]).measurements
    assert jumps == 2 and missing == dict.fromkeys(("attention", "activations"), "PyTorch is not installed")
    assert measurements["layer_changes"] == whole["layer_changes"] and measurements["weights"] == whole["weights"]
