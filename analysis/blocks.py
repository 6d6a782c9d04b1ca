"""Permutation tests over trials: labels are exchanged within blocks (seeds, data sets) and nowhere else.

A trial is the unit: its layers and events are repeated looks at one run and move together.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ndt_ray.analysis.detection import Floats, Ints


@dataclass(frozen=True)
class Permuted:
    """A statistic, its permutation p, and the smallest p that any outcome could have had with these blocks."""

    statistic: float = float("nan")
    p: float = float("nan")
    p_attainable: float = float("nan")
    permutations: int = 0


def codes(frame: pd.DataFrame, columns: Sequence[str]) -> Ints:
    """One number for each distinct combination of the columns, missing values being one of their own."""
    present = [c for c in columns if c in frame]
    if not present or frame.empty:
        return np.zeros(len(frame), np.int64)
    return cast(Ints, frame.groupby(present, sort=True, dropna=False).ngroup().to_numpy(np.int64))


def shuffles(blocks: Ints, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """`count` rearrangements `[count, n]` of 0 … n-1 in which every place gets a member of its own block."""
    home = np.argsort(blocks, kind="stable")
    keys = blocks[None, :] + rng.random((count, len(blocks)))
    found = np.empty((count, len(blocks)), np.int64)
    found[:, home] = np.argsort(keys, axis=1)
    return found


def arrangements(labels: Ints, blocks: Ints) -> float:
    """How many different ways the labels can stand within their blocks (a float: it overflows integers)."""
    log = 0.0
    for block in np.unique(blocks):
        counts = np.unique(labels[blocks == block], return_counts=True)[1]
        log += math.lgamma(counts.sum() + 1) - sum(math.lgamma(c + 1) for c in counts)
    return math.exp(min(log, 700.0))


def permuted(
    statistic: Callable[[NDArray[np.int64]], Floats], labels: Ints, blocks: Ints, count: int, rng: np.random.Generator
) -> Permuted:
    """Upper-tail p of `statistic(labels [k, n]) -> [k]` when labels are exchanged within blocks.

    p = (1 + permutations at least as large) / (1 + permutations). No p where no other arrangement exists.
    """
    ways = arrangements(labels, blocks)
    observed = float(statistic(labels[None, :])[0]) if len(labels) else float("nan")
    if not math.isfinite(observed) or ways < 1.5:
        return Permuted(observed)
    null = statistic(labels[shuffles(blocks, count, rng)])
    slack = 1e-9 * max(1.0, abs(observed))
    p = (1 + int((null >= observed - slack).sum())) / (1 + count)
    return Permuted(observed, p, max(1 / ways, 1 / (1 + count)), count)


def between_groups(values: Floats) -> Callable[[NDArray[np.int64]], Floats]:
    """Sum over groups of n x (mean - grand mean)²: what labels explain of `values [n]`; takes labels `[k, n]`."""
    centred = values - values.mean() if len(values) else values

    def statistic(labels: NDArray[np.int64]) -> Floats:
        total = np.zeros(len(labels))
        for group in range(int(labels.max(initial=-1)) + 1):
            member = labels == group
            size = member.sum(axis=1)
            total += np.where(size > 0, (member @ centred) ** 2 / np.maximum(size, 1), 0.0)
        return total

    return statistic
