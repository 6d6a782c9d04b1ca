"""Layers of a sweep's networks as sides of a transfer: rows of the same stimuli, dictionaries trained together."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ndt_ray.analysis.mechanisms.context import Layer, ProbeContext
from ndt_ray.analysis.mechanisms.sae.activations import Rows, layer_rows, places
from ndt_ray.analysis.mechanisms.sae.files import Shelf
from ndt_ray.analysis.mechanisms.sae.model import Config, Saes, random_saes, train
from ndt_ray.analysis.mechanisms.sae.transfer import Side
from ndt_ray.analysis.nulls import generator
from ndt_ray.data import Dataset, load
from ndt_ray.errors import SpecError, did_you_mean

LANES = 24
"""Dictionaries trained at once: more save no time on a CPU and cost memory."""


@dataclass(frozen=True)
class Sampling:
    """Which rows dictionaries are trained on and judged by."""

    stimuli: int = 1024
    held_out: int = 512
    per_stimulus: int = 4
    layers: int = 8
    seeds: int = 2
    least_width: int = 4


def sampled(**values: int) -> Sampling:
    """`Sampling` with some values replaced; SpecError for an unknown name or a value below 1."""
    known = {f.name for f in fields(Sampling)}
    for name, value in values.items():
        if name not in known:
            raise SpecError(f"sae: sampling has no '{name}'{did_you_mean(name, known)}")
        if value < 1:
            raise SpecError(f"sae: sampling.{name} must be at least 1, but got {value}")
    return Sampling(**values)


Choice = int | str | Sequence[int | str] | None
"""Which layers: how many, evenly along the depth; or their numbers and names, as a list or as text with commas."""


@dataclass(frozen=True)
class Node:
    """One layer of one network."""

    trial_id: str
    step: int
    layer: Layer
    depth: float = field(default=0.0, compare=False)
    """Its place among all layers of the network, from 0 (first) to 1 (last)."""

    def __str__(self) -> str:
        return f"{self.trial_id}:{self.step}:{self.layer.path}"


@dataclass(frozen=True)
class Activations:
    """Rows of one layer on its own data set: to fit, and held out."""

    fit: Rows
    held_out: Rows
    stimuli: str
    """Which stimuli these are: equal for layers whose rows pair."""

    @property
    def flag(self) -> str | None:
        """Why no dictionary can be trained, if none can."""
        if not np.isfinite(self.fit).all() or not np.isfinite(self.held_out).all():
            return "nonfinite"
        return "constant" if np.ptp(self.fit.reshape(-1, self.fit.shape[-1]), axis=0).max() == 0 else None


def fit_stimuli(data: Dataset, count: int) -> Tensor:
    """Training samples that dictionaries are trained on: a function of the data set alone."""
    order = generator("sae stimuli", data.hash).permutation(len(data.train_x))[:count]
    return data.train_x[torch.from_numpy(np.sort(order))]


def dataset(context: ProbeContext) -> Dataset:
    """The data set of a network's trial."""
    return load(context.trial.data.name, context.trial.data.params)


def chosen_layers(
    known: Sequence[Layer], choice: Choice, most: int, tell: Callable[[str], None] = lambda _: None
) -> list[Layer]:
    """The layers that dictionaries are trained for, in order of the forward pass; by default at most `most` of them,
    and told how many those are.

    Of a list, layers that this network lacks are told, and SpecError if it has none of them: networks of a sweep have
    different layers.
    """
    if choice is None or isinstance(choice, int):
        count = most if choice is None else choice
        if count < 1:
            raise SpecError(f"sae: layers is how many (1 or more), or a list of numbers and names, but got {choice!r}")
        picks = np.unique(np.linspace(0, len(known) - 1, min(len(known), count)).round().astype(int))
        if choice is None and len(picks) < len(known):
            tell(f"{len(picks)} of {len(known)} layers, evenly along the depth - layers={len(known)} takes all")
        return [known[i] for i in picks]
    listed = choice.split(",") if isinstance(choice, str) else list(choice)
    names: dict[int | str, Layer] = {layer.path: layer for layer in known} | {layer.index: layer for layer in known}
    wanted = [int(name) if str(name).strip().isdigit() else str(name).strip() for name in listed if str(name).strip()]
    lacking = [name for name in wanted if name not in names]
    if not wanted or len(lacking) == len(wanted):
        there = ", ".join(f"{layer.index} {layer.path}" for layer in known)
        raise SpecError(f"none of the layers {', '.join(map(str, wanted)) or '(none given)'} - there are: {there}")
    if lacking:
        tell(f"no layer {', '.join(map(str, lacking))}{did_you_mean(str(lacking[0]), map(str, names))}")
    return sorted({names[name] for name in wanted if name in names}, key=lambda layer: layer.index)


def named_layers(parameters: Mapping[str, Any]) -> list[str]:
    """Names of layers in the parameter `layers`; numbers are places, which every network has some of."""
    choice = parameters["layers"]
    listed = (
        choice.split(",") if isinstance(choice, str) else [] if choice is None or isinstance(choice, int) else choice
    )
    names = (str(name).strip() for name in listed)
    return [name for name in names if name and not name.isdigit()]


