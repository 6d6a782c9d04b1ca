"""Robust local contrasts at several scales: quick, and blind to single outliers, but with no level to hold.

At scale h the medians of four neighbouring windows of h values are compared: L, A before a place, and B, R after it.
Step beyond the local slope: 3/2 ((B - A) - (R - L) / 3). Kink: (R - B) - (A - L). Either is judged against its own
spread (MAD) over the series, so that drift and memory at that scale count as noise; a series with many events at one
scale hides them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike

from ndt_ray.analysis.detection import Bools, Events, Floats, Parameters, checked
from ndt_ray.errors import SpecError


@dataclass(frozen=True)
class LocalContrast(Parameters):
    """Largest step or kink contrast over windows of `shares` of the series, in robust SDs, above `threshold`."""

    threshold: float = 6.0
    shares: Sequence[float] = (0.01, 0.02, 0.05, 0.1, 0.2)
    kinks: bool = True

    name = "local_contrast"

    def __post_init__(self) -> None:
        if not self.threshold > 0 or not self.shares or not all(0 < s <= 0.25 for s in self.shares):
            raise SpecError(
                f"threshold > 0 and shares in (0, 0.25] must hold, but got ({self.threshold=}, {self.shares=})"
            )

    def contrasts(self, values: Floats) -> list[tuple[int, str, Floats]]:
        """Half window, shape and signed z `[..., n]` of every contrast; 0 where its windows do not fit."""
        n = values.shape[-1]
        found = []
        for h in sorted({max(2, round(share * n)) for share in self.shares}):
            if 4 * h > n:
                continue
            medians = np.median(sliding_window_view(values, h, axis=-1), axis=-1)
            # Window k covers k … k + h - 1; place t lies between t - 1 and t, at the edge of A and B.
            last = n - 4 * h + 1
            far, before, after, beyond = (medians[..., k * h : k * h + last] for k in range(4))
            shapes = [("step" if h <= 2 else "sigmoid", 1.5 * ((after - before) - (beyond - far) / 3))]
            if self.kinks:
                shapes.append(("kink", (beyond - after) - (before - far)))
            for shape, contrast in shapes:
                whole = np.zeros(values.shape)
                whole[..., 2 * h : 2 * h + last] = _in_spreads(contrast)
                found.append((h, shape, whole))
        return found

    def scores(self, values: Floats) -> tuple[Floats, Bools]:
        """Signed z of the largest contrast at every place, and whether it is an event's."""
        values = np.asarray(values, np.float64)
        known = self.contrasts(values)
        if not known:
            return np.zeros(values.shape), np.zeros(values.shape, bool)
        z = np.stack([contrast for _, _, contrast in known])
        largest = np.take_along_axis(z, np.abs(z).argmax(axis=0)[None], axis=0)[0]
        flagged = np.zeros(values.shape, bool)
        for row in np.ndindex(values.shape[:-1]):
            for peak, _ in self._peaks([(h, shape, contrast[row]) for h, shape, contrast in known]):
                flagged[(*row, peak)] = True
        return largest, flagged

    def _peaks(self, known: list[tuple[int, str, Floats]]) -> list[tuple[int, int]]:
        """Places above the threshold, largest first, with the number of their contrast.

        A step echoes in the contrasts within two half windows of it, and in those for kinks more than in its own: what
        lies so near to a taken place is not taken again, and kinks come last.
        """
        free = np.ones(len(known[0][2]), bool)
        taken = []
        for kinks in (False, True):
            rows = [k for k, (_, shape, _) in enumerate(known) if (shape == "kink") == kinks]
            if not rows:
                continue
            size = np.abs(np.stack([known[k][2] for k in rows]))
            while (size * free).max() > self.threshold:
                row, peak = np.unravel_index(int((size * free).argmax()), size.shape)
                half = known[rows[row]][0]
                free[max(0, peak - 2 * half) : peak + 2 * half + 1] = False
                taken.append((int(peak), rows[row]))
        return sorted(taken)

    def __call__(self, steps: ArrayLike, values: ArrayLike) -> Events:
        s, v = checked(steps, values)
        known = self.contrasts(v)
        peaks = self._peaks(known) if known else []
        if not peaks:
            return Events.none()
        z = np.array([known[a][2][i] for i, a in peaks])
        at, half = [a for _, a in peaks], np.array([known[a][0] for _, a in peaks])
        index = np.array([i if known[a][1] == "kink" else _steepest(v, i, known[a][0]) for i, a in peaks])
        level = np.array([np.median(v[i : i + h]) - np.median(v[i - h : i]) for i, h in zip(index, half, strict=True)])
        reach = np.where([known[a][1] == "step" for a in at], 1, half // 2 + 1)
        before, after = np.maximum(index - reach, 0), np.minimum(index + reach - 1, len(v) - 1)
        return Events(index, s[before], s[after], np.abs(level), z, np.where(z > 0, 1, -1))


def _steepest(values: Floats, peak: int, half: int) -> int:
    """Place within half a window of a peak where the means of the windows before and after differ most.

    Medians are equal over a wide range around a step: they tell that there is one, not where.
    """
    low, high = max(half, peak - half), min(len(values) - half, peak + half)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(low, high + 1)
    return int(at[np.abs(sums[at + half] - 2 * sums[at] + sums[at - half]).argmax()])


def _in_spreads(contrast: Floats) -> Floats:
    """Distance from the median in robust SDs along the last axis; 0 where there is no spread."""
    centred = contrast - np.median(contrast, axis=-1, keepdims=True)
    spread = 1.4826 * np.median(np.abs(centred), axis=-1, keepdims=True)
    return cast(Floats, np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0))
