"""Activations of the tracked layers -> Gram matrices -> eigenvalue spectra, for every lane of a pack.

The Gram matrix of the smaller side is formed on the activations' device and solved on the host (values only; batched
`eigvalsh` on a GPU is 100 times slower above n = 32 before torch 2.12). A lane's numbers are the same bits whatever
other lanes are measured with it. An expanding Linear is measured through its input, exactly: its output y = W x + b is
y = Q R (x, 1) with orthonormal Q, so that R (x, 1), of d_in + 1 features, has the same Gram matrix of rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ndt_ray import native
from ndt_ray.errors import SpecError
from ndt_ray.measurement import grams
from ndt_ray.measurement.directions import DIRECTIONS, Directions, Leading, directions
from ndt_ray.measurement.grams import BLOCKS, Shape
from ndt_ray.measurement.measures import GRAM_SUMS as GRAM_SUMS
from ndt_ray.measurement.views import as_matrix as as_matrix
from ndt_ray.measurement.views import by_stimulus

Floats = NDArray[np.float64]
Lanes = Tensor | Sequence[Tensor]
"""A layer's activations for all lanes: `[S, n, ...]`, or S tensors `[n, ...]`."""

DEAD = 1e-13
"""A centred trace below this share of the uncentred one is round-off of equal rows (float32 resolves 1e-14)."""

SOLVED = 1e-9
"""Relative agreement of the eigenvalues' sum and sum of squares with the Gram matrix's; observed: below 1e-13."""


@dataclass(frozen=True)
class Layer:
    """A tracked layer: module path, place in the forward pass, kind of activations, view."""

    path: str
    index: int
    kind: str
    view: str


class LinearInput(NamedTuple):
    """What an expanding Linear is measured through: its input `[S, n, ..., d_in]`, weight `[S, d_out, d_in]`, bias."""

    inputs: Lanes
    weight: Lanes
    bias: Lanes | None = None


@dataclass(frozen=True)
class Stimuli:
    """A layer's representation, one entry a stimulus: the mean over its positions or tokens, centred, `[S, P, d]`.

    `features`: in some orthonormal coordinates of the feature space. `kernel`: as inner products, d = P. Which of
    them is a function of the layer's shape alone. Stimuli stand in the order of `grams.order`. `norm`: sum of the
    squared inner products, `[S]`.
    """

    form: Literal["features", "kernel"]
    values: Floats
    norm: Floats
    directions: Directions | None = None


@dataclass(frozen=True)
class Spectrum:
    """One layer at one step, for S lanes. Arrays are float64 `[S, ...]`; None where it was not asked for.

    `eigenvalues` are descending, at most min(rows, features) of them (those of an expanding Linear end at its rank).
    `flags` say why a lane's values are null: dead, nonfinite, solver.
    """

    layer: Layer
    shape: Shape
    flags: tuple[str | None, ...]
    eigenvalues_uncentred: Floats
    trace_uncentred: Floats
    eigenvalues: Floats | None = None
    trace: Floats | None = None
    mean_norm: Floats | None = None
    gram_sums: Floats | None = None
    delete_block_pr: Floats | None = None
    stimuli: Stimuli | None = None

    def part(self, layer: Layer, lanes: slice) -> "Spectrum":
        """Some of the lanes, as those of `layer`."""
        parts: dict[str, Any] = {n: None if v is None else _part(v, lanes) for n, v in self.__dict__.items()}
        return Spectrum(**(parts | {"layer": layer}))


