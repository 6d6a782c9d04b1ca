"""Jumps by the founding studies' rules, each count beside what the rule reports on matched noise.

`original` mode repeats what was published, mistakes included, on the published series (`original_measurements`);
`default` mode applies the same rules to correct measures in true units. Neither is calibrated: see `compare_with_null`.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ndt_ray.analysis import detection, nulls
from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.detection import Events, Floats, Rule
from ndt_ray.analysis.detection.original import DifferenceZ, SmoothedGradient, rule
from ndt_ray.analysis.events.cases import KERNEL, LEVELS, cases
from ndt_ray.analysis.phases import phase_bin, published_phase_bin
from ndt_ray.analysis.series import Clock, Series, clock, layer_series, mean_series
from ndt_ray.analysis.tables import JUMP_COUNTS, JUMPS
from ndt_ray.errors import SpecError, did_you_mean

MEASURES = (
    "stable_rank",
    "participation_ratio",
    "stable_rank_uncentred",
    "participation_ratio_sv_uncentred",
    "nuclear_norm_ratio_uncentred",
)
"""Centred, and the founding study's uncentred ones. Integer-valued energy_90 has no Gaussian null, and is left out."""

Columns = dict[str, NDArray[Any]]

RESOLUTION = 1e-6
"""Relative SD at and below which a series counts as constant in default mode: measures are stored in float32, and are
accurate to 2e-7. The published "stable rank" varied by 1e-9: every one of its 2,991 jumps was rounding."""


@analysis(
    name="jumps",
    reads=("trials", "measurements", "velocity", "original_measurements"),
    writes=(JUMPS, JUMP_COUNTS),
    per="trial",
)
def jumps(
    data: AnalysisInput,
    *,
    measures: Sequence[str] = MEASURES,
    velocities: Sequence[str] = (),
    rules: Mapping[str, Mapping[str, Any]] = {"difference_z": {}, "smoothed_gradient": {}, "rolling_level": {}},
    modes: Sequence[str] = ("default", "original"),
    n_surrogates: int = 200,
) -> dict[str, pd.DataFrame]:
    """Changes that three uncalibrated rules flag, each count beside white-noise and AR(1) nulls.

    `difference_z` and `rolling_level` judge every layer, `smoothed_gradient` the mean over layers. Only measurements on
    the `every` grid are used, and the change from step 0 is shown but not counted (Adam's first step is a sign step).
    `velocities`: columns of the table velocity that are judged, too, layer by layer; rates by their logarithm.
    """
    trial = clock(data.frame("trials"), data.frame("measurements"))
    chosen = [rule(name, parameters) for name, parameters in rules.items()]
    events: list[Columns] = []
    counts: list[dict[str, Any]] = []
    for mode, series, judges in _cases(data, trial, measures, velocities, chosen, modes):
        tested = _tested(mode, series)
        noise = _surrogates(mode, tested, trial, n_surrogates)
        for detector in judges:
            found = _events(mode, series, tested, detector, trial)
            events.append(found)
            counts.append(_count(mode, tested, detector, trial, found, noise) | {"n_surrogates": n_surrogates})
    return {"jumps": pd.DataFrame(_stacked(events)), "jump_counts": pd.DataFrame(counts)}


def _cases(
    data: AnalysisInput,
    trial: Clock,
    measures: Sequence[str],
    velocities: Sequence[str],
    chosen: Iterable[Rule],
    modes: Sequence[str],
) -> Iterator[tuple[str, Series, list[Rule]]]:
    """Every (mode, series) with the rules that judge it."""
    for mode in modes:
        if mode not in ("default", "original"):
            raise SpecError(f"unknown mode '{mode}'{did_you_mean(mode, ('default', 'original'))}")
    if "default" in modes:
        rows = data.frame("measurements")
        moved = cases(
            rows.iloc[:0], data.frame("velocity"), measures=(), velocities=velocities, grid="linear", every=trial.every
        )
        for series in (*layer_series(rows, measures, trial.every), *(case.judged for case in moved)):
            yield "default", series, [d for d in chosen if not isinstance(d, SmoothedGradient)]
        for series in mean_series(rows, measures, trial.every):
            yield "default", series, [d for d in chosen if isinstance(d, SmoothedGradient)]
    if "original" in modes:
        rows = data.frame("original_measurements")
        for series in layer_series(rows, ("stable_rank",), trial.every):
            yield "original", series, [DifferenceZ()]
        for series in mean_series(rows, ("participation_ratio",), trial.every):
            yield "original", series, [SmoothedGradient()]


