"""Tables of the battery: what is measured of one kind of thing stands in one long table, a row a metric of a part."""

from dataclasses import replace
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


def metrics_table(name: str, doc: str) -> Table:
    """A long table of metrics, a row a metric of a part of a layer at a checkpoint."""
    part = Column("part", "string", "head, filter, class, parameter or earlier layer; * for all of the layer")
    return Table(name, doc, (*_KEY, part, *_VALUES), _ORDER)


ATTENTION = metrics_table("attention_metrics", "Entropy, span, divergence and pattern scores of attention heads.")
ABLATION = metrics_table("ablation_metrics", "Loss on the confirm probe with one attention head's output set to zero.")
FILTERS = metrics_table("filter_metrics", "Orthogonality and orientation of a layer's incoming weights.")
UNITS = metrics_table("unit_metrics", "Selectivity, sparsity and diversity of a layer's units on the confirm probe.")
COLLAPSE = metrics_table("collapse_metrics", "Neural collapse NC1-NC4 and class clustering on the confirm probe.")
PROBES = metrics_table("linear_probe_metrics", "Cross-validated linear read-out of the classes from each layer.")
DIMENSION = metrics_table("intrinsic_dimension_metrics", "TwoNN intrinsic dimension of a layer; descriptive only.")
COMPOSITION = metrics_table(
    "composition_metrics", "How a layer follows from the one before, and what is lost without it."
)
FEATURE_METRICS = metrics_table("feature_metrics", "What a layer's units answer to: words, shares of them, responses.")
LLC = metrics_table("llc_metrics", "Local learning coefficient by SGLD.")

UNIT_VALUES = Table(
    "unit_values",
    "One row per unit: what it answers to.",
    (
        *_KEY,
        Column("unit", "int32", "place in the layer: neuron, channel or feature"),
        Column("selectivity", "float64", "(largest class mean - mean of the others) / their sum; null for a dead unit"),
        Column("selectivity_chance", "float64", "mean of the same under shuffled labels"),
        Column("p", "float64", "share of shuffles with at least this selectivity"),
        Column("d_prime", "float64", "largest over classes of (mean - mean of the rest) / pooled SD; null if constant"),
        Column("d_prime_chance", "float64", "mean of the same under shuffled labels"),
        Column("d_prime_p", "float64", "share of shuffles with at least this much"),
        Column("auc", "float64", "largest area under the ROC curve of one class against the rest"),
        Column("auc_chance", "float64", "mean of the same under shuffled labels"),
        Column("auc_p", "float64", "share of shuffles with at least this much"),
        Column("mutual_information", "float64", "of the response in 8 equally full bins and the class", "bits"),
        Column("mutual_information_chance", "float64", "mean of the same under shuffled labels", "bits"),
        Column("mutual_information_p", "float64", "share of shuffles with at least this much"),
        Column("best_class", "int16", "class of the largest mean; null for a dead unit"),
        Column("class_means", "list:float32", "mean response to each class"),
        Column(
            "clear_means", "list:float32", "the same over its clear stimuli: correct, with most confidence; else NaN"
        ),
        Column("fraction_active", "float64", "share of stimuli with a response above the threshold"),
        Column("treves_rolls", "float64", "lifetime sparseness (mean r)^2 / mean r^2: 1 is dense"),
        Column("diversity", "int32", "patterns of activity over positions or tokens; at most 2 without these"),
        Column("state", "string", "dead, always_on or live"),
    ),
    ("trial_id", "layer_index", "unit", "step"),
)

UNIT_ABLATION_METRICS = metrics_table("unit_ablation_metrics", "What units are worth, and whether selective ones are.")

