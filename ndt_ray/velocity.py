"""How far representations turn: debiased CKA between probe-by-probe kernels at different steps, and principal angles.

A representation here is one vector a stimulus: the mean over its positions or tokens (as flattened maps it would cost
P^2 C H W a step, and its kernel would follow translations of the features over the map). The kernel of inner products
of these vectors sees what no spectrum sees, a rotation at constant eigenvalues, and ignores what is no change, a
rotation of the feature axes.

Debiased CKA is the ratio of unbiased HSIC estimates (Song et al. 2012; Kornblith et al. 2019): for centred kernels K
and L of n stimuli with diagonals k and l, n(n-3) HSIC = sum_{i≠j} K L + tr K tr L / ((n-1)(n-2)) - 2 k.l / (n-2).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ndt_ray.grams import by_lane
from ndt_ray.measures import RANK_FLOOR
from ndt_ray.spectra import Spectrum, Stimuli

Floats = NDArray[np.float64]

DIRECTIONS = 5
"""Leading stimulus directions whose principal angles are followed."""

RESOLUTION = 1e-12
"""Differences from 1 and angles below this are 0: what is kept is rounded to float32, which leaves 1e-14 of noise."""

_PREVIOUS, _INIT, _ANCHOR = range(3)


class VelocityRows(NamedTuple):
    """Columns of the table `velocity` but for trial_id and step; `lane` says whose each row is."""

    lane: NDArray[np.int64]
    columns: dict[str, Any]


class VelocityTracker:
    """Follows every layer of the lanes of one pack from measured step to measured step.

    Compared with are the measurement before, the initialisation (step 0 only) and the latest anchor: the first
    measurement at or after each power of two. A lane's rows depend on its own measurements alone. Kept per lane and
    layer are three float32 copies of at most P^2/2 numbers.
    """

    def __init__(self, labels: ArrayLike | None = None) -> None:
        """`labels` `[P]` of the probe's stimuli, in order; without them there is no label alignment."""
        self._labels = None if labels is None else _Labels.of(np.asarray(labels))
        self._layers: dict[str, _Layer] = {}
        self._steps: dict[int, tuple[int, int]] = {}

    def update(self, step: int, lanes: Sequence[int], spectra: Sequence[Spectrum]) -> VelocityRows:
        """One row per layer and lane; `lanes` names those that `spectra` (measured with extras) are of, in order."""
        steps = [self._steps.get(lane) for lane in lanes]
        parts = [self._layer(s).update(step, lanes, steps, _stimuli(s)) for s in spectra]
        for lane, before in zip(lanes, steps, strict=True):
            anchor = step if before is None or step.bit_length() > before[1].bit_length() else before[1]
            self._steps[lane] = step, anchor
        previous = [None if s is None else s[0] for s in steps]
        anchor_steps = [None if s is None else s[1] for s in steps]
        columns: dict[str, Any] = {
            "layer": [s.layer.path for s in spectra for _ in lanes],
            "layer_index": np.repeat(np.array([s.layer.index for s in spectra], dtype=np.int64), len(lanes)),
            "previous_step": previous * len(spectra),
            "anchor_step": anchor_steps * len(spectra),
        }
        for name in _COLUMNS:
            columns[name] = np.concatenate([part[name] for part in parts]) if parts else np.zeros(0)
        return VelocityRows(np.tile(np.array(lanes, dtype=np.int64), len(spectra)), columns)

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything that `load` needs to go on bit for bit."""
        order = sorted(self._steps)
        known = np.array([(lane, *self._steps[lane]) for lane in order], dtype=np.int64).reshape(-1, 3)
        state: dict[str, NDArray[Any]] = {"steps": known}
        for path, layer in self._layers.items():
            for lane, kept in layer.kept.items():
                state |= {f"{path}/{lane}/{field.name}": getattr(kept, field.name) for field in fields(_Kept)}
        return state

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `state`; KeyError where something is missing."""
        self._steps = {int(lane): (int(step), int(anchor)) for lane, step, anchor in state["steps"]}
        self._layers = {}
        for key in state:
            whose, _, part = key.rpartition("/")
            if part == "held":
                path, _, lane = whose.rpartition("/")
                parts = (np.array(state[f"{whose}/{field.name}"]) for field in fields(_Kept))
                self._layers.setdefault(path, _Layer(self._labels)).kept[int(lane)] = _Kept(*parts)

    def _layer(self, spectrum: Spectrum) -> "_Layer":
        return self._layers.setdefault(spectrum.layer.path, _Layer(self._labels))


_COLUMNS = ("velocity", "from_init", "from_anchor", "angle_mean", "angle_max", "label_alignment")


