"""Every analysis of phase 1 keeps the contract: registered, empty-safe, the same twice, reading what others wrote."""

import numpy as np
import pandas as pd
import pytest
from analysis_chain import analysed
from phase1_frames import STEPS, given, trials
from test_taxonomy import FAMILIES, event, series_of

from ndt_ray import registry
from ndt_ray.analysis.api import Analysis

NAMES = (
    "capabilities", "convergence", "convergence_tests", "coordination_tests", "critical_periods", "event_layers",
    "event_phases", "event_windows", "growth", "growth_regression", "investigation", "taxonomy", "timing",
)  # fmt: skip
QUICK = {
    "critical_periods": {"n_surrogates": 9, "lags": 1, "measures": ["participation_ratio"]},
    "taxonomy": {"resamples": 3, "null_draws": 2, "permutations": 19, "largest_k": 3},
    "timing": {"permutations": 5},
    "convergence_tests": {"permutations": 49},
    "coordination_tests": {"permutations": 19, "measures": ["participation_ratio"]},
    "convergence": {"measures": ["participation_ratio"]},
}
GRID = np.arange(0, STEPS + 1, 20)


@pytest.fixture(scope="module")
def sweep() -> dict[str, pd.DataFrame]:
    """Two architectures × 3 seeds × 3 layers, with events and every table that training writes."""
    names = trials(("mlp_a", "cnn_b"), 3).assign(spec='{"measure": {"every": 20}}')
    rng, rows, scalars, held, events = np.random.default_rng(0), [], [], [], []
    for t in names["trial_id"]:
        for i in range(3):
            values = 10 + 5 * np.exp(-GRID / (200 * (i + 1))) + rng.normal(0, 0.05, len(GRID))
            base = {"trial_id": t, "step": GRID, "layer": f"l{i}", "layer_index": i, "view": "units"}
            rows.append(
                pd.DataFrame(base | {"participation_ratio": values, "participation_ratio_sv_uncentred": values})
            )
            events += [event(t, p + 0.01 * i, 0.1 + 0.1 * i, i, 40.0) for p in (0.1, 0.36, 0.8)]
        loss = np.exp(-GRID / 500) + rng.normal(0, 0.01, len(GRID))
        classes = [[a, 1 - a] for a in 1 - np.exp(-GRID / 300)]
        norms = {"grad_norm": np.exp(rng.normal(size=len(GRID))), "update_norm": np.exp(rng.normal(size=len(GRID)))}
        probe = {"probe_loss": loss, "batch_loss": loss, "probe_accuracy": 1 - loss, "probe_class_accuracy": classes}
        scalars.append(pd.DataFrame({"trial_id": t, "step": GRID, "lr": 1e-3, "epoch_boundary": False} | norms | probe))
        held.append(
            pd.DataFrame({"trial_id": t, "step": [STEPS], "accuracy": 0.9, "n": 100, "class_accuracy": [[0.9, 0.9]]})
        )
    tables = {
        "trials": names,
        "measurements": pd.concat(rows),
        "scalars": pd.concat(scalars),
        "evaluations": pd.concat(held),
    }
    tables |= {
        "events": pd.DataFrame(events),
        "event_families": FAMILIES.assign(alpha=0.05, measure="participation_ratio"),
    }
    tests = series_of(names, layers=3).assign(detector="d", null="ar_sieve", calibrated=True)
    return tables | {"series_tests": tests}


def analysis_of(name: str) -> Analysis:
    found = registry.resolve("analysis", name)
    assert isinstance(found, Analysis) and found.name == name and (found.__doc__ or "").strip()
    return found


@pytest.mark.parametrize("name", NAMES)
def test_nothing_in_nothing_out(name: str) -> None:
    found = analysis_of(name)
    tables = {"trials": trials(("mlp_a",), 1)} if found.per == "trial" else {}
    out = found(given(tables, found.reads, "mlp_a/digits/0" if found.per == "trial" else None))
    assert {t.name for t in found.writes} == set(out) and all(t.num_rows == 0 for t in out.values())


@pytest.mark.slow
def test_the_whole_chain_runs_in_order_and_is_the_same_twice(sweep: dict[str, pd.DataFrame]) -> None:
    """Each analysis reads what the ones before it wrote; a second pass over everything gives the same rows."""
    chain = (
        "convergence", "convergence_tests", "critical_periods", "coordination_tests", "growth", "growth_regression",
        "taxonomy", "event_windows", "event_phases", "event_layers", "investigation", "capabilities", "timing",
    )  # fmt: skip
    assert set(chain) == set(NAMES)
    first, second = (analysed(sweep, chain, QUICK) for _ in range(2))
    for table in first:
        pd.testing.assert_frame_equal(first[table], second[table])
    written = {t.name for n in NAMES for t in analysis_of(n).writes}
    empty = {n for n in written if first[n].empty}
    assert empty <= {"critical_periods", "growth_regression", "critical_ranking"}, empty
    assert (first["investigations"]["phenomenon"] == "discrete").all()  # three bursts, none of them early
    assert first["event_phases"].query("grouping == 'all'")["n"].sum() == len(sweep["events"])
