"""One fused optimizer over all lanes; lanes may differ in learning rate, weight decay and frozen layers."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ndt_ray.lanes.arena import Arena, Layout
from ndt_ray.schedule import lr_factor
from ndt_ray.spec import Trial

MOMENTS = {"adam": ("exp_avg", "exp_avg_sq"), "adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum",)}


@dataclass(frozen=True)
class Group:
    """Arena slices that share learning rate and weight decay."""

    lr: float
    weight_decay: float
    offset: int
    """Added to the step that the schedule is read at."""
    slices: tuple[tuple[int, int, int], ...]
    """(lane, start, stop); a lane of -1 stands for all lanes."""


def frozen_prefix(trial: Trial, update: int) -> str | None:
    """Path of the layer that this trial does not train in an update: always, or in the window of its control."""
    c = trial.control
    if c.kind != "frozen" or (c.at is not None and c.until is not None and not c.at <= update < c.until):
        return None
    return c.layer


def base_lr(trial: Trial) -> float:
    """The trial's learning rate; 0 for the `lr0` control."""
    return 0.0 if trial.control.kind == "lr0" else trial.train.lr


def lr_scale(trial: Trial, update: int) -> float:
    """What a control makes of the trial's learning rate in an update, beside the schedule's factor."""
    c = trial.control
    inside = c.kind == "lr" and (c.at or 0) <= update and (c.until is None or update < c.until)
    return c.factor if inside and c.factor is not None else 1.0


def lr_offset(trial: Trial, update: int) -> int:
    """What a control adds to the step that the schedule is read at."""
    c = trial.control
    return c.lr_from - c.ends if c.lr_from is not None and c.ends is not None and c.ends <= update else 0


def lane_lr(trial: Trial, update: int, factor: float) -> float:
    """The learning rate of an update; `factor` of the schedule, for lanes that follow it."""
    offset = lr_offset(trial, update)
    return base_lr(trial) * lr_scale(trial, update) * (_factor(trial, update + offset) if offset else factor)


def _factor(trial: Trial, position: int) -> float:
    """Of the schedule at a step, or at its last one where the step is behind it."""
    steps = trial.train.steps
    return lr_factor(trial.train.schedule, min(position, steps), steps)


class Optimizer:
    """Adam, AdamW or SGD with momentum (torch's fused kernels) over an arena.

    Lanes with equal hyper-parameters and nothing frozen are one tensor, whatever their number: kernels are
    elementwise and slices padded, so the grouping cannot be seen in the result.
    """

    def __init__(self, trials: Sequence[Trial], arena: Arena) -> None:
        self.first, self.train = trials[0], trials[0].train
        self.arena = arena
        turns = {0, *(step for t in trials for step in (t.control.at, t.control.until) if step is not None)}
        self.turns = sorted(turns)  # updates at which a layer may freeze or thaw
        self.groups = {turn: _groups(trials, arena, turn) for turn in self.turns}
        self.steps_done = torch.zeros((), device=arena.weights.device)

    def step(self, update: int, factor: float) -> None:
        """The update that leads from step `update` to `update` + 1, with the schedule's `factor` on each lr."""
        a = self.arena
        for group in self.groups[self.turns[bisect.bisect_right(self.turns, update) - 1]]:
            weights = _slices(a.weights, group)
            grads = _slices(a.grads, group)
            moments = [_slices(m, group) for m in a.moments.values()]
            own = _factor(self.first, update + group.offset) if group.offset else factor
            self._fused(weights, grads, moments, group, update, own)

    def _fused(
        self,
        weights: list[Tensor],
        grads: list[Tensor],
        moments: list[list[Tensor]],
        group: Group,
        update: int,
        factor: float,
    ) -> None:
        t = self.train
        lr, decay = group.lr * factor, group.weight_decay
        if t.optimizer == "sgd":
            torch._fused_sgd_(
                weights,
                grads,
                moments[0] if t.momentum else [],
                weight_decay=decay,
                momentum=t.momentum,
                lr=lr,
                dampening=0.0,
                nesterov=False,
                maximize=False,
                is_first_step=update == 0,
            )
            return
        fused = torch._fused_adam_ if t.optimizer == "adam" else torch._fused_adamw_
        # The kernels read the number of this update, counted from 1, from a tensor.
        count = self.steps_done.fill_(update + 1)
        fused(
            weights,
            grads,
            moments[0],
            moments[1],
            [],
            [count] * len(weights),
            lr=lr,
            beta1=t.betas[0],
            beta2=t.betas[1],
            weight_decay=decay,
            eps=t.eps,
            amsgrad=False,
            maximize=False,
        )


def _groups(trials: Sequence[Trial], arena: Arena, update: int) -> list[Group]:
    by_value: dict[tuple[float, float, int], list[tuple[int, int, int]]] = {}
    for lane, trial in enumerate(trials):
        runs = _trained_runs(arena.layout, frozen_prefix(trial, update))
        value = base_lr(trial) * lr_scale(trial, update), trial.train.weight_decay, lr_offset(trial, update)
        by_value.setdefault(value, []).extend((lane, a, b) for a, b in runs)
    whole = {(lane, 0, arena.layout.width) for lane in range(len(trials))}
    groups = []
    for (lr, decay, offset), slices in by_value.items():
        one = set(slices) == whole
        groups.append(Group(lr, decay, offset, ((-1, 0, arena.layout.width),) if one else tuple(slices)))
    return groups


def _trained_runs(layout: Layout, frozen: str | None) -> list[tuple[int, int]]:
    """Contiguous stretches of a row that are trained."""
    if frozen is None:
        return [(0, layout.width)]
    runs: list[tuple[int, int]] = []
    for slot in layout:
        if slot.name == frozen or slot.name.startswith(frozen + "."):
            continue
        if runs and runs[-1][1] == slot.start:
            runs[-1] = (runs[-1][0], slot.stop)
        else:
            runs.append((slot.start, slot.stop))
    return runs


def _slices(rows: Tensor, group: Group) -> list[Tensor]:
    return [rows if lane < 0 else rows[lane, a:b] for lane, a, b in group.slices]
