"""The analyses of sparse autoencoders on small networks: rows, relations, skipped pairs, files, loaders."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from ndt_ray import registry
from ndt_ray.analysis.api import AnalysisInput, Partition
from ndt_ray.analysis.mechanisms.context import Layer, ProbeContext
from ndt_ray.analysis.mechanisms.sae import activations, networks, relations
from ndt_ray.analysis.mechanisms.sae.analyses import sae, sae_transfer
from ndt_ray.analysis.mechanisms.sae.model import configurations, preset
from ndt_ray.data import load
from ndt_ray.errors import CheckpointError, SpecError
from ndt_ray.figures import transfer as figures
from ndt_ray.figures.album import Album
from ndt_ray.models import build
from ndt_ray.spec import Trial

SMALL = {
    "changes": {"max_steps": 15, "max_features": 48},
    "sampling": {"stimuli": 96, "held_out": 48, "layers": 2, "seeds": 2},
}


def trial(model: str, seed: int, **changes: object) -> Trial:
    spec = {"model": model, "data": "digits", "train": {"steps": 10}, "seed": seed, "measure": {"probe": 48}}
    return Trial.model_validate(spec | changes)


def context(spec: Trial, step: int) -> ProbeContext:
    """A network whose weights grow with the step: no training, yet different at every checkpoint."""
    return _context(spec.model_dump_json(), step)


@cache
def _context(text: str, step: int) -> ProbeContext:
    spec = Trial.model_validate_json(text)
    data = load(spec.data.name, spec.data.params)
    model = build(registry.resolve("model", spec.model.name), data.inputs, spec.model.params, spec.seed.init)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + step / 50)
    n = spec.measure.probe
    return ProbeContext(spec, step, model, data.test_x[:n], data.test_y[:n], data)


def given(
    reads: tuple[str, ...],
    trials: list[Trial],
    broken: str | None = None,
    trial_id: str | None = None,
    names: tuple[str, ...] = (),
) -> AnalysisInput:
    """The tables of these trials, each with checkpoints at 5 and 10; one of them cannot be loaded.

    `names`: what the data sets are called, for data sets that differ in a parameter alone.
    """
    rows = [
        {"trial_id": t.trial_id, "spec": t.model_dump_json(), "cell": t.cell, "model": t.model.name, "control": "none",
         "data": t.data.name, "seed": t.seed.init} for t in trials
    ]  # fmt: skip
    for row, name in zip(rows, names, strict=False):
        row |= {"data": name, "cell": f"{row['cell']} {name}"}
    saved = pd.DataFrame([{"trial_id": t.trial_id, "step": s} for t in trials for s in (5, 10)])
    by_id = {t.trial_id: t for t in trials}

    def contexts(which: str, step: int) -> ProbeContext:
        if which == broken:
            raise CheckpointError(f"trial {which} has no checkpoint at step {step} - there are: none")
        return context(by_id[which], step)

    held = {"trials": pd.DataFrame(rows), "checkpoints": saved}
    tables = {n: pa.Table.from_pandas(held[n]) for n in reads}
    return AnalysisInput("small", Partition(trial_id), tables, contexts)


TRIALS = [trial("mlp_narrow", 0), trial("mlp_narrow", 1), trial("cnn_shallow", 0)]


def test_quality_is_told_for_every_layer_at_both_ends() -> None:
    found = sae(given(sae.reads, TRIALS[:1], trial_id=TRIALS[0].trial_id), **SMALL)["sae"].to_pandas()
    assert len(found) == 2 * 2 * 2 and set(found["step"]) == {0, 10} and found["flag"].isna().all()
    assert found["explained_variance"].between(-1, 1).all() and (found["l0"] <= 8).all()
    assert found["pw_mcc"].between(0, 1).all() and (found["features"] == found["d"].map({32: 48, 10: 40})).all()
    assert json.loads(found["config"].iloc[0])["max_steps"] == 15
    assert (found["n_held_out"] == 48).all() and (found["n_fit"] == 96).all()


@cache
def pairs() -> pd.DataFrame:
    return sae_transfer(given(sae_transfer.reads, TRIALS), **SMALL, checkpoints=2)["sae_transfer"].to_pandas()


def test_every_relation_has_its_pairs_and_numbers() -> None:
    found = pairs()
    # 2 cells of 2 layers each; 2 seeds in one; the initialisation and the last checkpoint of the first trials
    assert found.groupby("relation").size().to_dict() == {"architectures": 4, "checkpoints": 8, "layers": 4, "seeds": 4}
    assert (found["status"] == "ok").all() and found["aligned"].notna().all() and found["se"].gt(0).all()
    unequal = found[found["source_d"] != found["target_d"]]
    assert unequal["raw"].isna().all() and unequal["quality"].isna().all()
    assert unequal["reason"].str.startswith("dimension_mismatch_").all()
    equal = found[found["source_d"] == found["target_d"]]
    assert equal["raw"].notna().all() and equal["quality"].between(0, 1).all() and equal["cosine_chance"].gt(0).all()
    chances = ["quality_random", "spearman_null_hi", "cosine_over_7_chance", "cosine_over_5_chance"]
    assert equal[chances].notna().all(axis=None) and unequal[chances].isna().all(axis=None)
    assert (found["control"] == found[[f"control_{c}" for c in ("random", "frozen", "pca")]].max(axis=1)).all()


def test_a_scaled_network_transfers_to_itself_and_other_seeds_do_not() -> None:
    found = pairs()
    found = found[(found["source_layer"] == "network.0") & (found["target_layer"] == "network.0")]
    scaled = found[found["relation"] == "checkpoints"]
    assert (scaled["correlation"] > found[found["relation"] == "seeds"]["correlation"].max()).all()
    assert (scaled["raw"] > found[found["relation"] == "seeds"]["raw"].max()).all()


def test_a_network_that_cannot_be_loaded_costs_only_its_pairs() -> None:
    data = given(sae_transfer.reads, TRIALS, broken=TRIALS[1].trial_id)
    found = sae_transfer(data, **SMALL, relations=["seeds", "layers"])["sae_transfer"].to_pandas()
    lost = found[found["relation"] == "seeds"]
    assert (lost["status"] == "skipped").all() and lost["reason"].str.contains("no checkpoint at step 10").all()
    assert (found[found["relation"] == "layers"]["status"] == "ok").all()


def test_networks_over_the_limit_are_skipped_and_say_so() -> None:
    found = sae_transfer(given(sae_transfer.reads, TRIALS), **SMALL, networks=1, relations=["layers", "seeds"])
    rows = found["sae_transfer"].to_pandas()
    assert rows[rows["status"] == "skipped"]["reason"].str.startswith("over the limit of 1 networks of ").all()
    assert (rows["status"] == "ok").sum() == 2


def test_data_sets_transfer_on_the_targets_stimuli_where_inputs_fit() -> None:
    modular = [trial("mlp_narrow", 0, data={"name": "modular_addition", "p": p}) for p in (11, 13)]
    data = given(sae_transfer.reads, [TRIALS[0], *modular])
    with pytest.raises(SpecError, match="no relation 'dat'.*did you mean 'data'"):
        sae_transfer(data, relations=["dat"])
    found = sae_transfer(data, **SMALL, relations=["data"])["sae_transfer"].to_pandas()
    assert (found["status"] == "skipped").all() and found["reason"].str.startswith("inputs_differ").all()


def test_another_data_set_is_aligned_on_its_own_stimuli() -> None:
    """Two splits of modular addition: the same inputs, so that the target's stimuli can be shown to both networks."""
    both = [trial("mlp_narrow", 0, data={"name": "modular_addition", "p": 13, "split_seed": s}) for s in (1, 2)]
    data = given(sae_transfer.reads, both, names=("one", "two"))
    found = sae_transfer(data, **SMALL, relations=["data"])["sae_transfer"].to_pandas()
    assert len(found) == 4 and (found["status"] == "ok").all()
    # One initialisation, so that rows of the target's stimuli are the same in both: the map is the identity.
    assert found["aligned"].to_numpy() == pytest.approx(found["raw"].to_numpy(), abs=0.05)
    assert found["correlation"].isna().all() and found["ceiling"].notna().all()


