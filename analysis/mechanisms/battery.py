"""The battery: what a network at a checkpoint looks like, one analysis a kind of question, all from one forward pass.

Everything is measured on the confirm probe, with what chance gives beside it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.mechanisms import attention as heads
from ndt_ray.analysis.mechanisms import collapse as collapsing
from ndt_ray.analysis.mechanisms import filters as rows
from ndt_ray.analysis.mechanisms import probes, units
from ndt_ray.analysis.mechanisms import twonn as nearest
from ndt_ray.analysis.mechanisms import unit_information as information
from ndt_ray.analysis.mechanisms.clear import CLEAR, clear_stimuli
from ndt_ray.analysis.mechanisms.context import Layer, ProbeContext
from ndt_ray.analysis.mechanisms.similarity import pairwise
from ndt_ray.analysis.mechanisms.tables import (
    ABLATION,
    ATTENTION,
    COLLAPSE,
    DIMENSION,
    FILTER_SIMILARITY,
    FILTERS,
    PROBES,
    UNIT_VALUES,
    UNITS,
    WHOLE,
    Metrics,
    one_sided_p,
)
from ndt_ray.analysis.nulls import generator
from ndt_ray.errors import SpecError

READS = ("trials", "checkpoints")
TOO_FEW = "too_few_stimuli"
NO_ATTENTION = "no_attention"
PIXELS = 3
"""A convolution that sees at most so many channels sees an image: its kernels have an orientation."""


def _rng(data: AnalysisInput, *key: str) -> np.random.Generator:
    return generator(*key, str(data.partition.trial_id), str(data.partition.step))


def _index(context: ProbeContext, attention: str) -> int:
    """Place of an attention module: that of its output projection, where it is tracked."""
    return next((layer.index for layer in context.layers if layer.path == f"{attention}.out_proj"), -1)


@analysis(name="attention", reads=READS, writes=(ATTENTION,), per="checkpoint", context=True)
def attention(data: AnalysisInput) -> dict[str, pd.DataFrame]:
    """Entropy, span, divergence and known patterns of every attention head, beside those of uniform attention.

    `head_output_cka`: how alike what a head adds to the output is to what the others of its layer add.
    """
    context, out = data.context(), Metrics(**data.partition.key)
    if not context.attention:
        out.nothing(WHOLE, -1, "attention_entropy", NO_ATTENTION, part=WHOLE)
    ids = context.inputs.numpy() if context.kind != "image" else None
    for path, pattern in context.attention.items():
        index = _index(context, path)
        for metric, (values, chance) in heads.summary(pattern, ids, context.padding).items():
            for part, value in [(f"head {h}", v) for h, v in enumerate(values)] + [(WHOLE, _mean(values))]:
                flag = None if np.isfinite(value) else "no_such_query"
                out.add(path, index, metric, float(value), n=context.n, chance=chance, flag=flag, part=part)
        outputs = context.head_outputs(path)
        alike = pairwise({h: outputs[:, h] for h in range(outputs.shape[1])}, procrustes=False)
        for h in range(outputs.shape[1]):
            mine = _mean(np.array([cka for pair, (cka, _) in alike.items() if h in pair]))
            out.add(path, index, "head_output_cka", mine, n=context.n, chance=0.0, flag="one_head", part=f"head {h}")
        both = _mean(np.array([cka for cka, _ in alike.values()]))
        out.add(path, index, "head_output_cka", both, n=context.n, chance=0.0, flag="one_head", part=WHOLE)
        special = heads.attention_specialization(pattern)
        for metric in ("specialization_index", "entropy_std"):
            out.add(path, index, metric, special[metric], n=context.n, chance=0.0, part=WHOLE)
    return {ATTENTION.name: out.frame()}


def _mean(values: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> float:
    return float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else float("nan")


@analysis(name="head_ablation", reads=READS, writes=(ABLATION,), per="checkpoint", context=True)
def head_ablation(data: AnalysisInput) -> dict[str, pd.DataFrame]:
    """How much loss on the confirm probe rises when one attention head gives nothing (Michel et al. 2019).

    Passes of its own, one a head. `chance_sd` is the paired standard error over stimuli, `chance` 0.
    """
    context, out = data.context(), Metrics(**data.partition.key)
    if not context.attention:
        out.nothing(WHOLE, -1, "head_ablation_loss", NO_ATTENTION, part=WHOLE)
    before = context.losses()
    for path, pattern in context.attention.items():
        count = pattern.shape[1]
        changes = []
        for head in range(count):
            change = context.losses_under(f"{path}.out_proj", _without(head, count)) - before
            changes.append(float(change.mean()))
            error = float(change.std(ddof=1) / np.sqrt(len(change)))
            common: dict[str, Any] = {"n": context.n, "chance": 0.0, "chance_sd": error, "part": f"head {head}"}
            out.add(path, _index(context, path), "head_ablation_loss", changes[-1], **common)
        out.add(path, _index(context, path), "head_ablation_loss", _mean(np.array(changes)), n=context.n, part=WHOLE)
    return {ABLATION.name: out.frame()}


def _without(head: int, count: int) -> Callable[[Tensor], Tensor]:
    """Sets to zero what one head hands to the output projection: its stretch of the features."""

    def change(mixed: Tensor) -> Tensor:
        width = mixed.shape[-1] // count
        silenced = mixed.clone()
        silenced[..., head * width : (head + 1) * width] = 0
        return silenced

    return change


@analysis(name="filters", reads=READS, writes=(FILTERS, FILTER_SIMILARITY), per="checkpoint", context=True)
def filters(data: AnalysisInput, *, most_similarities: int = 64, draws: int = 100) -> dict[str, pd.DataFrame]:
    """Orthogonality of each layer's incoming weights against random ones; orientation of kernels that see pixels.

    `most_similarities`: layers of at most so many rows have their cosines stored.
    """
    context, out = data.context(), Metrics(**data.partition.key)
    stored = []
    for layer in context.layers:
        weight = context.weight(layer.path)
        if weight is None:
            out.nothing(layer.path, layer.index, "filter_cosine", "no_weight", part=WHOLE)
            continue
        kept = rows.rows_of(weight)
        for metric, (value, chance, sd) in rows.orthogonality(weight).items():
            flag = None if len(kept) > 1 else "dead"
            where: dict[str, Any] = {"n": len(kept), "chance": chance, "chance_sd": sd}
            out.add(layer.path, layer.index, metric, value, flag=flag, part=WHOLE, **where)
        if len(kept) <= most_similarities:
            cosines = rows.filter_similarity(weight).astype(np.float32).ravel()
            stored.append({**_key(data, layer), "n_filters": len(kept), "cosines": cosines})
        if weight.ndim == 4 and weight.shape[1] <= PIXELS:
            _orientation(out, layer, weight, draws, _rng(data, "filters", layer.path))
    return {FILTERS.name: out.frame(), FILTER_SIMILARITY.name: pd.DataFrame(stored)}


def _key(data: AnalysisInput, layer: Layer) -> dict[str, str | int]:
    return {**data.partition.key, "layer": layer.path, "layer_index": layer.index}


def _orientation(out: Metrics, layer: Layer, weight: rows.Floats, draws: int, rng: np.random.Generator) -> None:
    kernels = rows.spatial(weight)
    scores = {"orientation_selectivity": rows.orientation_selectivity, "gabor_r2": rows.gabor_fit}
    for metric, score in scores.items():
        small = kernels is None or (score is rows.gabor_fit and kernels.shape[1] < rows.SMALLEST_GABOR)
        if kernels is None or small or not len(kernels):
            out.nothing(layer.path, layer.index, metric, "kernel_too_small" if small else "dead", part=WHOLE)
            continue
        found, null = rows.against_shuffled(kernels, score, rng, draws)
        value = float(np.nanmean(found))
        null_of: dict[str, Any] = {
            "chance": float(null.mean()),
            "chance_sd": float(null.std(ddof=1)),
            "p": one_sided_p(value, null),
        }
        out.add(layer.path, layer.index, metric, value, n=len(kernels), part=WHOLE, **null_of)
        for i, one in enumerate(found):
            out.add(layer.path, layer.index, metric, float(one), n=1, chance=null_of["chance"], part=f"filter {i}")


@analysis(name="units", reads=READS, writes=(UNITS, UNIT_VALUES), per="checkpoint", context=True)
def unit_responses(
    data: AnalysisInput,
    *,
    threshold: float = units.THRESHOLD,
    draws: int = 50,
    per_unit: bool = True,
    clear: int = CLEAR,
) -> dict[str, pd.DataFrame]:
    """Class selectivity, d', ROC area and information of units beside shuffled labels; sparseness, dead units.

    `per_unit`: a row of `unit_values` for each unit as well, with its mean over each class, and over the `clear`
    stimuli of the class that the network answers correctly with most confidence (0: without these).
    """
    context, out = data.context(), Metrics(**data.partition.key)
    single: list[pd.DataFrame] = []
    enough = np.bincount(context.labels, minlength=context.classes).min() >= 1
    chosen = clear_stimuli(context.logits, context.labels, clear) if clear and per_unit else None

    def _clear(responses: rows.Floats, which: NDArray[np.bool_]) -> NDArray[np.float32]:
        known = np.flatnonzero(which)
        if not len(known):
            return np.full((responses.shape[1], context.classes), np.nan, np.float32)
        labels = context.labels[known]
        return units.activation_selectivity(responses[known], labels, context.classes).astype(np.float32)

    for layer in context.layers:
        acts = context.activations(layer.path)
        responses = context.stimuli(layer.path, rectified=True)
        unit_axis = 1 if layer.kind == "positions" else -1
        state = units.states(acts, unit_axis)
        lifetime = units.treves_rolls(responses)
        positive = np.maximum(acts, 0)
        plain = {
            "activation_sparsity": units.activation_sparsity(positive, threshold),
            "fraction_active": units.fraction_active(positive, threshold),
            "treves_rolls_lifetime": _mean(lifetime),
            "treves_rolls_population": _mean(units.treves_rolls(responses, axis=1)),
            "hoyer_lifetime": _mean(units.hoyer(responses)),
            "hoyer_population": _mean(units.hoyer(responses, axis=1)),
            "diversity": float(units.diversity(acts.reshape(len(acts), -1))),
            "dead_fraction": float((state == "dead").mean()),
            "always_on_fraction": float((state == "always_on").mean()),
        }
        for metric, value in plain.items():
            flag = None if np.isfinite(value) else "dead"
            out.add(layer.path, layer.index, metric, value, n=context.n, flag=flag, part=WHOLE)
        if not enough:
            out.nothing(layer.path, layer.index, "class_selectivity", TOO_FEW, part=WHOLE)
            continue
        rng = _rng(data, "units", layer.path)
        found = units.class_selectivity(responses, context.labels, context.classes, rng, draws)
        live = np.isfinite(found.index)
        _against_shuffles(out, layer, "class_selectivity", found.index, found.null_means, "dead")
        if live.any():
            share = float((found.p[live] <= 0.05).mean())
            expected = np.floor(0.05 * (1 + draws)) / (1 + draws)  # what a discrete p gives at 0.05
            out.add(layer.path, layer.index, "selective_share", share, n=int(live.sum()), chance=expected, part=WHOLE)
        rng = _rng(data, "readouts", layer.path)
        told = information.readouts(responses, context.labels, context.classes, rng, draws)
        for metric, readout in told.items():
            _against_shuffles(out, layer, metric, readout.value, readout.null_means, "constant")
        if per_unit:
            table = pd.DataFrame(
                {
                    **_key(data, layer),
                    "unit": np.arange(len(state)),
                    "selectivity": found.index,
                    "selectivity_chance": found.chance,
                    "p": found.p,
                    **{m: readout.value for m, readout in told.items()},
                    **{f"{m}_chance": readout.chance for m, readout in told.items()},
                    **{f"{m}_p": readout.p for m, readout in told.items()},
                    "best_class": pd.array(np.where(live, found.best, -1), dtype="Int16"),
                    "class_means": list(found.class_means.astype(np.float32)),
                    "clear_means": [None] * len(state) if chosen is None else list(_clear(responses, chosen)),
                    "fraction_active": (responses > threshold).mean(0),
                    "treves_rolls": lifetime,
                    "diversity": units.unit_diversity(acts, unit_axis),
                    "state": state,
                }
            )
            table.loc[~live, "best_class"] = pd.NA
            single.append(table)
    values = pd.concat(single, ignore_index=True) if single else pd.DataFrame()
    return {UNITS.name: out.frame(), UNIT_VALUES.name: values}


def _against_shuffles(
    out: Metrics, layer: Layer, metric: str, values: rows.Floats, null_means: rows.Floats, flag: str
) -> None:
    """The mean over a layer's units beside that mean under shuffled labels."""
    known, value = np.isfinite(values), _mean(values)
    where: dict[str, Any] = {"n": int(known.sum()), "part": WHOLE, "flag": None if known.any() else flag}
    null: dict[str, Any] = {"chance": float(null_means.mean()), "chance_sd": float(null_means.std(ddof=1))}
    out.add(layer.path, layer.index, metric, value, p=one_sided_p(value, null_means), **null, **where)


