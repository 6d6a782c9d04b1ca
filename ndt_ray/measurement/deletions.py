"""Every measure of a layer without each block of the probe's stimuli: what the error of a change comes from.

At two checkpoints the same stimuli are left out, so that what both share of the sampling error cancels. The Gram matrix
is formed once and each block taken out of it, but a spectrum has to be solved for each: that costs 2 to 13 measurements
(256 to 512 stimuli), and is done on the confirm probe. A lane's numbers do not depend on the lanes beside it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ndt_ray.measurement.grams import BLOCKS
from ndt_ray.measurement.measures import all_measures
from ndt_ray.measurement.spectra import DEAD, Floats, Lanes, Layer, LinearInput, eigenvalues, stacks_of


@torch.no_grad()
def without_blocks(
    activations: Mapping[str, Lanes], layers: Sequence[Layer], linear: Mapping[str, LinearInput] | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Lanes, and columns of `confirmation_blocks` but trial and step: layer by layer, lane by lane, block by block.

    Activations as in `spectra.measure_layers`. Block b are the stimuli a with a mod 16 = b; blocks without stimuli have
    no rows, and neither has a probe of under 4 stimuli. What a layer's whole spectrum would leave null is null.
    """
    lanes: list[int] = []
    columns: dict[str, list[Any]] = {name: [] for name in ("layer", "layer_index", "view", "block", "n_stimuli")}
    values: list[dict[str, Floats]] = []
    for layer in layers:
        stacks, _ = stacks_of(layer, activations.get(layer.path), (linear or {}).get(layer.path))
        every = [lane for stack in stacks for lane in stack]
        stimuli = len(every[0])
        blocks = range(min(BLOCKS, stimuli) if stimuli > 3 else 0)
        if not blocks:
            continue
        for number, lane in enumerate(every):
            values.append(_measured(lane))
            lanes += [number] * len(blocks)
            columns["layer"] += [layer.path] * len(blocks)
            columns["layer_index"] += [layer.index] * len(blocks)
            columns["view"] += [layer.view] * len(blocks)
            columns["block"] += list(blocks)
            columns["n_stimuli"] += [stimuli - len(range(b, stimuli, BLOCKS)) for b in blocks]
    names = values[0] if values else {}
    return np.array(lanes, np.int64), columns | {n: np.concatenate([v[n] for v in values]) for n in names}


def _measured(lane_Pmf: Tensor) -> dict[str, Floats]:
    """Measures of one lane without each block: name -> `[blocks]`, centred and `_uncentred`."""
    centred, raw = spectra_without(lane_Pmf)
    dead = centred.sum(-1) <= DEAD * raw.sum(-1)
    plain = all_measures(np.where(dead[:, None], 0.0, centred))
    return plain | {f"{name}_uncentred": v for name, v in all_measures(raw).items()}


def spectra_without(lane_Pmf: Tensor) -> tuple[Floats, Floats]:
    """Eigenvalues `[blocks, r]` of what is left of one lane, centred anew and uncentred, descending; NaN if not finite.

    With x centred by the mean row of all, B and s a block's second moment and sum, n rows left: G - B - s s' / n.
    """
    stimuli, rows, features = lane_Pmf.shape
    blocks = min(BLOCKS, stimuli)
    x = lane_Pmf.double()
    mean = x.mean((0, 1))
    x = x - mean
    make = _kernels if stimuli * rows <= features else _moments
    centred, raw = make(x, mean, blocks)
    both = [np.ascontiguousarray(m.cpu().numpy()) for m in (*centred, *raw)]
    alike = len({m.shape for m in both}) == 1
    solved = list(eigenvalues(np.stack(both)).values) if alike else [eigenvalues(m[None]).values[0] for m in both]
    # With a remainder, kernels are of two sizes: the shorter spectrum ends with a zero more.
    longest = max(len(v) for v in solved)
    padded = np.stack([np.pad(v, (0, longest - len(v))) for v in solved])
    return padded[:blocks], padded[blocks:]


def _moments(x: Tensor, mean: Tensor, blocks: int) -> tuple[list[Tensor], list[Tensor]]:
    """Second moments `[f, f]` of features: for more rows than these."""
    stimuli, rows, features = x.shape
    parts = [x[b::BLOCKS].reshape(-1, features) for b in range(blocks)]
    own = [part.mT @ part for part in parts]
    total = torch.stack(own).sum(0)
    centred, raw = [], []
    for part, moment in zip(parts, own, strict=True):
        shift, n = part.sum(0), stimuli * rows - len(part)
        left = total - moment
        centred.append(left - torch.outer(shift, shift / n))
        crossed = torch.outer(mean, shift)
        raw.append(left - crossed - crossed.mT + n * torch.outer(mean, mean))
    return centred, raw


def _kernels(x: Tensor, mean: Tensor, blocks: int) -> tuple[list[Tensor], list[Tensor]]:
    """Inner products `[rows left, rows left]`: for no more rows than features."""
    stimuli, rows, features = x.shape
    flat = x.reshape(-1, features)
    kernel, along, square = flat @ flat.mT, flat @ mean, mean @ mean
    block = (torch.arange(stimuli, device=x.device) % BLOCKS).repeat_interleave(rows)
    centred, raw = [], []
    for b in range(blocks):
        kept = torch.nonzero(block != b)[:, 0]
        left = kernel[kept][:, kept]
        by_row = left.mean(1)
        centred.append(left - by_row[:, None] - by_row[None, :] + by_row.mean())
        raw.append(left + along[kept][:, None] + along[kept][None, :] + square)
    return centred, raw
