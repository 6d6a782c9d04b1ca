"""What a pack will cost: seconds, memory and disk, from facts about its model and data and the time of single steps.

Everything here is arithmetic; the times come from a catalogue, which guesses them from operation counts or has
measured them on this machine.
"""

import fnmatch
import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ndt_ray.inputs import InputSpec
from ndt_ray.layer_views import view_of, views_of
from ndt_ray.schedule import checkpoint_steps, coarse_steps, evaluated_steps, measured_steps
from ndt_ray.spec import Measure, Trial

START_SECONDS = 6.0
"""From the command to the first step: imports and a local Ray with its first worker (7 s cold, 5 s warm, 2 cores)."""
PACK_SECONDS = 0.15
"""Claiming a pack, its manifests and its compaction."""
WORKER_BYTES = 450e6
"""A worker process with all imports and nothing loaded (resident: 351 MB, Linux, CPU build of torch; 450 at work)."""
PART_BYTES = 3_500
"""Footer and schema of one Parquet file: what a pack of a few rows costs."""
ROW_BYTES: Mapping[str, float] = {
    "trials": 1500.0,
    "outcomes": 40.0,
    "losses": 5.0,
    "scalars": 42.0,
    "dynamics": 13.0,
    "measurements": 43.0,
    "spectra": 22.0,
    "confirmations": 60.0,
    "other_views": 43.0,
    "confirmation_spectra": 30.0,
    "confirmation_blocks": 50.0,
    "velocity": 22.0,
    "evaluations": 16.0,
    "weight_spectra": 14.0,
    "curvature": 30.0,
    "checkpoints": 110.0,
}
"""Bytes a row after compression, lists not counted (measured on a sweep of digits)."""
LIST_BYTES = 3.1
"""A float32 in a list column, after byte-stream split and zstd; a float64 takes 2.2 times that."""
CHECKPOINT_BYTES = 4_000
"""The header of a checkpoint file."""
PER_TRIGGER = 3
"""Checkpoints of a trigger: before, at and after it."""
GRAM_SUMS, BLOCKS = 10, 16
MOMENTS = {"adam": 2, "adamw": 2, "sgd": 1}


@dataclass(frozen=True)
class DataFacts:
    """What a plan needs to know of a data set."""

    name: str
    inputs: InputSpec
    n_train: int
    n_test: int
    completeness: str
    nbytes: int


@dataclass(frozen=True)
class Layer:
    """A measured layer: module path, kind (units, positions, tokens), and the shape of one sample's output.

    `rank` bounds the rank of its output, where its weights do (a Linear gives at most inputs + 1 directions); else 0.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    rank: int = 0

    def eigenvalues(self, view: str, n: int) -> int:
        """How many a spectrum has."""
        most = min(self.matrix(view, n))
        return min(most, self.rank) if self.rank else most

    def matrix(self, view: str, n: int) -> tuple[int, int]:
        """Rows and columns of the matrix that n stimuli make."""
        if self.kind == "positions":
            channels, space = self.shape[0], _product(self.shape[1:])
            return {"positions": (n * space, channels), "gap": (n, channels), "flat": (n, channels * space)}[view]
        if self.kind == "tokens":
            tokens, width = self.shape
            return (n * tokens, width) if view == "tokens" else (n, width)
        return n, self.shape[0]


@dataclass(frozen=True)
class ModelFacts:
    """What a plan needs to know of a model on a data set."""

    n_parameters: int
    layers: tuple[Layer, ...]
    modules: tuple[str, ...]
    """Paths of the modules that own weights."""
    parameters: tuple[tuple[int, ...], ...]
    """Shapes of the weights."""
    flops: float
    """Multiplications and additions of one sample's forward pass."""
    activations: int
    """Numbers that one sample's forward pass gives in all leaves."""

    def measured(self, measure: Measure) -> list[Layer]:
        """The layers that a trial measures."""
        patterns = measure.layers
        return [
            layer
            for layer in self.layers
            if patterns is None or any(fnmatch.fnmatchcase(layer.path, p) for p in patterns)
        ]


