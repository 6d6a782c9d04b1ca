"""What units answer to, at a checkpoint: the image that drives them most, and a word for it, before and after."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.mechanisms.context import Layer, ProbeContext
from ndt_ray.analysis.mechanisms.seeing.ascent import chosen_units, limits_of, made_images, responses_of
from ndt_ray.analysis.mechanisms.seeing.feature_metrics import add_metrics
from ndt_ray.analysis.mechanisms.seeing.feature_types import describe
from ndt_ray.analysis.mechanisms.seeing.maximise import STEPS
from ndt_ray.analysis.mechanisms.tables import FEATURE_METRICS, WHOLE, Metrics
from ndt_ray.errors import SpecError, did_you_mean
from ndt_ray.store.schema import Column, Table

CONFIGS: dict[str, dict[str, Any]] = {
    "default": {"steps": 128, "rotate": 0.0, "scale": 0.0},
    "founding": {"steps": STEPS, "rotate": 5.0, "scale": 0.05},
}
"""Of the ascent. The founding plan names turns and changes of scale without their sizes: these are those of Lucid's
defaults in order of magnitude, small enough to leave a 28-pixel image what it is."""

FEATURES = Table(
    "features",
    "One row per unit: the image that drives it most, a word for what is in it, and the best image of the probe.",
    (
        Column("trial_id", "string", "content hash of the trial"),
        Column("step", "int32", "optimizer updates done; 0 is the initialisation", "steps"),
        Column("layer", "string", "module path"),
        Column("layer_index", "int16", "place of a tracked layer in the forward pass"),
        Column("unit", "int32", "place in the layer: neuron, channel or feature"),
        Column(
            "feature_type", "string", "by rule: flat, edge, stripes, curve, corner, T-junction, blob, colour blob, …"
        ),
        Column("contrast", "float64", "standard deviation of the pixels / their range"),
        Column("coherence", "float64", "of the structure tensor: 1 one orientation, 0 none"),
        Column("orientation", "float64", "0 a horizontal edge, counter-clockwise", "degrees"),
        Column("spectral_slope", "float64", "of log power on log frequency"),
        Column("flatness", "float64", "spectral flatness: 1 all frequencies alike"),
        Column("crossings", "int32", "crossings of the mean along the direction of change"),
        Column("blobs", "int32", "connected regions that stand out"),
        Column("colour", "float64", "spread between channels / spread of pixels"),
        Column("activation", "float64", "response to the made image"),
        Column("start", "float64", "response to what the ascent began with"),
        Column(
            "from_example", "bool", "it began with the probe's best image, for the ascent from noise had not beaten it"
        ),
        Column("best_found", "float64", "largest response to an image of the confirm probe"),
        Column("best_image", "int32", "which image of the probe that was"),
        Column("best_label", "int16", "its class"),
        Column("best_images", "list:int32", "the images of the probe that drive it most, the first one first"),
        Column("best_values", "list:float32", "the responses to them"),
        Column("mean_found", "float64", "mean response to the probe"),
        Column("beats_data", "bool", "the made image drives the unit further than any of the probe"),
        Column("shape", "list:int32", "channels, height, width"),
        Column("image", "list:float32", "the made image, row by row"),
        Column("again_type", "string", "word of an image made from another seed of the ascent; null: not made"),
        Column("flag", "string", "why there is nothing: no_image or no_layer; null when all is well"),
    ),
    ("trial_id", "layer_index", "unit", "step"),
)


def _listed(parameters: Mapping[str, Any]) -> Sequence[str]:
    return parameters["layers"] or ()


@analysis(
    name="features",
    reads=("trials", "checkpoints"),
    writes=(FEATURES, FEATURE_METRICS),
    per="checkpoint",
    context=True,
    layers=_listed,
)
def features(
    data: AnalysisInput,
    *,
    units: int = 20,
    layers: Sequence[str] | None = None,
    config: str = "default",
    steps: int | None = None,
    rate: float = 0.05,
    basis: str = "fourier",
    jitter: int = 1,
    rotate: float | None = None,
    scale: float | None = None,
    examples: int = 4,
    again: int = 5,
) -> dict[str, pd.DataFrame]:
    """Activation maximisation for up to `units` units of each tracked layer, the same ones at every checkpoint.

    `layers`: paths, by default all; a network that has none of them gives one row that says so. `config` founding: 512
    steps under shifts, turns and changes of scale; default: a quarter of the steps, at which responses are within a few
    per cent, and shifts alone; `steps`, `rotate` (degrees) and `scale` (share) replace its values. `examples`: images
    of the probe named for each unit. `again`: units of a layer that are looked at from a second seed of the ascent, for
    how often a word differs by that alone. Data sets without images give one row that says so.
    """
    if units < 1 or examples < 1 or again < 0:
        raise SpecError(f"units, examples and again are counts, but got ({units=}, {examples=}, {again=})")
    if config not in CONFIGS:
        raise SpecError(f"no configuration '{config}' of features{did_you_mean(config, CONFIGS)}")
    context = data.context()
    if context.kind != "image":
        return _nothing(data, "no_image")
    chosen = context.listed(layers, data.notes.append)
    if not chosen:
        return _nothing(data, "no_layer")
    given = {"steps": steps, "rotate": rotate, "scale": scale}
    how: dict[str, Any] = CONFIGS[config] | {name: value for name, value in given.items() if value is not None}
    how |= {"rate": rate, "basis": basis, "jitter": jitter}
    out, found = Metrics(**data.partition.key), []
    for layer in chosen:
        rows = pd.DataFrame(_of_layer(data, context, layer, units, examples, again, how))
        add_metrics(out, rows)
        found.append(rows)
    return {FEATURES.name: pd.concat(found, ignore_index=True), FEATURE_METRICS.name: out.frame()}


def _nothing(data: AnalysisInput, flag: str) -> dict[str, pd.DataFrame]:
    row = dict.fromkeys((c.name for c in FEATURES.columns), None)
    row |= data.partition.key | {"layer": WHOLE, "layer_index": -1, "unit": -1, "flag": flag}
    out = Metrics(**data.partition.key)
    out.nothing(WHOLE, -1, "feature_types", flag, part=WHOLE)
    return {FEATURES.name: pd.DataFrame([row]), FEATURE_METRICS.name: out.frame()}


def _of_layer(
    data: AnalysisInput,
    context: ProbeContext,
    layer: Layer,
    units: int,
    examples: int,
    again: int,
    how: dict[str, Any],
) -> list[dict[str, Any]]:
    found, limits = responses_of(context, layer.path), limits_of(context)
    trial = str(data.partition.trial_id)
    which = chosen_units(trial, layer.path, found.shape[1], units)
    twice = chosen_units(trial, layer.path, found.shape[1], min(units, again))
    made = made_images(context, layer.path, which, found, again=twice, **how)
    repeated = zip(twice, made.images[len(which) :], strict=True)
    words = {unit: describe(image, limits).feature_type for unit, image in repeated}
    rows = []
    for i, unit in enumerate(which):
        leading = np.argsort(-found[:, unit], kind="stable")[:examples]
        best = int(leading[0])
        seen = asdict(describe(made.images[i], limits))
        rows.append(
            data.partition.key
            | {"layer": layer.path, "layer_index": layer.index, "unit": unit, **seen}
            | {"activation": float(made.activations[i]), "start": float(made.starts[i])}
            | {"from_example": bool(made.from_example[i]), "again_type": words.get(unit)}
            | {"best_found": float(found[best, unit]), "best_image": best, "best_label": int(context.labels[best])}
            | {"best_images": leading.astype(np.int32), "best_values": found[leading, unit]}
            | {"mean_found": float(found[:, unit].mean())}
            | {"beats_data": bool(made.activations[i] > found[best, unit])}
            | {"shape": list(made.images[i].shape), "image": made.images[i].ravel(), "flag": None}
        )
    return rows


FEATURE_CHANGES = Table(
    "feature_changes",
    "How the words for a layer's units change from one checkpoint to the next.",
    (
        Column("trial_id", "string", "content hash of the trial"),
        Column("layer", "string", "module path"),
        Column("layer_index", "int16", "place of a tracked layer in the forward pass"),
        Column("step_before", "int32", "checkpoint", "steps"),
        Column("step_after", "int32", "the next one", "steps"),
        Column("n", "int32", "units seen at both"),
        Column("changed", "float64", "share of units whose word changed"),
        Column(
            "changed_chance",
            "float64",
            "share whose word differs by the seed of the ascent alone, at the trial's checkpoints; both of a pair have"
            " one seed, so that `changed` may lie below it",
        ),
        Column("n_chance", "int32", "units, of all checkpoints, that this was seen of"),
        Column("types_before", "int32", "different words before"),
        Column("types_after", "int32", "different words after"),
        Column("new_types", "string", "words after that were not there before, comma-separated"),
        Column("new_feature_types", "int32", "how many (the founding table's new_feature_types_after)"),
        Column("gain", "float64", "mean log ratio of the responses to the made images; null where one is not above 0"),
    ),
    ("trial_id", "layer_index", "step_before"),
)


@analysis(name="feature_changes", reads=("features",), writes=(FEATURE_CHANGES,), per="trial")
def feature_changes(data: AnalysisInput) -> dict[str, pd.DataFrame]:
    """Which kinds of features are new at a checkpoint, layer by layer."""
    rows = data.frame("features")
    if rows.empty:
        return {FEATURE_CHANGES.name: pd.DataFrame()}
    out = []
    for (index, layer), group in rows[rows["flag"].isna()].groupby(["layer_index", "layer"], sort=True):
        steps = sorted(group["step"].unique())
        twice = group[group["again_type"].notna()] if "again_type" in group else group.iloc[:0]
        chance = float((twice["again_type"] != twice["feature_type"]).mean()) if len(twice) else math.nan
        for before, after in zip(steps, steps[1:], strict=False):
            pair = group[group["step"] == before].merge(
                group[group["step"] == after], on="unit", suffixes=("_before", "_after")
            )
            was, now = set(pair["feature_type_before"]), set(pair["feature_type_after"])
            positive = pair[(pair["activation_before"] > 0) & (pair["activation_after"] > 0)]
            gain = float(np.log(positive["activation_after"] / positive["activation_before"]).mean())
            out.append(
                {
                    "trial_id": str(data.partition.trial_id),
                    "layer": layer,
                    "layer_index": index,
                    "step_before": before,
                    "step_after": after,
                    "n": len(pair),
                    "changed": float((pair["feature_type_before"] != pair["feature_type_after"]).mean()),
                    "changed_chance": chance,
                    "n_chance": len(twice),
                    "types_before": len(was),
                    "types_after": len(now),
                    "new_types": ",".join(sorted(now - was)),
                    "new_feature_types": len(now - was),
                    "gain": gain if len(positive) else math.nan,
                }
            )
    return {FEATURE_CHANGES.name: pd.DataFrame(out)}
