"""The analyses of sparse autoencoders: their quality in each network, their transfer between networks of a sweep."""

import json
from dataclasses import asdict
from functools import partial
from typing import Any

import pandas as pd
import torch

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.mechanisms.context import ProbeContext
from ndt_ray.analysis.mechanisms.sae import quality
from ndt_ray.analysis.mechanisms.sae.activations import spliced_loss, through
from ndt_ray.analysis.mechanisms.sae.files import Shelf
from ndt_ray.analysis.mechanisms.sae.model import Saes, configurations
from ndt_ray.analysis.mechanisms.sae.networks import (
    Activations,
    Choice,
    Node,
    Sampling,
    activations,
    chosen_layers,
    dataset,
    named_layers,
    nodes_of,
    sampled,
    sides,
)
from ndt_ray.analysis.mechanisms.sae.relations import Pair, check, networks_of, pairs
from ndt_ray.analysis.mechanisms.sae.rows import Skipped, nothing, quality_rows, transfer_row
from ndt_ray.analysis.mechanisms.sae.tables import SAE, TRANSFER
from ndt_ray.errors import NdtError, SpecError


@analysis(name="sae", reads=("trials", "checkpoints"), writes=(SAE,), per="trial", context=True, layers=named_layers)
def sae(
    data: AnalysisInput,
    *,
    config: str = "default",
    changes: dict[str, Any] | None = None,
    configs: list[str | dict[str, Any]] | None = None,
    sampling: dict[str, int] | None = None,
    layers: int | str | list[int | str] | None = None,
    steps: list[int] | None = None,
    splice: int = 128,
) -> dict[str, pd.DataFrame]:
    """Sparse autoencoders of a trial's layers, first and last checkpoint, judged on held-out stimuli.

    `config`: default or founding, with `changes` (`l1_schedule: founding` for its weights by depth); `configs`: several
    beside each other, see model.configurations; `sampling`: see networks.Sampling; `layers`: how many, or which
    (numbers or names: 4,8,12); `steps`: other checkpoints; `splice`: probe stimuli for the loss recovered, 0 for none.
    Dictionaries are kept, and used again, in the store.
    """
    saved = data.frame("checkpoints")
    if not len(saved) or not len(data.frame("trials")):
        return {SAE.name: pd.DataFrame()}
    chosen, wanted = configurations(config, changes, configs), sampled(**(sampling or {}))
    rows: list[dict[str, Any]] = []
    for step in sorted({0, int(saved["step"].max())} if steps is None else set(steps)):
        context = data.context(step)
        try:
            picked = chosen_layers(context.layers, layers, wanted.layers, data.notes.append)
        except SpecError as error:
            if not isinstance(layers, str | list):
                raise
            data.notes.append(str(error))  # networks of other cells may have them
            rows += [nothing(str(data.partition.trial_id), step, "no_layer", name) for name in chosen]
            continue
        found = activations(context, picked, wanted)
        nodes = {node: found[node.layer.path] for node in nodes_of(context, picked)}
        for name, one in chosen.items():
            made = sides(nodes, one, wanted, shelf(data))
            for node, own in nodes.items():
                recovered = partial(_recovered, context, node, splice) if splice else None
                rows += quality_rows(node, own, made.get(node), one, recovered, name)
    return {SAE.name: pd.DataFrame(rows)}


