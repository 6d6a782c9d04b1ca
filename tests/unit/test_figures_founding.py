"""The founding plan's files: counts, shares and the loss follow the rows, and one planted jump changes them."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ndt_ray.errors import SpecError
from ndt_ray.figures import founding
from ndt_ray.figures import founding_tables as founded
from ndt_ray.figures.album import Album

MODELS = {"t1": "transformer_deep", "c1": "cnn_deep", "m1": "mlp_narrow"}


def tables(**planted: Any) -> dict[str, pd.DataFrame]:
    """A published sweep: 10 jumps of a transformer (8 early, 2 mid), 4 of a CNN, 2 of an MLP."""
    columns = {"data": "mnist", "steps": 2000, "control": "none"}
    trials = pd.DataFrame([{"trial_id": t, "cell": f"{m}/mnist", "model": m, **columns} for t, m in MODELS.items()])
    phases = {"t1": [0.01 * k for k in range(1, 9)] + [0.2, 0.3], "c1": [0.01] * 4, "m1": [0.02, 0.03]}
    jumps = pd.DataFrame(
        [
            {
                "trial_id": t, "layer": f"l{i % 2}", "layer_index": i % 2, "view": "units", "measure": "stable_rank",
                "mode": "original", "detector": "difference_z", "counted": True, "index": int(400 * p) + i,
                "step_before": min(2000, int(5 * 400 * p) + i), "step_after": int(5 * 400 * p) + 5 + i, "phase": p,
                "phase_bin": "early" if p <= 0.1 else "mid", "magnitude": 1e-11 * (i + 1), "speed": 1e-12,
                "relative_magnitude": 1e-11, "direction": "increase", "z": 3.0,
            }
            for t, own in phases.items() for i, p in enumerate(own)
        ]
    )  # fmt: skip
    windows = jumps[["trial_id", "layer", "layer_index", "view", "measure", "step_before", "phase_bin"]].assign(
        mode="original", loss_change=np.where(np.arange(len(jumps)) % 4 < 3, -0.1, 0.1), loss_expected=np.nan,
        loss_fell_expected=np.nan, n_layers=0, n_coordinated=np.nan, coordinated_expected=np.nan,
    )  # fmt: skip
    rule = {"mode": "original", "measure": "stable_rank", "detector": "difference_z"}
    rule |= {f"null_{f}_{k}": v for f in ("white", "ar1") for k, v in (("mean", 5.0), ("sd", 1.0))}
    found = (("t1", 10), ("c1", 4), ("m1", 2))
    counts = pd.DataFrame([{"trial_id": t, "observed": n, "merged": n, **rule} for t, n in found])
    empty = {name: pd.DataFrame() for name in founded.TABLES}
    return empty | {"trials": trials, "jumps": jumps, "event_windows": windows, "jump_counts": counts} | planted


def key(found: founded.Jumps | None) -> pd.DataFrame:
    assert found is not None
    return founded.key_table(found).set_index("quantity")


def test_the_key_table_is_computed_and_stands_beside_noise() -> None:
    made = key(founded.read(tables()))
    assert made.loc["total jumps"].to_dict() == {"transformer": 10, "cnn": 4, "mlp": 2}
    assert made.loc["early %"].to_dict() == {"transformer": 80.0, "cnn": 100.0, "mlp": 100.0}
    assert made.loc["rule z > 2: expected on white noise", "cnn"] == 5.0
    assert made.loc["rule z > 2: against AR(1) noise"].to_dict() == {
        "transformer": "above",
        "cnn": "within",
        "mlp": "below",
    }
    assert made.loc["jumps with q <= .05", "mlp"] == "not tested" and made.loc["late % in true steps", "cnn"] == 0
    changes = tables()["event_windows"].query("trial_id == 't1' and phase_bin == 'early'")["loss_change"]
    assert made.loc["loss improvement (early) %", "transformer"] == round(100 * (changes < 0).mean(), 1)


def test_what_is_expected_nearby_is_the_share_of_nearby_windows_not_of_events() -> None:
    # On average the loss falls nearby, at every event, but in 55 % of the windows there.
    windows = tables()["event_windows"].assign(loss_expected=-0.2, loss_fell_expected=0.55)
    windows.loc[0, ["loss_expected", "loss_fell_expected"]] = np.nan  # nothing nearby to compare the first with
    made = key(founded.read(tables(event_windows=windows)))
    assert made.loc["expected nearby %"].to_dict() == {"transformer": 55.0, "cnn": 55.0, "mlp": 55.0}
    assert key(founded.read(tables())).loc["expected nearby %"].isna().all()


def test_one_planted_late_jump_changes_what_is_said() -> None:
    rows = tables()["jumps"]
    late = rows.iloc[[0]].assign(phase=0.9, phase_bin="late", step_before=1800, index=360)
    made = key(founded.read(tables(jumps=pd.concat([rows, late]))))
    assert made.loc["late %", "transformer"] == round(100 / 11, 1) and made.loc["total jumps", "transformer"] == 11


def test_events_are_preferred_and_carry_their_q() -> None:
    plain = tables()
    events = plain["jumps"].iloc[:3].assign(
        family="f", detector="max_t", null="ar_sieve", significant=[True, True, False], q=[0.01, 0.2, 0.9], size=0.5,
        width=4.0, statistic=5.0, p_event=0.001, relative_size=0.1,
    )  # fmt: skip
    families = pd.DataFrame(
        [{"family": "f", "primary": True, "detector": "max_t", "null": "ar_sieve", "null_events": 0.1}]
    )
    found = founded.read(plain | {"events": events, "event_families": families, "jumps": pd.DataFrame()})
    assert found is not None and found.mode == "events" and found.null_events == 0.1
    made = key(found)
    assert made.loc["total jumps", "transformer"] == 2 and made.loc["jumps with q <= .05", "transformer"] == 1


@pytest.mark.slow
def test_all_files_of_the_plan_are_written_or_their_absence_is_explained(tmp_path: Path) -> None:
    album = Album(tmp_path, sweep="original")
    founding.write(album, tables())
    names = {p.relative_to(tmp_path).as_posix() for p in album.files}
    assert names == {
        "phase2_week3_4/transformer_jump_overview.png", "phase2_week3_4/transformer_early_vs_late.png",
        "phase2_week3_4/transformer_analysis_results.json", "phase2_week3_4/transformer_jumps_detailed.csv",
        "phase2_week5_6/cnn_mlp_comprehensive_comparison.png", "phase2_week5_6/cnn_mlp_layer_analysis.png",
        "phase2_week5_6/cnn_mlp_comparison_results.json", "phase2_week5_6/cnn_representative_jumps.csv",
        "phase2_week5_6/mlp_representative_jumps.csv", "phase2_week7_8/early_late_comprehensive.png",
        "phase2_week7_8/early_late_by_architecture.png", "phase2_week7_8/early_late_results.json",
        "phase2_week7_8/loss_correlations.csv", "key_table.csv", "key_table.md",
    }  # fmt: skip
    assert {s.what.rpartition("/")[2]: s.reason for s in album.skips} == {
        "transformer_coordination_detailed.csv": "no table coordination: `ndt analyze original critical_periods`",
        "transformer_layer_kinds.csv": "no table event_kinds: `ndt analyze original event_layers`",
    }
    with open(tmp_path / "phase2_week7_8/loss_correlations.csv") as file:
        rows = {(r["experiment"], r["timing"]): r for r in csv.DictReader(file)}
    assert rows["transformer_deep/mnist", "early"]["num_jumps"] == "8"
    said = json.loads((tmp_path / "phase2_week5_6/cnn_mlp_comparison_results.json").read_text())
    assert said["data_sets"] == [{"data": "mnist", "completeness": None, "n_train": []}]
    assert "Data: mnist is of unknown completeness." in (tmp_path / "key_table.md").read_text()
    assert {r["experiment"]: r["verdict_white"] for r in said["beside_noise"]} == {
        "cnn_deep/mnist": "within", "mlp_narrow/mnist": "below",
    }  # fmt: skip


def test_only_the_experiments_named_are_counted_and_others_are_refused(tmp_path: Path) -> None:
    found = founded.read(tables(), ["cnn_deep/mnist"])
    assert found is not None and set(found.rows["family"]) == {"cnn"} and list(key(found).columns) == ["cnn"]
    with pytest.raises(SpecError, match="no experiment 'cnn_deep/mnits'.*cnn_deep/mnist"):
        founded.read(tables(), ["cnn_deep/mnits"])
    album = Album(tmp_path, sweep="s")
    founding.write(album, tables(jumps=pd.DataFrame(), jump_counts=pd.DataFrame()))
    assert not album.files and "neither jumps nor events" in album.skips[0].reason
    assert "`ndt analyze s jumps events " in album.skips[0].reason


def test_jumps_by_kind_of_layer_stand_beside_their_null(tmp_path: Path) -> None:
    row = {"mode": "original", "layer_kind": "linear2", "n": 8, "null_n": 4.5, "to_linear1": 4.0}
    rows = [row | {"cell": f"{m}/mnist", "model": m, "data": "mnist"} for m in MODELS.values()]
    kinds = pd.DataFrame([*rows, rows[0] | {"mode": "default", "n": 1}])
    album = Album(tmp_path, limit=1)
    founding.write(album, tables(event_kinds=kinds), ["transformer_deep/mnist"])
    table = pd.read_csv(tmp_path / "phase2_week3_4/transformer_layer_kinds.csv")
    assert table[["experiment", "n", "null_n", "to_linear1"]].to_numpy().tolist() == [
        ["transformer_deep/mnist", 8, 4.5, 4.0]
    ]
    said = json.loads((tmp_path / "phase2_week3_4/transformer_analysis_results.json").read_text())
    assert [(r["layer_kind"], r["n"], r["null_n"]) for r in said["by_kind_of_layer"]] == [("linear2", 8, 4.5)]


def test_what_is_known_of_the_data_stands_beside_the_numbers(tmp_path: Path) -> None:
    trials = tables()["trials"].assign(data_completeness=["surrogate", "complete", "complete"], n_train=60000)
    found = founded.read(tables(trials=trials), ["transformer_deep/mnist"])
    assert found is not None and [(d.data, d.completeness) for d in found.data] == [("mnist", "surrogate")]
    assert founded.said(found.data) == (
        "**Data: mnist (60,000 training samples) is made of surrogate inputs, which stand in for the published ones; "
        "no claim extends to the whole of it.**\n\n"
    )
    unknown = founded.read(tables())
    assert unknown is not None and founded.said(unknown.data) == "Data: mnist is of unknown completeness.\n\n"


def test_published_jumps_are_called_rounding_only_as_far_as_they_are() -> None:
    found = founded.read(tables())
    assert found is not None and "16 of 16 are within rounding (1e-06 of the value)" in found.words
    rows = tables()["jumps"]
    rows.loc[:2, "relative_magnitude"] = 0.1
    larger = founded.read(tables(jumps=rows))
    assert larger is not None and "13 of 16 are within" in larger.words
    unknown = founded.read(tables(jumps=rows.drop(columns="relative_magnitude")))
    assert unknown is not None and unknown.words == "jumps as published, z > 2"
