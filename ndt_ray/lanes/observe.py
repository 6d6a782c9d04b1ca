"""One forward pass of lanes over a fixed probe, with the activations of the tracked layers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ndt_ray.lanes.engine import Engine
from ndt_ray.lanes.stack import StackEngine
from ndt_ray.measurement.capture import Capture, evaluating
from ndt_ray.measurement.evaluate import chunks
from ndt_ray.measurement.spectra import Layer, LinearInput

STACKED_BYTES = 64 << 20
"""Activations of all lanes together above which a stacked probe goes lane by lane."""


@dataclass(frozen=True)
class Observation:
    """Some lanes on the probe: logits [L, n, C]; activations and inputs of tracked layers [L, n, ...] by path."""

    lanes: list[int]
    logits: Tensor
    activations: dict[str, Tensor]
    linear: dict[str, LinearInput]


class Observer:
    """Looks at the lanes of one engine again and again, through hooks that are there only while it looks."""

    def __init__(self, engine: Engine, layers: Sequence[Layer]) -> None:
        self.engine, self.layers = engine, list(layers)
        first = engine.models[0]
        self.expanding = [layer.path for layer in layers if _expands(first.get_submodule(layer.path))]
        wanted = {x.path: x.kind for x in layers}
        stacked = [engine.stacked] if isinstance(engine, StackEngine) else []
        # Kept, since a Capture learns which outputs need no copy.
        self.captures = {id(m): Capture(m, wanted, inputs=self.expanding) for m in (*engine.models, *stacked)}

    def observe(self, inputs: Tensor, lanes: Sequence[int]) -> Iterator[Observation]:
        """The probe seen by `lanes`, in groups as large as memory allows; eval mode, no gradients, nothing left behind.

        A lane's bits are the same whichever group it is seen in.
        """
        engine = self.engine
        if isinstance(engine, StackEngine) and _stacked_bytes(engine, inputs, self.layers) <= STACKED_BYTES:
            yield self._together(engine, inputs, lanes)
            return
        for lane in lanes:
            yield self._alone(engine.models[lane], inputs, lane)

    def _together(self, engine: StackEngine, inputs: Tensor, lanes: Sequence[int]) -> Observation:
        every = inputs.expand(engine.arena.lanes, *inputs.shape)
        logits, found, entering = self._forward(engine.stacked, [every])
        rows = torch.as_tensor(lanes)
        whole = len(lanes) == engine.arena.lanes

        def pick(x: Tensor) -> Tensor:
            return x if whole else x[rows]

        linear = {}
        for path, x in entering.items():
            slots = engine.arena.layout.layers()[path]
            weight = {s.name.rpartition(".")[2]: s.view(engine.arena.weights) for s in slots}
            bias = pick(weight["bias"]) if "bias" in weight else None
            linear[path] = LinearInput(pick(x), pick(weight["weight"]), bias)
        return Observation(list(lanes), pick(logits), {k: pick(v) for k, v in found.items()}, linear)

    def _alone(self, model: nn.Module, inputs: Tensor, lane: int) -> Observation:
        logits, found, entering = self._forward(model, list(chunks(inputs)))
        linear = {}
        for path, x in entering.items():
            leaf = model.get_submodule(path)
            assert isinstance(leaf, nn.Linear)
            bias = None if leaf.bias is None else leaf.bias.detach()[None]
            linear[path] = LinearInput(x[None], leaf.weight.detach()[None], bias)
        return Observation([lane], logits[None], {k: v[None] for k, v in found.items()}, linear)

    def _forward(
        self, model: nn.Module, pieces: Sequence[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Logits, outputs of the layers, and inputs of those Linear layers that expand them."""
        outputs: dict[str, list[Tensor]] = {}
        entering: dict[str, list[Tensor]] = {}
        logits = []
        with torch.no_grad(), evaluating(model), self.captures[id(model)] as capture:
            for piece in pieces:
                output = model(piece)
                found, before = capture.take()
                if capture.lost:  # a module that overwrites what it left alone before: now it is copied
                    output = model(piece)
                    found, before = capture.take()
                logits.append(output)
                for path, value in found.items():
                    outputs.setdefault(path, []).append(value)
                for path, value in before.items():
                    entering.setdefault(path, []).append(value)
        return (
            _joined(logits),
            {k: _joined(v) for k, v in outputs.items()},
            {k: _joined(v) for k, v in entering.items()},
        )


def _joined(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _expands(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) and layer.out_features > layer.in_features + 1


def _stacked_bytes(engine: StackEngine, inputs: Tensor, layers: Sequence[Layer]) -> int:
    widths = [engine.models[0].get_submodule(layer.path) for layer in layers]
    floats = sum(m.out_features for m in widths if isinstance(m, nn.Linear)) * len(inputs)
    linear = all(isinstance(m, nn.Linear) for m in widths) and all(layer.kind == "units" for layer in layers)
    return floats * 4 * engine.arena.lanes if linear else STACKED_BYTES + 1
