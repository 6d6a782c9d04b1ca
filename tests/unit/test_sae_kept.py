"""Dictionaries that are kept: used again, never trusted blindly; layers by name, number and count; weights by depth."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from mech_store import SWEEP, folder, trial_of
from test_sae_analyses import SMALL, TRIALS, given
from typer.testing import CliRunner

from ndt_ray.analysis.api import Partition
from ndt_ray.analysis.mechanisms.context import Layer
from ndt_ray.analysis.mechanisms.sae import files, networks
from ndt_ray.analysis.mechanisms.sae.analyses import sae
from ndt_ray.analysis.mechanisms.sae.model import preset, train
from ndt_ray.analysis.running.runner import run
from ndt_ray.analysis.running.stored import StoredSweep, analyze
from ndt_ray.cli import app
from ndt_ray.errors import CheckpointError, SpecError
from ndt_ray.store.garbage import gc
from ndt_ray.store.reader import open_store
from ndt_ray.store.sweep import remove_sweep

LAYERS = [Layer(f"conv.{i}", i, "units") for i in range(9)]


class InMemory:
    """Artifacts in a dict; counts what was found."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.found = 0

    def artifact(self, kind: str, key: str) -> tuple[str, bytes] | None:
        self.found += key in self.files
        return (f"{kind}/{key}", self.files[key]) if key in self.files else None

    def keep_artifact(self, kind: str, key: str, data: bytes) -> str:
        self.files[key] = data
        return f"{kind}/{key}"


def rows_of(count: int, d: int = 8) -> dict[networks.Node, networks.Activations]:
    rng = np.random.default_rng(0)
    made = {}
    for i in range(count):
        fit, held = (rng.normal(size=(n, 1, d)).astype(np.float32) for n in (96, 16))
        made[networks.Node("t", 0, LAYERS[i], i / 8)] = networks.Activations(fit, held, "s")
    return made


def same(one: networks.Side, other: networks.Side) -> bool:
    parts = ("saes", "frozen", "random")
    return all(torch.equal(getattr(one, p).atoms, getattr(other, p).atoms) for p in parts) and all(
        torch.equal(getattr(one, p).encoder, getattr(other, p).encoder) for p in parts
    )


def test_what_is_kept_is_not_trained_again_and_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(rows, *args, **options):
        calls.append(len(rows))
        return train(rows, *args, **options)

    monkeypatch.setattr(networks, "train", counted)
    config, sampling, store, told = preset("default", max_steps=12), networks.Sampling(seeds=2), InMemory(), []
    shelf = files.Shelf(store, told.append)
    rows = rows_of(3)
    without = networks.sides(rows, config, sampling)
    first = networks.sides(dict(list(rows.items())[:2]), config, sampling, shelf)
    whole = networks.sides(rows, config, sampling, shelf)
    assert calls == [9, 6, 3]  # three dictionaries a layer; of the last call, the one layer that was not there
    assert store.found == 2 and len(store.files) == 3 and told == []
    # Trained in company of other layers, alone, or read from a file: no bit differs.
    assert all(same(without[n], whole[n]) for n in rows) and all(same(first[n], whole[n]) for n in first)
    assert whole[next(iter(rows))].artifact is not None and without[next(iter(rows))].artifact is None


def test_damaged_and_foreign_files_are_trained_again_and_told() -> None:
    config, sampling, store, told = preset("default", max_steps=5), networks.Sampling(seeds=1), InMemory(), []
    shelf, rows = files.Shelf(store, told.append), rows_of(2)
    good = networks.sides(rows, config, sampling, shelf)
    one, two = store.files
    saved = dict(store.files)
    data = bytearray(saved[one])
    data[-5] ^= 1  # one bit of a number: safetensors itself does not see it
    broken = {bytes(data): "damaged", saved[one][:50]: "holds no", b"": "holds no", saved[two]: "of other"}
    for damaged, said in broken.items():
        store.files[one] = damaged
        told.clear()
        again = networks.sides(rows, config, sampling, shelf)
        assert len(told) == 1 and said in told[0] and told[0].endswith("trained again")
        assert all(same(good[n], again[n]) for n in rows) and store.files[one] == saved[one]


