"""Where an event is, how wide and how large: by likelihood, given the trend and all other events of its series."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ndt_ray.analysis.detection import Bools, Floats
from ndt_ray.analysis.detection.atoms import (
    EDGE,
    NOISY,
    SWALLOWED,
    SWALLOWED_KINK,
    Memory,
    Regime,
    Shape,
    Singles,
    atoms,
    bends,
    curve,
    grid,
    trend,
    whiten,
)
from ndt_ray.analysis.detection.likelihood import fit

ROUNDS = 4
"""Refinements of every event; the grid of places and widths halves from one to the next."""
MOST_EVENTS = 12
"""Events that are sought in one series."""
NOTICED = 12.0
"""Gain of an event from which on a bent trend is tried in its place: smaller ones are no events on any noise."""
AS_WELL = 16.0
"""Twice the log likelihood by which an event must explain a series better than a bent trend."""
STRAIGHT = 1e-6
"""A bend of which other columns leave less than this share of its energy is none."""
SHADOW = 0.1
"""Share of a larger event's size below which its neighbours are what its shape leaves behind."""
KINK_GAP = 4.0
"""Distance of the corners, in measurements, that are tried in the first refinement of a kink."""
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


def design(smooth: Floats, events: Sequence[Located]) -> Floats:
    """Columns of a trend `[n, columns]` and of events."""
    return np.stack([*smooth.T, *(e.curve(len(smooth)) for e in events)], axis=1)


def left_by(columns: Floats, values: Floats) -> Floats:
    """What columns `[n, k]` leave of values `[..., n]`, by least squares."""
    basis, _ = np.linalg.qr(columns)
    return np.asarray(values - (values @ basis) @ basis.T)


def likelihood(seen: Floats, columns: Floats, memories: Sequence[Memory], without: int = 0) -> Floats:
    """Twice the log likelihood of a weighted series given weighted columns, maximised over the noise's memory.

    `[1 + without]`: the last so many columns are also left out, one at a time.
    """
    n, known = len(seen), grid(tuple(memories))
    white = known.whiten(seen[None])[:, 0]
    basis, triangle = np.linalg.qr(known.whiten(columns.T).transpose(0, 2, 1))
    taken = (white[:, None] @ basis)[:, 0]
    energy = np.einsum("jn,jn->j", white, white) - np.einsum("jk,jk->j", taken, taken)
    energies = [energy]
    if without:
        # A column's share of the sum of squares: its coefficient, squared, over its place in (X'X)^-1.
        inverse = np.linalg.inv(triangle)
        share = (inverse @ taken[..., None])[..., 0] ** 2 / np.einsum("jkl,jkl->jk", inverse, inverse)
        energies += list(energy + share[:, columns.shape[1] - without :].T)
    level = known.scaling - n * np.log(np.maximum(np.stack(energies), 1e-300) / n)
    return np.asarray(level.max(axis=1))


@dataclass(frozen=True)
class Settled:
    """Events that each cost the likelihood at least what was asked: their losses, and sizes in units of the series.

    `smooth` `[n, columns]`: the trend beside them.
    """

    events: list[Located]
    losses: Floats
    sizes: Floats
    memory: Memory
    smooth: Floats

    def sum(self, n: int) -> Floats:
        """All events at their sizes, `[n]`."""
        return sum((s * e.curve(n) for e, s in zip(self.events, self.sizes, strict=True)), np.zeros(n))


def nothing(smooth: Floats) -> Settled:
    """No event beside a trend."""
    return Settled([], np.zeros(0), np.zeros(0), Memory((0.0,)), smooth)


