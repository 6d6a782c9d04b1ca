"""Checkpoints that a run takes of itself: an alarm of its detector becomes states before, at and after it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ndt_ray.lanes import Engine
from ndt_ray.measurement.spectra import Layer
from ndt_ray.online import Alarm, Watch, logarithm
from ndt_ray.ring import Ring
from ndt_ray.spec import OnEvent

BEFORE, EVENT, AFTER = range(3)
REASONS = ("event-before", "event", "event-after")


class Triggers:
    """Watches the measures of a pack's lanes on the grid `every` so many steps, and keeps their recent states."""

    def __init__(self, spec: OnEvent, engine: Engine, layers: Sequence[Layer], every: int, steps: int) -> None:
        self.spec, self.engine, self.layers = spec, engine, list(layers)
        self.every, self.steps = every, steps
        lanes = len(engine.models)
        self.series = [(layer, measure) for measure in spec.measures for layer in self.layers]
        self.watch = Watch(lanes, len(self.series), steps // every + 1, spec.false_alarms_per_run)
        self.ring = Ring(engine, spec.keep)
        first = self.watch.first(every)
        self.watching = first is not None and first <= steps
        self.values = np.full((lanes, len(self.series)), np.nan)
        self.history = np.full((lanes, spec.most, len(REASONS)), -1, dtype=np.int64)
        """Steps of the checkpoints of each lane's triggers; -1 where there is none."""
        self.alarms: dict[int, Alarm] = {}
        self.afters: dict[int, list[int]] = {}
        """Lanes by the step of a checkpoint after their trigger."""

    def on_grid(self, step: int) -> bool:
        """Whether the measures of this step are watched."""
        return self.watching and step % self.every == 0

    def see(
        self, step: int, lanes: Sequence[int], measured: Mapping[str, Any], velocity: Mapping[str, Any] | None
    ) -> None:
        """Columns of `measurements` and `velocity` of some lanes, layer by layer, lanes in order."""
        n, at = len(self.layers), np.asarray(lanes)
        for i, measure in enumerate(self.spec.measures):
            if measure != "velocity":
                logs = logarithm(measure, np.asarray(measured[measure], dtype=np.float64))
            elif velocity is not None:
                logs = logarithm(measure, np.asarray(velocity[measure], dtype=np.float64))
                # Only turns over one distance of the grid: what follows dense measurements is no part of the series.
                whole = [before == step - self.every for before in velocity["previous_step"][: len(lanes)]]
                logs = np.where(np.tile(whole, n), logs, np.nan)
            else:
                continue
            self.values[at, i * n : (i + 1) * n] = logs.reshape(n, len(lanes)).T

    def judge(self, step: int, lanes: Sequence[int]) -> dict[str, Any] | None:
        """Takes what was seen at a step of the grid; the columns of `triggers`, if there is an alarm (but trial_id)."""
        found = self.watch.update(step, self.values, lanes)
        self.values[:] = np.nan
        left = {lane: int((self.history[lane, :, EVENT] < 0).sum()) for lane in found}
        self.alarms = {lane: alarm for lane, alarm in found.items() if left[lane]}
        if not self.alarms:
            return None
        rows = []
        for lane, alarm in self.alarms.items():
            number = self.spec.most - left[lane]
            before, after = self.ring.newest(alarm.onset), min(step + self.spec.after * self.every, self.steps)
            self.history[lane, number] = -1 if before is None else before, step, after if after > step else -1
            rows.append(self._row(lane, number, alarm))
        self._plan()
        return {name: [row[name] for row in rows] for name in rows[0]}

    def _row(self, lane: int, number: int, alarm: Alarm) -> dict[str, Any]:
        layer, measure = self.series[alarm.series]
        before, step, after = (int(s) for s in self.history[lane, number])
        return {
            "lane": lane,
            "step": step,
            "number": number + 1,
            "layer": layer.path,
            "layer_index": layer.index,
            "view": "kernel" if measure == "velocity" else layer.view,
            "measure": measure,
            "block": alarm.scale.block,
            "direction": "increase" if alarm.rising else "decrease",
            "statistic": alarm.statistic,
            "threshold": alarm.threshold,
            "onset_step": alarm.onset,
            "change": alarm.change,
            "together": alarm.together,
            "before_step": None if before < 0 else before,
            "after_step": None if after < 0 else after,
        }

    def due(self, step: int) -> dict[int, str]:
        """Lanes that a checkpoint is due of now, and why."""
        after = dict.fromkeys(self.afters.get(step, ()), REASONS[AFTER])
        return {**after, **dict.fromkeys(self.alarms, REASONS[EVENT])}

    def past(self, step: int, saved: frozenset[int]) -> dict[int, list[int]]:
        """Lanes by the step of the state that alarms of this step want of the ring, where none was saved then."""
        found: dict[int, list[int]] = {}
        for lane in self.alarms:
            own = self.history[lane]
            before = int(own[own[:, EVENT] == step][0, BEFORE])
            if before >= 0 and before not in saved and (own == before).sum() == 1:
                found.setdefault(before, []).append(lane)
        return found

    def _plan(self) -> None:
        self.afters = {}
        for lane, number in np.argwhere(self.history[:, :, AFTER] >= 0).tolist():
            self.afters.setdefault(int(self.history[lane, number, AFTER]), []).append(lane)

    def remember(self, step: int) -> None:
        """Keeps the state of this step, if it is one of those to be kept."""
        self.alarms = {}
        if not self.watching or step % (self.every * self.spec.spacing):
            return
        if (self.history[:, -1, EVENT] < 0).any():
            self.ring.take(step)

    def state(self) -> dict[str, NDArray[Any]]:
        """What `load` needs to go on identically."""
        watch = {f"watch.{k}": v for k, v in self.watch.state().items()}
        return {"history": self.history, **watch, **{f"ring.{k}": v for k, v in self.ring.state().items()}}

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `state`; KeyError where something is missing."""
        self.history = np.array(state["history"]).reshape(self.history.shape)
        self._plan()
        self.watch.load({k[6:]: v for k, v in state.items() if k.startswith("watch.")})
        self.ring.load({k[5:]: v for k, v in state.items() if k.startswith("ring.")})

    @staticmethod
    def picked(state: Mapping[str, NDArray[Any]], lanes: Sequence[int]) -> dict[str, NDArray[Any]]:
        """The state of triggers whose lane i is lane `lanes[i]` of the ones that gave `state`."""
        history = np.asarray(state["history"])
        watch = Watch.picked({k[6:]: v for k, v in state.items() if k.startswith("watch.")}, lanes, len(history))
        ring = Ring.picked({k[5:]: v for k, v in state.items() if k.startswith("ring.")}, lanes)
        out = {f"watch.{k}": v for k, v in watch.items()} | {f"ring.{k}": v for k, v in ring.items()}
        return {"history": history[list(lanes)], **out}
