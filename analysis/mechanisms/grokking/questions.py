"""The founding document's open questions on scales, answered by numbers with permutation nulls."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score

from ndt_ray.analysis.nulls import generator

Floats = NDArray[np.float64]

DRAWS = 1999
CLUSTERS = (2, 3, 4, 5, 6)
CLUSTER_DRAWS = 19
PROFILE = ("fft_no_dc", "variance_preservation", "relative_gradient")
FEW = 5
"""Units below which a permutation test has nothing to say: 4 give p no smaller than 1/12, two-sided."""


def questions(first: pd.DataFrame, last: pd.DataFrame, timeline: pd.DataFrame, trial_id: str) -> pd.DataFrame:
    """Rows of `scale_questions` (but the trial) from `scale_metrics` at the first and last checkpoint."""
    rows: list[dict[str, Any]] = []
    for kind in ("neuron", "head_to_a"):
        start, end = (t[t["kind"] == kind].sort_values("unit") for t in (first, last))
        times = timeline[timeline["kind"] == kind].sort_values("unit")
        if not len(end):
            continue
        key = (trial_id, kind)
        rows += [{"question": "emergence", "kind": kind, **r} for r in emergence(_of(start), _of(end), key)]
        rows += [{"question": "order", "kind": kind, **r} for r in order(times, key)]
        rows += [{"question": "redundancy", "kind": kind, **r} for r in redundancy(end, key)]
        if kind == "neuron":
            rows.append({"question": "clusters", "kind": kind, **clusters(end, key)[0]})
        else:
            rows.append({"question": "role", "kind": kind, **role(end, key)})
    return pd.DataFrame(rows)


def emergence(first: Floats, last: Floats, key: tuple[str, ...]) -> list[dict[str, Any]]:
    """Question 1, of units' scales [n] at the initialisation and the end: did the pattern emerge, or was it there?

    Paired change under random exchange of the two ends, and the rank correlation between them.
    """
    change = last - first
    signs = generator("emergence", *key).choice((-1.0, 1.0), (DRAWS, len(change)))
    moved = _tested("mean_change", float(change.mean()), (signs * change).mean(1), len(change))
    kept = spearman("rank_correlation", first, last, ("emergence_rank", *key))
    emerged = _below(moved["p"]) and abs(moved["value"]) >= 0.05
    there = _below(kept["p"]) and kept["value"] > 0
    answer = "emerged in training" if emerged else "no change on the whole"
    answer += ", ordered as at the initialisation" if there else ""
    undecided = moved["p"] is None
    return [row | {"answer": "too few units" if undecided else answer} for row in (moved, kept)]


def order(times: pd.DataFrame, key: tuple[str, ...]) -> list[dict[str, Any]]:
    """Question 2: do low-frequency patterns settle before high-frequency ones?

    Rank correlation of the step at which a unit commits to its frequency (and its scale settles) with its final scale
    and its modular frequency: low first is negative for the scale (a large one is coarse), positive for the frequency.
    """
    rows = []
    pairs = (("commitment_step", "scale", -1), ("scale_step", "scale", -1), ("commitment_step", "frequency", 1))
    for step, by, sign in pairs:
        known = times[times[step].notna() & (times["frequency"] > 0)]
        row = spearman(
            f"{step}_by_{by}", known[by].to_numpy(np.float64), known[step].to_numpy(np.float64), ("order", *key)
        )
        low = "low frequencies first" if sign * row["value"] > 0 else "high frequencies first"
        row["answer"] = "too few units" if row["p"] is None else low if _below(row["p"]) else "no order found"
        rows.append(row)
    return rows


def role(heads: pd.DataFrame, key: tuple[str, ...]) -> dict[str, Any]:
    """Question 3: is a head's scale related to what the network loses without it (its output at its mean)?"""
    known = heads[heads["ablation_mean"].notna()]
    row = spearman(
        "ablation_by_scale",
        known["fft_no_dc"].to_numpy(np.float64),
        known["ablation_mean"].to_numpy(np.float64),
        ("role", *key),
    )
    found = "coarse heads matter more" if row["value"] > 0 else "fine heads matter more"
    return row | {"answer": "too few heads" if row["p"] is None else found if _below(row["p"]) else "no relation found"}