def search(
    values: Floats,
    scale: Floats,
    shape: Shape,
    least: float,
    regime: Regime = NOISY,
    smooth: Floats | None = None,
) -> Settled:
    """Events of one series, the largest first; each is located before the next is sought in what is left.

    `values` `[n]`, a trend and noise of some memory times `scale`. An event must gain, and its loss cost, twice the log
    likelihood `least`; two that only together gain as much (up and down again) are taken together. `smooth`
    `[n, columns]` is the trend; where it is not known, it is bent if that explains the series as well as the next event
    does.
    """
    n, memories = len(values), regime.memories
    settled, may_bend = nothing(trend(n) if smooth is None else smooth), smooth is None
    while len(settled.events) < MOST_EVENTS:
        left = left_by(settled.smooth, values - settled.sum(n)) / scale
        free = _free(settled.events, n, shape, regime.sought(n, shape))
        found = fit(left[None], shape, 2, free, memories)
        gain, pair = found.gain[0], [located(n, shape, int(a)) for a in found.atom[0]]
        if pair[0].kind == "kink" and gain[0] >= NOTICED:
            pair[0] = _kink_or_not(values, scale, settled, left, pair[0], free, memories)
        if may_bend and gain[0] >= NOTICED:
            curved = _bent(values, scale, settled, pair[0], memories[found.memory[0, 1]], memories)
            if curved is not None:
                may_bend = False
                settled = settle(values, scale, settled.events, settled.memory, least, curved, regime)
                continue
        if gain.max() < least:
            break
        more = pair[:1] if gain[0] >= least else pair
        memory = memories[found.memory[0, len(more)]]
        tried = settle(values, scale, [*settled.events, *more], memory, least, settled.smooth, regime)
        if len(tried.events) <= len(settled.events):
            break
        settled = tried
    return settled


def _kink_or_not(
    values: Floats,
    scale: Floats,
    settled: Settled,
    left: Floats,
    kink: Located,
    free: Singles | None,
    memories: Sequence[Memory],
) -> Located:
    """A kink, or the best event of another kind where that explains a series as well once both are refined."""
    n, weight = len(values), 1 / scale
    others = np.array([kind != "kink" for kind in atoms(n, "level").kind], np.float32)
    found = fit(left[None], "level", 1, others if free is None else others * free, memories)
    memory, levels, seen = memories[found.memory[0, 1]], [], values * weight
    tried = [kink, located(n, "level", int(found.atom[0, 0]))]
    for event in tried:
        events = refined(seen, weight, [*settled.events, event], memory, settled.smooth)
        levels.append(likelihood(seen, design(settled.smooth, events) * weight[:, None], memories)[0])
    return tried[int(levels[1] >= levels[0])]


def _bent(
    values: Floats, scale: Floats, settled: Settled, event: Located, memory: Memory, memories: Sequence[Memory]
) -> Floats | None:
    """The bent trend that explains a series about as well as one more event beside the trend that there is, or None."""
    weight = 1 / scale
    seen = values * weight
    events = refined(seen, weight, [*settled.events, event], memory, settled.smooth)
    with_event = likelihood(seen, design(settled.smooth, events) * weight[:, None], memories)[0]
    common, curves = bends(len(values))
    columns = design(common, settled.events) * weight[:, None]
    explained, bend = _best_bend(seen, columns, curves * weight[:, None], memories)
    if explained <= with_event - AS_WELL:
        return None
    return np.concatenate([common, curves[:, [bend]]], axis=1)


def _best_bend(seen: Floats, columns: Floats, curves: Floats, memories: Sequence[Memory]) -> tuple[float, int]:
    """`likelihood` of a weighted series given weighted columns and one of weighted curves, the best; and which."""
    n, known = len(seen), grid(tuple(memories))
    basis, _ = np.linalg.qr(known.whiten(columns.T).transpose(0, 2, 1))
    whole = known.whiten(np.concatenate([seen[None], curves.T]))
    rest = whole - (whole @ basis) @ basis.transpose(0, 2, 1)
    white, left = rest[:, 0], rest[:, 1:]
    own, had = (np.einsum("jin,jin->ji", x, x) for x in (left, whole[:, 1:]))
    told = own > STRAIGHT * had
    taken = np.where(told, (left @ white[..., None])[..., 0] ** 2 / np.maximum(own, 1e-300), 0.0)
    energy = np.maximum(np.einsum("jn,jn->j", white, white) - taken.max(axis=1), 1e-300)
    levels = known.scaling - n * np.log(energy / n)
    best = int(levels.argmax())
    return float(levels[best]), int(taken[best].argmax())


