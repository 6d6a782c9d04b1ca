"""How far representations turn: debiased CKA between probe-by-probe kernels at different steps, and principal angles.

A representation here is one vector a stimulus: the mean over its positions or tokens (as flattened maps it would cost
P^2 C H W a step, and its kernel would follow translations of the features over the map). The kernel of inner products
of these vectors sees what no spectrum sees, a rotation at constant eigenvalues, and ignores what is no change, a
rotation of the feature axes.

Debiased CKA is the ratio of unbiased HSIC estimates (Song et al. 2012; Kornblith et al. 2019): for centred kernels K
and L of n stimuli with diagonals k and l, n(n-3) HSIC = sum_{i≠j} K L + tr K tr L / ((n-1)(n-2)) - 2 k.l / (n-2).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ndt_ray.directions import DIRECTIONS, Directions, angles, directions
from ndt_ray.grams import by_lane
from ndt_ray.spectra import Spectrum, Stimuli

Floats = NDArray[np.float64]

RESOLUTION = 1e-8
"""Differences of a CKA from 1 below this are 0: what is kept and multiplied is float32."""

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
        self._labels = None if labels is None else _Labels.of(np.asarray(labels))
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
            now = _Now.of([spectra[i] for i in places], self._labels)
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
        order = sorted(self._steps)
        known = np.array([(lane, *self._steps[lane]) for lane in order], dtype=np.int64).reshape(-1, 3)
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
            if part == "held":
                found.setdefault(value.shape[1:], []).append(whose)
        for shape, names in found.items():
            self._held[shape] = _Held.load(state, sorted(names, key=lambda name: int(state[f"{name}/place"][0])))


@dataclass(frozen=True)
class _Labels:
    """The label kernel: centred indicators `[P, C]` of the classes that occur, its packed form, diagonal, HSIC."""

    indicators: Tensor
    packed: Tensor
    diagonal: Floats
    norm: Floats

    @classmethod
    def of(cls, labels: NDArray[Any]) -> "_Labels":
        found = (labels[:, None] == np.unique(labels)).astype(np.float64)
        centred = torch.from_numpy(found - found.mean(0)).float()
        exact = centred.double()
        diagonal = exact.square().sum(1).numpy()
        norm = _hsic(np.asarray((exact.mT @ exact).square().sum().item()), diagonal, diagonal)
        return cls(centred, _pack((exact @ exact.mT).unsqueeze(0)).float(), diagonal, norm)


@dataclass(frozen=True)
class _Now:
    """The representations of N pairs of a layer and a lane, all of one shape.

    `kept` float32: features `[N, P, d]`, or, where that is smaller, the diagonal and strict upper triangle of their
    kernels `[N, P (P+1) / 2]`. `diagonal` of these `[N, P]`; n (n-3) HSIC of each with itself, and with the labels.
    """

    kept: Tensor
    diagonal: Floats
    own: Floats
    labelled: Floats | None
    directions: Directions

    @classmethod
    def of(cls, spectra: Sequence[Spectrum], labels: _Labels | None) -> "_Now":
        """Of like layers; 0 for lanes that are dead or not finite, which has no kernel and gives null."""
        parts = [_stimuli(s) for s in spectra]
        kept, diagonal = _compact(parts)
        followed = [p.directions or directions(torch.from_numpy(p.values), p.form == "kernel") for p in parts]
        vectors, rank = torch.cat([f.vectors for f in followed]), np.concatenate([f.rank for f in followed])
        bad = np.array([flag is not None for s in spectra for flag in s.flags])
        if bad.any():
            kept[bad], diagonal[bad], vectors[bad], rank[bad] = 0.0, 0.0, 0.0, 0
        own = _hsic(_inner(kept, kept), diagonal, diagonal)
        labelled = None
        if labels is not None:
            theirs = labels.indicators if kept.ndim == 3 else labels.packed
            inner = _inner(theirs.expand(len(kept), *theirs.shape[-2:]), kept)
            labelled = _hsic(inner, labels.diagonal, diagonal)
        return cls(kept, diagonal, own, labelled, Directions(vectors, rank))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.kept.shape[1:])


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


def _together(spectra: Sequence[Spectrum]) -> Stimuli:
    """The stimuli of like layers; 0 for lanes that are dead or not finite, which has no kernel and gives null."""
    parts = [_stimuli(s) for s in spectra]
    values = np.concatenate([part.values for part in parts])
    found = [part.leading for part in parts if part.leading is not None]
    leading = Leading(*map(np.concatenate, zip(*found, strict=True))) if found else None
    bad = np.array([flag is not None for s in spectra for flag in s.flags])
    if bad.any():
        values[bad] = 0.0
        if leading is not None:
            leading.values[bad] = 0.0
    return Stimuli(parts[0].form, values, leading)


def _kept_shape(stimuli: Stimuli) -> tuple[int, ...]:
    """Of what is kept of a representation: features `[P, d]`, or, where that is smaller, the diagonal and strict upper
    triangle of its kernel `[P (P+1) / 2]`."""
    _, n, size = stimuli.values.shape
    return (n, size) if stimuli.form == "features" and size <= n // 2 else (n * (n + 1) // 2,)


def _pack(kernels: Tensor) -> Tensor:
    """Diagonal, then strict upper triangle, of `[S, P, P]`."""
    upper = torch.triu_indices(kernels.shape[1], kernels.shape[1], 1)
    return torch.cat((kernels.diagonal(dim1=1, dim2=2), kernels[:, upper[0], upper[1]]), 1)


def _feature_products(held: Tensor, now: Tensor, labels: _Labels | None) -> tuple[Floats, Floats]:
    """Inner products `[5, S]` of the kernels held, of now, and of the labels, with the kernel of now; and the diagonal
    of that, `[S, P]`. With features X and Y the inner product of their kernels is |X'Y|_F^2."""
    others = [*held, now]
    if labels is not None:
        others.append(labels.indicators.repeat(len(now), 1, 1))
    inner = [by_lane(other.mT, now).square_().sum((1, 2)) for other in others]
    return torch.stack(inner).numpy(), now.square().sum(2).numpy()


