"""Checkpoint series that people already have: any layout of weights, measured in order of steps, nothing unsaid."""

import json
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ndt_ray.errors import CheckpointError, DataError, SpecError
from ndt_ray.measurement.measures import participation_ratio
from ndt_ray.models import load_user_factory
from ndt_ray.store.checkpoints import encode_tensors
from ndt_ray.store.reader import open_store
from ndt_ray.tracking.checkpoint_series import SeriesReport, measure_series
from ndt_ray.tracking.probe_files import read_probe
from ndt_ray.tracking.weight_files import load_weights, read_step, read_weights

FACTORY = """
    from torch import nn

    def build(width=12):
        return nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, x):
            return self.out(self.embed(x))
"""


@pytest.fixture
def factory(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(FACTORY))
    return f"{path}:build"


def model_at(factory: str, step: int) -> nn.Module:
    torch.manual_seed(step)
    model: nn.Module = load_user_factory(factory)()
    return model


def save_series(factory: str, folder: Path, steps: list[int], **content: Any) -> None:
    folder.mkdir(exist_ok=True)
    for step in steps:
        state = model_at(factory, step).state_dict()
        torch.save(
            {"step": step, "model_state_dict": state, **content} if content else state, folder / f"step_{step}.pt"
        )


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    path = tmp_path / "probe.npz"
    x = np.random.default_rng(0).normal(size=(24, 6)).astype(np.float32)
    np.savez(path, x=x, y=np.arange(24) % 3)
    return path


def measured(factory: str, checkpoints: Any, probe: Any, tmp_path: Path, **options: Any) -> SeriesReport:
    return measure_series(factory, checkpoints, probe, tmp_path / "store", **options)


def test_a_series_of_state_dicts(factory: str, probe: Path, tmp_path: Path) -> None:
    save_series(factory, tmp_path / "myrun", [10, 0, 5, 30, 20, 15])
    said: list[tuple[int, int, str]] = []
    pattern = str(tmp_path / "myrun" / "step_*.pt")
    report = measured(factory, pattern, probe, tmp_path, progress=lambda *told: said.append(told))
    assert report.steps == (0, 5, 10, 15, 20, 30) and report.gaps == ((20, 30),)
    assert report.exit_code == 0 and report.layers == ("0", "3") and report.run == "myrun"
    assert said[0] == (0, 6, "step_0.pt") and said[-1] == (6, 6, "")

    store = open_store(tmp_path / "store")
    rows = store.measurements(sweep="series", layer="0")
    assert rows["step"].tolist() == list(report.steps) and rows["flag"].isna().all()
    x = torch.from_numpy(np.load(probe)["x"])
    model = model_at(factory, 20).eval()
    with torch.no_grad():
        output, logits = model[0](x), model(x)  # type: ignore[index]
    spectrum = torch.linalg.svdvals((output - output.mean(0)).double()).square().numpy()
    value = rows.set_index("step")["participation_ratio"][20]
    assert value == pytest.approx(participation_ratio(spectrum), rel=1e-6)
    scalars = store.table("scalars").set_index("step")
    labels = torch.arange(24) % 3
    assert scalars["probe_loss"][20] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-6)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    start = torch.cat([p.detach().flatten() for p in model_at(factory, 0).parameters()])
    assert scalars["weight_norm"][20] == pytest.approx(weights.norm().item(), rel=1e-6)
    assert scalars["init_distance"][20] == pytest.approx((weights - start).norm().item(), rel=1e-6)
    assert scalars["init_distance"][0] == 0
    velocity = store.table("velocity").query("layer == '3'").sort_values("step")
    assert velocity["previous_step"].fillna(-1).tolist() == [-1, 0, 5, 10, 15, 20]
    assert velocity["from_init"].iloc[0] == 0 and velocity["velocity"].iloc[1:].gt(0).all()
    trial = store.trials().iloc[0]
    assert trial["trial_id"] == report.trial_id and trial["steps"] == 30 and trial["probe_size"] == 24
    spec = json.loads(trial["spec"])
    assert spec["gaps"] == [[20, 30]] and spec["measure"]["every"] == 5 and spec["steps"] == list(report.steps)
    assert store.manifests()[0].finished and store.tables()["spectra"] == 12


