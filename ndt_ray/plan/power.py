"""What a sweep's number of seeds can show: power, and the smallest p its declared comparisons can reach.

Declared are the comparisons of `compare` axes: all pairs of levels, or those `against` one level, for each
`confirmatory` outcome; Holm's correction goes over all of them. The same rules are followed by the analysis
`compare`, whose parameters (`effect`, `alpha`, `pairing`, `against`, `group`, `confirmatory`) are read here from the
sweep file. A permutation test of few seeds has few possible p-values: where the smallest of them, times the number
of comparisons, is above alpha, no outcome whatever can be called significant. Standard library only.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from statistics import NormalDist
from typing import Any

from ndt_ray.errors import SpecError, did_you_mean

PAIRINGS = ("auto", "paired", "unpaired")
ALPHA = 0.05
EFFECT = 1.5
"""Declared effect where the sweep file names none: difference of means in SDs between seeds."""
CONFIRMATORY = ("events_per_series",)
GRID = 400
_NORMAL = NormalDist()


def smallest_p(n_a: int, n_b: int, paired: bool) -> float:
    """Smallest two-sided p of a permutation test: sign flips of pairs, or regroupings of two groups of seeds."""
    if paired:
        if n_a != n_b:
            raise SpecError(f"pairs need as many seeds on either side, but got ({n_a=}, {n_b=})")
        return min(1.0, 2 / 2**n_a) if n_a else 1.0
    if min(n_a, n_b) < 1:
        return 1.0
    # Of groups of one size the mirror image of a regrouping is one too; else it is not among them.
    return min(1.0, (2 if n_a == n_b else 1) / math.comb(n_a + n_b, n_a))


def smallest_adjusted(n_a: int, n_b: int, paired: bool, comparisons: int) -> float:
    """Holm's smallest adjusted p: the smallest p times the number of comparisons, at most 1."""
    return min(1.0, comparisons * smallest_p(n_a, n_b, paired))


def choose_pairing(shared: bool, n: int, comparisons: int, alpha: float = ALPHA) -> tuple[bool, str]:
    """Whether to pair, and why, from the design alone: pairs where batches are shared and pairs can reach alpha.

    Where they cannot, two groups can: for pairs that go together rather than against each other that test errs on
    the safe side, and `compare` prints their correlation beside it.
    """
    if not shared:
        return False, "batches are not shared"
    if smallest_adjusted(n, n, True, comparisons) <= alpha:
        return True, "batches are shared"
    return False, f"batches are shared, but {n} pairs cannot reach {alpha:g} in {comparisons} comparisons"


@functools.lru_cache(maxsize=4096)
def power(effect: float, n_a: int, n_b: int, alpha: float, paired: bool) -> float:
    """Power of the two-sided t test at alpha; pairs: the effect is in SDs of the differences. 0 without any df."""
    df = n_a - 1 if paired else n_a + n_b - 2
    if df < 1 or min(n_a, n_b) < 1:
        return 0.0
    shift = abs(effect) * math.sqrt(n_a if paired else n_a * n_b / (n_a + n_b))
    critical = t_critical(df, alpha)
    return min(1.0, _t_above(critical, df, shift) + _t_above(critical, df, -shift))


def t_critical(df: int, alpha: float) -> float:
    """Two-sided critical value of Student's t, to 1e-9."""
    low, high = 0.0, 2.0
    while high < 1e12 and 2 * _t_above(high, df, 0.0) > alpha:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if 2 * _t_above(middle, df, 0.0) > alpha else (low, middle)
    return high


def _t_above(t: float, df: int, shift: float) -> float:
    """P(T > t) of the noncentral t: over v = log(chi / sqrt(df)), P(Z > t e^v - shift), by Simpson's rule."""
    log_scale = math.log(2) + df / 2 * math.log(df / 2) - math.lgamma(df / 2)
    # The density is below e^-40 of its peak outside of these.
    low = -(40 / df + 0.5 + math.sqrt(40 / df))
    high = 0.5 * math.log(1 + 80 / df + 2 * math.sqrt(160 / df))
    step, total = (high - low) / GRID, 0.0
    for i in range(GRID + 1):
        v = low + i * step
        density = math.exp(log_scale + df * (v - math.exp(2 * v) / 2))
        total += (1 if i in (0, GRID) else 4 if i % 2 else 2) * density * _NORMAL.cdf(shift - t * math.exp(v))
    return total * step / 3


