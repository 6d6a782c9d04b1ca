"""What is written down of a pack while it trains: rows for every table, none of which touches the training."""

import fnmatch
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ndt_ray.data import Dataset, Probes
from ndt_ray.errors import SpecError, did_you_mean
from ndt_ray.lanes import Engine
from ndt_ray.lanes.batches import Batches
from ndt_ray.lanes.norms import LayerNorms
from ndt_ray.lanes.observe import Observation, Observer
from ndt_ray.lanes.optimizer import lane_lr
from ndt_ray.layer_views import Views, views_of
from ndt_ray.measurement import coarse, velocity
from ndt_ray.measurement.deletions import without_blocks
from ndt_ray.measurement.evaluate import Scores, lane_scores, predict, scores
from ndt_ray.measurement.rows import Rows, rows
from ndt_ray.measurement.spectra import Layer, measure_layers
from ndt_ray.schedule import checkpoint_steps, coarse_steps, evaluated_steps, lr_factor, measured_steps
from ndt_ray.sink import Sink
from ndt_ray.spec import Trial
from ndt_ray.triggers import BEFORE, REASONS, Triggers

RUNNING, DIVERGED, FAILED = 0, 1, 2


def tracked_layers(tracked: Mapping[str, str], patterns: Sequence[str] | None, views: Views) -> list[Layer]:
    """The layers to measure, in forward order, and behind them those that are seen in further views; SpecError for a
    pattern that matches none."""
    chosen = list(tracked)
    for pattern in patterns or ():
        if not fnmatch.filter(chosen, pattern):
            raise SpecError(f"measure.layers: no tracked layer matches '{pattern}'{did_you_mean(pattern, chosen)}")
    if patterns:
        chosen = [path for path in chosen if any(fnmatch.fnmatchcase(path, p) for p in patterns)]
    index = {path: i for i, path in enumerate(tracked)}
    known = {path: views_of(tracked[path], views) for path in chosen}
    layers = [Layer(path, index[path], tracked[path], known[path][0]) for path in chosen]
    return layers + [Layer(path, index[path], tracked[path], view) for path in chosen for view in known[path][1:]]


