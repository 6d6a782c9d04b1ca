"""The change-point methods that people expect, from ruptures (optional: `pip install -e '.[changepoint]'`).

Both look for changes of level and know neither trend nor memory: on anything but independent noise they report many.
Every measurement may be a change point (jump 1). Source: Truong, Oudre & Vayatis 2020.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ndt_ray.analysis.detection import Events, Floats, Parameters, checked
from ndt_ray.errors import SpecError


@dataclass(frozen=True)
class _ChangePoints(Parameters):
    """`penalty` of a change is times σ² ln n, σ being robust: from the median of absolute differences."""

    penalty: float = 2.0
    min_size: int = 2

    def __post_init__(self) -> None:
        if not self.penalty > 0 or self.min_size < 1:
            raise SpecError(f"penalty > 0 and min_size >= 1 must hold, but got ({self.penalty=}, {self.min_size=})")

    def _ends(self, values: Floats, penalty: float) -> Sequence[int]:
        raise NotImplementedError

    def __call__(self, steps: ArrayLike, values: ArrayLike) -> Events:
        s, v = checked(steps, values)
        n = len(v)
        sigma = float(1.4826 * np.median(np.abs(np.diff(v))) / np.sqrt(2)) if n > 1 else 0.0
        if n < 2 * self.min_size or n < 4 or sigma == 0:
            return Events.none()
        ends = [int(k) for k in self._ends((v - v.mean()) / sigma, self.penalty * float(np.log(n)))]
        cuts = np.array([0, *ends])
        level = np.array([v[a:b].mean() for a, b in zip(cuts[:-1], cuts[1:], strict=True)])
        change, index = np.diff(level), cuts[1:-1]
        if not index.size:
            return Events.none()
        return Events(index, s[index - 1], s[index], np.abs(change), change / sigma, np.where(change > 0, 1, -1))


@dataclass(frozen=True)
class Pelt(_ChangePoints):
    """The exact optimum of squared error plus penalty (Killick, Fearnhead & Eckley 2012), in C."""

    name = "pelt"

    def _ends(self, values: Floats, penalty: float) -> Sequence[int]:
        # A linear kernel's cost is the squared error: the same optimum as rpt.Pelt("l2", jump=1), 1,000 times faster.
        found: Sequence[int] = (
            _ruptures().KernelCPD(kernel="linear", min_size=self.min_size).fit(values).predict(pen=penalty)
        )
        return found


@dataclass(frozen=True)
class BinSeg(_ChangePoints):
    """Binary segmentation: the best single change, again within each part, while it pays the penalty."""

    name = "binseg"

    def _ends(self, values: Floats, penalty: float) -> Sequence[int]:
        found: Sequence[int] = (
            _ruptures().Binseg(model="l2", min_size=self.min_size, jump=1).fit(values).predict(pen=penalty)
        )
        return found


def _ruptures() -> Any:
    try:
        return importlib.import_module("ruptures")
    except ImportError as error:
        raise SpecError(
            "the detectors pelt and binseg need the package ruptures - pip install -e '.[changepoint]'"
        ) from error
