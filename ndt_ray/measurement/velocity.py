"""How far representations turn: debiased CKA between probe-by-probe kernels at different steps, and principal angles.

A representation here is one vector a stimulus: the mean over its positions or tokens (as flattened maps it would cost
P^2 C H W a step, and its kernel would follow translations of the features over the map). The kernel of inner products
of these vectors sees what no spectrum sees, a rotation at constant eigenvalues, and ignores what is no change, a
rotation of the feature axes.

Debiased CKA is the ratio of unbiased HSIC estimates (Song et al. 2012; Kornblith et al. 2019): for centred kernels K
and L of n stimuli with diagonals k and l, n(n-3) HSIC = sum_{i≠j} K L + tr K tr L / ((n-1)(n-2)) - 2 k.l / (n-2).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ndt_ray import native
from ndt_ray.measurement.directions import DIRECTIONS, Directions, angles, directions
from ndt_ray.measurement.grams import by_lane, order
from ndt_ray.measurement.spectra import Spectrum, Stimuli

Floats = NDArray[np.float64]

RESOLUTION = 1e-12
"""Differences of a CKA from 1 below this are 0: what is kept is rounded to float32, which leaves 1e-14 of noise."""

CLOSE = 1e-5
"""Differences below this are computed again in float64: products in float32, at half the price, leave 1e-7 of noise."""

_PREVIOUS, _INIT, _ANCHOR = range(3)
_COLUMNS = ("velocity", "from_init", "from_anchor", "angle_mean", "angle_max", "label_alignment")


class VelocityRows(NamedTuple):
    """Columns of the table `velocity` but for trial_id and step; `lane` says whose each row is."""

    lane: NDArray[np.int64]
    columns: dict[str, Any]


class VelocityTracker:
    """Follows every layer of the lanes of one pack from measured step to measured step.

    Compared with are the measurement before, the initialisation (step 0 only) and the latest anchor: the first
    measurement at or after each power of two. A lane's rows depend on its own measurements alone. Kept per lane and
    layer are three copies of at most P^2/2 numbers, rounded to float32.
    """

    def __init__(self, labels: ArrayLike | None = None) -> None:
        """`labels` `[P]` of the probe's stimuli, in order; without them there is no label alignment."""
        self._labels = None if labels is None else _Labels(np.asarray(labels))
        self._held: dict[tuple[int, ...], _Held] = {}
        self._steps: dict[int, tuple[int, int]] = {}

    def update(self, step: int, lanes: Sequence[int], spectra: Sequence[Spectrum]) -> VelocityRows:
        """One row per layer and lane; `lanes` names those that `spectra` (measured with extras) are of, in order."""
        steps = [self._steps.get(lane) for lane in lanes]
        anchors = np.array([before is None or step.bit_length() > before[1].bit_length() for before in steps])
        values = np.empty((len(_COLUMNS), len(spectra), len(lanes)))
        alike: dict[Any, list[int]] = {}
        for i, spectrum in enumerate(spectra):
            stimuli = _stimuli(spectrum)
            alike.setdefault((stimuli.form, stimuli.values.shape[1:]), []).append(i)
        for places in alike.values():
            pairs = [(spectra[i].layer.path, lane) for i in places for lane in lanes]
            now = _Now.of([spectra[i] for i in places])
            held = self._held.setdefault(now.shape, _Held.nothing(now.shape, now.diagonal.shape[1]))
            found = held.update(pairs, now, self._labels, step == 0, np.tile(anchors, len(places)))
            values[:, places] = found.reshape(len(_COLUMNS), len(places), len(lanes))
        for lane, before, anchor in zip(lanes, steps, anchors, strict=True):
            self._steps[lane] = step, step if anchor or before is None else before[1]
        columns: dict[str, Any] = {
            "layer": [s.layer.path for s in spectra for _ in lanes],
            "layer_index": np.repeat(np.array([s.layer.index for s in spectra], dtype=np.int64), len(lanes)),
            "previous_step": [None if s is None else s[0] for s in steps] * len(spectra),
            "anchor_step": [None if s is None else s[1] for s in steps] * len(spectra),
            **dict(zip(_COLUMNS, values.reshape(len(_COLUMNS), -1), strict=True)),
        }
        return VelocityRows(np.tile(np.array(lanes, dtype=np.int64), len(spectra)), columns)

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything that `load` needs to go on bit for bit."""
        known = np.array([(lane, *self._steps[lane]) for lane in sorted(self._steps)], dtype=np.int64).reshape(-1, 3)
        state: dict[str, NDArray[Any]] = {"steps": known}
        for held in self._held.values():
            state |= held.state()
        return state

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `state`; KeyError where something is missing."""
        self._steps = {int(lane): (int(step), int(anchor)) for lane, step, anchor in state["steps"]}
        self._held = {}
        found: dict[tuple[int, ...], list[str]] = {}
        for key, value in state.items():
            whose, _, part = key.rpartition("/")
            if part == "kept":
                found.setdefault(value.shape[1:], []).append(whose)
        for shape, names in found.items():
            self._held[shape] = _Held.load(state, sorted(names, key=lambda name: int(state[f"{name}/place"][0])))

    @staticmethod
    def picked(state: Mapping[str, NDArray[Any]], lanes: Sequence[int]) -> dict[str, NDArray[Any]]:
        """The state of a tracker whose lane i is lane `lanes[i]` of the one that gave `state`."""
        steps = {int(row[0]): row[1:] for row in state["steps"]}
        known = [(lane, *steps[source]) for lane, source in enumerate(lanes) if source in steps]
        out: dict[str, NDArray[Any]] = {"steps": np.array(known, dtype=np.int64).reshape(-1, 3)}
        first: dict[str, int] = {}
        for key, value in state.items():
            if key.endswith("/place"):
                path = key.rsplit("/", 2)[0]
                first[path] = min(first.get(path, int(value[0])), int(value[0]))
        rank = {path: i for i, path in enumerate(sorted(first, key=lambda path: first[path]))}
        for key, value in state.items():
            whose, _, part = key.rpartition("/")
            path, _, source = whose.rpartition("/")
            for lane in (i for i, s in enumerate(lanes) if path and s == int(source)):
                place = np.array([rank[path] * len(lanes) + lane])
                out[f"{path}/{lane}/{part}"] = place if part == "place" else value
        return out


