"""Tables of the battery: what is measured of one kind of thing stands in one long table, a row a metric of a part."""

from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.store.schema import Column, Table

WHOLE = "*"
"""As `layer`: the network; as `part`: the layer."""

_KEY = (
    Column("trial_id", "string", "content hash of the trial"),
    Column("step", "int32", "optimizer updates done; 0 is the initialisation", "steps"),
    Column("layer", "string", "module path; * for the network"),
    Column("layer_index", "int16", "place of a tracked layer in the forward pass; -1 for the network"),
)
_VALUES = (
    Column("metric", "string", "name of the metric"),
    Column("value", "float64", "null where it does not exist: flag says why"),
    Column("chance", "float64", "the same where there is nothing: mean of its null, or the analytic value"),
    Column("chance_sd", "float64", "standard deviation of that null; null for an analytic value"),
    Column("p", "float64", "share of null values at least as extreme, one-sided upwards; null where none were drawn"),
    Column("n", "int32", "what it was computed from: stimuli, filters or draws, as the metric says"),
    Column("flag", "string", "why there is no value; else null"),
)
_ORDER = ("trial_id", "layer_index", "layer", "part", "metric", "step")


def _metrics(name: str, doc: str) -> Table:
    part = Column("part", "string", "head, filter, class or parameter; * for all of the layer")
    return Table(name, doc, (*_KEY, part, *_VALUES), _ORDER)


ATTENTION = _metrics("attention_metrics", "Entropy, span, divergence and pattern scores of attention heads.")
ABLATION = _metrics("ablation_metrics", "Loss on the confirm probe with one attention head's output set to zero.")
FILTERS = _metrics("filter_metrics", "Orthogonality and orientation of a layer's incoming weights.")
UNITS = _metrics("unit_metrics", "Selectivity, sparsity and diversity of a layer's units on the confirm probe.")
COLLAPSE = _metrics("collapse_metrics", "Neural collapse NC1-NC4 and class clustering on the confirm probe.")
PROBES = _metrics("linear_probe_metrics", "Cross-validated linear read-out of the classes from each layer.")
DIMENSION = _metrics("intrinsic_dimension_metrics", "TwoNN intrinsic dimension of a layer; descriptive only.")
LLC = _metrics("llc_metrics", "Local learning coefficient by SGLD.")

UNIT_VALUES = Table(
    "unit_values",
    "One row per unit: what it answers to.",
    (
        *_KEY,
        Column("unit", "int32", "place in the layer: neuron, channel or feature"),
        Column("selectivity", "float64", "(largest class mean - mean of the others) / their sum; null for a dead unit"),
        Column("selectivity_chance", "float64", "mean of the same under shuffled labels"),
        Column("p", "float64", "share of shuffles with at least this selectivity"),
        Column("best_class", "int16", "class of the largest mean; null for a dead unit"),
        Column("class_means", "list:float32", "mean response to each class"),
        Column("fraction_active", "float64", "share of stimuli with a response above the threshold"),
        Column("treves_rolls", "float64", "lifetime sparseness (mean r)^2 / mean r^2: 1 is dense"),
        Column("state", "string", "dead, always_on or live"),
    ),
    ("trial_id", "layer_index", "unit", "step"),
)

FILTER_SIMILARITY = Table(
    "filter_similarity",
    "Cosines of a layer's incoming weights, all pairs.",
    (
        *_KEY,
        Column("n_filters", "int32", "filters with a norm above 0"),
        Column("cosines", "list:float32", "n_filters x n_filters, row by row"),
    ),
    ("trial_id", "layer_index", "step"),
)

SIMILARITY = Table(
    "similarity_metrics",
    "How alike two representations of the confirm probe are: across time, between layers, between seeds.",
    (
        *_KEY,
        Column("reference", "string", "previous, initial, last (checkpoint), layer (of this network) or seed"),
        Column("other_trial", "string", "trial of the other representation"),
        Column("other_step", "int32", "step of the other representation", "steps"),
        Column("other_layer", "string", "layer of the other representation"),
        *_VALUES,
    ),
    ("trial_id", "layer_index", "reference", "other_trial", "other_layer", "other_step", "metric", "step"),
)

WEIGHTS = Table(
    "weight_metrics",
    "How far parameters moved between two checkpoints.",
    (
        *_KEY,
        Column("part", "string", "parameter path; * for all of the layer"),
        Column("other_step", "int32", "the earlier checkpoint: the one before, or the initialisation", "steps"),
        *_VALUES,
    ),
    ("trial_id", "layer_index", "layer", "part", "other_step", "metric", "step"),
)

DISTANCES = Table(
    "weight_distances",
    "How far apart the weights of a layer are at any two checkpoints of a trial.",
    (
        *_KEY,
        Column("other_step", "int32", "the earlier checkpoint; 0 is the initialisation", "steps"),
        Column("distance", "float64", "L2 distance of the weights"),
        Column("displacement", "float64", "the same / norm of the weights at the earlier one"),
    ),
    ("trial_id", "layer_index", "layer", "other_step", "step"),
)


class Metrics:
    """Collects rows of one of these tables for one partition."""

    def __init__(self, **key: Any) -> None:
        self._key = key
        self._rows: list[dict[str, Any]] = []

    def add(
        self, layer: str, layer_index: int, metric: str, value: float, *, flag: str | None = None, **more: Any
    ) -> None:
        """A row; `more`: n, chance, chance_sd, p and columns of this table.

        A value that is not finite becomes null, and needs a flag: it gets `undefined` where none is given.
        """
        finite = bool(np.isfinite(value))
        row = {"layer": layer, "layer_index": layer_index, "metric": metric, "value": value if finite else np.nan}
        row |= {"chance": np.nan, "chance_sd": np.nan, "p": np.nan}
        self._rows.append({**self._key, **row, "flag": None if finite else flag or "undefined", **more})

    def nothing(self, layer: str, layer_index: int, metric: str, flag: str, **more: Any) -> None:
        """A row that says why there is no value."""
        self.add(layer, layer_index, metric, np.nan, n=0, flag=flag, **more)

    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(self._rows)


def one_sided_p(value: float, null: "np.ndarray[Any, Any]") -> float:
    """(1 + draws at least as large) / (1 + draws); NaN without a value."""
    if not np.isfinite(value) or not len(null):
        return float("nan")
    return float((1 + np.sum(null >= value)) / (1 + len(null)))
