"""All weights of all lanes in one matrix: a row per lane, a slice per parameter, every slice padded to 16 floats.

The padding is what makes lanes independent of each other: fused optimizers round the scalar tail of a tensor
differently from its vector body, so that an unpadded bias would depend on how many lanes stand before it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

PAD = 16
"""Floats in 64 bytes: one AVX-512 register and one cache line."""


@dataclass(frozen=True)
class Slot:
    """Where one parameter lies in a row of the arena."""

    name: str
    shape: tuple[int, ...]
    start: int
    size: int
    channels_last: bool

    @property
    def stop(self) -> int:
        """First float behind the padded slice."""
        return self.start + -(-self.size // PAD) * PAD

    def view(self, rows: Tensor) -> Tensor:
        """The parameter inside `rows` [..., width], as [..., *shape]; convolution kernels lie channels last."""
        flat = rows[..., self.start : self.start + self.size]
        lead = flat.shape[:-1]
        if not self.channels_last:
            return flat.view(*lead, *self.shape)
        o, i, h, w = self.shape
        n = len(lead)
        return flat.view(*lead, o, h, w, i).permute(*range(n), n, n + 3, n + 1, n + 2)


class Layout:
    """The slots of a model's parameters, in the order of `named_parameters`."""

    def __init__(self, model: nn.Module) -> None:
        convolutions = {f"{m}.weight" for m, module in model.named_modules() if isinstance(module, nn.Conv2d)}
        self.slots: list[Slot] = []
        start = 0
        for name, p in model.named_parameters():
            if not p.requires_grad:
                continue
            slot = Slot(name, tuple(p.shape), start, p.numel(), name in convolutions)
            self.slots.append(slot)
            start = slot.stop
        self.width = start

    def __iter__(self) -> Iterator[Slot]:
        return iter(self.slots)

    @property
    def n_parameters(self) -> int:
        """Trained weights, padding not counted."""
        return sum(s.size for s in self.slots)

    def layers(self) -> dict[str, list[Slot]]:
        """Slots by the module that owns them, in order."""
        owners: dict[str, list[Slot]] = {}
        for slot in self.slots:
            owners.setdefault(slot.name.rpartition(".")[0], []).append(slot)
        return owners


class Arena:
    """Weights and gradients of S lanes, each [S, width] float32, with the optimizer's moments beside them."""

    def __init__(self, layout: Layout, lanes: int, moments: Sequence[str], device: torch.device) -> None:
        self.layout = layout
        shape = (lanes, layout.width)
        self.weights = torch.zeros(shape, device=device)
        self.grads = torch.zeros(shape, device=device)
        self.moments = {name: torch.zeros(shape, device=device) for name in moments}

    @property
    def lanes(self) -> int:
        return self.weights.shape[0]

    def adopt(self, lane: int, model: nn.Module) -> None:
        """Copies a model's weights into a lane and makes the model's parameters (and their grads) views of it."""
        parameters = dict(model.named_parameters())
        for slot in self.layout:
            p = parameters[slot.name]
            view = slot.view(self.weights[lane])
            view.copy_(p.detach())
            owner, _, attribute = slot.name.rpartition(".")
            fresh = nn.Parameter(view)
            fresh.grad = slot.view(self.grads[lane])
            setattr(model.get_submodule(owner), attribute, fresh)

    def export(self, lane: int, rows: Tensor | None = None) -> dict[str, np.ndarray]:
        """One lane's parameters by name as contiguous host arrays; of `rows` [S, width] if given, not the weights."""
        source = (self.weights if rows is None else rows)[lane]
        return {s.name: np.ascontiguousarray(s.view(source).detach().cpu().numpy()) for s in self.layout}

    def load(self, lane: int, arrays: Mapping[str, np.ndarray], rows: Tensor | None = None) -> None:
        """The inverse of `export`."""
        target = (self.weights if rows is None else rows)[lane]
        for slot in self.layout:
            slot.view(target).copy_(torch.from_numpy(np.array(arrays[slot.name])))