class _Labels:
    """Centred indicators `[P, C]` of the classes that occur, their kernel as it is kept, its diagonal, its HSIC."""

    def __init__(self, labels: NDArray[Any]) -> None:
        labels = labels[order(len(labels))]
        found = (labels[:, None] == np.unique(labels)).astype(np.float64)
        self.indicators = torch.from_numpy(found - found.mean(0)).float()
        exact = self.indicators.double()
        self.packed = _pack((exact @ exact.mT).unsqueeze(0))[0].float()
        self.diagonal = exact.square().sum(1).numpy()
        self.norm = _hsic(np.asarray((exact.mT @ exact).square().sum().item()), self.diagonal, self.diagonal)

    def alignment(self, now: "_Now") -> Floats:
        """Debiased CKA of representations with the labels `[N]`."""
        mine = self.indicators if now.kept.ndim == 3 else self.packed
        inner = _inner(now.kept, mine.expand(len(now.kept), *mine.shape))
        return _ratio(_hsic(inner, self.diagonal, now.diagonal), self.norm, now.own)


@dataclass(frozen=True)
class _Now:
    """The representations of N pairs of a layer and a lane, all of one shape.

    `kept` float32: features `[N, P, d]`, or, where that is smaller, the diagonal and strict upper triangle of their
    kernels `[N, P (P+1) / 2]`; scaled to rows of norm near 1. With it the kernels' diagonals `[N, P]`, n (n-3) HSIC of
    each with itself, and the leading directions.
    """

    kept: Tensor
    diagonal: Floats
    own: Floats
    directions: Directions

    @classmethod
    def of(cls, spectra: Sequence[Spectrum]) -> "_Now":
        """Of like layers; 0 for lanes that are dead or not finite, which has no kernel and gives null."""
        parts = [_stimuli(s) for s in spectra]
        trace = np.concatenate([s.trace for s in spectra if s.trace is not None])
        bad = np.array([flag is not None for s in spectra for flag in s.flags])
        trace[bad] = np.inf
        scale = parts[0].values.shape[1] / trace
        kept, diagonal = _compact(parts, scale)
        own = _hsic(np.concatenate([p.norm for p in parts]) * scale**2, diagonal, diagonal)
        followed = [p.directions or directions(torch.from_numpy(p.values), p.form == "kernel") for p in parts]
        vectors, rank = torch.cat([f.vectors for f in followed]), np.concatenate([f.rank for f in followed])
        if bad.any():
            kept[bad], diagonal[bad], own[bad], vectors[bad], rank[bad] = 0.0, 0.0, 0.0, 0.0, 0
        return cls(kept, diagonal, own, Directions(vectors, rank))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.kept.shape[1:])


