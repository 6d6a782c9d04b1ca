"""Watching measured values while training: a change in any series of a lane, found within a few measurements of it.

Each series is followed at two time scales: as measured, and in means of four. On each, a local line (least squares
with weights falling by 5 % a measurement) forecasts the next value; the errors of the forecasts are whitened (AR(1)),
centred and divided by a running robust scale, cut off at three, and summed by two one-sided CUSUMs (Page 1954) with an
allowance of half a scale. What a line forecasts is no change: a drift, or a relaxation once it is slow against twenty
measurements. A sum above its threshold is an alarm; the thresholds are those of simulated noise (`THRESHOLDS`).

Everything is elementwise arithmetic that rounds exactly, so a lane's alarms are the same in any pack; the state is one
array, so a resumed run goes on with the same alarms.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FORGET = 0.95
"""Weight of a value relative to the next newer one in the local line."""
MEMORY = 32
"""Over how many values scale, centre and correlation of the forecast errors are averaged."""
WARM = 12
"""Values of a series before its errors are judged."""
ALLOWANCE = 0.5
"""What a CUSUM leaves out of every standardised error: half the smallest lasting shift that it seeks."""
CUT = 3.0
"""Standardised errors count as this at most: no single outlier makes an alarm."""
CAUTION = 8.0
"""The scale of an estimate from m values is taken 1 + 8 / m times as large: the first ones must not alarm."""
MOST_PHI = 0.95
LOWEST = 5.0
"""Of all thresholds: two values, at 2.5 each, are no alarm, whatever they are."""
LEAST_CHANGE = 0.01
"""Change of the logarithm since the CUSUM last stood at zero, below which there is no alarm: 1 %."""
RESOLUTION = 1e-6
"""Smallest scale of a logarithm: what is stored is float32."""
VELOCITY_FLOOR = 1e-6
"""Added to a velocity before its logarithm: turns smaller than this are nothing."""


@dataclass(frozen=True)
class Scale:
    """A time scale: measurements a value, and values left out at the start, where the first transient is."""

    name: str
    block: int
    skip: int

    def judged(self, n: int) -> int:
        """How many of `n` measurements end a value that is judged."""
        return max(0, n // self.block - self.skip - WARM)


SCALES = (Scale("single", 1, 5), Scale("fours", 4, 2))

THRESHOLDS: dict[str, tuple[tuple[float, float], ...]] = {
    "single": ((0.01, 2.44), (0.001, 3.59), (0.0001, 4.7), (1e-05, 5.95)),
    "fours": ((0.01, 1.94), (0.001, 3.01), (0.0001, 3.98), (1e-05, 4.94)),
}
"""By scale: alarms per judged value, and the threshold that gives at most so many on each of the null families.

