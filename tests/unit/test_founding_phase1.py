"""The founding study's first-phase files: what stands in them is what stands in the tables, or why it does not."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mech_store import SWEEP, folder
from typer.testing import CliRunner

from ndt_ray.analysis.running.stored import analyze
from ndt_ray.cli import app
from ndt_ray.errors import SpecError
from ndt_ray.figures import founding_phase1 as phase1
from ndt_ray.figures import founding_phase3 as phase3
from ndt_ray.figures.album import Album
from ndt_ray.store.reader import open_store

SPEC = json.dumps({"measure": {"every": 5}, "train": {"optimizer": "adam"}, "checkpoint": {}})
RUNS = (("c0", "cnn_deep", 0), ("m0", "mlp_narrow", 0), ("m1", "mlp_narrow", 1))
PUBLISHED = [
    "step", "magnitude", "speed", "direction", "phase", "layer", "experiment", "arch_name", "dataset",
    "phase_category", "cluster",
]  # fmt: skip


def trials() -> pd.DataFrame:
    rows = [
        {"trial_id": t, "cell": f"{m}/mnist", "model": m, "data": "mnist", "seed": s, "control": "none", "steps": 2000,
         "n_parameters": 10, "optimizer": "adam", "spec": SPEC, "data_completeness": "subset", "n_train": 14788}
        for t, m, s in RUNS
    ]  # fmt: skip
    return pd.DataFrame([*rows, {**rows[0], "trial_id": "control", "control": "lr:0"}])


def convergence(mode: str, measure: str, step: int | None = 10) -> dict[str, pd.DataFrame]:
    layers = [
        {"trial_id": t, "layer": f"l{i}", "layer_index": i, "view": "units", "measure": measure, "mode": mode,
         "step": None if (t, i) == ("m1", 1) else step}
        for t in ("c0", "m0", "m1", "control") for i in range(3)
    ]  # fmt: skip
    labels = {"c0": "bottom_up", "m0": "unclear", "m1": "bottom_up", "control": "top_down"}
    orders = [
        {"trial_id": t, "measure": measure, "mode": mode, "n_layers": 3, "n_settled": 3, "rho": np.nan, "p": 0.25,
         "null_bottom_up": 0.125, "label": label}
        for t, label in labels.items()
    ]  # fmt: skip
    return {"convergence": pd.DataFrame(layers), "convergence_order": pd.DataFrame(orders)}


def coordination(mode: str, measure: str) -> dict[str, pd.DataFrame]:
    rows = [
        {"trial_id": t, "measure": measure, "mode": mode, "n_layers": 3, "n": 40, "critical": 12, "transitions": 9 + k,
         "share_mean": 0.1, "share_max": 0.5, "coordinated": 0.125, "coordinated_shifted": 0.0625, "loss_drops": 0.75,
         "loss_drops_base": 0.5, "strong": k > 0}
        for k, t in enumerate(("c0", "m0", "m1"))
    ]  # fmt: skip
    series = [
        {"trial_id": t, "measure": measure, "mode": mode, "layer": f"l{i}", "n_periods": i, "null_periods": 0.5}
        for t in ("c0", "m0", "m1") for i in range(3)
    ]  # fmt: skip
    return {"coordination": pd.DataFrame(rows), "critical_series": pd.DataFrame(series)}


def jumps(mode: str, measure: str, n: int = 6) -> pd.DataFrame:
    rows = [
        {"trial_id": t, "layer": f"l{i % 2}", "layer_index": i % 2, "view": "units", "measure": measure, "mode": mode,
         "detector": "difference_z", "counted": True, "index": 30 * i + 5, "step_before": 5 * (30 * i + 5),
         "step_after": 5 * (30 * i + 6), "phase": (30 * i + 5) / 400, "phase_bin": "early", "magnitude": 2.0 ** -i,
         "relative_magnitude": 0.1, "speed": 0.25, "direction": "increase", "z": 3.0}
        for t in ("c0", "m0") for i in range(n)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def types(rows: pd.DataFrame) -> pd.DataFrame:
    """Types 1 to 5 and 1 again, by place in the run."""
    key = ["trial_id", "layer", "layer_index", "view", "measure", "mode", "step_before"]
    return rows[key].assign(type=rows.groupby("trial_id").cumcount() % 5 + 1, label=None)


def tables(**planted_ones: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {name: pd.DataFrame() for name in phase1.TABLES} | {"trials": trials()} | planted_ones


def written(folder: Path, **planted_ones: pd.DataFrame) -> Album:
    album = Album(folder, sweep="s")
    phase1.write(album, tables(**planted_ones))
    return album


def csv(path: Path) -> pd.DataFrame:
    return pd.read_csv(path)


def test_convergence_has_the_published_keys_a_run(tmp_path: Path) -> None:
    written(tmp_path, **convergence("default", "participation_ratio"))
    found = json.loads((tmp_path / phase1.CONVERGENCE).read_text(), parse_constant=pytest.fail)
    assert [(e["experiment_name"], e["seed"]) for e in found] == [
        ("cnn_deep_mnist", 0), ("mlp_narrow_mnist", 0), ("mlp_narrow_mnist", 1)
    ]  # fmt: skip
    assert found[0]["stabilization_points"] == {"l0": 10, "l1": 10, "l2": 10}
    assert found[0]["convergence_correlation"] is None and found[0]["convergence_p_value"] == 0.25
    assert [e["convergence_pattern"] for e in found] == ["bottom-up", "unclear", "bottom-up"]
    assert (found[0]["arch_name"], found[0]["dataset_name"], found[0]["total_layers"]) == ("cnn_deep", "mnist", 3)
    assert found[2]["stabilization_points"]["l1"] is None and found[2]["num_stabilized_layers"] == 2
    assert {e["data_completeness"] for e in found} == {"subset"}
    summary = (tmp_path / phase1.SUMMARY).read_text()
    assert "**Data: mnist (14,788 training samples) is only a subset of what was published" in summary
    assert "| mlp | 2 | 1 | 1 | 0.25 |" in summary and "3 runs: 2 experiments of 2 architectures" in summary


def test_published_results_keep_the_name_and_correct_ones_stand_beside_them(tmp_path: Path) -> None:
    both = {
        name: pd.concat([a, b])
        for (name, a), b in zip(
            convergence("original", "stable_rank", 0).items(),
            convergence("default", "participation_ratio").values(),
            strict=True,
        )
    }
    written(tmp_path, **both)
    as_published = json.loads((tmp_path / phase1.CONVERGENCE).read_text())
    assert as_published[2]["stabilization_points"] == {"l0": 0, "l1": -1, "l2": 0}
    assert as_published[2]["num_stabilized_layers"] == 2
    corrected = json.loads((tmp_path / "results/step1_1/convergence_analysis_summary_corrected.json").read_text())
    assert corrected[2]["stabilization_points"] == {"l0": 10, "l1": None, "l2": 10}


def test_of_several_measures_one_stands_for_a_run(tmp_path: Path) -> None:
    parts = [convergence("default", m) for m in ("energy_90", "participation_ratio", "stable_rank")]
    written(tmp_path, **{name: pd.concat([p[name] for p in parts]) for name in parts[0]})
    found = json.loads((tmp_path / phase1.CONVERGENCE).read_text())
    assert [e["measure"] for e in found] == ["participation_ratio"] * 3


def test_critical_periods_have_the_published_columns_and_their_bases(tmp_path: Path) -> None:
    written(tmp_path, **coordination("default", "participation_ratio"))
    table = csv(tmp_path / phase1.CRITICAL)
    assert list(table)[:9] == [
        "experiment", "arch_name", "dataset", "total_critical_steps", "total_transitions", "num_coordinated_periods",
        "max_coordination", "mean_coordination", "loss_correlation",
    ]  # fmt: skip
    row = table.iloc[1]
    assert (row["experiment"], row["total_critical_steps"], row["total_transitions"]) == ("mlp_narrow_mnist", 12, 10)
    assert (row["num_coordinated_periods"], row["num_coordinated_shifted"]) == (5, 2.5)
    assert (row["loss_correlation"], row["loss_drops_base"]) == (0.75, 0.5)
    assert (row["calibrated_periods"], row["calibrated_periods_null"]) == (3, 1.5)
    assert "| mlp | 2 | 12.0 | 10.5 | 0.1 | 0.75 | 0.5 | 3.0 | 1.5 | 2 |" in (tmp_path / phase1.SUMMARY).read_text()


def test_published_jumps_have_the_published_columns_and_the_founding_plan(tmp_path: Path) -> None:
    rows = jumps("original", "stable_rank")
    mixed = pd.concat([rows, jumps("default", "participation_ratio", 2)], ignore_index=True)
    album = written(tmp_path, jumps=mixed, event_types=types(rows))
    table = csv(tmp_path / phase1.JUMPS)
    assert list(table) == PUBLISHED and len(table) == len(rows)
    own = table[table["experiment"] == "cnn_deep_mnist"].sort_values("step")
    assert own["step"].tolist() == [5, 35, 65, 95, 125, 155] and own["cluster"].tolist() == [0, 1, 2, 3, 4, 0]
    assert own["phase_category"].tolist() == ["early"] * 5 + ["mid"]
    corrected = csv(tmp_path / "results/step1_2/all_jumps_detailed_corrected.csv")
    assert corrected["step"].tolist() == [25, 175, 25, 175] and list(corrected)[: len(PUBLISHED)] == PUBLISHED
    plan = json.loads((tmp_path / phase1.PLAN).read_text())["cnn_deep_mnist"]
    # one of types 3, 4 and 5 each: "early" falls back on the two earliest, "late" on the two latest
    assert [j["step"] for j in plan["jumps"]] == [5, 35, 65, 125, 155]
    assert plan["data_completeness"] == "subset"
    assert plan["jumps"][0]["checkpoints"] == [0, 5, 15] and plan["checkpoint_steps"][:4] == [0, 5, 15, 25]
    in_steps = json.loads((tmp_path / "checkpoint_plan_corrected.json").read_text())["cnn_deep_mnist"]
    assert [j["step"] for j in in_steps["jumps"]] == [30, 180] and in_steps["data_completeness"] == "subset"
    assert "measurement indices" in next(e.caption for e in album.entries if e.path.name == phase1.PLAN)


def test_without_types_published_jumps_have_no_cluster_and_the_plan_says_what_it_needs(tmp_path: Path) -> None:
    album = written(tmp_path, jumps=jumps("original", "stable_rank"))
    assert csv(tmp_path / phase1.JUMPS)["cluster"].isna().all()
    assert {s.what: s.reason for s in album.skips}[phase1.PLAN] == "not computed yet: `ndt analyze s taxonomy`"


def test_events_are_the_jumps_where_they_were_sought(tmp_path: Path) -> None:
    events = jumps("default", "participation_ratio", 2).assign(
        family="f", null="ar_sieve", significant=[True, False, True, False], q=[0.01, 0.9, 0.02, 0.9], size=0.5,
        width=4.0, statistic=5.0, p_event=0.001, relative_size=0.1,
    )  # fmt: skip
    families = pd.DataFrame([{"family": "f", "primary": True, "null_events": 0.1, "n_events": 2}])
    types_ = types(events).assign(mode="default")
    album = written(tmp_path, events=events, event_families=families, event_types=types_)
    table = csv(tmp_path / phase1.JUMPS)
    assert len(table) == 2 and table["q"].tolist() == [0.01, 0.02] and table["trial_id"].tolist() == ["c0", "m0"]
    assert table["step"].tolist() == [25, 25] and table["cluster"].tolist() == [0, 0]
    plan = json.loads((tmp_path / phase1.PLAN).read_text())
    assert set(plan) == {"cnn_deep_mnist", "mlp_narrow_mnist"}
    assert {s.what for s in album.skips} == {phase1.CONVERGENCE, phase1.CRITICAL}
    summary = (tmp_path / phase1.SUMMARY).read_text()
    assert (
        "- `results/step1_3/critical_periods_detailed.csv`: not computed yet: `ndt analyze s critical_periods`"
        in summary
    )


def test_nothing_computed_is_nothing_written_and_says_what_to_run(tmp_path: Path) -> None:
    album = written(tmp_path / "f")
    assert not album.files and not (tmp_path / "f").exists()
    assert {s.what for s in album.skips} == {
        phase1.CONVERGENCE, phase1.JUMPS, phase1.CRITICAL, phase1.PLAN, phase1.SUMMARY
    }  # fmt: skip
    assert "`ndt analyze s convergence`" in album.skips[0].reason
    empty: Any = {name: pd.DataFrame() for name in phase1.TABLES}
    phase1.write(album, empty)
    assert not album.files


def mechanisms(n: int = 6) -> pd.DataFrame:
    """Rows of `event_mechanisms`: new kinds of features follow the size of an event."""
    rows = [
        {"trial_id": t, "cell": "c", "arch_type": kind, "layer": "l0", "jump_step": 10 * i, "jump_magnitude": 0.1 * i,
         "num_jumps": n, "new_feature_types_after": i // 2, "selectivity_before_jump": 0.2,
         "selectivity_after_jump": 0.3, "selectivity_increase": 0.1, "compositional_depth": 2.0 + i}
        for t, kind in (("m1", "mlp"), ("m0", "mlp"), ("c0", "cnn"), ("control", "cnn")) for i in reversed(range(n))
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_the_third_phases_table_has_the_plans_names_and_its_lines_run_on_it(tmp_path: Path) -> None:
    album = Album(tmp_path)
    phase3.write(album, {"trials": trials(), "event_mechanisms": mechanisms()})
    results_df = csv(tmp_path / phase3.RESULTS)
    assert list(results_df)[:10] == list(phase3.COLUMNS) and len(results_df) == 18  # control lanes are left out
    assert results_df["experiment_id"].unique().tolist() == ["cnn_deep_mnist", "mlp_narrow_mnist"]
    assert results_df["jump_step"].tolist()[:6] == [0, 10, 20, 30, 40, 50]
    assert results_df["jump_magnitude"].corr(results_df["new_feature_types_after"]) > 0.9
    gain = results_df["selectivity_after_jump"] - results_df["selectivity_before_jump"]
    np.testing.assert_allclose(gain, results_df["selectivity_increase"])
    assert len(results_df[results_df["arch_type"] == "mlp"]) == 12
    nothing = Album(tmp_path / "none", sweep="s")
    phase3.write(nothing, {"trials": trials(), "event_mechanisms": pd.DataFrame()})
    assert not nothing.files and "`ndt analyze s hypotheses`" in nothing.skips[0].reason


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(folder(), store)
    analyze(open_store(store), SWEEP, "convergence")
    out = tmp_path / "founding"
    arguments = ["export", "founding", "--store", str(store), "-o", str(out)]
    done = CliRunner().invoke(app(), [*arguments, "--sweep", SWEEP])
    assert done.exit_code == 0, done.output
    assert f"! {phase1.CRITICAL}: not computed yet: `ndt analyze {SWEEP} critical_periods`" in done.stderr
    assert f"! {phase3.RESULTS}: no significant event, or not computed yet: `ndt analyze" in done.stderr
    assert done.stdout.split() == [str(out / phase1.CONVERGENCE), str(out / phase1.SUMMARY)]
    table = open_store(store).table("convergence", SWEEP).query("measure == 'participation_ratio'")
    for entry in json.loads((out / phase1.CONVERGENCE).read_text()):
        own = table[table["trial_id"] == entry["trial_id"]].set_index("layer")["step"]
        assert entry["stabilization_points"] == {k: None if pd.isna(v) else v for k, v in own.items()}
    missing = CliRunner().invoke(app(), arguments)
    assert isinstance(missing.exception, SpecError)