@dataclass(frozen=True)
class Power:
    """What the comparisons along one axis can show. `detectable`: effect found with 80 % power, in SDs."""

    axis: str
    levels: int
    contrasts: int
    comparisons: int
    """Size of the whole declared family, all axes and confirmatory outcomes together."""
    seeds: int
    """Seeds of the level that has the fewest."""
    paired: bool
    why: str
    effect: float
    alpha: float
    power: float
    detectable: float | None
    smallest_p: float
    smallest_adjusted_p: float
    smallest_adjusted_p_paired: float
    smallest_adjusted_p_unpaired: float

    @property
    def warning(self) -> str | None:
        """What to do where no outcome could be significant."""
        if self.levels < 2 or self.smallest_adjusted_p <= self.alpha:
            return None
        need = next(
            (n for n in range(2, 64) if smallest_adjusted(n, n, self.paired, self.comparisons) <= self.alpha), None
        )
        more = f"{need} seeds can" if need else "more seeds alone cannot"
        return (
            f"{self.axis}: with {self.seeds} seeds no outcome can be significant after Holm over {self.comparisons}"
            f" comparisons (smallest adjusted p {self.smallest_adjusted_p:.3g} > {self.alpha:g}); {more},"
            " or declare fewer with compare's `against` or `group`"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, the warning among them."""
        return {**asdict(self), "warning": self.warning}


def declared(
    axes: Mapping[str, Mapping[str, int]],
    shared: Callable[[str], bool],
    parameters: Mapping[str, Any] | None = None,
) -> list[Power]:
    """One entry for each compare axis of two levels or more.

    `axes`: per path, per level, how many seeds it has. `shared`: whether the levels of an axis see the same batches.
    `parameters`: of the analysis `compare`, as the sweep file gives them.
    """
    given = dict(parameters or {})
    alpha, effect, pairing, outcomes, groups = _checked(given)
    named = {axis: grouped(levels, groups) for axis, levels in axes.items()}
    pairs = {axis: contrasts(list(levels), given.get("against")) for axis, levels in named.items()}
    comparisons = outcomes * sum(map(len, pairs.values()))
    found = []
    for axis, levels in named.items():
        if not pairs[axis]:
            continue
        n = min(levels[level] for pair in pairs[axis] for level in pair)
        paired, why = choose_pairing(shared(axis), n, max(1, comparisons), alpha)
        if pairing != "auto":
            paired, why = pairing == "paired", "as declared"
        family = max(1, comparisons)
        least = {kind: smallest_adjusted(n, n, kind, family) for kind in (True, False)}
        level = alpha / family
        found.append(
            Power(
                axis=axis,
                levels=len(levels),
                contrasts=len(pairs[axis]),
                comparisons=comparisons,
                seeds=n,
                paired=paired,
                why=why,
                effect=effect,
                alpha=alpha,
                power=power(effect, n, n, level, paired) if least[paired] <= alpha else 0.0,
                detectable=detectable(n, level, paired) if least[paired] <= alpha else None,
                smallest_p=smallest_p(n, n, paired),
                smallest_adjusted_p=least[paired],
                smallest_adjusted_p_paired=least[True],
                smallest_adjusted_p_unpaired=least[False],
            )
        )
    return found


def _checked(given: Mapping[str, Any]) -> tuple[float, float, str, int, dict[str, str]]:
    """Alpha, effect, pairing, number of confirmatory outcomes and groups; SpecError for what makes no sense."""
    alpha, effect = given.get("alpha", ALPHA), given.get("effect", EFFECT)
    pairing, outcomes = given.get("pairing", "auto"), given.get("confirmatory", CONFIRMATORY)
    groups = given.get("group") or {}
    for name, value, low, high in (("alpha", alpha, 0, 1), ("effect", effect, 0, 1000)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not low < value < high:
            raise SpecError(f"analyses: compare: {low} < {name} < {high} must hold, but got {value!r}")
    if pairing not in PAIRINGS:
        raise SpecError(f"analyses: compare: unknown pairing {pairing!r}{did_you_mean(str(pairing), PAIRINGS)}")
    if isinstance(outcomes, str) or not isinstance(outcomes, Sequence):
        raise SpecError(f"analyses: compare: confirmatory is a list of outcomes, but got {outcomes!r}")
    if not isinstance(groups, Mapping):
        raise SpecError(f"analyses: compare: group maps patterns to names, but got {groups!r}")
    return float(alpha), float(effect), pairing, len(outcomes), dict(groups)


def detectable(n: int, alpha: float, paired: bool, wanted: float = 0.8) -> float | None:
    """Effect found with this power by n seeds a level, in SDs, to 0.01; None where 100 SDs are not enough."""
    low, high = 0.0, 100.0
    if power(high, n, n, alpha, paired) < wanted:
        return None
    while high - low > 0.005:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, n, n, alpha, paired) >= wanted else (middle, high)
    return round(high, 2)


def contrasts(levels: Sequence[str], against: str | None = None) -> list[tuple[str, str]]:
    """Pairs of levels that are compared: all, or each with the level `against` where this axis has it."""
    if against is not None and against in levels:
        return [(level, against) for level in levels if level != against]
    return [(a, b) for i, a in enumerate(levels) for b in levels[i + 1 :]]


def grouped(levels: Mapping[str, int], groups: Mapping[str, str]) -> dict[str, int]:
    """Levels under the names that `groups` (pattern: name) gives them; the seeds of a group are those all have."""
    found: dict[str, int] = {}
    for level, n in levels.items():
        name = group_of(level, groups)
        found[name] = min(found.get(name, n), n)
    return found


def group_of(level: str, groups: Mapping[str, str]) -> str:
    """Name of the first pattern (`*` and `?`) that matches the level; the level itself where none does."""
    return next((name for pattern, name in groups.items() if fnmatchcase(level, pattern)), level)


def warnings(found: Iterable[Power]) -> list[str]:
    """All that must be said."""
    return [text for entry in found if (text := entry.warning) is not None]
