"""Rows of `sae` and `sae_transfer`, from the sides of layers; where the activations come from does not matter here."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from ndt_ray.analysis.mechanisms.sae import quality
from ndt_ray.analysis.mechanisms.sae.activations import paired
from ndt_ray.analysis.mechanisms.sae.align import principal
from ndt_ray.analysis.mechanisms.sae.model import Config, Saes
from ndt_ray.analysis.mechanisms.sae.networks import Activations, Node
from ndt_ray.analysis.mechanisms.sae.relations import Pair
from ndt_ray.analysis.mechanisms.sae.tables import SAE, TRANSFER
from ndt_ray.analysis.mechanisms.sae.transfer import Side, matching, normalised, through_target, transfer
from ndt_ray.errors import NdtError


class Skipped(Exception):
    """Why a pair has no numbers."""


def nothing(trial_id: str, step: int, flag: str, configuration: str = "default") -> dict[str, Any]:
    """The row of `sae` of a network that gives none, with the reason."""
    who = {"trial_id": trial_id, "step": step, "layer": "*", "layer_index": -1, "dictionary": 0, "flag": flag}
    who |= {"configuration": configuration}
    return {c.name: None for c in SAE.columns} | who


def quality_rows(
    node: Node,
    own: Activations,
    side: Side | None,
    config: Config,
    recovered: Callable[[Saes], float | None] | None = None,
    configuration: str = "default",
) -> Iterator[dict[str, Any]]:
    """Rows of `sae` for one layer; `recovered`: share of the loss that a dictionary gives back, where it can be had;
    `configuration`: the name of `config`."""
    row: dict[str, Any] = {c.name: None for c in SAE.columns} | {
        "trial_id": node.trial_id,
        "step": node.step,
        "layer": node.layer.path,
        "layer_index": node.layer.index,
        "configuration": configuration,
        "dictionary": 0,
        "d": own.fit.shape[-1],
        "n_fit": own.fit.shape[0] * own.fit.shape[1],
        "n_held_out": len(own.held_out),
        "config": json.dumps(asdict(config.at(node.layer.index, node.depth)), sort_keys=True),
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
        "artifact": side.artifact,
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
            "late_change": float(one.losses[-1, 0] / one.losses[-2, 0] - 1) if len(one.losses) > 1 else None,
            "loss_recovered": None if recovered is None else recovered(one),
        }


def _identity(
    pair: Pair, cells: Mapping[str, str], rows: Mapping[Node, Activations], made: Mapping[Node, Side]
) -> dict[str, Any]:
    found: dict[str, Any] = {c.name: None for c in TRANSFER.columns} | {"relation": pair.relation}
    for name, node in (("source", pair.source), ("target", pair.target)):
        found |= {
            f"{name}_trial": node.trial_id,
            f"{name}_cell": cells[node.trial_id],
            f"{name}_step": node.step,
            f"{name}_layer": node.layer.path,
            f"{name}_layer_index": node.layer.index,
            f"{name}_d": rows[node].fit.shape[-1] if node in rows else None,
            f"{name}_artifact": made[node].artifact if node in made else None,
        }
    return found


def transfer_row(
    pair: Pair,
    cells: Mapping[str, str],
    rows: Mapping[Node, Activations],
    made: Mapping[Node, Side],
    broken: Mapping[tuple[str, int], str],
    shown: Callable[[Pair], Activations],
) -> dict[str, Any]:
    """A row of `sae_transfer` but its configuration: the numbers of one pair, or why there are none.

    `broken`: why networks could not be looked at. `shown`: the source's layer on the target's stimuli, for pairs whose
    own stimuli differ; it raises Skipped where that cannot be had.
    """
    return _identity(pair, cells, rows, made) | _numbers(pair, rows, made, broken, shown)


def _numbers(
    pair: Pair,
    rows: Mapping[Node, Activations],
    made: Mapping[Node, Side],
    broken: Mapping[tuple[str, int], str],
    shown: Callable[[Pair], Activations],
) -> dict[str, Any]:
    try:
        source, target, fit = _ready(pair, rows, made, broken, shown)
        found = transfer(source, target, fit)
        key = (str(pair.source), str(pair.target))
        shared = matching(source, target, key) if fit is None else {}
    except (Skipped, NdtError) as error:
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
    pair: Pair,
    rows: Mapping[Node, Activations],
    made: Mapping[Node, Side],
    broken: Mapping[tuple[str, int], str],
    shown: Callable[[Pair], Activations],
) -> tuple[Side, Side, tuple[Any, Any] | None]:
    """(source, target, rows for the map where they are not the sides' own); Skipped says why a pair cannot be."""
    for node in (pair.source, pair.target):
        if (node.trial_id, node.step) in broken:
            raise Skipped(broken[node.trial_id, node.step])
        if node not in made:
            raise Skipped(f"{node.layer.path} has no dictionary: {rows[node].flag or 'narrow'}")
    source, target = made[pair.source], made[pair.target]
    if rows[pair.source].stimuli == rows[pair.target].stimuli:
        one, other = paired(source.fit, target.fit)
        here, there = paired(source.held_out, target.held_out)
        source = Side(source.name, one, here, *_dictionaries(source))
        return source, Side(target.name, other, there, *_dictionaries(target)), None
    # Another data set: the target's stimuli are shown to the source's network, so that rows pair.
    one, other = paired(shown(pair).fit, target.fit)
    return source, Side(target.name, other, target.held_out, *_dictionaries(target)), (one, other)


def _dictionaries(side: Side) -> tuple[Saes, Saes, Saes]:
    return side.saes, side.frozen, side.random
