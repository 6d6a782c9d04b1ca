"""Maps between two layers' activations of the same stimuli, fitted on some and judged on others."""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ndt_ray.errors import SpecError

Floats = NDArray[np.floating[Any]]
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Alignment:
    """An affine map from a target's activations to a source's, and one back."""

    method: str
    forward: Matrix
    """[d_target, d_source]"""
    back: Matrix
    """[d_source, d_target]"""
    target_mean: Matrix
    """[d_target]"""
    source_mean: Matrix
    """[d_source]"""

    def to_source(self, target: Floats) -> Matrix:
        """[N, d_target] -> [N, d_source]"""
        return (np.asarray(target, np.float64) - self.target_mean) @ self.forward + self.source_mean

    def to_target(self, source: Floats) -> Matrix:
        """[N, d_source] -> [N, d_target]"""
        return (np.asarray(source, np.float64) - self.source_mean) @ self.back + self.target_mean


def procrustes(target: Floats, source: Floats) -> Alignment:
    """The rotation Q of centred rows with the smallest |target Q - source|, and its inverse; rows [N, d] are paired.

    SpecError where the widths differ.
    """
    x, y = (np.asarray(v, np.float64) for v in (target, source))
    if x.shape != y.shape:
        raise SpecError(f"a rotation needs rows of equal shape, but got {list(x.shape)} and {list(y.shape)}")
    here, there = x.mean(0), y.mean(0)
    u, _, v = np.linalg.svd((x - here).T @ (y - there))
    return Alignment("procrustes", u @ v, (u @ v).T, here, there)


def ridge(target: Floats, source: Floats, penalty: float = 1e-3) -> Alignment:
    """Least-squares maps both ways with an L2 penalty of `penalty` × the mean eigenvalue; widths may differ."""
    x, y = (np.asarray(v, np.float64) for v in (target, source))
    if len(x) != len(y) or len(x) < 2:
        raise SpecError(f"a map needs paired rows, 2 or more, but got {list(x.shape)} and {list(y.shape)}")
    here, there = x.mean(0), y.mean(0)
    a, b = x - here, y - there
    return Alignment("ridge", _solved(a, b, penalty), _solved(b, a, penalty), here, there)


def align(target: Floats, source: Floats) -> Alignment:
    """`procrustes` for equal widths, else `ridge`."""
    return procrustes(target, source) if target.shape == source.shape else ridge(target, source)


def principal(rows: Floats, k: int) -> Matrix:
    """Projector [d, d] onto the `k` largest principal directions of rows [N, d], centred."""
    x = np.asarray(rows, np.float64)
    x = x - x.mean(0)
    _, v = np.linalg.eigh(x.T @ x)
    top = v[:, -max(1, min(k, x.shape[1])) :]
    return cast(Matrix, top @ top.T)


def _solved(x: Matrix, y: Matrix, penalty: float) -> Matrix:
    gram = x.T @ x
    weight = penalty * np.trace(gram) / len(gram)
    return cast(Matrix, np.linalg.solve(gram + max(weight, 1e-12) * np.eye(len(gram)), x.T @ y))
