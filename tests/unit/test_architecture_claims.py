"""CNNs have more events than MLPs, of similar size: planted ratios are found, and nothing is said without any."""

from typing import Any

import numpy as np
import pytest
from inference_tables import given, sweep_row
from test_inference_compare import FEW, MANY, sweep

from ndt_ray.analysis.inference.architecture_claims import WHOLE_CLAIM, architecture_claims
from ndt_ray.analysis.inference.effects import log_ratio, log_ratio_interval

CNN, RESNET, MLP = "cnn_deep", "resnet18", "mlp_narrow"


def sized(tables: dict[str, Any], sizes: dict[str, float], seed: int = 0) -> dict[str, Any]:
    """Events with a relative size of their model, and 10 % between them; half of them shrink on the confirm probe."""
    rng = np.random.default_rng(seed)
    model = {row["trial_id"]: row["model"] for row in tables["trials"]}
    for i, row in enumerate(tables["events"]):
        size = sizes[model[row["trial_id"]]] * np.exp(0.1 * rng.normal()) * rng.choice([-1, 1])
        row |= {"relative_size": 2 * size, "confirm_relative": size} if i % 2 else {"relative_size": size}
    return tables


def judged(tables: dict[str, Any]) -> Any:
    found = architecture_claims(given(architecture_claims.reads, **tables))["architecture_claims"]
    return found.to_pandas().set_index(["claim", "scope"])


def test_more_events_of_similar_size_are_found_with_ratio_and_interval() -> None:
    rows = judged(sized(sweep({CNN: MANY, MLP: [2, 1, 3, 2, 2, 1]}), {CNN: 0.11, MLP: 0.1})).xs("*", level="scope")
    more = rows.loc["more_events"]
    assert more["cnn"] == np.mean(MANY) and more["ratio"] == pytest.approx(np.mean(MANY) / (11 / 6))
    assert more["lo"] > 1 and more["lo"] < more["ratio"] < more["hi"] and more["p"] == more["p_attainable"]
    assert rows.loc["more_events_per_series", "ratio"] == pytest.approx(more["ratio"])  # as many layers
    assert rows.loc["similar_size", "ratio"] == pytest.approx(1.1, abs=0.1)
    assert (rows["verdict"] == "supported").all() and rows.loc[WHOLE_CLAIM, "n_trials"] == 12


def test_each_part_can_fail() -> None:
    few = [2, 1, 3, 2, 2, 1]
    larger = judged(sized(sweep({CNN: MANY, MLP: few}), {CNN: 0.3, MLP: 0.1}))["verdict"].xs("*", level="scope")
    assert larger["more_events_per_series"] == "supported" and larger["similar_size"] == "contradicted"
    assert larger[WHOLE_CLAIM] == "contradicted"
    fewer = judged(sized(sweep({CNN: few, MLP: MANY}), {CNN: 0.1, MLP: 0.1}))["verdict"].xs("*", level="scope")
    assert fewer["more_events_per_series"] == "contradicted" and fewer["similar_size"] == "supported"
    none = judged(sized(sweep({CNN: MANY, MLP: [0] * 6}), {CNN: 0.1, MLP: 0.1})).xs("*", level="scope")
    assert none.loc["more_events", "verdict"] == "supported" and np.isnan(none.loc["more_events", "ratio"])
    assert none.loc["similar_size", "reason"] == "no events" and none.loc[WHOLE_CLAIM, "verdict"] == "no_data"


def test_models_of_a_family_count_together_within_the_data_sets_that_both_have() -> None:
    both = [
        sized(sweep({CNN: MANY, RESNET: MANY, MLP: FEW}, data=name), {CNN: 0.1, RESNET: 0.1, MLP: 0.1})
        for name in ("digits", "mnist")
    ]
    shared = ("sweeps", "event_families")
    tables = {k: both[0][k] + both[1][k] for k in both[0] if k not in shared}
    tables |= {"event_families": both[0]["event_families"]}
    tables |= {"sweeps": sweep_row([CNN, RESNET, MLP], 6, ["digits", "mnist"])}
    rows = judged(tables)
    assert set(rows.index.get_level_values("scope")) == {"*", "digits", "mnist"}
    assert (rows["n_cnn"].xs("more_events") == 6).all()  # seeds, not trials


@pytest.mark.slow
def test_without_a_difference_the_claim_is_rarely_made() -> None:
    rng, said = np.random.default_rng(4), []
    for i in range(40):
        counts = {name: [int(n) for n in rng.poisson(3, 6)] for name in (CNN, MLP)}
        said.append(judged(sized(sweep(counts), {CNN: 0.1, MLP: 0.1}, i)).loc[(WHOLE_CLAIM, "*"), "verdict"])
    assert said.count("supported") <= 40 * 0.05 / 2 + 3 * np.sqrt(40 * 0.025 * 0.975)


def test_what_cannot_be_compared_says_why() -> None:
    row = judged(sized(sweep({"vit": MANY, MLP: FEW}), {"vit": 0.1, MLP: 0.1})).iloc[0]
    assert row["verdict"] == "no_data" and row["reason"] == "no cnn in this sweep"
    one = judged(sized(sweep({CNN: [3], MLP: [2]}), {CNN: 0.1, MLP: 0.1}))
    assert set(one["verdict"]) == {"no_data"} and "one seed" in one.loc[("more_events", "*"), "reason"]
    assert architecture_claims(given(architecture_claims.reads))["architecture_claims"].num_rows == 0


@pytest.mark.parametrize("paired", [False, True])
def test_intervals_of_ratios_hold_the_true_one(paired: bool) -> None:
    rng, hits = np.random.default_rng(0), []
    for _ in range(400):
        low, high = log_ratio_interval(rng.poisson(4, 6), rng.poisson(2, 6) + 0.01, paired)
        hits.append(low <= np.log(4 / 2.01) <= high)
    assert np.mean(hits) >= 0.95 - 2 * np.sqrt(0.05 * 0.95 / 400)
    x, y = np.array([2.0, 3, 4]), np.array([1.0, 1.5, 2])
    low, high = log_ratio_interval(x, y, paired=False)
    assert (low + high) / 2 == pytest.approx(log_ratio(x, y)) == pytest.approx(np.log(2))
    assert np.isnan(log_ratio_interval(x, 0 * y, paired)).all() and np.isnan(log_ratio_interval(x, x, True)).all()
