"""Modular addition, the task on which grokking is studied: every pair, a fixed share of them to train on."""

from typing import Annotated

import torch
from pydantic import Field

from ndt_ray.data.dataset import Dataset, build
from ndt_ray.errors import SpecError
from ndt_ray.inputs import InputSpec


def modular_addition(
    *,
    p: Annotated[int, Field(ge=2, le=4096)] = 113,
    train_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.3,
    split_seed: Annotated[int, Field(ge=0)] = 598,
) -> Dataset:
    """All pairs a + b mod p, as the tokens a, b and '='; 30 % of them to train on.

    Inputs int64 [N, 3] over p + 1 tokens, of which p is '='; labels (a + b) mod p. The task is that of Nanda et al.
    (arXiv:2301.05217). Split: the pairs in a-major order (index a p + b) under torch's permutation of `split_seed`, the
    first int(p^2 train_fraction) to train on; by default 3,830 and 8,939. SpecError where a split would be empty.
    """
    pairs = p * p
    cutoff = int(pairs * train_fraction)
    if cutoff == 0:
        raise SpecError(f"data 'modular_addition': no pair is left to train on ({p=}, {train_fraction=})")
    index = torch.arange(pairs)
    a, b = index // p, index % p
    x = torch.stack([a, b, torch.full_like(a, p)], dim=1)
    y = (a + b) % p
    order = torch.randperm(pairs, generator=torch.Generator().manual_seed(split_seed))
    train, test = order[:cutoff], order[cutoff:]
    return build(
        "modular_addition",
        InputSpec("modular", (3,), classes=p, vocab=p + 1),
        (x[train], y[train]),
        (x[test], y[test]),
        [str(n) for n in range(p)],
        "generated",
        f"Generated: addition mod {p}, {len(train):,} of all {pairs:,} pairs to train on, {len(test):,} to test.",
    )
