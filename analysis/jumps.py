"""Jumps by the founding studies' rules, each count beside what the rule reports on matched noise.

`original` mode repeats what was published, mistakes included, on the published series (`original_measurements`);
`default` mode applies the same rules to correct measures in true units. Neither is calibrated: see `compare_with_null`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis import detectors, nulls
from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.detectors import Detector, DifferenceZ, Events, SmoothedGradient
from ndt_ray.analysis.phases import phase_bin, published_phase_bin
from ndt_ray.analysis.series import Clock, Series, clock, layer_series, mean_series
from ndt_ray.analysis.tables import JUMP_COUNTS, JUMPS

MEASURES = (
    "stable_rank",
    "participation_ratio",
    "stable_rank_uncentred",
    "participation_ratio_sv_uncentred",
    "nuclear_norm_ratio_uncentred",
)
"""Centred, and the founding study's uncentred ones. Integer-valued energy_90 has no Gaussian null, and is left out."""


@analysis(
    name="jumps", reads=("trials", "measurements", "original_measurements"), writes=(JUMPS, JUMP_COUNTS), per="trial"
)
def jumps(
    data: AnalysisInput,
    *,
    measures: Sequence[str] = MEASURES,
    rules: Mapping[str, Mapping[str, Any]] = {"difference_z": {}, "smoothed_gradient": {}, "rolling_level": {}},
    modes: Sequence[str] = ("default", "original"),
    n_surrogates: int = 200,
) -> dict[str, pd.DataFrame]:
    """Changes that three uncalibrated rules flag, each count beside white-noise and AR(1) nulls.

    `difference_z` and `rolling_level` judge every layer, `smoothed_gradient` the mean over layers. Only measurements on
    the `every` grid are used, and the change from step 0 is shown but not counted (Adam's first step is a sign step).
    """
    trial = clock(data.frame("trials"))
    chosen = [detectors.make(name, parameters) for name, parameters in rules.items()]
    events: list[pd.DataFrame] = []
    counts: list[dict[str, Any]] = []
    for mode, series, detector in _cases(data, trial, measures, chosen, modes):
        found = _events(mode, series, detector, trial)
        events.append(found)
        counts.append(_count(mode, series, detector, trial, found, n_surrogates))
    return {"jumps": _stacked(events), "jump_counts": pd.DataFrame(counts)}


def _cases(
    data: AnalysisInput, trial: Clock, measures: Sequence[str], chosen: Iterable[Detector], modes: Sequence[str]
) -> Iterator[tuple[str, Series, Detector]]:
    """Every (mode, series, rule) to be judged."""
    if "default" in modes:
        rows = data.frame("measurements")
        for detector in chosen:
            source = mean_series if detector.name == SmoothedGradient.name else layer_series
            for series in source(rows, measures, trial.every):
                yield "default", series, detector
    if "original" in modes:
        rows = data.frame("original_measurements")
        for series in layer_series(rows, ("stable_rank",), trial.every):
            yield "original", series, DifferenceZ()
        for series in mean_series(rows, ("participation_ratio",), trial.every):
            yield "original", series, SmoothedGradient()


def _events(mode: str, series: Series, detector: Detector, trial: Clock) -> pd.DataFrame:
    tested = series.since(1) if mode == "default" else series
    found = detector(tested.steps, tested.values)
    frame = _described(tested, found)
    frame["counted"] = True
    if mode == "default" and len(tested.steps) < len(series.steps) and isinstance(detector, DifferenceZ):
        frame = _stacked([_from_init(series, tested, detector), frame])
    if mode == "original":
        frame["phase"] = frame["index"] / trial.steps
        frame["phase_bin"] = published_phase_bin(frame["phase"])
    else:
        frame["phase"] = frame["step_before"] / trial.steps
        frame["phase_bin"] = phase_bin(frame["phase"])
    for name, value in _identity(mode, series, detector, trial).items():
        frame[name] = value
    return frame


def _from_init(series: Series, tested: Series, detector: DifferenceZ) -> pd.DataFrame:
    """The change out of step 0, its z against all later differences; no row where it is not flagged."""
    later = np.diff(tested.values)
    deviation = float(later.std()) if later.size else 0.0
    change = float(series.values[1] - series.values[0])
    z = (change - float(later.mean())) / deviation if deviation > 0 else 0.0
    if abs(z) <= detector.threshold:
        return pd.DataFrame()
    one = np.array([0])
    event = Events(
        one, series.steps[:1], series.steps[1:2], np.array([abs(change)]), np.array([z]), np.sign([change]).astype(int)
    )
    return _described(series, event).assign(counted=False)


def _described(series: Series, found: Events) -> pd.DataFrame:
    """Event columns that follow from the series: magnitudes and speeds by the founding code and the founding plan."""
    s, v, i, n = series.steps, series.values, found.index, len(series.values)
    start, end = np.maximum(0, i - 2), np.minimum(n, i + 3) - 1
    level = np.abs(v[i])
    inside = (i >= 1) & (i + 1 < n)
    low, high = np.maximum(i - 1, 0), np.minimum(i + 1, n - 1)
    spread = np.where(inside, v[high] - v[low], np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):  # a level of 0 has no relative change: null
        relative = np.where(level > 0, found.magnitude / level, np.nan)
    return pd.DataFrame(
        {
            "index": i + series.first,
            "step_before": found.step_before,
            "step_after": found.step_after,
            "magnitude": found.magnitude,
            "relative_magnitude": relative,
            "z": found.z,
            "speed": np.abs(v[end] - v[start]) / (end + 1 - start),
            "window_change": spread,
            "window_speed": spread / np.where(inside, s[high] - s[low], 1),
            "direction": np.where(found.direction > 0, "increase", "decrease"),
        }
    )


def _identity(mode: str, series: Series, detector: Detector, trial: Clock) -> dict[str, Any]:
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
    mode: str, series: Series, detector: Detector, trial: Clock, found: pd.DataFrame, n_surrogates: int
) -> dict[str, Any]:
    """One row of `jump_counts`: the counted events of one series and rule, beside the same rule on its surrogates."""
    tested = series.since(1) if mode == "default" else series
    counted = found[found["counted"]] if len(found) else found
    row = _identity(mode, series, detector, trial) | {
        "n": len(tested.values),
        "n_missing": series.n_missing,
        "observed": len(counted),
        "merged": len(detectors.merged(counted["index"].to_numpy())) if len(counted) else 0,
        "shown": len(found) - len(counted),
        "phi": nulls.robust_phi(nulls.detrended(tested.values)),
        "n_surrogates": n_surrogates,
        "flag": None,
    }
    key = (trial.trial_id, series.layer, series.view, mode, series.measure)
    for family, short in (("white_noise", "white"), ("ar1", "ar1")):
        surrogates = nulls.matched(family, tested.values, n_surrogates, *key)
        null = None if surrogates is None else nulls.expected(detector, surrogates, len(counted))
        if null is None:
            row |= dict.fromkeys((f"null_{short}_{c}" for c in ("mean", "sd", "lo", "hi")), None)
            row |= {f"p_{short}": None, "flag": "constant" if len(tested.values) >= 4 else "short", "phi": None}
            continue
        row |= {f"null_{short}_mean": null.mean, f"null_{short}_sd": null.sd, f"p_{short}": null.p}
        row |= {f"null_{short}_lo": null.low, f"null_{short}_hi": null.high}
    return row


def _stacked(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    filled = [f for f in frames if len(f)]
    return pd.concat(filled, ignore_index=True) if filled else (frames[0] if frames else pd.DataFrame())
