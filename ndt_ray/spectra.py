"""Activations of the tracked layers -> Gram matrices -> eigenvalue spectra, for every lane of a pack.

The Gram matrix of the smaller side is formed on the activations' device and solved on the host (values only; batched
`eigvalsh` on a GPU is 100 times slower above n = 32 before torch 2.12). A lane's numbers are the same bits whatever
other lanes are measured with it. An expanding Linear is measured through its input, exactly: its output y = W x + b is
y = Q R (x, 1) with orthonormal Q, so that R (x, 1), of d_in + 1 features, has the same Gram matrix of rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ndt_ray import grams
from ndt_ray.errors import SpecError
from ndt_ray.grams import BLOCKS, Shape
from ndt_ray.measures import GRAM_SUMS as GRAM_SUMS
from ndt_ray.measures import all_measures, participation_ratio_corrected
from ndt_ray.views import as_matrix as as_matrix
from ndt_ray.views import by_stimulus
from ndt_ray.views import view_of as view_of

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
    them is a function of the layer's shape alone.
    """

    form: Literal["features", "kernel"]
    values: Floats


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


class Rows(NamedTuple):
    """Columns of the tables `measurements` and `spectra` but for trial_id and step; `lane` says whose each row is."""

    lane: NDArray[np.int64]
    measurements: dict[str, Any]
    spectra: dict[str, Any]


@torch.no_grad()
def measure_layers(
    activations: Mapping[str, Lanes],
    layers: Sequence[Layer],
    *,
    centred: bool = True,
    extras: bool = True,
    linear: Mapping[str, LinearInput] | None = None,
) -> list[Spectrum]:
    """Spectra of all layers and lanes, in the order of `layers`.

    `extras` adds mean norm, Gram sums, delete-block participation ratios and `stimuli` (and implies `centred`).
    `linear` gives, by path, inputs and weights of Linear layers; used where d_in + 1 is the smallest side, or where
    there are no `activations` of the layer.
    """
    taken = [_take(layer, activations.get(layer.path), (linear or {}).get(layer.path)) for layer in layers]
    if not (centred or extras):
        return _uncentred_only(layers, taken)
    found = [_Found.of(grams.sums(lanes)) for lanes, _ in taken]
    solved = _solve([g for f in found for g in (f.centred, f.uncentred)])
    out = []
    for i, (layer, (lanes, features)) in enumerate(zip(layers, taken, strict=True)):
        shape = Shape(lanes[0].shape[0], lanes[0].shape[1], features)
        out.append(_spectrum(layer, shape, found[i], solved[2 * i], solved[2 * i + 1], extras))
    return out


def _take(layer: Layer, lanes: Lanes | None, through: LinearInput | None) -> tuple[Lanes, int]:
    """`[P, m, f]` a lane, and how many features the layer really has."""
    if through is not None and layer.kind != "positions":
        weight = through.weight
        d_out, d_in = weight[0].shape
        inputs = [by_stimulus(x, layer.kind, layer.view) for x in through.inputs]
        if lanes is None or d_in + 1 < min(d_out, inputs[0].shape[0] * inputs[0].shape[1]):
            bias = through.bias if through.bias is not None else [w.new_zeros(d_out) for w in weight]
            return [_through(x, w, b) for x, w, b in zip(inputs, weight, bias, strict=True)], d_out
    if lanes is None:
        raise SpecError(f"no activations were captured for layer '{layer.path}'")
    if isinstance(lanes, Tensor) and not lanes.is_cuda:
        rows = by_stimulus(lanes, layer.kind, layer.view, lanes=1)
        return rows, rows.shape[3]
    each = [by_stimulus(a, layer.kind, layer.view) for a in lanes]
    return each, each[0].shape[2]


