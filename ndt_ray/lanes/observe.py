"""One forward pass of lanes over a fixed probe, with the activations of the tracked layers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ndt_ray.capture import Capture, evaluating
from ndt_ray.evaluate import chunks
from ndt_ray.lanes.engine import Engine
from ndt_ray.lanes.stack import StackEngine
from ndt_ray.spectra import Layer, LinearInput

STACKED_BYTES = 64 << 20
"""Activations of all lanes together above which a stacked probe goes lane by lane."""


@dataclass(frozen=True)
class Observation:
    """Some lanes on the probe: logits [L, n, C]; activations and inputs of tracked layers [L, n, ...] by path."""

    lanes: list[int]
    logits: Tensor
    activations: dict[str, Tensor]
    linear: dict[str, LinearInput]


def observe(engine: Engine, inputs: Tensor, layers: Sequence[Layer], lanes: Sequence[int]) -> Iterator[Observation]:
    """The probe seen by `lanes`, in groups as large as memory allows; eval mode, no gradients, nothing left behind.

    A lane's bits are the same whichever group it is seen in.
    """
    if isinstance(engine, StackEngine) and _stacked_bytes(engine, inputs, layers) <= STACKED_BYTES:
        yield _together(engine, inputs, layers, lanes)
        return
    for lane in lanes:
        yield _alone(engine.models[lane], inputs, layers, lane)


def _together(engine: StackEngine, inputs: Tensor, layers: Sequence[Layer], lanes: Sequence[int]) -> Observation:
    every = inputs.expand(engine.arena.lanes, *inputs.shape)
    logits, found, entering = _forward(engine.stacked, [every], layers)
    rows = torch.as_tensor(lanes)
    whole = len(lanes) == engine.arena.lanes
    pick = (lambda x: x) if whole else (lambda x: x[rows])
    linear = {}
    for path, x in entering.items():
        weight = {s.name.rpartition(".")[2]: s.view(engine.arena.weights) for s in engine.arena.layout.layers()[path]}
        bias = pick(weight["bias"]) if "bias" in weight else None
        linear[path] = LinearInput(pick(x), pick(weight["weight"]), bias)
    return Observation(list(lanes), pick(logits), {k: pick(v) for k, v in found.items()}, linear)


def _alone(model: nn.Module, inputs: Tensor, layers: Sequence[Layer], lane: int) -> Observation:
    logits, found, entering = _forward(model, list(chunks(inputs)), layers)
    linear = {}
    for path, x in entering.items():
        leaf = model.get_submodule(path)
        assert isinstance(leaf, nn.Linear)
        bias = None if leaf.bias is None else leaf.bias.detach()[None]
        linear[path] = LinearInput(x[None], leaf.weight.detach()[None], bias)
    return Observation([lane], logits[None], {k: v[None] for k, v in found.items()}, linear)


def _forward(
    model: nn.Module, pieces: Sequence[Tensor], layers: Sequence[Layer]
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Logits, outputs of the layers, and inputs of those Linear layers that expand them."""
    expanding = [layer.path for layer in layers if _expands(model.get_submodule(layer.path))]
    outputs: dict[str, list[Tensor]] = {}
    entering: dict[str, list[Tensor]] = {}
    logits = []
    wanted = {x.path: x.kind for x in layers}
    with torch.no_grad(), evaluating(model), Capture(model, wanted, inputs=expanding) as capture:
        for piece in pieces:
            logits.append(model(piece))
            found, before = capture.take()
            for path, value in found.items():
                outputs.setdefault(path, []).append(value)
            for path, value in before.items():
                entering.setdefault(path, []).append(value)
    return _joined(logits), {k: _joined(v) for k, v in outputs.items()}, {k: _joined(v) for k, v in entering.items()}


def _joined(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _expands(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) and layer.out_features > layer.in_features + 1


def _stacked_bytes(engine: StackEngine, inputs: Tensor, layers: Sequence[Layer]) -> int:
    widths = [engine.models[0].get_submodule(layer.path) for layer in layers]
    floats = sum(m.out_features for m in widths if isinstance(m, nn.Linear)) * len(inputs)
    linear = all(isinstance(m, nn.Linear) for m in widths) and all(layer.kind == "units" for layer in layers)
    return floats * 4 * engine.arena.lanes if linear else STACKED_BYTES + 1
