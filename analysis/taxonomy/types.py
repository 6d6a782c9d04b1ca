"""Types of events: clusters of their features, kept only where they are stable, and compared with clusters of noise.

`default`: significant events by phase, |relative size|, layer depth, width and direction. k by silhouette, unless the
gap statistic sees no clusters at all; a type is one only if it comes back when runs are resampled, and gets its name by
rule if noise does not cluster as well. The same is done to *null events*: for every series with K events, the K largest
contrasts of AR(1) noise of that series' length, spread and memory. `original`: k-means with k = 5 on (phase, magnitude,
speed) of the published jumps.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.blocks import codes, permuted
from ndt_ray.analysis.detection import Floats, Ints
from ndt_ray.analysis.events.significant import depth, primary, replicates, with_names
from ndt_ray.analysis.nulls import generator, surrogates
from ndt_ray.analysis.taxonomy import clusters
from ndt_ray.analysis.taxonomy.tables import EVENT_TYPES, TAXONOMY_ASSOCIATION, TAXONOMY_FITS, TAXONOMY_TYPES
from ndt_ray.architectures import family_of
from ndt_ray.errors import SpecError

FEATURES = ("phase", "log_size", "depth", "log_width", "direction")
PUBLISHED_FEATURES = ("phase", "magnitude", "speed")
PUBLISHED_K, PUBLISHED_SEED = 5, 42
BEYOND_NOISE = 0.05
"""Share of null draws that may cluster as well before types lose their names."""
FEWEST = 20
"""Fewer events than this are one type: nothing can be said of kinds."""

_HALVES = (3, 10, 30)


@analysis(
    name="taxonomy",
    reads=("trials", "outcomes", "evaluations", "events", "event_families", "series_tests", "jumps"),
    writes=(TAXONOMY_FITS, TAXONOMY_TYPES, EVENT_TYPES, TAXONOMY_ASSOCIATION),
    per="sweep",
)
def taxonomy(
    data: AnalysisInput,
    *,
    k: int = 0,
    largest_k: int = 8,
    resamples: int = 50,
    null_draws: int = 20,
    permutations: int = 999,
) -> dict[str, pd.DataFrame]:
    """Types of events with their stability, the same on noise, and their association with architecture and data.

    `k`: a fixed number of types, or as many as there are events for; 0: by silhouette, 1 where the gap sees none.
    """
    if k < 0 or largest_k < 1:
        raise SpecError(f"numbers of types are 1 or more (k: 0 to choose), but got ({k=}, {largest_k=})")
    trials = replicates(data)
    found: dict[str, list[pd.DataFrame]] = {t.name: [] for t in taxonomy.writes}
    if trials.empty:
        return {name: pd.DataFrame() for name in found}
    tests = data.frame("series_tests")
    events = primary(data.frame("events"), data.frame("event_families"))
    if len(events):
        known = described(with_names(events, trials, ("steps", "untrained")), _layers(tests, events))
        null = [_null(known, tests, data.sweep, str(b)) for b in range(null_draws)]
        _default(known, null, found, (k, max(k, largest_k)), resamples, permutations, data.sweep)
    jumps = data.frame("jumps")
    if len(jumps):
        own = jumps[(jumps["mode"] == "original") & (jumps["detector"] == "difference_z")]
        if len(own) > PUBLISHED_K:
            _original(with_names(own, trials, ("untrained",)), found, resamples, permutations, data.sweep)
    return {name: pd.concat(parts, ignore_index=True) if parts else pd.DataFrame() for name, parts in found.items()}


def _layers(tests: pd.DataFrame, events: pd.DataFrame) -> pd.Series:
    """Number of layers by trial: as many as were tested, or as the events name."""
    both = pd.concat([t[["trial_id", "layer_index"]] for t in (tests, events) if len(t)])
    return both.groupby("trial_id")["layer_index"].max() + 1


def described(events: pd.DataFrame, layers: pd.Series) -> pd.DataFrame:
    """The events with the columns of FEATURES; `log_size` is NaN where there is no relative size."""
    size = events["relative_size"].abs().to_numpy(np.float64, na_value=np.nan)
    with np.errstate(divide="ignore"):
        log_size = np.where(size > 0, np.log10(np.where(size > 0, size, 1.0)), np.nan)
    steps = events["steps"].to_numpy(np.float64, na_value=np.nan)
    width = np.maximum(events["width"].to_numpy(np.float64), 1.0) / steps
    direction = np.where(events["direction"] == "increase", 1.0, -1.0)
    return events.assign(
        log_size=log_size, depth=depth(events, layers), log_width=np.log10(width), direction_sign=direction
    )


def _matrix(events: pd.DataFrame) -> Floats:
    columns = ["phase", "log_size", "depth", "log_width", "direction_sign"]
    found: Floats = events[columns].to_numpy(dtype=np.float64, na_value=np.nan)
    return found


def _null(events: pd.DataFrame, tests: pd.DataFrame, *key: str) -> Floats:
    """Features of null events, as many a series as it has events."""
    names = ["trial_id", "layer", "view", "measure"]
    of = tests.drop_duplicates(names).set_index(names) if len(tests) else pd.DataFrame()
    parts = []
    for series, group in events.groupby(names, sort=True):
        test = of.loc[series] if len(of) and series in of.index else None
        parts.append(_contrasts(group, test, generator("null events", *series, *key)))
    return np.concatenate(parts) if parts else np.zeros((0, len(FEATURES)))


def _contrasts(events: pd.DataFrame, test: pd.Series | None, rng: np.random.Generator) -> Floats:
    """Features of the largest contrasts, no two overlapping, of noise like that of the series."""
    steps = float(events["steps"].iloc[0])
    n = 200 if test is None else int(test["n"])
    every = steps / n if test is None else float(test["grid_every"])
    phi = 0.0 if test is None or pd.isna(test["phi"]) else float(np.clip(test["phi"], -0.95, 0.95))
    sd = 1.0 if test is None or pd.isna(test["noise_sd"]) or test["noise_sd"] <= 0 else float(test["noise_sd"])
    level = (events["size"] / events["relative_size"]).abs().median()
    level = float(level) if np.isfinite(level) and level > 0 else sd
    values = surrogates("ar1", n, sd, 1, rng, phi)[0]
    total = np.concatenate([[0.0], np.cumsum(values)])
    tried: list[tuple[float, int, int, float]] = []
    for half in (h for h in _HALVES if 2 * h < n):
        at = np.arange(half, n - half + 1)
        change = (total[at + half] - 2 * total[at] + total[at - half]) / half
        score = np.abs(change) / max(float(change.std()), 1e-300)
        tried += [(float(s), int(a), half, float(c)) for s, a, c in zip(score, at, change, strict=True)]
    rows: list[tuple[float, ...]] = []
    taken: list[tuple[int, int]] = []
    for _, place, half, change in sorted(tried, key=lambda x: -x[0]):
        if len(rows) == len(events):
            break
        if all(abs(place - p) >= half + h for p, h in taken):
            taken.append((place, half))
            size = np.log10(max(abs(change), 1e-12 * level) / level)
            width = np.log10(max(half * every, 1.0) / steps)
            rows.append((min(1.0, place * every / steps), size, np.nan, width, float(np.sign(change))))
    found = np.array(rows) if rows else np.zeros((0, len(FEATURES)))
    found[:, 2] = events["depth"].iloc[0]
    return found


def _default(
    events: pd.DataFrame,
    null: list[Floats],
    found: dict[str, list[pd.DataFrame]],
    wanted: tuple[int, int],
    resamples: int,
    permutations: int,
    sweep: str,
) -> None:
    fixed, limit = wanted
    whole = events["log_size"].notna() & events["phase"].notna() & events["log_width"].notna()
    known = events[whole].reset_index(drop=True)
    raw = _matrix(known)
    points = clusters.standardised(raw)
    tried = clusters.fits(points, limit if len(points) >= FEWEST else 1)
    by_shape, by_gap, k = clusters.chosen(tried)
    k = min(fixed, len(tried)) or k
    left_out = int((~whole).sum())
    shape = tried[k - 1].silhouette if tried else np.nan
    p = _p_silhouette(shape, null, k)
    fits = _fit_rows("default", "events", tried, (by_shape, by_gap, k), left_out, FEATURES, p)
    found["taxonomy_fits"].append(fits)
    if not tried:
        return
    labels = _by_phase(tried[k - 1].labels, raw[:, 0])
    runs = codes(known, ("trial_id",))
    overlap = clusters.jaccard(points, labels, runs, resamples)
    types = _types("default", "events", labels, raw, runs, overlap, named=k == 1 or p <= BEYOND_NOISE)
    found["taxonomy_types"].append(types)
    found["event_types"].append(_assigned("default", known, labels, points, types))
    found["taxonomy_association"].append(_association("default", known, labels, permutations, sweep))
    if null and len(null[0]) and k <= clusters.largest_k(clusters.standardised(null[0]), limit):
        of_noise = clusters.standardised(null[0])
        also = clusters.fits(of_noise, limit if len(of_noise) >= FEWEST else 1)
        chosen = clusters.chosen(also)
        found["taxonomy_fits"].append(_fit_rows("default", "null", also, chosen, 0, FEATURES, np.nan))
        own = _by_phase(also[chosen[2] - 1].labels, null[0][:, 0])
        each = np.arange(len(own))
        overlap = clusters.jaccard(of_noise, own, each, resamples)
        found["taxonomy_types"].append(_types("default", "null", own, null[0], each, overlap, named=False))


def _p_silhouette(shape: float, null: list[Floats], k: int) -> float:
    """Share of null draws whose events cluster as well into as many types."""
    if not np.isfinite(shape) or k < 2:
        return np.nan
    values = []
    for draw in null:
        points = clusters.standardised(draw)
        if clusters.largest_k(points, k) >= k:
            labels, _ = clusters.kmeans(points, k, starts=2)
            values.append(clusters.silhouette(points, labels))
    return (1 + int(np.sum(np.array(values) >= shape))) / (1 + len(values)) if values else np.nan


def _fit_rows(
    mode: str,
    source: str,
    tried: list[clusters.Fit],
    ks: tuple[int, int, int],
    left_out: int,
    features: tuple[str, ...],
    p: float,
) -> pd.DataFrame:
    by_shape, by_gap, k = ks
    rows = [
        {"mode": mode, "source": source, "k": f.k, "n": len(f.labels), "n_left_out": left_out}
        | {"features": ",".join(features), "inertia": f.inertia, "silhouette": f.silhouette}
        | {"gap": f.gap, "gap_se": f.gap_se, "bic": f.bic}
        | {"by_silhouette": f.k == by_shape, "by_gap": f.k == by_gap, "chosen": f.k == k}
        | {"p_silhouette": p if f.k == k else np.nan}
        for f in tried
    ]
    return pd.DataFrame(rows, columns=[c.name for c in TAXONOMY_FITS.columns])


def _by_phase(labels: Ints, phase: Floats) -> Ints:
    """The labels renumbered by the median phase of their cluster."""
    names = np.unique(labels)
    order = np.argsort([np.median(phase[labels == k]) for k in names], kind="stable")
    place = np.empty(len(names), np.int64)
    place[order] = np.arange(len(names))
    renumbered: Ints = place[np.searchsorted(names, labels)]
    return renumbered


def _types(mode: str, source: str, labels: Ints, raw: Floats, runs: Ints, overlap: Floats, named: bool) -> pd.DataFrame:
    """One row a cluster; `raw`: phase, log10 size, depth, log10 width, direction (NaN: unknown).

    `named`: the clusters are clearer than those of noise, and may have names where they are stable.
    """
    usual = float(np.median(raw[:, 1])) if len(raw) else np.nan
    rows = []
    for k in range(int(labels.max(initial=-1)) + 1):
        own = raw[labels == k]
        stable = bool(overlap[k] >= clusters.STABLE)
        phase, size, layer, width = (float(np.median(own[:, i])) for i in range(4))
        increasing = float((own[:, 4] > 0).mean())
        rows.append(
            {"mode": mode, "source": source, "type": k + 1, "n": len(own)}
            | {"n_trials": len(np.unique(runs[labels == k])), "jaccard": float(overlap[k]), "stable": stable}
            | {"label": name_of(phase, size, layer, width, increasing, usual) if stable and named else None}
            | {"phase": phase, "size": 10**size, "depth": layer, "width": 10**width, "increasing": increasing}
        )
    return pd.DataFrame(rows, columns=[c.name for c in TAXONOMY_TYPES.columns])


def name_of(phase: float, log_size: float, layer: float, log_width: float, increasing: float, usual: float) -> str:
    """A type's name by rule: the plan's three where they fit, else when, how, which way and where.

    `usual`: median log10 size of all events. Rapid: a width under 5 % of the run.
    """
    rapid = not log_width > np.log10(0.05)
    if phase < 0.1 and increasing >= 0.75 and rapid:
        return "Early rapid expansion"
    if 0.1 <= phase < 0.5 and 1 / 3 <= layer <= 2 / 3:
        return "Mid-layer refinement"
    if phase >= 0.5 and log_size <= usual:
        return "Late stabilization"
    when = "Early" if phase < 0.1 else "Mid-training" if phase < 0.5 else "Late"
    way = "expansion" if increasing >= 0.75 else "contraction" if increasing <= 0.25 else "change"
    where = "first" if layer < 1 / 3 else "last" if layer > 2 / 3 else "middle"
    return f"{when} {'rapid' if rapid else 'gradual'} {way}, {where} layers"


def _assigned(mode: str, events: pd.DataFrame, labels: Ints, points: Floats, types: pd.DataFrame) -> pd.DataFrame:
    centres = np.array([points[labels == k].mean(axis=0) for k in range(int(labels.max()) + 1)])
    distance = np.sqrt(((points - centres[labels]) ** 2).sum(axis=1))
    names = types.set_index("type")["label"]
    rows = events[["trial_id", "layer", "layer_index", "view", "measure", "step_before"]].assign(
        mode=mode, type=labels + 1, label=names.reindex(labels + 1).to_numpy(object), distance=distance
    )
    nearest = rows.sort_values("distance", kind="stable").drop_duplicates(["type", "trial_id"])
    rank = nearest.groupby("type").cumcount() + 1
    return rows.assign(representative=rank[rank <= 3].astype("Int32"))


def _association(mode: str, events: pd.DataFrame, labels: Ints, count: int, sweep: str) -> pd.DataFrame:
    """Cramér's V of type and factor; whole trials are exchanged, within seed and the other factor."""
    learned = ~events["untrained"].to_numpy(bool)  # a claim about learning: cells that never did are left out
    events, labels = events[learned], labels[learned]
    runs, first = np.unique(codes(events, ("trial_id",)), return_index=True)
    own = events.iloc[first].assign(family=events["model"].astype(str).map(family_of))
    counts = np.zeros((len(runs), int(labels.max(initial=-1)) + 1))
    np.add.at(counts, (codes(events, ("trial_id",)), labels), 1)
    rows = []
    for factor, other in (("model", "data"), ("family", "data"), ("data", "model")):
        groups, names = pd.factorize(own[factor], sort=True)
        blocks = codes(own, ("seed", other))
        rng = generator("taxonomy", mode, factor, sweep)
        found = permuted(_cramers_v(counts), groups.astype(np.int64), blocks, count, rng)
        rows.append(
            {"mode": mode, "factor": factor, "n_events": len(events), "n_trials": len(runs), "n_groups": len(names)}
            | {"cramers_v": found.statistic, "p": found.p, "p_attainable": found.p_attainable}
        )
    return pd.DataFrame(rows)