@analysis(name="collapse", reads=READS, writes=(COLLAPSE,), per="checkpoint", context=True)
def collapse(data: AnalysisInput) -> dict[str, pd.DataFrame]:
    """Neural collapse NC1-NC4 of the penultimate layer, class clustering of every layer, loss and accuracy."""
    context, out = data.context(), Metrics(**data.partition.key)
    decided = context.logits.argmax(1)
    commonest = float(np.bincount(context.labels).max() / context.n)
    out.add(WHOLE, -1, "loss", float(context.losses().mean()), n=context.n, chance=np.log(context.classes), part=WHOLE)
    correct = float((decided == context.labels).mean())
    out.add(WHOLE, -1, "accuracy", correct, n=context.n, chance=commonest, part=WHOLE)
    features = context.classifier_input
    if features is None or context.classifier is None:
        out.nothing(WHOLE, -1, "nc1", "no_linear_classifier", part=WHOLE)
    else:
        layer = context.layer(context.classifier)
        weight = context.weight(layer.path)
        found = collapsing.neural_collapse(features, context.labels, context.classes, weight, decided)
        enough = np.bincount(context.labels, minlength=context.classes).min() >= 2
        for metric in ("nc1", "nc2_norm", "nc2_angle", "nc3", "nc4"):
            value = float(getattr(found, metric))
            flag = None if np.isfinite(value) else ("equal_means" if enough else TOO_FEW)
            out.add(layer.path, layer.index, metric, value, n=context.n, flag=flag, part=WHOLE)
    for layer in context.layers:
        value = collapsing.silhouette(context.stimuli(layer.path), context.labels)
        flag = None if np.isfinite(value) else TOO_FEW
        out.add(layer.path, layer.index, "class_silhouette", value, n=context.n, chance=0.0, flag=flag, part=WHOLE)
    return {COLLAPSE.name: out.frame()}


