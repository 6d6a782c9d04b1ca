"""The battery as analyses of a stored sweep: names, chance beside values, and what bad input gives."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from mech_store import SWEEP, folder, looked_at, trial_of

from ndt_ray import registry
from ndt_ray.analysis.api import AnalysisInput, Partition, conform
from ndt_ray.analysis.events.tables import EVENT_FAMILIES, EVENTS
from ndt_ray.analysis.mechanisms import battery, degeneracy, over_time
from ndt_ray.analysis.mechanisms.context import Contexts
from ndt_ray.analysis.running.runner import run_together
from ndt_ray.analysis.running.stored import StoredSweep, analyze
from ndt_ray.models.describe import EXAMPLE_BATCH
from ndt_ray.spec import Trial
from ndt_ray.store.outputs import write_output
from ndt_ray.store.reader import Store, open_store
from ndt_ray.store.schema import TABLES

PER_CHECKPOINT = (
    "attention", "head_ablation", "filters", "units", "unit_ablation", "collapse", "linear_probes",
    "intrinsic_dimension",
)  # fmt: skip
UNITS = 8


@pytest.fixture(scope="module")
def store() -> Store:
    return looked_at()


class Alone:
    """A trial that was never run: its initialisation is all there is."""

    def __init__(self, **spec: Any) -> None:
        self.trial = Trial.model_validate({"data": "digits", "train": {"steps": 10}, "measure": {"probe": 64}} | spec)

    def read(self, table: str, partition: Partition) -> pa.Table:
        return pa.Table.from_pylist([{"spec": self.trial.model_dump_json()}])

    def checkpoint(self, trial_id: str, step: int) -> Mapping[str, Any]:
        raise AssertionError


def at_start(name: str, **spec: Any) -> dict[str, pd.DataFrame]:
    """The tables of an analysis of an untrained network."""
    found = registry.resolve("analysis", name)
    given = AnalysisInput("s", Partition("t", 0), {}, Contexts(Alone(**spec)))
    return {name: table.to_pandas() for name, table in found(given).items()}


@pytest.mark.slow
def test_the_whole_battery_takes_one_forward_pass(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    plain = torch.nn.Module.__call__
    with open_store(shutil.copytree(folder(), tmp_path / "store")) as own:
        trial = trial_of(own, "transformer")

        def counted(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            if type(module).__name__ == "Transformer" and len(args[0]) > max(EXAMPLE_BATCH, 2 * UNITS):
                passes.append(len(args[0]))
            return plain(module, *args, **kwargs)

        monkeypatch.setattr(torch.nn.Module, "__call__", counted)
        names = [name for name in PER_CHECKPOINT if name not in ("head_ablation", "unit_ablation")]
        jobs: list[tuple[str, dict[str, int] | None]] = [(n, None) for n in names]
        jobs.append(("features", {"units": UNITS, "steps": 2}))  # made images pass in batches of units
        reports = run_together(jobs, StoredSweep(own, SWEEP), partitions=[Partition(trial, 40)])
        assert all(report.ok and report.done == 1 for report in reports)
        assert passes == [128]  # the confirm probe, once
        monkeypatch.undo()
        rows = own.table("attention_metrics")
        assert set(rows["layer"]) == {"transformer.layers.0.self_attn", "transformer.layers.1.self_attn"}
        assert set(rows["part"]) == {"*", "head 0", "head 1", "head 2", "head 3"}
        whole = rows[rows["part"] == "*"].set_index(["layer_index", "metric"])["value"]
        assert 0 < whole[1, "attention_entropy"] < np.log(16) and whole[1, "head_divergence"] > 0


def test_an_architecture_without_attention_says_so_and_the_rest_goes_on() -> None:
    (attention,) = at_start("attention", model="mlp_narrow").values()
    assert (
        attention[["layer", "flag"]].to_numpy().tolist() == [["*", "no_attention"]] and attention["value"].isna().all()
    )
    (ablated,) = at_start("head_ablation", model="mlp_narrow").values()
    assert ablated["flag"].tolist() == ["no_attention"]
    assert at_start("units", model="mlp_narrow")["unit_metrics"]["value"].notna().sum() > 40


def test_a_probe_smaller_than_the_classes_leaves_what_needs_no_classes() -> None:
    small = {"model": "mlp_narrow", "measure": {"probe": 6}}
    units = at_start("units", **small)["unit_metrics"].query("layer_index == 0").set_index("metric")
    assert units.loc["class_selectivity", "flag"] == "too_few_stimuli"
    assert pd.isna(units.loc["activation_sparsity", "flag"]) and units.loc["activation_sparsity", "value"] > 0
    (collapse,) = at_start("collapse", **small).values()
    by_metric = collapse.set_index("metric")
    assert by_metric.loc["nc1", "flag"] == "too_few_stimuli" and by_metric.loc["loss", "value"] > 1
    (probes,) = at_start("linear_probes", **small).values()
    assert set(probes["flag"]) == {"too_few_stimuli"} and probes["value"].isna().all()
    (dimension,) = at_start("intrinsic_dimension", **small).values()
    assert set(dimension["flag"]) == {"too_few_points"}


def test_chance_stands_beside_what_an_untrained_network_gives() -> None:
    """At the initialisation nothing is known of the classes, yet selectivity is far from 0."""
    filters = at_start("filters", model={"name": "cnn", "channels": [16, 24]})
    rows = filters["filter_metrics"].query("metric == 'filter_squared_cosine'")
    z = (rows["value"] - rows["chance"]) / rows["chance_sd"]
    assert len(z) == 3 and z.abs().max() < 4  # uniform weights, near enough to Gaussian ones
    assert filters["filter_similarity"]["n_filters"].tolist() == [16, 24, 10]
    oriented = filters["filter_metrics"].query("metric == 'orientation_selectivity' and part == '*'")
    assert oriented["layer_index"].tolist() == [0] and 0.01 < oriented["p"].item() <= 1
    flags = filters["filter_metrics"].query("metric == 'gabor_r2'")["flag"].tolist()
    assert flags == ["kernel_too_small"]
    (probes,) = at_start("linear_probes", model="mlp_narrow").values()
    assert (probes["chance"] < 0.15).all()


def test_small_kernels_get_no_gabor() -> None:
    found = at_start("filters", model={"name": "resnet18", "width": 8, "groups": 2}, data="digits")["filter_metrics"]
    assert (found.query("metric == 'gabor_r2'")["flag"] == "kernel_too_small").all()  # 3 x 3 on small images


def test_units_have_rows_of_their_own(store: Store) -> None:
    given = AnalysisInput("s", Partition(trial_of(store, "cnn"), 40), {}, Contexts(StoredSweep(store, SWEEP)))
    found = battery.unit_responses(given)["unit_values"].to_pandas()
    assert found.groupby("layer").size().to_dict() == {"conv_layers.0": 6, "conv_layers.3": 8, "fc": 10}
    assert set(found["state"]) <= {"dead", "live", "always_on"}
    live = found[found["state"] != "dead"]
    diverse = found.groupby("layer")["diversity"].max()
    assert diverse["fc"] <= 2 < diverse["conv_layers.0"]  # a map of positions has patterns, a unit is on or off
    assert (found.loc[found["state"] != "live", "diversity"] == 1).all() and live["diversity"].ge(1).all()
    assert live["best_class"].between(0, 9).all() and live["class_means"].map(len).eq(10).all()
    again = battery.unit_responses(given)["unit_values"].to_pandas()
    pd.testing.assert_frame_equal(found, again)  # shuffles are keyed by trial, step and layer


def test_similarity_is_one_with_itself_and_falls_with_time(store: Store) -> None:
    trial = trial_of(store, "mlp")
    tables = StoredSweep(store, SWEEP)
    read = {"checkpoints": tables.read("checkpoints", Partition(trial))}
    contexts = Contexts(tables)
    rows = over_time.similarity(AnalysisInput("s", Partition(trial), read, contexts))["similarity_metrics"].to_pandas()
    cka = rows.query("metric == 'cka' and layer_index == 1").set_index(["reference", "step"])["value"]
    assert cka["last", 40] == pytest.approx(1) and cka["initial", 0] == pytest.approx(1)
    assert cka["initial"].is_monotonic_decreasing and cka["previous", 40] > cka["initial", 40]
    assert (
        set(rows["reference"]) == {"initial", "last", "previous", "layer"}
        and 0 not in rows.query("reference == 'previous'")["step"].tolist()
    )


def test_seeds_are_compared_within_a_cell(store: Store) -> None:
    tables = StoredSweep(store, SWEEP)
    read = {name: tables.read(name, Partition()) for name in ("trials", "checkpoints")}
    given = AnalysisInput("s", Partition(), read, Contexts(tables))
    rows = over_time.seed_similarity(given, draws=40)["seed_similarity_metrics"].to_pandas()
    cells = store.sql("SELECT trial_id, cell FROM trials").set_index("trial_id")["cell"]
    assert (rows["trial_id"].map(cells) == rows["other_trial"].map(cells)).all() and (rows["step"] == 40).all()
    assert rows.query("metric == 'cka'")["p"].between(1 / 41, 1).all()
    nothing = {name: pa.table({}) for name in read}
    assert over_time.seed_similarity(AnalysisInput("s", Partition(), nothing))["seed_similarity_metrics"].num_rows == 0


def test_weights_move_from_checkpoint_to_checkpoint(store: Store) -> None:
    trial = trial_of(store, "transformer")
    tables = StoredSweep(store, SWEEP)
    read = {"checkpoints": tables.read("checkpoints", Partition(trial))}
    found = over_time.weights(AnalysisInput("s", Partition(trial), read, Contexts(tables)))
    moved = found["weight_metrics"].to_pandas().query("metric == 'l2_norm'")
    distances = found["weight_distances"].to_pandas()
    whole = distances.query("layer == '*'").set_index(["other_step", "step"])["distance"]
    expected = store.sql("SELECT init_distance FROM scalars WHERE trial_id = ? AND step = 40", [trial])
    assert whole[0, 40] == pytest.approx(expected["init_distance"].item(), rel=1e-5)
    assert len(whole) == 6
    parts = moved.query("layer == 'fc' and step == 40 and other_step == 0")["value"]
    fc = distances.query("layer == 'fc' and step == 40 and other_step == 0")["distance"].item()
    assert np.sqrt((parts**2).sum()) == pytest.approx(fc, rel=1e-5)
    none = over_time.weights(AnalysisInput("s", Partition(trial), read, Contexts(tables)), most_numbers=10)
    assert none["weight_distances"].num_rows == 0


def test_a_checkpoint_that_cannot_be_read_is_named_and_the_others_are_compared(tmp_path: Path) -> None:
    with open_store(shutil.copytree(folder(), tmp_path / "store")) as own:
        trial = trial_of(own, "mlp")
        paths = own.sql("SELECT step, path FROM checkpoints WHERE trial_id = ?", [trial]).set_index("step")["path"]
        for step in (30, 40):
            (Path(own.location.root) / paths[step]).unlink()
        tables = StoredSweep(own, SWEEP)
        read = {"checkpoints": tables.read("checkpoints", Partition(trial))}
        given = AnalysisInput("s", Partition(trial), read, Contexts(tables))
        rows = over_time.similarity(given)["similarity_metrics"].to_pandas()
        assert rows.loc[rows["flag"] == "checkpoint_unreadable", "step"].tolist() == [30, 40]
        assert set(rows.loc[rows["value"].notna(), "step"]) == {0, 20}
        moved = over_time.weights(given)
        assert moved["weight_metrics"].to_pandas().query("flag == 'checkpoint_unreadable'")["step"].tolist() == [30, 40]
        assert set(moved["weight_distances"].to_pandas()["step"]) == {20}
        read = {name: tables.read(name, Partition()) for name in ("trials", "checkpoints")}
        seeds = over_time.seed_similarity(AnalysisInput("s", Partition(), read, Contexts(tables)), draws=20)
        rows = seeds["seed_similarity_metrics"].to_pandas()
        assert rows.loc[rows["flag"] == "checkpoint_unreadable", "trial_id"].tolist() == [trial]
        assert rows["value"].notna().sum() == 2 * (3 + 8)  # cnn and transformer, two metrics a layer


def test_a_learning_coefficient_has_a_number_or_a_reason(store: Store) -> None:
    found = {}
    for step in (0, 40):
        given = AnalysisInput("s", Partition(trial_of(store, "mlp"), step), {}, Contexts(StoredSweep(store, SWEEP)))
        (table,) = degeneracy.llc(given, draws=15, burn_in=5).values()
        found[step] = table.to_pandas().query("part == '*'").set_index("metric")
        value, flag = found[step].loc["llc", ["value", "flag"]]
        assert (value > 0 and pd.isna(flag)) or flag == "chain_below_checkpoint"
        again = degeneracy.llc(given, draws=15, burn_in=5)["llc_metrics"].to_pandas()
        pd.testing.assert_frame_equal(again, table.to_pandas())  # and the weights are as they were
    assert found[0].loc["llc", "flag"] == "chain_below_checkpoint"  # an initialisation is no minimum


@pytest.mark.slow
def test_events_of_the_store_are_looked_at_before_during_and_after(tmp_path: Path) -> None:
    with open_store(shutil.copytree(folder(), tmp_path / "store")) as own:
        trial = trial_of(own, "mlp", 1)
        registry.resolve("analysis", "events")  # so that its tables are known
        event: dict[str, Any] = {column.name: None for column in EVENTS.columns}
        event |= {"trial_id": trial, "layer": "network.0", "layer_index": 0, "view": "units", "significant": True}
        event |= {"family": "primary", "step_before": 20, "step_after": 40, "step_location": 31.0, "p_event": 0.001}
        event |= {"measure": "participation_ratio", "detector": "profile", "null": "ar_sieve"}
        family: dict[str, Any] = {column.name: None for column in EVENT_FAMILIES.columns}
        family |= {"family": "primary", "primary": True, "detector": "profile", "null": "ar_sieve"}
        rows = {"events": conform(EVENTS, pd.DataFrame([event])).to_pylist()[0], "event_families": family}
        tables = {name: pa.Table.from_pylist([row], TABLES[name].arrow()) for name, row in rows.items()}
        write_output(own, SWEEP, "events", "sweep", tables, cache_key="planted")
        chosen = [Partition(trial_of(own, "mlp", seed), step) for seed in (0, 1) for step in (0, 20, 30, 40)]
        looked_at = [("units", None), ("collapse", None), ("features", {"units": 3, "steps": 4})]
        run_together(looked_at, StoredSweep(own, SWEEP), partitions=chosen)
        analyze(own, SWEEP, "weights", partitions=[Partition(trial)])
        report = run_together([("mechanisms", {"widest": 0.6})], StoredSweep(own, SWEEP))[0]
        assert report.ok, report.dead
        found = own.table("mechanism_changes").set_index("metric")
        assert (found[["checkpoint_before", "checkpoint_during", "checkpoint_after"]] == [20, 30, 40]).all(axis=None)
        loss = own.sql("SELECT step, value FROM collapse_metrics WHERE trial_id = ? AND metric = 'loss'", [trial])
        loss = loss.set_index("step")["value"]
        assert found.loc["loss", ["initial", "before", "during", "after"]].tolist() == loss[[0, 20, 30, 40]].tolist()
        assert (found["n_controls"] == 0).all() and (found["n_unmatched"] == 1).all()  # 0-20 alone is as long
        assert (found["n_seeds"] == 1).all() and found["displacement"].between(0.001, 1).all()
        assert not found["exploratory"].any() and "class_selectivity" in found.index
        assert {"feature_types", "feature_share_noise", "feature_log_response"} <= set(found.index)
        windows = own.table("mechanism_windows")[["control", "start", "end"]]
        assert windows.to_numpy().tolist() == [[-1, 20, 40]]
        tests = own.table("mechanism_tests")
        assert set(tests["flag"]) == {"no_controls"} and len(tests) == len(found)


@pytest.mark.slow
def test_every_analysis_has_rows_for_every_checkpoint(tmp_path: Path) -> None:
    with open_store(shutil.copytree(folder(), tmp_path / "store")) as own:
        jobs = [(name, {"most": 1} if name == "unit_ablation" else None) for name in PER_CHECKPOINT]
        chosen = [Partition(trial_of(own, m), step) for m in ("mlp", "cnn", "transformer") for step in (0, 20, 30, 40)]
        reports = run_together(jobs, StoredSweep(own, SWEEP), partitions=chosen)
        for name, report in zip(PER_CHECKPOINT, reports, strict=True):
            assert report.ok and report.done == 12
            table = registry.resolve("analysis", name).writes[0].name
            assert own.sql(f"SELECT count(DISTINCT (trial_id, step)) AS n FROM {table}")["n"].item() == 12