def _cramers_v(counts: Floats) -> Any:
    types, total = counts.sum(axis=0), float(counts.sum())

    def statistic(labels: Ints) -> Floats:
        groups = int(labels.max(initial=-1)) + 1
        smaller = min(groups, int((types > 0).sum())) - 1
        if smaller < 1 or total == 0:
            return np.full(len(labels), np.nan)
        chi = np.zeros(len(labels))
        for g in range(groups):
            seen = (labels == g).astype(np.float64) @ counts
            expected = seen.sum(axis=1, keepdims=True) * types / total
            chi += np.divide((seen - expected) ** 2, expected, out=np.zeros_like(seen), where=expected > 0).sum(axis=1)
        return np.asarray(np.sqrt(chi / (total * smaller)), dtype=np.float64)

    return statistic


def published_clusters(jumps: pd.DataFrame) -> Ints:
    """Cluster ids 0 to 4 of jumps with columns phase, magnitude, speed; as published.

    k-means numbers its clusters by the accident of the best of ten starts, which the last bit of a sum may change. So
    they get the published numbers by rule: the three large ones 0, 2, 4 by phase, the two small ones 1, 3 by magnitude.
    """
    raw = jumps[list(PUBLISHED_FEATURES)].to_numpy(np.float64)
    labels, _ = clusters.kmeans(clusters.standardised(raw), PUBLISHED_K, PUBLISHED_SEED, starts=10)
    by_size = np.argsort(-np.bincount(labels, minlength=PUBLISHED_K), kind="stable")
    mean = np.array([raw[labels == k].mean(axis=0) for k in range(PUBLISHED_K)])
    number = np.empty(PUBLISHED_K, np.int64)
    number[by_size[:3][np.argsort(mean[by_size[:3], 0])]] = (0, 2, 4)
    number[by_size[3:][np.argsort(mean[by_size[3:], 1])]] = (1, 3)
    renumbered: Ints = number[labels]
    return renumbered