def test_measuring_again_replaces_what_was_there(factory: str, probe: Path, tmp_path: Path) -> None:
    save_series(factory, tmp_path / "run", [0, 1])
    first = measured(factory, tmp_path / "run", probe, tmp_path)
    save_series(factory, tmp_path / "run", [2])
    second = measured(factory, tmp_path / "run", probe, tmp_path)
    assert first.trial_id == second.trial_id
    store = open_store(tmp_path / "store")
    assert store.measurements(layer="0")["step"].tolist() == [0, 1, 2] and len(store.trials()) == 1
    other = measured(factory, tmp_path / "run", probe, tmp_path, layers=["3"], params={"width": 12})
    assert other.layers == ("3",) and len(open_store(tmp_path / "store").trials()) == 2
    with pytest.raises(CheckpointError, match="of another shape: 0.bias"):
        measured(factory, tmp_path / "run", probe, tmp_path, params={"width": 13})
    assert open_store(tmp_path / "store").tables()["measurements"] == 9  # nothing was replaced by nothing


@pytest.mark.parametrize("key", ["model_state_dict", "state_dict", "model"])
def test_the_state_dict_may_stand_under_a_key(factory: str, probe: Path, tmp_path: Path, key: str) -> None:
    content = {"optimizer_state_dict": {"state": {}, "param_groups": [{"lr": 0.1}]}, "loss": 0.5}
    for i, step in enumerate((100, 7)):
        state = model_at(factory, step).state_dict()
        torch.save({"step": step, key: state, **content}, tmp_path / f"checkpoint{i}.pth")
    assert measured(factory, str(tmp_path / "checkpoint*.pth"), probe, tmp_path).steps == (7, 100)


def test_safetensors_and_this_packages_own_checkpoints(factory: str, probe: Path, tmp_path: Path) -> None:
    save_file(model_at(factory, 1).state_dict(), tmp_path / "a_1.safetensors")
    save_file(model_at(factory, 2).state_dict(), tmp_path / "a_9.safetensors", metadata={"step": "2"})
    model = model_at(factory, 3)
    own = {f"model.{name}": p.detach().numpy() for name, p in model.named_parameters()}
    own |= {f"buffer.{name}": b.numpy() for name, b in model.named_buffers()}
    own |= {f"exp_avg.{name}": p.detach().numpy() for name, p in model.named_parameters()}
    (tmp_path / "a_8.safetensors").write_bytes(encode_tensors(own, {"trial_id": "t", "step": 3}))
    report = measured(factory, str(tmp_path / "a_*.safetensors"), probe, tmp_path)
    assert report.steps == (1, 2, 3) and not report.skipped
    save_series(factory, tmp_path / "same", [1, 2, 3])
    measured(factory, tmp_path / "same", probe, tmp_path)
    rows = open_store(tmp_path / "store").sql(
        "SELECT count(*) AS n, count(DISTINCT stable_rank) AS d FROM measurements GROUP BY layer, step"
    )
    assert rows["n"].tolist() == [2] * 6 and rows["d"].tolist() == [1] * 6


def test_names_that_wrappers_made(factory: str, tmp_path: Path) -> None:
    wanted = model_at(factory, 1).state_dict()
    for prefix in ("module.", "_orig_mod.", "module._orig_mod.", "model.", "model.module."):
        torch.save({prefix + name: value for name, value in wanted.items()}, tmp_path / "x.pt")
        model = model_at(factory, 2)
        load_weights(model, read_weights(tmp_path / "x.pt"))
        assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())
    inner = nn.Sequential(nn.Sequential(nn.Linear(2, 2)))
    torch.save({f"0._orig_mod.{name}": v for name, v in inner[0].state_dict().items()}, tmp_path / "x.pt")  # type: ignore[union-attr]
    load_weights(inner, read_weights(tmp_path / "x.pt"))

    tied = load_user_factory(factory.replace(":build", ":Tied"))()
    save_file({"embed.weight": torch.eye(6)}, tmp_path / "tied.safetensors")
    load_weights(tied, read_weights(tmp_path / "tied.safetensors"))
    assert torch.equal(tied.out.weight, torch.eye(6))


