"""Networks out of the store: the trained ones, loaded once and passed through once for everybody who looks."""

import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mech_store import SWEEP, folder, looked_at, trial_of

from ndt_ray.analysis.api import Analysis, AnalysisInput, Partition, analysis
from ndt_ray.analysis.mechanisms.context import Contexts, ProbeContext, fill
from ndt_ray.analysis.running.runner import run_together, together
from ndt_ray.analysis.running.stored import StoredSweep
from ndt_ray.errors import CheckpointError, DataError, SpecError
from ndt_ray.run import continue_from
from ndt_ray.store.reader import Store, open_store
from ndt_ray.store.schema import Column, Table


@pytest.fixture(scope="module")
def store() -> Store:
    return looked_at()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Store]:
    with open_store(shutil.copytree(folder(), tmp_path / "store")) as found:
        yield found


def looking(name: str, seen: list[ProbeContext], per: str = "checkpoint", fails: str = "") -> Analysis:
    """An analysis that looks at a network and writes how many passes it took."""
    table = Table(
        f"test_{name}",
        "",
        (Column("trial_id", "string", ""), Column("step", "int32", ""), Column("x", "float64", "")),
        ("trial_id", "step"),
    )

    def compute(data: AnalysisInput) -> dict[str, pd.DataFrame]:
        context = data.context()
        if fails and context.trial.model.name == fails:
            raise RuntimeError("no luck")
        seen.append(context)
        x = sum(float(context.activations(layer.path).sum()) for layer in context.layers)
        x += sum(float(pattern.sum()) for pattern in context.attention.values())
        return {f"test_{name}": pd.DataFrame([{**data.partition.key, "x": x}])}

    return analysis(name=name, reads=("trials", "checkpoints"), writes=(table,), per=per, context=True)(compute)  # type: ignore[arg-type]


def test_a_network_is_the_one_that_was_trained(store: Store) -> None:
    for model in ("mlp", "cnn", "transformer"):
        trial = trial_of(store, model, 1)
        contexts = Contexts(StoredSweep(store, SWEEP))
        engine = continue_from(store, trial, 20, 40)
        for name, value in contexts(trial, 40).model.state_dict().items():
            assert torch.equal(value, engine.models[0].state_dict()[name]), name
        assert contexts(trial, 0).n == 128 and contexts(trial, 0).step == 0  # never saved: it follows from the trial


def test_its_loss_on_the_probe_and_its_layers_are_those_of_the_run(store: Store) -> None:
    trial = trial_of(store, "cnn")
    context = Contexts(StoredSweep(store, SWEEP))(trial, 40)
    row = store.sql("SELECT * FROM confirmations WHERE trial_id = ? AND step = 40 AND layer_index = 0", [trial])
    assert [layer.path for layer in context.layers] == ["conv_layers.0", "conv_layers.3", "fc"]
    positions = context.activations("conv_layers.0").transpose(0, 2, 3, 1).reshape(-1, 6).astype(np.float64)
    spectrum = np.linalg.eigvalsh(np.cov(positions.T))
    assert row["participation_ratio"].item() == pytest.approx(spectrum.sum() ** 2 / (spectrum**2).sum(), rel=1e-5)
    assert context.stimuli("conv_layers.0").shape == (128, 6)
    rectified = np.maximum(context.activations("conv_layers.0"), 0).mean(axis=(2, 3), dtype=np.float64)
    np.testing.assert_allclose(context.stimuli("conv_layers.0", rectified=True), rectified)
    assert context.classifier == "fc"
    assert context.classifier_input is not None and context.classifier_input.shape == (128, 8 * 2 * 2)
    assert context.losses().mean() == pytest.approx(
        float(torch.nn.functional.cross_entropy(torch.from_numpy(context.logits), torch.from_numpy(context.labels)))
    )
    assert np.bincount(context.labels).min() >= 12  # the confirm probe holds the classes alike


def test_attention_is_seen_and_an_architecture_without_it_has_none(store: Store) -> None:
    contexts = Contexts(StoredSweep(store, SWEEP))
    patterns = contexts(trial_of(store, "transformer"), 40).attention
    assert list(patterns) == ["transformer.layers.0.self_attn", "transformer.layers.1.self_attn"]
    for pattern in patterns.values():
        assert pattern.shape == (128, 4, 16, 16)
        np.testing.assert_allclose(pattern.sum(-1), 1, atol=1e-5)
    assert contexts(trial_of(store, "mlp"), 40).attention == {}
    context = contexts(trial_of(store, "transformer"), 40)
    path = "transformer.layers.1.self_attn"
    whole = (
        context.activations(f"{path}.out_proj").mean(1)
        - context.model.get_submodule(path).out_proj.bias.detach().numpy()
    )
    np.testing.assert_allclose(context.head_outputs(path).sum(1), whole, atol=1e-5)  # the heads add up
    without = context.losses_under(f"{path}.out_proj", lambda mixed: mixed * 0)
    assert without.shape == (128,) and not np.allclose(without, context.losses())