def _original(
    jumps: pd.DataFrame, found: dict[str, list[pd.DataFrame]], resamples: int, permutations: int, sweep: str
) -> None:
    ordered = jumps.sort_values(["cell", "layer_index", "index"], ignore_index=True)
    raw = ordered[list(PUBLISHED_FEATURES)].to_numpy(np.float64)
    points = clusters.standardised(raw)
    labels = published_clusters(ordered)
    tried = list(_published_fits(points, labels))
    shapes = {f.k: f.silhouette for f in tried}
    ks = (max(shapes, key=lambda k: shapes[k]), 0, PUBLISHED_K)
    found["taxonomy_fits"].append(_fit_rows("original", "events", tried, ks, 0, PUBLISHED_FEATURES, np.nan))
    runs = codes(ordered, ("trial_id",))
    overlap = clusters.jaccard(points, labels, runs, resamples)
    layers = ordered.groupby("trial_id")["layer_index"].max() + 1
    shown = ordered.assign(depth=depth(ordered, layers))
    rows = []
    for k in range(PUBLISHED_K):
        own = shown[labels == k]
        rows.append(
            {"mode": "original", "source": "events", "type": k + 1, "n": len(own)}
            | {"n_trials": own["trial_id"].nunique(), "jaccard": float(overlap[k])}
            | {"stable": bool(overlap[k] >= clusters.STABLE), "label": None, "phase": own["phase"].median()}
            | {"size": own["magnitude"].median(), "depth": own["depth"].median(), "width": None}
            | {"increasing": float((own["direction"] == "increase").mean())}
        )
    types = pd.DataFrame(rows)
    found["taxonomy_types"].append(types)
    found["event_types"].append(_assigned("original", ordered, labels, points, types))
    found["taxonomy_association"].append(_association("original", ordered, labels, permutations, sweep))


def _published_fits(points: Floats, labels: Ints) -> Iterator[clusters.Fit]:
    """Silhouettes over all points at the k that the study might have chosen; gap and mixture were not asked for."""
    for k in range(2, PUBLISHED_K + 1):
        own, inertia = (labels, np.nan) if k == PUBLISHED_K else clusters.kmeans(points, k, PUBLISHED_SEED, starts=10)
        shape = clusters.silhouette(points, own)
        yield clusters.Fit(k, inertia, shape, np.nan, np.nan, np.nan, own)
