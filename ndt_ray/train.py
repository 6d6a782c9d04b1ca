"""The training loop: one pack of lanes from its first update to its last, everything it finds handed to a `Sink`.

It knows no Ray and no disk, so the whole path runs in a test with a list for a sink.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ndt_ray.branching import Stage, stages
from ndt_ray.data import Dataset, Probes, probes
from ndt_ray.errors import CheckpointError
from ndt_ray.lanes import Build, Engine, make_engine
from ndt_ray.lanes.batches import Batches
from ndt_ray.lanes.interventions import Lesions, refuse_empty_lesions
from ndt_ray.measurement import record
from ndt_ray.measurement.record import Recorder, tracked_layers
from ndt_ray.models import describe
from ndt_ray.schedule import lr_factor
from ndt_ray.sink import Arrays, Sink
from ndt_ray.spec import Trial

HEARTBEAT_SECONDS = 0.2
"""Between heartbeats; each flushes the per-step losses, so that a commit holds every row up to its step."""


@dataclass(frozen=True)
class Pack:
    """What a pack trains: resolved trials of one computation, and how to make their models and data."""

    trials: Sequence[Trial]
    build: Build
    data: Dataset
    device: torch.device
    cells: Sequence[str]
    fingerprint: str


def train_pack(pack: Pack, sink: Sink, resume: tuple[int, Arrays] | None = None) -> bool:
    """Trains a pack to its end, or until the sink says stop; returns whether it ended.

    `resume` is (step, state) as a sink was given it. The rows of steps after it are exactly those of an
    uninterrupted run. Lanes that are one trial until an intervention train as one until then (`branching`).
    """
    step, state = (0, None) if resume is None else resume
    planned = stages(pack.trials)
    for stage in planned:
        if stage.until <= step and stage is not planned[-1]:
            continue
        run = _stage(pack, stage, sink, state)
        for update in range(step, stage.until):
            run.update(update)
            if run.heartbeat(update + 1):
                return False
            if not any(run.engine.alive):
                break
        if stage is planned[-1] or not any(run.engine.alive):
            run.recorder.end()
            run.sink.commit(run.train.steps, run.state, finished=True)
            return True
        run.recorder.flush()
        step, state = stage.until, picked(run.state(), stage.follows)
        del run  # its arena is given back before the next one is made
    raise AssertionError("the last stage ends a pack")


def _stage(pack: Pack, stage: Stage, sink: Sink, state: Arrays | None) -> "_Run":
    """What trains the lanes of a stage from a state of the whole pack, or from the initialisation."""
    trials = [pack.trials[lane] for lane in stage.trained]
    shared = sink if len(trials) == len(pack.trials) else Shared(sink, pack.trials, stage)
    own = replace(pack, trials=trials, cells=[pack.cells[lane] for lane in stage.trained])
    run = _Run(own, shared, len(pack.trials))
    if state is not None:
        run.load(state if shared is sink else picked(state, stage.trained))
        return run
    refuse_empty_lesions(run.engine.arena, pack.trials)
    sink.rows("trials", static_rows(pack, run.engine, run.batches, run.probes))
    run.lesions.at(0)
    run.at_step(0, None)
    return run


class Shared:
    """A sink for lanes that stand for others too: what it is given is handed on for each trial that they stand for."""

    def __init__(self, sink: Sink, trials: Sequence[Trial], stage: Stage) -> None:
        self.sink, self.stage = sink, stage
        self.stands_for: dict[str, list[str]] = {}
        for trial, leader in zip(trials, stage.follows, strict=True):
            self.stands_for.setdefault(trials[stage.trained[leader]].trial_id, []).append(trial.trial_id)

    def rows(self, table: str, columns: Mapping[str, Any]) -> None:
        given = list(columns["trial_id"])
        rows = [(i, own) for i, trial_id in enumerate(given) for own in self.stands_for[trial_id]]
        index = np.array([i for i, _ in rows], dtype=np.int64)
        repeated = {name: _repeated(values, index) for name, values in columns.items()}
        self.sink.rows(table, {**repeated, "trial_id": [own for _, own in rows]})

    def checkpoint(self, trial_id: str, step: int, tensors: Arrays, reason: str) -> None:
        for own in self.stands_for[trial_id]:
            self.sink.checkpoint(own, step, tensors, reason)

    def heartbeat(self, step: int, state: Callable[[], Arrays], progress: Mapping[str, float]) -> bool:
        return self.sink.heartbeat(step, lambda: picked(state(), self.stage.follows), progress)

    def commit(self, step: int, state: Callable[[], Arrays], finished: bool) -> None:
        self.sink.commit(step, lambda: picked(state(), self.stage.follows), finished)


def _repeated(values: Any, index: np.ndarray) -> Any:
    """A column with the rows of `index`."""
    return values[index] if isinstance(values, np.ndarray) else [values[i] for i in index]


def picked(state: Arrays, lanes: Sequence[int]) -> dict[str, np.ndarray]:
    """The recovery state of a pack whose lane i is lane `lanes[i]` of the one that gave `state`."""
    out: dict[str, np.ndarray] = {"alive": np.asarray(state["alive"])[list(lanes)]}
    for lane, source in enumerate(lanes):
        prefix = f"lane{source}."
        out |= {f"lane{lane}.{k[len(prefix) :]}": v for k, v in state.items() if k.startswith(prefix)}
    recorded = {k[9:]: v for k, v in state.items() if k.startswith("recorder.")}
    return out | {f"recorder.{k}": v for k, v in record.picked(recorded, lanes).items()}


class _Run:
    def __init__(self, pack: Pack, sink: Sink, lanes: int | None = None) -> None:
        """`lanes`: trials that those of the pack stand for; by default themselves alone."""
        self.trials, self.sink = list(pack.trials), sink
        self.lanes = len(self.trials) if lanes is None else lanes
        self.train = self.trials[0].train
        self.engine = make_engine(pack.trials, pack.build, pack.device)
        self.batches = Batches(pack.trials, pack.data, pack.device)
        self.lesions = Lesions(self.engine, pack.build)
        spec, evaluate = self.trials[0].measure, self.trials[0].evaluate
        self.probes = probes(pack.data, spec.probe, spec.confirm, spec.probe_seed, evaluate.size)
        layers = tracked_layers(describe(self.engine.models[0], pack.data.inputs).tracked, spec.layers, spec.views)
        self.recorder = Recorder(self.engine, self.batches, pack.data, self.probes, layers, sink)
        self.last_beat = time.monotonic()
        self.began = time.monotonic()
        self.done_here = 0

    def update(self, update: int) -> None:
        inputs, labels = self.batches.get(update)
        before = self.recorder.weights_before(update + 1)
        losses = self.engine.step(inputs, labels, update, lr_factor(self.train.schedule, update, self.train.steps))
        self.recorder.losses(update + 1, losses)
        self.lesions.at(update + 1)
        self.at_step(update + 1, before)
        self.done_here += 1

    def at_step(self, step: int, before: torch.Tensor | None) -> None:
        self.recorder.measure(step, before)
        self.recorder.evaluate(step)
        self.recorder.checkpoint(step)

    def heartbeat(self, step: int) -> bool:
        now = time.monotonic()
        if now - self.last_beat < HEARTBEAT_SECONDS and step < self.train.steps:
            return False
        self.last_beat = now
        self.recorder.flush()
        rate = self.done_here * self.lanes / max(now - self.began, 1e-9)
        if step == self.train.steps:
            return False
        return self.sink.heartbeat(step, self.state, {"step": step, "steps": self.train.steps, "seed_steps_s": rate})

    def state(self) -> dict[str, np.ndarray]:
        """Everything a resume needs: each lane's weights, moments and buffers, and what the recorder carries along."""
        lanes = {f"lane{i}.{k}": v for i in range(len(self.trials)) for k, v in self.engine.lane_state(i).items()}
        alive = np.array(self.engine.alive, dtype=np.uint8)
        return {**lanes, "alive": alive, **{f"recorder.{k}": v for k, v in self.recorder.state().items()}}

    def load(self, state: Arrays) -> None:
        """The inverse of `state`; CheckpointError where the state is of another pack."""
        try:
            for i in range(len(self.trials)):
                prefix = f"lane{i}."
                self.engine.load_lane_state(i, {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)})
            self.engine.alive = [bool(a) for a in state["alive"]]
            self.recorder.load({k[9:]: v for k, v in state.items() if k.startswith("recorder.")})
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"the recovery state does not fit this pack ({error}): it was written by another model or version; "
                "begin the pack again with --restart"
            ) from error