def redundancy(units: pd.DataFrame, key: tuple[str, ...]) -> list[dict[str, Any]]:
    """Do two metrics say the same? Rank correlation of the FFT ratio with variance preservation and with gradient."""
    rows = []
    for other in ("variance_preservation", "relative_gradient"):
        row = spearman(f"fft_and_{other}", _of(units), units[other].to_numpy(np.float64), ("redundancy", other, *key))
        size = abs(row["value"])
        word = "redundant" if size >= 0.8 else "related" if _below(row["p"]) else "independent"
        rows.append(row | {"answer": "too few units" if row["p"] is None else word})
    return rows


def clusters(units: pd.DataFrame, key: tuple[str, ...]) -> tuple[dict[str, Any], NDArray[np.int64], NDArray[np.bool_]]:
    """Question 4: (row, cluster of each unit, whether it represents its cluster) by k-means on the scale profiles.

    Silhouette of the best of 2..6 clusters, against profiles whose columns are permuted independently: the same
    marginals without any grouping. Cluster -1, and none represents, where units are too few or all alike.
    """
    profile = units[list(PROFILE)].to_numpy(np.float64)
    if not np.isfinite(profile).all():
        profile = np.zeros_like(profile)
    spread = profile.std(0)
    none = (np.full(len(profile), -1, dtype=np.int64), np.zeros(len(profile), dtype=bool))
    distinct = len(np.unique(profile.round(9), axis=0))
    if distinct <= max(CLUSTERS) or not (spread > 0).any():
        return _row("silhouette", np.nan, len(profile)) | {"answer": "too few units"}, *none
    scaled = (profile[:, spread > 0] - profile[:, spread > 0].mean(0)) / spread[spread > 0]
    value, labels, centres = _best(scaled)
    rng = generator("clusters", *key)
    null = np.array([_best(rng.permuted(scaled, axis=0))[0] for _ in range(CLUSTER_DRAWS)])
    row = _tested("silhouette", value, null, len(profile), upper=True)
    distance = np.linalg.norm(scaled - centres[labels], axis=1)
    representative = np.zeros(len(profile), dtype=bool)
    for cluster in range(len(centres)):
        own = np.flatnonzero(labels == cluster)
        representative[own[distance[own].argmin()]] = True
    grouped = value > row["null_hi"]
    row["answer"] = f"{len(centres)} clusters" if grouped else "no clusters beyond the metrics' own spread"
    return row, labels, representative


def spearman(name: str, x: Floats, y: Floats, key: tuple[str, ...]) -> dict[str, Any]:
    """Rank correlation with its two-sided permutation p (1,999 draws); null for constants or under 5 units."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return _row(name, np.nan, len(x))
    a, b = (rankdata(v) - (len(v) + 1) / 2 for v in (x, y))
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    value = float(a @ b)
    if len(x) < FEW:
        return _row(name, value, len(x))
    null = generator("spearman", name, *key).permuted(np.tile(b, (DRAWS, 1)), axis=1) @ a
    return _tested(name, value, null, len(x))


def _best(scaled: Floats) -> tuple[float, NDArray[np.int64], Floats]:
    """(silhouette, labels, centres) of the number of clusters with the largest silhouette."""
    found: list[tuple[float, NDArray[np.int64], Floats]] = []
    for k in CLUSTERS:
        fitted = KMeans(k, n_init=2, random_state=0).fit(scaled)
        labels = fitted.labels_.astype(np.int64)
        found.append((float(silhouette_score(scaled, labels)), labels, fitted.cluster_centers_))
    first: Callable[[tuple[float, Any, Any]], float] = lambda one: one[0]  # noqa: E731
    return max(found, key=first)


def _tested(name: str, value: float, null: Floats, n: int, upper: bool = False) -> dict[str, Any]:
    size, beyond = (value, null) if upper else (abs(value), np.abs(null))
    p = float((1 + (beyond >= size - 1e-12).sum()) / (1 + len(null)))
    row = _row(name, value, n)
    return row | {
        "null_mean": float(null.mean()),
        "null_hi": float(np.quantile(beyond, 0.95)),
        "p": p if n >= FEW else None,
    }


def _row(name: str, value: float, n: int) -> dict[str, Any]:
    return {"statistic": name, "value": value, "null_mean": None, "null_hi": None, "p": None, "n": n}


def _below(p: float | None, level: float = 0.05) -> bool:
    return p is not None and p < level


def _of(units: pd.DataFrame) -> Floats:
    found: Floats = units["fft_no_dc"].to_numpy(np.float64)
    return found
