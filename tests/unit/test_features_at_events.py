"""Words for units at events: beside matched windows without one, and beside what the ascent's seed alone changes."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ndt_ray.analysis.api import AnalysisInput, Partition
from ndt_ray.analysis.hypotheses.event_table import event_table
from ndt_ray.analysis.hypotheses.verdicts import hypotheses
from ndt_ray.analysis.mechanisms.before_after import DEARER, mechanisms, panel_of
from ndt_ray.analysis.mechanisms.seeing.analyses import feature_changes
from ndt_ray.analysis.mechanisms.seeing.feature_metrics import BY_SEED, add_metrics
from ndt_ray.analysis.mechanisms.simulated import Design, simulate, tables
from ndt_ray.analysis.mechanisms.tables import FEATURE_METRICS, Metrics

LAYER = {"layer": "a", "layer_index": 0}


def seen(trial, step, words, again=(), **more):
    """Rows of `features` of one layer; `again`: words of the first units from another seed."""
    others = [*again, *[None] * (len(words) - len(again))]
    return [
        {"trial_id": trial, "step": step, **LAYER, "unit": unit, "feature_type": word, "again_type": other,
         "activation": 2.0, "best_found": 1.0, "beats_data": True, "from_example": False, "flag": None, **more}
        for unit, (word, other) in enumerate(zip(words, others, strict=True))
    ]  # fmt: skip


def given(**frames):
    return {name: pa.Table.from_pandas(rows, preserve_index=False) for name, rows in frames.items()}


def test_metrics_of_a_layer_are_its_words_and_responses():
    rows = pd.DataFrame(seen("t", 10, ["edge", "edge", "noise", "flat"], ["edge", "blob"]))
    rows.loc[3, ["activation", "best_found", "beats_data"]] = [-1.0, -0.5, False]
    rows.loc[2, ["activation", "from_example"]] = [2 * np.e, True]
    out = Metrics(trial_id="t", step=10)
    add_metrics(out, rows)
    found = out.frame().set_index("metric")
    value = found["value"]
    assert value["feature_types"] == 3 and value["feature_share_edge"] == 0.5 and value["feature_share_blob"] == 0
    assert value["feature_share_noise"] == 0.25 and (found["part"] == "*").all() and (found["layer"] == "a").all()
    assert (
        value["feature_log_response"] == pytest.approx(np.log(2) + 1 / 3)
        and found.loc["feature_log_response", "n"] == 3
    )
    assert value["feature_log_margin"] == pytest.approx(np.log(2) + 1 / 3)
    assert value["feature_beats_data"] == 0.75 and value["feature_beats_data_from_noise"] == 0.5
    assert value[BY_SEED] == 0.5 and found.loc[BY_SEED, "n"] == 2
    out = Metrics(trial_id="t", step=10)
    add_metrics(out, rows.assign(activation=-1.0, again_type=None))
    flags = out.frame().set_index("metric")["flag"]
    assert flags["feature_log_response"] == "not_positive" and flags[BY_SEED] == "not_repeated"


def test_words_are_metrics_that_mechanisms_compares_where_any_unit_has_them():
    assert FEATURE_METRICS in DEARER
    out = Metrics()
    for trial in ("t", "u"):
        for step in (0, 10):
            rows = pd.DataFrame(
                seen(trial, step, ["edge", "noise"] if trial == "t" and step else ["noise", "noise"], ["edge"])
            )
            add_metrics(out, rows.drop(columns=["trial_id", "step"]))
            for row in out._rows:
                row.setdefault("trial_id", trial)
                row.setdefault("step", step)
    panel = panel_of([out.frame()], pd.DataFrame())
    names = {metric for _, _, metric in panel}
    assert {"feature_types", "feature_log_response", "feature_share_edge", "feature_share_noise"} <= names
    assert not {"feature_share_blob", BY_SEED} & names  # no hypothesis; a chance level
    assert panel["t", "a", "feature_share_edge"] == {0: 0.0, 10: 0.5}
    assert panel["u", "a", "feature_share_edge"] == {0: 0.0, 10: 0.0}  # zeros of other seeds count


def planted_sweep(at_events: bool, seed: str):
    """A simulated sweep whose units have a new word and other ones after events, or whenever the clock strikes.

    Words alternate at a third of all windows; with `at_events` each event changes all of them and brings a new kind.
    """
    sweep = simulate(Design(trials=7, layers=2, metrics=1, steps=1200, every=10, events=2), seed)
    held = tables(sweep)
    rng = np.random.default_rng(len(seed))
    rows = []
    for (trial, layer), own in held["events"].groupby(["trial_id", "layer"]):
        words = np.array(["edge"] * 6, dtype=object)
        for step in range(0, 1201, 10):
            if rng.random() < 0.3:
                words[rng.integers(6)] = rng.choice(["edge", "noise"])
            if at_events and step in set(own["step_after"]):
                words = np.array([f"kind {step} {i % 2}" for i in range(6)], dtype=object)
            for row in seen(trial, step, list(words), words[:1]):
                rows.append(row | {"layer": layer, "layer_index": int(layer[-1])})
    return held, pd.DataFrame(rows)


def judged(held, features):
    arrow = {name: pa.Table.from_pandas(rows) for name, rows in held.items()}
    empty = {name: pa.table({}) for name in mechanisms.reads if name not in arrow}
    found = mechanisms(AnalysisInput("s", Partition(), {**arrow, **empty}))
    changes, windows = (found[name].to_pandas() for name in ("mechanism_changes", "mechanism_windows"))
    trials = held["trials"].assign(model="cnn_deep", data="mnist", control="none")
    events = held["events"].assign(relative_size=0.2, confirm_relative=np.nan)
    own = {"trials": trials, "events": events, "features": features, "mechanism_windows": windows}
    empty = {name: pa.table({}) for name in hypotheses.reads if name not in own}
    rows = hypotheses(AnalysisInput("s", Partition(), {**given(**own), **empty}))
    verdicts = rows["hypotheses"].to_pandas().set_index("hypothesis")
    return changes, windows, rows["event_mechanisms"].to_pandas(), verdicts


def test_new_kinds_at_events_are_told_from_those_of_any_window():
    changes, windows, table, verdicts = judged(*planted_sweep(True, "planted"))
    per_event = windows[windows["control"] >= 0].groupby(["trial_id", "layer", "step_before"]).size()
    told = changes.groupby(["trial_id", "layer", "step_before"])["n_controls"].max()
    assert (per_event == told[told > 0]).all() and len(per_event) == (told > 0).sum() > 10
    assert ((windows["end"] - windows["start"]).groupby([windows["trial_id"], windows["layer"], windows["step_before"]])
            .nunique() == 1).all()  # fmt: skip
    some = table[table["n_feature_controls"] > 0]
    assert (some["new_feature_types_window"] == 2).all() and (some["new_feature_types_controls"] < 1).all()
    assert (some["feature_types_changed"] == 1).all() and (some["feature_types_changed_controls"] < 0.4).all()
    assert (some["feature_types_changed_chance"] == 0).all()
    assert verdicts.loc["new_features", "verdict"] == verdicts.loc["feature_changes", "verdict"] == "supported"
    assert verdicts.loc["new_features", "estimate"] == pytest.approx(2, abs=0.4)


def test_where_words_change_all_the_time_events_bring_nothing():
    table, verdicts = judged(*planted_sweep(False, "nothing"))[2:]
    assert table["feature_types_changed"].mean() > 0.02  # before and after differ
    told = verdicts.loc[["new_features", "feature_changes"]]
    assert set(told["verdict"]) == {"not_shown"} and (told["n"] >= 5).all()


def test_an_event_without_windows_keeps_its_founding_count_alone():
    trials = pd.DataFrame([{"trial_id": "t", "cell": "c", "model": "cnn_deep", "data": "mnist", "control": "none"}])
    event = {"trial_id": "t", **LAYER, "step_before": 100, "step_after": 110, "relative_size": 0.2}
    features = pd.DataFrame([*seen("t", 90, ["edge", "edge"], ["noise"]), *seen("t", 120, ["edge", "blob"], ["edge"])])
    none = pd.DataFrame()
    events = pd.DataFrame([{**event, "confirm_relative": np.nan}])
    (row,) = event_table(trials, events, features, none, none, none).to_dict("records")
    assert row["new_feature_types_after"] == 1 and np.isnan(row["new_feature_types_window"])
    assert row["n_feature_controls"] == 0
    spans = [(-1, 90, 120), (0, 120, 150)]  # no features at 150
    windows = pd.DataFrame([{**event, "control": c, "start": a, "end": b} for c, a, b in spans])
    (row,) = event_table(trials, events, features, none, none, windows).to_dict("records")
    assert (row["new_feature_types_window"], row["feature_types_changed"]) == (1, 0.5)
    assert row["n_feature_controls"] == 0 and np.isnan(row["new_feature_types_controls"])
    assert row["feature_types_changed_chance"] == 0.5  # of the unit looked at twice, at both ends
    older = features.drop(columns="again_type")
    assert np.isnan(event_table(trials, events, older, none, none, windows)["feature_types_changed_chance"].item())


def test_changes_between_checkpoints_stand_beside_those_of_the_seed():
    rows = pd.DataFrame(
        [*seen("t", 0, ["edge", "noise", "noise"], ["edge", "blob"]), *seen("t", 9, ["edge"] * 3, ["edge", "edge"])]
    )
    data = AnalysisInput("s", Partition("t"), given(features=rows))
    (row,) = feature_changes(data)["feature_changes"].to_pylist()
    assert row["changed"] == pytest.approx(2 / 3) and row["changed_chance"] == 0.25 and row["n_chance"] == 4
    older = AnalysisInput("s", Partition("t"), given(features=rows.drop(columns="again_type")))
    assert feature_changes(older)["feature_changes"].to_pylist()[0]["changed_chance"] is None
