"""Activations of one layer -> Gram matrices, and the sums over stimuli that a spectrum cannot give, for S lanes.

Everything is float64: products of float32 are exact in it, and a float32 Gram is wrong by up to 0.7 % where a layer is
numerically rank-deficient. A lane's numbers do not depend on the lanes beside it: products are batched only where that
was seen to give the bits of single ones, and what else runs over all lanes at once is element-wise or a reduction
within a lane. On a GPU, where a reduction may be split by the number of its outputs, lanes go one by one.

Shapes: S lanes, P stimuli, m rows (positions, tokens) each, f features. Where stimuli come in blocks, `[S, 16, q, …]`,
stimulus a stands at [a mod 16, a div 16]; a block's missing last stimulus is zero, which no centred sum sees.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ndt_ray import native

BLOCKS = 16
"""Delete-block replicates a measurement: stimulus a belongs to block a mod 16."""

_PIECE = 1 << 18
"""Numbers taken at a time (2 MiB of float64: stays in the cache)."""


@dataclass(frozen=True)
class Shape:
    """Size of one layer's matrix: `stimuli` × `rows` rows, `features` columns."""

    stimuli: int
    rows: int
    features: int

    @property
    def total(self) -> int:
        """Rows of the matrix."""
        return self.stimuli * self.rows


@dataclass(frozen=True)
class Sums:
    """What S lanes of a layer are reduced to, in float64; `s` counts stimuli padded to a multiple of 16.

    `centred`, `uncentred`: Gram matrices `[S, side, side]`. `mean_square` `[S]`: |mean row|^2. `stimulus` `[S, k, s]`:
    per stimulus t, or t, k, w, u, q (`measures.GRAM_SUMS`), block by block. `k_k` `[S]`: sum of squared products of
    mean rows. `block` `[S, 4, 16]`: <G, B>, |B|^2, s'(G - B)s and |s|^2 of a block's second moment B and sum s.
    `means`: centred mean rows `[S, P, f]`, or their kernel `[S, P, P]` where rows are no more than features, stimuli in
    the order of `order`.
    """

    centred: Tensor
    uncentred: Tensor
    mean_square: Tensor
    stimulus: Tensor
    k_k: Tensor
    block: Tensor
    means: Tensor