UNIT_ABLATION = Table(
    "unit_ablation",
    "Loss on the confirm probe with one unit's output replaced at every position.",
    (
        *_KEY,
        Column("unit", "int32", "place in the layer: neuron, channel or feature"),
        Column("instead", "float64", "what the unit gives instead"),
        Column("loss_change", "float64", "loss without the unit - loss with it; above 0: it was of use", "nats"),
        Column("standard_error", "float64", "of the same, paired over stimuli", "nats"),
        Column("accuracy_change", "float64", "accuracy without the unit - accuracy with it"),
        Column("selectivity", "float64", "its class selectivity index, as in `unit_values`"),
        Column("n", "int32", "stimuli"),
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

SEED_SIMILARITY = replace(
    SIMILARITY,
    name="seed_similarity_metrics",
    doc="How alike the representations of the seeds of a cell are, layer by layer, at their last common checkpoint.",
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

_EVENT = (
    Column("trial_id", "string", "content hash of the trial"),
    Column("layer", "string", "layer of the event; * for one of the mean over layers"),
    Column("layer_index", "int16", "its place in the forward pass; -1 for the mean over layers"),
    Column("step_before", "int32", "onset of the event", "steps"),
    Column("step_after", "int32", "measurement after it", "steps"),
    Column("exploratory", "bool", "the sweep has no significant event of its primary family: these are candidates"),
)

CHANGES = Table(
    "mechanism_changes",
    "A metric before, during and after an event, beside its change over windows like it without one. Confirm probe.",
    (
        *_EVENT,
        Column("metric", "string", "name of the metric"),
        Column("metric_layer", "string", "what it was measured on: the layer, its attention, or * for the network"),
        Column("checkpoint_before", "int32", "last checkpoint at or before the onset", "steps"),
        Column(
            "checkpoint_during", "int32", "checkpoint inside, nearest to the event's middle; null for none", "steps"
        ),
        Column("checkpoint_after", "int32", "first checkpoint at or after its end", "steps"),
        Column("initial", "float64", "value at the initialisation"),
        Column("before", "float64", ""),
        Column("during", "float64", "null without a checkpoint inside"),
        Column("after", "float64", ""),
        Column("change", "float64", "after - before"),
        Column("n_controls", "int32", "matched windows: phase, learning rate, length and displacement of the weights"),
        Column("control_mean", "float64", "mean change over them"),
        Column("control_sd", "float64", "SD of these; null for under two"),
        Column("difference", "float64", "change - control_mean"),
        Column(
            "effect", "float64", "the same in SDs of control changes, pooled over the events of the layer in the cell"
        ),
        Column("p", "float64", "whether the change lies outside what its controls predict; null for under 3"),
        Column("q", "float64", "Benjamini-Hochberg q over all events and metrics of the sweep"),
        Column("n_unmatched", "int32", "windows of the same trial, layer and length alone"),
        Column("unmatched_mean", "float64", "mean change over them"),
        Column("unmatched_difference", "float64", "change - unmatched_mean: what phase and speed explain is in it"),
        Column("unmatched_effect", "float64", "the same in SDs of these changes"),
        Column("displacement", "float64", "norm of the weights' change over the window / norm before"),
        Column("n_seeds", "int32", "other trials of the cell with the metric at these two checkpoints"),
        Column("seed_mean", "float64", "mean change over the same window in them"),
        Column("seed_difference", "float64", "change - seed_mean"),
        Column("seed_effect", "float64", "the same in SDs of their changes"),
        Column("seed_p", "float64", "whether the change lies outside what the other seeds predict; null for under 3"),
        Column("seed_q", "float64", "Benjamini-Hochberg q of seed_p over all events and metrics of the sweep"),
        Column("flag", "string", "no_controls or few_controls where no or too few windows of the trial match"),
        Column(
            "lacking",
            "string",
            "where too few match, the first of these that leaves under 3: length (checkpoints as far apart), phase, lr,"
            " displacement",
        ),
    ),
    ("trial_id", "layer_index", "step_before", "step_after", "metric_layer", "metric"),
)

WINDOWS = Table(
    "mechanism_windows",
    "The windows, between checkpoints, that an event is compared over: its own, and the matched ones without an event.",
    (
        *_EVENT,
        Column("control", "int32", "-1 for the event's own window, else which of the matched ones, the closest first"),
        Column("start", "int32", "checkpoint at its beginning", "steps"),
        Column("end", "int32", "checkpoint at its end", "steps"),
    ),
    ("trial_id", "layer_index", "layer", "step_before", "step_after", "control"),
)

TESTS = Table(
    "mechanism_tests",
    "Do events change a metric more than matched windows do? Over the trials of a cell, one test a metric.",
    (
        Column("cell", "string", "everything but seeds and controls, short, and the control where there is one"),
        Column("metric", "string", "name of the metric"),
        Column("exploratory", "bool", "the sweep has no significant event of its primary family: these are candidates"),
        Column("n_trials", "int32", "trials with an event that has controls: the unit"),
        Column("n_events", "int32", "their events"),
        Column("difference", "float64", "mean over trials of change - control change, in SDs of control changes"),
        Column("lo", "float64", "95 % interval of it, t over trials"),
        Column("hi", "float64", "upper end of it"),
        Column("effect", "float64", "the same mean / its SD over trials (Cohen's d_z)"),
        Column("p", "float64", "t test over trials; null for under 3"),
        Column("p_sign", "float64", "exact sign flips of trials; at least 2 / 2^trials"),
        Column("q", "float64", "Benjamini-Hochberg q of p over all metrics and cells of the sweep"),
        Column("unmatched_difference", "float64", "as `difference`, against windows of the same length alone"),
        Column("unmatched_p", "float64", "as `p`; no q: it is not the hypothesis"),
        Column("n_seeds", "int32", "trials of the cell with the metric in all windows"),
        Column("seed_difference", "float64", "mean over events of change - mean change of all seeds there, in SDs"),
        Column("seed_p", "float64", "exact permutation of the trials among the events; null for under 4 trials"),
        Column("seed_q", "float64", "Benjamini-Hochberg q of seed_p over all metrics and cells of the sweep"),
        Column("flag", "string", "few_trials, no_controls or constant where there is no p"),
    ),
    ("cell", "metric"),
)


class Metrics:
    """Collects rows of one of these tables for one partition."""

    def __init__(self, **key: Any) -> None:
        self._key = key
        self._rows: list[dict[str, Any]] = []

    def add(self, layer: str, layer_index: int, metric: str, value: float, **more: Any) -> None:
        """A row; `more`: n, chance, chance_sd, p, flag and columns of this table.

        A value that is not finite becomes null, and needs a flag: it gets `undefined` where none is given.
        """
        finite = bool(np.isfinite(value))
        row = {"layer": layer, "layer_index": layer_index, "metric": metric, "value": value if finite else np.nan}
        row |= {"chance": np.nan, "chance_sd": np.nan, "p": np.nan, **self._key, **more}
        self._rows.append({**row, "flag": None if finite else more.get("flag") or "undefined"})

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
