"""Leading directions over stimuli, and the principal angles between two sets of them.

Of a representation X, one centred row a stimulus, these are the left singular vectors with the largest singular
values: orthonormal vectors over stimuli, blind to how the axes of the feature space lie.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ndt_ray import native
from ndt_ray.measurement.grams import by_lane
from ndt_ray.measurement.measures import RANK_FLOOR

Floats = NDArray[np.float64]

DIRECTIONS = 5
"""How many are followed."""

RESOLUTION = 1e-12
"""Angles below this are 0."""


class Leading(NamedTuple):
    """The largest eigenvalues of symmetric matrices `[S, 5]`, descending, with their eigenvectors `[S, n, 5]`."""

    values: Floats
    vectors: Floats


class Directions(NamedTuple):
    """Orthonormal vectors `[S, P, 5]` float64, 0 beyond the rank, which is at most 5, `[S]`."""

    vectors: Tensor
    rank: NDArray[np.int64]


def leading(matrices: Tensor) -> Leading:
    """Of symmetric `[S, n, n]`, each solved by itself; one that is not finite counts as 0."""
    finite = matrices.flatten(1).isfinite().all(1)
    if not bool(finite.all()):
        matrices = matrices.where(finite[:, None, None], 0.0)
    values, vectors = torch.linalg.eigh(matrices)
    return Leading(*(x[..., -DIRECTIONS:].flip(-1).numpy() for x in (values, vectors)))


def directions(values: Tensor, kernel: bool, solved: Leading | None = None) -> Directions:
    """Of representations `[S, P, d]`, or of their kernels `[S, P, P]`; `solved`: the Gram matrices, or the kernels."""
    if solved is None:
        solved = leading(values if kernel else by_lane(values.mT, values))
    energy = np.nan_to_num(solved.values)
    real = energy > RANK_FLOOR * energy[:, :1] + np.finfo(np.float64).tiny
    scale = real if kernel else np.where(real, 1 / np.sqrt(np.where(real, energy, 1.0)), 0.0)
    found = torch.from_numpy(solved.vectors * scale[:, None])
    if not kernel:
        found = by_lane(values, found)
    missing = DIRECTIONS - found.shape[2]
    return Directions(torch.nn.functional.pad(found, (0, missing)) if missing else found, real.sum(1))


def angles(before: Directions, now: Directions) -> tuple[Floats, Floats]:
    """Mean and largest principal angle, over the smaller rank; NaN where that is 0."""
    # The sines come from what the old directions leave over: cosines cannot resolve angles below 1e-8.
    rest = now.vectors - by_lane(before.vectors, by_lane(before.vectors.mT, now.vectors))
    squared = by_lane(rest.mT, rest)
    if native.active():
        ascending = native.kernels().eigen(squared.numpy())[0][:, ::-1]
    else:
        ascending = torch.linalg.eigvalsh(squared).numpy()
    sines = np.sqrt(ascending.clip(0, 1))
    rank = np.minimum(before.rank, now.rank)
    if not (now.rank == DIRECTIONS).all():
        # Directions beyond the rank leave nothing over and take the first places among the ascending sines.
        place = np.arange(DIRECTIONS) + (DIRECTIONS - now.rank)[:, None]
        sines = np.take_along_axis(sines, np.minimum(place, DIRECTIONS - 1), 1)
    found = np.where(np.arange(DIRECTIONS) < rank[:, None], np.arcsin(sines), 0.0)
    found = np.where(found < RESOLUTION, 0.0, found)
    return np.where(rank > 0, found.sum(1) / np.maximum(rank, 1), np.nan), np.where(rank > 0, found.max(1), np.nan)
