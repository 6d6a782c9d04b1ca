"""Composition: are late units made of early ones? Co-activation, prediction of a layer from the one before, ablation.

Two units whose responses correlate are no proof of one feeding the other; prediction of a layer's units from the layer
before is cross-validated over stimuli, and both stand beside the same with the stimuli of one side permuted. What a
layer is needed for is said by taking it away. Founding plan: dependencies are correlations above 0.7.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.mechanisms.context import ProbeContext
from ndt_ray.analysis.mechanisms.probes import Ridge
from ndt_ray.analysis.mechanisms.tables import COMPOSITION, WHOLE, Metrics
from ndt_ray.analysis.nulls import generator

Floats = NDArray[np.float64]
DEPENDENT = 0.7
"""Correlation from which the founding plan calls a late unit dependent on an early one."""
FOLDS = 4
MOST = 64
"""Units of a layer that are looked at: correlations of all pairs of wide layers would say no more."""


def correlations(early: ArrayLike, late: ArrayLike) -> Floats:
    """Pearson correlations `[early units, late units]` over stimuli `[n, units]`; 0 for a unit that never changes."""
    a, b = (_standardised(np.asarray(x, dtype=np.float64)) for x in (early, late))
    return np.asarray(a.T @ b / len(a))


def dependency_depth(layers: Sequence[ArrayLike], threshold: float = DEPENDENT) -> int:
    """Longest chain of units through successive layers, each correlated above `threshold` with the one before it.

    1 where no unit depends on one of the layer before: a chain of one.
    """
    lengths = np.ones(np.asarray(layers[0]).shape[1])
    longest = int(lengths.max(initial=0))
    for early, late in zip(layers, layers[1:], strict=False):
        linked = correlations(early, late) > threshold
        lengths = 1 + np.where(linked, lengths[:, None], 0).max(axis=0, initial=0)
        longest = max(longest, int(lengths.max(initial=0)))
    return longest


class Predictor:
    """Ridge predictions from the responses of one layer, each stimulus by a fit to the other folds."""

    def __init__(self, early: ArrayLike, folds: int = FOLDS) -> None:
        x = np.asarray(early, dtype=np.float64)
        held = [np.arange(len(x)) % folds == fold for fold in range(folds)]
        self._folds = [(h, x[h], Ridge(x[~h])) for h in held]

    def r2(self, late: ArrayLike) -> Floats:
        """R² `[late units]` on stimuli left out; negative: worse than the mean. NaN for a unit that never changes."""
        y = np.asarray(late, dtype=np.float64)
        guess = np.empty_like(y)
        for held, x, ridge in self._folds:
            guess[held] = ridge.predict(y[~held], x)
        total = ((y - y.mean(0)) ** 2).sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.where(total > 0, 1 - ((y - guess) ** 2).sum(0) / total, np.nan))


@analysis(name="composition", reads=("trials", "checkpoints"), writes=(COMPOSITION,), per="checkpoint", context=True)
def composition(data: AnalysisInput, *, draws: int = 20) -> dict[str, pd.DataFrame]:
    """How each layer follows from the one before, and what the network loses without it, at a checkpoint."""
    context, out = data.context(), Metrics(**data.partition.key)
    rng = generator("composition", str(data.partition.trial_id), str(data.partition.step))
    sampled = [
        _sampled(context.stimuli(layer.path), str(data.partition.trial_id), layer.path) for layer in context.layers
    ]
    for (early, before), (late, layer) in itertools.pairwise(zip(sampled, context.layers, strict=True)):
        predictor = Predictor(early)
        null = [late[rng.permutation(context.n)] for _ in range(draws)]
        for metric, values in (
            ("dependent_share", [float((correlations(early, y) > DEPENDENT).mean()) for y in (late, *null)]),
            ("predicted_r2", [_median(predictor.r2(y)) for y in (late, *null)]),
        ):
            out.add(
                layer.path,
                layer.index,
                metric,
                values[0],
                n=context.n,
                part=before.path,
                **_chance(values[0], values[1:]),
            )
    depths = [dependency_depth([x[rng.permutation(context.n)] for x in sampled]) for _ in range(draws)]
    depth = float(dependency_depth(sampled))
    out.add(
        WHOLE, -1, "compositional_depth", depth, n=context.n, part=WHOLE, **_chance(depth, [float(d) for d in depths])
    )
    _ablate(context, out)
    return {COMPOSITION.name: out.frame()}


def _ablate(context: ProbeContext, out: Metrics) -> None:
    """What each layer is worth, in loss and accuracy: its output put to its mean over the probe, its output zeroed, its
    weights zeroed (its bias stays: the founding plan's `ablate_layer`)."""
    whole, right = context.losses(), context.logits.argmax(1) == context.labels
    base = float(right.mean())
    commonest = float(np.bincount(context.labels).max() / context.n)
    out.add(WHOLE, -1, "baseline_accuracy", base, n=context.n, part=WHOLE, chance=commonest)
    for layer in context.layers:
        mean = torch.from_numpy(context.activations(layer.path).mean(0, keepdims=True))
        changed = {"mean_ablation": context.logits_without(layer.path, mean)}
        changed["zero_ablation"] = context.logits_without(layer.path, 0.0)
        if context.weight(layer.path) is not None:
            changed["weights_zeroed"] = context.logits_with_weights_zeroed(layer.path)
        else:
            out.nothing(layer.path, layer.index, "weights_zeroed_loss", "no_weight", part=WHOLE)
        for name, logits in changed.items():
            known = logits.argmax(1) == context.labels
            for metric, change in (
                (f"{name}_loss", context.losses_of(logits) - whole),
                (f"{name}_impact", right.astype(np.float64) - known),
            ):
                error = float(change.std(ddof=1) / np.sqrt(len(change)))
                chance = {"chance": 0.0, "chance_sd": error}
                out.add(layer.path, layer.index, metric, float(change.mean()), n=context.n, part=WHOLE, **chance)
            accuracy = {"n": context.n, "part": WHOLE, "chance": commonest}
            out.add(layer.path, layer.index, f"{name}_accuracy", float(known.mean()), **accuracy)


def _chance(value: float, null: Sequence[float]) -> dict[str, float]:
    known = np.array([v for v in null if np.isfinite(v)])
    if not len(known) or not np.isfinite(value):
        return {}
    p = (1 + int((known >= value).sum())) / (1 + len(known))
    return {"chance": float(known.mean()), "chance_sd": float(known.std(ddof=1)) if len(known) > 1 else 0.0, "p": p}


def _median(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")


def _sampled(x: Floats, trial: str, path: str) -> Floats:
    """Up to `MOST` units, the same at every checkpoint."""
    if x.shape[1] <= MOST:
        return x
    return np.asarray(x[:, np.sort(generator("composition", trial, path).permutation(x.shape[1])[:MOST])])


def _standardised(x: Floats) -> Floats:
    centred = x - x.mean(0)
    spread = centred.std(0)
    moving = spread > 1e-12 * np.abs(x).max(initial=1e-300)
    return np.asarray(np.divide(centred, spread, out=np.zeros_like(centred), where=moving))