@torch.no_grad()
def measure_layers(
    activations: Mapping[str, Lanes],
    layers: Sequence[Layer],
    *,
    centred: bool = True,
    extras: bool = True,
    with_directions: bool = False,
    linear: Mapping[str, LinearInput] | None = None,
) -> list[Spectrum]:
    """Spectra of all layers and lanes, in the order of `layers`.

    `extras` adds mean norm, Gram sums, delete-block participation ratios and `stimuli` (and implies `centred`);
    `with_directions` the leading ones of stimuli (which then come with the centred spectrum where they can).
    `linear` gives, by path, inputs and weights of Linear layers; used where d_in + 1 is the smallest side, or where
    there are no `activations` of the layer.
    """
    taken = [stacks_of(layer, activations.get(layer.path), (linear or {}).get(layer.path)) for layer in layers]
    alike: dict[tuple[Shape, int, torch.device], list[int]] = {}
    for i, (stacks, features) in enumerate(taken):
        _, stimuli, m, f = stacks[0].shape
        alike.setdefault((Shape(stimuli, m, features), f, stacks[0].device), []).append(i)
    groups = [(key[0], [stack for i in places for stack in taken[i][0]]) for key, places in alike.items()]
    if centred or extras:
        together = _centred(groups, extras, extras and with_directions)
    else:
        together = _uncentred_only(groups)
    out: dict[int, Spectrum] = {}
    for places, found in zip(alike.values(), together, strict=True):
        start = 0
        for i in places:
            stop = start + sum(len(stack) for stack in taken[i][0])
            out[i] = found.part(layers[i], slice(start, stop))
            start = stop
    return [out[i] for i in range(len(layers))]


def stacks_of(layer: Layer, lanes: Lanes | None, through: LinearInput | None) -> tuple[list[Tensor], int]:
    """Stacks of lanes `[S_i, P, m, f]`, and how many features the layer really has."""
    if through is not None and layer.kind != "positions":
        weight = through.weight
        d_out, d_in = weight[0].shape
        inputs = [by_stimulus(x, layer.kind, layer.view) for x in through.inputs]
        if lanes is None or d_in + 1 < min(d_out, inputs[0].shape[0] * inputs[0].shape[1]):
            bias = through.bias if through.bias is not None else [w.new_zeros(d_out) for w in weight]
            return [_through(x, w, b)[None] for x, w, b in zip(inputs, weight, bias, strict=True)], d_out
    if lanes is None:
        raise SpecError(f"no activations were captured for layer '{layer.path}'")
    if isinstance(lanes, Tensor) and not lanes.is_cuda:
        stacks = [by_stimulus(lanes, layer.kind, layer.view, lanes=1)]
    else:
        stacks = [by_stimulus(a, layer.kind, layer.view)[None] for a in lanes]
    return stacks, stacks[0].shape[3]


