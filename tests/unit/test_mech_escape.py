"""What changes while layers leave their initialisation: planted early changes are found, an even course is not one."""

import numpy as np
import pandas as pd
import pytest
from phase1_frames import given, trials

from ndt_ray.analysis.mechanisms.escape import escape, settling
from ndt_ray.errors import SpecError

STEPS = np.array([0, 40, 100, 500, 1000])
SETTLED = {"a": 30, "b": 90}


def transients(names: pd.DataFrame) -> pd.DataFrame:
    rows = [
        {"trial_id": trial, "layer": layer, "view": view, "measure": "participation_ratio"}
        | {"ends": ends - 10 * (view == "other"), "flag": None}
        for trial in names["trial_id"]
        for layer, ends in SETTLED.items()
        for view in ("units", "other")
    ]
    return pd.DataFrame([*rows, rows[0] | {"layer": "c", "ends": 0, "flag": "none"}])


def metrics(names: pd.DataFrame, courses: dict[tuple[str, str], np.ndarray], seed: int = 0) -> pd.DataFrame:
    """Rows of `unit_metrics`: every trial follows the course of (layer, metric) with noise of SD .1."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        [
            {"trial_id": trial, "layer": layer, "metric": metric, "part": "*", "step": step, "value": value}
            for trial in names["trial_id"]
            for (layer, metric), course in courses.items()
            for step, value in zip(STEPS, course + 0.1 * rng.standard_normal(len(STEPS)), strict=True)
        ]
    )


def run(courses: dict[tuple[str, str], np.ndarray], seeds: int = 6, **changed: pd.DataFrame) -> pd.DataFrame:
    names = trials(("mlp",), seeds)
    tables = {"trials": names, "transients": transients(names), "unit_metrics": metrics(names, courses)} | changed
    rows = escape(given(tables, escape.reads))["escape"].to_pandas()
    return rows.set_index(["layer", "metric"]) if len(rows) else rows


def test_an_early_change_is_found_with_its_share_and_an_even_one_is_not() -> None:
    early, even = np.array([0.0, 4, 4, 4, 5]), 5 * STEPS / 1000
    found = run({("a", "early"): early, ("a", "even"): even, ("b", "early"): early})
    one = found.loc[("a", "early")]
    assert one["q"] < 0.01 and one["p_sign"] == pytest.approx(2 / 64) and one["n_trials"] == 6
    assert (one["settled"], one["step"], one["time_share"]) == (30, 40, 0.04)
    assert one["share"] == pytest.approx(0.8, abs=0.05) and one["excess"] == pytest.approx(4 - 0.2, abs=0.2)
    assert one["lo"] < one["excess"] < one["hi"]
    assert found.loc[("a", "even"), "q"] > 0.05 and found.loc[("a", "even"), "share"] == pytest.approx(0.04, abs=0.05)
    assert found.loc[("b", "early"), "step"] == 100  # that layer settles at 90


def test_even_courses_are_rejected_at_the_nominal_rate() -> None:
    courses = {("a", f"metric {i}"): 3 * STEPS / 1000 for i in range(400)}
    assert (run(courses)["p"] <= 0.05).mean() <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 400)


def test_the_network_settles_with_its_median_layer_and_the_last_view_counts() -> None:
    names = trials(("mlp",), 1)
    found = settling(transients(names))
    trial = names["trial_id"].iloc[0]
    assert found == {
        (trial, "a"): 30,
        (trial, "b"): 90,
        (trial, "c"): 0,
        (trial, "*"): 30,
    }  # c is settled from the start
    rows = run({("*", "nc1"): STEPS / 100.0, ("c", "m"): STEPS / 100.0, ("c.attn", "m"): STEPS / 100.0})
    assert rows.loc[("*", "nc1"), "settled"] == pytest.approx(
        (30 + 5 * 60) / 6
    )  # c was planted in the first trial only
    assert rows.loc[("c.attn", "m"), "step"] > 0  # no measured layer: it settles with the network
    alone = run({("c", "m"): STEPS / 100.0}, seeds=1)
    assert alone.loc[("c", "m"), "flag"] == "no_transient"
    constant = transients(names).assign(flag="constant")
    assert np.isnan(list(settling(constant).values())).all()


def test_what_cannot_be_told_is_named() -> None:
    names = trials(("mlp",), 6)
    moved = {("a", "m"): np.arange(5.0)}
    never = transients(names).assign(flag="none")
    assert run(moved, transients=never)["flag"].tolist() == ["no_transient"]
    late = transients(names).assign(ends=990)
    assert run(moved, transients=late)["flag"].tolist() == ["no_checkpoint"]
    assert run(moved, seeds=2)["flag"].tolist() == ["few_trials"]
    still = metrics(names, moved).assign(value=1.0)
    assert run(moved, unit_metrics=still)["p"].tolist() == [1.0]
    assert run(moved, transients=pd.DataFrame()).empty and run({}, unit_metrics=pd.DataFrame()).empty
    with pytest.raises(SpecError, match="only of participation_ratio"):
        tables = {"trials": names, "transients": transients(names), "unit_metrics": still}
        escape(given(tables, escape.reads), measure="x")
