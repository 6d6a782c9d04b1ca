"""Where an event is, how wide and how large: by likelihood, given the trend and all other events of its series."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ndt_ray.analysis.detection import Floats
from ndt_ray.analysis.detection.atoms import EDGE, PHIS, SWALLOWED, WIDEST, Shape, atoms, curve, trend, whiten

ROUNDS = 4
"""Refinements of every event; the grid of places and widths halves from one to the next."""
NARROWEST = 2.0
"""A sigmoid that rises faster than in this many measurements is a step."""


@dataclass(frozen=True)
class Located:
    """An event's kind, middle and 10-90 % width (0: step), in measurements."""

    kind: str
    place: float
    width: float

    def curve(self, n: int) -> Floats:
        """At unit size, `[n]`."""
        return curve("sigmoid" if self.kind == "step" else self.kind, n, self.place, self.width)


def located(n: int, shape: Shape, atom: int) -> Located:
    """The event that an atom stands for."""
    known = atoms(n, shape)
    return Located(known.kind[atom], float(known.location[atom]), float(known.width[atom]))


def design(n: int, events: Sequence[Located]) -> Floats:
    """Columns of trend and events, `[n, columns]`."""
    return np.stack([*trend(n).T, *(e.curve(n) for e in events)], axis=1)


def likelihood(seen: Floats, columns: Floats) -> float:
    """Twice the log likelihood of a weighted series given weighted columns, maximised over the noise's coefficient."""
    n = len(seen)
    best = -np.inf
    for phi in PHIS:
        basis, _ = np.linalg.qr(whiten(columns.T, phi).T)
        white = whiten(seen, phi)
        energy = float(white @ white - np.sum((white @ basis) ** 2))
        best = max(best, float(np.log1p(-(phi**2)) - n * np.log(max(energy, 1e-300) / n)))
    return best


@dataclass(frozen=True)
class Settled:
    """Events that each cost the likelihood at least what was asked: their losses, and sizes in units of the series."""

    events: list[Located]
    losses: Floats
    sizes: Floats


def settle(values: Floats, scale: Floats, events: Sequence[Located], phi: float, least: float) -> Settled:
    """Refine events, drop the one whose loss costs least, and again, until each costs `least` or more.

    `values` `[n]` with noise that is AR(1) times `scale`. Trend and events are columns over that scale, so that a
    changing scale bends no event. Events that cannot be told from the trend, or from each other, are dropped too.
    """
    n, weight = len(values), 1 / scale
    seen, found = values * weight, list(events)
    while found:
        found = _distinct(refined(seen, weight, found, phi), n)
        columns = design(n, found) * weight[:, None]
        first = columns.shape[1] - len(found)
        whole = likelihood(seen, columns)
        losses = np.array([whole - likelihood(seen, np.delete(columns, first + k, axis=1)) for k in range(len(found))])
        if losses.size and losses.min() < least:
            del found[int(losses.argmin())]
            continue
        solved = np.linalg.lstsq(whiten(columns.T, phi).T, whiten(seen, phi), rcond=None)[0]
        return Settled(found, losses, solved[first:])
    return Settled([], np.zeros(0), np.zeros(0))


def refined(seen: Floats, weight: Floats, events: Sequence[Located], phi: float) -> list[Located]:
    """Places and widths that fit a weighted series `[n]` best, one event after the other, four times over."""
    n, found = len(seen), list(events)
    white = whiten(seen, phi)
    for round_ in range(ROUNDS):
        for k, event in enumerate(found):
            tried = [
                e
                for e in _nearby(event, 0.5**round_)
                if EDGE - 1 <= e.place <= n - EDGE and e.width <= max(WIDEST * n, event.width)
            ]
            if len(tried) < 2:
                continue
            others = design(n, found[:k] + found[k + 1 :]) * weight[:, None]
            basis, _ = np.linalg.qr(whiten(others.T, phi).T)
            left = white - basis @ (basis.T @ white)
            rows = whiten(np.stack([e.curve(n) for e in tried]) * weight, phi)
            energy = np.einsum("ij,ij->i", rows, rows)
            rows -= (rows @ basis) @ basis.T
            own = np.einsum("ij,ij->i", rows, rows)
            gain = np.where(own > 1e-4 * energy, (rows @ left) ** 2 / np.maximum(own, 1e-300), 0.0)
            found[k] = tried[int(gain.argmax())]
    return [_named(e) for e in found]


def _distinct(events: Sequence[Located], n: int) -> list[Located]:
    """Events without those that trend and earlier events span already."""
    kept: list[Located] = []
    for event in events:
        basis, _ = np.linalg.qr(design(n, kept))
        curve_ = event.curve(n)
        centred = curve_ - curve_.mean()
        left = curve_ - basis @ (basis.T @ curve_)
        if left @ left >= SWALLOWED * (centred @ centred):
            kept.append(event)
    return kept


def bracket(event: Located, n: int) -> tuple[int, int]:
    """The measurements before and after a change: just outside its 10-90 % rise."""
    half = 0.5 if event.width <= 1 else event.width / 2
    before, after = int(np.floor(event.place - half + 1e-9)), int(np.ceil(event.place + half - 1e-9))
    if event.kind in ("kink", "bump") and event.width <= 1:
        before, after = int(np.floor(event.place)) - 1, int(np.ceil(event.place)) + (event.kind == "kink")
    return max(before, 0), min(max(after, before + 1), n - 1)


def _nearby(event: Located, fine: float) -> list[Located]:
    """Places and widths around an event; a step is compared with narrow sigmoids, and the other way round."""
    kind, place, width = event.kind, event.place, event.width
    if kind == "kink" or (kind == "bump" and width < NARROWEST):
        return [event]
    steps = [Located("step", float(np.floor(place) + d + 0.5), 0.0) for d in (-2, -1, 0, 1, 2)]
    if width <= 1:
        return [*steps, *(Located("sigmoid", place + d, w) for w in (2.5, 4.0) for d in (-1.0, -0.5, 0.0, 0.5, 1.0))]
    near = [
        Located(kind, place + d * fine * width, width * r**fine)
        for r in (0.66, 0.8, 1.0, 1.25, 1.5)
        for d in (-0.2, -0.1, 0.0, 0.1, 0.2)
    ]
    return near + steps if kind == "sigmoid" and width < 6 else near


def _named(event: Located) -> Located:
    if event.kind == "sigmoid" and event.width < NARROWEST:
        return Located("step", float(np.floor(event.place) + 0.5), 0.0)
    return event