def _through(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """R (x, 1) of one lane's `[P, m, d_in]`, R being the triangle of the layer's (W, b)."""
    affine = torch.cat((weight, bias[:, None]), 1).double().cpu()
    products = affine.mT @ affine
    if not bool(products.diagonal().isfinite().all()):
        return inputs.new_full((*inputs.shape[:2], affine.shape[1]), torch.nan)
    # Cholesky's triangle errs by the round-off of the products, as a Gram matrix does; a tenth of a QR's time.
    r, singular = torch.linalg.cholesky_ex(products, upper=True)
    if bool(singular):
        r = torch.linalg.qr(affine, mode="r").R
    r = r.to(inputs.device)
    out = torch.addmm(r[:, -1], inputs.reshape(-1, inputs.shape[2]).double(), r[:, :-1].mT)
    return out.view(*inputs.shape[:2], -1)


class _Found(NamedTuple):
    """`grams.Sums` of all lanes, on the host; `gram` matrices `[S, side, side]`."""

    centred: Floats
    uncentred: Floats
    mean_square: Floats
    stimulus: Floats
    k_k: Floats
    block: Floats
    means: Floats

    @classmethod
    def of(cls, sums: grams.Sums) -> "_Found":
        return cls(*(_host(getattr(sums, name)) for name in cls._fields))


def _host(x: Tensor) -> Floats:
    return np.ascontiguousarray(x.cpu().numpy())


_Group = tuple[Shape, list[Tensor]]
"""Layers of one shape, as stacks of lanes."""

_NO_LAYER = Layer("", 0, "", "")


def _uncentred_only(groups: Sequence[_Group]) -> list[Spectrum]:
    solved = _solve([(_host(grams.gram(stacks)), 0) for _, stacks in groups])
    return [
        Spectrum(_NO_LAYER, shape, _flags(s.trace, s.trace <= 0, s.failed), s.values, s.trace)
        for (shape, _), s in zip(groups, solved, strict=True)
    ]


def _centred(groups: Sequence[_Group], extras: bool, with_directions: bool) -> list[Spectrum]:
    found = [_Found.of(grams.sums(stacks)) for _, stacks in groups]
    # With one row a stimulus, the matrix of the stimuli is the matrix.
    shared = [DIRECTIONS if with_directions and shape.rows == 1 else 0 for shape, _ in groups]
    wanted = [*((f.centred, n) for f, n in zip(found, shared, strict=True)), *((f.uncentred, 0) for f in found)]
    solved = _solve(wanted)
    out = []
    for (shape, _), f, p, r in zip(groups, found, solved[: len(found)], solved[len(found) :], strict=True):
        out.append(_spectrum(shape, f, p, r, _stimuli(shape, f, p, with_directions) if extras else None))
    return out


def _stimuli(shape: Shape, found: _Found, plain: "Solved", with_directions: bool) -> Stimuli:
    kernel = found.centred.shape[1] == shape.total
    followed = directions(torch.from_numpy(found.means), kernel, plain.leading) if with_directions else None
    return Stimuli("kernel" if kernel else "features", found.means, found.k_k, followed)


class Solved(NamedTuple):
    """Eigenvalues `[k, n]`, descending and not negative; the matrices' trace and squared norm `[k]`; whether the
    solver failed its check `[k]`; the leading eigenvectors, if asked for."""

    values: Floats
    trace: Floats
    norm: Floats
    failed: NDArray[np.bool_]
    leading: Leading | None = None


def _solve(matrices: Sequence[tuple[Floats, int]]) -> list[Solved]:
    """Solutions of several `[k, n, n]`, with so many leading vectors each; those that are alike in one call."""
    out: dict[int, Solved] = {}
    alike: dict[tuple[int, int], list[int]] = {}
    for i, (matrix, leading) in enumerate(matrices):
        alike.setdefault((matrix.shape[-1], leading), []).append(i)
    for (_, leading), places in alike.items():
        parts = [matrices[i][0] for i in places]
        solution = eigenvalues(np.concatenate(parts) if len(parts) > 1 else parts[0], leading)
        start = 0
        for i, part in zip(places, parts, strict=True):
            stop = start + len(part)
            out[i] = Solved(*(_part(values, slice(start, stop)) for values in solution))
            start = stop
    return [out[i] for i in range(len(matrices))]


def _part(value: Any, lanes: slice) -> Any:
    """Some lanes of anything that holds all of them: an array, a tuple of flags, a record of such."""
    if isinstance(value, np.ndarray):
        return value[lanes]
    if isinstance(value, Leading):
        return Leading(value.values[lanes], value.vectors[lanes])
    if isinstance(value, Directions):
        return Directions(value.vectors[lanes], value.rank[lanes])
    if isinstance(value, Stimuli):
        return Stimuli(**{field.name: _part(getattr(value, field.name), lanes) for field in fields(value)})
    return value[lanes] if type(value) is tuple else value


def eigenvalues(matrices: Floats, leading: int = 0) -> Solved:
    """Spectra of symmetric non-negative matrices `[k, n, n]`, each solved by itself, on the host.

    The sum and sum of squares of the eigenvalues are checked against the matrix; what is not finite, or fails, is NaN.
    `leading`: how many eigenvectors are wanted, n at most.
    """
    trace = np.einsum("kii->k", matrices)
    finite = np.isfinite(trace)
    if not finite.all():
        # LAPACK would refuse, or loop, on what is not finite.
        matrices = np.where(finite[:, None, None], matrices, 0.0)
    values, vectors = _descending(matrices, min(leading, matrices.shape[-1]))
    norm = _squares(matrices.reshape(len(matrices), -1))
    with np.errstate(invalid="ignore"):
        # What the batched kernel has not solved is NaN, for which neither holds.
        right = np.abs(values.sum(1) - trace) <= SOLVED * trace
        right &= np.abs(_squares(values) - norm) <= SOLVED * norm
    failed = finite & ~right
    values = np.maximum(values, 0.0)
    if not right.all():
        values[~right] = np.nan
    return Solved(values, trace, norm, failed, None if vectors is None else Leading(values[:, :leading], vectors))


def _descending(matrices: Floats, leading: int) -> tuple[Floats, Floats | None]:
    """Eigenvalues, and the leading eigenvectors if any are wanted.

    Their side alone says what solves them, not how many there are: a lane's bits do not depend on the others.
    """
    if matrices.shape[-1] <= native.LARGEST and native.active():
        values, vectors = native.kernels().eigen(matrices, leading)
        return values, vectors if leading else None
    if not leading:
        return torch.linalg.eigvalsh(torch.from_numpy(matrices)).numpy()[:, ::-1], None
    ascending, found = torch.linalg.eigh(torch.from_numpy(matrices))
    return ascending.numpy()[:, ::-1], found.numpy()[:, :, : -leading - 1 : -1]


def _squares(x: Floats, y: Floats | None = None) -> Floats:
    # Not `vecdot`: BLAS may split a long dot product over threads.
    return np.asarray(np.einsum("...i,...i->...", x, x if y is None else y))


def _flags(trace: Floats, dead: NDArray[np.bool_], failed: NDArray[np.bool_]) -> tuple[str | None, ...]:
    if bool(np.isfinite(trace).all()) and not dead.any() and not failed.any():
        return (None,) * len(trace)
    return tuple(
        "nonfinite" if not np.isfinite(t) else "dead" if d else "solver" if f else None
        for t, d, f in zip(trace, dead, failed, strict=True)
    )


def _spectrum(shape: Shape, found: _Found, plain: Solved, raw: Solved, stimuli: Stimuli | None) -> Spectrum:
    dead = plain.trace <= DEAD * raw.trace
    # A dead layer's spectrum is zero, not the round-off that is left of it; its measures are then null.
    values = np.where(dead[:, None], 0.0, plain.values)
    trace = np.where(dead, 0.0, plain.trace)
    flags = _flags(raw.trace, dead, plain.failed | raw.failed)
    if stimuli is None:
        return Spectrum(_NO_LAYER, shape, flags, raw.values, raw.trace, values, trace)
    return Spectrum(
        _NO_LAYER,
        shape,
        flags,
        raw.values,
        raw.trace,
        values,
        trace,
        mean_norm=np.sqrt(found.mean_square),
        gram_sums=_gram_sums(found, shape, plain.norm),
        delete_block_pr=np.where(dead[:, None], np.nan, _delete_block_pr(found, shape, plain)),
        stimuli=stimuli,
    )


def _gram_sums(found: _Found, shape: Shape, norm: Floats) -> Floats:
    stimulus = found.stimulus
    m_m = norm / shape.rows**2
    total = stimulus.sum(-1)
    square = _squares(stimulus)
    if shape.rows == 1:
        t, tt = total[:, 0], square[:, 0]
        parts = (t, tt, t, tt, tt, m_m, m_m, tt, tt, m_m)
    else:
        kt = _squares(stimulus[:, 0], stimulus[:, 1])
        parts = (total[:, 0], square[:, 0], total[:, 1], square[:, 1], kt, found.k_k, m_m, *total[:, 2:].T)
    return np.stack(parts, -1)


def _delete_block_pr(found: _Found, shape: Shape, plain: Solved) -> Floats:
    """Participation ratio of the re-centred matrix without each block of stimuli, `[S, 16]`; NaN for an empty block.

    With the block's second moment B and row sum s, and n rows left, what is left has covariance G - B - s s' / n.
    """
    trace, norm = plain.trace, plain.norm
    cross, own, kept, shift = np.moveaxis(found.block, 1, 0)
    sizes = np.array([len(range(b, shape.stimuli, BLOCKS)) for b in range(BLOCKS)])
    left = np.where((sizes > 0) & (sizes < shape.stimuli - 1), (shape.stimuli - sizes) * shape.rows, np.nan)
    held = found.stimulus[:, 0].reshape(len(trace), BLOCKS, -1).sum(-1) * shape.rows
    traces = trace[:, None] - held - shift / left
    norms = norm[:, None] - 2 * cross + own - 2 * kept / left + (shift / left) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(traces > DEAD * trace[:, None], traces**2 / norms, np.nan))