@analysis(name="linear_probes", reads=READS, writes=(PROBES,), per="checkpoint", context=True)
def linear_probes(data: AnalysisInput, *, folds: int = 5) -> dict[str, pd.DataFrame]:
    """Cross-validated accuracy of a linear read-out of each layer (its stimulus means), beside the commonest class."""
    context, out = data.context(), Metrics(**data.partition.key)
    for layer in context.layers:
        try:
            rng = _rng(data, "linear_probes")  # for each layer anew: all have the same folds
            found = probes.linear_probe(context.stimuli(layer.path), context.labels, context.classes, rng, folds)
        except SpecError:
            out.nothing(layer.path, layer.index, "linear_probe_accuracy", TOO_FEW, part=WHOLE)
            continue
        where: dict[str, Any] = {"n": context.n, "chance": found.majority, "chance_sd": found.standard_error}
        out.add(layer.path, layer.index, "linear_probe_accuracy", found.accuracy, part=WHOLE, **where)
    return {PROBES.name: out.frame()}


@analysis(name="intrinsic_dimension", reads=READS, writes=(DIMENSION,), per="checkpoint", context=True)
def intrinsic_dimension(data: AnalysisInput, *, discard: float = nearest.DISCARD) -> dict[str, pd.DataFrame]:
    """TwoNN intrinsic dimension of each layer's stimulus means; descriptive, no verdict stands on it."""
    context, out = data.context(), Metrics(**data.partition.key)
    for layer in context.layers:
        value = nearest.twonn(context.stimuli(layer.path), discard)
        flag = None if np.isfinite(value) else "too_few_points"
        out.add(layer.path, layer.index, "twonn", value, n=context.n, flag=flag, part=WHOLE)
    return {DIMENSION.name: out.frame()}
