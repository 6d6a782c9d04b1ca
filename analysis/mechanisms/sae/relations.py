"""Which layers of a sweep's networks are compared with which, and what differs between them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.mechanisms.context import Layer
from ndt_ray.analysis.mechanisms.sae.networks import Node
from ndt_ray.errors import SpecError, did_you_mean

RELATIONS = ("layers", "seeds", "architectures", "data", "checkpoints")


@dataclass(frozen=True)
class Pair:
    """A source and a target, and what differs between them."""

    relation: str
    source: Node
    target: Node


@dataclass(frozen=True)
class Networks:
    """The networks that are compared: by cell their trials (in order of seed), and their checkpoints."""

    trials: Mapping[str, tuple[str, ...]]
    last: Mapping[str, int]
    checkpoints: Mapping[str, tuple[int, ...]]
    """Of the first trial of each cell, the last among them."""
    cells: Mapping[str, str]
    models: Mapping[str, str]
    data: Mapping[str, str]
    """By trial."""

    @property
    def nodes(self) -> list[tuple[str, int]]:
        """All (trial, step) that are needed, each once."""
        found = [(t, self.last[t]) for trials in self.trials.values() for t in trials]
        found += [(t, step) for t, steps in self.checkpoints.items() for step in steps]
        return list(dict.fromkeys(found))


def networks_of(trials: pd.DataFrame, saved: pd.DataFrame, per_cell: int, checkpoints: int) -> Networks:
    """`per_cell` trials of each cell (controls left out), and `checkpoints` of the first, the initialisation first.

    Trials that ended before the others of their cell are left out: networks of unequal training are not seeds.
    """
    steps = {str(t): sorted({0, *map(int, s)}) for t, s in saved.groupby("trial_id")["step"]}
    known = trials[(trials["control"] == "none") & trials["trial_id"].isin(steps)]
    known = known.assign(_last=[steps[t][-1] for t in known["trial_id"]])
    known = known[known["_last"] == known.groupby("cell")["_last"].transform("max")]
    known = known.sort_values(["cell", "seed", "trial_id"])
    by_cell = {str(cell): tuple(rows["trial_id"].head(per_cell)) for cell, rows in known.groupby("cell")}
    chosen = [t for trials in by_cell.values() for t in trials]
    info = known.set_index("trial_id")
    firsts = [trials[0] for trials in by_cell.values()]
    return Networks(
        by_cell,
        {t: steps[t][-1] for t in chosen},
        {t: _evenly(steps[t], checkpoints) for t in firsts},
        {t: str(info.loc[t, "cell"]) for t in chosen},
        {t: str(info.loc[t, "model"]) for t in chosen},
        {t: str(info.loc[t, "data"]) for t in chosen},
    )


def check(relations: Sequence[str] | None, across: str) -> None:
    """SpecError for an unknown relation or way to match layers."""
    for name in relations or ():
        if name not in RELATIONS:
            raise SpecError(f"sae_transfer: no relation '{name}'{did_you_mean(name, RELATIONS)}")
    if across not in ("matched", "all"):
        raise SpecError(f"sae_transfer: across is matched or all, but got {across!r}")


def pairs(
    networks: Networks,
    layers: Mapping[tuple[str, int], Sequence[Layer]],
    relations: Sequence[str] | None = None,
    across: str = "matched",
) -> Iterator[Pair]:
    """Every pair to compare. A network that has no entry in `layers` could not be looked at: it gives one pair each
    with layer *, so that the reason is told.

    `across` networks: matched, layers of the same place (of another number of layers: of the same relative depth), or
    all with all.
    """
    wanted = RELATIONS if relations is None else tuple(relations)
    firsts = [trials[0] for trials in networks.trials.values()]
    last = {t: (t, networks.last[t]) for t in networks.last}
    same = "same" if across == "matched" else across
    if "layers" in wanted:
        for t in firsts:
            nodes = _nodes(last[t], layers)
            yield from (Pair("layers", a, b) for a in nodes for b in nodes if a != b)
    if "seeds" in wanted:
        for trials in networks.trials.values():
            yield from _between("seeds", [(last[a], last[b]) for a in trials for b in trials if a != b], layers, same)
    for relation, equal, differs in (
        ("architectures", networks.data, networks.models),
        ("data", networks.models, networks.data),
    ):
        if relation in wanted:
            chosen = [
                (last[a], last[b]) for a in firsts for b in firsts if equal[a] == equal[b] and differs[a] != differs[b]
            ]
            yield from _between(relation, chosen, layers, same if relation == "data" else across)
    if "checkpoints" in wanted:
        for t, steps in networks.checkpoints.items():
            ends = [((t, step), last[t]) for step in steps if step != networks.last[t]]
            both = ends + [(b, a) for a, b in ends]
            yield from _between("checkpoints", both, layers, same)


def _between(
    relation: str,
    chosen: Sequence[tuple[tuple[str, int], tuple[str, int]]],
    layers: Mapping[tuple[str, int], Sequence[Layer]],
    across: str,
) -> Iterator[Pair]:
    """Pairs of layers of pairs of networks: `same` place, `matched` by relative depth, or `all`."""
    for source, target in chosen:
        ours, theirs = _nodes(source, layers), _nodes(target, layers)
        if across == "all":
            yield from (Pair(relation, a, b) for a in ours for b in theirs)
        elif across == "same" and len(ours) == len(theirs):
            yield from (Pair(relation, a, b) for a, b in zip(ours, theirs, strict=True))
        else:
            for i, a in enumerate(ours):
                place = i / max(1, len(ours) - 1) * (len(theirs) - 1)
                yield Pair(relation, a, theirs[round(place)])


def _nodes(network: tuple[str, int], layers: Mapping[tuple[str, int], Sequence[Layer]]) -> list[Node]:
    found: Sequence[Any] = layers.get(network, (Layer("*", -1, "units"),))
    return [Node(*network, layer) for layer in found]


def _evenly(steps: Sequence[int], count: int) -> tuple[int, ...]:
    picks = np.unique(np.linspace(0, len(steps) - 1, min(max(count, 1), len(steps))).round().astype(int))
    return tuple(steps[i] for i in picks)
