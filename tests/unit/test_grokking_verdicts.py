"""The verdict on grokking: an event at the generalisation and none in the plateau pass; each clause can fail alone."""

from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from ndt_ray.analysis.api import AnalysisInput, Partition
from ndt_ray.analysis.events.families import PRIMARY
from ndt_ray.analysis.mechanisms.grokking.verdicts import grokking_verdicts
from ndt_ray.errors import SpecError

STEPS, MEMORISED, HALF = 10_000, 300, 6_000
EVENTS: dict[str, list[tuple[float, str]]] = {
    "passed": [(6_900, "mlp"), (200, "mlp"), (3_100, "mlp")],  # before memorising and after half of the step: neither
    "missed": [(7_100, "mlp")],
    "early": [(5_500, "mlp"), (1_500, "embed")],
    "missed_and_early": [(2_900, "mlp")],
}


def tables(events: dict[str, list[tuple[float, str]]], **onset: Any) -> dict[str, pd.DataFrame]:
    names = list(events)
    known = {"memorised_step": MEMORISED, "accuracy_step": HALF} | onset
    series = [
        {"trial_id": t, "layer": layer, **PRIMARY, "calibrated": True} for t in names for layer in ("embed", "mlp")
    ]
    found = [
        {"trial_id": t, "layer": layer, **PRIMARY, "step_location": at, "q": 0.01, "significant": True}
        for t, rows in events.items()
        for at, layer in rows
    ]
    found += [{**found[0], "step_location": 1_000.0, "significant": False}] if found else []
    found += [{**found[0], "step_location": 1_000.0, "measure": "stable_rank"}] if found else []
    return {
        "trials": pd.DataFrame({"trial_id": names, "cell": "wd", "control": "none", "steps": STEPS}),
        "outcomes": pd.DataFrame({"trial_id": names, "status": "finished"}),
        "series_tests": pd.DataFrame(series),
        "events": pd.DataFrame(found),
        "event_families": pd.DataFrame([{**PRIMARY, "alpha": 0.05}]),
        "grokking_onsets": pd.DataFrame([{"trial_id": t, **known} for t in names]),
    }


def verdicts(planted: dict[str, pd.DataFrame], **parameters: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    arrow = {n: pa.Table.from_pandas(planted[n]) if n in planted else pa.table({}) for n in grokking_verdicts.reads}
    out = grokking_verdicts(AnalysisInput("planted", Partition(), arrow), **parameters)
    return out["grokking_verdicts"].to_pandas().set_index("trial_id"), out["grokking_acceptance"].to_pandas()


def test_one_run_passes_and_each_clause_fails_alone() -> None:
    rows, cells = verdicts(tables(EVENTS))
    assert rows["verdict"].to_dict() == {name: name for name in EVENTS}
    passed = rows.loc["passed"]
    assert passed["event_step"] == 6_900 and passed["distance"] == pytest.approx(0.09) and passed["q"] == 0.01
    assert passed["n_events"] == 3 and passed["null_events"] == pytest.approx(0.15) and passed["n_series"] == 2
    assert rows.loc["early", "early_step"] == 1_500 and rows.loc["missed", "n_near"] == 0
    (cell,) = cells.to_dict("records")
    assert (cell["n"], cell["n_judged"], cell["n_passed"], cell["n_missed"], cell["n_early"]) == (4, 4, 1, 2, 2)
    assert cell["accepted"] is False
    assert verdicts(tables({"passed": EVENTS["passed"]}))[1]["accepted"].tolist() == [True]


def test_the_named_layers_alone_are_asked() -> None:
    rows, _ = verdicts(tables(EVENTS), layers="mlp")
    assert rows.loc["early", "verdict"] == "passed" and rows.loc["early", "n_series"] == 1
    assert verdicts(tables(EVENTS), tolerance=0.12)[0].loc["missed", "verdict"] == "passed"


def test_without_a_verdict_there_is_a_reason() -> None:
    one = {"passed": EVENTS["passed"]}
    running = tables(one) | {"outcomes": pd.DataFrame({"trial_id": [], "status": []})}
    untested = tables(one)
    untested["series_tests"]["calibrated"] = False
    for planted, why in (
        (running, "unfinished"),
        (tables(one, accuracy_step=None), "not_generalised"),
        (tables(one, memorised_step=None), "not_memorised"),
        (untested, "not_tested"),
    ):
        rows, cells = verdicts(planted)
        assert rows["verdict"].tolist() == [why] and cells["accepted"].tolist() == [None] and cells["n_judged"][0] == 0
    quiet = tables({"a": []})
    assert verdicts(quiet)[0]["verdict"].tolist() == ["missed"]
    assert all(len(t) == 0 for t in verdicts({}))
    with pytest.raises(SpecError, match="tolerance"):
        verdicts({}, tolerance=2.0)