def test_another_configuration_or_other_rows_are_other_dictionaries() -> None:
    shelf = files.Shelf(InMemory(), print)
    rows = np.zeros((4, 3), np.float32)
    config = preset("default")
    key = shelf.key(rows, ["a"], [False], config)
    assert key == shelf.key(rows.copy(), ["a"], [False], preset("default"))
    others = [
        shelf.key(rows + 1, ["a"], [False], config),
        shelf.key(rows, ["b"], [False], config),
        shelf.key(rows, ["a"], [True], config),
        shelf.key(rows, ["a"], [False], preset("default", lr=1e-3)),
    ]
    assert len({key, *others}) == 5


def test_files_that_were_written_are_read_and_others_are_refused(tmp_path: Path) -> None:
    saes = networks.sides(rows_of(1), preset("founding", epochs=1), networks.Sampling())[next(iter(rows_of(1)))].saes
    path = files.save_saes(saes, tmp_path / "deep/er/saes.safetensors")
    found = files.load_saes(path)
    assert found.config == saes.config and torch.equal(found.atoms, saes.atoms)
    np.testing.assert_array_equal(found.losses, saes.losses)
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    with pytest.raises(CheckpointError, match="damaged"):
        files.load_saes(path)
    with pytest.raises(CheckpointError, match="save_saes"):
        files.load_saes(tmp_path / "none")


def test_layers_are_chosen_by_count_number_and_name() -> None:
    told: list[str] = []

    def chosen(choice: networks.Choice) -> list[int]:
        return [layer.index for layer in networks.chosen_layers(LAYERS, choice, 3, told.append)]

    assert chosen(None) == [0, 4, 8] and told == ["3 of 9 layers, evenly along the depth - layers=9 takes all"]
    told.clear()
    assert chosen(2) == [0, 8] and chosen(99) == list(range(9))
    assert chosen("8,4, 2") == [2, 4, 8] and chosen([4, "conv.1"]) == [1, 4] and chosen("conv.3") == [3]
    assert told == []
    assert chosen("4,12,20") == [4] and told[0].startswith("no layer 12, 20 - ")
    with pytest.raises(SpecError, match=r"none of the layers conv\.9, 20 - there are: 0 conv\.0, 1 conv\.1"):
        chosen(["conv.9", 20])
    for empty in (0, "", []):
        with pytest.raises(SpecError, match="layers"):
            chosen(empty)


def test_the_weight_of_sparsity_follows_the_depth_where_that_is_asked_for() -> None:
    founding = preset("founding", l1_schedule="founding")
    assert [founding.at(i, 0.0).l1 for i in (4, 8, 12, 16, 20)] == [1.5e-4, 1e-4, 1e-4, 0.5e-4, 0.5e-4]
    thirds = preset("founding", l1_schedule="thirds", l1=2e-4)
    assert [thirds.at(9, depth).l1 for depth in (0.0, 0.5, 1.0)] == pytest.approx([3e-4, 2e-4, 1e-4])
    assert preset("founding").at(4, 0.0).l1 == 1e-4
    with pytest.raises(SpecError, match="kind relu"):
        preset("default", l1_schedule="founding")
    with pytest.raises(SpecError, match="constant, founding or thirds"):
        preset("founding", l1_schedule="deep")
    rows = rows_of(9)
    made = networks.sides(rows, preset("founding", epochs=1, l1_schedule="founding"), networks.Sampling(seeds=1))
    assert {n.layer.index: s.saes.config.l1 for n, s in made.items()} == {
        **dict.fromkeys(range(9), 1e-4), 4: 1.5e-4, 6: 1.5e-4,
    }  # fmt: skip


def test_a_network_without_the_layers_asked_for_says_so() -> None:
    data = given(sae.reads, TRIALS, trial_id=TRIALS[0].trial_id)
    rows = sae(data, **SMALL, layers="conv_layers.0", steps=[10])["sae"].to_pandas()
    assert rows["flag"].tolist() == ["no_layer"] and "there are: 0 network.0" in data.notes[0]
    rows = sae(data, **SMALL, layers="network.0", steps=[10], splice=0)["sae"].to_pandas()
    assert set(rows["layer"]) == {"network.0"} and rows["flag"].isna().all()
    with pytest.raises(SpecError, match="1 or more"):
        sae(data, **SMALL, layers=0)


