"""Whether counted jumps outnumber noise: the verdict of the summary and of the report, and the words for it.

A verdict needs two witnesses: the count over all series lies outside the interval of the null, and 0 lies outside the
interval over seeds of observed - expected. The first alone takes the layers of a trial for independent, which they are
not; the second alone rests on few seeds. Fewer than three seeds give none.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtrit

from ndt_ray.analysis.jumps import compare_with_null

Verdict = Literal["above", "within", "below"]
Family = Literal["white", "ar1"]

LEVEL = 0.05
MIN_SEEDS = 3


@dataclass(frozen=True)
class Null:
    """Events expected from one kind of noise in all series together, with their 95 % interval."""

    expected: float
    low: float
    high: float
    verdict: Verdict | None
    """What the observed count is beside them; None for fewer than `MIN_SEEDS` seeds."""


@dataclass(frozen=True)
class Jumps:
    """Counted jumps of one group of trials, by one rule on one measure, beside two kinds of noise."""

    name: str
    measure: str
    detector: str
    trials: int
    series: int
    observed: int
    white: Null | None
    ar1: Null | None
    """None where no series has a null: too short, or constant."""
    series_above_ar1: int
    """Series whose own count has p <= LEVEL under AR(1) noise; by chance LEVEL of them at most."""

    @property
    def words(self) -> str:
        """The verdict as a phrase that says no more than the counts do."""
        if self.white is None or self.ar1 is None:
            return "no null: series constant or too short"
        white, ar1 = self.white.verdict, self.ar1.verdict
        if white is None or ar1 is None:
            return f"descriptive only: {self.trials} seed{'' if self.trials == 1 else 's'}"
        said = {"above": "more than", "within": "what", "below": "fewer than"}
        if white == ar1:
            return f"{said[white]} noise gives"
        return f"{said[white]} white noise gives, {said[ar1]} AR(1) gives"


def jump_verdicts(counts: pd.DataFrame) -> list[Jumps]:
    """Verdicts by detector, measure and name, sorted by them.

    `counts`: rows of `jump_counts` of one mode, with a column `name` that says which trials belong together.
    """
    if counts.empty:
        return []
    keys = ["detector", "measure", "name"]
    totals = compare_with_null(counts, by=keys).set_index(keys)
    return [_judged(key, group, totals.loc[key]) for key, group in counts.groupby(keys, sort=True)]


def t_interval(values: NDArray[np.float64], level: float = 1 - LEVEL) -> tuple[float, float]:
    """Student's interval of the mean of independent values; NaN for fewer than two."""
    n, mean = len(values), float(values.mean())
    half = float(stdtrit(n - 1, 0.5 + level / 2)) * float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return mean - half, mean + half


def _judged(key: tuple[str, str, str], counts: pd.DataFrame, total: Any) -> Jumps:
    return Jumps(
        name=key[2],
        measure=key[1],
        detector=key[0],
        trials=int(counts["trial_id"].nunique()),
        series=len(counts),
        observed=int(counts["observed"].sum()),
        white=_null("white", counts, total),
        ar1=_null("ar1", counts, total),
        series_above_ar1=int((counts["p_ar1"] <= LEVEL).sum()),
    )


def _null(family: Family, counts: pd.DataFrame, total: Any) -> Null | None:
    if total[f"verdict_{family}"] == "no null":
        return None
    excess = (counts["observed"] - counts[f"null_{family}_mean"]).groupby(counts["trial_id"]).sum(min_count=1).dropna()
    verdict: Verdict | None = None
    if len(excess) >= MIN_SEEDS:
        low, high = t_interval(excess.to_numpy(np.float64))
        over_seeds = "above" if low > 0 else "below" if high < 0 else "within"
        verdict = cast(Verdict, over_seeds) if total[f"verdict_{family}"] == over_seeds else "within"
    low, high = total[f"{family}_lo"], total[f"{family}_hi"]
    return Null(float(total[f"expected_{family}"]), max(0.0, float(low)), float(high), verdict)
