"""Linear probes: how well the classes can be read out of a layer by a linear map, cross-validated.

Ridge regression onto one-hot targets in closed form; its strength is chosen inside the training folds by
leave-one-out error, which follows from one singular value decomposition.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ndt_ray.errors import SpecError

Floats = NDArray[np.float64]
STRENGTHS = 10.0 ** np.arange(-6, 3)
"""Of the ridge, in units of the mean squared singular value."""


@dataclass(frozen=True)
class LinearProbe:
    """Held-out accuracy, its standard error over folds, and that of always saying the commonest class."""

    accuracy: float
    standard_error: float
    majority: float
    folds: int


def linear_probe(
    features: Floats, labels: NDArray[np.int64], classes: int, rng: np.random.Generator, folds: int = 5
) -> LinearProbe:
    """Cross-validated accuracy of a linear read-out of features `[n, d]`; folds hold the classes alike.

    SpecError where there are fewer than two stimuli of a class: no fold could hold it on both sides.
    """
    counts = np.bincount(labels, minlength=classes)
    if counts.min() < 2:
        raise SpecError(
            f"a probe of {len(labels)} stimuli holds some of the {classes} classes less than twice: "
            "make measure.confirm larger"
        )
    folds = int(min(folds, counts.min()))
    fold = stratified_folds(labels, folds, rng)
    onehot = np.eye(classes)[labels]
    accuracy = np.empty(folds)
    for held in range(folds):
        train, test = fold != held, fold == held
        predicted = ridge_predict(features[train], onehot[train], features[test])
        accuracy[held] = (predicted.argmax(1) == labels[test]).mean()
    share = np.array([(fold == held).mean() for held in range(folds)])
    spread = float(accuracy.std(ddof=1) / np.sqrt(folds)) if folds > 1 else float("nan")
    return LinearProbe(float(accuracy @ share), spread, float(counts.max() / counts.sum()), folds)


def stratified_folds(labels: NDArray[np.int64], folds: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """A fold for each sample; every class is spread over them as evenly as can be."""
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), dtype=np.int64)
    fold[order] = np.arange(len(labels)) % folds
    return fold


class Ridge:
    """Ridge regressions from one matrix `x` [n, d] to any targets: decomposed once."""

    def __init__(self, x: Floats) -> None:
        self.centre = x.mean(0)
        self.scale = np.sqrt(((x - self.centre) ** 2).mean()) or 1.0
        self.left, self.singular, self.right = np.linalg.svd((x - self.centre) / self.scale, full_matrices=False)

    def predict(self, y: Floats, held: Floats) -> Floats:
        """Targets predicted for `held` [m, d], with the strength of least leave-one-out error on targets `y` [n, k]."""
        level, power = y.mean(0), self.singular**2
        projected = self.left.T @ (y - level)
        best, chosen = np.inf, np.zeros_like(power)
        for strength in STRENGTHS * (power.mean() or 1.0):
            shrink = power / (power + strength)
            leverage = (self.left**2 * shrink).sum(1) + 1 / len(y)
            residual = (y - level - self.left @ (shrink[:, None] * projected)) / np.maximum(1 - leverage, 1e-12)[
                :, None
            ]
            error = float((residual**2).sum())
            if error < best:
                best, chosen = error, self.singular / (power + strength)
        return np.asarray(level + ((held - self.centre) / self.scale) @ self.right.T @ (chosen[:, None] * projected))


def ridge_predict(x: Floats, y: Floats, held: Floats) -> Floats:
    """Targets predicted for `held`, with the strength of least leave-one-out error on `x` [n, d], `y` [n, k]."""
    return Ridge(x).predict(y, held)