def settle(
    values: Floats,
    scale: Floats,
    events: Sequence[Located],
    memory: Memory,
    least: float,
    smooth: Floats,
    regime: Regime = NOISY,
) -> Settled:
    """Refine events, drop the one whose loss costs least, and again, until each costs `least` or more.

    Trend and events are columns over the scale, so that a changing scale bends no event. Dropped are events that are
    wider than any that is sought, cannot be told from the trend or from each other, and what a larger one nearby leaves
    behind (`SHADOW`).
    """
    weight = 1 / scale
    seen, found = values * weight, list(events)
    while found:
        found = [e for e in refined(seen, weight, found, memory, smooth) if e.width <= regime.widest * len(values)]
        found = _distinct(found, smooth)
        columns = design(smooth, found) * weight[:, None]
        first = columns.shape[1] - len(found)
        levels = likelihood(seen, columns, regime.memories, without=len(found))
        losses = levels[0] - levels[1:]
        solved = np.linalg.lstsq(whiten(columns.T, memory).T, whiten(seen, memory), rcond=None)[0]
        sizes = np.asarray(solved[first:], dtype=np.float64)
        losses[_in_shadow(found, sizes)] = 0.0
        if losses.size and losses.min() < least:
            del found[int(losses.argmin())]
            continue
        return Settled(found, losses, sizes, memory, smooth)
    return nothing(smooth)


def _free(events: Sequence[Located], n: int, shape: Shape, sought: Singles | None) -> Singles | None:
    """`[atoms]`: those that are sought, and 0 for those that overlap an event."""
    if not events:
        return sought
    known = atoms(n, shape)
    free = np.ones(len(known.kind), np.float32) if sought is None else sought.copy()
    for event in events:
        reach = np.maximum((known.width + event.width) / 2, EDGE)
        free[np.abs(known.location - event.place) < reach] = 0
    return free


def _in_shadow(events: Sequence[Located], sizes: Floats) -> Bools:
    """Events of under a tenth of the size of another within three of its widths: its shape is not quite a sigmoid."""
    place, width = np.array([e.place for e in events]), np.array([max(e.width, 1.0) for e in events])
    near = np.abs(place[:, None] - place) <= 3 * width
    small = np.abs(sizes)[:, None] < SHADOW * np.abs(sizes)
    return np.asarray((near & small).any(axis=1), dtype=bool)


def refined(seen: Floats, weight: Floats, events: Sequence[Located], memory: Memory, smooth: Floats) -> list[Located]:
    """Places and widths that fit a weighted series `[n]` best, one event after the other, four times over."""
    n, found = len(seen), list(events)
    white = whiten(seen, memory)
    for round_ in range(ROUNDS):
        for k, event in enumerate(found):
            tried = [e for e in _nearby(event, 0.5**round_) if EDGE - 1 <= e.place <= n - EDGE]
            if len(tried) < 2:
                continue
            others = design(smooth, found[:k] + found[k + 1 :])
            curves = np.stack([event.curve(n), *(e.curve(n) for e in tried)])
            share = _own_share(curves, others)
            told = share[1:] >= min(SWALLOWED, share[0])
            basis, _ = np.linalg.qr(whiten((others * weight[:, None]).T, memory).T)
            left = white - basis @ (basis.T @ white)
            rows = whiten(curves[1:] * weight, memory)
            rows -= (rows @ basis) @ basis.T
            own = np.einsum("ij,ij->i", rows, rows)
            gain = np.where(told, (rows @ left) ** 2 / np.maximum(own, 1e-300), 0.0)
            if gain.max() > 0:
                found[k] = tried[int(gain.argmax())]
    return [_named(e) for e in found]


def _own_share(curves: Floats, others: Floats) -> Floats:
    """Share of the energy of curves `[count, n]` about their means that no other column explains."""
    basis, _ = np.linalg.qr(others)
    left = curves - (curves @ basis) @ basis.T
    centred = curves - curves.mean(axis=-1, keepdims=True)
    return np.asarray(np.einsum("ij,ij->i", left, left) / np.maximum(np.einsum("ij,ij->i", centred, centred), 1e-300))


def _distinct(events: Sequence[Located], smooth: Floats) -> list[Located]:
    """Events without those that trend and earlier events explain already."""
    kept: list[Located] = []
    for event in events:
        least = (SWALLOWED_KINK if event.kind == "kink" else SWALLOWED) / 4
        if _own_share(event.curve(len(smooth))[None], design(smooth, kept))[0] >= least:
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
    if kind == "kink":
        return [Located(kind, place + d * fine * KINK_GAP, 0.0) for d in (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)]
    if kind == "bump" and width < NARROWEST:
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
