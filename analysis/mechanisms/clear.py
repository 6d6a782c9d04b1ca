"""Clear stimuli: those that a network classifies correctly with most confidence, as the founding plan chose images."""

import numpy as np
from numpy.typing import NDArray

from ndt_ray.errors import SpecError

Floats = NDArray[np.float64]
CLEAR = 10
"""Images a class, of the founding plan."""


def clearest(logits: Floats, labels: NDArray[np.int64], most: int = CLEAR) -> dict[int, NDArray[np.int64]]:
    """For each class the `most` of `[n]` stimuli with the largest probability of the right answer, the best first.

    Only those that are classified correctly: a class has fewer, or none, where the network does not know it.
    """
    if most < 1 or logits.shape[:1] != labels.shape:
        raise SpecError(f"logits [n, classes], n labels and most >= 1 are needed, but got {logits.shape}, {most=}")
    shifted = logits - logits.max(1, keepdims=True)
    # By logarithms: probabilities of well trained networks are all 1.
    confidence = (shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))[np.arange(len(labels)), labels]
    right = logits.argmax(1) == labels
    found = {}
    for label in np.unique(labels):
        own = np.flatnonzero(right & (labels == label))
        found[int(label)] = own[np.argsort(-confidence[own], kind="stable")][:most]
    return found


def clear_stimuli(logits: Floats, labels: NDArray[np.int64], most: int = CLEAR) -> NDArray[np.bool_]:
    """Which of `[n]` stimuli are among the `clearest` of their class."""
    chosen = np.zeros(len(labels), dtype=bool)
    for own in clearest(logits, labels, most).values():
        chosen[own] = True
    return chosen
