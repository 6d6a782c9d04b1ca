"""The tracker in somebody else's loop: what it measures, what it survives, and that it changes nothing."""

import collections
import copy
import dataclasses
import gc
import io
import logging
import random
import subprocess
import sys
import textwrap
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ndt_ray import HighFrequencyTracker, JumpDetector, native
from ndt_ray.errors import SpecError, StoreError
from ndt_ray.jobs import ForeignFingerprint
from ndt_ray.measurement.measures import participation_ratio, stable_rank
from ndt_ray.store import writer as writer_module
from ndt_ray.store.filesystem import Location
from ndt_ray.store.reader import open_store
from ndt_ray.tracking import recording as recording_module
from ndt_ray.tracking import tracker as tracker_module
from ndt_ray.tracking.overhead import Overhead, Stopwatch

KEY = ["layer", "view", "step"]


def mlp(inplace: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(inplace), nn.Linear(12, 8), nn.ReLU(inplace), nn.Linear(8, 3))


def batch(step: int, n: int = 16) -> Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(step))


def train(
    model: nn.Module,
    tracker: HighFrequencyTracker | None,
    steps: int,
    between: Callable[[int], None] = lambda step: None,
) -> list[float]:
    """A loop as people write it; every step is logged."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = model(batch(step)).square().mean()
        loss.backward()
        optimizer.step()
        between(step)
        if tracker is not None:
            tracker.log(step, loss.item())
        losses.append(loss.item())
    return losses


def centred_spectrum(x: Tensor) -> np.ndarray:
    values = x.detach().double().reshape(-1, x.shape[-1])
    return torch.linalg.svdvals(values - values.mean(0)).square().numpy()


class Loss:
    """What the founding example's `train_step` gives."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def item(self) -> float:
        return self.value.item()


FOUNDING_EXAMPLE = """
from ndt_ray import HighFrequencyTracker
from ndt_ray import ActivationAnalyzer

# Track dimensionality during training
tracker = HighFrequencyTracker(model, sampling_frequency=5)
for epoch in range(num_epochs):
    for batch in dataloader:
        loss = train_step(batch)
        tracker.log(step, loss.item())

# Detect critical moments
jumps = tracker.detect_jumps(metric="stable_rank")

# Analyze at critical moments
analyzer = ActivationAnalyzer()
for jump in jumps[:5]:
    # Load checkpoint at jump moment
    # Capture and analyze activations
    pca_results = analyzer.pca_analysis(activations)
"""


@pytest.mark.slow
def test_the_founding_example_runs_with_only_its_imports_changed() -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())
    around: dict[str, Any] = {"model": model, "num_epochs": 4, "dataloader": [batch(i) for i in range(50)], "step": -1}
    around["activations"] = model[:2](batch(0))

    def train_step(inputs: Tensor) -> Loss:
        around["step"] += 1
        optimizer.zero_grad()
        # The representation widens at step 150: something for the detector to find.
        scale = torch.tensor([1.0, 0, 0, 0, 0, 0]) if around["step"] < 150 else torch.ones(6)
        loss = model(inputs * scale).square().mean()
        loss.backward()
        optimizer.step()
        return Loss(loss)

    around["train_step"] = train_step
    exec(FOUNDING_EXAMPLE, around)
    jumps = around["jumps"]
    assert (jumps[0].step, jumps[0].step_before, jumps[0].direction) == (150, 145, "increase")
    assert {"0", "2"} <= {jump.layer for jump in jumps[:5]}
    assert around["pca_results"].projections.shape == (16, 12)


@pytest.mark.slow
def test_a_jump_is_reported_at_its_training_step() -> None:
    model = nn.Sequential(nn.Linear(6, 12))
    tracker = HighFrequencyTracker(model, sampling_frequency=10)
    for step in range(1600):
        if step % 10 == 0:
            model(batch(step, 64) * (torch.tensor([1.0, 0.1, 0, 0, 0, 0]) if step < 1500 else torch.ones(6)))
        tracker.log(step)
    found = tracker.detect_jumps(metric="participation_ratio")
    largest = max(found, key=lambda jump: jump.z_score)
    assert (largest.step, largest.step_before) == (1500, 1490)
    assert (largest.layer, largest.metric_name) == ("0", "participation_ratio")
    assert largest.value_before < 1.5 < largest.value_after


@pytest.mark.slow
def test_rows_are_those_of_the_training_batch_before_the_update() -> None:
    model, seen = mlp(), {}
    tracker = HighFrequencyTracker(model, sampling_frequency=5)
    hook = model[2].register_forward_hook(lambda _m, _a, output: seen.update(output=output.detach().clone()))
    train(model, tracker, 11)
    hook.remove()
    results = tracker.get_results()
    assert list(results) == ["0", "2", "4"]
    assert results["2"]["step"].tolist() == [0, 5, 10]
    last = tracker.get_results("2").iloc[-1]
    assert last["participation_ratio"] == pytest.approx(participation_ratio(centred_spectrum(seen["output"])), rel=1e-6)
    assert last["stable_rank"] == pytest.approx(stable_rank(centred_spectrum(seen["output"])), rel=1e-6)
    assert last["n_stimuli"] == 16 and last["view"] == "units" and last.isna()["flag"]


def test_an_expanding_linear_is_measured_through_its_input_as_it_was_before_the_update() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 1))
    tracker, seen = HighFrequencyTracker(model, 1), {}

    def note(output: Tensor) -> None:
        seen["output"] = output.detach().clone()

    inner = model[1].register_forward_pre_hook(lambda _m, args: note(args[0]))
    optimizer = torch.optim.SGD(model.parameters(), 5.0)
    for step in range(2):
        model(batch(step, 64)).square().mean().backward()
        optimizer.step()
        tracker.log(step)
    inner.remove()
    spectrum = tracker.table("spectra").query("layer == '0' and step == 1").iloc[0]
    expected = centred_spectrum(seen["output"])
    assert spectrum["n_features"] == 40 and len(spectrum["eigenvalues"]) == 7
    assert spectrum["eigenvalues"] == pytest.approx(expected[:7], rel=1e-5, abs=1e-5 * expected[0])