@dataclass
class _Kept:
    """One lane of one layer, of the previous measurement, the initialisation and the anchor.

    `held` float32 `[3, ...]`, n (n-3) HSIC of each with itself `[3]`, the diagonals of their kernels `[3, P]`; the
    previous one's `directions` `[P, 5]`.
    """

    held: NDArray[np.float32]
    norms: Floats
    diagonals: Floats
    directions: Floats


@dataclass(frozen=True)
class _Labels:
    """The label kernel: centred indicators `[C, P]` of the classes that occur, its packed form, diagonal, HSIC."""

    indicators: Floats
    packed: Floats
    diagonal: Floats
    norm: Floats

    @classmethod
    def of(cls, labels: NDArray[Any]) -> "_Labels":
        found = (labels[None, :] == np.unique(labels)[:, None]).astype(np.float64)
        centred = torch.from_numpy(found - found.mean(1, keepdims=True))
        diagonal = centred.square().sum(0).numpy()
        norm = _hsic(np.asarray((centred @ centred.mT).square().sum().item()), diagonal, diagonal)
        return cls(centred.numpy(), _pack((centred.mT @ centred).unsqueeze(0))[0], diagonal, norm)


class _Layer:
    def __init__(self, labels: _Labels | None) -> None:
        self.labels = labels
        self.kept: dict[int, _Kept] = {}

    def update(
        self, step: int, lanes: Sequence[int], before: Sequence[tuple[int, int] | None], stimuli: Stimuli
    ) -> dict[str, Floats]:
        now, directions = _compact(stimuli), _directions(stimuli)
        for i, lane in enumerate(lanes):
            if lane not in self.kept:
                nothing = np.zeros((3, *now.shape[1:]), np.float32)
                diagonals = np.zeros((3, directions.shape[1]))
                self.kept[lane] = _Kept(nothing, np.zeros(3), diagonals, np.zeros_like(directions[i]))
        kept = [self.kept[lane] for lane in lanes]
        inner, diagonal = (_feature_products if now.ndim == 3 else _kernel_products)(kept, now, self.labels)
        labelled = (
            np.zeros_like(diagonal) if self.labels is None else np.broadcast_to(self.labels.diagonal, diagonal.shape)
        )
        diagonals = np.concatenate((np.stack([k.diagonals for k in kept]), diagonal[:, None], labelled[:, None]), 1)
        hsic = _hsic(inner, diagonals, diagonal[:, None])
        norms = np.stack([k.norms for k in kept])
        own = hsic[:, 3:4]
        change = 1 - _ratio(hsic[:, :3], norms, own)
        change = np.where(np.abs(change) < RESOLUTION, 0.0, change)
        mean, largest = _angles(np.stack([k.directions for k in kept]), directions)
        aligned = _ratio(hsic[:, 4], 0.0 if self.labels is None else self.labels.norm, own[:, 0])
        for i, lane_kept in enumerate(kept):
            places = [_PREVIOUS] + [_INIT] * (step == 0) + [_ANCHOR] * _is_anchor(step, before[i])
            lane_kept.held[places], lane_kept.norms[places], lane_kept.diagonals[places] = now[i], own[i], diagonal[i]
            lane_kept.directions = directions[i].copy()
        if step == 0:
            change[:, _INIT] = np.where(own[:, 0] > 0, 0.0, np.nan)
        values = (change[:, _PREVIOUS], change[:, _INIT], change[:, _ANCHOR], mean, largest, aligned)
        return dict(zip(_COLUMNS, values, strict=True))


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


def _is_anchor(step: int, before: tuple[int, int] | None) -> bool:
    return before is None or step.bit_length() > before[1].bit_length()


def _stimuli(spectrum: Spectrum) -> Stimuli:
    """The stimuli of a spectrum; 0 for lanes that are dead or not finite, which has no kernel and gives null."""
    assert spectrum.stimuli is not None, "velocity needs spectra measured with extras"
    bad = np.array([flag is not None for flag in spectrum.flags])
    if not bad.any():
        return spectrum.stimuli
    return Stimuli(spectrum.stimuli.form, np.where(bad[:, None, None], 0.0, spectrum.stimuli.values))


def _compact(stimuli: Stimuli) -> NDArray[np.float32]:
    """What is kept of a representation, float32: features `[S, d, P]`, or, where that is smaller, the diagonal and
    strict upper triangle of its kernels `[S, P (P+1) / 2]`."""
    _, n, size = stimuli.values.shape
    if stimuli.form == "features" and size <= n // 2:
        return np.ascontiguousarray(stimuli.values.transpose(0, 2, 1), dtype=np.float32)
    values = torch.from_numpy(stimuli.values)
    kernels = by_lane(values, values.mT) if stimuli.form == "features" else values
    return _pack(kernels).astype(np.float32)


