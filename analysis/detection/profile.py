"""The default detector: events beyond a smooth trend and the series' own noise, judged, then located by likelihood.

`judge` gives one series its p: the largest gain in likelihood of an event, against that of null series which go
through the same steps. Events inside are judged by what the whole loses without each of them, against the same null of
largest gains (max-T). `Profile` wraps it as a detector.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from ndt_ray.analysis.detection import Events, Floats, Parameters, checked
from ndt_ray.analysis.detection.atoms import Shape
from ndt_ray.analysis.detection.likelihood import Fitted, fit, standardised
from ndt_ray.analysis.detection.locate import Located, bracket, search
from ndt_ray.analysis.detection.maxtest import BATCH, MOST, Null, sequential
from ndt_ray.analysis.detection.surrogates import Described, describe, draw, siblings
from ndt_ray.analysis.detection.transient import Transient, find
from ndt_ray.analysis.nulls import generator
from ndt_ray.errors import SpecError

Kind = Literal["calibrated", "constant", "short", "unit_root", "wandering", "collapsing_variance"]

SHORTEST = 24
"""Fewer measurements hold no trend, noise and event."""
LONGEST = 1024
"""Longer series are judged on every k-th measurement: the cost of a series grows with the square of this."""
LENGTHS = 50
"""Transients end at multiples of 1 / 50 of a series: series of one sweep have few lengths, each of which needs its own
dictionaries (0.5 s at 400 measurements)."""
RESOLUTION = 1e-6
"""Relative spread at which a series is constant: measures are kept in float32."""
COLLAPSE = 200.0
"""Ratio of the largest to the smallest local scale of the noise at which nothing is left to compare with."""
VISIBLE = 0.2
"""Share of its size by which a series must move across an event."""
CANDIDATE = 0.05
"""A candidate's gain is exceeded in this share of null series."""


@dataclass(frozen=True)
class Event:
    """One event. Places are in measurements of the series given; `size` in its units (log units for rates).

    `location` is the middle, `before` and `after` the measurements that bracket the change (10-90 %). `statistic` is
    the root of its gain. `p` is max-T: the share of null series with any gain as large.
    """

    location: float
    before: int
    after: int
    width: float
    kind: str
    scale: int
    size: float
    statistic: float
    p: float


@dataclass(frozen=True)
class Judged:
    """A series with its verdict. `first`, `stride`: the measurements judged; p is NaN where it is not calibrated."""

    kind: Kind
    n: int = 0
    first: int = 0
    stride: int = 1
    phi: float = np.nan
    noise_sd: float = np.nan
    statistic: float = np.nan
    p: float = np.nan
    p_attainable: float = np.nan
    n_surrogates: int = 0
    tail: str | None = None
    critical: float = np.nan
    null_candidates: float = np.nan
    events: tuple[Event, ...] = ()
    transient: Transient | None = None

    @property
    def calibrated(self) -> bool:
        return self.kind == "calibrated"