@pytest.mark.slow
def test_a_store_keeps_dictionaries_for_the_transfer_and_for_runs_to_come(tmp_path: Path) -> None:
    store = open_store(shutil.copytree(folder(), tmp_path / "store"))
    small = {"changes": {"max_steps": 10, "max_features": 32}, "sampling": {"stimuli": 64, "held_out": 32, "layers": 2}}
    trial = trial_of(store, "mlp")
    assert analyze(store, SWEEP, "sae", parameters={**small, "splice": 0}, partitions=[Partition(trial)]).ok
    rows = store.table("sae")
    kept = sorted(set(rows["artifact"]))
    assert len(kept) == 4 and all(store.location.size(path) for path in kept)
    before = {path: store.location.read(path) for path in kept}
    assert analyze(store, SWEEP, "sae_transfer", parameters={**small, "trials": 1, "relations": ["layers"]}).ok
    used = store.sql("SELECT * FROM sae_transfer WHERE source_trial = ?", [trial])
    assert set(used["source_artifact"]) <= set(kept)  # those that `sae` trained

    # Damage: told with the partition, trained again, the same rows.
    store.location.write(kept[0], b"nonsense")
    report = run("sae", StoredSweep(store, SWEEP), parameters={**small, "splice": 4}, partitions=[Partition(trial)])
    assert report.ok and len(report.notes) == 2 and report.notes[1].startswith(f"{trial}: {kept[0]} holds no dict")
    assert {path: store.location.read(path) for path in kept} == before
    columns = ["layer", "step", "dictionary", "explained_variance", "pw_mcc", "artifact"]
    pd.testing.assert_frame_equal(store.table("sae")[columns], rows[columns])

    # What it took stands in the log alone; what no row names is garbage; the rest goes with the sweep.
    runs = store.table("analysis_runs")
    assert list(runs["analysis"]) == ["sae", "sae_transfer"] and (runs["busy"] > 0).all() and (runs["done"] == 1).all()
    assert runs["slowest_partition"].tolist() == [trial, "sweep"]
    assert not [g for g in gc(store, dry_run=True, older_than=-1) if g.path in kept]
    store.location.write(f"artifacts/{SWEEP}/dictionaries/{'0' * 32}.safetensors", b"x")
    gone = {g.path: g.reason for g in gc(store, older_than=-1) if g.path.startswith("artifacts/")}
    assert gone[f"artifacts/{SWEEP}/dictionaries/{'0' * 32}.safetensors"] == "no row names it"
    assert not any(store.location.size(path) for path in gone) and all(store.location.size(path) for path in kept)
    assert json.loads(rows["config"].iloc[0])["l1_schedule"] == "constant"
    remove_sweep(store, SWEEP)
    assert not list(store.location.files("artifacts"))


@pytest.mark.slow
def test_two_configurations_by_one_command(tmp_path: Path) -> None:
    store = open_store(shutil.copytree(folder(), tmp_path / "store"))
    small = ["--set", "changes={max_steps: 5, max_features: 16}", "--set", "splice=0"]
    small += ["--set", "sampling={stimuli: 64, held_out: 32, layers: 2, seeds: 1}"]
    call = ["analyze", SWEEP, "sae", "--store", str(tmp_path / "store"), "--executor", "inline", *small]
    both = ["--set", "configs=[default, {name: relu, kind: relu, l1: 0.01}]"]
    assert CliRunner().invoke(app(), [*call, *both], catch_exceptions=False).exit_code == 0
    counted = store.sql("SELECT configuration, count(*) AS n, count(DISTINCT artifact) AS files FROM sae GROUP BY 1")
    per = counted.set_index("configuration")
    assert set(per.index) == {"default", "relu"} and per.loc["default"].equals(per.loc["relu"]) and per["n"].min() > 0
