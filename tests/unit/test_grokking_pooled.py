"""The open questions on scales, of all networks of a cell together: planted answers are found, none where none is."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy.stats import spearmanr

from ndt_ray.analysis.api import AnalysisInput, Partition
from ndt_ray.analysis.mechanisms.grokking.analyses import grokking_comparison
from ndt_ray.analysis.mechanisms.grokking.pooled import changed, pooled, within
from ndt_ray.analysis.mechanisms.grokking.questions import role

RNG = np.random.default_rng
CELLS = 400
MOST = 0.05 + 2 * (0.05 * 0.95 / CELLS) ** 0.5
"""Share of cells without any relation that may say p < .05: the level and two standard errors."""


def cell(rng: np.random.Generator, *, networks: int = 6, heads: int = 4, slope: float = 0.0) -> pd.DataFrame:
    """Heads of some networks; networks differ in both scale and what a head is worth, which is no relation of heads.

    `slope`: what a head is worth per SD of its scale, where other reasons have an SD of 1.
    """
    n = networks * heads
    shared = np.repeat(rng.normal(0, 3, networks), heads)
    z = rng.normal(size=n)
    units = pd.DataFrame({"trial_id": np.repeat([f"t{i}" for i in range(networks)], heads), "kind": "head_to_a"})
    units = units.assign(unit=np.tile(np.arange(heads), networks), scale=0.5 + 0.02 * (shared + z))
    units = units.assign(ablation=shared + slope * z + rng.normal(size=n), frequency=1 + rng.integers(0, 9, n))
    units = units.assign(scale_first=0.5 + 0.02 * (shared + rng.normal(size=n)), scale_step=rng.integers(0, 50, n))
    units = units.assign(commitment_step=rng.integers(0, 50, n), variance_preservation=rng.uniform(size=n))
    return units.assign(relative_gradient=rng.uniform(size=n))


def answers(units: pd.DataFrame, name: str = "m") -> pd.DataFrame:
    return pooled(units, name).set_index(["question", "statistic"])


def test_what_four_heads_cannot_say_six_networks_of_four_do() -> None:
    units = cell(RNG(0), slope=4.0)
    one = units[units["trial_id"] == "t0"].rename(columns={"scale": "fft_no_dc", "ablation": "ablation_mean"})
    assert role(one, ("t0",))["p"] is None
    found = answers(units).loc["role", "ablation_by_scale"]
    assert found["answer"] == "coarse heads matter more" and found["p"] == pytest.approx(1 / 2000)
    assert (found["n"], found["n_trials"]) == (24, 6) and found["n_agree"] >= 5
    turned = answers(units.assign(ablation=-units["ablation"])).loc["role", "ablation_by_scale"]
    assert turned["answer"] == "fine heads matter more" and turned["value"] == pytest.approx(-found["value"])


def test_a_rank_correlation_within_networks_is_the_one_by_hand() -> None:
    x, y = np.array([1.0, 2, 3, 5, 6, 7]), np.array([10.0, 20, 30, 3, 2, 1])
    both = np.repeat([0, 1], 3)
    row = within(x, y, both)
    assert row["value"] == pytest.approx(0) and row["n"] == 6 and row["n_agree"] == 0
    row = within(x, np.array([10.0, 20, 30, 2, 3, 1]), both)
    assert row["value"] == pytest.approx((1 - 0.5) / 2)  # equal networks: the mean of their own coefficients
    flat = within(x, np.array([10.0, 20, 30, 2, 2, 2]), both)
    assert flat["n"] == 3 and flat["n_trials"] == 1 and flat["p"] is None


def of_role(units: pd.DataFrame, name: int) -> dict[str, Any]:
    scale, ablation = (units[c].to_numpy() for c in ("scale", "ablation"))
    return within(scale, ablation, units["trial_id"].to_numpy(), str(name))


def test_a_network_that_is_coarse_and_fragile_as_a_whole_is_no_relation_of_its_heads() -> None:
    cells = [cell(RNG((1, seed))) for seed in range(CELLS)]
    small = np.mean([of_role(units, i)["p"] < 0.05 for i, units in enumerate(cells)])
    assert 0.02 < small <= MOST
    naive = np.mean([spearmanr(units["scale"], units["ablation"]).pvalue < 0.05 for units in cells])
    assert naive > 0.9, "over all heads the two go together, for networks differ"


@pytest.mark.parametrize(("slope", "least", "most"), [(0.7, 0.4, 0.75), (1.5, 0.95, 1.0)])
def test_planted_relations_of_heads_are_found(slope: float, least: float, most: float) -> None:
    rows = [of_role(cell(RNG((2, seed)), slope=slope), seed) for seed in range(100)]
    assert least <= np.mean([r["p"] < 0.05 and r["value"] > 0 for r in rows]) <= most
    assert not any(r["p"] < 0.05 and r["value"] < 0 for r in rows)


def test_heads_that_move_together_count_once_a_network() -> None:
    """Emergence: all heads of a network share most of their change, whose sign is a matter of the seed."""
    small = naive = 0
    for seed in range(CELLS):
        rng = RNG((3, seed))
        change = np.repeat(rng.normal(size=7), 4) + 0.2 * rng.normal(size=28)
        small += changed(change, np.repeat(np.arange(7), 4))["p"] < 0.05
        naive += abs(change.mean()) > 1.96 * change.std(ddof=1) / 28**0.5
    assert 0.02 < small / CELLS <= MOST < 0.25 < naive / CELLS
    grown = cell(RNG(4)).assign(scale_first=lambda t: t["scale"] - 0.3)
    rows = answers(grown).loc["emergence"]
    assert rows.loc["mean_change"]["answer"] == "emerged in training: coarser"
    assert rows.loc["mean_change"]["p"] == 2 / 64 and rows.loc["mean_change"]["value"] == pytest.approx(0.3)
    assert rows.loc["rank_correlation"]["answer"] == "ordered as at the initialisation"
    slight = answers(grown.assign(scale_first=grown["scale"] - 0.01)).loc["emergence"].loc["mean_change"]
    assert slight["p"] == 2 / 64 and slight["answer"] == "no change on the whole"


def test_too_few_are_called_so_and_an_order_is_found_where_there_is_one() -> None:
    five = answers(cell(RNG(5), networks=5))
    assert five.loc["emergence", "mean_change"]["answer"] == "too few networks"  # 2 / 32 is over .05
    assert five.loc["emergence", "mean_change"]["p_attainable"] == 2 / 32
    assert five.loc["role", "ablation_by_scale"]["p"] == five.loc["role", "ablation_by_scale"]["p"]
    pairs = answers(cell(RNG(5), networks=2, heads=2))
    assert set(pairs["answer"]) == {"too few networks", "too few units"} and pairs["p"].isna().all()
    assert set(answers(cell(RNG(5), networks=1, heads=40))["answer"]) == {"too few networks"}
    slow = cell(RNG(6)).assign(commitment_step=lambda t: 1000 - 900 * t["scale"], scale_step=None)
    rows = answers(slow).loc["order"]
    assert rows.loc["commitment_step_by_scale"]["answer"] == "low frequencies first"
    assert rows.loc["scale_step_by_scale"]["answer"] == "too few networks" and rows.loc["scale_step_by_scale"]["n"] == 0


def test_the_comparison_asks_every_cell_and_leaves_controls_out() -> None:
    units = pd.concat([cell(RNG(7), slope=4.0), cell(RNG(8)).assign(trial_id=lambda t: "u" + t["trial_id"])])
    ids = [str(t) for t in units["trial_id"].unique()]
    trials = pd.DataFrame({"trial_id": ids, "cell": ["a"] * 6 + ["b"] * 6, "control": ["none"] * 11 + ["lr:0"]})
    onsets = pd.DataFrame({"trial_id": ids, "onset_step": 100, "delay": 10, "confidence": 0.9, "final_loss": 1e-6})
    onsets = onsets.assign(frequencies=[[1]] * 12, learned=[[1]] * 12)
    last = pd.DataFrame({"trial_id": ids, "step": 500, "p": 23, "gini_embedding": 0.9})
    tables = {"trials": trials, "grokking_onsets": onsets, "grokking_measures": last, "specialisation_timeline": units}
    arrow = {n: pa.Table.from_pandas(t) for n, t in tables.items()} | {"scale_questions": pa.table({})}
    out = grokking_comparison(AnalysisInput("two", Partition(), arrow))
    rows = out["scale_answers"].to_pandas().set_index(["cell", "statistic"])
    assert rows.loc[("a", "ablation_by_scale"), "answer"] == "coarse heads matter more"
    assert rows.loc[("b", "ablation_by_scale"), "n_trials"] == 5 and (rows["modulus"] == 23).all()
    assert json.loads(out["grokking_comparison"].to_pandas()["other_p"].iloc[0]) == {}
