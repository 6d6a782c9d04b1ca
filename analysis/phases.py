"""When in training an event fell: early, mid or late; bins that leave nothing out, and the published ones that do."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ndt_ray.errors import SpecError

BINS = ("early", "mid", "late")
EDGES = (0.1, 0.5)
"""Early is [0, .1), mid [.1, .5), late [.5, 1]: half-open, the last closed."""


def phase_bin(phase: ArrayLike) -> NDArray[np.object_]:
    """The bin of each phase; SpecError for one outside [0, 1], where step and total cannot belong together."""
    values = np.asarray(phase, dtype=np.float64)
    wrong = values[~((values >= 0) & (values <= 1))]
    if wrong.size:
        raise SpecError(f"a phase lies in [0, 1], but got {wrong[0]} - is `steps` the planned number of updates?")
    names = np.array(BINS, dtype=object)
    return cast(NDArray[np.object_], names[np.searchsorted(EDGES, values, side="right")])


def published_phase_bin(phase: ArrayLike) -> NDArray[np.object_]:
    """The founding study's bins (0, .1], (.1, .5], (.5, 1]: phase 0 falls out of all of them (None)."""
    values = np.asarray(phase, dtype=np.float64)
    names = np.array(BINS, dtype=object)
    found = names[np.searchsorted(EDGES, values, side="left")]
    found[~((values > 0) & (values <= 1))] = None
    return cast(NDArray[np.object_], found)


def jump_phases(jumps: pd.DataFrame, by: Sequence[str] = ("mode", "measure", "detector")) -> pd.DataFrame:
    """Counted jumps by phase: columns `by`, phase_bin, n, percent; the percentages of a group sum to 100.

    Every group has every bin, and `dropped` where the published bins lost some, so that nothing goes unaccounted for.
    """
    counted = jumps[jumps["counted"].astype(bool)]
    bins = counted["phase_bin"].astype(object).where(counted["phase_bin"].notna(), "dropped")
    rows = []
    for key, group in bins.groupby([counted[c] for c in by], sort=True) if by else [((), bins)]:
        n = group.value_counts()
        names = (*BINS, "dropped") if "dropped" in n else BINS
        shares = [100.0 * int(n.get(name, 0)) / len(group) for name in names] if len(group) else []
        assert not shares or abs(sum(shares) - 100.0) < 1e-9, (key, shares)
        identity = dict(zip(by, key, strict=True))
        rows += [
            identity | {"phase_bin": b, "n": int(n.get(b, 0)), "percent": s}
            for b, s in zip(names, shares, strict=False)
        ]
    return pd.DataFrame(rows, columns=[*by, "phase_bin", "n", "percent"])