def test_nothing_gives_nothing_and_bad_parameters_are_refused() -> None:
    for analysis in (sae, sae_transfer):
        empty = AnalysisInput("none", Partition("x"), {n: pa.table({}) for n in analysis.reads})
        assert all(t.num_rows == 0 for t in analysis(empty).values())
    data = given(sae_transfer.reads, TRIALS)
    with pytest.raises(SpecError, match="sampling has no 'seed'.*did you mean 'seeds'"):
        sae_transfer(data, sampling={"seed": 1})
    with pytest.raises(SpecError, match="sampling.seeds must be at least 1"):
        sae_transfer(data, sampling={"seeds": 0})
    with pytest.raises(SpecError, match="across is matched or all"):
        sae_transfer(data, **SMALL, across="some")


def test_layers_that_are_constant_or_not_finite_are_flagged() -> None:
    rows = np.zeros((8, 1, 6), dtype=np.float32)
    assert networks.Activations(rows, rows, "x").flag == "constant"
    bad = rows.copy()
    bad[0, 0, 0] = np.inf
    assert networks.Activations(bad, rows, "x").flag == "nonfinite"
    node = networks.Node("t", 0, Layer("a", 0, "units"))
    assert networks.sides({node: networks.Activations(rows, rows, "x")}, networks_config(), networks.Sampling()) == {}


