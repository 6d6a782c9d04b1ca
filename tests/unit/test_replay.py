"""Any step of any trial again: bit for bit what the run itself would have saved, or nothing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ndt_ray.cli import app
from ndt_ray.errors import CheckpointError, NdtError, SpecError, StoreError
from ndt_ray.founding import make_optimizer
from ndt_ray.jobs import ForeignFingerprint
from ndt_ray.lanes.batches import Batches
from ndt_ray.replay import ReplayMismatch, every, replay
from ndt_ray.run import Options, run_sweep
from ndt_ray.spec import Trial
from ndt_ray.spec.sweepfile import parse_sweep
from ndt_ray.store.checkpoints import decode_tensors
from ndt_ray.store.garbage import gc
from ndt_ray.store.reader import Store, open_store
from ndt_ray.store.sweep import remove_sweep
from ndt_ray.worker import make_pack

SPEC = """
name: {name}
base:
  data: digits
  train: {{steps: 14, batch: 32, optimizer: adam, lr: 1e-3, schedule: {{name: cosine}}}}
  measure: {{every: 4, probe: 32}}
  evaluate: {{size: 50}}
  checkpoint: {{at: {at}}}
axes:
  - {{path: model, values: [mlp_narrow, cnn_shallow]}}
  - {{path: seed, values: [1]}}
"""


def run(folder: Path, name: str, at: list[int]) -> None:
    run_sweep(parse_sweep(SPEC.format(name=name, at=at)), folder, Options(executor="inline"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same trials twice: `full` is saved where `few` is not."""
    folder = tmp_path_factory.mktemp("replay") / "store"
    run(folder, "full", [5, 6, 8, 14])
    run(folder, "few", [3, 9])
    return folder


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Store:
    """A copy, to be changed."""
    shutil.copytree(trained, tmp_path / "store")
    return open_store(tmp_path / "store")


def trial(store: Store, sweep: str, model: str = "mlp_narrow", seed: int = 1) -> str:
    rows = store.arrow("SELECT trial_id FROM trials WHERE sweep = ? AND model = ? AND seed = ?", [sweep, model, seed])
    return str(rows["trial_id"].to_pylist()[0])


def confirmations(store: Store, sweep: str, trial_id: str, step: int) -> list[dict[str, object]]:
    found = []
    for table in ("confirmations", "confirmation_spectra"):
        rows = store.arrow(
            f"SELECT * FROM {table} WHERE sweep = ? AND trial_id = ? AND step = ?", [sweep, trial_id, step]
        )
        found += sorted(rows.drop_columns(["sweep", "pack", "trial_id"]).to_pylist(), key=lambda r: r["layer_index"])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlp_narrow", "cnn_shallow"])  # stack and loop
def test_what_comes_back_is_what_was_saved_there(store: Store, model: str) -> None:
    few, full = trial(store, "few", model), trial(store, "full", model)
    found = replay(store, "few", few[:9], [8, 5, 6, 14, 9])
    assert [(s.step, s.new) for s in found.states] == [(5, True), (6, True), (8, True), (9, False), (14, True)]
    # from 3 to 9 and from 9 to 14, each once
    assert found.updates == found.compared == 6 + 5 and found.first_difference is None
    for step in (5, 6, 8, 14):
        own, meta = store.checkpoint(few, step, "few")
        planned, _ = store.checkpoint(full, step, "full")
        assert meta == {"trial_id": few, "step": step} and own.keys() == planned.keys()
        assert all(np.array_equal(v, planned[k]) for k, v in own.items())
        rows = confirmations(store, "few", few, step)
        assert rows and rows == confirmations(store, "full", full, step)
    reasons = store.arrow("SELECT step, reason FROM checkpoints WHERE trial_id = ? ORDER BY step", [few]).to_pylist()
    assert [(r["step"], r["reason"]) for r in reasons] == [
        (3, "planned"), (5, "replay"), (6, "replay"), (8, "replay"), (9, "planned"), (14, "replay"),
    ]  # fmt: skip
    again = replay(store, "few", few, [5, 14])
    assert not any(s.new for s in again.states) and again.updates == 0
    # A replayed state is one to start from.
    assert replay(store, "few", few, [7]).updates == 2


