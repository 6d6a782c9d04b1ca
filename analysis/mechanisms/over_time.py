"""What needs more than one network: similarity of representations and movement of weights, across time and seeds."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.mechanisms import similarity as measures
from ndt_ray.analysis.mechanisms.context import Floats, ProbeContext
from ndt_ray.analysis.mechanisms.tables import DISTANCES, SEED_SIMILARITY, SIMILARITY, WEIGHTS, WHOLE, Metrics
from ndt_ray.analysis.mechanisms.weights import distances, weight_change_magnitude
from ndt_ray.analysis.nulls import generator
from ndt_ray.errors import CheckpointError

READS = ("trials", "checkpoints")
MOST_NUMBERS = 2e8
"""Of weights held at once, all checkpoints of a layer together: 800 MB."""
ONE = "too_few_stimuli"
UNREADABLE = "checkpoint_unreadable"

Representations = dict[str, Floats]


def saved_steps(data: AnalysisInput, trial_id: str) -> list[int]:
    """The initialisation and the steps of the trial's checkpoints."""
    rows = data.frame("checkpoints")
    steps = rows.loc[rows["trial_id"] == trial_id, "step"] if len(rows) else []
    return sorted({0, *(int(step) for step in steps)})


class _Readable:
    """The networks of trials that can be read; those that cannot are remembered."""

    def __init__(self, data: AnalysisInput) -> None:
        self._data = data
        self.broken: list[tuple[str, int]] = []

    def __call__(self, trial: str, step: int) -> ProbeContext | None:
        if (trial, step) in self.broken:
            return None
        try:
            return self._data.context(step, trial)
        except CheckpointError:
            self.broken.append((trial, step))
            return None

    def rows(self, out: Metrics, metric: str, **more: Any) -> None:
        """A row with the reason for each that could not."""
        for trial, step in self.broken:
            out.nothing(WHOLE, -1, metric, UNREADABLE, **{"trial_id": trial, "step": step, **more})


@analysis(name="similarity", reads=READS, writes=(SIMILARITY,), per="trial", context=True)
def similarity(data: AnalysisInput, *, layers: bool = True, procrustes: bool = True) -> dict[str, pd.DataFrame]:
    """Debiased CKA and Procrustes distance of each layer to the checkpoint before, the initialisation and the last.

    `layers`: between the layers of each network too. A checkpoint that cannot be read has a row that says so.
    """
    trial = str(data.partition.trial_id)
    steps, networks, out = saved_steps(data, trial), _Readable(data), Metrics(trial_id=trial)
    while (newest := networks(trial, steps[-1])) is None:  # ends at the initialisation, which needs no file
        steps.pop()
    last = _seen(newest)
    index = {layer.path: layer.index for layer in newest.layers}
    seen: list[tuple[int, Representations]] = []
    for step in steps:
        context = newest if step == steps[-1] else networks(trial, step)
        if context is None:
            continue
        now = last if context is newest else _seen(context)
        first = seen[0] if seen else (step, now)
        others = {"initial": first, "last": (steps[-1], last)} | ({"previous": seen[-1]} if seen else {})
        for reference, (other_step, other) in others.items():
            where: dict[str, Any] = {"reference": reference, "other_step": other_step, "step": step}
            for path, values in now.items():
                key = (path, index[path])
                _compare(out, key, values, other[path], procrustes, other_trial=trial, other_layer=path, **where)
        for i, (one, values) in enumerate(now.items() if layers else ()):
            for two in list(now)[:i]:
                where = {"reference": "layer", "other_step": step, "other_layer": two, "step": step}
                _compare(out, (one, index[one]), values, now[two], procrustes, other_trial=trial, **where)
        seen = [*seen[:1], (step, now)]
    networks.rows(out, "cka", reference="previous", other_trial=trial, other_layer=WHOLE, other_step=0)
    return {SIMILARITY.name: out.frame()}


@analysis(name="seed_similarity", reads=READS, writes=(SEED_SIMILARITY,), per="sweep", context=True)
def seed_similarity(data: AnalysisInput, *, procrustes: bool = True, draws: int = 200) -> dict[str, pd.DataFrame]:
    """Debiased CKA and Procrustes distance of the seeds of a cell at their last common checkpoint, layer by layer.

    p: permutations of the stimuli. Control lanes are cells of their own. A network that cannot be read has a row that
    says so, and the others are compared.
    """
    networks, out = _Readable(data), Metrics()
    trials = data.frame("trials")
    for _, cell in trials.groupby(["cell", "control"], sort=True) if len(trials) else ():
        ids = sorted(cell["trial_id"])
        step = max(set.intersection(*(set(saved_steps(data, trial)) for trial in ids)))
        seen: dict[str, Representations] = {}
        index: dict[str, int] = {}
        for trial in ids if len(ids) > 1 else ():
            context = networks(trial, step)
            if context is not None:
                seen[trial] = _seen(context)
                index |= {layer.path: layer.index for layer in context.layers}
        for i, trial in enumerate(seen):
            for other in list(seen)[:i]:
                for path, values in seen[trial].items():
                    rng = generator("seed_similarity", trial, other, path, str(step))
                    p = measures.cka_permutation_p(values, seen[other][path], rng, draws)
                    where = {"reference": "seed", "other_trial": other, "other_step": step, "other_layer": path}
                    key = (path, index[path])
                    _compare(out, key, values, seen[other][path], procrustes, p=p, trial_id=trial, step=step, **where)
    networks.rows(out, "cka", reference="seed", other_trial="", other_layer=WHOLE, other_step=0)
    return {SEED_SIMILARITY.name: out.frame()}


