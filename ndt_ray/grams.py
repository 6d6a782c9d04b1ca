"""One lane's activations of one layer -> its Gram matrix and the sums over stimuli that a spectrum cannot give.

Everything is float64: products of float32 are exact in it, and a float32 Gram is wrong by up to 0.7 % where a layer is
numerically rank-deficient. Every kernel sees the matrices of one lane alone, so that a lane's numbers cannot depend on
how many others are measured with it (a float64 `bmm` over lanes does: 41 of 451 products differed).

Shapes: P stimuli, m rows (positions, tokens) each, f features. A tensor `x` is laid out `[16, q, m, f]`: stimulus a
stands at [a mod 16, a div 16], the first axis being the blocks that are left out in turn; a missing last stimulus of a
block is zero, which no centred sum sees.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCKS = 16
"""Delete-block replicates a measurement: stimulus a belongs to block a mod 16."""

_CHUNK = 1 << 18
"""Numbers per piece where a large matrix is taken in pieces (2 MiB of float64: stays in the cache)."""


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

    @property
    def side(self) -> int:
        """Size of the smaller Gram matrix."""
        return min(self.total, self.features)


@dataclass(frozen=True)
class Sums:
    """What one lane's layer is reduced to, in float64; `s` counts stimuli padded to a multiple of 16.

    `centred`, `uncentred`: Gram matrices `[side, side]`. `mean_square`: |mean row|^2. `stimulus` `[k, s]`: per stimulus
    t, or t, k, w, u, q (see `measures.GRAM_SUMS`). `k_k`: sum of squared products of mean rows. `block` `[4, 16]`:
    <G, B>, |B|^2, s'(G - B)s and |s|^2 of each block's second moment B and sum s. `means`: see `spectra.Stimuli`.
    """

    centred: Tensor
    uncentred: Tensor
    mean_square: Tensor
    stimulus: Tensor
    k_k: Tensor
    block: Tensor
    means: Tensor


def gram(rows: Tensor) -> Tensor:
    """Uncentred float64 Gram matrix on the smaller side of one lane's `[P, m, f]`."""
    stimuli, m, f = rows.shape
    if stimuli * m <= f:
        x = rows.reshape(stimuli * m, f).double()
        return x @ x.mT
    if rows.numel() <= _CHUNK:
        x = rows.reshape(stimuli * m, f).double()
        return x.mT @ x
    out = rows.new_zeros((f, f), dtype=torch.float64)
    for piece in rows.split(max(1, _CHUNK // (m * f))):
        x = piece.reshape(-1, f).double()
        out.addmm_(x.mT, x)
    return out


def sums(rows: Tensor) -> Sums:
    """All sums of one lane's `[P, m, f]` (any float type), by the cheapest of three ways."""
    shape = Shape(*rows.shape)
    if shape.total <= shape.features:
        return _by_rows(rows, shape)
    if shape.rows >= shape.features:
        return _by_stimulus_moments(rows, shape)
    return _by_features(rows, shape)


def _blocked(rows: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """Centred `[16, q, m, f]` and the mean row `[f]`."""
    q, left = -(-shape.stimuli // BLOCKS), shape.stimuli % BLOCKS
    x = rows.new_empty((BLOCKS, q, shape.rows, shape.features), dtype=torch.float64)
    by_place = x.transpose(0, 1)
    whole = shape.stimuli - left
    by_place[: whole // BLOCKS] = rows[:whole].unflatten(0, (-1, BLOCKS))
    if left:
        x[left:, -1] = 0
        x[:left, -1] = rows[whole:]
    mean = x.view(-1, shape.features).sum(0) / shape.total
    x -= mean
    if left:
        x[left:, -1] = 0
    return x, mean


def _in_order(by_block: Tensor, stimuli: int) -> Tensor:
    """`[16, q, ...]` back to `[P, ...]`."""
    return by_block.transpose(0, 1).flatten(0, 1)[:stimuli]


def _by_features(rows: Tensor, shape: Shape) -> Sums:
    x, mean = _blocked(rows, shape)
    m, f = shape.rows, shape.features
    blocks = x.view(BLOCKS, -1, f)
    flat = x.view(-1, f)
    if blocks.shape[1] >= f:
        moment = torch.bmm(blocks.mT, blocks)
        total = moment.sum(0)
        cross = moment.view(BLOCKS, -1) @ total.view(-1)
        own = moment.view(BLOCKS, -1).square().sum(1)
    else:
        total = flat.mT @ flat
        cross = (flat @ total).mul_(flat).view(BLOCKS, -1).sum(1)
        own = torch.bmm(blocks, blocks.mT).view(BLOCKS, -1).square().sum(1)
    shift = blocks.sum(1)
    kept = ((shift @ total) * shift).sum(1) - torch.bmm(blocks, shift.unsqueeze(2)).square().sum((1, 2))
    block = torch.stack((cross, own, kept, shift.square().sum(1)))
    uncentred = torch.addr(total, mean, mean, alpha=shape.total)
    if m == 1:
        stimulus, k_k, means = flat.square().sum(1).unsqueeze(0), total.square().sum(), x.view(BLOCKS, -1, f)
    else:
        means = x.mean(2)
        u = means.view(-1, f)
        by_stimulus = x.view(-1, m, f)
        inner = torch.bmm(by_stimulus, by_stimulus.mT)
        stimulus = torch.stack(
            (
                inner.diagonal(dim1=1, dim2=2).sum(1) / m,
                u.square().sum(1),
                inner.square().sum((1, 2)) / m**2,
                inner.mean(2).square().sum(1) / m,
                ((u @ total) * u).sum(1) / m,
            )
        )
        k_k = _smaller_gram(u).square().sum()
    return Sums(total, uncentred, mean.square().sum(), stimulus, k_k, block, _in_order(means, shape.stimuli))


def _by_stimulus_moments(rows: Tensor, shape: Shape) -> Sums:
    """For more rows a stimulus than features (convolutions): one pass over the data, the rest from `[P, f, f]`."""
    m, f = shape.rows, shape.features
    q = -(-shape.stimuli // BLOCKS)
    moment = rows.new_zeros((q * BLOCKS, f, f), dtype=torch.float64)
    total_row = rows.new_zeros((q * BLOCKS, f), dtype=torch.float64)
    step = max(1, _CHUNK // (m * f))
    for start in range(0, shape.stimuli, step):
        x = rows[start : start + step].to(torch.float64, memory_format=torch.contiguous_format)
        torch.bmm(x.mT, x, out=moment[start : start + len(x)])
        torch.sum(x, 1, out=total_row[start : start + len(x)])
    mean = total_row.sum(0) / shape.total
    moment[: shape.stimuli] -= total_row[: shape.stimuli, :, None] * mean
    u = total_row / m
    u[: shape.stimuli] -= mean
    # M_a - s_a mean' - mean (s_a - m mean)': the second bracket is m times the centred mean row.
    moment[: shape.stimuli] -= mean[:, None] * (u[: shape.stimuli, None, :] * m)
    moment = (moment + moment.mT).mul_(0.5)
    total = moment.sum(0)
    stimulus = torch.stack(
        (
            moment.diagonal(dim1=1, dim2=2).sum(1) / m,
            u.square().sum(1),
            moment.square().sum((1, 2)) / m**2,
            (torch.bmm(moment, u.unsqueeze(2)).squeeze(2) * u).sum(1) / m,
            ((u @ total) * u).sum(1) / m,
        )
    )
    by_block = moment.view(q, BLOCKS, f, f).sum(0)
    shift = u.view(q, BLOCKS, f).sum(0) * m
    kept = ((shift @ total) * shift).sum(1) - (torch.bmm(by_block, shift.unsqueeze(2)).squeeze(2) * shift).sum(1)
    flat = by_block.view(BLOCKS, -1)
    block = torch.stack((flat @ total.view(-1), flat.square().sum(1), kept, shift.square().sum(1)))
    uncentred = torch.addr(total, mean, mean, alpha=shape.total)
    # Stimuli are in their own order here; the sums over them do not care.
    stimulus = stimulus.view(len(stimulus), q, BLOCKS).mT.flatten(1)
    return Sums(total, uncentred, mean.square().sum(), stimulus, _smaller_gram(u).square().sum(), block, u[: shape.stimuli])


def _by_rows(rows: Tensor, shape: Shape) -> Sums:
    """For no more rows than features: everything from the Gram matrix of the rows."""
    x, mean = _blocked(rows, shape)
    m = shape.rows
    flat = x.view(-1, shape.features)
    full = flat @ flat.mT
    offset = flat @ mean
    square = full.square().view(BLOCKS, -1, BLOCKS, full.shape[0] // BLOCKS).sum((1, 3))
    to_block = full.view(full.shape[0], BLOCKS, -1).sum(2)
    pull = to_block.view(BLOCKS, -1, BLOCKS)
    own = pull.sum(1).diagonal()
    kept = pull.square().sum((0, 1)) - pull.square().sum(1).diagonal()
    block = torch.stack((square.sum(1), square.diagonal(), kept, own))
    stimuli = full.shape[0] // m
    if m == 1:
        stimulus, kernel = full.diagonal().unsqueeze(0), full
    else:
        pair = full.view(stimuli, m, stimuli, m)
        half = pair.mean(3)
        kernel = half.mean(1)
        inner = pair.diagonal(dim1=0, dim2=2)
        stimulus = torch.stack(
            (
                full.diagonal().view(stimuli, m).sum(1) / m,
                kernel.diagonal(),
                inner.square().sum((0, 1)) / m**2,
                half.diagonal(dim1=0, dim2=2).square().sum(0) / m,
                half.square().sum((0, 1)) / m,
            )
        )
    order = torch.arange(full.shape[0], device=rows.device).view(BLOCKS, -1, m).transpose(0, 1).reshape(-1)[: shape.total]
    centred = full[order][:, order]
    offset = offset[order]
    uncentred = centred + offset[:, None] + (offset + mean.square().sum())[None, :]
    by_stimulus = order.view(shape.stimuli, m)[:, 0] // m
    return Sums(
        centred,
        uncentred,
        mean.square().sum(),
        stimulus,
        kernel.square().sum(),
        block,
        kernel[by_stimulus][:, by_stimulus],
    )


def _smaller_gram(x: Tensor) -> Tensor:
    return x @ x.mT if x.shape[0] < x.shape[1] else x.mT @ x