class Recorder:
    """Schedules, probes and running state of what one pack records."""

    def __init__(
        self, engine: Engine, batches: Batches, data: Dataset, probes: Probes, layers: Sequence[Layer], sink: Sink
    ) -> None:
        self.engine, self.batches, self.data, self.probes, self.sink = engine, batches, data, probes, sink
        self.trials: list[Trial] = engine.trials
        self.ids = [t.trial_id for t in self.trials]
        first = self.trials[0]
        self.train, self.spec = first.train, first.measure
        own: dict[str, Layer] = {}
        for layer in layers:
            own.setdefault(layer.path, layer)
        self.layers, self.further = list(own.values()), [layer for layer in layers if layer is not own[layer.path]]
        steps = self.train.steps
        self.measured = frozenset(measured_steps(self.spec, steps))
        self.evaluated = frozenset(evaluated_steps(first.evaluate, steps))
        self.saved = frozenset(checkpoint_steps(first.checkpoint, steps))
        self.coarse = frozenset(coarse_steps(self.spec, steps))
        to = engine.device
        self.detect = data.test_x[probes.detect].to(to), data.test_y[probes.detect]
        self.confirm = data.test_x[probes.confirm].to(to), data.test_y[probes.confirm]
        self.held_out = data.test_x[probes.evaluation].to(to), data.test_y[probes.evaluation]
        self.observer = Observer(engine, self.layers)
        self.norms = LayerNorms(engine.arena.layout)
        self.start = engine.arena.weights.clone()
        self._before = torch.empty_like(self.start)
        self.velocity = velocity.VelocityTracker(self.detect[1].numpy()) if self.spec.velocity else None
        watched = first.checkpoint.on_event
        self.triggers = Triggers(watched, engine, self.layers, self.spec.every, steps) if watched else None
        self.status = np.zeros(len(self.trials), dtype=np.int64)
        self.last_step = np.zeros(len(self.trials), dtype=np.int64)
        self.errors = [""] * len(self.trials)
        self.scores: list[Scores | None] = [None] * len(self.trials)
        self.previous_measured = 0
        self.pending: list[tuple[int, list[int], np.ndarray]] = []
        self.batch_losses = np.full(len(self.trials), np.nan)

    # -- the life of a pack --------------------------------------------------------------------------------------

    def end(self) -> None:
        """The `outcomes` rows."""
        self.flush()
        names = {RUNNING: "finished", DIVERGED: "diverged", FAILED: "failed"}
        last = [s if status == RUNNING else None for s, status in zip(self.scores, self.status, strict=True)]
        self.sink.rows(
            "outcomes",
            {
                "trial_id": self.ids,
                "status": [names[int(s)] for s in self.status],
                "last_step": self.last_step.astype(np.int32),
                "final_loss": [s.loss if s else None for s in last],
                "final_accuracy": [s.accuracy if s else None for s in last],
                "error": [e or None for e in self.errors],
            },
        )

    def losses(self, step: int, losses: Tensor) -> None:
        """The losses of the update that led to `step`; lanes that failed or left the finite numbers are dropped."""
        values = losses.numpy()
        lanes = self.alive()
        for lane, error in list(self.engine.errors.items()):
            self.status[lane], self.errors[lane] = FAILED, f"{type(error).__name__}: {error}".partition("\n")[0]
            del self.engine.errors[lane]
        for lane in lanes:
            if not np.isfinite(values[lane]):
                self.status[lane] = DIVERGED
                self.engine.drop(lane)
        self.last_step[lanes] = step
        self.batch_losses = values
        self.pending.append((step, lanes, values[lanes]))

    def flush(self) -> None:
        """Hands the per-step losses to the sink."""
        if not self.pending:
            return
        self.sink.rows(
            "losses",
            {
                "trial_id": [self.ids[lane] for _, lanes, _ in self.pending for lane in lanes],
                "step": np.concatenate([np.full(len(lanes), step, np.int32) for step, lanes, _ in self.pending]),
                "loss": np.concatenate([values for _, _, values in self.pending]),
            },
        )
        self.pending.clear()

    def alive(self) -> list[int]:
        """Lanes that are still recorded."""
        return [lane for lane, alive in enumerate(self.engine.alive) if alive]

    def weights_before(self, step: int) -> Tensor | None:
        """A copy of the weights before the update that leads to `step`, if it is needed; good until the next one."""
        if step not in self.measured or not self.spec.dynamics:
            return None
        return self._before.copy_(self.engine.arena.weights)

    # -- measuring -----------------------------------------------------------------------------------------------

    def measure(self, step: int, before: Tensor | None) -> None:
        """Everything that is due on the measuring schedules at `step`."""
        lanes = self.alive()
        if step in self.measured and lanes:
            probe_scores = self._probe(step, lanes)
            self._scalars(step, lanes, before, probe_scores)
            self._judge(step, lanes)
            self.previous_measured = step
        if step in self.coarse and lanes:
            self._coarse(step, lanes)

    def _probe(self, step: int, lanes: list[int]) -> dict[str, np.ndarray]:
        """Measures all layers; the columns of loss and accuracy on the probe, a row a lane."""
        inputs, labels = self.detect
        parts = []
        for seen in self.observer.observe(inputs, lanes):
            parts.append(lane_scores(seen.logits, labels, self.data.inputs.classes))
            following = self.velocity is not None
            spectra = measure_layers(seen.activations, self.layers, linear=seen.linear, with_directions=following)
            measured = rows(spectra, self.spec.spectra)
            self._write(("measurements", "spectra"), step, seen, measured)
            if self.further:
                others = rows(measure_layers(seen.activations, self.further, linear=seen.linear), "none")
                ids = [self.ids[seen.lanes[place]] for place in others.lane]
                self.sink.rows("other_views", {"trial_id": ids, "step": _full(step, len(ids)), **others.measurements})
            turned = None
            if self.velocity is not None:
                table = self.velocity.update(step, seen.lanes, spectra)
                turned = table.columns
                ids = [self.ids[lane] for lane in table.lane]
                self.sink.rows("velocity", {"trial_id": ids, "step": _full(step, len(ids)), **turned})
            if self.triggers is not None and self.triggers.on_grid(step):
                self.triggers.see(step, seen.lanes, measured.measurements, turned)
        names = ("probe_loss", "probe_accuracy", "probe_class_accuracy")
        found = {name: np.concatenate(part) for name, part in zip(names, zip(*parts, strict=True), strict=True)}
        return {**found, "probe_class_accuracy": found["probe_class_accuracy"].astype(np.float32)}

    def _judge(self, step: int, lanes: list[int]) -> None:
        """Asks the detector, if there is one; the `triggers` rows."""
        if self.triggers is None or not self.triggers.on_grid(step):
            return
        found = self.triggers.judge(step, lanes)
        if found is not None:
            ids = [self.ids[lane] for lane in found.pop("lane")]
            self.sink.rows("triggers", {"trial_id": ids, **found})

    def _write(self, tables: tuple[str, str], step: int, seen: Observation, found: Rows) -> None:
        ids = [self.ids[seen.lanes[place]] for place in found.lane]
        common = {"trial_id": ids, "step": _full(step, len(ids))}
        self.sink.rows(tables[0], {**common, **found.measurements})
        self.sink.rows(tables[1], {**common, **found.spectra})

    def _scalars(self, step: int, lanes: list[int], before: Tensor | None, probe: Mapping[str, np.ndarray]) -> None:
        weights, grads = self.engine.arena.weights, self.engine.arena.grads
        found = self.norms.squares(None if step == 0 else grads, before, weights, self.start, lanes)
        by_layer = dict(zip(("grad", "update", "weight", "moved"), found, strict=True))
        total = {name: np.sqrt(values.sum(1)) for name, values in by_layer.items()}
        factor = lr_factor(self.train.schedule, step, self.train.steps)
        ids = [self.ids[lane] for lane in lanes]
        per_epoch = self.batches.per_epoch
        self.sink.rows(
            "scalars",
            {
                "trial_id": ids,
                "step": _full(step, len(ids)),
                "epoch": np.full(len(ids), step / per_epoch),
                "epoch_boundary": np.full(len(ids), step // per_epoch > self.previous_measured // per_epoch),
                "lr": [lane_lr(self.trials[lane], step, factor) for lane in lanes],
                "batch_loss": self.batch_losses[lanes],
                **probe,
                "grad_norm": total["grad"],
                "update_norm": total["update"],
                "weight_norm": total["weight"],
                "init_distance": total["moved"],
            },
        )
        if self.spec.dynamics:
            self._dynamics(step, ids, by_layer)

    def _dynamics(self, step: int, ids: list[str], squares: Mapping[str, np.ndarray]) -> None:
        layers = self.norms.layers
        with np.errstate(over="ignore"):  # a lane that diverges: inf
            norms = {name: np.sqrt(values).astype(np.float32).ravel() for name, values in squares.items()}
        self.sink.rows(
            "dynamics",
            {
                "trial_id": [i for i in ids for _ in layers],
                "step": _full(step, len(ids) * len(layers)),
                "layer": layers * len(ids),
                "layer_index": np.tile(np.arange(len(layers), dtype=np.int16), len(ids)),
                "grad_norm": norms["grad"],
                "update_norm": norms["update"],
                "weight_norm": norms["weight"],
                "init_distance": norms["moved"],
            },
        )

    def _coarse(self, step: int, lanes: list[int]) -> None:
        for lane in lanes:
            model = self.engine.models[lane]
            spectra = coarse.weight_spectra(model)
            n = len(next(iter(spectra.values())))
            self.sink.rows("weight_spectra", {"trial_id": [self.ids[lane]] * n, "step": _full(step, n), **spectra})
            moments = self.engine.arena.moments.get("exp_avg_sq")
            second = None if moments is None else self.engine.arena.export(lane, moments)
            curvature = coarse.curvature(model, *self.detect, second_moments=second, step=step, train=self.train)
            values = {name: [value] for name, value in curvature.items()}
            self.sink.rows("curvature", {"trial_id": [self.ids[lane]], "step": _full(step, 1), **values})

    def evaluate(self, step: int) -> None:
        """The held-out evaluation, where it is due."""
        if step not in self.evaluated:
            return
        inputs, labels = self.held_out
        lanes = self.alive()
        for lane in lanes:
            self.scores[lane] = scores(predict(self.engine.models[lane], inputs), labels, self.data.inputs.classes)
        found = [s for s in (self.scores[lane] for lane in lanes) if s is not None]
        self.sink.rows(
            "evaluations",
            {
                "trial_id": [self.ids[lane] for lane in lanes],
                "step": _full(step, len(lanes)),
                "loss": [s.loss for s in found],
                "accuracy": [s.accuracy for s in found],
                "class_accuracy": [s.class_accuracy.astype(np.float32) for s in found],
                "n": np.full(len(lanes), len(labels), np.int32),
            },
        )

    def checkpoint(self, step: int) -> None:
        """Planned and triggered checkpoints, and the confirm probe with them."""
        lanes = self.alive()
        wanted = dict.fromkeys(lanes, "planned") if step in self.saved else {}
        if self.triggers is not None:
            due = {lane: reason for lane, reason in self.triggers.due(step).items() if lane in lanes}
            wanted = {**due, **wanted}
            for past, own in self.triggers.past(step, self.saved).items():
                for lane in own:
                    state = self.triggers.ring.lane_state(lane, past)
                    self.sink.checkpoint(self.ids[lane], past, state, REASONS[BEFORE])
                with self.triggers.ring.put_back(own, past):
                    self.confirmations(past, own)
            self.triggers.remember(step)
        for lane in sorted(wanted):
            self.sink.checkpoint(self.ids[lane], step, self.engine.lane_state(lane), wanted[lane])
        if wanted:
            self.confirmations(step, sorted(wanted))

    def confirmations(self, step: int, lanes: list[int]) -> None:
        """Lanes on the confirm probe, as they are now, and without each block of its stimuli."""
        for seen in self._look(self.confirm[0], ("confirmations", "confirmation_spectra"), step, lanes):
            place, columns = without_blocks(seen.activations, self.layers, seen.linear)
            ids = [self.ids[seen.lanes[i]] for i in place]
            if ids:
                self.sink.rows("confirmation_blocks", {"trial_id": ids, "step": _full(step, len(ids)), **columns})

    def measurements(self, step: int, lanes: list[int]) -> None:
        """Lanes on the detect probe, as they are now; nothing is compared with what was before."""
        for _ in self._look(self.detect[0], ("measurements", "spectra"), step, lanes):
            pass

    def _look(self, inputs: Tensor, tables: tuple[str, str], step: int, lanes: list[int]) -> Iterator[Observation]:
        for seen in self.observer.observe(inputs, lanes):
            spectra = measure_layers(seen.activations, self.layers, linear=seen.linear)
            self._write(tables, step, seen, rows(spectra, self.spec.spectra))
            yield seen

    # -- state ---------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, np.ndarray]:
        """What a resumed recorder needs to go on identically."""
        errors = np.frombuffer("\0".join(self.errors).encode(), dtype=np.uint8)
        state: dict[str, np.ndarray] = {
            "status": self.status,
            "last_step": self.last_step,
            "errors": errors if errors.size else np.zeros(1, np.uint8),
            "previous_measured": np.array([self.previous_measured]),
        }
        if self.velocity is not None:
            state |= {f"velocity.{k}": v for k, v in self.velocity.state().items()}
        if self.triggers is not None:
            state |= {f"triggers.{k}": v for k, v in self.triggers.state().items()}
        return state

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """The inverse of `state`; KeyError where something is missing."""
        self.status, self.last_step = np.array(state["status"]), np.array(state["last_step"])
        self.errors = np.asarray(state["errors"]).tobytes().decode().split("\0")[: len(self.trials)]
        self.errors += [""] * (len(self.trials) - len(self.errors))
        self.previous_measured = int(state["previous_measured"][0])
        if self.velocity is not None:
            self.velocity.load({k[9:]: v for k, v in state.items() if k.startswith("velocity.")})
        if self.triggers is not None:
            self.triggers.load({k[9:]: v for k, v in state.items() if k.startswith("triggers.")})


def picked(state: Mapping[str, np.ndarray], lanes: Sequence[int]) -> dict[str, np.ndarray]:
    """The state of a recorder whose lane i is lane `lanes[i]` of the one that gave `state`."""
    known = np.asarray(state["errors"]).tobytes().decode().split("\0")
    known += [""] * (len(state["status"]) - len(known))
    errors = np.frombuffer("\0".join(known[lane] for lane in lanes).encode(), dtype=np.uint8)
    out: dict[str, np.ndarray] = {
        "status": np.asarray(state["status"])[list(lanes)],
        "last_step": np.asarray(state["last_step"])[list(lanes)],
        "errors": errors if errors.size else np.zeros(1, np.uint8),
        "previous_measured": state["previous_measured"],
    }
    for name, of in (("velocity", velocity.VelocityTracker.picked), ("triggers", Triggers.picked)):
        own = {k[9:]: v for k, v in state.items() if k.startswith(f"{name}.")}
        out |= {f"{name}.{k}": v for k, v in of(own, lanes).items()} if own else {}
    return out


def _full(step: int, n: int) -> np.ndarray:
    return np.full(n, step, np.int32)
