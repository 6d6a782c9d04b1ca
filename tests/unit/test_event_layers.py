"""Events are counted by layer and cell with nulls beside; classes are learned when they stay learned."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from phase1_frames import given, trials
from test_taxonomy import FAMILIES, event, series_of

from ndt_ray.analysis.api import AnalysisInput, Partition
from ndt_ray.analysis.capabilities import capabilities, learned
from ndt_ray.analysis.events.layers import event_layers, kinds, layer_kind

STEPS = np.arange(0, 1001, 10)


def sweep(events: list[dict[str, object]], seeds: int = 2) -> dict[str, pd.DataFrame]:
    names = trials(("mlp_a", "cnn_b"), seeds)
    tests = series_of(names, layers=3).assign(detector="d", null="ar_sieve")
    families = FAMILIES.assign(alpha=0.05, measure="participation_ratio")
    return {"trials": names, "events": pd.DataFrame(events), "event_families": families, "series_tests": tests}


def run(tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    return {n: t.to_pandas() for n, t in event_layers(given(tables, event_layers.reads)).items()}


def test_every_judged_layer_is_listed_with_its_events_and_its_null() -> None:
    rows = [event(f"mlp_a/digits/{s}", 0.2 + 0.1 * i, 0.3, 0, 10.0) for s in range(2) for i in range(3)]
    out = run(sweep([*rows, event("mlp_a/digits/0", 0.2, 0.1, 2, 10.0)]))
    layers = out["event_layers"].set_index(["cell", "layer"])
    assert layers.loc["mlp_a/digits", "n"].tolist() == [6, 0, 1] and len(layers) == 6
    assert layers.loc["mlp_a/digits", "percent"].sum() == pytest.approx(100)
    assert layers.loc["cnn_b/digits", "percent"].isna().all()
    assert layers["null_per_trial"].sum() * 2 == pytest.approx(0.05 * 7)
    summary = out["event_summary"].set_index("model")
    assert summary.loc["mlp_a", ["n_events", "covered", "n_layers", "n_series"]].tolist() == [7, 2, 3, 6]
    assert summary.loc["mlp_a", "per_series"] == pytest.approx(7 / 6)
    assert summary.loc["mlp_a", "per_series_lo"] < 7 / 6 < summary.loc["mlp_a", "per_series_hi"]
    assert summary.loc["cnn_b", "n_events"] == 0 and np.isnan(summary.loc["cnn_b", "phase"])


def test_one_seed_no_events_and_nothing_are_survived() -> None:
    assert run(sweep([], seeds=1))["event_summary"]["per_series_lo"].isna().all()
    assert all(t.num_rows == 0 for t in event_layers(given({}, event_layers.reads)).values())
    assert run({"trials": trials(("mlp_a",), 1)})["event_layers"].empty


def test_kinds_of_layers_are_told_by_their_last_word() -> None:
    names = ("transformer.layers.0.linear2", "conv_layers.3", "fc", "7")
    assert [layer_kind(n) for n in names] == ["linear2", "conv_layers", "fc", "7"]
    of_cell = {"mode": "m", "cell": "c", "model": "c", "data": "d", "n_trials": 2, "null_per_trial": 0.25}
    rows = pd.DataFrame({"layer": ["0.a", "1.a", "0.b"], "layer_kind": ["a", "a", "b"], "n": [1, 2, 1], **of_cell})
    assert kinds(rows)["percent"].tolist() == [75, 25] and kinds(rows)["to_linear1"].isna().all()
    assert kinds(rows)["null_n"].tolist() == [1, 0.5] and kinds(rows)["n_layers"].tolist() == [2, 1]


def test_feed_forward_layers_are_set_against_each_other_and_attention_apart() -> None:
    tables = sweep([])
    block = ("self_attn.out_proj", "linear1", "linear2")
    names = {f"l{i}": f"transformer.layers.0.{part}" for i, part in enumerate(block)}
    at = [(2, 0.1), (2, 0.2), (2, 0.3), (2, 0.4), (2, 0.5), (1, 0.1), (1, 0.2), (0, 0.1)]
    events = pd.DataFrame([event("mlp_a/digits/0", phase, 0.3, layer, 10.0) for layer, phase in at])
    for name, rows in {"events": events, "series_tests": tables["series_tests"]}.items():
        tables[name] = rows.assign(layer=rows["layer"].map(names))
    found = run(tables)["event_kinds"].set_index(["model", "layer_kind"])
    own = found.loc["mlp_a"]
    assert own["n"].to_dict() == {"linear1": 2, "linear2": 5, "out_proj": 1}
    assert own["to_linear1"].to_dict() == {"linear1": 1.0, "linear2": 2.5, "out_proj": 0.5}
    assert own["percent"].to_dict() == {"linear1": 25.0, "linear2": 62.5, "out_proj": 12.5}
    assert own["n_series"].tolist() == [2, 2, 2] and found["null_n"].sum() == pytest.approx(0.05 * 8)
    assert found.loc["cnn_b", "n"].tolist() == [0, 0, 0] and found.loc["cnn_b", "to_linear1"].isna().all()


def test_a_class_is_learned_where_it_stays_learned() -> None:
    values = np.where(STEPS >= 400, 0.9, 0.1)
    values[5] = 0.9  # one lucky measurement
    row = learned(STEPS, values)
    assert row["step"] == 400 and row["abrupt"] and row["rise"] <= 10 and row["flag"] is None
    slow = learned(STEPS, np.round(0.1 + 0.8 * STEPS / 1000, 2))
    assert (
        slow["step"] == pytest.approx(480, abs=30) and not slow["abrupt"] and slow["rise"] == pytest.approx(480, abs=40)
    )


def test_a_class_that_was_always_answered_is_learned_when_it_is_told_apart() -> None:
    values = np.select([STEPS < 100, STEPS < 500], [1.0, 0.0], 0.95)
    assert learned(STEPS, values, 0.1)["step"] == 500 and learned(STEPS, values)["flag"] == "never"


@pytest.mark.parametrize(("values", "flag"), [(np.full(101, 0.1), "never"), (np.array([0.1, 0.5]), "short")])
def test_what_is_not_learned_says_so(values: np.ndarray, flag: str) -> None:
    row = learned(STEPS[: len(values)], values)
    assert row["flag"] == flag and row["step"] is None


def test_classes_are_read_from_probe_and_held_out_set_and_set_against_events() -> None:
    early, late = np.where(STEPS >= 200, 1.0, 0.0), np.where(STEPS >= 700, 1.0, 0.0)
    classes = [[a, b] for a, b in zip(early, late, strict=True)]
    scalars = pd.DataFrame({"step": STEPS, "probe_accuracy": (early + late) / 2, "probe_class_accuracy": classes})
    held = pd.DataFrame({"step": STEPS[::10], "accuracy": early[::10], "class_accuracy": classes[::10]})
    tables = {"trials": trials(("mlp_a",), 1), "scalars": scalars, "evaluations": held}
    tables |= {"events": pd.DataFrame([event("t", 0.1, 0.1, 0, 10.0)]), "event_families": FAMILIES}
    arrow = {n: pa.Table.from_pandas(tables[n]) for n in capabilities.reads}
    table = capabilities(AnalysisInput("planted", Partition("t"), arrow))["capabilities"].to_pandas()
    probe = table[table["source"] == "probe"].set_index("class")
    assert probe.loc[[0, 1], "step"].tolist() == [200, 700] and probe.loc[[0, 1], "event_distance"].tolist() == [0, 500]
    assert table[table["source"] == "held_out"]["class"].tolist() == [-1, 0, 1]
    empty = capabilities(AnalysisInput("planted", Partition("t"), {n: pa.table({}) for n in capabilities.reads}))
    assert empty["capabilities"].num_rows == 0