def _kernel_products(held: Tensor, now: Tensor, labels: _Labels | None, n: int) -> tuple[Floats, Floats]:
    """The same from packed kernels."""
    current = now.numpy()
    weighted = 2 * current
    weighted[:, :n] = current[:, :n]
    inner = [np.einsum("si,si->s", other, weighted) for other in (*held.numpy(), current)]
    if labels is not None:
        inner.append(np.einsum("i,si->s", labels.packed, weighted))
    return np.stack(inner), current[:, :n]


def _hsic(inner: Floats, left: Floats, right: Floats) -> Floats:
    """n (n-3) HSIC from the inner products `[...]` of centred kernels and their diagonals `[..., n]`."""
    n = left.shape[-1]
    if n < 4:
        return np.zeros(inner.shape)
    crossed = (left * right).sum(-1)
    traces = left.sum(-1) * right.sum(-1)
    return np.asarray(inner - n / (n - 2) * crossed + traces / ((n - 1) * (n - 2)))


def _ratio(product: ArrayLike, left: ArrayLike, right: ArrayLike) -> Floats:
    square = np.asarray(left) * np.asarray(right)
    usable = (np.asarray(left) > 0) & (np.asarray(right) > 0)
    return np.asarray(np.where(usable, product / np.sqrt(np.where(usable, square, 1.0)), np.nan))


def _directions(stimuli: Stimuli) -> Tensor:
    """Orthonormal leading directions over stimuli `[S, P, 5]`; 0 beyond the rank."""
    values = torch.from_numpy(stimuli.values)
    kernel = stimuli.form == "kernel"
    if stimuli.leading is None:
        energy, vectors = torch.linalg.eigh(values if kernel else by_lane(values.mT, values))
        energy, vectors = energy[:, -DIRECTIONS:].flip(1), vectors[:, :, -DIRECTIONS:].flip(2)
    else:
        energy, vectors = map(torch.from_numpy, stimuli.leading)
    tiny = torch.finfo(torch.float64).tiny
    real = energy > RANK_FLOOR * energy[:, :1].clamp_min(tiny)
    if kernel:
        found = vectors * real.unsqueeze(1)
    else:
        scale = torch.where(real, energy.clamp_min(tiny).rsqrt(), 0.0)
        found = by_lane(values, vectors.contiguous()) * scale.unsqueeze(1)
    return torch.nn.functional.pad(found, (0, DIRECTIONS - found.shape[2]))


def _angles(before: Tensor, now: Tensor) -> tuple[Floats, Floats]:
    """Mean and largest principal angle between two sets of directions `[S, P, 5]`, over their smaller rank."""
    # The sines come from what the old directions leave over: cosines cannot resolve angles below 1e-8.
    rest = now - by_lane(before, by_lane(before.mT, now))
    sines = np.sqrt(torch.linalg.eigvalsh(by_lane(rest.mT, rest)).clamp_(0, 1).numpy())
    rank_before, rank_now = ((side != 0).any(1).sum(1).numpy()[:, None] for side in (before, now))
    rank = np.minimum(rank_before, rank_now)
    # Directions beyond the rank are 0 on both sides and take the first places among the ascending sines.
    place = np.arange(now.shape[2])
    sines = np.take_along_axis(sines, np.minimum(place + now.shape[2] - rank_now, now.shape[2] - 1), 1)
    angles = np.where(place < rank, np.arcsin(sines), 0.0)
    angles = np.where(angles < RESOLUTION, 0.0, angles)
    mean = np.where(rank[:, 0] > 0, angles.sum(1) / np.maximum(rank[:, 0], 1), np.nan)
    return mean, np.where(rank[:, 0] > 0, angles.max(1), np.nan)
