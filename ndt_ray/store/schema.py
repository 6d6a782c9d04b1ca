"""Every table of the store: its columns with type, unit and meaning, and its sort order. Defined here and nowhere else.

A column of type `measure` is float32, or float64 where the part's declared precision says so (imported series: at
float32 the published jumps vanish).
"""

import hashlib
from dataclasses import dataclass, replace
from typing import Literal

import pyarrow as pa

SCHEMA_VERSION = 1

Precision = Literal["float32", "float64"]


@dataclass(frozen=True)
class Column:
    name: str
    type: str
    doc: str
    unit: str = ""


@dataclass(frozen=True)
class Table:
    name: str
    doc: str
    columns: tuple[Column, ...]
    order: tuple[str, ...]
    """Columns that compacted files are sorted by; together they are the key of a row."""
    origin: Literal["pack", "analysis"] = "pack"
    """Who writes it: packs while training (the view adds `sweep` and `pack`), or an analysis (adds `sweep`)."""

    @property
    def partitions(self) -> tuple[str, ...]:
        """Columns that come from the path of a file rather than from the file."""
        return ("sweep", "pack") if self.origin == "pack" else ("sweep",)

    def arrow(self, precision: Precision = "float32") -> pa.Schema:
        """The Arrow schema; docs and units are kept as field metadata."""
        fields = [
            pa.field(c.name, _arrow_type(c.type, precision), metadata={"doc": c.doc, "unit": c.unit})
            for c in self.columns
        ]
        meta = {"ndt_table": self.name, "ndt_schema_version": str(SCHEMA_VERSION), "ndt_precision": precision}
        return pa.schema(fields, metadata=meta)


