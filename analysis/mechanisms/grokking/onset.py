"""When a network memorised and when it began to generalise: the two descents of the held-out loss."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ndt_ray.analysis.mechanisms.grokking.fourier import Floats

Status = Literal["no_memorisation", "no_second_descent", "immediate", "grokked", "partial", "rebound"]

DROP = 0.8
"""Share of the peak that must be gone: the workbench's rule for the onset of the second descent."""
MEMORISED = 0.01
"""Of the uniform loss ln p: a training loss below it counts as memorised."""


@dataclass(frozen=True)
class Onset:
    """Steps of a trial's descents; None for what did not happen. Losses in nats."""

    status: Status
    memorised_step: int | None = None
    peak_step: int | None = None
    peak_loss: float | None = None
    turn_step: int | None = None
    inflection_step: int | None = None
    onset_step: int | None = None
    final_loss: float | None = None
    rebound: float | None = None
    confidence: float | None = None

    @property
    def delay(self) -> int | None:
        """Steps between memorising and the onset of the second descent."""
        if self.onset_step is None or self.memorised_step is None:
            return None
        return self.onset_step - self.memorised_step


def first_below(steps: Floats, values: Floats, level: float) -> int | None:
    """The first step at which a series is below a level; None where it never is."""
    below = np.flatnonzero(np.asarray(values) < level)
    return int(steps[below[0]]) if len(below) else None


def held_from(steps: Floats, reached: NDArray[np.bool_]) -> int | None:
    """The first step from which a condition holds to the end; None where the end does not meet it."""
    if not len(reached) or not reached[-1]:
        return None
    misses = np.flatnonzero(~reached)
    return int(steps[misses[-1] + 1 if len(misses) else 0])


def smoothed(steps: Floats, values: Floats, width: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(value, slope per step) of Gaussian-weighted local lines of SD `width` steps, at each step: uneven steps are
    fine. Where no second point has weight, the slope is 0."""
    t, y = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    apart = t[None, :] - t[:, None]
    weight = np.exp(-0.5 * (apart / width) ** 2)
    weight /= weight.sum(1, keepdims=True)
    mean_t, mean_y = (weight * apart).sum(1), weight @ y
    spread = (weight * apart**2).sum(1) - mean_t**2
    shared = (weight * apart * y[None, :]).sum(1) - mean_t * mean_y
    slope = np.where(spread > 1e-12 * width**2, shared / np.where(spread > 0, spread, 1.0), 0.0)
    return mean_y - slope * mean_t, slope


def second_descent(
    steps: Floats,
    test_loss: Floats,
    uniform: float,
    train: tuple[Floats, Floats] | None = None,
    *,
    drop: float = DROP,
    width: float = 0.01,
    good: float = 1e-5,
) -> Onset:
    """Find the second descent of a held-out loss; `train`: (steps, loss) of the training loss.

    Peak: the largest loss from the memorisation on (from the start where that is not known). Onset: the first step
    after it at which `drop` of it is gone. Inflection: the steepest descent after the peak of the loss smoothed over
    `width` of the run; turn: where, before it, the rate first reaches 10 % of that. Status: `partial` ends above
    `good`, `rebound` .2 above its smallest loss; `immediate` where the peak is below half of the `uniform` loss.
    """
    t, y = np.asarray(steps, np.float64), np.asarray(test_loss, np.float64)
    known = np.isfinite(y)
    t, y = t[known], y[known]
    memorised = None if train is None else first_below(train[0], train[1], MEMORISED * uniform)
    if len(t) < 3:
        return Onset("no_memorisation" if train is not None and memorised is None else "no_second_descent", memorised)
    start = 0 if memorised is None else int(np.searchsorted(t, memorised))
    if train is not None and memorised is None:
        peak_step, peak_loss = _descent(t, y, 0, drop, width)[:2]
        return Onset("no_memorisation", peak_step=peak_step, peak_loss=peak_loss, final_loss=float(y[-1]))
    start = min(start, len(t) - 1)
    peak_step, peak_loss, turn, inflection, reached, confidence = _descent(t, y, start, drop, width)
    rebound = float(y[-1] - y.min())
    status: Status
    if peak_loss < 0.5 * uniform:  # it generalised as it memorised: what follows is no second descent
        status, turn, inflection, reached, confidence = "immediate", None, None, None, None
    elif reached is None:
        status, turn, inflection, confidence = "no_second_descent", None, None, None
    elif rebound >= 0.2:
        status = "rebound"
    else:
        status = "partial" if y[-1] > good else "grokked"
    return Onset(status, memorised, peak_step, peak_loss, turn, inflection, reached, float(y[-1]), rebound, confidence)


def _descent(t: Floats, y: Floats, start: int, drop: float, width: float) -> tuple[Any, ...]:
    """(peak step, peak loss, turn, inflection, onset, confidence) from place `start` on."""
    peak = start + int(y[start:].argmax())
    top = float(y[peak])
    gone = np.flatnonzero(y[peak:] <= (1 - drop) * top) if top > 0 else np.array([], dtype=int)
    if not len(gone):
        return int(t[peak]), top, None, None, None, None
    end = peak + int(gone[0])
    gap = float(np.median(np.diff(t)))
    _, slope = smoothed(t, y, max(width * (t[-1] - t[0]), gap))
    rate = -slope[peak:]
    steepest = int(rate.argmax())
    slow = np.flatnonzero(rate[: steepest + 1] < 0.1 * rate[steepest])
    turn = int(slow[-1]) + 1 if len(slow) else 0
    downhill = float((rate[turn : end - peak + 1] > 0).mean()) if end - peak >= turn else 1.0
    confidence = (top - float(y[peak:].min())) / top * downhill
    return int(t[peak]), top, int(t[peak + min(turn, steepest)]), int(t[peak + steepest]), int(t[end]), confidence


def half_way(steps: Floats, values: Floats, *, log: bool = False) -> int | None:
    """The first step at which a series has made half of the way from its first value to its farthest from it.

    None for under 3 values, or a way under 5 % of the largest magnitude. `log`: of the logarithm (losses).
    """
    known = np.isfinite(np.asarray(values, np.float64))
    t, y = np.asarray(steps)[known], np.asarray(values, np.float64)[known]
    if log:
        y = np.log(np.maximum(y, 1e-12))
    if len(y) < 3:
        return None
    far = y[np.abs(y - y[0]).argmax()]
    if abs(far - y[0]) <= 0.05 * np.abs(y).max():
        return None
    return int(t[np.flatnonzero((y - y[0]) / (far - y[0]) >= 0.5)[0]])