@dataclass
class _Held:
    """What is known of the past of N pairs of a layer and a lane whose representations are of one shape.

    `places`: of each pair among the N. Of the previous measurement, the initialisation and the anchor: what is `kept`
    of the representations `[N, ...]`, n (n-3) HSIC of each with itself `[3, N]`, the diagonals of their kernels
    `[3, N, P]`; of the previous one the leading directions.
    """

    places: dict[tuple[str, int], int]
    kept: list[Tensor]
    norms: Floats
    diagonals: Floats
    directions: Directions

    @classmethod
    def nothing(cls, shape: tuple[int, ...], stimuli: int, pairs: int = 0) -> "_Held":
        kept = [torch.zeros((pairs, *shape)) for _ in range(3)]
        vectors = torch.zeros((pairs, stimuli, DIRECTIONS), dtype=torch.float64)
        followed = Directions(vectors, np.zeros(pairs, np.int64))
        return cls({}, kept, np.zeros((3, pairs)), np.zeros((3, pairs, stimuli)), followed)

    def update(
        self, pairs: list[tuple[str, int]], now: _Now, labels: _Labels | None, first: bool, anchors: NDArray[Any]
    ) -> Floats:
        """The columns `[6, n]` of so many pairs, which are then held; `anchors` says which of them are at an anchor."""
        here = self._where(pairs)
        change = self._change(here, now)
        before = Directions(self.directions.vectors[here], self.directions.rank[here])
        turned = angles(before, now.directions)
        self.directions.vectors[here], self.directions.rank[here] = now.directions
        every = np.ones(len(pairs), dtype=np.bool_)
        for slot, which in ((_PREVIOUS, every), (_INIT, every & first), (_ANCHOR, anchors)):
            if which.all() and len(pairs) == len(self.places):
                self.kept[slot] = now.kept
                self.norms[slot], self.diagonals[slot] = now.own, now.diagonal
            elif which.any():
                at = np.arange(len(self.places))[here][which]
                if sum(kept is self.kept[slot] for kept in self.kept) > 1:
                    self.kept[slot] = self.kept[slot].clone()
                self.kept[slot][at] = now.kept[which]
                self.norms[slot, at], self.diagonals[slot, at] = now.own[which], now.diagonal[which]
        if first:
            change[_INIT] = np.where(now.own > 0, 0.0, np.nan)
        aligned = np.full(len(pairs), np.nan) if labels is None else labels.alignment(now)
        return np.stack((*change, *turned, aligned))

    def _change(self, here: slice | NDArray[Any], now: _Now) -> Floats:
        """1 - CKA of now to what is held, `[3, n]`."""
        inner = np.stack([_inner(kept[here], now.kept) for kept in self.kept])
        change = 1 - _ratio(_hsic(inner, self.diagonals[:, here], now.diagonal), self.norms[:, here], now.own)
        close = np.abs(change) < CLOSE
        for slot in np.flatnonzero(close.any(1)):
            at = np.flatnonzero(close[slot])
            x, y = self.kept[slot][here][at].double(), now.kept[at].double()
            k, l = self.diagonals[slot, here][at], now.diagonal[at]
            norms = _hsic(_inner(x, x), k, k), _hsic(_inner(y, y), l, l)
            change[slot, at] = 1 - _ratio(_hsic(_inner(x, y), k, l), *norms)
        return np.where(np.abs(change) < RESOLUTION, 0.0, change)

    def _where(self, pairs: list[tuple[str, int]]) -> slice | NDArray[Any]:
        """Places of the pairs, room being made for new ones; a slice, which copies nothing, where they are in a row."""
        new = [pair for pair in pairs if pair not in self.places]
        if new:
            more = _Held.nothing(tuple(self.kept[0].shape[1:]), self.diagonals.shape[2], len(new))
            self.kept = [torch.cat(parts) for parts in zip(self.kept, more.kept, strict=True)]
            self.norms = np.concatenate((self.norms, more.norms), 1)
            self.diagonals = np.concatenate((self.diagonals, more.diagonals), 1)
            vectors = torch.cat((self.directions.vectors, more.directions.vectors))
            self.directions = Directions(vectors, np.concatenate((self.directions.rank, more.directions.rank)))
            self.places |= {pair: len(self.places) + i for i, pair in enumerate(new)}
        places = [self.places[pair] for pair in pairs]
        first, last = places[0], places[-1]
        return slice(first, last + 1) if places == list(range(first, last + 1)) else np.array(places)

    def state(self) -> dict[str, NDArray[Any]]:
        """One pair's arrays after the other's."""
        state: dict[str, NDArray[Any]] = {}
        for (path, lane), i in self.places.items():
            parts = {
                "place": np.array([i]),
                "kept": torch.stack([kept[i] for kept in self.kept]).numpy(),
                "norms": self.norms[:, i].copy(),
                "diagonals": self.diagonals[:, i].copy(),
                "directions": self.directions.vectors[i].numpy().copy(),
                "rank": self.directions.rank[i : i + 1].copy(),
            }
            state |= {f"{path}/{lane}/{name}": value for name, value in parts.items()}
        return state

    @classmethod
    def load(cls, state: Mapping[str, NDArray[Any]], names: Sequence[str]) -> "_Held":
        """The inverse of `state`; `names` of the pairs, in the order of their places."""

        def part(name: str, axis: int) -> NDArray[Any]:
            return np.stack([np.asarray(state[f"{whose}/{name}"]) for whose in names], axis)

        split = [name.rpartition("/") for name in names]
        places = {(path, int(lane)): i for i, (path, _, lane) in enumerate(split)}
        followed = Directions(torch.from_numpy(part("directions", 0)), part("rank", 0)[:, 0])
        kept = [torch.from_numpy(x) for x in part("kept", 1)]
        return cls(places, kept, part("norms", 1), part("diagonals", 1), followed)