_TYPES = {
    "string": pa.string(),
    "bool": pa.bool_(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "timestamp": pa.timestamp("us"),
}


def _arrow_type(name: str, precision: Precision) -> pa.DataType:
    if name.startswith("list:"):
        return pa.list_(_arrow_type(name[5:], precision))
    return _TYPES[precision if name == "measure" else name]


def fingerprint(schema: pa.Schema) -> str:
    """Eight hex digits that are equal for files with the same columns, in the same order, of the same types."""
    return hashlib.sha256("\n".join(f"{f.name} {f.type}" for f in schema).encode()).hexdigest()[:8]


_TRIAL = Column("trial_id", "string", "content hash of the trial (spec.Trial.trial_id)")
_STEP = Column("step", "int32", "optimizer updates done; 0 is the initialisation", "steps")
_LAYER = Column("layer", "string", "module path")
_LAYER_INDEX = Column("layer_index", "int16", "place in the order of the forward pass; negative: did not run yet")
_VIEW = Column("view", "string", "how activations became a matrix: units, positions, gap, flat, tokens, mean")

MEASURES = (
    ("stable_rank", "measure", "sum of eigenvalues / largest", "dimensions"),
    ("participation_ratio", "measure", "(sum of eigenvalues)^2 / sum of their squares", "dimensions"),
    ("participation_ratio_sv", "measure", "the same of singular values (the founding study's)", "dimensions"),
    ("energy_90", "int16", "smallest number of directions that hold 90 % of the energy", "dimensions"),
    ("nuclear_norm_ratio", "measure", "sum of singular values / largest", "dimensions"),
    ("rankme", "measure", "exponential of the entropy of normalised singular values", "dimensions"),
    ("power_law_alpha", "measure", "minus the slope of log eigenvalue on log rank", ""),
)
"""Measures that are functions of one spectrum: stored for the centred spectrum, and `_uncentred`."""

_SERIES = ("trial_id", "layer_index", "view", "step")
_CENTRED = tuple(Column(n, t, d + " (centred)", u) for n, t, d, u in MEASURES)
_UNCENTRED = tuple(Column(f"{n}_uncentred", t, d + " (uncentred)", u) for n, t, d, u in MEASURES)
_MEASUREMENTS = (
    _TRIAL,
    _STEP,
    _LAYER,
    _LAYER_INDEX,
    _VIEW,
    Column("n_stimuli", "int32", "probe stimuli: the sampling unit"),
    *_CENTRED,
    Column("participation_ratio_corrected", "measure", "bias-corrected over stimuli, centred", "dimensions"),
    *_UNCENTRED,
    Column("flag", "string", "why values are null: dead, nonfinite, solver, few_rows, lost; else null"),
)
_SPECTRA = (
    _TRIAL,
    _STEP,
    _LAYER,
    _LAYER_INDEX,
    _VIEW,
    Column("n_stimuli", "int32", "probe stimuli"),
    Column("n_rows", "int32", "rows of the matrix: stimuli × positions or tokens"),
    Column("n_features", "int32", "columns of the matrix"),
    Column("trace", "float64", "sum of squares of the centred matrix"),
    Column("trace_uncentred", "float64", "sum of squares of the matrix"),
    Column("mean_norm", "float64", "L2 norm of the mean row"),
    Column("eigenvalues", "list:float32", "of the centred Gram matrix, descending"),
    Column("eigenvalues_uncentred", "list:float32", "of the Gram matrix, descending"),
    Column("gram_sums", "list:float64", "sums for the bias correction; order in spectra.GRAM_SUMS"),
    Column("delete_block_pr", "list:float32", "centred participation ratio without each of 16 blocks"),
)

TABLES: dict[str, Table] = {
    t.name: t
    for t in (
        Table(
            "trials",
            "One row per trial: what it is. How it ended stands in `outcomes`.",
            (
                _TRIAL,
                Column("lane", "int16", "place in its pack"),
                Column("cell", "string", "everything but seeds and controls, short"),
                Column("model", "string", "architecture"),
                Column("data", "string", "data set"),
                Column("seed", "int64", "the common seed; null where the four differ"),
                Column("seed_init", "int64", "seed of the initialisation"),
                Column("seed_order", "int64", "seed of the batch order"),
                Column("seed_dropout", "int64", "seed of the dropout masks"),
                Column("seed_data", "int64", "seed of subset and label noise"),
                Column(
                    "control",
                    "string",
                    "none, or what sets it apart: lr0, ablate:LAYER@STEP, reorder:BRANCH@STEP …",
                ),
                Column("engine", "string", "training engine"),
                Column("width", "int32", "canonical lane width; 0: not in the kernels"),
                Column("steps", "int32", "planned optimizer updates", "steps"),
                Column("steps_per_epoch", "int32", "batches an epoch", "steps"),
                Column("batch", "int32", "samples a batch"),
                Column("optimizer", "string", ""),
                Column("lr", "float64", "base learning rate"),
                Column("weight_decay", "float64", ""),
                Column("n_parameters", "int64", "trained weights"),
                Column("n_train", "int32", "training samples"),
                Column("probe_size", "int32", "stimuli of the detect probe"),
                Column("probe_hash", "string", "hash of the detect probe's indices and inputs"),
                Column("confirm_hash", "string", "hash of the confirm probe's indices and inputs"),
                Column("data_completeness", "string", "complete, subset, surrogate or generated"),
                Column("data_hash", "string", "hash of the data set as loaded"),
                Column("fingerprint", "string", "numerics: engine, ISA or GPU, threads, versions"),
                Column("spec", "string", "the whole trial as JSON"),
            ),
            ("trial_id",),
        ),
        Table(
            "outcomes",
            "One row per ended trial.",
            (
                _TRIAL,
                Column("status", "string", "finished, diverged or failed"),
                Column("last_step", "int32", "updates done", "steps"),
                Column("final_loss", "float64", "held-out loss at the last step", "nats"),
                Column("final_accuracy", "float64", "held-out accuracy at the last step"),
                Column("error", "string", "first line of the error of a failed trial"),
            ),
            ("trial_id",),
        ),
        Table(
            "losses",
            "The mini-batch loss of every update: what a replay is checked against.",
            (
                _TRIAL,
                _STEP,
                Column("loss", "float64", "mini-batch loss computed by the update that led to this step", "nats"),
            ),
            ("trial_id", "step"),
        ),
        Table(
            "scalars",
            "One row per measured step.",
            (
                _TRIAL,
                _STEP,
                Column("epoch", "float64", "updates / updates an epoch", "epochs"),
                Column("epoch_boundary", "bool", "an epoch ended between the previous measured step and this one"),
                Column("lr", "float64", "learning rate of the next update"),
                Column("batch_loss", "float64", "mini-batch loss of the last update; null at step 0", "nats"),
                Column("probe_loss", "float64", "loss on the detect probe", "nats"),
                Column("probe_accuracy", "float64", "accuracy on the detect probe"),
                Column("probe_class_accuracy", "list:float32", "the same per class"),
                Column("grad_norm", "float64", "global L2 norm of the last update's gradient; null at step 0"),
                Column("update_norm", "float64", "L2 norm of the last update; null at step 0"),
                Column("weight_norm", "float64", "L2 norm of all weights"),
                Column("init_distance", "float64", "L2 distance from the initialisation"),
            ),
            ("trial_id", "step"),
        ),
        Table(
            "dynamics",
            "Norms of one layer's parameters at a measured step.",
            (
                _TRIAL,
                _STEP,
                _LAYER,
                _LAYER_INDEX,
                Column("grad_norm", "float32", "L2 norm of the last update's gradient; null at step 0"),
                Column("update_norm", "float32", "L2 norm of the last update; null at step 0"),
                Column("weight_norm", "float32", "L2 norm of the weights"),
                Column("init_distance", "float32", "L2 distance from the initialisation"),
            ),
            ("trial_id", "layer_index", "step"),
        ),
        Table(
            "measurements",
            "Dimensionality of one layer's activations on the detect probe at a measured step.",
            _MEASUREMENTS,
            _SERIES,
        ),
        Table(
            "other_views",
            "As `measurements`, of the same layers in further views, where `measure.views` names several.",
            _MEASUREMENTS,
            _SERIES,
        ),
        Table(
            "spectra",
            "The eigenvalues behind a measurement, and what a spectrum alone cannot give.",
            _SPECTRA,
            _SERIES,
        ),
        Table(
            "confirmations",
            "As `measurements`, on the confirm probe, at checkpoints: what effect sizes and intervals come from.",
            _MEASUREMENTS,
            _SERIES,
        ),
        Table(
            "confirmation_spectra",
            "As `spectra`, on the confirm probe, at checkpoints.",
            _SPECTRA,
            _SERIES,
        ),
        Table(
            "confirmation_blocks",
            "As `confirmations`, without one block of stimuli a row: where errors of changes come from.",
            (
                _TRIAL,
                _STEP,
                _LAYER,
                _LAYER_INDEX,
                _VIEW,
                Column("block", "int16", "of stimuli left out: those whose place in the probe is this, modulo 16"),
                Column("n_stimuli", "int32", "probe stimuli that are left"),
                *_CENTRED,
                *_UNCENTRED,
            ),
            ("trial_id", "layer_index", "view", "block", "step"),
        ),
        Table(
            "velocity",
            "How far one layer's representation has turned: 1 - debiased CKA of probe-by-probe kernels.",
            (
                _TRIAL,
                _STEP,
                _LAYER,
                _LAYER_INDEX,
                Column("previous_step", "int32", "the measurement before; null at the first", "steps"),
                Column("velocity", "float32", "1 - CKA to the previous measurement"),
                Column("from_init", "float32", "1 - CKA to the initialisation"),
                Column("anchor_step", "int32", "the latest log-spaced anchor before this step", "steps"),
                Column("from_anchor", "float32", "1 - CKA to that anchor"),
                Column("angle_mean", "float32", "mean principal angle of the top directions to the previous", "rad"),
                Column("angle_max", "float32", "largest of these angles", "rad"),
                Column("label_alignment", "float32", "debiased CKA with the label kernel"),
            ),
            ("trial_id", "layer_index", "step"),
        ),
        Table(
            "evaluations",
            "Loss and accuracy on the fixed held-out set.",
            (
                _TRIAL,
                _STEP,
                Column("loss", "float64", "", "nats"),
                Column("accuracy", "float64", ""),
                Column("class_accuracy", "list:float32", "per class"),
                Column("n", "int32", "held-out samples"),
            ),
            ("trial_id", "step"),
        ),
        Table(
            "weight_spectra",
            "Singular values of one weight matrix, on the coarse schedule.",
            (
                _TRIAL,
                _STEP,
                Column("parameter", "string", "parameter path"),
                Column("stable_rank", "measure", "of the weight matrix (rows × the rest)", "dimensions"),
                Column("participation_ratio", "measure", "on eigenvalues of W'W", "dimensions"),
                Column("spectral_norm", "measure", "largest singular value"),
                Column("singular_values", "list:float32", "descending"),
            ),
            ("trial_id", "parameter", "step"),
        ),
        Table(
            "curvature",
            "Second-order signals on the coarse schedule, on the fixed probe.",
            (
                _TRIAL,
                _STEP,
                Column("sharpness", "float64", "largest Hessian eigenvalue of the probe loss"),
                Column("sharpness_preconditioned", "float64", "the same after Adam's preconditioner; null for sgd"),
                Column("gradient_noise_scale", "float64", "tr(cov of sample gradients) / |mean gradient|^2", "samples"),
            ),
            ("trial_id", "step"),
        ),
        Table(
            "checkpoints",
            "Index of saved checkpoints.",
            (
                _TRIAL,
                _STEP,
                Column("reason", "string", "planned, event-before, event, event-after or replay"),
                Column("path", "string", "below the store's root"),
                Column("sha256", "string", "of the file"),
                Column("bytes", "int64", "", "bytes"),
            ),
            ("trial_id", "step"),
        ),
        Table(
            "triggers",
            "Alarms of the detector that watches while training, and the checkpoints that each of them asked for.",
            (
                _TRIAL,
                Column("step", "int32", "of the alarm, and of its checkpoint `event`", "steps"),
                Column("number", "int16", "of the trial's triggers, from 1"),
                _LAYER,
                _LAYER_INDEX,
                _VIEW,
                Column("measure", "string", "whose logarithm changed"),
                Column("block", "int16", "measurements averaged to a value, on the time scale of the alarm"),
                Column("direction", "string", "increase or decrease, against what the local line forecast"),
                Column("statistic", "float64", "CUSUM of standardised forecast errors"),
                Column("threshold", "float64", "that it is above: for the false alarms per run asked for"),
                Column("onset_step", "int32", "last measurement at which the CUSUM stood at zero", "steps"),
                Column("change", "float64", "of the measure's logarithm, since the onset"),
                Column("together", "int32", "series of the trial above their thresholds at this step"),
                Column("before_step", "int32", "of the checkpoint before; null where none was held", "steps"),
                Column("after_step", "int32", "of the checkpoint after; null at the end of training", "steps"),
            ),
            ("trial_id", "step"),
        ),
    )
}


COMPUTED: dict[str, Table] = {
    t.name: t
    for t in (
        Table(
            "sweeps",
            "One row per sweep, from its directory and its packs' manifests.",
            (
                Column("sweep", "string", "name of the sweep"),
                Column("about", "string", "the question it asks"),
                Column("packs", "int32", "packs that have started"),
                Column("packs_finished", "int32", "packs whose manifest says finished"),
                Column("trials", "int32", "trials of these packs"),
                Column("trials_finished", "int32", "trials of the finished packs"),
                Column("spec", "string", "spec.yaml"),
                Column("env", "string", "env.json: versions, commit, command"),
            ),
            ("sweep",),
        ),
        Table(
            "attempts",
            "One row per time a pack was started: all that may differ between two runs of the same sweep.",
            (
                Column("sweep", "string", "name of the sweep"),
                Column("pack", "string", "name of the pack"),
                Column("generation", "int32", "1 for the first start; a higher one fences the lower ones"),
                Column("host", "string", "where it ran"),
                Column("pid", "int64", "process id"),
                Column("started", "timestamp", "UTC"),
                Column("updated", "timestamp", "UTC; its last commit"),
                Column("ended", "timestamp", "UTC; null while running, or when killed"),
                Column("from_step", "int32", "resumed at; null from the start", "steps"),
                Column("to_step", "int32", "last committed step", "steps"),
                Column("status", "string", "running (or killed), finished, stopped, superseded or failed"),
                Column("error", "string", "first line of the error"),
                Column("fingerprint", "string", "numerics: engine, ISA or GPU, threads, versions"),
            ),
            ("sweep", "pack", "generation"),
        ),
        Table(
            "analysis_runs",
            "One row per time an analysis had work to do, from the sweep's log: what it took, which may differ.",
            (
                Column("sweep", "string", "name of the sweep"),
                Column("analysis", "string", "name of the analysis"),
                Column("ended", "timestamp", "UTC"),
                Column("host", "string", "where it was asked for"),
                Column("total", "int32", "partitions: trials, checkpoints, or the sweep"),
                Column("done", "int32", "computed in this run"),
                Column("skipped", "int32", "computed before"),
                Column("dead", "int32", "given up after failures"),
                Column("retries", "int32", "failed attempts that were made good"),
                Column("seconds", "float64", "from start to end, of all analyses that ran together", "seconds"),
                Column("busy", "float64", "its own attempts, all workers together", "seconds"),
                Column("slowest", "float64", "its longest attempt", "seconds"),
                Column("slowest_partition", "string", "which that was"),
            ),
            ("sweep", "ended", "analysis"),
        ),
    )
}
"""Tables that are made when asked for, from JSON files; nobody writes rows to them."""


def register_table(table: Table) -> Table:
    """Make a table that an analysis writes known to the store; registering the same one twice is fine."""
    table = replace(table, origin="analysis")
    names = [c.name for c in table.columns]
    if len(set(names)) != len(names) or {"sweep", "pack"} & set(names):
        raise ValueError(f"table {table.name}: columns repeat, or are called sweep or pack ({names=})")
    if unknown := set(table.order) - set(names):
        raise ValueError(f"table {table.name}: order names no column {sorted(unknown)}")
    if table.name in COMPUTED or TABLES.setdefault(table.name, table) != table:
        raise ValueError(f"table {table.name} exists already with other columns")
    return table
