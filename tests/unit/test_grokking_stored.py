"""Runs of ours on modular addition, from their stored series to the verdicts, with the detector as it is today.

`stored/grokking` holds what was measured of each run; tools/keep_grokking.py says how it came about.
"""

from pathlib import Path

import pandas as pd
import pytest
from analysis_chain import analysed

from ndt_ray.analysis.validity.tasks import SMALL_BATCHES

STORED = Path(__file__).parent / "stored" / "grokking"
PARAMETERS = {"series_tests": {**SMALL_BATCHES, "measures": ["participation_ratio"], "velocities": []}}
CHAIN = ("series_tests", "events", "grokking_timeline", "grokking_verdicts")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    """What was stored, and what each analysis of the chain makes of it."""
    stored = {file.stem: pd.read_parquet(file) for file in STORED.glob("*.parquet")}
    return analysed(stored, CHAIN, PARAMETERS, "grokking")


def of_p(tables: dict[str, pd.DataFrame], name: str, p: int) -> pd.DataFrame:
    trials = tables["trials"].assign(p=tables["trials"]["cell"].str.extract(r"p=(\d+)")[0].astype(int))
    return tables[name].merge(trials.loc[trials["p"] == p, ["trial_id", "seed"]], on="trial_id").sort_values("seed")


def test_what_is_stored_is_small_and_of_runs_to_their_ends(tables: dict[str, pd.DataFrame]) -> None:
    assert sum(file.stat().st_size for file in STORED.glob("*.parquet")) < 400_000
    last = tables["evaluations"].groupby("trial_id")["step"].max()
    assert (last.reindex(tables["trials"]["trial_id"]).to_numpy() == tables["trials"]["steps"].to_numpy()).all()
    assert (tables["outcomes"]["status"] == "finished").all()
    assert of_p(tables, "outcomes", 59)["seed"].tolist() == [0, 1, 2, 3, 4, 5]
    assert of_p(tables, "outcomes", 113)["seed"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("p", "verdicts"),
    [(59, {"passed": 3, "not_tested": 1, "not_generalised": 2}), (113, {"passed": 2, "not_generalised": 1})],
)
def test_the_transition_is_found_where_the_run_generalised_and_nothing_while_it_remembered(
    tables: dict[str, pd.DataFrame], p: int, verdicts: dict[str, int]
) -> None:
    """Within a tenth of training around the run's own step of 50 % held-out accuracy; no event before half of that."""
    found = of_p(tables, "grokking_verdicts", p)
    assert found["verdict"].value_counts().to_dict() == verdicts
    passed = found[found["verdict"] == "passed"]
    assert (passed["distance"].abs() < 0.04).all() and (passed["n_early"] == 0).all() and (passed["q"] < 0.001).all()
    # What did not generalise has no event after the transient of its first steps, or cannot be tested.
    others = found[found["verdict"] != "passed"]
    events = tables["events"][tables["events"]["significant"].astype(bool)]
    assert not set(others["trial_id"]) & set(events["trial_id"])
    # Dimensionality falls after the held-out loss has turned, and before that of the circuit alone is half-way down.
    onsets = of_p(tables, "grokking_onsets", p).set_index("trial_id")
    for trial, own in events.groupby("trial_id"):
        if trial in onsets.index:
            assert (own["direction"] == "decrease").all()
            assert own["step_location"].between(*onsets.loc[trial, ["turn_step", "restricted_step"]]).all()
    (cell,) = of_p(tables, "grokking_verdicts", p)["cell"].unique()
    accepted = tables["grokking_acceptance"].set_index("cell").loc[cell]
    assert accepted["n_passed"] == accepted["n_judged"] and accepted["n_early"] == accepted["n_missed"] == 0
