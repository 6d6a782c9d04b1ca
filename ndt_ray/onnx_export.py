"""A trial's network at a step as an ONNX file, for Netron (https://netron.app) and whatever else reads ONNX.

Input `input` [batch, *sample] (float32 images, int64 ids), output `logits` [batch, classes]; the batch is free, the
network in eval mode. Weights have the names that they have in PyTorch as far as the exporter's optimiser left them
alone, nodes those of the modules that they belong to; `metadata_props` says which trial and step it is.
"""

import ast
import importlib.util
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ndt_ray.analysis.mechanisms.context import Contexts
from ndt_ray.analysis.running.stored import StoredSweep
from ndt_ray.errors import NdtError, SpecError
from ndt_ray.measurement.capture import evaluating
from ndt_ray.replay import find_trial
from ndt_ray.store.filesystem import Location
from ndt_ray.store.reader import Store

STIMULI = 8
"""Of the confirm probe, on which the file must agree with PyTorch before it is written."""
TOLERANCE = 1e-5
"""Largest difference of logits there, relative to the largest logit where that is above 1."""
LARGEST = 2**31 - 2**20
"""Bytes of parameters that fit into one file: protobuf ends at 2 GB."""
SCOPES, TRACES = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.stack_trace"


@dataclass(frozen=True)
class Exported:
    """A written file: its bytes, and the largest difference of its logits from PyTorch's on stimuli of the probe."""

    bytes: int
    difference: float


def export_onnx(store: Store, sweep: str, trial: str, step: int, out: str) -> Exported:
    """Writes the network of a trial (an id, or its beginning) at a step: 0, or one with a checkpoint.

    SpecError where the extra `onnx` is not installed, or the network cannot be expressed; CheckpointError where there
    is no such checkpoint; NdtError where the file would not compute what the network does.
    """
    require_onnx()
    known = find_trial(store, sweep, trial)
    context = Contexts(StoredSweep(store, sweep), kept=1)(known["trial_id"], step)
    about = {"sweep": sweep, "trial_id": known["trial_id"], "cell": known["cell"], "step": str(step)}
    stimuli = context.inputs[:STIMULI]
    data = onnx_bytes(context.model, stimuli, about)
    difference = disagreement(context.model, stimuli, data)
    folder, _, name = out.rpartition("/")
    Location.of(folder or ".").write(name, data)
    return Exported(len(data), difference)


def require_onnx() -> None:
    """SpecError where what writes ONNX files is not installed."""
    if None in map(importlib.util.find_spec, ("onnx", "onnxscript")):
        raise SpecError("ONNX files need onnx and onnxscript: pip install -e '.[onnx]'")


def onnx_bytes(model: nn.Module, inputs: Tensor, about: Mapping[str, str]) -> bytes:
    """The network as an ONNX file whose first axis is free; `inputs` [n, ...] with n of at least 2 are its example.

    SpecError where PyTorch cannot trace it, or it is too large for one file.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if size > LARGEST:
        raise SpecError(f"this network has {size / 1e9:.1f} GB of parameters, and an ONNX file ends at 2 GB")
    batch = torch.export.Dim("batch")
    options: dict[str, Any] = {"input_names": ["input"], "output_names": ["logits"], "verbose": False}
    try:
        with evaluating(model), torch.no_grad(), _quiet():
            program = torch.onnx.export(model, (inputs,), dynamo=True, dynamic_shapes=({0: batch},), **options)
    except torch.onnx.OnnxExporterError as error:
        why = str(error.__cause__ or error).strip().partition("\n")[0]
        raise SpecError(f"{type(model).__name__} cannot be written as ONNX: PyTorch cannot trace it: {why}") from error
    assert program is not None
    made = program.model_proto
    made.graph.name = about.get("cell", type(model).__name__)
    for key, value in about.items():
        entry = made.metadata_props.add()
        entry.key, entry.value = key, value
    _name_nodes(made.graph.node)
    data: bytes = made.SerializeToString()
    return data


def disagreement(model: nn.Module, inputs: Tensor, data: bytes) -> float:
    """Largest difference of logits `[n, classes]` between the network and its file, by ONNX's reference evaluator.

    NdtError above the tolerance, or where only one of them is finite.
    """
    import onnx
    from onnx.reference import ReferenceEvaluator

    with evaluating(model), torch.no_grad():
        expected = model(inputs).numpy()
    (found,) = ReferenceEvaluator(onnx.load_model_from_string(data)).run(None, {"input": inputs.numpy()})
    finite = np.isfinite(expected)
    if found.shape != expected.shape or not np.array_equal(finite, np.isfinite(found)):
        raise NdtError("the ONNX file does not give the logits of the network, and was not written: please report this")
    difference = float(np.abs(found - expected)[finite].max(initial=0.0))
    if difference > TOLERANCE * max(1.0, float(np.abs(expected[finite]).max(initial=0.0))):
        raise NdtError(f"logits of the ONNX file differ by {difference:.2g} from the network's, and it was not written")
    return difference


def _name_nodes(nodes: Any) -> None:
    """Nodes are called by the path of their module, as `network.0/Gemm`; paths of this machine's files come off."""
    seen: Counter[str] = Counter()
    for node in nodes:
        properties = {entry.key: entry.value for entry in node.metadata_props}
        scopes = ast.literal_eval(properties[SCOPES]) if SCOPES in properties else []
        modules = [scope for scope in scopes[:-1] if scope]
        name = "/".join([*modules[-1:], node.op_type])
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"
        kept = [entry for entry in node.metadata_props if entry.key != TRACES]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says about itself: its progress, missing torchvision, and a class it deprecated."""

    def told(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("torchvision is not installed")

    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    registration.addFilter(told)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            # torch 2.13 copies its own LeafSpec while it exports.
            leaf = r"`isinstance\(treespec, LeafSpec\)` is deprecated"
            warnings.filterwarnings("ignore", leaf, FutureWarning)
            yield
    finally:
        registration.removeFilter(told)
