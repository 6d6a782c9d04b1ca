"""What single units are worth: the loss on the confirm probe with a unit's output replaced, unit by unit.

Selectivity is neither needed nor enough for a unit to matter (Morcos et al. 2018; Leavitt and Morcos 2020): it stands
beside what is lost without the unit, with their rank correlation and its null.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.mechanisms import units
from ndt_ray.analysis.mechanisms.context import Layer, ProbeContext
from ndt_ray.analysis.mechanisms.seeing.ascent import chosen_units
from ndt_ray.analysis.mechanisms.tables import (
    UNIT_ABLATION,
    UNIT_ABLATION_METRICS,
    WHOLE,
    Metrics,
    one_sided_p,
)
from ndt_ray.analysis.nulls import generator
from ndt_ray.errors import SpecError

Floats = NDArray[np.float64]
INSTEAD = ("zero", "mean")
FEWEST = 4
"""Units that a rank correlation is taken over, at least."""


@analysis(
    name="unit_ablation",
    reads=("trials", "checkpoints"),
    writes=(UNIT_ABLATION, UNIT_ABLATION_METRICS),
    per="checkpoint",
    context=True,
)
def unit_ablation(
    data: AnalysisInput, *, most: int = 20, instead: str = "zero", draws: int = 200
) -> dict[str, pd.DataFrame]:
    """How much the loss rises when one unit gives `instead` (zero, or its mean over the probe) at every position.

    Up to `most` units of each tracked layer, the same ones at every checkpoint and the ones that `features` describes;
    the layer that decides the class is left out. A pass each. SpecError for a bad `most` or `instead`.
    """
    if most < 1:
        raise SpecError(f"most is a number of units, but got ({most=})")
    if instead not in INSTEAD:
        raise SpecError(f"instead is one of {', '.join(INSTEAD)}, but got ({instead=})")
    context, out = data.context(), Metrics(**data.partition.key)
    before = context.losses()
    rows: list[dict[str, Any]] = []
    for layer in context.layers:
        if layer.path == context.classifier:
            continue
        found = _of_layer(context, layer, chosen(data, context, layer, most), instead, before)
        rows += [data.partition.key | row for row in found]
        _summary(out, layer, found, generator("unit_ablation", str(data.partition.key), layer.path), draws)
    if not rows:
        out.nothing(WHOLE, -1, "unit_ablation_loss", "no_hidden_layer", part=WHOLE)
    return {UNIT_ABLATION.name: pd.DataFrame(rows), UNIT_ABLATION_METRICS.name: out.frame()}


def chosen(data: AnalysisInput, context: ProbeContext, layer: Layer, most: int) -> list[int]:
    """Which units of a layer: those that `features` looks at too."""
    return chosen_units(str(data.partition.trial_id), layer.path, context.stimuli(layer.path).shape[1], most)


def _of_layer(
    context: ProbeContext, layer: Layer, which: list[int], instead: str, before: Floats
) -> list[dict[str, Any]]:
    responses = context.stimuli(layer.path, rectified=True)
    enough = np.bincount(context.labels, minlength=context.classes).min() >= 1
    means = units.activation_selectivity(responses, context.labels, context.classes)
    selectivity = units.selectivity_index(means) if enough else np.full(len(means), np.nan)
    axis = 1 if layer.kind == "positions" else -1
    given = np.moveaxis(context.activations(layer.path), axis, 0)
    correct = context.logits.argmax(1) == context.labels
    rows = []
    for unit in which:
        level = float(given[unit].mean(dtype=np.float64)) if instead == "mean" else 0.0
        logits = context.logits_with(layer.path, replaced(axis, unit, level))
        change = context.losses_of(logits) - before
        rows.append(
            {"layer": layer.path, "layer_index": layer.index, "unit": unit, "instead": level, "n": context.n}
            | {"loss_change": float(change.mean())}
            | {"standard_error": float(change.std(ddof=1) / np.sqrt(len(change))) if len(change) > 1 else np.nan}
            | {"accuracy_change": float((logits.argmax(1) == context.labels).mean() - correct.mean())}
            | {"selectivity": float(selectivity[unit])}
        )
    return rows


def replaced(axis: int, unit: int, level: float) -> Callable[[Tensor], Tensor]:
    """Sets one unit of an output to a number, at every position."""

    def change(output: Tensor) -> Tensor:
        changed = output.clone()
        changed.index_fill_(axis, torch.tensor([unit]), level)
        return changed

    return change


def _summary(out: Metrics, layer: Layer, rows: list[dict[str, Any]], rng: np.random.Generator, draws: int) -> None:
    change = np.array([row["loss_change"] for row in rows])
    error = np.array([row["standard_error"] for row in rows])
    where: dict[str, Any] = {"n": len(rows), "part": WHOLE}
    out.add(layer.path, layer.index, "unit_ablation_loss", float(change.mean()), chance=0.0, **where)
    out.add(layer.path, layer.index, "unit_ablation_largest", float(change.max()), **where)
    # The share that one-sided 2.5 % tests give where no unit matters.
    matters = float((change > 1.959964 * error).mean())
    out.add(layer.path, layer.index, "units_that_matter", matters, chance=0.025, **where)
    selectivity = np.array([row["selectivity"] for row in rows])
    known = np.isfinite(selectivity)
    value, null = rank_correlation(selectivity[known], change[known], rng, draws)
    found: dict[str, Any] = {"n": int(known.sum()), "part": WHOLE, "flag": "too_few_units"}
    if np.isfinite(value):
        found |= {"chance": float(null.mean()), "chance_sd": float(null.std(ddof=1)), "p": one_sided_p(value, null)}
    out.add(layer.path, layer.index, "selectivity_ablation_correlation", value, **found)


def rank_correlation(x: Floats, y: Floats, rng: np.random.Generator, draws: int) -> tuple[float, Floats]:
    """Spearman's ρ and what it is with one side permuted, `[draws]`; NaN for under four units or constant ones."""
    if len(x) < FEWEST or not (np.ptp(x) > 0 and np.ptp(y) > 0):
        return float("nan"), np.zeros(0)
    a, b = ((r - r.mean()) / r.std() for r in (rankdata(x), rankdata(y)))
    null = np.array([float((a * rng.permutation(b)).mean()) for _ in range(draws)])
    return float((a * b).mean()), null
