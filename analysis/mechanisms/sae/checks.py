"""What must hold of trained dictionaries and their transfer before anybody reads them (founding document S3)."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    found: str


def losses_sane(losses: Mapping[str, Sequence[float] | NDArray[np.float64]], limit: float = 1.0) -> Check:
    """Final losses on normalised activations below `limit`: at 1 nothing is learned."""
    final = {name: float(values[-1]) for name, values in losses.items() if len(values)}
    high = {name: value for name, value in final.items() if not value < limit}
    return Check("losses", bool(final) and not high, _told(high) or f"{len(final)} below {limit}")


def converged(losses: Mapping[str, Sequence[float] | NDArray[np.float64]], tolerance: float = 0.1) -> Check:
    """The last epoch's loss is within `tolerance` of the smallest, and of the one before."""
    bad = {}
    for name, values in losses.items():
        v = np.asarray(values, dtype=np.float64)
        late = v[-1] > (1 + tolerance) * v.min() or (len(v) > 1 and abs(v[-1] - v[-2]) > tolerance * v[-2])
        if late or not np.isfinite(v).all():
            bad[name] = float(v[-1])
    return Check("converged", not bad, _told(bad) or f"{len(losses)} of {len(losses)}")


def ratios_sane(ratios: Mapping[str, float], low: float = 0.2, high: float = 50.0) -> Check:
    """Ratios of losses (target / source) within reason: no model's loss vanishes or explodes."""
    bad = {name: v for name, v in ratios.items() if not low <= v <= high}
    return Check("ratios", not bad, _told(bad) or f"{len(ratios)} within {low} to {high}")


def shapes_consistent(atoms: Iterable[tuple[str, tuple[int, ...], int]]) -> Check:
    """(name, shape of the atoms [F, d], width of the layer): d is the layer's width."""
    bad = {name: float(d) for name, shape, d in atoms if len(shape) != 2 or shape[1] != d}
    return Check("shapes", not bad, _told(bad) or "all fit")


def finite(values: Mapping[str, Any]) -> Check:
    """No NaN and no infinite number among values that are not null."""
    bad = {n: float(v) for n, v in values.items() if isinstance(v, int | float) and not math.isfinite(v)}
    return Check("finite", not bad, _told(bad) or f"{len(values)} values")


def readable(text: str) -> Check:
    """A transfer file that parses, has its keys, and whose scores are the means of their layer pairs."""
    try:
        found = json.loads(text)
        wrong = [
            name
            for name, pair in found.items()
            if (s := pair["universality_score"]) is not None
            and abs(s - float(np.mean(list(pair["layer_pairs"].values())))) > 1e-9
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return Check("json", False, f"{type(error).__name__}: {error}")
    return Check("json", not wrong, ", ".join(wrong) or f"{len(found)} pairs")


def _told(bad: Mapping[str, float]) -> str:
    return ", ".join(f"{name} = {value:.3g}" for name, value in list(bad.items())[:5])