def nodes_of(context: ProbeContext, layers: Sequence[Layer]) -> list[Node]:
    """These layers of a network."""
    last = max(1, len(context.layers) - 1)
    return [Node(context.trial.trial_id, context.step, layer, layer.index / last) for layer in layers]


def activations(
    context: ProbeContext, layers: Sequence[Layer], sampling: Sampling, stimuli_of: ProbeContext | None = None
) -> dict[str, Activations]:
    """Rows of these layers on the stimuli of the network's own data set, or of another network's."""
    owner = stimuli_of or context
    data = dataset(owner)
    fit, held_out = fit_stimuli(data, sampling.stimuli), owner.inputs[: sampling.held_out]
    kinds = {layer.path: layer.kind for layer in layers}
    found: list[dict[str, Rows]] = []
    for name, inputs in (("fit", fit), ("held out", held_out)):
        where = places(len(inputs), sampling.per_stimulus, name, data.hash)
        found.append(layer_rows(context.model, inputs, kinds, where, owner.padding))
    digest = f"{data.hash}:{len(fit)}:{_digest(held_out)}"
    return {path: Activations(found[0][path], found[1][path], digest) for path in kinds}


def sides(
    rows: Mapping[Node, Activations], config: Config, sampling: Sampling, shelf: Shelf | None = None
) -> dict[Node, Side]:
    """A side for each layer that can have one: `seeds` dictionaries, one with frozen atoms, one untrained.

    Layers of equal width and number of rows are trained as lanes of one program; what a lane learns does not depend on
    the others. With a `shelf`, what is there is not trained again, and what is trained is put there.
    """
    usable = [n for n, own in rows.items() if own.fit.shape[-1] >= sampling.least_width and own.flag is None]
    per_node = sampling.seeds + 1
    kept: dict[Node, tuple[Saes, str | None]] = {}
    keys: dict[Node, str] = {}
    groups: dict[tuple[Config, int, int], list[Node]] = {}
    for node in usable:
        flat, own = _flat(rows[node].fit), config.at(node.layer.index, node.depth)
        if shelf is not None:
            keys[node] = shelf.key(flat, _names(node, per_node), _frozen(per_node), own)
            if (found := shelf.find(keys[node])) is not None:
                kept[node] = found
                continue
        groups.setdefault((own, flat.shape[1], len(flat)), []).append(node)
    for (own, _, _), nodes in groups.items():
        for start in range(0, len(nodes), max(1, LANES // per_node)):
            part = nodes[start : start + max(1, LANES // per_node)]
            for node, saes in _trained(part, rows, own, per_node):
                kept[node] = saes, shelf.put(keys[node], saes) if shelf is not None else None
    return {node: _side(node, rows[node], *kept[node]) for node in usable}


def _names(node: Node, per_node: int) -> list[str]:
    """What the random numbers of a layer's dictionaries are named by."""
    return [f"{node}:{i}" for i in range(per_node)]


def _frozen(per_node: int) -> list[bool]:
    """The last one is the control with frozen atoms."""
    return [i == per_node - 1 for i in range(per_node)]


def _trained(
    nodes: Sequence[Node], rows: Mapping[Node, Activations], config: Config, per_node: int
) -> Iterable[tuple[Node, Saes]]:
    flat = torch.stack([torch.from_numpy(_flat(rows[node].fit)) for node in nodes])
    names = [name for node in nodes for name in _names(node, per_node)]
    trained = train(flat.repeat_interleave(per_node, 0), names, config, frozen=_frozen(per_node) * len(nodes))
    for place, node in enumerate(nodes):
        yield node, trained.lanes(range(place * per_node, (place + 1) * per_node))


def _side(node: Node, own: Activations, saes: Saes, artifact: str | None) -> Side:
    flat = torch.from_numpy(_flat(own.fit))[None]
    count = len(saes) - 1
    active = _active(saes, flat.expand(len(saes), -1, -1))[:-1].mean(0, keepdim=True)
    untrained = random_saes(flat, [str(node)], saes.config, active)
    learned, frozen = saes.lanes(range(count)), saes.lanes([count])
    return Side(str(node), own.fit, own.held_out, learned, frozen, untrained, artifact)


def _active(saes: Saes, rows: Tensor, sample: int = 512) -> Tensor:
    """Mean active features a row of each lane [S], over the first rows."""
    with torch.no_grad():
        return (saes.encode(saes.normalised(rows[:, :sample])) > 0).float().sum(-1).mean(1)


def _flat(rows: Rows) -> NDArray[np.float32]:
    return np.ascontiguousarray(rows.reshape(-1, rows.shape[-1]))


def _digest(inputs: Tensor) -> str:
    return hashlib.sha256(inputs.cpu().contiguous().numpy().tobytes()).hexdigest()[:16]
