"""Networks as ONNX files: what they compute, what they are called, and that nothing half-done is left behind."""

import importlib.util
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mech_store import SWEEP, folder, looked_at, trial_of
from torch import Tensor, nn
from typer.testing import CliRunner

from ndt_ray import onnx_export, registry
from ndt_ray.analysis.mechanisms.context import Contexts
from ndt_ray.analysis.running.stored import StoredSweep
from ndt_ray.cli import app
from ndt_ray.errors import CheckpointError, NdtError, SpecError
from ndt_ray.inputs import InputSpec
from ndt_ray.models import build
from ndt_ray.onnx_export import disagreement, export_onnx, onnx_bytes

onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra: onnx)")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra: onnx)")

IMAGES = InputSpec("image", (1, 8, 8), 10)
TEXTS = InputSpec("text", (20,), 4, vocab=50, padding=0)
SUMS = InputSpec("modular", (3,), 13, vocab=14)


def sampled(inputs: InputSpec, n: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    if inputs.kind == "image":
        return torch.randn(n, *inputs.shape, generator=generator)
    ids = torch.randint(1, inputs.vocab, (n, *inputs.shape), generator=generator)
    if inputs.kind == "text":
        ids[:, 15:] = 0  # padding
        ids[0] = 0
    return ids


def computed(data: bytes, inputs: Tensor) -> Any:
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(onnx.load_model_from_string(data)).run(None, {"input": inputs.numpy()})[0]


@pytest.mark.slow  # PyTorch takes 4 to 10 s to trace a network
@pytest.mark.parametrize(
    ("name", "inputs", "parameters"),
    [
        ("mlp_narrow", TEXTS, {}),
        ("cnn_shallow", IMAGES, {}),
        ("transformer", IMAGES, {"width": 16, "heads": 2, "depth": 1}),
        ("modular_transformer", SUMS, {"width": 16, "heads": 2, "hidden": 8}),
        ("vit", IMAGES, {}),
    ],
)
def test_every_family_computes_the_same_at_any_batch(
    name: str, inputs: InputSpec, parameters: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    model = build(registry.resolve("model", name), inputs, parameters, 0).train()
    example = sampled(inputs, 4)
    data = onnx_bytes(model, example, {"cell": name, "step": "7"})
    made = onnx.load_model_from_string(data)
    onnx.checker.check_model(made, full_check=True)
    assert model.training
    with torch.no_grad():
        expected = model.eval()(sampled(inputs, 7)).numpy()
    np.testing.assert_allclose(computed(data, sampled(inputs, 7)), expected, rtol=1e-5, atol=1e-5)
    assert disagreement(model, example, data) <= 1e-5 * max(1, np.abs(expected).max())
    assert made.graph.name == name and {p.key: p.value for p in made.metadata_props}["step"] == "7"
    dims = made.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_value or d.dim_param for d in dims] == ["batch", *inputs.shape]
    nodes = [node.name for node in made.graph.node]
    assert len(nodes) == len(set(nodes))
    tracked = model.tracked  # type: ignore[union-attr]
    assert all(any(node.startswith(f"{path}/") for node in nodes) for path in tracked)
    assert str(Path(__file__).parents[2]).encode() not in data and b"site-packages" not in data
    assert capsys.readouterr().out == ""


class Shrinking(nn.Module):
    """Takes a batch of exactly four."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x.reshape(4, 3))
        return out if float(out.sum()) > 0 else out + 1


@pytest.mark.slow
def test_a_network_that_cannot_be_traced_says_so() -> None:
    with pytest.raises(SpecError, match="Shrinking cannot be written as ONNX"):
        onnx_bytes(Shrinking(), torch.randn(4, 3), {})


def test_the_logger_of_the_exporter_is_only_quiet_about_torchvision(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    with onnx_export._quiet():
        logger.warning("torchvision is not installed. Skipping %s", "torchvision::nms")
        logger.warning("something else")
        with pytest.warns(FutureWarning, match="another"):
            import warnings

            warnings.warn("another thing is deprecated", FutureWarning, stacklevel=1)
    assert [record.getMessage() for record in caplog.records if record.name == logger.name] == ["something else"]
    assert not logger.filters


# -- of a stored trial --------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("model", "step"), [("mlp", 0), ("cnn", 40)])
def test_a_stored_trial_is_what_is_written(tmp_path: Path, model: str, step: int) -> None:
    trial, out = trial_of(looked_at(), model), tmp_path / "nets" / f"{model}.onnx"
    where = ["--store", str(folder()), "--sweep", SWEEP, "--trial", trial[:9], "--step", str(step)]
    done = CliRunner().invoke(app(), ["export", "checkpoint", "-o", str(out), *where])
    assert done.exit_code == 0, done.output
    assert "its logits differ from PyTorch's by at most" in done.stderr
    context = Contexts(StoredSweep(looked_at(), SWEEP))(trial, step)
    data = out.read_bytes()
    assert f"{len(data):,} bytes" in done.stderr
    np.testing.assert_allclose(computed(data, context.inputs), context.logits, rtol=1e-5, atol=1e-5)
    told = {p.key: p.value for p in onnx.load_model_from_string(data).metadata_props}
    assert (told["sweep"], told["trial_id"], told["step"]) == (SWEEP, trial, str(step))
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.slow
def test_what_is_asked_for_wrongly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, out = looked_at(), tmp_path / "net.onnx"
    trial = trial_of(store, "mlp")
    with pytest.raises(CheckpointError, match="no checkpoint at step 25 - there are: 20, 30, 40"):
        export_onnx(store, SWEEP, trial, 25, str(out))
    where = ["--store", str(folder()), "--sweep", SWEEP, "--trial", trial, "--step", "30"]
    wrong = CliRunner().invoke(app(), ["export", "checkpoint", "-o", str(out), "--format", "pb", *where])
    assert isinstance(wrong.exception, SpecError) and "founding or onnx" in str(wrong.exception)
    monkeypatch.setattr(onnx_export, "LARGEST", 10)
    with pytest.raises(SpecError, match="ends at 2 GB"):
        export_onnx(store, SWEEP, trial, 30, str(out))
    monkeypatch.undo()
    monkeypatch.setattr(onnx_export, "TOLERANCE", -1.0)
    with pytest.raises(NdtError, match="was not written"):
        export_onnx(store, SWEEP, trial, 30, str(out))
    assert not list(tmp_path.iterdir())


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else really(name))
    with pytest.raises(SpecError, match=r"pip install -e '\.\[onnx\]'"):
        export_onnx(None, "s", "t", 0, str(tmp_path / "net.onnx"))  # type: ignore[arg-type]