def test_it_begins_at_the_initialisation_where_there_is_nothing_before(store: Store) -> None:
    found = replay(store, "few", trial(store, "few"), [0, 2])
    assert [s.step for s in found.states] == [0, 2] and found.compared == 3
    one = replay(store, "few", trial(store, "few"), every(1, 3, 1))
    assert [(s.step, s.new) for s in one.states] == [(1, True), (2, False), (3, False)]


def test_replays_are_part_of_the_sweep(store: Store) -> None:
    few = trial(store, "few")
    path = replay(store, "few", few, [7]).states[0].path
    store.verify(deep=True)
    assert not gc(store, older_than=-60.0) and store.location.size(path)
    wide = store.sql("SELECT count(*) AS n FROM confirmations WHERE trial_id = ? AND step = 7", [few])["n"].item()
    assert wide == 5
    remove_sweep(store, "few")
    assert store.location.size(path) is None
    assert store.arrow("SELECT * FROM checkpoints WHERE sweep = 'few'").num_rows == 0


def test_files_in_a_folder_leave_the_store_alone(store: Store, tmp_path: Path) -> None:
    few, full = trial(store, "few"), trial(store, "full")
    before = store.tables()
    found = replay(store, "few", few, [6, 9], out=tmp_path / "a b", measure=True)
    assert store.tables() == before
    for state in found.states:
        tensors, meta = decode_tensors(Path(state.path).read_bytes(), "here")
        assert meta == {"trial_id": few, "step": state.step}
        sweep, whose = ("full", full) if state.step == 6 else ("few", few)
        planned, _ = store.checkpoint(whose, state.step, sweep)
        assert all(np.array_equal(v, planned[k]) for k, v in tensors.items())
    steps = {int(s) for batch in found.rows["measurements"] for s in batch["step"]}
    assert steps == {6, 9}


def test_measuring_gives_what_the_run_measured(store: Store) -> None:
    few = trial(store, "few")
    found = replay(store, "few", few, [4, 9], measure=True)
    rows = {layer: i for i, layer in enumerate(found.rows["measurements"][0]["layer"])}
    stored = store.arrow(
        "SELECT * FROM measurements WHERE trial_id = ? AND step = 4 AND sweep = 'few'", [few]
    ).to_pylist()
    for row in stored:
        for name in ("participation_ratio", "stable_rank_uncentred"):
            assert np.float32(found.rows["measurements"][0][name][rows[row["layer"]]]) == np.float32(row[name])
    assert [(s.step, s.new) for s in found.states] == [(4, True), (9, False)]


def test_another_trajectory_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ndt_ray.train.lr_factor", lambda schedule, step, steps: 0.5)
    few = trial(store, "few")
    with pytest.raises(ReplayMismatch, match="the loss of step 5 is .* and was"):
        replay(store, "few", few, [6])
    # The state that differs first gives itself away by the loss after it.
    with pytest.raises(ReplayMismatch, match="step 5"):
        replay(store, "few", few, [4])
    with pytest.raises(CheckpointError, match="no checkpoint at step 4"):
        store.checkpoint(few, 4, "few")