Written by tools/calibrate_online.py --series 100000.
"""


def threshold(scale: Scale, rate: float) -> float:
    """Of a CUSUM, for `rate` false alarms per judged value: linear in the rate's logarithm; beyond the table, 1 more
    for every tenth of the rate."""
    rates, heights = zip(*THRESHOLDS[scale.name], strict=True)
    decades = [-math.log10(r) for r in rates]
    beyond = max(0.0, -math.log10(rate) - decades[-1])
    return max(float(np.interp(-math.log10(rate), decades, heights)) + beyond, LOWEST)


class Cusums:
    """N series at one time scale: local lines, their errors, and the two sums of each.

    A value that is not finite is left out: its series stands still.
    """

    def __init__(self, n: int, scale: Scale) -> None:
        self.scale = scale
        self.state = np.zeros((_ROWS, n))
        self.state[_SKIPPED] = -scale.skip

    def update(self, step: int, values: Floats) -> NDArray[np.bool_]:
        """Takes a measurement of each series, `[N]`; returns which of them ended a value that was judged."""
        total, count, skipped = self.state[: _SKIPPED + 1]
        here = np.isfinite(values)
        total += np.where(here, values, 0.0)
        count += here
        full = count >= self.scale.block
        mean = total / np.maximum(count, 1.0)
        total[full] = count[full] = 0.0
        used: NDArray[np.bool_] = full & (skipped >= 0)
        skipped += full & (skipped < 0)
        return self._value(step, mean, used) if used.any() else used

    def _value(self, step: int, value: Floats, here: NDArray[np.bool_]) -> NDArray[np.bool_]:
        state = self.state
        n, seen = state[_N], state[_N] - _LINE  # errors before this one
        # The line: ages grow by one, weights fall.
        s0, s1, s2, t0, t1 = state[_SUMS]
        sums = FORGET * np.stack((s0, s1 + s0, s2 + 2 * s1 + s0, t0, t1 + t0))
        drawn = n >= _LINE
        line = sums[2] * sums[3] - sums[1] * sums[4]
        error = np.where(drawn, value - line / np.where(drawn, sums[0] * sums[2] - sums[1] * sums[1], 1.0), 0.0)
        sums[0] += 1.0
        sums[3] += value
        # Its errors: whitened, centred, in units of their scale.
        judged: NDArray[np.bool_] = here & (n >= WARM)
        before, (cross, square, scale, centre) = state[_ERROR], state[_MOVING]
        white = error - np.clip(cross / np.maximum(square, _TINY), 0.0, MOST_PHI) * before
        beyond = white - centre
        limit = np.where(judged, CUT * scale, np.inf)
        cut, cut_before, cut_white = np.clip(np.stack((error, before, white)), -limit, limit)
        spread = np.minimum(np.abs(beyond), limit) * _MEAN_TO_SD
        held = np.clip(seen, 1.0, MEMORY)
        moving = state[_MOVING] + (np.stack((cut * cut_before, cut * cut, spread, cut_white)) - state[_MOVING]) / held
        z = np.clip(beyond / (np.maximum(scale, RESOLUTION) * (1 + CAUTION / held)), -CUT, CUT)
        # The two sums, and where they last stood at zero.
        risen = np.where(judged, np.maximum(0.0, state[_RISEN] + np.stack((z, -z)) - ALLOWANCE), 0.0)
        onset = np.where(risen > 0, state[_ONSET], float(step))
        level = np.where(risen > 0, state[_LEVEL], value)
        moving = np.where(seen >= 1, moving, state[_MOVING])
        new = np.concatenate((state[:_N], (n + 1)[None], sums, error[None], moving, risen, onset, level))
        self.state = new if here.all() else np.where(here, new, state)
        return judged

    def restart(self, series: slice) -> None:
        """Forgets these series: they are judged again once they are warm."""
        self.state[:, series] = 0.0

    def heights(self) -> Floats:
        """The larger sum of each series `[N]`."""
        found: Floats = self.state[_RISEN].max(0)
        return found

    def since(self, series: int) -> tuple[bool, int, float]:
        """Of one series' larger sum: whether it is the upper, the step from which it rose, and the value there."""
        side = int(self.state[_RISEN, series].argmax())
        return side == 0, int(self.state[_ONSET][side, series]), float(self.state[_LEVEL][side, series])

    def levels(self) -> Floats:
        """Where each series' larger sum last stood at zero, the value `[N]`."""
        upper = self.state[_RISEN][0] >= self.state[_RISEN][1]
        found: Floats = np.where(upper, self.state[_LEVEL][0], self.state[_LEVEL][1])
        return found


_TOTAL, _COUNT, _SKIPPED, _N, _ERROR = 0, 1, 2, 3, 9
"""Rows of the state: a block's sum and number, values left out (negative while some are), used; the last error."""
_SUMS, _MOVING = slice(4, 9), slice(10, 14)
"""Weighted sums of 1, age, age², value and age × value; averages of products and squares of errors, scale, centre."""
_RISEN, _ONSET, _LEVEL = slice(14, 16), slice(16, 18), slice(18, 20)
"""Upper and lower CUSUM; the steps at which they last stood at zero; the values there."""
_ROWS = 20
_LINE = 3
"""Values that a line is drawn through before it forecasts."""
_MEAN_TO_SD = math.sqrt(math.pi / 2)
_TINY = 1e-300


class Alarm(NamedTuple):
    """What a lane's detector saw: the series whose sum is largest relative to its threshold."""

    series: int
    scale: Scale
    rising: bool
    statistic: float
    threshold: float
    onset: int
    """Step of the last measurement at which its sum stood at zero: the change came later."""
    change: float
    """Of the logarithm, since the onset."""
    together: int
    """Series of the lane above their thresholds at this step."""