def _pack(kernels: Tensor) -> Floats:
    """Diagonal, then strict upper triangle, of `[S, P, P]`."""
    upper = torch.triu_indices(kernels.shape[1], kernels.shape[1], 1)
    return torch.cat((kernels.diagonal(dim1=1, dim2=2), kernels[:, upper[0], upper[1]]), 1).numpy()


def _feature_products(kept: Sequence[_Kept], now: NDArray[np.float32], labels: _Labels | None) -> tuple[Floats, Floats]:
    """Inner products `[S, 5]` of the kernels held, of now, and of the labels, with the kernel of now; and the diagonal
    of that, `[S, P]`. With features X and Y the inner product of their kernels is |X'Y|_F^2."""
    lanes, d, n = now.shape
    classes = 0 if labels is None else len(labels.indicators)
    stacked = torch.zeros((4 * d + classes, n), dtype=torch.float64)
    current = stacked[3 * d : 4 * d]
    if labels is not None:
        stacked[4 * d :] = torch.from_numpy(labels.indicators)
    squares, diagonal = np.empty((lanes, 4 * d + classes)), np.empty((lanes, n))
    for i, lane in enumerate(kept):
        stacked[: 3 * d] = torch.from_numpy(lane.held).view(-1, n)
        current[:] = torch.from_numpy(now[i])
        squares[i] = (stacked @ current.mT).square_().sum(1).numpy()
        diagonal[i] = current.square().sum(0).numpy()
    with_kept, with_labels = squares[:, : 4 * d].reshape(lanes, 4, d).sum(2), squares[:, 4 * d :].sum(1)
    return np.concatenate((with_kept, with_labels[:, None]), 1), diagonal


def _kernel_products(kept: Sequence[_Kept], now: NDArray[np.float32], labels: _Labels | None) -> tuple[Floats, Floats]:
    """The same from packed kernels."""
    n = kept[0].diagonals.shape[1]
    inner = np.zeros((len(now), 5))
    for i, lane in enumerate(kept):
        current = now[i].astype(np.float64)
        products = np.concatenate((lane.held, now[i : i + 1]), dtype=np.float64) * current
        inner[i, :4] = products[:, :n].sum(1) + 2 * products[:, n:].sum(1)
        if labels is not None:
            product = labels.packed * current
            inner[i, 4] = product[:n].sum() + 2 * product[n:].sum()
    return inner, now[:, :n].astype(np.float64)


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


def _directions(stimuli: Stimuli) -> Floats:
    """Orthonormal leading directions over stimuli `[S, P, 5]`; 0 beyond the rank."""
    values = torch.from_numpy(stimuli.values)
    lanes, n, size = values.shape
    kernel = stimuli.form == "kernel"
    energy, vectors = torch.linalg.eigh(values if kernel else by_lane(values.mT, values))
    top = min(DIRECTIONS, size)
    energy, vectors = energy[:, -top:].flip(1), vectors[:, :, -top:].flip(2)
    real = energy > RANK_FLOOR * energy[:, :1].clamp_min(torch.finfo(torch.float64).tiny)
    scale = torch.where(real, energy.clamp_min(torch.finfo(torch.float64).tiny).rsqrt(), 0.0)
    out = np.zeros((lanes, n, DIRECTIONS))
    out[:, :, :top] = (vectors * real.unsqueeze(1) if kernel else by_lane(values, vectors) * scale.unsqueeze(1)).numpy()
    return out


def _angles(before: Floats, now: Floats) -> tuple[Floats, Floats]:
    """Mean and largest principal angle between two sets of directions `[S, P, 5]`, over their smaller rank."""
    old, new = torch.from_numpy(before), torch.from_numpy(np.ascontiguousarray(now))
    cosine = by_lane(old.mT, new)
    rest = new - by_lane(old, cosine)
    # The sine comes from what the old directions leave over: the cosine cannot resolve angles below 1e-8.
    sine = np.sqrt(np.clip(np.linalg.eigvalsh(by_lane(rest.mT, rest).numpy()), 0, None))
    cosine_values = np.linalg.svd(cosine.numpy(), compute_uv=False)
    rank_old, rank_new = ((side**2).sum(1).round().sum(1) for side in (before, now))
    rank = np.minimum(rank_old, rank_new)[:, None]
    # Directions beyond the rank are 0 on both sides and take the first places among the ascending sines.
    absent = (now.shape[2] - rank_new)[:, None].astype(np.int64)
    place = np.arange(now.shape[2])[None, :]
    sine = np.take_along_axis(sine, np.minimum(place + absent, now.shape[2] - 1), 1)
    angles = np.where(place < rank, np.arctan2(sine, cosine_values), 0.0)
    angles = np.where(angles < RESOLUTION, 0.0, angles)
    some = rank[:, 0] > 0
    mean = np.where(some, angles.sum(1) / np.maximum(rank[:, 0], 1), np.nan)
    return np.asarray(mean), np.asarray(np.where(some, angles.max(1), np.nan))