def static_rows(pack: Pack, engine: Engine, batches: Batches, probes: Probes) -> dict[str, Any]:
    """The `trials` rows of a pack: what each trial is, before anything has happened."""
    trials, n = list(pack.trials), len(pack.trials)
    seeds = [t.seed for t in trials]
    common = [s.init if len({s.init, s.order, s.dropout, s.data}) == 1 else None for s in seeds]
    return {
        "trial_id": [t.trial_id for t in trials],
        "lane": np.arange(n, dtype=np.int16),
        "cell": list(pack.cells),
        "model": [t.model.name for t in trials],
        "data": [t.data.name for t in trials],
        "seed": common,
        **{f"seed_{name}": [getattr(s, name) for s in seeds] for name in ("init", "order", "dropout", "data")},
        "control": [str(t.control) for t in trials],
        "engine": [t.engine for t in trials],
        "width": [t.width for t in trials],
        "steps": [t.train.steps for t in trials],
        "steps_per_epoch": [batches.per_epoch] * n,
        "batch": [batches.size] * n,
        "optimizer": [t.train.optimizer for t in trials],
        "lr": [t.train.lr for t in trials],
        "weight_decay": [t.train.weight_decay for t in trials],
        "n_parameters": [engine.arena.layout.n_parameters] * n,
        "n_train": [batches.n] * n,
        "probe_size": [len(probes.detect)] * n,
        "probe_hash": [probes.detect_hash] * n,
        "confirm_hash": [probes.confirm_hash] * n,
        "data_completeness": [pack.data.completeness] * n,
        "data_hash": [pack.data.hash] * n,
        "fingerprint": [pack.fingerprint] * n,
        "spec": [t.model_dump_json() for t in trials],
    }