def networks_config():
    return preset("default", max_steps=2)


def test_rows_are_taken_at_the_same_place_of_every_layer() -> None:
    at = np.array([[[0.0, 0.99], [0.5, 0.5]]])
    maps = torch.arange(16.0).reshape(1, 1, 4, 4)
    found = activations._at(maps, "positions", at, maps, None)
    assert found[0, :, 0].tolist() == [3.0, 10.0]
    tokens = torch.arange(6.0).reshape(1, 6, 1)
    ids = torch.tensor([[5, 5, 5, 0, 0, 0]])
    late = np.array([[[0.99, 0.0]]])
    assert activations._at(tokens, "tokens", late, ids, None)[0, 0, 0] == 5
    assert activations._at(tokens, "tokens", late, ids, 0)[0, 0, 0] == 2
    one, many = np.zeros((3, 1, 2), np.float32), np.zeros((3, 4, 2), np.float32)
    assert [x.shape for x in activations.paired(one, many)] == [(3, 4, 2), (3, 4, 2)]
    with pytest.raises(SpecError, match="do not pair"):
        activations.paired(many, np.zeros((3, 2, 2), np.float32))


def test_splicing_an_identity_leaves_the_loss_and_zeros_do_not() -> None:
    for spec, path in ((TRIALS[0], "network.0"), (TRIALS[2], "conv_layers.0")):
        found = context(spec, 10)
        kind = found.layer(path).kind
        labels = torch.from_numpy(found.labels)
        args = (found.inputs, labels)
        same = activations.spliced_loss(found.model, path, kind, lambda rows: rows, *args)
        assert same == pytest.approx(float(found.losses().mean()), rel=1e-6)
        assert activations.spliced_loss(found.model, path, kind, torch.zeros_like, *args) != pytest.approx(
            same, rel=1e-6
        )


def test_layers_of_networks_of_different_depth_are_matched_by_depth() -> None:
    layers = {
        ("a", 9): [Layer(str(i), i, "units") for i in range(5)],
        ("b", 9): [Layer("x", 0, "units"), Layer("y", 1, "units")],
    }
    made = list(relations._between("architectures", [(("a", 9), ("b", 9))], layers, "matched"))
    assert [(p.source.layer.path, p.target.layer.path) for p in made] == [
        ("0", "x"), ("1", "x"), ("2", "x"), ("3", "y"), ("4", "y"),
    ]  # fmt: skip
    assert len(list(relations._between("architectures", [(("a", 9), ("b", 9))], layers, "all"))) == 10


def test_all_layers_of_two_networks_are_compared_where_that_is_asked_for() -> None:
    made = {}
    for across in ("matched", "all"):
        out = sae_transfer(given(sae_transfer.reads, TRIALS), **SMALL, relations=["seeds", "checkpoints"],
                           checkpoints=2, across=across)  # fmt: skip
        made[across] = out["sae_transfer"].to_pandas().groupby("relation").size().to_dict()
    assert made == {"matched": {"checkpoints": 8, "seeds": 4}, "all": {"checkpoints": 16, "seeds": 8}}


