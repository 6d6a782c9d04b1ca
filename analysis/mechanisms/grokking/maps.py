"""A modular network as maps over all pairs (a, b): one forward pass that every analyzer shares."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ndt_ray.analysis.mechanisms.grokking.fourier import map_spectrum
from ndt_ray.analysis.mechanisms.grokking.progress import Mask, scores
from ndt_ray.analysis.mechanisms.grokking.scale import downsampled
from ndt_ray.data.dataset import Dataset
from ndt_ray.errors import SpecError
from ndt_ray.measurement.capture import Capture, evaluating
from ndt_ray.measurement.evaluate import CHUNK
from ndt_ray.models.modular import ModularBlock, ModularTransformer

TO = ("a", "b")
"""What the last position attends to: the first or the second number."""


@dataclass(frozen=True)
class ModularBundle:
    """What one forward pass over all p² pairs gives, and the weights that spectra are taken of.

    Of the last block; None where the architecture has no such part.
    """

    p: int
    train: Mask
    """[p, p]: pairs trained on."""
    logits: NDArray[np.float64]
    """[p, p, p] over (a, b, c)."""
    squared_weights: float
    mixed: Tensor | None = None
    """What the heads give before they are joined, mean over pairs, [tokens, heads d_head]."""
    neurons: NDArray[np.float32] | None = None
    """[n, p, p]: feed-forward activations after the ReLU, at the last position."""
    attention: dict[str, NDArray[np.float32]] | None = None
    """By what is attended to: [heads, p, p]."""
    weights: dict[str, NDArray[np.float64]] | None = None
    """embedding [p, d], ov [d, d] (all heads' values and outputs), w_in [d, n], w_out [n, d], unembed [d, p], queries
    and keys [heads, d, d_head]."""

    @cached_property
    def neuron_fractions(self) -> NDArray[np.float64] | None:
        """Share of each neuron's energy by frequency, [n, p//2]."""
        return None if self.neurons is None else map_spectrum(self.neurons)[0]

    @cached_property
    def head_fractions(self) -> NDArray[np.float64] | None:
        """The same of each head's attention to a, [heads, p//2]."""
        return None if self.attention is None else map_spectrum(self.attention["a"])[0]


def bundle(model: nn.Module, data: Dataset) -> ModularBundle:
    """One forward pass over all pairs, in eval mode; SpecError for data that are not modular."""
    pairs, train = all_pairs(data)
    p = len(train)
    block = _last_block(model)
    squared = float(sum((w.detach().double() ** 2).sum() for w in model.parameters()))
    if block is None:
        return ModularBundle(p, train, _grid(_forward(model, pairs), p), squared)
    path, module = block
    layers = {f"{path}.relu": "tokens", f"{path}.self_attn.pattern": "positions"}
    parts: dict[str, list[Tensor]] = {name: [] for name in layers}
    logits: list[Tensor] = []
    mixed: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        mixed.append(x)
        return x

    watched = _before(module.self_attn.out_proj, keep)
    with torch.no_grad(), evaluating(model), Capture(model, layers) as seen, watched:
        for chunk in torch.split(pairs, 8 * CHUNK):
            logits.append(model(chunk))
            for name, found in seen.take()[0].items():
                parts[name].append(found[..., -1, :])
    neurons = torch.cat(parts[f"{path}.relu"])  # [p², n]
    pattern = torch.cat(parts[f"{path}.self_attn.pattern"])  # [p², heads, keys]
    attention = {to: _maps(pattern[:, :, i], p) for i, to in enumerate(TO)}
    return ModularBundle(
        p,
        train,
        _grid(torch.cat(logits), p),
        squared,
        torch.cat(mixed).mean(0),
        _maps(neurons, p),
        attention,
        _weights(model, module, p),
    )


def all_pairs(data: Dataset) -> tuple[Tensor, Mask]:
    """Inputs [p², 3] in a-major order, and which pairs [p, p] are trained on."""
    if data.inputs.kind != "modular":
        raise SpecError(
            f"data '{data.name}' are {data.inputs.kind}: the grokking analyses are for modular arithmetic only"
        )
    p = data.inputs.classes
    x = torch.cat([data.train_x, data.test_x])
    order = torch.argsort(x[:, 0] * p + x[:, 1])
    if len(x) != p * p or not torch.equal((x[:, 0] * p + x[:, 1])[order], torch.arange(p * p)):
        raise SpecError(f"data '{data.name}' hold {len(x)} pairs, not each of the {p * p} once: no map can be drawn")
    train = np.zeros(p * p, dtype=bool)
    train[(data.train_x[:, 0] * p + data.train_x[:, 1]).numpy()] = True
    return x[order], train.reshape(p, p)


def head_ablation(model: nn.Module, data: Dataset, found: ModularBundle | None = None) -> list[dict[str, float]]:
    """For each head of the last block: loss (nats) on the test pairs beyond the intact one's, its output set to zero
    (`zero`) or to its mean over pairs (`mean`). Empty for an architecture without attention.

    `found`: the bundle of this network, if it has been made; an intervention costs a pass of its own.
    """
    block = _last_block(model)
    if block is None:
        return []
    found = bundle(model, data) if found is None else found
    assert found.mixed is not None
    pairs, train, mean = all_pairs(data)[0], found.train, found.mixed
    attention = block[1].self_attn
    size = attention.out_proj.in_features // attention.heads
    intact = scores(found.logits, ~train).loss
    rows: list[dict[str, float]] = []
    for head in range(attention.heads):
        own = slice(head * size, (head + 1) * size)
        lost = {}
        for name, value in (("zero", torch.zeros_like(mean[..., own])), ("mean", mean[..., own])):
            with _before(attention.out_proj, lambda x, own=own, value=value: _replaced(x, own, value)):
                lost[name] = scores(_grid(_forward(model, pairs), len(train)), ~train).loss - intact
        rows.append(lost)
    return rows


class NeuronActivationsAnalyzer:
    """Base maps of a network: feed-forward neurons after the ReLU, at the last position, over all pairs."""

    name = "neuron_activations"

    def analyze(self, found: ModularBundle) -> dict[str, NDArray[np.float32]]:
        """`neuron_acts` [n, p, p], `attn_to_a` and `attn_to_b` [heads, p, p]; empty where there are none."""
        maps = {} if found.neurons is None else {"neuron_acts": found.neurons}
        return maps | {f"attn_to_{to}": values for to, values in (found.attention or {}).items()}


class DownsampledActivationsAnalyzer:
    """The same maps reduced to `side` × `side` (28 or 56) from what `NeuronActivationsAnalyzer` found."""

    name = "downsampled_activations"

    def __init__(self, side: int = 28) -> None:
        if side < 2:
            raise SpecError(f"a map needs at least 2 x 2 cells, but got ({side=})")
        self.side = side

    def analyze(self, base: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """Every map of `base` under its name with `_downsampled`."""
        return {f"{name}_downsampled": downsampled(maps, self.side) for name, maps in base.items()}


def _last_block(model: nn.Module) -> tuple[str, ModularBlock] | None:
    if not isinstance(model, ModularTransformer):
        return None
    last = len(model.blocks) - 1
    block = model.blocks[last]
    assert isinstance(block, ModularBlock)
    return f"blocks.{last}", block


def _weights(model: nn.Module, block: ModularBlock, p: int) -> dict[str, NDArray[np.float64]]:
    assert isinstance(model, ModularTransformer)
    attention = block.self_attn

    def split(layer: nn.Linear) -> NDArray[np.float64]:
        """W as [heads, d, d_head], to be multiplied from the right."""
        found: NDArray[np.float64] = _numpy(layer.weight).reshape(attention.heads, -1, layer.in_features)
        return found.transpose(0, 2, 1)

    return {
        "embedding": _numpy(model.embedding.weight)[:p],
        "ov": (_numpy(attention.out_proj.weight) @ _numpy(attention.v_proj.weight)).T,
        "w_in": _numpy(block.linear1.weight).T,
        "w_out": _numpy(block.linear2.weight).T,
        "unembed": _numpy(model.unembed.weight).T,
        "queries": split(attention.q_proj),
        "keys": split(attention.k_proj),
    }


def _forward(model: nn.Module, pairs: Tensor) -> Tensor:
    with torch.no_grad(), evaluating(model):
        return torch.cat([model(chunk) for chunk in torch.split(pairs, 8 * CHUNK)])


def _grid(logits: Tensor, p: int) -> NDArray[np.float64]:
    return _numpy(logits).reshape(p, p, -1)


def _maps(values: Tensor, p: int) -> NDArray[np.float32]:
    """[p², n] -> [n, p, p]"""
    found: NDArray[np.float32] = values.detach().float().cpu().T.contiguous().numpy().reshape(-1, p, p)
    return found


def _numpy(tensor: Tensor) -> NDArray[np.float64]:
    found: NDArray[np.float64] = tensor.detach().double().cpu().numpy()
    return found


def _replaced(x: Tensor, own: slice, value: Tensor) -> Tensor:
    x = x.clone()
    x[..., own] = value
    return x


@contextmanager
def _before(module: nn.Module, change: Any) -> Iterator[None]:
    handle = module.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))
    try:
        yield
    finally:
        handle.remove()