@analysis(
    name="sae_transfer",
    reads=("trials", "checkpoints"),
    writes=(TRANSFER,),
    per="sweep",
    context=True,
    layers=named_layers,
)
def sae_transfer(
    data: AnalysisInput,
    *,
    config: str = "default",
    changes: dict[str, Any] | None = None,
    configs: list[str | dict[str, Any]] | None = None,
    sampling: dict[str, int] | None = None,
    relations: list[str] | None = None,
    trials: int = 2,
    checkpoints: int = 4,
    across: str = "matched",
    layers: int | str | list[int | str] | None = None,
    networks: int = 24,
) -> dict[str, pd.DataFrame]:
    """Transfer of features between the layers, seeds, architectures, data sets and checkpoints of a sweep.

    `trials` of each cell, by seed; `checkpoints` of the first of them, evenly chosen; `across`: layers of different
    networks matched by depth, or all with all; `networks`: at most so many are looked at, pairs with others are
    skipped with that reason. `config`, `changes`, `configs`, `sampling`, `layers` as in the analysis sae, whose
    dictionaries it uses; dictionaries of one configuration are compared with each other.
    """
    check(relations, across)
    table = data.frame("trials")
    saved = data.frame("checkpoints")
    if not len(table) or not len(saved):
        return {TRANSFER.name: pd.DataFrame()}
    chosen, wanted = configurations(config, changes, configs), sampled(**(sampling or {}))
    known = networks_of(table, saved, trials, checkpoints)
    rows, looked_at, broken = _collected(data, known.nodes, wanted, networks, layers)
    shown = partial(_shown, data, wanted)
    compared = list(pairs(known, looked_at, relations, across))
    found = []
    for name, one in chosen.items():
        made = sides(rows, one, wanted, shelf(data))
        how = {"configuration": name, "config": json.dumps(asdict(one), sort_keys=True)}
        found += [transfer_row(pair, known.cells, rows, made, broken, shown) | how for pair in compared]
    return {TRANSFER.name: pd.DataFrame(found)}


def shelf(data: AnalysisInput) -> Shelf | None:
    """Where dictionaries are kept; None without a store."""
    return None if data.artifacts is None else Shelf(data.artifacts, data.notes.append)


def _collected(
    data: AnalysisInput, networks: list[tuple[str, int]], sampling: Sampling, limit: int, choice: Choice
) -> tuple[dict[Node, Activations], dict[tuple[str, int], list[Any]], dict[tuple[str, int], str]]:
    """(rows by layer, layers by network, why a network could not be looked at)."""
    rows: dict[Node, Activations] = {}
    layers: dict[tuple[str, int], list[Any]] = {}
    broken: dict[tuple[str, int], str] = {}
    for trial_id, step in networks[limit:]:
        broken[trial_id, step] = f"over the limit of {limit} networks of {len(networks)}: raise the parameter networks"
    for trial_id, step in networks[:limit]:
        try:
            context = data.context(step, trial_id)
            chosen = chosen_layers(context.layers, choice, sampling.layers)
            found = activations(context, chosen, sampling)
        except NdtError as error:  # a missing or foreign checkpoint, none of the layers: the other networks go on
            broken[trial_id, step] = str(error).partition("\n")[0]
            continue
        layers[trial_id, step] = chosen
        rows |= {node: found[node.layer.path] for node in nodes_of(context, chosen)}
    return rows, layers, broken


def _recovered(context: ProbeContext, node: Node, count: int, one: Saes) -> float | None:
    """Share of a layer's worth in loss that a dictionary gives back, on `count` stimuli of the probe."""
    inputs, labels = context.inputs[:count], torch.from_numpy(context.labels[:count])
    changes = {"intact": lambda rows: rows, "spliced": through(one), "zeroed": torch.zeros_like}
    losses = {
        name: spliced_loss(context.model, node.layer.path, node.layer.kind, change, inputs, labels)
        for name, change in changes.items()
    }
    return quality.recovered(losses["intact"], losses["spliced"], losses["zeroed"])


def _shown(data: AnalysisInput, sampling: Sampling, pair: Pair) -> Activations:
    """The source's layer on the target's stimuli; Skipped where its network takes no such inputs."""
    ours, theirs = (data.context(n.step, n.trial_id) for n in (pair.source, pair.target))
    vocabularies = {dataset(c).inputs.vocab for c in (ours, theirs)}
    if ours.kind != theirs.kind or ours.inputs.shape[1:] != theirs.inputs.shape[1:] or len(vocabularies) > 1:
        raise Skipped(
            f"inputs_differ: {ours.kind} {tuple(ours.inputs.shape[1:])}, {theirs.kind} {tuple(theirs.inputs.shape[1:])}"
        )
    return activations(ours, [pair.source.layer], sampling, theirs)[pair.source.layer.path]