CONFIGS = ["default", {"name": "relu", "kind": "relu", "l1": 1e-2}]


def test_a_run_holds_several_configurations_beside_each_other() -> None:
    data = given(sae.reads, TRIALS, trial_id=TRIALS[0].trial_id)
    alone = sae(data, **SMALL, splice=0, steps=[10])["sae"].to_pandas()
    both = sae(data, **SMALL, splice=0, steps=[10], configs=CONFIGS)["sae"].to_pandas()
    assert both.groupby("configuration").size().to_dict() == {"default": len(alone), "relu": len(alone)}
    pd.testing.assert_frame_equal(both[both["configuration"] == "default"].reset_index(drop=True), alone)
    kinds = both.groupby("configuration")["config"].agg(lambda c: {json.loads(x)["kind"] for x in c}).to_dict()
    assert kinds == {"default": {"topk"}, "relu": {"relu"}}
    lost = sae(data, **SMALL, layers="conv_layers.0", steps=[10], configs=CONFIGS)["sae"].to_pandas()
    assert lost["configuration"].tolist() == ["default", "relu"] and set(lost["flag"]) == {"no_layer"}


def test_transfer_compares_dictionaries_of_one_configuration_with_each_other() -> None:
    data = given(sae_transfer.reads, TRIALS)
    found = sae_transfer(data, **SMALL, relations=["layers"], configs=CONFIGS)["sae_transfer"].to_pandas()
    known = pairs()
    known = known[known["relation"] == "layers"].reset_index(drop=True)
    own = found[found["configuration"] == "default"].reset_index(drop=True)
    pd.testing.assert_frame_equal(own, known)
    assert len(found) == 2 * len(known) and not found[found["configuration"] == "relu"]["aligned"].equals(
        own["aligned"]
    )


def test_configurations_have_names_and_bad_ones_are_refused() -> None:
    found = configurations(
        "default", {"max_steps": 9}, ["default", "founding", {"config": "founding", "name": "x", "k": 3}]
    )
    assert list(found) == ["default", "founding", "x"] and {c.max_steps for c in found.values()} == {9}
    assert found["x"].kind == "relu" and found["x"].k == 3 and found["founding"].k == 16
    assert configurations("founding", None) == {"founding": preset("founding")}
    for wrong, match in (
        (("founding", None, ["default"]), "either config or a list of configs"),
        (("default", None, []), "one or more"),
        (("default", None, ["default", {"k": 3}]), "two configurations are called 'default'"),
        (("default", None, ["foundin"]), "did you mean 'founding'"),
        (("default", None, [{"name": "x", "kk": 3}]), "have no 'kk'"),
    ):
        with pytest.raises(SpecError, match=match):
            configurations(*wrong)


def test_trials_that_ended_early_are_no_seeds() -> None:
    trials = pd.DataFrame({"trial_id": ["a", "b", "c"], "cell": "m", "seed": [0, 1, 2], "control": "none"})
    trials = trials.assign(model="m", data="d")
    saved = pd.DataFrame({"trial_id": ["a", "a", "b", "c", "c"], "step": [5, 10, 5, 5, 10]})
    found = relations.networks_of(trials, saved, per_cell=2, checkpoints=2)
    assert found.trials == {"m": ("a", "c")} and found.checkpoints == {"a": (0, 10)}
    assert found.nodes == [("a", 10), ("c", 10), ("a", 0)]


@pytest.mark.slow
def test_files_and_figures_are_written(tmp_path: Path) -> None:
    album = Album(tmp_path)
    figures.write(pairs(), pd.DataFrame(), album)
    assert {p.name for p in album.files} >= {
        "layer_transfer_matrix.json", "layer_analysis_insights.md", "sae_checks.json", "sae_transfer.png",
    }  # fmt: skip
    wide = pairs()
    same = wide["relation"] == "layers"
    wide.loc[same, "quality"] = 0.7
    figures.write(wide, pd.DataFrame(), more := Album(tmp_path / "more"))
    names = {p.name for p in more.files}
    assert "layer_universality_heatmap.png" in names and (tmp_path / "more/layer_universality_curve.png").stat().st_size
    with pytest.raises(SpecError, match="1 to 24 matrices"):
        figures.layer_universality_heatmap([])