def _tested(mode: str, series: Series) -> Series:
    """The part that a rule is applied to: without step 0 in default mode, and only what varies measurably."""
    if mode == "original":
        return series
    tested = series.since(1)
    steady = tested.values.size and float(np.std(tested.values)) <= RESOLUTION * float(np.abs(tested.values).max())
    return replace(tested, values=np.full_like(tested.values, tested.values[0])) if steady else tested


def _surrogates(mode: str, tested: Series, trial: Clock, count: int) -> dict[str, Floats | None]:
    key = (trial.trial_id, tested.layer, tested.view, mode, tested.measure)
    return {
        "white": nulls.matched("white_noise", tested.values, count, *key),
        "ar1": nulls.matched("ar1", tested.values, count, *key),
    }


def _events(mode: str, series: Series, tested: Series, detector: Rule, trial: Clock) -> Columns:
    found = detector(tested.steps, tested.values)
    columns = _described(tested, found, per_step=mode == "default") | {"counted": np.full(len(found), True)}
    if len(tested.steps) < len(series.steps) and isinstance(detector, DifferenceZ):
        columns = _stacked([*_from_init(series, tested, detector), columns])
    if mode == "original":
        phase = columns["index"] / trial.steps
        columns |= {"phase": phase, "phase_bin": published_phase_bin(phase)}
    else:
        phase = columns["step_before"] / trial.steps
        columns |= {"phase": phase, "phase_bin": phase_bin(phase)}
    identity = _identity(mode, series, detector, trial)
    return columns | {name: np.full(len(phase), value, dtype=object) for name, value in identity.items()}


def _from_init(series: Series, tested: Series, detector: DifferenceZ) -> Iterator[Columns]:
    """The change out of step 0, its z against all later differences; nothing where it is not flagged."""
    later = np.diff(tested.values)
    deviation = float(later.std()) if later.size else 0.0
    if deviation == 0 or len(series.values) < 2:
        return
    change = float(series.values[1] - series.values[0])
    z = (change - float(later.mean())) / deviation
    if abs(z) > detector.threshold:
        size, sign = np.array([abs(change)]), np.array([1 if change > 0 else -1])
        event = Events(np.array([0]), series.steps[:1], series.steps[1:2], size, np.array([z]), sign)
        yield _described(series, event, per_step=True) | {"counted": np.array([False])}


def _described(series: Series, found: Events, per_step: bool) -> Columns:
    """Event columns that follow from the series: magnitudes and speeds by the founding code and the founding plan."""
    s, v, i, n = series.steps, series.values, found.index, len(series.values)
    start, end = np.maximum(0, i - 2), np.minimum(n, i + 3) - 1
    level = np.abs(v[i])
    inside = (i >= 1) & (i + 1 < n)
    low, high = np.maximum(i - 1, 0), np.minimum(i + 1, n - 1)
    spread = np.where(inside, v[high] - v[low], np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):  # a level of 0 has no relative change: null
        relative = np.where(level > 0, found.magnitude / level, np.nan)
    if series.view == KERNEL and series.measure not in LEVELS:  # logarithms
        relative = np.abs(np.expm1(found.direction * found.magnitude))
    return {
        "index": i + series.first,
        "step_before": found.step_before,
        "step_after": found.step_after,
        "magnitude": found.magnitude,
        "relative_magnitude": relative,
        "z": found.z,
        "speed": np.abs(v[end] - v[start]) / (s[end] - s[start] if per_step else end + 1 - start),
        "window_change": spread,
        "window_speed": spread / np.where(inside, s[high] - s[low], 1),
        "direction": np.where(found.direction > 0, "increase", "decrease").astype(object),
    }


def _identity(mode: str, series: Series, detector: Rule, trial: Clock) -> dict[str, Any]:
    return {
        "trial_id": trial.trial_id,
        "layer": series.layer,
        "layer_index": series.layer_index,
        "view": series.view,
        "measure": series.measure,
        "mode": mode,
        "detector": detector.name,
        "parameters": json.dumps(detector.parameters(), sort_keys=True),
        "grid_every": trial.every,
    }