def _seen(context: ProbeContext) -> Representations:
    """Stimulus means of all layers: what is kept of a network."""
    return {layer.path: context.stimuli(layer.path) for layer in context.layers}


def _compare(
    out: Metrics, layer: tuple[str, int], one: Floats, other: Floats, procrustes: bool, p: float = np.nan, **where: Any
) -> None:
    value = measures.debiased_cka(one, other)
    flag = "constant" if len(one) >= 4 else ONE
    out.add(*layer, "cka", value, n=len(one), chance=0.0, p=p, flag=flag, **where)
    if procrustes:
        distance = measures.procrustes_distance(one, other)
        rng = generator("procrustes", str(layer), *(str(where[k]) for k in sorted(where)))
        chance = measures.procrustes_chance(one, other, rng)
        out.add(*layer, "procrustes_distance", distance, n=len(one), chance=chance, flag="constant", **where)


@analysis(name="weights", reads=READS, writes=(WEIGHTS, DISTANCES), per="trial", context=True)
def weights(data: AnalysisInput, *, most_numbers: float = MOST_NUMBERS) -> dict[str, pd.DataFrame]:
    """How far each parameter moved since the checkpoint before and since the initialisation; all pairs, by layer.

    `most_numbers`: where the weights at all checkpoints together are more numbers than this there are no pairs. A
    checkpoint that cannot be read has a row that says so.
    """
    trial = str(data.partition.trial_id)
    steps, networks, out = saved_steps(data, trial), _Readable(data), Metrics(trial_id=trial)
    context = data.context(0)
    index = {layer.path: layer.index for layer in context.layers}
    first = context.parameters()
    pairs = sum(value.size for value in first.values()) * len(steps) <= most_numbers
    flat: dict[str, list[Floats]] = {}
    previous, read = (0, first), []
    for step in steps:
        network = networks(trial, step)
        if network is None:
            continue
        now = network.parameters()
        read.append(step)
        others = {previous[0]: previous[1], 0: first} if step != 0 else {}
        for other_step, other in others.items():
            for name, value in now.items():
                layer = name.rpartition(".")[0]
                where = {"n": value.size, "part": name, "step": step, "other_step": other_step}
                for metric, change in weight_change_magnitude(other[name], value).items():
                    out.add(layer, index.get(layer, -1), metric, change, flag="zero_before", **where)
        for layer, names in _by_layer(now).items() if pairs else ():
            flat.setdefault(layer, []).append(np.concatenate([now[name].ravel() for name in names]).astype(np.float32))
        previous = (step, now)
    networks.rows(out, "l2_norm", part=WHOLE, other_step=0)
    return {WEIGHTS.name: out.frame(), DISTANCES.name: pd.DataFrame(_pairs(trial, flat, read, index))}


def _by_layer(parameters: Iterable[str]) -> dict[str, list[str]]:
    layers: dict[str, list[str]] = {}
    for name in parameters:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    return layers


def _pairs(
    trial: str, flat: dict[str, list[Any]], steps: Sequence[int], index: dict[str, int]
) -> Iterator[dict[str, Any]]:
    """Distances between all checkpoints, of each layer and of the network, whose squares are their sum."""
    total, norms = np.zeros((len(steps), len(steps))), np.zeros(len(steps))
    for layer, stacked in flat.items():
        apart, norm = distances(np.stack(stacked).astype(np.float64))
        total, norms = total + apart**2, norms + norm**2
        yield from _distance_rows(trial, layer, index.get(layer, -1), steps, apart, norm)
    if flat:
        yield from _distance_rows(trial, WHOLE, -1, steps, np.sqrt(total), np.sqrt(norms))


def _distance_rows(
    trial: str, layer: str, index: int, steps: Sequence[int], apart: Floats, norm: Floats
) -> Iterator[dict[str, Any]]:
    for later in range(1, len(steps)):
        for earlier in range(later):
            moved, before = float(apart[earlier, later]), float(norm[earlier])
            key = {"trial_id": trial, "step": steps[later], "layer": layer, "layer_index": index}
            relative = moved / before if before > 0 else np.nan
            yield {**key, "other_step": steps[earlier], "distance": moved, "displacement": relative}