def test_damaged_files_are_named_and_the_others_measured(factory: str, probe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    save_series(factory, folder, [0, 10, 20, 30], epoch=1)
    whole = (folder / "step_10.pt").read_bytes()
    (folder / "step_10.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "step_15.pt").write_bytes(b"not a checkpoint")
    (folder / "step_16.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    torch.save({"model_state_dict": {"0.weight": torch.ones(2)}, "step": 17}, folder / "step_17.pt")
    torch.save({"lr": 0.1, "step": 18}, folder / "step_18.pt")
    torch.save(torch.ones(3), folder / "step_19.pt")
    torch.save(model_at(factory, 1), folder / "step_21.pt")
    torch.save(model_at(factory, 1).state_dict(), folder / "best.pt")
    torch.save({"state_dict": model_at(factory, 1).state_dict(), "global_step": torch.tensor(20)}, folder / "also.pt")
    report = measured(factory, folder, probe, tmp_path)
    assert report.steps == (0, 20, 30) and report.exit_code == 1
    why = {Path(path).name: reason for path, reason in report.skipped}
    assert {name: next(word for word in words if word in why[name]) for name, words in {
        "step_10.pt": ["damaged"], "step_15.pt": ["damaged"], "step_16.safetensors": ["no complete safetensors"],
        "step_17.pt": ["missing: 0.bias, 1.bias"], "step_18.pt": ["holds no weights"], "step_19.pt": ["Tensor, not"],
        "step_21.pt": ["not unpickled"], "best.pt": ["--step-pattern"], "step_20.pt": ["as is"],
    }.items()}.keys() == why.keys()  # fmt: skip
    assert all(str(folder) in reason for reason in why.values())
    assert len(json.loads(open_store(tmp_path / "store").trials()["spec"][0])["skipped"]) == 9


def test_series_that_cannot_be_measured(factory: str, probe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        measured(factory, folder / "*.pt", probe, tmp_path)
    folder.mkdir()
    (folder / "step_1.pt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="no checkpoint of the series can be read"):
        measured(factory, folder, probe, tmp_path)
    torch.save({"1.weight": torch.ones(1), "extra": torch.ones(1)}, folder / "step_1.pt")
    with pytest.raises(CheckpointError, match=r"missing: 0\.bias.*unexpected: extra"):
        measured(factory, folder, probe, tmp_path)
    save_series(factory, folder, [1])
    torch.save(torch.ones(4, 5), tmp_path / "narrow.pt")
    with pytest.raises(SpecError, match=r"probe narrow.pt \[4, 5\] does not go through"):
        measured(factory, folder, tmp_path / "narrow.pt", tmp_path)
    for pattern, message in (("(", "no regular expression"), (r"\d+", "one group")):
        with pytest.raises(SpecError, match=message):
            measured(factory, folder, probe, tmp_path, step_pattern=pattern)
    with pytest.raises(SpecError, match="did you mean 'mlp_narrow'"):
        measured("mlp_narow", folder, probe, tmp_path)
    assert not any(open_store(tmp_path / "store").tables().values())


def test_steps_in_names(factory: str, probe: Path, tmp_path: Path) -> None:
    names = {
        "model-epoch3-step00120.pt": 120,
        "run7_iter=240.pt": 240,
        "weights_360.pt": 360,
        "e2_ckpt-480_best.pt": 480,
    }
    for name in names:
        torch.save(model_at(factory, 1).state_dict(), tmp_path / name)
    files = [tmp_path / name for name in names]
    assert measured(factory, files, probe, tmp_path).steps == tuple(names.values())
    report = measured(factory, files, probe, tmp_path, step_pattern=r"(?:epoch|e)(\d)", run="epochs")
    assert report.steps == (2, 3) and len(report.skipped) == 2


def test_weights_that_are_not_finite_have_flagged_rows(factory: str, probe: Path, tmp_path: Path) -> None:
    save_series(factory, tmp_path / "run", [0, 1])
    state = model_at(factory, 1).state_dict()
    torch.save({**state, "3.weight": state["3.weight"] * torch.nan}, tmp_path / "run" / "step_1.pt")
    torch.save({**state, "0.weight": state["0.weight"] * 0}, tmp_path / "run" / "step_2.pt")
    measured(factory, tmp_path / "run", probe, tmp_path)
    rows = open_store(tmp_path / "store").measurements(columns=["step", "layer", "flag", "stable_rank"])
    flags = {(row.step, row.layer): row.flag for row in rows.itertuples() if isinstance(row.flag, str)}
    assert flags == {(1, "3"): "nonfinite", (2, "0"): "dead", (2, "3"): "dead"}


def test_a_registered_model_with_a_data_set_as_probe(tmp_path: Path) -> None:
    from ndt_ray import registry
    from ndt_ray.data import load
    from ndt_ray.models import build

    data = load("digits")
    for step in (0, 1):
        model = build(registry.resolve("model", "mlp_narrow"), data.inputs, {}, step)
        torch.save(model.state_dict(), tmp_path / f"step_{step}.pt")
    report = measured("mlp_narrow", str(tmp_path / "step_*.pt"), "digits", tmp_path, probe_size=64)
    assert report.layers[0] == "network.0" and len(report.layers) == 5
    trial = open_store(tmp_path / "store").trials().iloc[0]
    assert trial["probe_size"] == 64 and trial["data"] == "digits" and trial["data_hash"] == data.hash


def test_a_factory_that_wants_to_know_the_inputs(tmp_path: Path) -> None:
    torch.save(torch.ones(4, 6), tmp_path / "probe.pt")
    torch.save({}, tmp_path / "step_0.pt")
    torch.save({"w": torch.ones(1)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert read_weights(tmp_path / "old.pt").state.keys() == {"w"} and read_step(tmp_path / "old.pt") is None
    with pytest.raises(SpecError, match="needs 'inputs'"):
        measured("mlp_narrow", tmp_path / "step_0.pt", tmp_path / "probe.pt", tmp_path)


def test_probe_files(tmp_path: Path) -> None:
    x, y = torch.randn(8, 3, 4, 4), torch.arange(8) % 2
    arrays = x.numpy(), y.numpy()
    np.savez(tmp_path / "named.npz", inputs=arrays[0], labels=arrays[1])
    np.savez(tmp_path / "one.npz", whatever=arrays[0])
    np.save(tmp_path / "bare.npy", arrays[0])
    for name, held in (("bare.pt", x), ("pair.pt", (x, y)), ("dict.pth", {"x": x, "y": y})):
        torch.save(held, tmp_path / name)
    for name, labelled in (
        ("named.npz", True), ("one.npz", False), ("bare.npy", False), ("bare.pt", False), ("pair.pt", True),
        ("dict.pth", True),
    ):  # fmt: skip
        found = read_probe(tmp_path / name, 6)
        assert torch.equal(found.inputs, x[:6]) and (found.labels is not None) == labelled
        assert found.spec is None or (found.spec.shape, found.spec.classes) == ((3, 4, 4), 2)
    assert read_probe("digits").inputs.shape[0] == 256

    bad: dict[str, Any] = {
        "uint8.pt": x.byte(), "scalar.pt": torch.tensor(1.0), "labels.pt": (x, y[:3]), "floats.pt": (x, y.float()),
        "keys.pt": {"a": x, "b": y}, "object.pt": [1, 2, 3],
    }  # fmt: skip
    messages = ["uint8", r"\[n, \.\.\.\]", "as many integer labels", "as many integer labels", "no inputs", "are list"]
    for (name, held), message in zip(bad.items(), messages, strict=True):
        torch.save(held, tmp_path / name)
        with pytest.raises(DataError, match=message):
            read_probe(tmp_path / name)
    (tmp_path / "torn.npz").write_bytes((tmp_path / "named.npz").read_bytes()[:100])
    np.savez(tmp_path / "pickled.npz", x=np.array([{}]))
    torch.save(nn.Linear(1, 1), tmp_path / "code.pt")
    for name in ("torn.npz", "pickled.npz", "code.pt", "absent.npz"):
        with pytest.raises(DataError, match=name):
            read_probe(tmp_path / name)
    with pytest.raises(SpecError, match="8 stimuli, but 9"):
        read_probe(tmp_path / "bare.pt", 9)
    with pytest.raises(SpecError, match="2 or more"):
        read_probe("digits", 1)


def test_tensors_only(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (tmp_path / "ran").touch, ()

    torch.save({"model": {"w": torch.ones(1)}, "extra": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="not unpickled"):
        read_weights(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()