def _count(
    mode: str, tested: Series, detector: Rule, trial: Clock, found: Columns, noise: Mapping[str, Floats | None]
) -> dict[str, Any]:
    """One row of `jump_counts`: the counted events of one series and rule, beside the same rule on its surrogates."""
    counted = found["index"][found["counted"]]
    row = _identity(mode, tested, detector, trial) | {
        "n": len(tested.values),
        "n_missing": tested.n_missing,
        "observed": len(counted),
        "merged": len(detection.merged(counted)),
        "shown": len(found["index"]) - len(counted),
        "phi": None,
        "flag": None,
    }
    for family, series in noise.items():
        if series is None:
            row |= dict.fromkeys(f"null_{family}_{c}" for c in ("mean", "sd", "lo", "hi"))
            row |= {f"p_{family}": None, "flag": "constant" if len(tested.values) >= 4 else "short"}
            continue
        null = nulls.expected(detector, series, len(counted))
        row |= {f"null_{family}_mean": null.mean, f"null_{family}_sd": null.sd, f"p_{family}": null.p}
        row |= {f"null_{family}_lo": null.low, f"null_{family}_hi": null.high}
        row["phi"] = nulls.robust_phi(nulls.detrended(tested.values))
    return row


def _stacked(parts: Sequence[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}


def compare_with_null(counts: pd.DataFrame, by: Sequence[str] = ("mode", "measure", "detector")) -> pd.DataFrame:
    """Observed jumps over many series beside what the rules report on noise, and a verdict computed from both.

    `counts`: rows of `jump_counts`, with any columns joined on that `by` names. Expected counts add up over series;
    the interval is mean ± 1.96 SD of independent series. Verdict: above, within or below each null, or `no null`.
    """
    rows = []
    for key, group in counts.groupby(list(by), sort=True):
        judged = group[group["null_white_mean"].notna()]
        row: dict[str, Any] = dict(zip(by, key, strict=True))
        row |= {"series": len(group), "constant": len(group) - len(judged), "observed": int(group["observed"].sum())}
        row["merged"] = int(group["merged"].sum())
        for family in ("white", "ar1"):
            mean = float(judged[f"null_{family}_mean"].sum())
            half = 1.96 * math.sqrt(float((judged[f"null_{family}_sd"] ** 2).sum()))
            row |= {f"expected_{family}": mean, f"{family}_lo": mean - half, f"{family}_hi": mean + half}
            row[f"verdict_{family}"] = _verdict(row["observed"], mean - half, mean + half) if len(judged) else "no null"
        rows.append(row)
    return pd.DataFrame(rows)


def within_events(flagged: pd.DataFrame, counts: pd.DataFrame, events: pd.DataFrame) -> tuple[int, float]:
    """How many jumps share a measured interval with an event of their layer, and how many would if placed at random.

    `flagged`: rows of `jumps`, `counts`: of `jump_counts`, both of one rule and measure; `events`: with trial_id,
    layer_index, step_before and step_after. Random: anywhere in their own series, all intervals alike.
    """
    windows: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for row in events.itertuples(index=False):
        windows.setdefault((str(row.trial_id), int(row.layer_index)), []).append((row.step_before, row.step_after))
    inside, by_chance = 0, 0.0
    every = counts.set_index(["trial_id", "layer_index"])[["grid_every", "n"]]
    for key, jumps_ in flagged.groupby(["trial_id", "layer_index"], sort=False):
        known = windows.get((str(key[0]), int(key[1])))
        if known is None:
            continue
        before, after = jumps_["step_before"].to_numpy(), jumps_["step_after"].to_numpy()
        inside += int(np.any([(before < to) & (after > since) for since, to in known], axis=0).sum())
        distance, n = every.loc[key]
        covered = set[int]().union(*(range(since, to, int(distance)) for since, to in known))
        by_chance += len(jumps_) * len(covered) / max(int(n) - 1, 1)
    return inside, by_chance


def _verdict(observed: int, low: float, high: float) -> str:
    return "above" if observed > high else "below" if observed < low else "within"


def published_table(jumps: pd.DataFrame, experiments: pd.DataFrame) -> pd.DataFrame:
    """The founding study's jump table from `original` rows: its columns and its units, by experiment, layer and index.

    `experiments`: columns trial_id, experiment, arch_name, dataset. The published `step` is a measurement index.
    """
    rows = jumps[(jumps["mode"] == "original") & (jumps["detector"] == DifferenceZ.name)]
    names = experiments[["trial_id", "experiment", "arch_name", "dataset"]]
    own = ["trial_id", "layer_index", "index", "magnitude", "speed", "direction", "phase", "layer"]
    joined = rows[own].merge(names, on="trial_id", how="left", validate="many_to_one").rename(columns={"index": "step"})
    joined["phase_category"] = np.select([joined["phase"] < 0.33, joined["phase"] < 0.67], ["early", "mid"], "late")
    columns = ["step", "magnitude", "speed", "direction", "phase", "layer", "experiment", "arch_name", "dataset"]
    ordered = joined.sort_values(["experiment", "layer_index", "step"], ignore_index=True)
    return ordered[[*columns, "phase_category"]]
