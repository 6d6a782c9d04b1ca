"""The initial transient: what a series sheds in the first moments after the initialisation. An object, not an event."""

from dataclasses import dataclass

import numpy as np

from ndt_ray.analysis.detection import Floats

LATEST = 0.12
"""A transient is over by this share of the run; what takes longer is trend."""
SLOWEST = 0.04
"""Longest time constant of a transient, as a share of the run."""
GRID = 20
"""Time constants that are tried."""
STANDS_OUT = 6.0
"""Noise SDs that the transient must reach."""
FASTER = 4.0
"""Times its median movement later in the run."""
LEFT = 0.05
"""Share of its largest value below which a transient is over."""


@dataclass(frozen=True)
class Transient:
    """`amplitude`: first value minus what it relaxes to. `half_life`, `ends`: in measurements. `flag`: why none."""

    amplitude: float = np.nan
    settled: float = np.nan
    half_life: float = np.nan
    ends: int = 0
    r2: float = np.nan
    flag: str | None = None


def find(values: Floats) -> Transient:
    """The transient of one series from its first measurement on.

    Its curve is one or two decays (time constants up to 4 % of the run: a fall, with a rebound as layers show it in
    their first steps) that fit the first third of the series best, beside a parabola.
    """
    n = len(values)
    third = values[: max(n // 3, min(n, 12))]
    m = len(third)
    if n < 12:
        return Transient(flag="short")
    if np.ptp(values) <= 1e-6 * float(np.abs(values).max()):
        return Transient(flag="constant")
    t = np.arange(m, dtype=np.float64)
    smooth = np.stack([np.ones(m), t / n, (t / n) ** 2], axis=1)
    constants = np.geomspace(0.4, max(SLOWEST * n, 1.0), GRID)
    decays = np.exp(-t[:, None] / constants)
    basis, _ = np.linalg.qr(smooth)
    pairs = [(i,) for i in range(GRID)] + [(i, j) for i in range(0, GRID, 2) for j in range(i + 4, GRID, 2)]
    left = decays - basis @ (basis.T @ decays)
    rest = third - basis @ (basis.T @ third)
    costs = [_residual(left[:, list(pair)], rest) for pair in pairs]
    # A second decay must pay for itself: a third less is left than with one.
    single = int(np.argmin(costs[:GRID]))
    double = GRID + int(np.argmin(costs[GRID:]))
    chosen = pairs[double] if costs[double] < 0.67 * costs[single] else pairs[single]
    columns = np.concatenate([smooth, decays[:, list(chosen)]], axis=1)
    solved = np.linalg.lstsq(columns, third, rcond=None)[0]
    curve = columns[:, 3:] @ solved[3:]
    rest = third - columns @ solved
    noise = max(float(1.4826 * np.median(np.abs(np.diff(rest)))), float(rest.std()), 1e-9 * float(np.abs(third).max()))
    peak = float(np.abs(curve).max())
    if peak < STANDS_OUT * noise:
        return Transient(flag="none")
    grain = max(1, int(LATEST * n / 4))
    latest = 4 * grain
    above = np.flatnonzero(np.abs(curve[:latest]) > max(LEFT * peak, 0.5 * noise))
    ends = max(int(above[-1]) + 1 if above.size else 0, _fast(values, latest))
    ends = min(-(-ends // grain) * grain, latest)
    amplitude = float(curve[0])
    gone = np.flatnonzero(np.abs(curve) <= np.abs(amplitude) / 2)
    half = _crossing(np.abs(curve) / max(abs(amplitude), 1e-300), int(gone[0])) if gone.size else np.nan
    early = third[: ends + 1]
    spread = float(((early - early.mean()) ** 2).sum())
    r2 = 1 - float((rest[: ends + 1] ** 2).sum()) / spread if spread > 0 else np.nan
    return Transient(amplitude, float(third[0] - rest[0] - amplitude), half, ends, r2)


def _fast(values: Floats, latest: int) -> int:
    """Measurements from the first one on, `latest` at most, over which the series moves `FASTER` than it usually does.

    Not every fall from the initialisation is exponential. Movement is between means of neighbouring fiftieths; one slow
    pair, where a fall turns into a rebound, is passed over.
    """
    width = max(2, len(values) // 50)
    means = values[: len(values) // width * width].reshape(-1, width).mean(axis=1)
    moves = np.abs(np.diff(means))
    early = min(latest // width, len(moves) - 1)
    fast = moves[:early] > FASTER * float(np.median(moves[early:]))
    slow = np.flatnonzero(~fast & ~np.r_[fast[1:], False])
    return width * int(slow[0] if slow.size else early)


def _residual(columns: Floats, values: Floats) -> float:
    """Sum of squares that columns leave of values."""
    solved = np.linalg.lstsq(columns, values, rcond=None)[0]
    rest = values - columns @ solved
    return float(rest @ rest)


def _crossing(share: Floats, first: int) -> float:
    """Where a falling share crosses one half, between two measurements."""
    if first == 0:
        return 0.0
    high, low = float(share[first - 1]), float(share[first])
    return first - 1 + (high - 0.5) / (high - low) if high > low else float(first)