def _through(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """R (x, 1) of one lane's `[P, m, d_in]`, R being the triangle of the layer's (W, b)."""
    affine = torch.cat((weight, bias[:, None]), 1).double().cpu()
    if not bool(torch.isfinite(affine).all()):
        return inputs.new_full((*inputs.shape[:2], affine.shape[1]), torch.nan)
    r = torch.linalg.qr(affine, mode="r").R.to(inputs.device)
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


def _uncentred_only(layers: Sequence[Layer], taken: list[tuple[Lanes, int]]) -> list[Spectrum]:
    solved = _solve([_host(grams.gram(lanes)) for lanes, _ in taken])
    out = []
    for layer, (lanes, features), (values, trace, failed) in zip(layers, taken, solved, strict=True):
        shape = Shape(lanes[0].shape[0], lanes[0].shape[1], features)
        out.append(Spectrum(layer, shape, _flags(trace, trace <= 0, failed), values, trace))
    return out


class Solved(NamedTuple):
    """Eigenvalues `[k, n]`, descending and not negative; trace `[k]`; whether the solver failed its check `[k]`."""

    values: Floats
    trace: Floats
    failed: NDArray[np.bool_]


def _solve(matrices: list[Floats]) -> list[Solved]:
    """Descending eigenvalues, trace, and whether the solver failed its check; matrices of one size in one call."""
    out: list[Solved | None] = [None] * len(matrices)
    for side in sorted({m.shape[-1] for m in matrices}):
        places = [i for i, m in enumerate(matrices) if m.shape[-1] == side]
        stacked = np.concatenate([matrices[i] for i in places]) if len(places) > 1 else matrices[places[0]]
        start = 0
        solution = eigenvalues(stacked)
        for i in places:
            stop = start + len(matrices[i])
            out[i] = Solved(solution.values[start:stop], solution.trace[start:stop], solution.failed[start:stop])
            start = stop
    return [s for s in out if s is not None]


def eigenvalues(matrices: Floats) -> Solved:
    """Spectra of symmetric non-negative matrices `[k, n, n]`, each solved by itself, on the host.

    The sum and sum of squares of the eigenvalues are checked against the matrix; what is not finite, or fails, is NaN.
    """
    trace = np.trace(matrices, axis1=1, axis2=2)
    finite = np.isfinite(trace)
    if not finite.all():
        # LAPACK would refuse, or loop, on what is not finite.
        matrices = np.where(finite[:, None, None], matrices, 0.0)
    values = torch.linalg.eigvalsh(torch.from_numpy(matrices)).numpy()[:, ::-1]
    flat = matrices.reshape(len(matrices), -1)
    norm = _squares(flat)
    with np.errstate(invalid="ignore"):
        off = np.abs(values.sum(1) - trace) > SOLVED * trace
        off |= np.abs((values * values).sum(1) - norm) > SOLVED * norm
    failed = off & finite
    values = np.where((finite & ~failed)[:, None], np.clip(values, 0.0, None), np.nan)
    return Solved(values, trace, failed)


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


def _spectrum(layer: Layer, shape: Shape, found: _Found, plain: Solved, raw: Solved, extras: bool) -> Spectrum:
    dead = plain.trace <= DEAD * raw.trace
    # A dead layer's spectrum is zero, not the round-off that is left of it; its measures are then null.
    values = np.where(dead[:, None], 0.0, plain.values)
    spectrum = Spectrum(
        layer,
        shape,
        _flags(raw.trace, dead, plain.failed | raw.failed),
        raw.values,
        raw.trace,
        values,
        np.where(dead, 0.0, plain.trace),
    )
    if not extras:
        return spectrum
    norm = _squares(found.centred.reshape(len(dead), -1))
    form: Literal["features", "kernel"] = "kernel" if found.centred.shape[1] == shape.total else "features"
    return Spectrum(
        **{
            **vars(spectrum),
            "mean_norm": np.sqrt(found.mean_square),
            "gram_sums": _gram_sums(found, shape, norm),
            "delete_block_pr": np.where(dead[:, None], np.nan, _delete_block_pr(found, shape, plain.trace, norm)),
            "stimuli": Stimuli(form, found.means),
        }
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


def _delete_block_pr(found: _Found, shape: Shape, trace: Floats, norm: Floats) -> Floats:
    """Participation ratio of the re-centred matrix without each block of stimuli, `[S, 16]`; NaN for an empty block.

    With the block's second moment B and row sum s, and n rows left, what is left has covariance G - B - s s' / n.
    """
    cross, own, kept, shift = np.moveaxis(found.block, 1, 0)
    sizes = np.array([len(range(b, shape.stimuli, BLOCKS)) for b in range(BLOCKS)])
    left = np.where((sizes > 0) & (sizes < shape.stimuli - 1), (shape.stimuli - sizes) * shape.rows, np.nan)
    held = found.stimulus[:, 0].reshape(len(trace), BLOCKS, -1).sum(-1) * shape.rows
    traces = trace[:, None] - held - shift / left
    norms = norm[:, None] - 2 * cross + own - 2 * kept / left + (shift / left) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(traces > DEAD * trace[:, None], traces**2 / norms, np.nan))


def rows(spectra: Sequence[Spectrum], keep: str | int = "full") -> Rows:
    """Columns of `measurements` and `spectra` for all layers and lanes, layer by layer, lanes in order.

    `keep`: full, none, or how many of the largest eigenvalues a row of `spectra` holds. Null is NaN, or None in
    columns of text.
    """
    lanes = [len(s.flags) for s in spectra]
    common = _common(spectra, lanes)
    uncentred = _measures([s.eigenvalues_uncentred for s in spectra])
    plain = _measures([_or_nan(s.eigenvalues, n) for s, n in zip(spectra, lanes, strict=True)])
    corrected = [
        None if s.gram_sums is None else participation_ratio_corrected(s.gram_sums, s.shape.stimuli) for s in spectra
    ]
    dead = np.isnan(plain["stable_rank"])
    measurements = {
        **common,
        **plain,
        "participation_ratio_corrected": np.where(dead, np.nan, _column(corrected, lanes)),
        **{f"{name}_uncentred": values for name, values in uncentred.items()},
        "flag": [flag for s in spectra for flag in s.flags],
    }
    size = {"full": None, "none": 0}.get(keep) if isinstance(keep, str) else keep
    kept = {
        **common,
        "n_rows": _repeat([s.shape.total for s in spectra], lanes),
        "n_features": _repeat([s.shape.features for s in spectra], lanes),
        "trace": _column([s.trace for s in spectra], lanes),
        "trace_uncentred": _column([s.trace_uncentred for s in spectra], lanes),
        "mean_norm": _column([s.mean_norm for s in spectra], lanes),
        "eigenvalues": _lists([s.eigenvalues for s in spectra], lanes, size, np.float32),
        "eigenvalues_uncentred": _lists([s.eigenvalues_uncentred for s in spectra], lanes, size, np.float32),
        "gram_sums": _lists([s.gram_sums for s in spectra], lanes, None, np.float64),
        "delete_block_pr": _lists([s.delete_block_pr for s in spectra], lanes, None, np.float32),
    }
    lane = np.concatenate([np.arange(n) for n in lanes]) if lanes else np.zeros(0, np.int64)
    return Rows(lane, measurements, kept)


def _common(spectra: Sequence[Spectrum], lanes: list[int]) -> dict[str, Any]:
    return {
        "layer": [s.layer.path for s, n in zip(spectra, lanes, strict=True) for _ in range(n)],
        "layer_index": _repeat([s.layer.index for s in spectra], lanes),
        "view": [s.layer.view for s, n in zip(spectra, lanes, strict=True) for _ in range(n)],
        "n_stimuli": _repeat([s.shape.stimuli for s in spectra], lanes),
    }


def _measures(spectra: list[Floats]) -> dict[str, Floats]:
    """All measures of `[S, r]` a layer, concatenated; layers of one length in one call."""
    sizes = [s.shape[1] for s in spectra]
    start = np.cumsum([0, *(len(s) for s in spectra)])
    out: dict[str, Floats] = {name: np.full(start[-1], np.nan) for name in all_measures(np.zeros(0))}
    for size in sorted(set(sizes)):
        places = [i for i, s in enumerate(sizes) if s == size]
        where = np.concatenate([np.arange(start[i], start[i + 1]) for i in places])
        for name, values in all_measures(np.concatenate([spectra[i] for i in places])).items():
            out[name][where] = values
    return out


def _or_nan(values: Floats | None, lanes: int) -> Floats:
    return np.full((lanes, 0), np.nan) if values is None else values


def _repeat(values: list[int], lanes: list[int]) -> NDArray[np.int64]:
    return np.repeat(np.array(values, dtype=np.int64), lanes)


def _column(parts: Sequence[Floats | None], lanes: list[int]) -> Floats:
    return np.concatenate(
        [np.full(n, np.nan) if p is None else p for p, n in zip(parts, lanes, strict=True)] or [np.zeros(0)]
    )


def _lists(parts: Sequence[Floats | None], lanes: list[int], size: int | None, dtype: type) -> list[Any]:
    # A lane on its way to infinity may be too large for float32 before it is for float64: it is inf here.
    with np.errstate(over="ignore"):
        return [
            None if part is None else part[lane, :size].astype(dtype)
            for part, n in zip(parts, lanes, strict=True)
            for lane in range(n)
        ]
