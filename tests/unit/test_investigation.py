"""Planted dynamics get their word and a plan that brackets their events; runs that never trained get neither."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from phase1_frames import STEPS, trials
from test_taxonomy import FAMILIES, event, series_of

from ndt_ray import registry
from ndt_ray.analysis.api import AnalysisInput, Partition
from ndt_ray.analysis.events.investigation import (
    _SMOOTH_ANALYSES,
    _STRATEGY,
    agreement,
    as_json,
    bracketed,
    investigation,
)

GRID = np.arange(0, STEPS + 1, 10)


def plan(
    events: list[dict[str, object]],
    model: str = "cnn_b",
    accuracy: float = 0.9,
    curve: tuple[str, float] | None = ("relaxation", 0.9),
    calibrated: bool = True,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    names = trials((model,), 1)
    t = names["trial_id"][0]
    tables = {
        "trials": names,
        "measurements": pd.DataFrame({"trial_id": t, "step": GRID}),
        "evaluations": pd.DataFrame(
            {
                "trial_id": t,
                "step": [0, STEPS],
                "accuracy": [0.1, accuracy],
                "n": 500,
                "class_accuracy": [[0.1] * 10, [accuracy] * 10],
            }
        ),
        "events": pd.DataFrame([e | {"trial_id": t} for e in events]),
        "event_families": FAMILIES,
        "series_tests": series_of(names).assign(calibrated=calibrated, detector="d", null="ar_sieve"),
    }
    if curve:
        tables["growth_models"] = pd.DataFrame([{"mode": "default", "best": True, "model": curve[0], "r2": curve[1]}])
    arrow = {n: pa.Table.from_pandas(tables[n]) if n in tables else pa.table({}) for n in investigation.reads}
    out = investigation(AnalysisInput("planted", Partition(t), arrow))
    return out["investigations"].to_pandas(), out["investigation_steps"].to_pandas()


BURST = [event("t", 0.1 + 0.01 * i, 0.3, i, 10.0) for i in range(4)]


@pytest.mark.parametrize(
    ("events", "options", "word"),
    [
        (BURST, {}, "cascade"),
        (BURST[:2], {}, "discrete"),
        ([event("t", 0.1 + 0.01 * i, 0.3, 0, 10.0) for i in range(4)], {}, "discrete"),  # one layer
        ([event("t", 0.1 + 0.2 * i, 0.3, i, 10.0) for i in range(4)], {}, "discrete"),  # scattered
        ([], {}, "smooth"),
        ([], {"curve": ("relaxation", 0.2)}, "flat"),
        ([], {"curve": ("constant", 0.9)}, "flat"),
        ([], {"curve": None}, "flat"),
        (BURST, {"accuracy": 0.11}, "untrained"),
        ([], {"calibrated": False}, "unjudged"),
    ],
)
def test_the_word_follows_from_the_events(
    events: list[dict[str, object]], options: dict[str, object], word: str
) -> None:
    (row,) = plan(events, **options)[0].to_dict("records")  # type: ignore[arg-type]
    assert row["phenomenon"] == word and row["why"]


def test_the_events_of_a_run_stand_beside_the_false_ones_expected_in_its_series(monkeypatch: Any) -> None:
    assert plan(BURST)[0]["null_events"].isna().all()  # the family does not say
    monkeypatch.setitem(globals(), "FAMILIES", FAMILIES.assign(null_events=0.4, n_calibrated=20))
    assert plan(BURST)[0]["null_events"].tolist() == pytest.approx([0.4 / 20 * 5])  # of five layers
    assert plan(BURST, calibrated=False)[0]["null_events"].tolist() == [0]


def test_the_plan_brackets_every_chosen_event_with_few_steps() -> None:
    table, steps = plan([event("t", 0.2, 0.3, 1, 40.0), event("t", 0.7, 0.1, 2, 10.0)])
    row = table.iloc[0]
    assert row["recall"] == 1.0 > row["recall_uniform"] and row["share_of_steps"] < 0.05
    own = steps[steps["event_step"] == 400].set_index("role")["step"]
    assert own["before"] <= 370 and 400 <= own["during"] <= 410 and own["after"] >= 440
    assert (
        steps["step"].is_monotonic_increasing and steps["role"].iloc[0] == "start" and steps["role"].iloc[-1] == "end"
    )
    assert row["analyses"] == "filters,similarity,units" and row["n_steps"] == steps["step"].nunique()
    shown = json.loads(as_json(table, steps))[row["trial_id"]]
    assert shown["phenomenon"] == "discrete" and len(shown["steps"]) == len(steps)


def test_what_did_not_happen_is_not_investigated() -> None:
    for options in ({"accuracy": 0.1}, {"curve": None}):
        table, steps = plan([], **options)  # type: ignore[arg-type]
        assert steps.empty and table["n_steps"].tolist() == [0] and table["analyses"].tolist() == [""]
    table, steps = plan([], model="mlp_a")
    assert steps["role"].tolist() == ["start", "early", "mid", "late", "end"] and np.isnan(table["recall"].iloc[0])


def test_the_architecture_decides_which_analyses_and_all_of_them_exist() -> None:
    known = set(registry.names("analysis"))
    assert set(_SMOOTH_ANALYSES).union(*(a for a, _ in _STRATEGY.values())) <= known
    kinds = {m: plan(BURST, model=m)[0].iloc[0] for m in ("mlp_a", "transformer_x", "vit", "unheard_of")}
    assert [r["kind"] for r in kinds.values()] == ["dense", "attention", "attention", "unknown"]
    assert kinds["vit"]["analyses"].startswith("attention") and kinds["unheard_of"]["analyses"] == "similarity,units"


def test_nothing_gives_nothing_and_agreement_counts_runs() -> None:
    empty = investigation(AnalysisInput("planted", Partition("t"), {n: pa.table({}) for n in investigation.reads}))
    assert all(t.num_rows == 0 for t in empty.values())
    assert bracketed(pd.DataFrame(), np.arange(3)) is None
    table, _ = plan(BURST)
    counted = agreement(table, trials(("cnn_b",), 1))
    assert counted[["family", "phenomenon", "n"]].to_numpy().tolist() == [["cnn", "cascade", 1]]