@pytest.mark.slow
def test_analyses_share_one_load_and_one_forward_pass(store: Store, own: Store) -> None:
    seen: list[ProbeContext] = []
    both = [(looking("one", seen), None), (looking("two", seen), None)]
    reports = run_together(both, StoredSweep(own, SWEEP))
    assert [(r.total, r.done, r.ok) for r in reports] == [(24, 24, True)] * 2  # 6 trials x (0, 20, 30, 40)
    assert len(seen) == 48
    networks = {id(c): c for c in seen}.values()
    assert len(networks) == 24 and sum(c.passes for c in networks) == 24
    assert [r.skipped for r in run_together(both, StoredSweep(own, SWEEP))] == [24, 24]


@pytest.mark.slow
def test_what_one_analysis_fails_on_the_others_do(own: Store) -> None:
    seen: list[ProbeContext] = []
    both = [(looking("one", seen, fails="cnn"), None), (looking("two", seen), None)]
    chosen = [Partition(trial_of(own, model), 40) for model in ("cnn", "mlp")]
    broken, sound = run_together(both, StoredSweep(own, SWEEP), partitions=chosen)
    assert sound.ok and sound.done == 2
    assert len(broken.dead) == 1 and broken.done == 1 and broken.dead[0].error == "RuntimeError: no luck"


@pytest.mark.slow
def test_a_missing_corrupt_or_foreign_checkpoint_stops_itself_alone(own: Store) -> None:
    mlp, cnn, transformer = (trial_of(own, model) for model in ("mlp", "cnn", "transformer"))
    paths = own.sql("SELECT trial_id, path FROM checkpoints WHERE step = 30").set_index("trial_id")["path"]
    root = Path(own.location.root)
    (root / paths[mlp]).unlink()
    (root / paths[cnn]).write_bytes((root / paths[transformer]).read_bytes())
    (report,) = run_together([(looking("one", []), None)], StoredSweep(own, SWEEP), attempts=1)
    said = {letter.partition.trial_id: letter.error for letter in report.dead}
    assert set(said) == {mlp, cnn} and report.done == 22
    assert "is missing" in said[mlp] and "is corrupt" in said[cnn]
    contexts = Contexts(StoredSweep(own, SWEEP))
    with pytest.raises(CheckpointError, match=r"not of a cnn: it lacks \['model.conv_layers.0.bias'"):
        fill(contexts(cnn, 40).model, own.checkpoint(transformer, 40)[0], "a cnn")
    with pytest.raises(CheckpointError, match="no checkpoint at step 7 - there are: 20, 30, 40"):
        contexts(mlp, 7)
    with pytest.raises(CheckpointError, match="no trial nobody"):
        contexts("nobody", 7)


def test_what_does_not_exist_is_named(store: Store) -> None:
    context = Contexts(StoredSweep(store, SWEEP))(trial_of(store, "cnn"), 40)
    with pytest.raises(SpecError, match="no module 'conv_layer.0'.*did you mean 'conv_layers.0'"):
        context.activations("conv_layer.0")
    with pytest.raises(SpecError, match="was not kept: declare it"):
        context.activations("conv_layers.2")
    with pytest.raises(SpecError, match="no tracked layer 'conv_layers.2'"):
        context.stimuli("conv_layers.2")
    more = Contexts(StoredSweep(store, SWEEP), ["conv_layers.[25]"])(trial_of(store, "cnn"), 40)
    assert more.activations("conv_layers.2").min() == 0 and more.passes == 1


class Lying(StoredSweep):
    """A store whose trial was measured on other data."""

    def read(self, table: str, partition: Partition) -> Any:
        import pyarrow as pa

        rows = super().read(table, partition).to_pylist()
        return pa.Table.from_pylist([{**row, "confirm_hash": "0" * 64} for row in rows])


def test_another_data_set_is_refused(store: Store) -> None:
    with pytest.raises(DataError, match="confirm probe 'digits' is not the one"):
        Contexts(Lying(store, SWEEP))(trial_of(store, "mlp"), 40)


@pytest.mark.slow
def test_an_analysis_says_that_it_wants_networks() -> None:
    one, two = looking("one", []), looking("two", [])
    assert pickle.loads(pickle.dumps(Analysis("x", ("trials",), (), "trial", json.dumps))).context is None
    with pytest.raises(SpecError, match="must read the tables trials and checkpoints"):
        analysis(name="x", reads=("trials",), writes=(), per="trial", context=True)(lambda data: {})
    with pytest.raises(SpecError, match="not declared with context"):
        AnalysisInput("s", Partition("t", 1), {}).context()
    with pytest.raises(SpecError, match="say which network"):
        AnalysisInput("s", Partition("t"), {}, lambda trial, step: None).context()  # type: ignore[arg-type,return-value]
    reading = analysis(name="r", reads=("trials", "checkpoints", "test_one"), writes=(), per="trial", context=True)(
        lambda data: {}
    )
    assert together([("jumps", None), (one, None), (two, None), (reading, None), ("growth", None)]) == [
        [0], [1, 2], [3], [4],
    ]  # fmt: skip
    with pytest.raises(SpecError, match="'r' reads test_one, which 'one' writes"):
        run_together([(one, None), (reading, None)], StoredSweep(looked_at(), SWEEP))
