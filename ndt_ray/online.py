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
from collections.abc import Sequence
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

    A value that is not finite is left out: its series stands still. `up` and `down` are the sums `[N]`; where one
    stands at zero, `onset` `[2, N]` is the step of the last value and `level` `[2, N]` the value.
    """

    def __init__(self, n: int, scale: Scale) -> None:
        self.scale = scale
        self.state = np.zeros((len(_FIELDS), n))
        self.state[_PLACE["skipped"]] = -scale.skip

    def update(self, step: int, values: Floats) -> NDArray[np.bool_]:
        """Takes a measurement of each series, `[N]`; returns which of them ended a value that was judged."""
        state = self.state
        total, count, skipped = state[:3]
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
        old = {name: self.state[i] for name, i in _PLACE.items()}
        # Ages grow by one, weights fall.
        s0, s1 = FORGET * old["s0"], FORGET * (old["s1"] + old["s0"])
        s2 = FORGET * (old["s2"] + 2 * old["s1"] + old["s0"])
        t0, t1 = FORGET * old["t0"], FORGET * (old["t1"] + old["t0"])
        n = old["n"]
        determinant = s0 * s2 - s1 * s1
        error = value - (s2 * t0 - s1 * t1) / np.where(n >= _LINE, determinant, 1.0)
        new = {"s0": s0 + 1, "s1": s1, "s2": s2, "t0": t0 + value, "t1": t1, "n": n + 1}
        new["error"] = np.where(n >= _LINE, error, 0.0)
        seen = n - _LINE  # errors before this one
        estimated: NDArray[np.bool_] = here & (seen >= 1)
        judged: NDArray[np.bool_] = here & (n >= WARM)
        gain = np.maximum(1 / MEMORY, 1 / np.maximum(seen, 1.0))
        phi = np.clip(old["cross"] / np.maximum(old["square"], _TINY), 0.0, MOST_PHI)
        white = error - phi * old["error"]
        limit = np.where(judged, CUT * old["scale"], np.inf)
        cut, before = np.clip(error, -limit, limit), np.clip(old["error"], -limit, limit)
        beyond = white - old["centre"]
        moving = {
            "cross": cut * before,
            "square": cut * cut,
            "scale": np.minimum(np.abs(beyond), limit) * _MEAN_TO_SD,
            "centre": np.clip(white, -limit, limit),
        }
        for name, now in moving.items():
            new[name] = np.where(estimated, old[name] + gain * (now - old[name]), old[name])
        wide = np.maximum(old["scale"], RESOLUTION) * (1 + CAUTION / np.minimum(np.maximum(seen, 1.0), MEMORY))
        z = np.clip(beyond / wide, -CUT, CUT)
        for side, sign in (("up", 1.0), ("down", -1.0)):
            risen = np.where(judged, np.maximum(0.0, old[side] + sign * z - ALLOWANCE), 0.0)
            new[side] = risen
            new[f"{side}_onset"] = np.where(risen > 0, old[f"{side}_onset"], float(step))
            new[f"{side}_level"] = np.where(risen > 0, old[f"{side}_level"], value)
        for name, values in new.items():
            np.copyto(self.state[_PLACE[name]], values, where=here)
        return judged

    def restart(self, series: slice) -> None:
        """Forgets these series: they are judged again once they are warm."""
        self.state[:, series] = 0.0

    def sums(self) -> tuple[Floats, Floats, Floats, NDArray[np.bool_]]:
        """The larger sum of each series `[N]`, where it began (steps), the value there, and whether it is the upper."""
        up, down = self.state[_PLACE["up"]], self.state[_PLACE["down"]]
        rising = up >= down
        onset = np.where(rising, self.state[_PLACE["up_onset"]], self.state[_PLACE["down_onset"]])
        level = np.where(rising, self.state[_PLACE["up_level"]], self.state[_PLACE["down_level"]])
        return np.maximum(up, down), onset, level, rising


_FIELDS = (
    *("total", "count", "skipped", "n", "s0", "s1", "s2", "t0", "t1"),
    *("error", "cross", "square", "scale", "centre"),
    *("up", "down", "up_onset", "down_onset", "up_level", "down_level"),
)
_PLACE = {name: i for i, name in enumerate(_FIELDS)}
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
        found = []
        for i, (scale, cusums) in enumerate(self.cusums.items()):
            judged = cusums.update(step, logs)
            sums, onset, level, rising = cusums.sums()
            change = logs - level
            above = judged & (sums > self.thresholds[scale]) & (np.abs(change) >= LEAST_CHANGE)
            height[i] = np.where(above, sums / self.thresholds[scale], 0.0)
            found.append((scale, sums, onset, change, rising))
        alarms = {}
        high = {int(place) // self.series for place in np.flatnonzero(height.any(0))}
        for lane in sorted(high & set(lanes)):
            own = slice(lane * self.series, (lane + 1) * self.series)
            i, series = divmod(int(height[:, own].argmax()), self.series)
            scale, sums, onset, change, rising = found[i]
            at, together = lane * self.series + series, int((height[:, own] > 0).any(0).sum())
            statistic, limit = float(sums[at]), self.thresholds[scale]
            moved = int(onset[at]), float(change[at])
            alarms[lane] = Alarm(series, scale, bool(rising[at]), statistic, limit, *moved, together)
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


_HIGHEST = 0.01
"""Alarms per judged value that a threshold is given for, at most."""


def logarithm(measure: str, values: Floats) -> Floats:
    """Of a measure's values, one by one, for the same bits in any shape; NaN where there is none."""
    floor = VELOCITY_FLOOR if measure == "velocity" else 0.0
    flat = [math.log(v + floor) if 0 < v + floor < math.inf else math.nan for v in values.ravel().tolist()]
    return np.array(flat, dtype=np.float64).reshape(values.shape)