def debiased_cka(x: ArrayLike, y: ArrayLike) -> float:
    """Debiased linear CKA of two representations `[P, d]` and `[P, e]` of the same stimuli; NaN where one is constant.

    1 for representations equal up to rotation and scale, 0 on average for independent ones, at any P ≥ 4.
    """
    a, b = (torch.from_numpy(v - v.mean(0)) for v in (np.asarray(x, np.float64), np.asarray(y, np.float64)))
    pairs = ((a, b), (a, a), (b, b))
    inner = np.array([(left.mT @ right).square().sum().item() for left, right in pairs])
    diagonals = [np.stack([pair[side].square().sum(1).numpy() for pair in pairs]) for side in (0, 1)]
    both, left, right = _hsic(inner, *diagonals)
    return float(_ratio(both, left, right))


def _stimuli(spectrum: Spectrum) -> Stimuli:
    assert spectrum.stimuli is not None, "velocity needs spectra measured with extras"
    return spectrum.stimuli


def _compact(parts: Sequence[Stimuli], scale: Floats) -> tuple[Tensor, Floats]:
    """What is kept of like representations, and the diagonals of their kernels, which are multiplied by `scale`."""
    _, n, size = parts[0].values.shape
    with np.errstate(over="ignore", invalid="ignore"):
        if parts[0].form == "features" and size <= n // 2:
            single = np.concatenate([p.values for p in parts], dtype=np.float32, casting="same_kind")
            single *= np.sqrt(scale).astype(np.float32)[:, None, None]
            return torch.from_numpy(single), np.einsum("apd,apd->ap", single, single).astype(np.float64)
        values = torch.from_numpy(np.concatenate([p.values for p in parts]))
        kernels = by_lane(values, values.mT) if parts[0].form == "features" else values
        kept = (_pack(kernels) * torch.from_numpy(scale)[:, None]).float()
        return kept, kept[:, :n].double().numpy()


def _pack(kernels: Tensor) -> Tensor:
    """Diagonal, then strict upper triangle, of `[S, P, P]`."""
    upper = torch.triu_indices(kernels.shape[1], kernels.shape[1], 1)
    return torch.cat((kernels.diagonal(dim1=1, dim2=2), kernels[:, upper[0], upper[1]]), 1)


def _inner(x: Tensor, y: Tensor) -> Floats:
    """Inner products `[N]` of kernels; of features `[N, P, d]` and `[N, P, e]` it is |X'Y|_F^2."""
    if x.ndim == 3 and x.dtype == torch.float32 and max(x.shape[2], y.shape[2]) <= native.LARGEST and native.active():
        shared = y[0] if y.stride(0) == 0 else y
        return native.kernels().cross(x.contiguous().numpy(), shared.contiguous().numpy())
    if x.ndim == 3:
        products = by_lane(x.mT, y.contiguous()).flatten(1).double().numpy()
        return np.asarray(np.einsum("ai,ai->a", products, products))
    n = math.isqrt(2 * x.shape[1])
    found = np.empty(len(x))
    for i, (left, right) in enumerate(zip(x.numpy(), y.numpy(), strict=True)):
        weighted = right.astype(np.float64)
        weighted[n:] *= 2
        found[i] = np.einsum("i,i->", left, weighted)
    return found


def _hsic(inner: Floats, left: Floats, right: Floats) -> Floats:
    """n (n-3) HSIC from the inner products `[...]` of centred kernels and their diagonals `[..., n]`."""
    n = left.shape[-1]
    if n < 4:
        return np.zeros(inner.shape)
    crossed = np.einsum("...i,...i->...", left, right)
    traces = left.sum(-1) * right.sum(-1)
    return np.asarray(inner - n / (n - 2) * crossed + traces / ((n - 1) * (n - 2)))


def _ratio(product: ArrayLike, left: ArrayLike, right: ArrayLike) -> Floats:
    square = np.asarray(left) * np.asarray(right)
    usable = (np.asarray(left) > 0) & (np.asarray(right) > 0)
    return np.asarray(np.where(usable, product / np.sqrt(np.where(usable, square, 1.0)), np.nan))
