"""Which samples are measured, evaluated and trained on: fixed, seeded, class-stratified choices of indices.

All draws are stable ranks of raw Philox words (`lanes.random.words`), so no numpy or torch release changes them.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from ndt_ray.data.dataset import Dataset
from ndt_ray.errors import SpecError
from ndt_ray.lanes.random import words

BLOCKS = 16
"""Stimulus i belongs to block i mod 16: the blocks that paired errors leave out one by one."""


@dataclass(frozen=True, eq=False)
class Probes:
    """Disjoint indices (int64) into a data set's test split.

    ``detect`` is measured on the schedule, ``confirm`` at checkpoints; both hold every class as equally often as can
    be, in every block too. ``evaluation``: samples that no probe holds, ascending. The hashes are SHA-256 (hex) of the
    data set's hash and the indices.
    """

    detect: torch.Tensor
    confirm: torch.Tensor
    evaluation: torch.Tensor
    detect_hash: str
    confirm_hash: str


def probes(
    dataset: Dataset, detect: int, confirm: int | None = None, seed: int = 0, evaluation: int | None = None
) -> Probes:
    """Two probes of `detect` and `confirm` (default: as many) test samples, and the samples to evaluate on.

    A function of the data set's hash and these arguments only: the same for all trials of a cell. `evaluation`: this
    many of the other test samples, with the classes in proportion; default all. SpecError where they do not fit.
    """
    confirm = detect if confirm is None else confirm
    labels = dataset.test_y.numpy()
    _check_sizes(dataset.name, len(labels), detect, confirm, evaluation)
    order = np.argsort(words(f"probes:{dataset.hash}", seed, 0, 0, len(labels)), kind="stable")
    by_class = [order[labels[order] == c] for c in range(dataset.inputs.classes)]
    class_order = np.argsort(words(f"probe_classes:{dataset.hash}", seed, 0, 0, len(by_class)), kind="stable")

    available = np.array([len(members) for members in by_class])
    # A class too rare for both probes is shared between them in proportion to their sizes.
    share = -(-available * detect // (detect + confirm))
    n_detect = _equal_shares(share, detect, class_order)
    n_confirm = _equal_shares(available - n_detect, confirm, class_order[::-1])
    ends = n_detect + n_confirm
    first = np.concatenate([m[:n] for m, n in zip(by_class, n_detect, strict=True)])
    second = np.concatenate([m[n:end] for m, n, end in zip(by_class, n_detect, ends, strict=True)])
    rest = np.concatenate([m[end:] for m, end in zip(by_class, ends, strict=True)])
    if evaluation is not None:  # every (n / size)-th of the samples sorted by class
        rest = rest[(2 * np.arange(evaluation) + 1) * len(rest) // (2 * evaluation)]

    first, second = _interleaved(first), _interleaved(second)
    return Probes(
        torch.from_numpy(first),
        torch.from_numpy(second),
        torch.from_numpy(np.sort(rest)),
        _hash(dataset, first),
        _hash(dataset, second),
    )


def _hash(dataset: Dataset, indices: np.ndarray) -> str:
    return hashlib.sha256(dataset.hash.encode() + indices.astype("<i8").tobytes()).hexdigest()


def _check_sizes(name: str, available: int, detect: int, confirm: int, evaluation: int | None) -> None:
    if detect < 2 or confirm < 2:
        raise SpecError(f"data '{name}': a probe needs 2 or more stimuli, but got ({detect=}, {confirm=})")
    if evaluation is not None and evaluation < 1:
        raise SpecError(f"data '{name}': an evaluation needs 1 or more samples, but got ({evaluation=})")
    needed = detect + confirm + (evaluation or 1)
    if needed > available:
        raise SpecError(
            f"data '{name}': its test split has {available:,} samples, but the probes take {detect:,} + {confirm:,} "
            f"and evaluation {'at least 1' if evaluation is None else f'{evaluation:,}'}: {needed:,} in all; "
            "make measure.probe, measure.confirm or evaluate.size smaller"
        )


def _equal_shares(available: np.ndarray, total: int, class_order: np.ndarray) -> np.ndarray:
    """How many of each class, so that they sum to `total` and are as equal as `available` allows.

    Where `total` does not divide, the classes first in `class_order` get one more.
    """
    assert available.sum() >= total
    level = int(np.searchsorted([np.minimum(available, n).sum() for n in range(total + 1)], total, side="right")) - 1
    shares: np.ndarray = np.minimum(available, level)
    more = [c for c in class_order if available[c] > level][: total - int(shares.sum())]
    shares[more] += 1
    return shares


def _interleaved(by_class: np.ndarray) -> np.ndarray:
    """Samples sorted by class, dealt so that block i mod 16 and each run of consecutive ones have all classes alike.

    Dealing them out in turn balances the blocks; turning block b by b / 16 of its length then spreads the classes
    along the order.
    """
    dealt = np.empty_like(by_class)
    for block in range(BLOCKS):
        column = by_class[block::BLOCKS]
        dealt[block::BLOCKS] = np.roll(column, round(block * len(column) / BLOCKS))
    return dealt


def training_subset(n_train: int, subset: int | None, seed: int) -> torch.Tensor:
    """Indices (int64, [subset]) of the training samples that a trial sees; all of them, in order, without `subset`.

    A smaller subset of the same seed is the beginning of a larger one. SpecError where there are not so many.
    """
    if subset is None:
        return torch.arange(n_train)
    if not 1 <= subset <= n_train:
        raise SpecError(f"train.subset must lie in 1..{n_train}, the number of training samples, but got ({subset=})")
    order = np.argsort(words("training_subset", seed, 0, 0, n_train), kind="stable")
    return torch.from_numpy(order[:subset])


def noisy_labels(labels: torch.Tensor, classes: int, fraction: float, seed: int) -> torch.Tensor:
    """A copy of the labels with round(fraction N) of them drawn anew, uniformly from all classes.

    Zhang et al., arXiv:1611.03530: a drawn label may be the true one, so that at fraction 1 the labels say nothing of
    the inputs; the share that is wrong is fraction (1 - 1 / classes). The labels replaced at a smaller fraction of the
    same seed are among those replaced at a larger one, by the same values. SpecError where fraction is not in 0..1.
    """
    if not 0 <= fraction <= 1:
        raise SpecError(f"train.label_noise must lie in 0..1, but got ({fraction=})")
    n = len(labels)
    replaced = np.argsort(words("label_noise", seed, 0, 0, n), kind="stable")[: round(fraction * n)]
    drawn = words("label_noise", seed, 1, 0, n) % np.uint64(classes)  # biased by less than classes / 2^64
    noisy = labels.clone()
    noisy[torch.from_numpy(replaced)] = torch.from_numpy(drawn[replaced].astype(np.int64))
    return noisy


def shuffled_labels(labels: torch.Tensor, seed: int) -> torch.Tensor:
    """The labels in random order: each class as often as before, and no relation to the inputs."""
    return labels[torch.from_numpy(np.argsort(words("shuffled_labels", seed, 0, 0, len(labels)), kind="stable"))]