def continue_trial(pack: Pack, lane_state: Arrays, step: int, until: int) -> Engine:
    """Trains the one trial of a pack on from a checkpoint, to step `until`, recording nothing; bit for bit the
    trajectory of the run that saved it. Returns the engine, whose lane 0 is the trial."""
    engine = make_engine(pack.trials, pack.build, pack.device)
    try:
        engine.load_lane_state(0, lane_state)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"this checkpoint is not of {pack.trials[0].cell}: {error}") from error
    batches, lesions = Batches(pack.trials, pack.data, pack.device), Lesions(engine, pack.build)
    train = pack.trials[0].train
    for update in range(step, until):
        engine.step(*batches.get(update), update, lr_factor(train.schedule, update, train.steps))
        lesions.at(update + 1)
    return engine


class Retrace:
    """One trial trained again from any of its states, bit for bit, recording only what it is asked for.

    `sink` takes the rows of `confirm` and `measure`. CheckpointError where a state is of another model.
    """

    def __init__(self, pack: Pack, sink: Sink) -> None:
        self._run = _Run(pack, sink)
        self._run.recorder.velocity = self._run.recorder.triggers = None
        self._run.lesions.at(0)
        self.step = 0

    def jump(self, step: int, lane_state: Arrays) -> None:
        """To a saved state."""
        try:
            self._run.engine.load_lane_state(0, lane_state)
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"this checkpoint is not of {self._run.trials[0].cell}: {error}") from error
        self.step = step

    def advance(self) -> float:
        """One update; the mini-batch loss that it was computed from."""
        run = self._run
        factor = lr_factor(run.train.schedule, self.step, run.train.steps)
        losses = run.engine.step(*run.batches.get(self.step), self.step, factor)
        self.step += 1
        run.lesions.at(self.step)
        return float(losses[0])

    def state(self) -> dict[str, np.ndarray]:
        """As a checkpoint holds it; a copy, which later updates do not reach."""
        return {name: value.copy() for name, value in self._run.engine.lane_state(0).items()}

    def confirm(self) -> None:
        """The rows that belong to a checkpoint: the confirm probe."""
        self._run.recorder.confirmations(self.step, [0])

    def measure(self) -> None:
        """Rows of `measurements` and `spectra` on the detect probe."""
        self._run.recorder.measurements(self.step, [0])