@dataclass(frozen=True)
class Cost:
    """Seconds of single things for a whole pack at its width, and bytes of memory."""

    start: float
    step: float
    measure: float
    evaluate: float
    coarse: float
    memory: float
    calibrated: bool

    def scaled(self, factor: float) -> "Cost":
        """All times multiplied."""
        times = ("start", "step", "measure", "evaluate", "coarse")
        return replace(self, **{name: getattr(self, name) * factor for name in times})


@dataclass(frozen=True)
class Estimate:
    """What one pack costs, or many: seconds of one worker, peak bytes of one worker, bytes of disk by table."""

    train: float = 0.0
    measure: float = 0.0
    evaluate: float = 0.0
    start: float = 0.0
    memory: float = 0.0
    disk: Mapping[str, float] = field(default_factory=dict)
    calibrated: bool = True

    @property
    def seconds(self) -> float:
        """Of one worker, from start to end."""
        return self.train + self.measure + self.evaluate + self.start

    @property
    def overhead(self) -> float:
        """Measuring as a share of training (0.1: 10 %); 0 where nothing is trained."""
        return self.measure / self.train if self.train else 0.0

    @property
    def disk_bytes(self) -> float:
        """Of all tables and files."""
        return sum(self.disk.values())

    def __add__(self, other: "Estimate") -> "Estimate":
        tables = {t: self.disk.get(t, 0.0) + other.disk.get(t, 0.0) for t in {**self.disk, **other.disk}}
        return Estimate(
            self.train + other.train,
            self.measure + other.measure,
            self.evaluate + other.evaluate,
            self.start + other.start,
            max(self.memory, other.memory),
            tables,
            self.calibrated and other.calibrated,
        )

    def to_json(self) -> dict[str, Any]:
        """As `plan.json` holds it."""
        times = {n: round(getattr(self, n), 4) for n in ("train", "measure", "evaluate", "start")}
        disk = {table: round(size) for table, size in self.disk.items()}
        return {**times, "memory": round(self.memory), "disk": disk, "calibrated": self.calibrated}


def pack_estimate(trial: Trial, lanes: int, model: ModelFacts, data: DataFacts, cost: Cost) -> Estimate:
    """What a pack of `lanes` trials like `trial` costs, from the cost of its single things."""
    steps = trial.train.steps
    # A checkpoint measures the confirm probe.
    measured = len(measured_steps(trial.measure, steps)) + len(checkpoint_steps(trial.checkpoint, steps))
    coarse = len(coarse_steps(trial.measure, steps))
    return Estimate(
        train=steps * cost.step,
        measure=measured * cost.measure + coarse * cost.coarse,
        evaluate=len(evaluated_steps(trial.evaluate, steps)) * cost.evaluate,
        start=cost.start + PACK_SECONDS,
        memory=cost.memory,
        disk=disk_bytes(trial, lanes, model, data),
        calibrated=cost.calibrated,
    )


