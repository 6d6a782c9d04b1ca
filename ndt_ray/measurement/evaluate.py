"""Loss and accuracy of lanes on a fixed set of samples, per class too; nothing of the training state is touched."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ndt_ray.measurement.capture import evaluating
from ndt_ray.models.build import channels_last

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
    wide, right = logits.detach().double().cpu().numpy(), labels.cpu().numpy()
    # Classes in front: NumPy reduces a last axis of 10 five times as slowly.
    by_class = np.ascontiguousarray(wide.swapaxes(1, 2))
    top = by_class.max(1)
    with np.errstate(invalid="ignore", over="ignore"):  # a lane that diverges: not a number
        log_sum = np.log(np.exp(by_class - top[:, None]).sum(1)) + top
        loss = (log_sum - by_class[:, right, np.arange(len(right))]).sum(1) / len(right)
    hit = wide.argmax(-1) == right
    of_class = np.equal.outer(right, np.arange(classes)).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return loss, hit.mean(1), (hit @ of_class) / of_class.sum(0)


def predict(model: nn.Module, inputs: Tensor) -> Tensor:
    """Logits [n, C] in eval mode, without gradients; every module is back in its former mode afterwards."""
    with torch.no_grad(), evaluating(model):
        return torch.cat([model(chunk) for chunk in chunks(inputs)])


def chunks(inputs: Tensor) -> Iterator[Tensor]:
    """Pieces of at most CHUNK samples; images channels last, which is how training sees them."""
    for start in range(0, len(inputs), CHUNK):
        yield channels_last(inputs[start : start + CHUNK])
