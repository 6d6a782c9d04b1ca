"""Loss and accuracy of lanes on a fixed set of samples, per class too; nothing of the training state is touched."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ndt_ray.capture import evaluating

CHUNK = 512
"""Samples per forward pass: enough for full speed, small enough for wide convolutions to stay in memory."""


@dataclass(frozen=True)
class Scores:
    """Mean loss (nats), accuracy, and accuracy per class (NaN for a class without samples)."""

    loss: float
    accuracy: float
    class_accuracy: np.ndarray


def scores(logits: Tensor, labels: Tensor, classes: int) -> Scores:
    """Scores of logits [n, C] against labels [n], summed in float64."""
    loss, accuracy, by_class = lane_scores(logits[None], labels, classes)
    return Scores(float(loss[0]), float(accuracy[0]), by_class[0])


def lane_scores(logits: Tensor, labels: Tensor, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Losses [S], accuracies [S] and accuracies per class [S, classes] of lanes' logits [S, n, C]; labels [n]."""
    wide = logits.detach().double().cpu()
    labels = labels.cpu()
    flat = F.cross_entropy(wide.flatten(0, 1), labels.repeat(len(wide)), reduction="none")
    loss = flat.view(len(wide), -1).sum(1).numpy() / len(labels)
    right = wide.argmax(-1) == labels
    is_class = F.one_hot(labels, classes).double()
    totals = is_class.sum(0).numpy()
    hits = (right.double() @ is_class).numpy()
    with np.errstate(invalid="ignore"):
        by_class = np.where(totals > 0, hits / np.maximum(totals, 1), np.nan)
    return loss, right.double().mean(1).numpy(), by_class


def predict(model: nn.Module, inputs: Tensor) -> Tensor:
    """Logits [n, C] in eval mode, without gradients; every module is back in its former mode afterwards."""
    with torch.no_grad(), evaluating(model):
        return torch.cat([model(chunk) for chunk in chunks(inputs)])


def chunks(inputs: Tensor) -> Iterator[Tensor]:
    """Pieces of at most CHUNK samples; images channels last, which is how training sees them."""
    for start in range(0, len(inputs), CHUNK):
        piece = inputs[start : start + CHUNK]
        yield piece.contiguous(memory_format=torch.channels_last) if piece.dim() == 4 else piece
