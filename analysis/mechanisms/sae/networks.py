"""Layers of a sweep's networks as sides of a transfer: rows of the same stimuli, dictionaries trained together."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ndt_ray.analysis.mechanisms.context import Layer, ProbeContext
from ndt_ray.analysis.mechanisms.sae.activations import Rows, layer_rows, places
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


@dataclass(frozen=True)
class Node:
    """One layer of one network."""

    trial_id: str
    step: int
    layer: Layer

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


def layers_of(context: ProbeContext, sampling: Sampling) -> list[Layer]:
    """The layers that dictionaries are trained for: at most `layers`, evenly along the forward pass."""
    known = context.layers
    picks = np.unique(np.linspace(0, len(known) - 1, min(len(known), sampling.layers)).round().astype(int))
    return [known[i] for i in picks]


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


def sides(rows: Mapping[Node, Activations], config: Config, sampling: Sampling) -> dict[Node, Side]:
    """A side for each layer that can have one: `seeds` dictionaries, one with frozen atoms, one untrained.

    Layers of equal width and number of rows are trained as lanes of one program.
    """
    groups: dict[tuple[int, ...], list[Node]] = {}
    for node, own in rows.items():
        if own.fit.shape[-1] >= sampling.least_width and own.flag is None:
            groups.setdefault((own.fit.shape[-1], own.fit.shape[0] * own.fit.shape[1]), []).append(node)
    found: dict[Node, Side] = {}
    per_node = sampling.seeds + 1
    for nodes in groups.values():
        for start in range(0, len(nodes), max(1, LANES // per_node)):
            part = nodes[start : start + max(1, LANES // per_node)]
            found |= _trained(part, rows, config, per_node)
    return found


def _trained(
    nodes: Sequence[Node], rows: Mapping[Node, Activations], config: Config, per_node: int
) -> Iterable[tuple[Node, Side]]:
    flat = torch.stack([torch.from_numpy(_flat(rows[node].fit)) for node in nodes])
    names = [f"{node}:{i}" for node in nodes for i in range(per_node)]
    frozen = [i == per_node - 1 for _ in nodes for i in range(per_node)]
    trained = train(flat.repeat_interleave(per_node, 0), names, config, frozen=frozen)
    active = _active(trained, flat.repeat_interleave(per_node, 0)).reshape(len(nodes), per_node)[:, :-1].mean(1)
    untrained = random_saes(flat, [str(node) for node in nodes], config, active)
    for place, node in enumerate(nodes):
        own = rows[node]
        first = place * per_node
        yield (
            node,
            Side(
                str(node),
                own.fit,
                own.held_out,
                trained.lanes(range(first, first + per_node - 1)),
                trained.lanes([first + per_node - 1]),
                untrained.lanes([place]),
            ),
        )


def _active(saes: Saes, rows: Tensor, sample: int = 512) -> Tensor:
    """Mean active features a row of each lane [S], over the first rows."""
    with torch.no_grad():
        return (saes.encode(saes.normalised(rows[:, :sample])) > 0).float().sum(-1).mean(1)


def _flat(rows: Rows) -> NDArray[np.float32]:
    return np.ascontiguousarray(rows.reshape(-1, rows.shape[-1]))


def _digest(inputs: Tensor) -> str:
    return hashlib.sha256(inputs.cpu().contiguous().numpy().tobytes()).hexdigest()[:16]
