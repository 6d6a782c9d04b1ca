"""What a tracker costs the loop that it is in, from its own clock."""

import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Overhead:
    """Wall time spent inside `log`, in this process. Its text is one line.

    Hooks that copy outputs during forward passes are not in it. On a GPU it includes waiting for the training step
    that is still under way there: `log` is where the loop first needs its results.
    """

    n_logged: int
    """Calls of `log`."""
    n_measured: int
    """Of these, those that measured."""
    seconds_per_measurement: float | None
    """Median over calls that measured; None before the first."""
    seconds_per_measurement_p90: float | None
    """Their 90th percentile; None before the first."""
    share: float | None
    """Of the loop's wall time from the end of the first call to the end of the last, 0 to 1: that inside `log`. The
    first call is left out, as is the training step before it. None before the second call."""
    seconds_per_step: float | None
    """Mean time inside `log` for each logged step of that stretch; None before the second call."""

    @property
    def text(self) -> str:
        """One line."""
        if self.seconds_per_measurement is None or self.seconds_per_measurement_p90 is None:
            told = f"nothing measured in {self.n_logged:,} logged steps"
        else:
            median, high = _duration(self.seconds_per_measurement), _duration(self.seconds_per_measurement_p90)
            told = f"{self.n_measured:,} measurements of {median} (90th percentile {high})"
        if self.share is None or self.seconds_per_step is None:
            return told
        return f"{told}; log took {self.share:.1%} of the loop, {_duration(self.seconds_per_step)} a step"

    def __str__(self) -> str:
        return self.text


class Stopwatch:
    """Times calls of `log`: `begun = watch.clock()` where one begins, `watch.stop(begun, measured)` where it ends."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._durations = array("d")
        self._calls = 0
        self._inside = 0.0
        self._first_end = self._last_end = 0.0

    def stop(self, begun: float, measured: bool) -> None:
        """A call that began at `begun` ends now."""
        ended = self.clock()
        if measured:
            self._durations.append(ended - begun)
        if self._calls:
            self._inside += ended - begun
        else:
            self._first_end = ended
        self._calls, self._last_end = self._calls + 1, ended

    def overhead(self) -> Overhead:
        """So far."""
        median = high = share = per_step = None
        if self._durations:
            median, high = (float(q) for q in np.quantile(np.frombuffer(self._durations), (0.5, 0.9)))
        if self._calls > 1:
            per_step = self._inside / (self._calls - 1)
            elapsed = self._last_end - self._first_end
            share = self._inside / elapsed if elapsed > 0 else None
        return Overhead(self._calls, len(self._durations), median, high, share, per_step)


def _duration(seconds: float) -> str:
    """Three digits with a unit that suits them."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"
