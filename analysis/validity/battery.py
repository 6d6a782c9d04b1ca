"""The validity battery of ndtracker 2.0.0 (Apache-2.0): two planted series, two nulls, and its bar.

Parameters are that package's (`ndt.validity.fixtures`, seed 0 of NumPy's default generator); nothing of it is needed
to run them. Its own detector, z > 3 against the previous 50 values, fails with 5, 14, 2 and 4 false positives.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ndt_ray.analysis.validity.families import Floats
from ndt_ray.analysis.validity.matching import Score, score

TOLERANCE = 5.0
MIN_RECALL = 0.75
MAX_FALSE_PER_1000 = 2.0
"""Its bar: mean recall over the planted series, and false positives per 1,000 steps on the worse of the nulls."""
OWN_FALSE = (5, 14, 2, 4)
"""False positives of ndtracker's own detector, by fixture."""


@dataclass(frozen=True)
class Fixture:
    """One series; `changes` are the first measurements at a new level."""

    name: str
    values: Floats
    changes: tuple[int, ...]


def fixtures() -> list[Fixture]:
    """The four series of the battery."""
    return [
        _levels("planted_transition", 400, (200,), (10.0, 20.0)),
        _levels("planted_multi", 600, (150, 350, 450), (10.0, 16.0, 13.0, 22.0)),
        Fixture("pure_noise", np.random.default_rng(0).normal(0.0, 1.0, 400), ()),
        Fixture("drift_no_jump", np.linspace(10.0, 20.0, 400) + np.random.default_rng(0).normal(0.0, 0.3, 400), ()),
    ]


def _levels(name: str, n: int, changes: tuple[int, ...], levels: tuple[float, ...], sd: float = 0.3) -> Fixture:
    lengths = np.diff([0, *changes, n])
    return Fixture(name, np.repeat(levels, lengths) + np.random.default_rng(0).normal(0.0, sd, n), changes)


@dataclass(frozen=True)
class Verdict:
    """Scores by fixture; `passed` by the battery's own bar."""

    scores: dict[str, Score]

    @property
    def recall(self) -> float:
        return float(np.mean([s.recall for s in self.scores.values() if s.true]))

    @property
    def false_per_1000(self) -> float:
        return max(s.false_per_1000 for s in self.scores.values() if not s.true)

    @property
    def passed(self) -> bool:
        return self.recall >= MIN_RECALL and self.false_per_1000 <= MAX_FALSE_PER_1000


def run(locate: Callable[[Floats, str], Sequence[float] | Floats]) -> Verdict:
    """The battery on a detector: `locate(values, name)` gives middles of events, in measurements."""
    return Verdict(
        {
            f.name: score(locate(f.values, f.name), np.array(f.changes) - 0.5, TOLERANCE, len(f.values))
            for f in fixtures()
        }
    )