def gram(stacks: Sequence[Tensor]) -> Tensor:
    """Uncentred Gram matrices `[S, side, side]` on the smaller side, of lanes as in `sums`, any float type."""
    _, stimuli, m, f = stacks[0].shape
    by_rows, cuda = stimuli * m <= f, stacks[0].is_cuda
    if _is_narrow(stacks[0]):
        return _joined([torch.from_numpy(native.kernels().gram(_single(stack))) for stack in stacks])
    if cuda or stimuli * m * f <= _PIECE:
        parts = []
        for piece in _pieces(stacks, 1 if cuda else _PIECE // (stimuli * m * f)):
            x = _joined([_double(stack).view(len(stack), -1, f) for stack in piece])
            parts.append(by_lane(x, x.mT) if by_rows else by_lane(x.mT, x))
        return _joined(parts)
    lanes = [lane for stack in stacks for lane in stack]
    side = stimuli * m if by_rows else f
    out = stacks[0].new_zeros((len(lanes), side, side), dtype=torch.float64)
    for lane, total in zip(lanes, out, strict=True):
        if by_rows:
            for part in lane.split(max(1, _PIECE // side), dim=2):
                x = _double(part).view(side, -1)
                total.addmm_(x, x.mT)
        else:
            for part in lane.split(max(1, _PIECE // (m * f))):
                x = _double(part).view(-1, f)
                total.addmm_(x.mT, x)
    return out


def sums(stacks: Sequence[Tensor]) -> Sums:
    """All sums of lanes that come as stacks `[S_i, P, m, f]`, S = sum of S_i, by the cheapest of three ways."""
    first = stacks[0]
    shape = Shape(*first.shape[1:])
    if shape.rows == 1 and _is_narrow(first):
        return _compiled([native.kernels().gram_sums([_single(stack) for stack in stacks], BLOCKS)])
    if shape.rows > 1 and shape.total > shape.features and _is_compiled(first):
        return _compiled([_by_stimulus(stack) for stack in stacks])
    if shape.total <= shape.features:
        way = _by_rows
    else:
        way = _by_stimulus_moments if shape.rows >= shape.features else _by_features
    at_once = 1 if first.is_cuda else max(1, _PIECE // first[0].numel())
    parts = [way(piece, shape) for piece in _pieces(stacks, at_once)]
    return Sums(*(_joined([getattr(p, field.name) for p in parts]) for field in fields(Sums)))


def _is_narrow(stack: Tensor) -> bool:
    """Whether the compiled kernels take such lanes: float32 on the host, fewer features than rows, and both few."""
    _, stimuli, m, f = stack.shape
    return f < stimuli * m and stimuli * m * f <= _PIECE and _is_compiled(stack)


def _is_compiled(stack: Tensor) -> bool:
    """Whether there are compiled kernels for so many features, float32 on the host."""
    few = stack.shape[3] <= native.LARGEST
    return few and stack.dtype == torch.float32 and not stack.is_cuda and native.active()


def _compiled(found: Sequence[native.GramSums]) -> Sums:
    return Sums(*(_joined([torch.from_numpy(x) for x in parts]) for parts in zip(*found, strict=True)))


def _by_stimulus(stack: Tensor) -> native.GramSums:
    """Sums of lanes `[S, P, m, f]` with many rows a stimulus, as a convolution gives them if they lie that way."""
    across = stack.mT.is_contiguous()
    return native.kernels().stimulus_sums((stack.mT if across else stack.contiguous()).numpy(), BLOCKS, across)


def _single(stack: Tensor) -> NDArray[np.float32]:
    return np.asarray(stack.flatten(1, 2).contiguous().numpy())


def _pieces(stacks: Sequence[Tensor], at_once: int) -> Iterator[list[Tensor]]:
    """The same lanes in the same order, so many at a time."""
    piece: list[Tensor] = []
    room = at_once
    for stack in stacks:
        start = 0
        while start < len(stack):
            part = stack[start : start + room]
            piece.append(part)
            start, room = start + len(part), room - len(part)
            if not room:
                yield piece
                piece, room = [], at_once
    if piece:
        yield piece


def _uncentred(total: Tensor, mean: Tensor, shape: Shape) -> Tensor:
    return total + (shape.total * mean).unsqueeze(2) * mean.unsqueeze(1)


def _by_features(stacks: Sequence[Tensor], shape: Shape) -> Sums:
    x, mean = _blocked(stacks, shape)
    s, m, f = len(x), shape.rows, shape.features
    blocks, flat = x.view(s, BLOCKS, -1, f), x.view(s, -1, f)
    shift = blocks.sum(2)
    if blocks.shape[2] >= f:
        moment = by_lane(blocks.mT, blocks)
        total = moment.sum(1)
        cross = _dot(moment.flatten(2), total.flatten(1).unsqueeze(1))
        own = _dot(moment.flatten(2))
        kept = _dot(by_lane(shift, total), shift) - _dot((moment * shift.unsqueeze(2)).sum(-1), shift)
        square = _dot(shift)
        inner = by_lane(flat.view(s, -1, m, f), flat.view(s, -1, m, f).mT)
    else:
        total = by_lane(flat.mT, flat)
        within = by_lane(blocks, blocks.mT)
        pulled = by_lane(flat, total)
        cross = _dot(pulled.view(s, BLOCKS, -1), x.view(s, BLOCKS, -1))
        own = _dot(within.flatten(2))
        by_row = within.sum(3)
        kept = _dot(by_lane(shift, total), shift) - _dot(by_row)
        square = by_row.sum(2)
        inner = within.view(s, BLOCKS, -1, m, within.shape[2] // m, m).diagonal(dim1=2, dim2=4).permute(0, 1, 4, 2, 3)
        inner = inner.reshape(s, -1, m, m)
    means = x.view(s, BLOCKS, -1, f) if m == 1 else x.mean(3)
    stimulus, k_k = _stimulus_sums(inner, means.flatten(1, 2), total)
    uncentred = _uncentred(total, mean, shape)
    block = torch.stack((cross, own, kept, square), 1)
    return Sums(total, uncentred, _dot(mean), stimulus, k_k, block, _ordered(means, shape.stimuli))


def _stimulus_sums(inner: Tensor, means: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """`stimulus` and `k_k` from each stimulus' products of rows `[S, s, m, m]` and mean rows `[S, s, f]`."""
    m = inner.shape[2]
    if m == 1:
        return inner.flatten(1).unsqueeze(1), _dot(total.flatten(1))
    t = inner.diagonal(dim1=2, dim2=3).sum(2) / m
    u = _dot(inner.mean(3)) / m
    q = _dot(by_lane(means, total), means) / m
    return torch.stack((t, _dot(means), _dot(inner.flatten(2)) / m**2, u, q), 1), _kernel_norm(means)


def _by_stimulus_moments(stacks: Sequence[Tensor], shape: Shape) -> Sums:
    """For more rows a stimulus than features (convolutions): one pass over the data, the rest from `[S, P, f, f]`."""
    lanes = [lane for stack in stacks for lane in stack]
    s, m, f = len(lanes), shape.rows, shape.features
    q, here = -(-shape.stimuli // BLOCKS), slice(0, shape.stimuli)
    moment = lanes[0].new_zeros((s, q * BLOCKS, f, f), dtype=torch.float64)
    row = lanes[0].new_zeros((s, q * BLOCKS, f), dtype=torch.float64)
    step = max(1, _PIECE // (m * f))
    for lane, lane_moment, lane_row in zip(lanes, moment, row, strict=True):
        for start in range(0, shape.stimuli, step):
            x = _double(lane[start : start + step])
            torch.bmm(x.mT, x, out=lane_moment[start : start + len(x)])
            torch.sum(x, 1, out=lane_row[start : start + len(x)])
    mean = row.sum(1) / shape.total
    u = row / m
    u[:, here] -= mean.unsqueeze(1)
    # M_a - s_a mean' - mean (s_a - m mean)', the last bracket being m times the centred mean row.
    moment[:, here] -= row[:, here].unsqueeze(3) * mean[:, None, None, :]
    moment[:, here] -= mean[:, None, :, None] * (m * u[:, here]).unsqueeze(2)
    by_block = moment.view(s, q, BLOCKS, f, f).sum(1)
    total = by_block.sum(1)
    shift = u.view(s, q, BLOCKS, f).sum(1) * m
    cross = _dot(by_block.flatten(2), total.flatten(1).unsqueeze(1))
    kept = _dot(by_lane(shift, total), shift) - _dot((by_block * shift.unsqueeze(2)).sum(-1), shift)
    block = torch.stack((cross, _dot(by_block.flatten(2)), kept, _dot(shift)), 1)
    stimulus = torch.stack(
        (
            moment.diagonal(dim1=2, dim2=3).sum(2) / m,
            _dot(u),
            _dot(moment.flatten(2)) / m**2,
            _dot((moment * u.unsqueeze(2)).sum(-1), u) / m,
            _dot(by_lane(u, total), u) / m,
        ),
        1,
    )
    uncentred = _uncentred(total, mean, shape)
    stimulus = stimulus.view(s, 5, q, BLOCKS).mT.flatten(2)
    means = _ordered(u.view(s, q, BLOCKS, f).transpose(1, 2), shape.stimuli)
    return Sums(total, uncentred, _dot(mean), stimulus, _kernel_norm(u), block, means)


def _by_rows(stacks: Sequence[Tensor], shape: Shape) -> Sums:
    """For no more rows than features: everything from the Gram matrix of the rows."""
    x, mean = _blocked(stacks, shape)
    s, m = len(x), shape.rows
    flat = x.view(s, -1, shape.features)
    n = flat.shape[1]
    full = by_lane(flat, flat.mT)
    offset = by_lane(flat, mean.unsqueeze(2)).squeeze(2)
    square = full.square().view(s, BLOCKS, -1, BLOCKS, n // BLOCKS).sum((2, 4))
    pull = full.view(s, BLOCKS, n // BLOCKS, BLOCKS, -1).sum(4)
    pulled = pull.square().sum(2)
    kept = pulled.sum(1) - pulled.diagonal(dim1=1, dim2=2)
    own = pull.sum(2).diagonal(dim1=1, dim2=2)
    block = torch.stack((square.sum(2), square.diagonal(dim1=1, dim2=2), kept, own), 1)
    if m == 1:
        stimulus, kernel = full.diagonal(dim1=1, dim2=2).unsqueeze(1), full
    else:
        pair = full.view(s, n // m, m, n // m, m)
        half = pair.mean(4)
        kernel = half.mean(2)
        stimulus = torch.stack(
            (
                full.diagonal(dim1=1, dim2=2).view(s, -1, m).sum(2) / m,
                kernel.diagonal(dim1=1, dim2=2),
                pair.diagonal(dim1=1, dim2=3).square().sum((1, 2)) / m**2,
                half.diagonal(dim1=1, dim2=3).square().sum(1) / m,
                half.square().sum((1, 2)) / m,
            ),
            1,
        )
    mean_square, k_k = _dot(mean), _dot(kernel.flatten(1))
    if shape.stimuli % BLOCKS:
        # Without the zeros that fill up the blocks.
        places = _ordered(torch.arange(n, device=x.device).view(1, BLOCKS, -1, m), shape.stimuli)[0]
        rows, stimuli = places.flatten(), places[:, 0] // m
        full, offset = full[:, rows][:, :, rows], offset[:, rows]
        kernel = kernel[:, stimuli][:, :, stimuli]
    uncentred = full + offset.unsqueeze(2) + (offset + mean_square.unsqueeze(1)).unsqueeze(1)
    return Sums(full, uncentred, mean_square, stimulus, k_k, block, kernel)


def _blocked(stacks: Sequence[Tensor], shape: Shape) -> tuple[Tensor, Tensor]:
    """Centred `[S, 16, q, m, f]` and the mean rows `[S, f]`."""
    q, left = -(-shape.stimuli // BLOCKS), shape.stimuli % BLOCKS
    whole = shape.stimuli - left
    lanes = sum(len(stack) for stack in stacks)
    x = stacks[0].new_empty((lanes, BLOCKS, q, shape.rows, shape.features), dtype=torch.float64)
    in_stacks = x.transpose(1, 2).split([len(stack) for stack in stacks])  # type: ignore[no-untyped-call]
    for stack, blocks in zip(stacks, in_stacks, strict=True):
        blocks[:, : whole // BLOCKS] = stack[:, :whole].unflatten(1, (-1, BLOCKS))  # type: ignore[no-untyped-call]
        if left:
            blocks[:, -1, :left] = stack[:, whole:]
            blocks[:, -1, left:] = 0
    mean = x.view(lanes, -1, shape.features).sum(1) / shape.total
    x -= mean[:, None, None, None, :]
    if left:
        x[:, left:, -1] = 0
    return x, mean


def _ordered(by_block: Tensor, stimuli: int) -> Tensor:
    """`[S, 16, q, ...]` as `[S, P, ...]` in the order of `order`: as they stand, where no block lacks a stimulus."""
    if stimuli % BLOCKS == 0:
        return by_block.flatten(1, 2)
    return by_block.transpose(1, 2).flatten(1, 2)[:, :stimuli]


def order(stimuli: int) -> NDArray[np.int64]:
    """Which stimulus stands where in `Sums.means` `[P]`."""
    places = np.arange(stimuli)
    return places if stimuli % BLOCKS else places.reshape(-1, BLOCKS).T.ravel()


def by_lane(a: Tensor, b: Tensor) -> Tensor:
    """Matrix products of lanes, `[S, i, j]` by `[S, j, k]` or batches of them, to the bits of one lane at a time."""
    out = a.new_empty((*a.shape[:-1], b.shape[-1]))
    many = len(a) > 1 and not a.is_cuda
    if many and _batched_equals_single(a.shape, a.stride(), b.shape, b.stride(), a.dtype, torch.get_num_threads()):
        return torch.bmm(a.flatten(0, -3), b.flatten(0, -3), out=out.flatten(0, -3)).view(out.shape)
    return _one_by_one(a, b, out)


def _one_by_one(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    form = torch.mm if a.ndim == 3 else torch.bmm
    for x, y, z in zip(a.unbind(0), b.unbind(0), out.unbind(0), strict=True):
        form(x, y, out=z)
    return out


Sizes = tuple[int, ...]


@functools.lru_cache(maxsize=4096)
def _batched_equals_single(
    left: Sizes, left_strides: Sizes, right: Sizes, right_strides: Sizes, dtype: torch.dtype, threads: int
) -> bool:
    """Whether one `bmm` over all lanes gives the bits of one lane at a time; which kernels run, shapes decide."""
    g = torch.Generator().manual_seed(left[-1])
    a, b = (torch.empty_strided(*layout, dtype=dtype) for layout in ((left, left_strides), (right, right_strides)))
    for x in (a, b):
        x.copy_(torch.randn(x.shape, generator=g, dtype=dtype))
    single = _one_by_one(a, b, a.new_empty((*left[:-1], right[-1])))
    return torch.equal(torch.bmm(a.flatten(0, -3), b.flatten(0, -3)).view(single.shape), single)


def _dot(a: Tensor, b: Tensor | None = None) -> Tensor:
    """Products summed over the last axis."""
    b = a if b is None else b
    # One pass; not a BLAS dot, which may split a long sum over threads.
    return (
        (a * b).sum(-1)
        if a.is_cuda
        else torch.from_numpy(np.asarray(np.einsum("...i,...i->...", a.numpy(), b.numpy())))
    )


def _kernel_norm(means: Tensor) -> Tensor:
    """Sum of squared inner products of the rows of `[S, s, f]`."""
    small = by_lane(means, means.mT) if means.shape[1] < means.shape[2] else by_lane(means.mT, means)
    return _dot(small.flatten(1))


def _double(x: Tensor) -> Tensor:
    return x.to(torch.float64, memory_format=torch.contiguous_format)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