# -- nothing changes ------------------------------------------------------------


class Noisy(nn.Module):
    """Batch norm, dropout, and draws from every generator there is."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(inplace=True), nn.Dropout(0.3))
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        noise = random.random() + float(np.random.rand())  # noqa: NPY002
        out: Tensor = self.head(nn.functional.dropout(self.body(x), 0.1, training=True) + noise * torch.rand(1))
        return out


@pytest.mark.slow
@pytest.mark.parametrize("how", ["batch", "probe", "store", "uncentred"])
def test_training_is_bit_identical_with_and_without(how: str, tmp_path: Path) -> None:
    options: dict[str, dict[str, Any]] = {
        "batch": {},
        "probe": {"probe": batch(99, 32), "probe_labels": torch.arange(32) % 3},
        "store": {"store": tmp_path / "store"},
        "uncentred": {"centred": False, "passes": "all"},
    }
    ends = []
    for tracked in (False, True):
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        model = Noisy()
        tracker = HighFrequencyTracker(model, 3, **options[how]) if tracked else None
        losses = train(model, tracker, 20)
        if tracker is not None:
            assert tracker.get_results("head")["step"].tolist() == [0, 3, 6, 9, 12, 15, 18]
            assert model.training and model.body[1].training
            tracker.close()
        ends.append((losses, model.state_dict(), torch.get_rng_state(), random.random(), np.random.rand()))  # noqa: NPY002
    (losses, state, *generators), (tracked_losses, tracked_state, *tracked_generators) = ends
    assert losses == tracked_losses
    assert all(torch.equal(state[name], tracked_state[name]) for name in state)
    assert torch.equal(generators[0], tracked_generators[0]) and generators[1:] == tracked_generators[1:]


def test_closing_takes_every_hook_off() -> None:
    model = mlp()
    tracker = HighFrequencyTracker(model)
    assert any(m._forward_hooks for m in model)
    train(model, tracker, 3)
    tracker.close()
    tracker.close()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model)
    assert len(tracker.get_results("0")) == 1
    with pytest.raises(SpecError, match="closed"):
        tracker.log(5)


def test_a_forgotten_tracker_takes_its_hooks_with_it(tmp_path: Path) -> None:
    model = mlp()
    tracker = HighFrequencyTracker(model, store=tmp_path / "store")
    train(model, tracker, 6)
    gone = weakref.ref(tracker)
    del tracker
    gc.collect()
    assert gone() is None
    assert not any(m._forward_hooks for m in model)
    assert open_store(tmp_path / "store").tables()["measurements"] == 6


def test_what_holds_a_tracker_can_be_copied() -> None:
    owner = mlp()
    owner.tracker = HighFrequencyTracker(mlp(), 1)  # type: ignore[assignment]
    copied = copy.deepcopy(owner)
    assert isinstance(copied.tracker, HighFrequencyTracker)


def test_copies_of_a_tracked_model_are_not_tracked() -> None:
    model = mlp()
    tracker = HighFrequencyTracker(model, 1)
    teacher = copy.deepcopy(model)
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=False)
    model(batch(0))
    teacher(batch(1, 5))
    loaded(batch(2, 7))
    tracker.log(0)
    assert tracker.get_results("0")["n_stimuli"].tolist() == [16]


# -- what a layer may put out ------------------------------------------------------------


@dataclasses.dataclass
class Output:
    logits: Tensor
    hidden: Tensor | None = None


class Modelish(collections.OrderedDict[str, Tensor]):
    """A ModelOutput, as transformers has them."""


class Returning(nn.Module):
    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.form = nn.Linear(6, 5), form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.inner(x))


@pytest.mark.parametrize(
    "form",
    [
        lambda x: (x, None),
        lambda x: [None, x],
        lambda x: {"hidden": x},
        lambda x: Modelish(hidden=x),
        lambda x: Output(x),
        lambda x: (None, (Output(x), 3)),
    ],
)
def test_outputs_that_are_no_tensor(form: Callable[[Tensor], Any]) -> None:
    model = Returning(form)
    tracker = HighFrequencyTracker(model, layers=["(model)", "inner"])
    model(batch(0))
    tracker.log(0)
    whole, inner = tracker.get_results("(model)"), tracker.get_results("inner")
    assert whole["participation_ratio"].tolist() == inner["participation_ratio"].tolist()
    assert whole["flag"].isna().all()


class Recurrent(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(6, 10, batch_first=batch_first)
        self.attention = nn.MultiheadAttention(10, 2, batch_first=batch_first)
        self.encoder = nn.TransformerEncoderLayer(10, 2, 20, batch_first=batch_first, dropout=0.0)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.lstm(x if self.batch_first else x.transpose(0, 1))
        mixed, _ = self.attention(hidden, hidden, hidden)
        out: Tensor = self.encoder(mixed)
        return out


def test_attention_and_lstm_whichever_axis_is_the_batch() -> None:
    rows = []
    for batch_first in (True, False):
        model = Recurrent(batch_first)
        names = ["lstm", "attention", "encoder.linear1", "encoder.linear2"]
        tracker = HighFrequencyTracker(model, layers=names)
        model(torch.randn(9, 4, 6, generator=torch.Generator().manual_seed(3)))
        tracker.log(0)
        rows.append(tracker.table("measurements"))
        assert tracker.layers == names
    first, second = rows
    assert first["n_stimuli"].tolist() == second["n_stimuli"].tolist() == [9] * 4
    assert first["view"].tolist() == ["tokens"] * 4 and first["flag"].isna().all()
    for name in ("stable_rank", "participation_ratio_corrected"):
        assert first[name].to_numpy() == pytest.approx(second[name].to_numpy(), rel=1e-4)


def test_an_in_place_relu_does_not_change_what_is_measured() -> None:
    tables = []
    for inplace in (False, True):
        model = mlp(inplace)
        tracker = HighFrequencyTracker(model, 2)
        train(model, tracker, 9)
        tables.append(tracker.table("measurements"))
    assert tables[0].equals(tables[1])
    assert tables[0]["flag"].isna().all()


def test_an_in_place_relu_and_steps_that_nobody_can_foresee(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True))
    tracker = HighFrequencyTracker(model, 10)
    flags = []
    for step in (0, 1, 2, 20, 21, 22, 40, 50):  # 20 and 40 come unannounced
        model(batch(step))
        if tracker.log(step):
            flags.append(tracker.get_results("0")["flag"].iloc[-1])
    assert [flag if isinstance(flag, str) else None for flag in flags] == [None, "lost", None, None]
    assert "overwritten" in caplog.text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_of_any_precision(dtype: torch.dtype) -> None:
    full, model = mlp(), mlp().to(dtype)
    trackers = HighFrequencyTracker(full), HighFrequencyTracker(model, probe=None)
    full(batch(0))
    model(batch(0).to(dtype))
    rows = []
    for tracker in trackers:
        tracker.log(0)
        rows.append(tracker.table("measurements"))
    assert rows[1]["flag"].isna().all()
    assert rows[1]["stable_rank"].to_numpy() == pytest.approx(rows[0]["stable_rank"].to_numpy(), rel=0.03)
    probed = HighFrequencyTracker(model, probe=batch(0))
    probed.log(0)
    assert probed.table("measurements")["flag"].isna().all()


def test_autocast() -> None:
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(inplace=True), nn.Linear(40, 3))
    tracker = HighFrequencyTracker(model, 1)
    scaler = torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(batch(step, 64)).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            tracker.log(step, loss)  # also inside the region
    rows = tracker.table("measurements")
    assert rows["flag"].isna().all() and len(rows) == 4
    spectrum = tracker.table("spectra").iloc[0]
    # Measured as it is, rounded to bfloat16, and not through the input of what it would have been.
    assert len(spectrum["eigenvalues"]) == 40


def test_convolutions_views_and_unmeasurable_outputs(caplog: pytest.LogCaptureFixture) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.ids, self.text = nn.Conv2d(1, 4, 3), nn.Identity(), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            self.ids(x.flatten(1).argmax(1, keepdim=True))
            self.text("no tensor at all")
            out: Tensor = self.conv(x)
            return out

    model = Odd()
    tracker = HighFrequencyTracker(model, layers=["ids", "text", "conv"], views={"positions": "gap"})
    model(torch.randn(7, 1, 8, 8))
    assert tracker.log(0)
    rows = tracker.table("measurements").set_index("layer")
    assert rows["view"]["conv"] == "gap" and rows["flag"].isna()["conv"]
    assert rows["flag"]["ids"] == rows["flag"]["text"] == "lost"
    assert "torch.int64" in caplog.text and "gives no tensor but str" in caplog.text
    assert "gap" in HighFrequencyTracker(mlp(), views={"positions": "gap"}).table("trials")["spec"][0]


# -- which pass is measured ------------------------------------------------------------


def test_a_pass_in_eval_mode_between_step_and_log_changes_nothing() -> None:
    tables = []
    for evaluating in (False, True):
        model = mlp(inplace=True)

        def evaluate(step: int, model: nn.Module = model, on: bool = evaluating) -> None:
            if on:
                model.eval()
                model(batch(1000 + step, 50))  # with gradients
                with torch.no_grad():
                    model(batch(2000 + step, 60))
                model.train()
                with torch.no_grad():
                    model(batch(3000 + step, 70))

        tracker = HighFrequencyTracker(model, 2)
        train(model, tracker, 7, evaluate)
        tables.append(tracker.table("measurements"))
    assert tables[0].equals(tables[1])


def test_passes_says_which_passes_are_recorded(caplog: pytest.LogCaptureFixture) -> None:
    flags = {}
    for passes in ("train", "grad", "all"):
        model = mlp().eval()
        tracker = HighFrequencyTracker(model, 1, passes=passes)  # type: ignore[arg-type]
        model(batch(0))
        tracker.log(0)
        with torch.no_grad():
            model(batch(1))
        tracker.log(1)
        flags[passes] = tracker.get_results("0")["flag"].notna().tolist()
    assert flags == {"train": [True, True], "grad": [False, True], "all": [False, False]}
    assert "passes=" in caplog.text
    assert caplog.text.count("0, 2, 4: not run in a recorded forward pass") == 2  # said once by each run


def test_a_layer_that_did_not_run_has_a_row() -> None:
    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.never, self.always, self.late = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor, late: bool) -> Tensor:
            x = self.always(x)
            out: Tensor = self.late(x) if late else x
            return out

    model = Skipping()
    tracker = HighFrequencyTracker(model, 1)
    tracker.log(0)
    for step, late in ((1, False), (2, True), (3, False)):
        model(batch(step), late)
        tracker.log(step)
    rows = tracker.table("measurements").set_index(["layer", "step"]).sort_index()
    assert len(rows) == 12
    lost = rows["flag"] == "lost"
    assert lost.groupby("layer").sum().to_dict() == {"never": 4, "always": 1, "late": 3}
    assert rows.loc[("late", 3), "view"] == "units" and rows.loc[("late", 1), "view"] == "none"
    assert rows.loc[("late", 3), "layer_index"] == rows.loc[("late", 2), "layer_index"] == 1
    assert tracker.layers == ["always", "late", "never"]


def test_layers_are_in_the_order_of_execution() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.second, self.first = nn.Linear(4, 2), nn.Linear(5, 4), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(self.second(self.first(x)))
            return out

    for options in ({}, {"probe": batch(0)}):
        model = Backwards()
        tracker = HighFrequencyTracker(model, 1, **options)
        model(batch(0))
        tracker.log(0)
        assert list(tracker.get_results()) == ["first", "second", "last"]
        assert tracker.table("measurements")["layer_index"].tolist() == [0, 1, 2]


def test_shared_modules_and_two_names_of_one() -> None:
    shared = nn.Linear(6, 6)
    model = nn.Sequential(collections.OrderedDict(a=shared, b=nn.Tanh(), c=shared))
    tracker = HighFrequencyTracker(model, 1)
    assert tracker.layers == ["a"]
    output = model(batch(0))
    tracker.log(0)
    value = tracker.get_results("a")["stable_rank"][0]
    assert value == pytest.approx(stable_rank(centred_spectrum(output)), rel=1e-6)  # its last call
    both = HighFrequencyTracker(model, 1, layers=["a", "c"])
    model(batch(0))
    both.log(0)
    assert both.get_results("a")["stable_rank"][0] == both.get_results("c")["stable_rank"][0] == value


def test_dead_nonfinite_and_tiny_batches() -> None:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.dead, self.nan = nn.Linear(6, 5), nn.Identity(), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            self.dead(torch.ones(len(x), 4))
            self.nan(torch.full((len(x), 4), torch.nan))
            out: Tensor = self.linear(x)
            return out

    model = Layers()
    tracker = HighFrequencyTracker(model, 1, layers=["linear", "dead", "nan"])
    for step, n in enumerate((16, 2, 1, 0, 30)):
        model(batch(step, n))
        assert tracker.log(step)
    rows = {name: frame.set_index("step") for name, frame in tracker.get_results().items()}
    flags = {name: [f if isinstance(f, str) else None for f in frame["flag"]] for name, frame in rows.items()}
    assert flags["linear"] == [None, None, "few_rows", "lost", None]
    assert flags["dead"] == ["dead", "dead", "few_rows", "lost", "dead"]
    assert flags["nan"] == ["nonfinite", "nonfinite", "few_rows", "lost", "nonfinite"]
    assert rows["linear"]["participation_ratio"][1] == pytest.approx(1.0)
    assert rows["linear"]["n_stimuli"].dropna().tolist() == [16, 2, 1, 30]
    for name in ("dead", "nan"):
        assert rows[name]["stable_rank"].isna().all() and rows[name]["energy_90"].isna().all()


# -- wrappers ------------------------------------------------------------


def test_data_parallel_names() -> None:
    model = nn.DataParallel(mlp())
    tracker = HighFrequencyTracker(model, 1, layers=["0", "4"])
    model(batch(0))
    tracker.log(0)
    assert list(tracker.get_results()) == ["0", "4"]
    assert tracker.table("trials")["model"][0] == "Sequential"


def test_distributed_names_and_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = f"file://{tmp_path}/rendezvous"
    torch.distributed.init_process_group("gloo", init_method=where, rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(mlp())
        tracker = HighFrequencyTracker(model, 1, store=tmp_path / "store")
        train(model, tracker, 2)
        assert list(tracker.get_results()) == ["0", "2", "4"]
        tracker.close()
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
        other = HighFrequencyTracker(model, 1, store=tmp_path / "store")
        assert not other.log(0)
        with pytest.raises(SpecError, match="rank 0"):
            other.get_results()
        other.close()
    finally:
        torch.distributed.destroy_process_group()
    assert open_store(tmp_path / "store").tables()["trials"] == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler looks at it, where its graph breaks
def test_compiled_models(caplog: pytest.LogCaptureFixture) -> None:
    torch._dynamo.reset()
    expected = HighFrequencyTracker(mlp(True), 1)
    expected._model(batch(0))
    expected.log(0)
    for early in (True, False):
        plain = mlp(True)
        tracker = HighFrequencyTracker(plain, 1) if early else None
        model = torch.compile(plain, backend="eager")
        tracker = tracker or HighFrequencyTracker(model, 1)
        for step in range(2):
            model(batch(step))
            assert tracker.log(step)
        rows = tracker.table("measurements").query("step == 0").reset_index(drop=True)
        assert rows.drop(columns="trial_id").equals(expected.table("measurements").drop(columns="trial_id"))
        assert list(tracker.get_results()) == ["0", "2", "4"]
        assert tracker.table("measurements")["flag"].isna().all()

    torch._dynamo.reset()
    ran_before = torch.compile(mlp(), backend="eager", fullgraph=True)
    ran_before(batch(0))
    with pytest.raises(SpecError, match="fullgraph"):
        HighFrequencyTracker(ran_before, 1)
    probed = HighFrequencyTracker(ran_before, 1, probe=batch(0))
    probed.log(0)
    assert probed.table("measurements")["flag"].isna().all()
    ran_before(batch(1))
    late = HighFrequencyTracker(ran_before._orig_mod, 1)
    ran_before(batch(2))
    late.log(0)
    assert late.table("measurements")["flag"].tolist() == ["lost"] * 3
    assert "compiled and run before" in caplog.text
    torch._dynamo.reset()


# -- steps and arguments ------------------------------------------------------------


def test_steps_that_repeat_or_go_back_are_told_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    model = mlp()
    tracker = HighFrequencyTracker(model, 1)
    for epoch in range(2):
        for step in range(3):
            model(batch(step))
            assert tracker.log(step) == (epoch == 0)
    model(batch(3))
    assert not tracker.log(2) and tracker.log(3)
    assert tracker.get_results("0")["step"].tolist() == [0, 1, 2, 3]
    assert caplog.text.count("steps must rise") == 1
    tracker.close()
    assert "4 logged steps were not measured" in caplog.text


def test_force_and_a_frequency_that_never_meets_the_steps(caplog: pytest.LogCaptureFixture) -> None:
    model = mlp()
    tracker = HighFrequencyTracker(model, 10)
    for step in (1, 11, 21, 31):
        model(batch(step))
        assert not tracker.log(step)
    assert "is a multiple of sampling_frequency=10" in caplog.text
    model(batch(0))
    assert tracker.log(37, force=True)
    assert tracker.get_results("0")["step"].tolist() == [37]
    assert tracker.get_results("0")["flag"].isna().all()


def test_what_log_takes(caplog: pytest.LogCaptureFixture) -> None:
    model = mlp()
    tracker = HighFrequencyTracker(model, 1)
    for step, loss in enumerate((torch.tensor(0.5), np.float32(0.5), None, float("nan"), torch.ones(2), "much")):
        model(batch(step))
        tracker.log(np.int64(step), loss, grad_norm=torch.tensor(2.0), lr=0.1)
    frame = tracker.get_results("0")
    assert frame["loss"].fillna(-1).tolist() == [0.5, 0.5, -1, -1, -1, -1]
    assert frame["grad_norm"].tolist() == [2.0] * 6
    assert "loss is not one number" in caplog.text
    for bad in (-1, 1.5, "3", 2**31):
        with pytest.raises(SpecError, match="step must"):
            tracker.log(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["5"]}, "no layer '5'"),
        ({"layers": []}, "layers is empty"),
        ({"layers": [nn.Linear(1, 1)]}, "no part of Sequential"),
        ({"layers": [3]}, "a module or its path"),
        ({"layers": ["0"], "layer_names": ["a", "b"]}, "2 names for 1"),
        ({"layers": ["0", "2"], "layer_names": ["a", "a"]}, "must differ"),
        ({"layers": ["*"], "layer_names": ["a"]}, "3 layers"),
        ({"sampling_frequency": 0}, "sampling_frequency"),
        ({"sampling_frequency": 2.5}, "sampling_frequency"),
        ({"spectra": "some"}, "spectra must"),
        ({"passes": "test"}, "passes must"),
        ({"existing": "ask"}, "existing must"),
        ({"views": {"positions": "sideways"}}, "sideways"),
        ({"views": {"pixels": "gap"}}, "pixels"),
        ({"probe": batch(0)[:, :2]}, "probe does not go through"),
        ({"probe": 3}, "a probe is a tensor"),
        ({"probe": batch(0), "probe_labels": torch.zeros(3)}, "16 stimuli"),
        ({"probe": batch(0), "probe_labels": torch.full((16,), 3)}, "3 classes"),
        ({"probe_labels": torch.zeros(3)}, "go with a probe"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    model = mlp()
    with pytest.raises(SpecError, match=message):
        HighFrequencyTracker(model, **options)
    assert not any(m._forward_hooks for m in model)


def test_models_with_nothing_to_measure() -> None:
    with pytest.raises(SpecError, match="nothing to measure"):
        HighFrequencyTracker(nn.Sequential(nn.ReLU()))
    with pytest.raises(SpecError, match="must be an nn.Module"):
        HighFrequencyTracker("model")  # type: ignore[arg-type]


def test_layers_by_module_pattern_and_other_names() -> None:
    model = mlp()
    assert HighFrequencyTracker(model, layers=[model[4], model[0]]).layers == ["4", "0"]
    assert HighFrequencyTracker(model, layers="[02]").layers == ["0", "2"]
    assert HighFrequencyTracker(model, layer_names=["2"]).layers == ["2"]
    tracker = HighFrequencyTracker(model, layers=[model[0], model[4]], layer_names=["in", "out"])
    model(batch(0))
    tracker.log(0)
    assert list(tracker.get_results()) == ["in", "out"]
    with pytest.raises(SpecError, match="did you mean 'out'"):
        tracker.get_results("outt")


def test_what_is_kept_of_the_spectra() -> None:
    rows = {}
    for spectra in ("full", 2, "none"):
        model = mlp()
        tracker = HighFrequencyTracker(model, 1, spectra=spectra)  # type: ignore[arg-type]
        model(batch(0))
        tracker.log(0)
        rows[spectra] = tracker.table("spectra").iloc[0]
    assert [len(row["eigenvalues"]) for row in rows.values()] == [12, 2, 0] or len(rows["full"]["eigenvalues"]) == 7
    assert rows["none"]["trace"] == rows["full"]["trace"]
    model = mlp()
    tracker = HighFrequencyTracker(model, 1, centred=False)
    model(batch(0))
    tracker.log(0)
    frame = tracker.get_results("2")
    assert frame["stable_rank"].isna().all() and frame["stable_rank_uncentred"].notna().all()
    assert frame["flag"].isna().all()


def test_a_failure_inside_measuring_costs_rows_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = mlp()
    tracker = HighFrequencyTracker(model, 1)
    train(model, tracker, 2)

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of something")

    assert len(tracker.table("scalars")) == 2
    with monkeypatch.context() as patch:
        patch.setattr("ndt_ray.tracking.meter.rows", broken)
        model(batch(2))
        assert tracker.log(2)
        assert len(tracker.table("scalars")) == 3
        patch.setattr("ndt_ray.tracking.meter.measure_layers", broken)
        model(batch(3))
        assert tracker.log(3, 1.5)
    model(batch(4))
    tracker.log(4)
    for frame in tracker.get_results().values():
        assert frame["flag"].notna().tolist() == [False, False, True, True, False]
        assert frame["loss"][3] == 1.5
    assert "out of something" in caplog.text


# -- a fixed probe ------------------------------------------------------------


def test_a_probe_has_scalars_velocity_and_the_model_after_the_update() -> None:
    model = mlp()
    probe, labels = batch(7, 32), torch.arange(32) % 3
    tracker = HighFrequencyTracker(model, 5, probe=probe, probe_labels=labels)
    assert not any(m._forward_hooks for m in model)
    train(model, tracker, 11)
    scalars = tracker.table("scalars")
    loss = nn.functional.cross_entropy(model(probe), labels).item()
    assert scalars["probe_loss"].iloc[-1] == pytest.approx(loss, rel=1e-6)
    assert len(scalars["probe_class_accuracy"].iloc[-1]) == 3
    velocity = tracker.table("velocity").query("layer == '4'").sort_values("step")
    assert velocity["previous_step"].fillna(-1).tolist() == [-1, 0, 5]
    assert velocity["velocity"].iloc[1:].gt(0).all() and velocity["label_alignment"].notna().all()
    value = tracker.get_results("4")["stable_rank"].iloc[-1]
    assert value == pytest.approx(stable_rank(centred_spectrum(model(probe))), rel=1e-6)
    assert tracker.table("trials")["probe_size"][0] == 32


def test_probes_of_several_inputs_and_one_that_stops_fitting(caplog: pytest.LogCaptureFixture) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.broken = nn.Linear(6, 4), False

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            if self.broken:
                raise ValueError("no more")
            out: Tensor = self.linear(x) * scale
            return out

    scale = torch.ones(16, 1)
    values = []
    for probe in ((batch(0), scale), {"scale": scale, "x": batch(0)}):
        torch.manual_seed(0)
        model = Two()
        tracker = HighFrequencyTracker(model, 1, probe=probe)
        assert tracker.log(0)
        values.append(tracker.get_results("linear")["stable_rank"][0])
        model.broken = True
        assert tracker.log(1)
        assert tracker.get_results("linear")["flag"].tolist()[1] == "lost"
        assert model.training
    assert values[0] == values[1]
    assert "ValueError: no more" in caplog.text


# -- jumps ------------------------------------------------------------


def measured(values: list[tuple[int, float]]) -> HighFrequencyTracker:
    """A tracker whose one layer has a diagonal of given participation at given steps."""
    model = nn.Sequential(collections.OrderedDict(only=nn.Identity()))
    tracker = HighFrequencyTracker(model, 5, layers=["only"])
    generator = torch.Generator().manual_seed(0)
    for step, value in values:
        wide = torch.randn(64, 4, generator=generator) * torch.tensor([1.0, value, value, value])
        model(wide if np.isfinite(value) else wide * torch.nan)
        tracker.log(step)
    return tracker


def test_detector_parameters_metrics_and_gaps(caplog: pytest.LogCaptureFixture) -> None:
    flat = [(step, 0.1) for step in range(0, 300, 5)]
    tracker = measured([*flat, *[(step, 1.0) for step in range(300, 330, 5)]])
    found = tracker.detect_jumps(metric="participation_ratio")
    assert found[0].step == 300 and found[0].direction == "increase" and found[0].z_score > 3
    assert tracker.detect_jumps("only", "participation_ratio", threshold=1e9) == []
    assert tracker.detect_jumps(detector="difference_z", metric="cumulative_90")[0].step == 300
    for arguments, message in (
        ({"metric": "stable_ranc"}, "did you mean 'stable_rank'"),
        ({"layer": "other"}, "no layer 'other'"),
        ({"detector": "magic"}, "unknown detector"),
        ({"windw": 3}, "did you mean 'window'"),
    ):
        with pytest.raises(SpecError, match=message):
            tracker.detect_jumps(**arguments)  # type: ignore[arg-type]
    assert not caplog.text
    assert measured(flat[:10]).detect_jumps() == []
    assert "too few measurements in a row to judge only" in caplog.text

    # Rows without a value part a series; each part is judged by itself, and forced steps are not on its grid.
    holes = [(step, float("nan") if step in (40, 200) else 0.1 if step < 320 else 1.0) for step in range(0, 400, 5)]
    assert min(jump.step for jump in measured(holes).detect_jumps(metric="participation_ratio", threshold=5)) == 320


def test_a_constant_series_has_no_jumps() -> None:
    model = nn.Sequential(nn.Linear(6, 5))
    tracker = HighFrequencyTracker(model, 1, probe=batch(0))
    for step in range(60):
        tracker.log(step)
    assert tracker.detect_jumps(detector="difference_z") == []


def test_jump_detector() -> None:
    values = np.random.default_rng(0).normal(10, 0.3, 400)
    values[200:] += 10
    jumps = JumpDetector().detect_jumps(values, "stable_rank", steps=range(0, 4000, 10))
    assert 2000 in [jump.step for jump in jumps] and jumps[0].metric == "stable_rank"
    assert JumpDetector(z_threshold=100).detect_jumps(values) == []
    assert [j.step - 5 for j in JumpDetector().detect_jumps(values, step_offset=5)] == [j.step // 10 for j in jumps]
    with pytest.raises(SpecError, match="min_samples"):
        JumpDetector(window_size=5)


# -- a store ------------------------------------------------------------


def test_the_store_holds_what_memory_would(tmp_path: Path) -> None:
    tables = {}
    for name, options in (("memory", {}), ("store", {"store": str(tmp_path / "store"), "steps": 21, "seed": 3})):
        model = mlp()
        with HighFrequencyTracker(model, 5, probe=batch(5, 32), run="my run", data="noise", **options) as tracker:
            train(model, tracker, 21)
            jumps = tracker.detect_jumps()
        assert tracker.get_results("0")["step"].tolist() == [0, 5, 10, 15, 20]
        tables[name] = {table: tracker.table(table) for table in ("measurements", "spectra", "scalars", "velocity")}
        assert jumps == []
    for table, rows in tables["memory"].items():
        stored = tables["store"][table][rows.columns]
        assert len(rows) == len(stored) > 0
        for column in rows:
            assert [np.array_equal(a, b, equal_nan=isinstance(a, float)) or (a is None and b is None) for a, b in zip(
                rows[column], stored[column], strict=True)].count(False) in (0, rows[column].isna().sum())  # fmt: skip
    store = open_store(tmp_path / "store")
    trial = store.trials("tracked").iloc[0]
    assert (trial["cell"], trial["model"], trial["data"], trial["steps"], trial["seed"]) == (
        "my run", "Sequential", "noise", 21, 3,
    )  # fmt: skip
    assert trial["n_parameters"] == sum(p.numel() for p in mlp().parameters())
    assert store.table("outcomes")["last_step"].tolist() == [20]
    assert store.measurements(layer="2", columns=["step", "batch_loss"])["step"].tolist() == [0, 5, 10, 15, 20]
    assert store.manifests("tracked")[0].finished


def test_the_trial_is_the_runs_name_and_the_models_structure(tmp_path: Path) -> None:
    ids = [
        HighFrequencyTracker(model, run=run).trial_id
        for model, run in ((mlp(), "a"), (mlp(True), "a"), (mlp(), "b"), (nn.Sequential(nn.Linear(6, 3)), "a"))
    ]
    assert ids[0] == ids[1] and len(set(ids)) == 3


def test_rows_are_committed_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NDT_COMMIT_SECONDS", "30")  # without a pause after a commit that took long
    monkeypatch.setattr(writer_module, "COMMIT_ROWS", 12)
    monkeypatch.setattr(recording_module, "GROUP", 2)
    model = mlp()
    tracker = HighFrequencyTracker(model, 1, store=tmp_path / "store")
    store = open_store(tmp_path / "store")
    assert len(store.trials()) == 1  # at once
    held = []
    for step in range(20):
        model(batch(step))
        tracker.log(step, 0.5)
        buffers = tracker._recording._writer._buffers  # type: ignore[attr-defined]
        held.append(max((b.rows for b in buffers.values()), default=0))
    assert max(held) <= 12
    assert store.tables()["measurements"] == 60
    tracker.close()
    assert store.table("outcomes")["status"].tolist() == ["finished"]


def run_again(store: Path, steps: range, **options: Any) -> HighFrequencyTracker:
    model = mlp()
    tracker = HighFrequencyTracker(model, 1, store=store, probe=batch(9), **options)
    for step in steps:
        tracker.log(step, float(step))
    return tracker


def test_a_run_that_is_there_is_refused_resumed_or_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = tmp_path / "store"
    with pytest.raises(RuntimeError, match="crash"), run_again(store, range(4)) as tracker:
        raise RuntimeError("crash")
    rows = open_store(store)
    assert rows.tables()["measurements"] == 12 and not rows.manifests()[0].finished
    assert rows.attempts()[0].error == "RuntimeError: crash"
    with pytest.raises(StoreError, match="stands there already, up to step 3"):
        run_again(store, range(2))

    resumed = run_again(store, range(2, 7), existing="resume")
    assert resumed.get_results("0")["step"].tolist() == list(range(7))
    assert resumed.get_results("0")["loss"].tolist() == [float(i) for i in range(7)]
    velocity = resumed.table("velocity").query("layer == '0' and step == 4")
    assert velocity["previous_step"].tolist() == [3] and velocity["velocity"].tolist() == [0.0]
    resumed.close()
    assert "step 2 was logged after step 3" in caplog.text
    with pytest.raises(StoreError, match="was closed at step 6"):
        run_again(store, range(2), existing="resume")
    with run_again(store, range(2), existing="replace") as tracker:
        assert tracker.get_results("0")["step"].tolist() == [0, 1]
    run_again(store, range(2), run="another").close()
    assert open_store(store).tables()["trials"] == 2


def elsewhere(monkeypatch: pytest.MonkeyPatch, mark: str) -> None:
    monkeypatch.setattr(tracker_module, "fingerprint", lambda device: mark)


def test_a_run_goes_on_where_its_numerics_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = tmp_path / "store"
    with monkeypatch.context() as other:
        elsewhere(other, "torch9 elsewhere")
        run_again(store, range(4))._close(finished=False)
    with pytest.raises(ForeignFingerprint, match="on 'torch9 elsewhere' up to step 3, and this is 'torch"):
        run_again(store, range(4, 6), existing="resume")
    assert len(open_store(store).attempts()) == 1  # nothing was claimed: who measures there goes on undisturbed
    caplog.set_level(logging.WARNING)
    assert not caplog.text

    mixed = run_again(store, range(4, 6), existing="resume_different")
    assert caplog.text.count("measured on 'torch9 elsewhere' up to step 3") == 1
    assert mixed.get_results("0")["step"].tolist() == list(range(6))
    mixed._close(finished=False)
    marks = [attempt.fingerprint for attempt in open_store(store).attempts()]
    assert marks[0] == "torch9 elsewhere" and marks[1].startswith(f"torch{torch.__version__}")

    caplog.clear()
    run_again(store, range(6, 8), existing="resume").close()  # it stands on these numerics now
    assert not caplog.text


def test_a_run_goes_on_with_what_solved_its_spectra(tmp_path: Path) -> None:
    if not native.active():
        pytest.skip("compiled kernels cannot be had here: no C compiler, or NDT_NATIVE=0")
    store = tmp_path / "store"
    with native.as_recorded("torch without kernels"):
        run_again(store, range(2))._close(finished=False)
    resumed = run_again(store, range(2, 4), existing="resume")
    assert "native:" not in resumed._mark
    begun_here = HighFrequencyTracker(mlp(), 1)
    assert "native:" in begun_here._mark
    spectra = resumed.table("spectra")
    last, first = (spectra.query("layer == '0' and step == @step")["eigenvalues"].iloc[0] for step in (3, 1))
    assert np.array_equal(last, first)  # the same weights, the same probe, the same solver


# -- what it costs -------------------------------------------------------


def test_overhead_of_a_loop_whose_clock_is_known() -> None:
    now = [0.0]
    watch = Stopwatch(lambda: now[0])
    assert watch.overhead() == Overhead(0, 0, None, None, None, None)
    assert str(watch.overhead()) == "nothing measured in 0 logged steps"
    for step in range(11):
        now[0] += 10.0  # the training step
        begun = watch.clock()
        now[0] += {0: 99.0, 5: 4.0, 10: 5.0}.get(step, 0.125)
        watch.stop(begun, step % 5 == 0)
        if step == 0:
            assert watch.overhead() == Overhead(1, 1, 99.0, 99.0, None, None)
    found = watch.overhead()
    assert (found.n_logged, found.n_measured, found.seconds_per_measurement) == (11, 3, 5.0)
    assert found.seconds_per_measurement_p90 == pytest.approx(5 + 0.8 * 94)
    assert found.share == pytest.approx(10 / 110) and found.seconds_per_step == pytest.approx(1.0)
    assert found.text == "3 measurements of 5 s (90th percentile 80.2 s); log took 9.1% of the loop, 1 s a step"


def test_a_tracker_says_what_it_costs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ndt_ray")
    model = mlp()
    began = time.perf_counter()
    with HighFrequencyTracker(model, 5, run="costly") as tracker:
        train(model, tracker, 21)
        found = tracker.overhead
    elapsed = time.perf_counter() - began
    assert (found.n_logged, found.n_measured) == (21, 5)
    assert found.seconds_per_measurement is not None and found.seconds_per_measurement_p90 is not None
    assert 0 < found.seconds_per_measurement <= found.seconds_per_measurement_p90 < elapsed
    assert found.share is not None and 0 < found.share < 1
    assert found.seconds_per_step is not None and 0 < found.seconds_per_step < elapsed / 20
    assert f"run costly: {found.text}" in caplog.text


def test_overhead_of_a_loop_that_measures_nothing() -> None:
    model = mlp()
    tracker = HighFrequencyTracker(model, 100)
    assert tracker.overhead.text == "nothing measured in 0 logged steps"
    for step in range(1, 5):
        assert not tracker.log(step)
    found = tracker.overhead
    assert (found.n_logged, found.n_measured) == (4, 0)
    assert found.seconds_per_measurement is None and found.seconds_per_measurement_p90 is None
    assert found.share is not None and found.text.startswith("nothing measured in 4 logged steps; log took ")


def test_a_run_that_just_began_elsewhere_is_not_taken_over(tmp_path: Path) -> None:
    first = run_again(tmp_path / "store", range(0))
    with pytest.raises(StoreError, match="may be running"):
        run_again(tmp_path / "store", range(0))
    first._close(finished=False)
    run_again(tmp_path / "store", range(1)).close()  # it ended before it had measured anything


def test_a_store_that_fails_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NDT_COMMIT_SECONDS", "30")  # without a pause after a commit that took long
    monkeypatch.setattr(writer_module, "COMMIT_ROWS", 3)
    monkeypatch.setattr(recording_module, "GROUP", 1)
    clock = [0.0]
    monkeypatch.setattr(recording_module.time, "monotonic", lambda: clock[0])
    tracker = run_again(tmp_path / "store", range(1))

    def full(*_: Any, **__: Any) -> Iterator[Any]:
        raise StoreError("cannot write: the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Location, "writing", full)
        for step in range(1, 4):
            assert tracker.log(step)
            clock[0] += 20
        assert caplog.text.count("disk is full") == 1
    clock[0] += 60
    tracker.log(4)
    assert open_store(tmp_path / "store").tables()["measurements"] == 15  # nothing was lost

    with monkeypatch.context() as patch:
        patch.setattr(Location, "writing", full)
        patch.setattr(recording_module, "PENDING_ROWS", 6)
        for step in range(5, 9):
            tracker.log(step)
        with pytest.raises(StoreError, match="disk is full.*dropped"):
            tracker.close()


def test_a_run_that_another_took_over_goes_on_untold(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = run_again(tmp_path / "store", range(2))
    run_again(tmp_path / "store", range(3), existing="replace").close()
    caplog.set_level(logging.WARNING)
    first._recording._writer._last = -1e9  # type: ignore[attr-defined]
    assert first.log(2) and first.log(3)
    assert caplog.text.count("could not be stored") == 1
    with pytest.raises(StoreError):
        first.close()
    assert open_store(tmp_path / "store").tables()["measurements"] == 9


@pytest.mark.slow
def test_rows_are_kept_when_the_program_ends(tmp_path: Path) -> None:
    program = """
        import sys, torch
        from ndt_ray import HighFrequencyTracker
        model = torch.nn.Sequential(torch.nn.Linear(6, 3))
        tracker = HighFrequencyTracker(model, 1, store=sys.argv[1])
        for step in range(5):
            model(torch.randn(8, 6))
            tracker.log(step)
        raise SystemExit("the end of the disk quota")
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr == "the end of the disk quota\n"
    store = open_store(tmp_path / "store")
    assert store.tables()["measurements"] == 5 and store.attempts()[0].status == "stopped"