def test_another_machine_is_refused_or_marked(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = trial(store, "few")
    monkeypatch.setattr("ndt_ray.replay.fingerprint", lambda device: "torch9 elsewhere")
    with pytest.raises(ForeignFingerprint, match="was trained on 'torch.*this machine is 'torch9 elsewhere'"):
        replay(store, "few", few, [6])
    assert replay(store, "few", few, [9]).states[0].new is False  # what is stored needs no computing
    with pytest.raises(SpecError, match="needs --out"):
        replay(store, "few", few, [6], allow_different=True)
    monkeypatch.setattr("ndt_ray.train.lr_factor", lambda schedule, step, steps: 0.5)
    found = replay(store, "few", few, [6], allow_different=True, out=tmp_path)
    assert found.first_difference == 5 and not found.states[0].verified
    assert found.states[0].path.endswith("_unverified.safetensors")
    _, meta = decode_tensors(Path(found.states[0].path).read_bytes(), "here")
    assert meta["verified"] is False and meta["first_difference"] == 5 and meta["trained_on"].startswith("torch")


def test_a_corrupt_checkpoint_is_passed_over(store: Store) -> None:
    few = trial(store, "few")
    path = store.arrow("SELECT path FROM checkpoints WHERE trial_id = ? AND step = 9", [few])["path"][0].as_py()
    store.location.write(path, b"torn")
    notices: list[str] = []
    found = replay(store, "few", few, [11], notify=notices.append)
    assert found.updates == 12 - 3 and len(notices) == 1 and "corrupt" in notices[0]


@pytest.mark.parametrize(
    ("prefix", "steps", "message"),
    [
        ("zz", [1], "no trial 'zz'"),
        ("", [1], "beginning of 2 trials"),
        (None, [15], "from step 0 to 14, but got step 15"),
        (None, [-1], "but got step -1"),
        (None, [], "no step"),
    ],
)
def test_what_cannot_be_replayed_is_told(store: Store, prefix: str | None, steps: list[int], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        replay(store, "few", trial(store, "few") if prefix is None else prefix, steps)
    with pytest.raises(StoreError, match="did you mean 'few'"):
        replay(store, "fex", "", [1])


def test_ranges_of_steps() -> None:
    assert (
        list(every(3, None, None)) == [3] and list(every(3, 9, 3)) == [3, 6, 9] and list(every(3, 5, None)) == [3, 4, 5]
    )
    for wrong in ((5, 3, 1), (1, 5, 0)):
        with pytest.raises(SpecError, match="ascend"):
            every(*wrong)
    with pytest.raises(SpecError, match="--until"):
        every(1, None, 2)


def test_the_command(store: Store, tmp_path: Path) -> None:
    few, where = trial(store, "few"), ["--store", str(tmp_path / "store")]
    runner = CliRunner()
    done = runner.invoke(
        app(), ["replay", "few", few[:8], "--step", "4", "--until", "8", "--every", "2", *where, "--json"]
    )
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert [s["step"] for s in said["states"]] == [4, 6, 8] and said["compared"] == said["updates"] == 6
    done = runner.invoke(app(), ["replay", "few", few[:8], "--step", "6", "--step", "7", "--measure", *where])
    assert done.exit_code == 0 and "participation_ratio" in done.stdout and "already" in done.stderr
    wrong = runner.invoke(app(), ["replay", "few", few, "--step", "99", *where])
    assert isinstance(wrong.exception, NdtError) and wrong.exception.exit_code == 2


@pytest.mark.parametrize("model", ["mlp_narrow", "cnn_shallow"])
def test_plain_pytorch_trains_on_from_an_exported_checkpoint(store: Store, tmp_path: Path, model: str) -> None:
    """One update more: the state that the run itself has a step later, as near as another kernel comes to it."""
    full, out = trial(store, "full", model), tmp_path / "checkpoint_step_00005.pt"
    where = ["--store", str(tmp_path / "store"), "--sweep", "full", "--trial", full[:10]]
    done = CliRunner().invoke(app(), ["export", "checkpoint", "--step", "5", "-o", str(out), *where])
    assert done.exit_code == 0, done.output
    found = torch.load(out, weights_only=True)
    assert set(found) == {"step", "model_state_dict", "optimizer_state_dict", "loss"} and found["step"] == 5
    query = "SELECT step, loss FROM losses WHERE sweep = 'full' AND trial_id = ? AND step IN (5, 6) ORDER BY step"
    losses = store.arrow(query, [full])["loss"].to_pylist()
    assert found["loss"] == losses[0]
    spec = store.arrow("SELECT spec, cell FROM trials WHERE trial_id = ?", [full]).to_pylist()[0]
    resolved = Trial.model_validate_json(spec["spec"])
    pack = make_pack([resolved], (spec["cell"],), torch.device("cpu"))
    module = pack.build(resolved)
    module.load_state_dict(found["model_state_dict"])
    optimizer = make_optimizer(resolved, module, 5)
    optimizer.load_state_dict(found["optimizer_state_dict"])
    inputs, labels = Batches([resolved], pack.data, pack.device).get(5)
    loss = torch.nn.functional.cross_entropy(module.train()(inputs[0]), labels[0])
    assert float(loss.detach()) == pytest.approx(losses[1], rel=1e-5)
    loss.backward()
    optimizer.step()
    after, _ = store.checkpoint(full, 6, "full")
    for name, weight in module.named_parameters():
        np.testing.assert_allclose(weight.detach().numpy(), after[f"model.{name}"], atol=1e-5)
    wrong = CliRunner().invoke(app(), ["export", "checkpoint", "-o", str(out), *where])
    assert isinstance(wrong.exception, SpecError)