def judge(
    values: Floats,
    key: str,
    *,
    shape: Shape = "level",
    null: str = "ar_sieve",
    continuations: Floats | None = None,
    n_surrogates: int = BATCH,
    most: int = MOST,
    skip: int = 0,
) -> Judged:
    """Judge one evenly spaced series `[n]` of finite values; `key` names it, so that its surrogates are its own.

    `continuations` `[K, n]`, for null siblings, are of the same steps; their number bounds what p can be. The first
    `skip` values belong to the transient at most: the change out of the initialisation is shown, not tested.
    """
    stride = max(1, -(-len(values) // LONGEST))
    values = values[::stride]
    if len(values) < SHORTEST + skip:
        return Judged("short", len(values), stride=stride, transient=find(values))
    if np.ptp(values) <= RESOLUTION * float(np.abs(values).max()):
        return Judged("constant", len(values), stride=stride, phi=np.nan, noise_sd=float(values.std()))
    rng = generator("judge", key, shape, null)
    transient = find(values)
    grain = max(1, len(values) // LENGTHS)
    first = min(-(-max(transient.ends, -(-skip // stride)) // grain) * grain, len(values) - SHORTEST)
    kept = values[first:]
    unit = float(np.ptp(kept))
    if unit <= RESOLUTION * float(np.abs(kept).max()):
        return Judged("constant", len(kept), first * stride, stride, transient=transient)
    kept = kept / unit
    known = describe(kept, shape, rng)
    kind = _kind(known)
    sought = known.regime.sought(len(kept), shape)

    def fitted(series: Floats, null_series: bool = False) -> Fitted:
        seen = standardised(series, shape, known.noiseless)[0]
        return fit(seen, shape, free=sought, memories=known.regime.memories, null_series=null_series)

    found = fitted(kept[None])
    statistic = float(found.statistic[0])
    common: dict[str, Any] = {
        "n": len(kept),
        "first": first * stride,
        "stride": stride,
        "phi": known.phi,
        "noise_sd": known.sd * unit,
        "statistic": float(np.sqrt(max(statistic, 0.0))),
        "transient": transient,
    }
    if kind != "calibrated":
        return Judged(kind, **common)
    gains: list[Floats] = []

    def more(count: int) -> Floats:
        if continuations is None:
            drawn = draw(known, count, null, rng)
        else:
            drawn = siblings(kept, continuations[:, ::stride][:, first:] / unit, shape)
        found = fitted(drawn, null_series=True)
        gains.append(found.gain)
        return found.statistic

    if continuations is None:
        spread = sequential(statistic, more, rng, n_surrogates, most)
    else:
        spread = Null(np.sort(more(len(continuations))), 1 / (1 + len(continuations)))
    critical = spread.quantile(1 - CANDIDATE)
    null_gains = np.concatenate(gains)
    p = float(spread.p(np.array([statistic]))[0])
    events = _events(known, critical, spread, p) if statistic >= critical else []
    return Judged(
        "calibrated",
        **common,
        p=p,
        p_attainable=spread.attainable,
        n_surrogates=spread.count,
        tail="counted" if spread.tail is None else "pareto",
        critical=float(np.sqrt(max(critical, 0.0))),
        null_candidates=float((null_gains >= critical).sum() / len(null_gains)),
        events=tuple(_scaled(e, unit, first, stride) for e in events),
    )


def _kind(known: Described) -> Kind:
    if not known.stationary:
        return "unit_root"
    if not known.turns:
        return "wandering"
    if known.scale.max() >= COLLAPSE * known.scale.min():
        return "collapsing_variance"
    return "calibrated"


def _scaled(event: Event, unit: float, first: int, stride: int) -> Event:
    def place(x: float) -> float:
        return (x + first) * stride

    return Event(
        place(event.location),
        int(place(event.before)),
        int(place(event.after)),
        event.width * stride,
        event.kind,
        event.scale * stride,
        event.size * unit,
        event.statistic,
        event.p,
    )


def _events(known: Described, critical: float, spread: Null, p_series: float) -> list[Event]:
    """Events whose loss would cost the likelihood more than the critical gain, each located."""
    n = len(known.tame)
    settled = search(known.tame, known.scale, known.shape, critical, known.regime, known.smooth)
    events = []
    # No event is surer than that there is any.
    p_events = np.maximum(spread.p(settled.losses), p_series)
    each = zip(settled.events, settled.losses, settled.sizes, p_events, strict=True)
    for shape, loss, size, p in each:
        before, after = bracket(shape, n)
        if abs(size) <= known.quantum or not _visible(known.tame, shape, before, after, float(size)):
            continue
        scale = max(1, round(shape.width / 2))
        width = max(shape.width, 1.0)
        root = float(np.sqrt(loss))
        events.append(Event(shape.place, before, after, width, shape.kind, scale, float(size), root, float(p)))
    return sorted(events, key=lambda e: e.location)


def _visible(values: Floats, event: Located, before: int, after: int, size: float) -> bool:
    """Whether a series itself moves in the direction of a step or sigmoid, by a fifth of its size or more.

    A bend of the trend can be written as a fall on a steeper rise; nothing falls there.
    """
    if event.kind in ("kink", "bump"):
        return True
    reach = int(event.width // 8)
    change = np.mean(values[after : after + reach + 1]) - np.mean(values[max(before - reach, 0) : before + 1])
    return bool(change * np.sign(size) >= VISIBLE * abs(size))


@dataclass(frozen=True)
class Verdict(Events):
    """Events of one series with the p of the series (NaN where it is not calibrated), and what `Event` knows of each.

    `location`, `width` (10-90 %) and `scale` are in steps, `shapes` are the events' kinds; `kind` is the series'.
    """

    location: Floats
    width: Floats
    scale: Floats
    shapes: tuple[str, ...]
    p: float = np.nan
    kind: str = "calibrated"
    p_attainable: float = np.nan


@dataclass(frozen=True)
class Profile(Parameters):
    """Events whose max-T p is at most `alpha`, in a series whose largest gain is beyond its own null."""

    alpha: float = 0.01
    null: str = "ar_sieve"
    shape: Shape = "level"
    n_surrogates: int = BATCH
    most: int = MOST

    name = "profile"

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1 or self.n_surrogates < 50 or self.most < self.n_surrogates:
            raise SpecError(
                "0 < alpha < 1 and 50 <= n_surrogates <= most must hold,"
                f" but got ({self.alpha=}, {self.n_surrogates=}, {self.most=})"
            )

    def __call__(self, steps: ArrayLike, values: ArrayLike, key: str = "") -> Verdict:
        """Judge a series; its surrogates are drawn from `key`, or from what the series itself is."""
        s, v = checked(steps, values)
        found = self.judge(v, key)
        chosen = [e for e in found.events if e.p <= self.alpha and found.p <= self.alpha]
        ints = {name: np.array([getattr(e, name) for e in chosen], np.int64) for name in ("before", "after")}
        size = np.array([e.size for e in chosen], np.float64)
        sign = np.where(size > 0, 1, -1)
        z = sign * np.array([e.statistic for e in chosen], np.float64)
        before, after = ints["before"], ints["after"]
        nothing = np.zeros(0, np.int64)
        start, every = (int(s[0]), int(s[1] - s[0])) if len(s) > 1 else (0, 1)
        location, width, scale = (
            every * np.array([getattr(e, name) for e in chosen], np.float64) for name in ("location", "width", "scale")
        )
        return Verdict(
            before,
            s[before] if len(chosen) else nothing,
            s[after] if len(chosen) else nothing,
            np.abs(size),
            z,
            sign,
            start + location,
            width,
            scale,
            tuple(e.kind for e in chosen),
            p=found.p,
            kind=found.kind,
            p_attainable=found.p_attainable,
        )

    def judge(self, values: Floats, key: str = "") -> Judged:
        """Everything that is known of one series of finite values."""
        own = key or hashlib.sha256(values.tobytes()).hexdigest()
        return judge(values, own, shape=self.shape, null=self.null, n_surrogates=self.n_surrogates, most=self.most)
