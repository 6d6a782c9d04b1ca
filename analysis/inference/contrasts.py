"""One comparison of two levels of an axis: units, design, effect sizes, permutation p and what p was possible."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ndt_ray.analysis.inference import effects, permutation, sample
from ndt_ray.analysis.inference.outcomes import ABOUT_LEARNING, Outcome, ends, number
from ndt_ray.analysis.inference.tables import COMPARISONS
from ndt_ray.plan.power import choose_pairing, contrasts, group_of, power, smallest_adjusted

Floats = NDArray[np.float64]
WHOLE = "*"
NOTHING = {"events_per_series": "no series could be tested", "event_phase": "no events", "event_size": "no events"}
"""Why a level has no value of these."""


class Member(NamedTuple):
    """A trial of a level."""

    trial_id: str
    cell: str
    unit: str
    batches: str | None
    stratum: str


@dataclass(frozen=True)
class Pair:
    """Two levels of an axis in a stratum, with the trials of each."""

    axis: str
    stratum: str
    level_a: str
    level_b: str
    a: list[Member]
    b: list[Member]

    @property
    def key(self) -> tuple[str, ...]:
        return self.axis, self.stratum, self.level_a, self.level_b


@dataclass(frozen=True)
class Rules:
    """How comparisons are made; as the parameters of `compare`."""

    alpha: float
    effect: float
    pairing: str
    unit: str


def pairs(design: sample.Design, against: str | None, groups: dict[str, str]) -> Iterator[Pair]:
    """Every comparison along every compare axis: over all strata (`*`), and in each stratum where there are several."""
    axes = design.compared()
    for axis in axes:
        others = [path for path in axes if path != axis]
        levels: dict[str, list[Member]] = {}
        for row in design.frame.to_dict("records"):
            stratum = " ".join(str(row[path]) for path in others) if others else WHOLE
            member = Member(row["trial_id"], row["cell"], row["unit"], row["batches"], stratum)
            levels.setdefault(group_of(str(row[axis]), groups), []).append(member)
        for a, b in contrasts(sorted(levels), against):
            common = sorted({m.stratum for m in levels[a]} & {m.stratum for m in levels[b]})
            if not common:
                continue
            yield Pair(axis, WHOLE, a, b, *([m for m in levels[x] if m.stratum in common] for x in (a, b)))
            if others and len(common) > 1:
                for stratum in common:
                    yield Pair(axis, stratum, a, b, *([m for m in levels[x] if m.stratum == stratum] for x in (a, b)))


def compared(pair: Pair, outcome: Outcome, excluded: set[str], rules: Rules, comparisons: int) -> dict[str, Any]:
    """A row of `comparisons`, not yet adjusted. `excluded`: cells that are left out of what they learned."""
    row: dict[str, Any] = {column.name: None for column in COMPARISONS.columns}
    row |= {"family": outcome.family, "axis": pair.axis, "stratum": pair.stratum, "level_a": pair.level_a}
    row |= {"level_b": pair.level_b, "outcome": outcome.name, "unit": rules.unit, "effect": rules.effect}
    row["null_mean"] = outcome.null
    a, b = (_units(rows, outcome, excluded) for rows in (pair.a, pair.b))
    row |= {"n_a": len(a), "n_b": len(b)}
    shared = _share_batches(pair)
    both = sorted(set(a) & set(b))
    pairing, why = choose_pairing(shared, len(both), comparisons, rules.alpha)
    if rules.pairing != "auto":
        pairing, why = rules.pairing == "paired", "as declared"
    row |= {"batches_shared": shared, "design": "paired" if pairing else "unpaired", "design_reason": why}
    if not len(a) or not len(b):
        gone = excluded & {m.cell for m in (*pair.a, *pair.b)}
        nothing = NOTHING.get(outcome.name, "no values")
        row["reason"] = f"never trained: {', '.join(sorted(gone))}" if gone else nothing
        return row
    if pairing and not both:
        row["reason"] = "no unit has both levels"
        return row
    left, right = (np.array([group[unit] for unit in (both if pairing else sorted(group))]) for group in (a, b))
    row |= _numbers(left, right, pairing) | _tests(a, b, both, pairing, shared, pair)
    if row["lo"] is None and row["reason"] is None:
        row["reason"] = "no interval: all seeds are equal"
    return row


def _share_batches(pair: Pair) -> bool:
    """Whether both levels see the same batches, unit by unit."""
    left, right = ({(m.unit, m.batches) for m in members} for members in (pair.a, pair.b))
    return left == right and all(batches is not None for _, batches in left)


def _units(members: list[Member], outcome: Outcome, excluded: set[str]) -> dict[str, float]:
    """The outcome by unit: the mean over its trials within a stratum, then over strata; units that lack one are out."""
    found: dict[str, dict[str, list[float]]] = {}
    for m in members:
        if m.trial_id in outcome.values and (m.cell not in excluded or outcome.name in ABOUT_LEARNING):
            found.setdefault(m.unit, {}).setdefault(m.stratum, []).append(outcome.values[m.trial_id])
    strata = {stratum for own in found.values() for stratum in own}
    whole = {unit: own for unit, own in found.items() if len(own) == len(strata)}
    return {unit: fmean(fmean(values) for values in own.values()) for unit, own in whole.items()}


def _numbers(x: Floats, y: Floats, pairing: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"mean_a": float(x.mean()), "mean_b": float(y.mean())}
    found |= {"difference": float(x.mean() - y.mean()), **ends(x, y, pairing)}
    g = effects.hedges_g_av(x, y) if pairing else effects.hedges_g(x, y)
    low, high = (math.nan, math.nan) if pairing else effects.g_interval(x, y)
    found |= {"hedges_g": number(g), "g_lo": number(low), "g_hi": number(high)}
    found |= {"cliffs_delta": effects.cliffs_delta(x, y), "superiority": effects.superiority(x, y)}
    found |= {"rank_biserial": number(effects.rank_biserial(x, y)) if pairing else None}
    low, high = effects.log_ratio_interval(x, y, pairing)
    found |= {"log_ratio": number(effects.log_ratio(x, y)), "log_ratio_lo": number(low), "log_ratio_hi": number(high)}
    return found | {"iqm_difference": effects.iqm(x) - effects.iqm(y)}


def _tests(
    a: dict[str, float], b: dict[str, float], both: list[str], pairing: bool, shared: bool, pair: Pair
) -> dict[str, Any]:
    x, y = (np.array([group[unit] for unit in both]) for group in (a, b))
    of_groups = permutation.unpaired([a[u] for u in sorted(a)], [b[u] for u in sorted(b)], *pair.key)
    of_pairs = permutation.paired(x, y, *pair.key)
    used = of_pairs if pairing else of_groups
    found: dict[str, Any] = {"p": number(used.p), "exact": used.exact, "smallest_p": used.smallest}
    found |= {"p_unpaired": number(of_groups.p), "p_paired": number(of_pairs.p) if shared or pairing else None}
    if shared and len(both) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0:
        found["pair_correlation"] = float(np.corrcoef(x, y)[0, 1])
    if found["p"] is None or min(len(a), len(b)) < 2:
        found["reason"] = "one seed"
        found |= dict.fromkeys(("p", "p_paired", "p_unpaired"))
    return found


def powered(row: dict[str, Any], comparisons: int, rules: Rules) -> None:
    """Fills in the power of a row at alpha / comparisons; 0 where no outcome could pass."""
    pairing = row["design"] == "paired"
    n_a, n_b = (min(row["n_a"], row["n_b"]),) * 2 if pairing else (row["n_a"], row["n_b"])
    least = smallest_adjusted(n_a, n_b, pairing, comparisons)
    row["power"] = power(rules.effect, n_a, n_b, rules.alpha / comparisons, pairing) if least <= rules.alpha else 0.0