class Watch:
    """All series of the lanes of a pack: `values[lane, series]` in, alarms by lane out.

    `false_alarms` are expected in a lane without any change, over its series and scales, in `measurements` of each; the
    bound holds whatever the series' dependence on each other. After an alarm the lane's series begin anew, so that it
    cannot alarm again for `WARM` measurements.
    """

    def __init__(self, lanes: int, series: int, measurements: int, false_alarms: float) -> None:
        self.lanes, self.series = lanes, series
        judged = {s: s.judged(measurements) for s in SCALES}
        used = [s for s in SCALES if judged[s] and series]
        share = false_alarms / max(len(used), 1)
        self.thresholds = {s: threshold(s, min(share / (series * judged[s]), _HIGHEST)) for s in used}
        self.cusums = {s: Cusums(lanes * series, s) for s in used}

    def first(self, every: int) -> int | None:
        """The first step at which there can be an alarm, if there is any; for measurements `every` so many steps."""
        # The values of steps 0, every, ...: the last one left out or warming up is number skip + WARM.
        return (
            min(((s.skip + WARM + 1) * s.block - 1 for s in self.cusums), default=-1) * every if self.cusums else None
        )

    def update(self, step: int, values: Floats, lanes: Sequence[int]) -> dict[int, Alarm]:
        """Takes `values` `[lanes, series]` of measures on the grid; NaN for what was not measured."""
        logs = values.reshape(-1)
        height = np.zeros((len(self.cusums), self.lanes * self.series))
        for i, (scale, cusums) in enumerate(self.cusums.items()):
            judged = cusums.update(step, logs)
            risen = cusums.heights() / self.thresholds[scale]
            above = judged & (risen > 1.0)
            if above.any():
                height[i] = np.where(above & (np.abs(logs - cusums.levels()) >= LEAST_CHANGE), risen, 0.0)
        alarms = {}
        high = {int(place) // self.series for place in np.flatnonzero(height.any(0))}
        for lane in sorted(high & set(lanes)):
            own = slice(lane * self.series, (lane + 1) * self.series)
            i, series = divmod(int(height[:, own].argmax()), self.series)
            scale, at = list(self.cusums)[i], lane * self.series + series
            rising, onset, level = self.cusums[scale].since(at)
            limit, together = self.thresholds[scale], int((height[:, own] > 0).any(0).sum())
            statistic = float(self.cusums[scale].heights()[at])
            alarms[lane] = Alarm(series, scale, rising, statistic, limit, onset, float(logs[at]) - level, together)
            for cusums in self.cusums.values():
                cusums.restart(own)
        return alarms

    def state(self) -> dict[str, NDArray[Any]]:
        """What `load` needs to go on with the same alarms."""
        return {scale.name: cusums.state for scale, cusums in self.cusums.items()}

    def load(self, state: dict[str, NDArray[Any]]) -> None:
        """The inverse of `state`; KeyError where something is missing."""
        for scale, cusums in self.cusums.items():
            cusums.state = np.array(state[scale.name], dtype=np.float64).reshape(cusums.state.shape)

    @staticmethod
    def picked(state: Mapping[str, NDArray[Any]], lanes: Sequence[int], of: int) -> dict[str, NDArray[Any]]:
        """The state of a watch whose lane i is lane `lanes[i]` of the `of` lanes that gave `state`."""
        return {
            name: rows.reshape(len(rows), of, -1)[:, list(lanes)].reshape(len(rows), -1) for name, rows in state.items()
        }


_HIGHEST = 0.01
"""Alarms per judged value that a threshold is given for, at most."""


def logarithm(measure: str, values: Floats) -> Floats:
    """Of a measure's values, one by one, for the same bits in any shape; NaN where there is none."""
    floor = VELOCITY_FLOOR if measure == "velocity" else 0.0
    flat = [math.log(v + floor) if 0 < v + floor < math.inf else math.nan for v in values.ravel().tolist()]
    return np.array(flat, dtype=np.float64).reshape(values.shape)
