"""Battery series without events, and with planted ones: what the comparison with control windows is calibrated on.

A trial has checkpoints at regular steps; each metric of each layer is a relaxation towards a level plus autocorrelated
noise, Gaussian or heavy-tailed, whose size may fall as training goes on; metrics of a layer share part of their noise.
Pseudo-events are windows drawn with the phases that real events have, early rather than late; nothing happens there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from scipy.signal import lfilter

from ndt_ray.analysis.api import AnalysisInput, Partition
from ndt_ray.analysis.mechanisms.before_after import mechanisms
from ndt_ray.analysis.mechanisms.tables import CHANGES, TESTS
from ndt_ray.analysis.nulls import generator

Floats = NDArray[np.float64]
LONGEST = 4
"""Windows are shorter than this many checkpoint distances."""


@dataclass(frozen=True)
class Design:
    """One simulated sweep of one cell. SDs are marginal; shares and phases are of the run."""

    trials: int = 6
    layers: int = 2
    metrics: int = 16
    steps: int = 2000
    every: int = 20
    events: int = 2
    """Pseudo-events a trial and layer."""
    phi: float = 0.5
    """Lag-1 dependence of the noise from checkpoint to checkpoint."""
    heavy: bool = False
    """Student-t noise of 4 degrees of freedom rather than Gaussian."""
    fading: float = 0.0
    """Noise SD falls by exp(-fading) over the run."""
    shared: float = 0.5
    """Share of the noise's variance that the metrics of a layer have in common."""
    trend: float = 10.0
    """Amplitude of the relaxation in noise SDs; its half-life is 5 to 50 % of the run."""
    planted: float = 0.0
    """Change over the event's window in noise SDs, of the first metrics."""
    planted_metrics: int = 0


@dataclass(frozen=True)
class Simulated:
    """Tables as the store has them (but for `values`), one sweep."""

    events: pd.DataFrame
    trials: pd.DataFrame
    scalars: pd.DataFrame
    values: dict[tuple[str, str, str], dict[int, float]]
    """(trial, layer, metric) -> step -> value."""


def simulate(design: Design, *key: str) -> Simulated:
    """A sweep keyed by `key`: the same in any order or process."""
    rng = generator("battery", *key)
    grid = np.arange(0, design.steps + 1, design.every)
    phase = grid / design.steps
    values: dict[tuple[str, str, str], dict[int, float]] = {}
    events, scalars = [], []
    for i in range(design.trials):
        trial = f"{i:016x}"
        update = (1 + phase * rng.uniform(2, 8)) ** -1.0
        common = {"trial_id": trial, "step": grid, "lr": 1e-3, "weight_norm": 10.0 * np.ones(len(grid))}
        scalars.append(pd.DataFrame({**common, "update_norm": 0.01 * update}))
        for j in range(design.layers):
            layer = f"layer.{j}"
            windows = _windows(rng, design, grid)
            events += [
                {"trial_id": trial, "layer": layer, "layer_index": j, "step_before": a, "step_after": b}
                for a, b in windows
            ]
            together = _noise(rng, design, phase)
            for m in range(design.metrics):
                own = _noise(rng, design, phase)
                noise = np.sqrt(design.shared) * together + np.sqrt(1 - design.shared) * own
                amplitude = design.trend * rng.normal()
                series = amplitude * np.exp(-phase * np.log(2) / rng.uniform(0.05, 0.5)) + noise
                if m < design.planted_metrics:
                    for a, b in windows:
                        series = series + design.planted * np.clip((grid - a) / (b - a), 0, 1)
                values[trial, layer, f"metric {m}"] = dict(zip(grid.tolist(), series.tolist(), strict=True))
    trials = pd.DataFrame({"trial_id": [f"{i:016x}" for i in range(design.trials)], "steps": design.steps, "cell": "c"})
    return Simulated(pd.DataFrame(events), trials, pd.concat(scalars, ignore_index=True), values)


