"""The analyses of sparse autoencoders: their quality in each network, their transfer between networks of a sweep."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import torch

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.mechanisms.context import ProbeContext
from ndt_ray.analysis.mechanisms.sae import quality
from ndt_ray.analysis.mechanisms.sae.activations import paired, spliced_loss, through
from ndt_ray.analysis.mechanisms.sae.align import principal
from ndt_ray.analysis.mechanisms.sae.model import Config, Saes, preset
from ndt_ray.analysis.mechanisms.sae.networks import (
    Activations,
    Node,
    Sampling,
    activations,
    dataset,
    layers_of,
    sampled,
    sides,
)
from ndt_ray.analysis.mechanisms.sae.relations import Pair, check, networks_of, pairs
from ndt_ray.analysis.mechanisms.sae.tables import SAE, TRANSFER
from ndt_ray.analysis.mechanisms.sae.transfer import Side, matching, normalised, through_target, transfer
from ndt_ray.errors import NdtError


@analysis(name="sae", reads=("trials", "checkpoints"), writes=(SAE,), per="trial", context=True)
def sae(
    data: AnalysisInput,
    *,
    config: str = "default",
    changes: dict[str, Any] | None = None,
    sampling: dict[str, int] | None = None,
    steps: list[int] | None = None,
    splice: int = 128,
) -> dict[str, pd.DataFrame]:
    """Sparse autoencoders of a trial's layers, first and last checkpoint, judged on held-out stimuli.

    `config`: default or founding, with `changes`; `sampling`: see networks.Sampling; `steps`: other checkpoints;
    `splice`: probe stimuli for the loss recovered, 0 for none.
    """
    saved = data.frame("checkpoints")
    if not len(saved) or not len(data.frame("trials")):
        return {SAE.name: pd.DataFrame()}
    chosen, wanted = preset(config, **(changes or {})), sampled(**(sampling or {}))
    rows: list[dict[str, Any]] = []
    for step in sorted({0, int(saved["step"].max())} if steps is None else set(steps)):
        context = data.context(step)
        layers = layers_of(context, wanted)
        found = activations(context, layers, wanted)
        nodes = {Node(context.trial.trial_id, step, layer): found[layer.path] for layer in layers}
        made = sides(nodes, chosen, wanted)
        for node, own in nodes.items():
            rows += _quality(node, own, made.get(node), context, chosen, splice)
    return {SAE.name: pd.DataFrame(rows)}


@analysis(name="sae_transfer", reads=("trials", "checkpoints"), writes=(TRANSFER,), per="sweep", context=True)
def sae_transfer(
    data: AnalysisInput,
    *,
    config: str = "default",
    changes: dict[str, Any] | None = None,
    sampling: dict[str, int] | None = None,
    relations: list[str] | None = None,
    trials: int = 2,
    checkpoints: int = 4,
    across: str = "matched",
    networks: int = 24,
) -> dict[str, pd.DataFrame]:
    """Transfer of features between the layers, seeds, architectures, data sets and checkpoints of a sweep.

    `trials` of each cell, by seed; `checkpoints` of the first of them, evenly chosen; `across`: layers of different
    networks matched by depth, or all with all; `networks`: at most so many are looked at, pairs with others are
    skipped with that reason. `config`, `changes`, `sampling` as in the analysis sae.
    """
    check(relations, across)
    table = data.frame("trials")
    saved = data.frame("checkpoints")
    if not len(table) or not len(saved):
        return {TRANSFER.name: pd.DataFrame()}
    chosen, wanted = preset(config, **(changes or {})), sampled(**(sampling or {}))
    known = networks_of(table, saved, trials, checkpoints)
    rows, layers, broken = _collected(data, known.nodes, wanted, networks)
    made = sides(rows, chosen, wanted)
    found = []
    for pair in pairs(known, layers, relations, across):
        found.append(_identity(pair, known.cells, rows) | _transfer(data, pair, rows, made, broken, wanted))
    note = json.dumps(asdict(chosen), sort_keys=True)
    return {TRANSFER.name: pd.DataFrame(found).assign(config=note) if found else pd.DataFrame()}


def _collected(
    data: AnalysisInput, networks: list[tuple[str, int]], sampling: Sampling, limit: int
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
            chosen = layers_of(context, sampling)
            found = activations(context, chosen, sampling)
        except NdtError as error:  # a missing or foreign checkpoint: the other networks go on
            broken[trial_id, step] = str(error).partition("\n")[0]
            continue
        layers[trial_id, step] = chosen
        rows |= {Node(trial_id, step, layer): found[layer.path] for layer in chosen}
    return rows, layers, broken


def _quality(
    node: Node, own: Activations, side: Side | None, context: ProbeContext, config: Config, splice: int
) -> Iterator[dict[str, Any]]:
    """Rows of `sae` for one layer."""
    row: dict[str, Any] = {c.name: None for c in SAE.columns} | {
        "trial_id": node.trial_id,
        "step": node.step,
        "layer": node.layer.path,
        "layer_index": node.layer.index,
        "dictionary": 0,
        "d": own.fit.shape[-1],
        "n_fit": own.fit.shape[0] * own.fit.shape[1],
        "n_held_out": len(own.held_out),
        "config": json.dumps(asdict(config), sort_keys=True),
        "flag": own.flag or "narrow",
    }
    if side is None:
        yield row
        return
    x = normalised(side.saes, own.held_out)
    total = quality.residuals(x, x)[1]
    flat = torch.from_numpy(np.ascontiguousarray(own.held_out.reshape(1, -1, side.d)))
    judged = quality.held_out(side.saes, flat.expand(len(side.saes), -1, -1))
    atoms = [a.double().numpy() for a in side.saes.atoms]
    features = len(atoms[0])
    active = max(1, round(float(np.mean([j["l0"] for j in judged]))))
    fit = normalised(side.saes, own.fit).reshape(-1, side.d)
    projected = (x.reshape(-1, side.d) @ principal(fit, active)).reshape(x.shape)
    row |= {
        "features": features,
        "flag": None,
        "explained_frozen": quality.explained(through_target(side.frozen, x)[0], total),
        "explained_random": quality.explained(through_target(side.random, x)[0], total),
        "explained_pca": quality.explained(quality.residuals(x, projected)[0], total),
        "pw_mcc": quality.pairwise_mcc(atoms) if len(atoms) > 1 else None,
        "pw_mcc_chance": quality.chance_mcc(features, features, side.d),
    }
    for number, found in enumerate(judged):
        one = side.saes.lanes([number])
        yield row | {
            "dictionary": number,
            **{name: found[name] for name in ("explained_variance", "l0", "dead", "shrinkage")},
            "sparsity": 1 - found["l0"] / features,
            "final_loss": float(one.losses[-1, 0]),
            "min_loss": float(one.losses.min()),
            "loss_recovered": _recovered(context, node, one, splice) if splice else None,
        }


def _recovered(context: ProbeContext, node: Node, one: Saes, count: int) -> float | None:
    inputs, labels = context.inputs[:count], torch.from_numpy(context.labels[:count])
    changes = {"intact": lambda rows: rows, "spliced": through(one), "zeroed": torch.zeros_like}
    losses = {
        name: spliced_loss(context.model, node.layer.path, node.layer.kind, change, inputs, labels)
        for name, change in changes.items()
    }
    return quality.recovered(losses["intact"], losses["spliced"], losses["zeroed"])


def _identity(pair: Pair, cells: Mapping[str, str], rows: Mapping[Node, Activations]) -> dict[str, Any]:
    found: dict[str, Any] = {c.name: None for c in TRANSFER.columns} | {"relation": pair.relation}
    for name, node in (("source", pair.source), ("target", pair.target)):
        found |= {
            f"{name}_trial": node.trial_id,
            f"{name}_cell": cells[node.trial_id],
            f"{name}_step": node.step,
            f"{name}_layer": node.layer.path,
            f"{name}_layer_index": node.layer.index,
            f"{name}_d": rows[node].fit.shape[-1] if node in rows else None,
        }
    return found


class _Skipped(Exception):
    """Why a pair has no numbers."""


def _transfer(
    data: AnalysisInput,
    pair: Pair,
    rows: Mapping[Node, Activations],
    made: Mapping[Node, Side],
    broken: Mapping[tuple[str, int], str],
    sampling: Sampling,
) -> dict[str, Any]:
    """The numbers of one pair, or why there are none."""
    try:
        source, target, fit = _ready(data, pair, rows, made, broken, sampling)
        found = transfer(source, target, fit)
        key = (str(pair.source), str(pair.target))
        shared = matching(source, target, key) if fit is None else {}
    except (_Skipped, NdtError) as error:
        return {"status": "skipped", "reason": str(error).partition("\n")[0]}
    equal = source.d == target.d
    return {
        "status": "ok",
        "reason": None if equal else f"dimension_mismatch_{source.d}_vs_{target.d}",
        "alignment": found.alignment,
        "raw": found.raw,
        "aligned": found.aligned,
        "affine": found.affine,
        **{f"control_{name}": value for name, value in found.controls.items()},
        "control": found.control,
        "ceiling": found.ceiling,
        "se": found.se,
        "score": found.score,
        "score_random": found.score_against("random"),
        **shared,
        **found.founding,
    }


def _ready(
    data: AnalysisInput,
    pair: Pair,
    rows: Mapping[Node, Activations],
    made: Mapping[Node, Side],
    broken: Mapping[tuple[str, int], str],
    sampling: Sampling,
) -> tuple[Side, Side, tuple[Any, Any] | None]:
    """(source, target, rows for the map where they are not the sides' own); _Skipped says why a pair cannot be."""
    for node in (pair.source, pair.target):
        if (node.trial_id, node.step) in broken:
            raise _Skipped(broken[node.trial_id, node.step])
        if node not in made:
            raise _Skipped(f"{node.layer.path} has no dictionary: {rows[node].flag or 'narrow'}")
    source, target = made[pair.source], made[pair.target]
    if rows[pair.source].stimuli == rows[pair.target].stimuli:
        one, other = paired(source.fit, target.fit)
        here, there = paired(source.held_out, target.held_out)
        source = Side(source.name, one, here, *_dictionaries(source))
        return source, Side(target.name, other, there, *_dictionaries(target)), None
    # Another data set: the target's stimuli are shown to the source's network, so that rows pair.
    ours, theirs = (data.context(n.step, n.trial_id) for n in (pair.source, pair.target))
    vocabularies = {dataset(c).inputs.vocab for c in (ours, theirs)}
    if ours.kind != theirs.kind or ours.inputs.shape[1:] != theirs.inputs.shape[1:] or len(vocabularies) > 1:
        raise _Skipped(f"inputs_differ: {ours.kind} {tuple(ours.inputs.shape[1:])}, {theirs.kind}"
                       f" {tuple(theirs.inputs.shape[1:])}")  # fmt: skip
    shown = activations(ours, [pair.source.layer], sampling, theirs)[pair.source.layer.path]
    one, other = paired(shown.fit, target.fit)
    return source, Side(target.name, other, target.held_out, *_dictionaries(target)), (one, other)


def _dictionaries(side: Side) -> tuple[Saes, Saes, Saes]:
    return side.saes, side.frozen, side.random
