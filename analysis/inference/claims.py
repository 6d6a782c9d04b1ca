"""Claims of a sweep, judged under one specification each: an estimate whose sign speaks for or against, and a p.

- more_events: a level has more events per layer-series than another. Difference of means over seeds; regrouping.
- concentrated_early: events crowd into the first tenth of training. Share of a trial's events there minus the share of
  its measurements there, over trials; every trial's events turned round the run, all layers together.
- event_near: seeds of a cell have an event in a layer near a step. Share of seeds with one minus the share expected of
  as many events at random places; exact Poisson-binomial tail. A rule that fires everywhere thus proves nothing. Such
  claims are made of what the primary specification shows: what counts is whether the others agree, not its own p.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ndt_ray.analysis.inference import permutation
from ndt_ray.analysis.inference.specifications import Specified
from ndt_ray.analysis.nulls import generator

Floats = NDArray[np.float64]
EARLY = 0.1
"""Phase before which training is early."""
PERMUTATIONS = 999
TURNS = 399


@dataclass(frozen=True)
class Judged:
    """A claim under a specification. `values`: what the estimate is a mean (or a difference of means) of, by unit."""

    n: int
    estimate: float = math.nan
    p: float = math.nan
    reason: str | None = None
    values: Mapping[Any, float] = field(default_factory=dict)
    draws: Floats | None = None
    """The estimate, observed and under its null, where the claim draws that itself."""

    @property
    def sign(self) -> int | None:
        return None if math.isnan(self.estimate) else int(np.sign(self.estimate))


@dataclass(frozen=True)
class MoreEvents:
    """`a` and `b`: trials of each unit, by level."""

    level_a: str
    level_b: str
    a: Mapping[str, Sequence[str]]
    b: Mapping[str, Sequence[str]]

    kind = "more_events"

    @property
    def text(self) -> str:
        return f"{self.level_a} has more events per layer-series than {self.level_b}"

    def turned(self) -> "MoreEvents":
        """The opposite claim."""
        return MoreEvents(self.level_b, self.level_a, self.b, self.a)

    def judge(self, spec: Specified) -> Judged:
        counts = spec.per_series()
        values = {}
        for side, units in ((0, self.a), (1, self.b)):
            for unit, trials in units.items():
                known = [counts[t] for t in trials if t in counts]
                if known:
                    values[side, unit] = float(np.mean(known))
        x, y = ([v for (side, _), v in values.items() if side == wanted] for wanted in (0, 1))
        if not x or not y:
            return Judged(len(values), reason="no tested series on one side")
        estimate = float(np.mean(x) - np.mean(y))
        p = permutation.unpaired(x, y, self.text).p if min(len(x), len(y)) > 1 else math.nan
        return Judged(len(values), estimate, p, "one seed" if math.isnan(p) else None, values)

    def curve(self, judged: Sequence[Judged], alpha: float, sign: int) -> float | None:
        """p of as many significant specifications of one sign when units are regrouped in all of them at once."""
        keys = sorted({key for j in judged for key in j.values}, key=str)
        rows = [[j.values.get(key, math.nan) for key in keys] for j in judged if len(j.values) == len(keys)]
        side = np.array([key[0] for key in keys])
        if not rows or min((side == 0).sum(), (side == 1).sum()) < 2:
            return None
        order = np.argsort(generator("curve", self.text).random((PERMUTATIONS, len(keys))), axis=1)
        chosen = np.concatenate([(side == 0)[None, :], (side == 0)[order]]).astype(np.float64)
        values = np.array(rows)
        centred = values - values.mean(axis=1, keepdims=True)
        gaps = chosen @ centred.T * (1 / (side == 0).sum() + 1 / (side == 1).sum())
        return _curve(gaps, alpha, sign)


@dataclass(frozen=True)
class ConcentratedEarly:
    """`steps`: planned updates of each trial concerned."""

    where: str
    steps: Mapping[str, int]

    kind = "concentrated_early"

    @property
    def text(self) -> str:
        return f"events of {self.where} concentrate in the first {EARLY:.0%} of training"

    def judge(self, spec: Specified) -> Judged:
        times: dict[str, list[float]] = {}
        for (trial, _), events in spec.events.items():
            if trial in self.steps:
                times.setdefault(trial, []).extend(time for time, _ in events)
        drawn = [self._shares(spec, trial, own) for trial, own in sorted(times.items()) if own]
        known = [shares for shares in drawn if shares is not None]
        if not known:
            return Judged(0, reason="no events" if self.steps else "no trial says how long it is")
        draws = np.mean(np.array(known), axis=0)
        more, less = (int((side * draws[1:] >= side * draws[0] - 1e-12).sum()) for side in (1, -1))
        p = min(1.0, 2 * (1 + min(more, less)) / len(draws))
        return Judged(len(known), float(draws[0]), p, None, draws=draws)

    def _shares(self, spec: Specified, trial: str, times: list[float]) -> Floats | None:
        """Share of the events that are early minus that of the measurements: observed, and turned round the run.

        All events of a trial move together, so that layers that jump at once stay at once; every specification is
        turned by the same shares of the run.
        """
        spans = list(spec.spans[trial].values())
        first, last = min(a for a, _ in spans), max(b for _, b in spans)
        if last <= first:
            return None
        early = min(1.0, max(0.0, (EARLY * self.steps[trial] - first) / (last - first)))
        turns = generator("turned", trial).random(TURNS)
        places = (np.array(times) - first) / (last - first)
        turned = np.mod(places[None, :] + np.concatenate([[0.0], turns])[:, None], 1.0)
        return cast(Floats, (turned < early).mean(axis=1) - early)

    def curve(self, judged: Sequence[Judged], alpha: float, sign: int) -> float | None:
        """p of as many significant specifications of one sign when every trial is turned in all of them at once."""
        draws = [j.draws for j in judged if j.draws is not None]
        return _curve(np.stack(draws, axis=1), alpha, sign) if draws else None


@dataclass(frozen=True)
class EventNear:
    """`trials`: one per seed of the cell."""

    cell: str
    layer: str
    step: float
    tolerance: float
    trials: Sequence[str]

    kind = "event_near"

    @property
    def text(self) -> str:
        return f"seeds of {self.cell} have an event of {self.layer} near step {self.step:.0f}"

    def judge(self, spec: Specified) -> Judged:
        known = [t for t in self.trials if self.layer in spec.spans.get(t, {})]
        if not known:
            return Judged(0, reason="layer not judged")
        values, chances = {}, []
        for trial in known:
            first, last = spec.spans[trial][self.layer]
            own = [(time, max(self.tolerance, r)) for time, r in spec.events.get((trial, self.layer), ())]
            near = any(abs(time - self.step) <= r for time, r in own)
            shares = [min(1.0, 2 * r / max(last - first, 1.0)) for _, r in own]
            chances.append(1.0 - math.prod(1.0 - s for s in shares))
            values[trial] = float(near)
        hits = sum(values.values())
        return Judged(
            len(known), hits / len(known) - float(np.mean(chances)), _tail(chances, round(hits)), None, values
        )

    def curve(self, judged: Sequence[Judged], alpha: float, sign: int) -> float | None:
        """None: the specifications' events are each their own null."""
        return None


Claim = MoreEvents | ConcentratedEarly | EventNear


def _curve(estimates: Floats, alpha: float, sign: int) -> float:
    """p from estimates `[1 + permutations, specifications]`, the first row observed.

    How many specifications lie beyond their own 1 - alpha quantile on one side, against the fuller side of each
    permutation: two-sided over the whole curve.
    """
    limit = np.quantile(np.abs(estimates[1:]), 1 - alpha, axis=0)
    # Where most permutations give nothing at all the quantile is 0: an estimate of 0 is then no finding.
    beyond = (np.abs(estimates) >= limit) & (np.abs(estimates) > 1e-12)
    up, down = ((beyond & (np.sign(estimates) == s)).sum(axis=1) for s in (1, -1))
    observed = int((up if sign >= 0 else down)[0])
    return (1 + int((np.maximum(up, down)[1:] >= observed).sum())) / len(estimates)


def _tail(chances: Sequence[float], hits: int) -> float:
    """P(at least so many of independent events with these chances)."""
    known = np.array([1.0])
    for chance in chances:
        known = np.convolve(known, [1 - chance, chance])
    return float(min(1.0, known[hits:].sum()))
