"""Events are counted once each, beside nulls; the loss is read where they were; one late event flips the verdicts."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from phase1_frames import EVERY, STEPS, given, trials
from test_taxonomy import FAMILIES, event, series_of

from ndt_ray.analysis.api import AnalysisInput, Partition
from ndt_ray.analysis.events.coupling import CLAIM, loss_coupling_table, strongest_early
from ndt_ray.analysis.events.phases import event_phases, timing_verdicts, two_phases
from ndt_ray.analysis.events.windows import event_windows, published_loss_change

GRID = np.arange(0, STEPS + 1, EVERY)
T = "mlp_a/digits/0"


def windows(layers: dict[str, np.ndarray], events: list[dict[str, object]], loss: np.ndarray | None) -> pd.DataFrame:
    """The table for one trial with these layers (one value a grid step) and events."""
    rows = pd.concat(
        pd.DataFrame(
            {"trial_id": T, "step": GRID, "layer": n, "layer_index": i, "view": "units", "participation_ratio": v}
        )
        for i, (n, v) in enumerate(layers.items())
    )
    tables = {
        "trials": trials(("mlp_a",), 1),
        "events": pd.DataFrame(events),
        "event_families": FAMILIES,
        "measurements": rows,
    }
    if loss is not None:
        tables["scalars"] = pd.DataFrame({"trial_id": T, "step": GRID, "probe_loss": loss})
    arrow = {n: pa.Table.from_pandas(tables[n]) if n in tables else pa.table({}) for n in event_windows.reads}
    return event_windows(AnalysisInput("planted", Partition(T), arrow))["event_windows"].to_pandas()


def test_a_step_is_seen_before_during_and_after_and_layers_that_move_with_it_are_counted() -> None:
    rng = np.random.default_rng(0)
    jump = np.where(GRID >= 1000, 5.0, 0.0)
    layers = {f"l{i}": 10 + (jump if i in (0, 2) else 0) + rng.normal(0, 0.02, len(GRID)) for i in range(4)}
    falling = 2 - GRID / 2000 - np.where(GRID >= 1000, 0.5, 0)
    (row,) = windows(layers, [event(T, 0.495, 0.5, 0, 10.0)], falling).to_dict("records")
    assert (row["step_before"], row["step_after"]) == (990, 1000) and row["change"] == pytest.approx(5, abs=0.2)
    assert row["n_layers"] == 3 and row["n_coordinated"] == 1 and json.loads(row["top_layers"])[0] == "l2"
    assert row["coordinated_expected"] < 0.2
    assert row["loss_change"] == pytest.approx(-0.505) and row["loss_expected"] == pytest.approx(-0.005)
    assert row["loss_fell_expected"] == 1.0  # it fell all the time: that it fell here proves nothing


def test_a_wide_event_is_bracketed_by_its_width() -> None:
    values = 10 + 5 / (1 + np.exp(-(GRID - 1000) / 50))
    wide = event(T, 0.495, 0.5, 0, 200.0) | {"step_location": 1000.0}
    (row,) = windows({"l0": values}, [wide], None).to_dict("records")
    assert (row["step_before"], row["step_after"]) == (990, 1100) or row["step_before"] <= 900 < 1100 <= row[
        "step_after"
    ]
    assert row["n_layers"] == 0 and np.isnan(row["loss_change"]) and row["top_layers"] == "[]"


def test_events_at_the_edges_without_rows_and_none_are_survived() -> None:
    flat = {"l0": np.full(len(GRID), 3.0), "l1": np.full(len(GRID), np.nan)}
    first, last = event(T, 0.0, 0.1, 0, 10.0), event(T, 0.995, 0.1, 0, 10.0)
    table = windows(flat, [first, last, event(T, 0.3, 0.1, 9, 10.0)], np.ones(len(GRID)))
    assert len(table) == 3 and table["before"].isna().tolist() == [False, False, True]
    tables = {n: pa.table({}) for n in event_windows.reads} | {"trials": pa.Table.from_pandas(trials(("mlp_a",), 1))}
    assert event_windows(AnalysisInput("planted", Partition(T), tables))["event_windows"].num_rows == 0


def test_the_founding_lookup_reads_a_fifth_of_the_index() -> None:
    loss = np.arange(400.0)[::-1]
    found = published_loss_change([0, 14, 15, 20, 399], loss)
    assert np.isnan(found[:3]).tolist() == [True, True, False] and found[3] == -4 and found[4] == -4


def sweep(late: bool) -> dict[str, pd.DataFrame]:
    names = trials(("mlp_a", "cnn_b"), 3)
    rows = [event(t, p, 0.1, i, 10.0) for t in names["trial_id"] for i, p in enumerate((0.02, 0.05, 0.3))]
    if late:
        rows.append(event(names["trial_id"][0], 0.9, 0.1, 0, 10.0))
    speeds = names[["trial_id"]].assign(mode="default", velocity_ratio=[4.0, 5, 6, 0.9, 1, 1.1])
    tables = {"trials": names, "events": pd.DataFrame(rows), "event_families": FAMILIES.assign(alpha=0.05)}
    return tables | {"series_tests": series_of(names).assign(detector="d", null="ar_sieve"), "critical_series": speeds}


@pytest.mark.parametrize("late", [False, True])
def test_phases_sum_and_one_planted_late_event_flips_the_verdicts(late: bool) -> None:
    out = {n: t.to_pandas() for n, t in event_phases(given(sweep(late), event_phases.reads)).items()}
    phases = out["event_phases"].set_index(["grouping", "group", "phase_bin"])
    assert phases.loc[("all", "all"), "n"].to_dict() == {"early": 12, "mid": 6, "late": int(late)}
    assert phases.groupby(["grouping", "group"])["percent"].sum().round(9).eq(100).all()
    assert phases.loc[("all", "all"), "null_n"].sum() == pytest.approx(0.05 * (18 + late))
    assert (phases.loc[("model", "cnn_b"), "n_series"] == 15).all()
    verdicts = out["phase_verdicts"].set_index(["claim", "grouping", "group"])["verdict"]
    assert verdicts[("initialisation_escape", "all", "all")] == ("not_supported" if late else "supported")
    assert verdicts[("late_capability", "all", "all")] == ("not_excluded" if late else "not_supported")
    assert verdicts[("initialisation_escape", "model", "cnn_b")] == "supported"
    assert verdicts[("two_phases", "family", "mlp")] == "supported"
    assert verdicts[("two_phases", "family", "cnn")] == "undecided"
    ranks = out["phase_verdicts"].query("claim == 'early_share_rank'").set_index("group")["value"]
    assert ranks.to_dict() == ({"cnn": 1.0, "mlp": 2.0} if late else {"cnn": 1.0, "mlp": 1.0})


def test_no_events_give_counts_of_zero_and_no_verdict() -> None:
    tables = sweep(False) | {"events": pd.DataFrame()}
    out = {n: t.to_pandas() for n, t in event_phases(given(tables, event_phases.reads)).items()}
    assert out["event_phases"]["n"].sum() == 0 and out["event_phases"]["percent"].isna().all()
    assert set(out["phase_verdicts"].query("claim != 'two_phases'")["verdict"]) == {"no_events"}
    assert all(t.num_rows == 0 for t in event_phases(given({}, event_phases.reads)).values())
    assert timing_verdicts(pd.DataFrame(columns=["trial_id", "phase_bin"]))[0]["verdict"] == "no_events"


def test_one_trial_decides_nothing_about_two_phases() -> None:
    one = pd.DataFrame({"trial_id": ["t"], "velocity_ratio": [9.0]})
    assert two_phases(one)["verdict"] == "undecided" and two_phases(one)["value"] == pytest.approx(9)
    assert two_phases(one.iloc[:0])["verdict"] == "undecided"


def coupled(early: float, mid: float, n: int, rng: np.random.Generator, layers: int = 1) -> pd.DataFrame:
    """Three early and three mid events a trial, each in `layers` layers; the loss falls over them so often."""
    rows = []
    for i in range(n):
        for phase, share in (("early", early), ("mid", mid), ("late", 0.0)):
            for _ in range(3):
                change = -1.0 if rng.random() < share else 1.0
                rows += layers * [{"trial_id": f"t{i}", "phase_bin": phase, "loss_change": change}]
    return pd.DataFrame(rows).assign(loss_fell_expected=0.5)


def test_coupling_with_the_loss_is_called_strongest_early_where_it_is() -> None:
    rng = np.random.default_rng(2)
    found = strongest_early(coupled(1.0, 0.2, 8, rng))
    assert found["verdict"] == "supported" and found["p"] == found["p_attainable"] == 2 / 2**8
    assert found["value"] == pytest.approx(0.8, abs=0.15) and found["lo"] < found["value"] < found["hi"]
    assert (found["n_events"], found["n_trials"]) == (48, 8)  # late ones are not asked
    assert strongest_early(coupled(0.2, 1.0, 8, rng))["verdict"] == "not_supported"
    assert strongest_early(coupled(1.0, 0.0, 4, rng))["verdict"] == "undecided"  # four trials cannot say


def test_a_loss_that_falls_early_anyway_couples_nothing() -> None:
    rows = coupled(1.0, 0.0, 8, np.random.default_rng(2))
    falling = np.where(rows["phase_bin"] == "early", 1.0, 0.0)
    found = strongest_early(rows.assign(loss_fell_expected=falling))
    assert found["value"] == 0 and found["verdict"] == "undecided"
    raw = strongest_early(rows.assign(loss_fell_expected=np.nan))
    assert raw["value"] == 1 and "not read" in raw["rule"] and "beyond" in found["rule"]


@pytest.mark.slow
@pytest.mark.parametrize("layers", [1, 5])
def test_without_a_difference_coupling_keeps_its_level_however_many_layers_share_a_window(layers: int) -> None:
    rng = np.random.default_rng(3)
    said = [strongest_early(coupled(0.6, 0.6, 7, rng, layers))["verdict"] for _ in range(200)]
    assert 200 - said.count("undecided") <= 200 * 0.05 + 3 * np.sqrt(200 * 0.05 * 0.95)


def test_coupling_without_a_loss_or_one_of_the_phases_is_not_judged() -> None:
    rows = coupled(1.0, 0.0, 8, np.random.default_rng(2))
    for none in (rows.assign(loss_change=np.nan), rows[rows["phase_bin"] != "mid"], rows[rows["trial_id"] == "t0"]):
        assert strongest_early(none)["verdict"] == "no_data" and np.isnan(strongest_early(none)["p"])
    out = event_phases(given(sweep(False), event_phases.reads))["phase_verdicts"].to_pandas().set_index("claim")
    assert set(out.loc[CLAIM, "verdict"]) == {"no_data"}


def test_the_loss_table_has_the_founding_columns() -> None:
    rows = pd.DataFrame(
        {"trial_id": "t", "phase_bin": ["early", "early", "late", None], "loss_change": [-1, 1, -1, 5.0]}
    )
    table = loss_coupling_table(rows).set_index("timing")
    assert table["num_jumps"].to_dict() == {"early": 2, "late": 1}
    assert table["loss_improving_fraction"].to_dict() == {"early": 0.5, "late": 1.0}