def disk_bytes(trial: Trial, lanes: int, model: ModelFacts, data: DataFacts) -> dict[str, float]:
    """Bytes of a pack by table once it is compacted, and of its checkpoint files."""
    steps, measure = trial.train.steps, trial.measure
    n_measured, n_coarse = len(measured_steps(measure, steps)), len(coarse_steps(measure, steps))
    n_saved = len(checkpoint_steps(trial.checkpoint, steps))
    layers, classes = model.measured(measure), data.inputs.classes
    matrices = [w for w in model.parameters if len(w) > 1]
    per_row = {
        "trials": (1, 0.0),
        "outcomes": (1, 0.0),
        "losses": (steps, 0.0),
        "scalars": (n_measured, float(classes)),
        "measurements": (n_measured * len(layers), 0.0),
        "other_views": (n_measured * sum(len(views_of(x.kind, measure.views)) - 1 for x in layers), 0.0),
        "spectra": (n_measured * len(layers), spectrum_entries(measure, layers)),
        "confirmations": (n_saved * len(layers), 0.0),
        "confirmation_spectra": (n_saved * len(layers), spectrum_entries(measure, layers)),
        "confirmation_blocks": (n_saved * len(layers) * BLOCKS, 0.0),
        "velocity": (n_measured * len(layers) if measure.velocity else 0, 0.0),
        "dynamics": (n_measured * len(model.modules) if measure.dynamics else 0, 0.0),
        "evaluations": (len(evaluated_steps(trial.evaluate, steps)), float(classes)),
        "weight_spectra": (n_coarse * len(matrices), _mean([min(w[0], _product(w[1:])) for w in matrices])),
        "curvature": (n_coarse, 0.0),
        "checkpoints": (n_saved, 0.0),
    }
    disk = {
        table: PART_BYTES + lanes * rows * (ROW_BYTES[table] + entries * LIST_BYTES)
        for table, (rows, entries) in per_row.items()
        if rows
    }
    file = 4.0 * model.n_parameters * (1 + _moments(trial)) + CHECKPOINT_BYTES
    if n_saved:
        disk["checkpoint files"] = lanes * n_saved * file
    if watched := trial.checkpoint.on_event:
        disk["triggered checkpoint files, at most"] = lanes * PER_TRIGGER * watched.most * file
    return disk


def spectrum_entries(measure: Measure, layers: Sequence[Layer]) -> float:
    """Floats in the lists of a `spectra` row, on average over layers: both spectra, Gram sums, delete-block values."""
    ranks = [layer.eigenvalues(view_of(layer.kind, measure.views), measure.probe) for layer in layers]
    most = {"full": None, "none": 0}.get(str(measure.spectra), measure.spectra)
    kept = ranks if most is None else [min(rank, int(most)) for rank in ranks]
    return 2 * _mean(kept) + 2.2 * GRAM_SUMS + BLOCKS


def memory_bytes(trial: Trial, lanes: int, model: ModelFacts, data: DataFacts) -> float:
    """Peak memory of a worker: the process, its data, weights with gradients and moments, activations of one batch."""
    batch = data.n_train if trial.train.batch == "full" else trial.train.batch
    # weights, gradients, moments; the start and one copy before an update for norms and distances
    weights = 4.0 * lanes * model.n_parameters * (2 + MOMENTS[trial.train.optimizer] + 2)
    wide = lanes if trial.engine == "stack" else 1
    n = trial.measure.probe
    # Training keeps what its backward pass needs; a probe's forward pass only what the next layer does.
    activations = 4.0 * model.activations * max(1.5 * batch * wide, 0.5 * n)
    views = [(layer, view) for layer in model.layers for view in views_of(layer.kind, trial.measure.views)]
    probe = sum(8.0 * _product(layer.matrix(view, n)) for layer, view in views)
    kernels = 8.0 * 4 * n**2 * len(model.layers) * lanes if trial.measure.velocity else 0.0
    ring = lanes * ring_bytes(trial, model.n_parameters)
    return WORKER_BYTES + 1.2 * data.nbytes + weights + activations + probe + kernels + ring


def ring_bytes(trial: Trial, n_parameters: int) -> float:
    """Memory of the recent states that a lane keeps for checkpoints before an event; 0 where nothing is watched."""
    watched = trial.checkpoint.on_event
    return 4.0 * n_parameters * (1 + _moments(trial)) * watched.keep if watched else 0.0


def _moments(trial: Trial) -> int:
    """Arrays of an optimizer's state a weight; sgd has none without momentum."""
    train = trial.train
    return 0 if train.optimizer == "sgd" and not train.momentum else MOMENTS[train.optimizer]


def makespan(seconds: Iterable[float], workers: int) -> float:
    """Seconds until the last worker is done when each takes the longest pack left (Graham 1969)."""
    ends = [0.0] * max(1, workers)
    for duration in sorted(seconds, reverse=True):
        heapq.heapreplace(ends, ends[0] + duration)
    return max(ends)


def _product(numbers: Iterable[int]) -> int:
    total = 1
    for n in numbers:
        total *= n
    return total


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else 0.0