def tables(found: Simulated, significant: bool = True) -> dict[str, pd.DataFrame]:
    """What a store holds of a simulated sweep: its metrics as rows of `unit_metrics`, its windows as events."""
    rows = [
        {"trial_id": trial, "layer": layer, "layer_index": int(layer[-1]), "part": "*", "metric": metric}
        | {"step": step, "value": value}
        for (trial, layer, metric), series in found.values.items()
        for step, value in series.items()
    ]
    units = pd.DataFrame(rows)
    moved = []
    for trial, own in found.scalars.groupby("trial_id"):
        steps, update = own["step"].to_numpy(), own["update_norm"].to_numpy()
        path = np.concatenate([[0], np.cumsum(np.diff(steps) * update[1:])]) / own["weight_norm"].to_numpy()
        moved += [
            {
                "trial_id": trial,
                "layer": "*",
                "step": steps[i],
                "other_step": steps[j],
                "displacement": path[i] - path[j],
            }
            for i in range(1, len(steps))
            for j in range(max(0, i - LONGEST), i)
        ]
    named = {"family": "primary", "significant": significant, "step_location": np.nan}
    return {
        "trials": found.trials,
        "scalars": found.scalars,
        "events": found.events.assign(**named, p_event=np.linspace(0.01, 0.05, len(found.events))),
        "event_families": pd.DataFrame([{"family": "primary", "primary": True}]),
        "checkpoints": units[["trial_id", "step"]].drop_duplicates(),
        "unit_metrics": units,
        "weight_distances": pd.DataFrame(moved),
    }


def run(given: Mapping[str, pd.DataFrame], **parameters: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The analysis on such tables: its changes and its tests."""
    arrow = {name: pa.Table.from_pandas(given[name]) if name in given else pa.table({}) for name in mechanisms.reads}
    found = mechanisms(AnalysisInput("simulated", Partition(), arrow), **parameters)
    return found[CHANGES.name].to_pandas(), found[TESTS.name].to_pandas()


def calibrate(design: Design, replicates: int, name: str) -> dict[str, float]:
    """Shares of simulated sweeps with any q < 0.05, by table; where changes are planted, shares of these found."""
    found: dict[str, list[float]] = {}
    for i in range(replicates):
        rows, tests = run(tables(simulate(design, name, str(i))))
        planted = tests["metric"].isin([f"metric {m}" for m in range(design.planted_metrics)])
        power = {
            "power": float((tests.loc[planted, "q"] < 0.05).mean()),
            "seed_power": float((tests.loc[planted, "seed_q"] < 0.05).mean()),
        }
        for what, value in (outcomes(rows, tests) | power).items():
            found.setdefault(what, []).append(value)
    return {what: float(np.mean(values)) for what, values in found.items()}


def outcomes(rows: pd.DataFrame, tests: pd.DataFrame) -> dict[str, float]:
    """Whether any q is below 0.05 (1 or 0), by table and kind of control, the share of events' p at most that, and how
    many of these there are: without matched windows there is no p, and nothing can be found."""
    return {
        "tested": float(rows["p"].notna().mean()) if len(rows) else 0.0,
        "any_event": float((rows["q"] < 0.05).any()),
        "any_test": float((tests["q"] < 0.05).any()),
        "any_seed_event": float((rows["seed_q"] < 0.05).any()),
        "any_seed_test": float((tests["seed_q"] < 0.05).any()),
        "p_below_0.05": float((rows["p"].dropna() <= 0.05).mean()),
    }


def _windows(rng: np.random.Generator, design: Design, grid: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Windows of one to three checkpoint distances with log-uniform phases in 5 … 90 %, that do not overlap."""
    found: list[tuple[int, int]] = []
    while len(found) < design.events:
        start = int(np.searchsorted(grid, np.exp(rng.uniform(np.log(0.05), np.log(0.9))) * design.steps))
        stop = start + int(rng.integers(1, LONGEST))
        if stop < len(grid) and all(grid[stop] <= a or grid[start] >= b for a, b in found):
            found.append((int(grid[start]), int(grid[stop])))
    return found


def _noise(rng: np.random.Generator, design: Design, phase: Floats) -> Floats:
    """Stationary AR(1) of SD 1 under the envelope of fading."""
    count, burn = len(phase), 50
    draws = rng.standard_t(4, size=count + burn) / np.sqrt(2) if design.heavy else rng.normal(size=count + burn)
    series = lfilter([np.sqrt(1 - design.phi**2)], [1.0, -design.phi], draws)[burn:]
    return np.asarray(series * np.exp(-design.fading * phase))
