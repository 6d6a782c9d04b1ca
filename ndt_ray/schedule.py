"""When a trial measures, evaluates and saves, and its learning rate over time: pure functions of the spec.

A step counts optimizer updates done: 0 is the initialisation, `steps` the end, so there are `steps` + 1 of them.
"""

import math
from collections.abc import Iterable

from ndt_ray.errors import SpecError
from ndt_ray.spec import Checkpoint, Evaluate, Measure, Schedule


def measured_steps(measure: Measure, steps: int) -> list[int]:
    """Steps at which the detect probe is measured, ascending; 0 and `steps` are always among them."""
    return _within(
        steps,
        range(0, steps, measure.every),
        range(min(measure.dense_until, steps) + 1 if measure.dense_until else 0),
        log_spaced(measure.log, steps),
        (0, steps),
    )


def evaluated_steps(evaluate: Evaluate, steps: int) -> list[int]:
    """Steps at which the held-out set is evaluated, ascending: 0, `steps`, and every `every` between them."""
    return _within(steps, range(0, steps, evaluate.every or max(steps, 1)), (0, steps))


def checkpoint_steps(checkpoint: Checkpoint, steps: int) -> list[int]:
    """Steps with a planned checkpoint, ascending; SpecError for one behind the end of training.

    `fractions` of `steps` are rounded half up; `every` n means n, 2n, ..., not 0, which any seed gives back.
    """
    late = [step for step in checkpoint.at if step > steps]
    if late:
        raise SpecError(f"checkpoint.at: {late[0]} is behind the last step ({steps=}): remove it or train longer")
    return _within(
        steps,
        checkpoint.at,
        (math.floor(f * steps + 0.5) for f in checkpoint.fractions),
        range(checkpoint.every, steps + 1, checkpoint.every) if checkpoint.every else (),
        log_spaced(checkpoint.log, steps),
    )


def coarse_steps(measure: Measure, steps: int) -> list[int]:
    """Steps of the coarse schedule (weight spectra, curvature): none, or 0, every `coarse`, and `steps`."""
    return _within(steps, range(0, steps, measure.coarse), (0, steps)) if measure.coarse else []


def log_spaced(n: int, steps: int) -> list[int]:
    """`n` different steps from 1 to `steps`, equally spaced in their logarithm as far as whole numbers allow.

    All of 1 ... `steps` where `n` is larger than that; the end alone for n = 1.
    """
    if n >= steps:
        return list(range(1, steps + 1)) if n else []
    if n <= 1:
        return [steps] if n else []
    spaced: list[int] = []
    for i in range(n):
        nearest = math.floor(steps ** (i / (n - 1)) + 0.5)
        # Room is left for those still to come: rounding must not push the last ones behind the end.
        spaced.append(min(max(nearest, spaced[-1] + 1 if spaced else 1), steps - (n - 1 - i)))
    return spaced


def lr_factor(schedule: Schedule, step: int, steps: int) -> float:
    """What the learning rate is multiplied by in the update from `step` to `step` + 1, of `steps` updates in all.

    Warm-up gives (step + 1) / warmup, so that the first update moves and the last of it is at 1. The cosine then falls
    from 1 to `final`, which it would reach with the update after the last (Loshchilov and Hutter 2017, one cycle).
    """
    if not 0 <= step <= steps:
        raise ValueError(f"0 <= step <= steps must hold, but got ({step=}, {steps=})")
    if step < schedule.warmup:
        return (step + 1) / schedule.warmup
    if schedule.name == "constant" or schedule.warmup >= steps:
        return 1.0
    progress = (step - schedule.warmup) / (steps - schedule.warmup)
    return schedule.final + (1 - schedule.final) * 0.5 * (1 + math.cos(math.pi * progress))


def _within(steps: int, *parts: Iterable[int]) -> list[int]:
    return sorted({step for part in parts for step in part if 0 <= step <= steps})
