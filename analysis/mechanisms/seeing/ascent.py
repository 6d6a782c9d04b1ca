"""The ascent for units of a network at a checkpoint: which ones, and what the probe has to be beaten by."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ndt_ray.analysis.mechanisms.context import ProbeContext
from ndt_ray.analysis.mechanisms.seeing.maximise import Examples, Maximised, averaged, maximise
from ndt_ray.analysis.nulls import generator

OTHER_SEED = 1 << 31
"""Added to a trial's seed for a second ascent: no trial of a sweep has such a seed."""


def chosen_units(trial: str, path: str, available: int, most: int) -> list[int]:
    """Which units of a layer are looked at: the same at every checkpoint of a trial."""
    order = generator(trial, path, "features").permutation(available)
    return sorted(int(u) for u in order[:most])


def responses_of(context: ProbeContext, path: str) -> NDArray[np.float32]:
    """Every unit's response `[n, units]` to the probe, as the ascent counts it, from the pass that all share."""
    found: NDArray[np.float32] = averaged(torch.from_numpy(context.activations(path))).numpy()
    return found


def made_images(
    context: ProbeContext,
    path: str,
    units: Sequence[int],
    found: NDArray[np.float32],
    *,
    again: Sequence[int] = (),
    **how: Any,
) -> Maximised:
    """Images for these units and, behind them, of those of `again` from the other seed, all in one batch.

    `found`: their layer's responses to the probe.
    """
    c, h, w = (int(size) for size in context.inputs.shape[1:])
    both, seed = [*units, *again], context.trial.seed.init
    own = found[:, both]
    how["examples"] = Examples(context.inputs[torch.from_numpy(own.argmax(0))], own.max(0))
    how["seed"] = [seed] * len(units) + [seed + OTHER_SEED] * len(again)
    return maximise(context.model, path, both, (c, h, w), limits_of(context), **how)


def limits_of(context: ProbeContext) -> tuple[float, float]:
    """Darkest and brightest pixel of the probe."""
    return float(context.inputs.min()), float(context.inputs.max())
