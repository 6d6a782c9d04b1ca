"""When neurons and heads settle on their frequency and scale, over the checkpoints of a trial."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ndt_ray.analysis.mechanisms.grokking.measures import SPECIALISED

COMMITTED = 3.0
"""A unit is committed where its top share is this many times 1 / number of frequencies (the workbench's rule)."""
TOLERANCE = 0.05


def held_since(reached: NDArray[np.bool_], steps: NDArray[np.int64]) -> list[int | None]:
    """For each row [units, checkpoints], the first step from which the condition holds to the end; None if never."""
    misses = np.where(reached, -1, np.arange(reached.shape[1])).max(1)
    return [int(steps[m + 1]) if m + 1 < len(steps) else None for m in misses]


def switches(frequency: NDArray[np.int64], committed: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How often each row's frequency differs from the last committed one, [units]."""
    found = np.zeros(len(frequency), dtype=np.int64)
    last = np.zeros(len(frequency), dtype=np.int64)
    for now, counts in zip(frequency.T, committed.T, strict=True):
        found += counts & (last > 0) & (now != last)
        last = np.where(counts, now, last)
    return found


def timeline(scales: pd.DataFrame, p: int) -> pd.DataFrame:
    """Rows of `specialisation_timeline`, but trial and clusters, from a trial's `scale_metrics`."""
    frames = [_of_kind(str(kind), rows, p) for kind, rows in scales.groupby("kind", sort=True)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def wide(rows: pd.DataFrame, column: str) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64]]:
    """(values [units, checkpoints], units, steps) of one kind's rows."""
    table = rows.pivot(index="unit", columns="step", values=column).sort_index()
    return table.to_numpy(), table.index.to_numpy(np.int64), table.columns.to_numpy(np.int64)


def _of_kind(kind: str, rows: pd.DataFrame, p: int) -> pd.DataFrame:
    frequency, units, steps = wide(rows, "frequency")
    frequency = frequency.astype(np.int64)
    share = np.nan_to_num(wide(rows, "fraction")[0].astype(np.float64))
    scale = wide(rows, "fft_no_dc")[0].astype(np.float64)
    committed = share >= COMMITTED / (p // 2)
    last = frequency[:, -1:]
    return pd.DataFrame(
        {
            "kind": kind,
            "unit": units.astype(np.int32),
            "frequency": frequency[:, -1].astype(np.int32),
            "fraction": share[:, -1],
            "first_frequency": frequency[:, 0].astype(np.int32),
            "switches": switches(frequency, committed).astype(np.int32),
            "commitment_step": _integers(held_since(committed & (frequency == last) & (last > 0), steps)),
            "specialised_step": _integers(held_since(share >= SPECIALISED, steps)),
            "scale": scale[:, -1],
            "scale_first": scale[:, 0],
            "scale_step": _integers(held_since(np.abs(scale - scale[:, -1:]) <= TOLERANCE, steps)),
            "variance_preservation": wide(rows, "variance_preservation")[0][:, -1].astype(np.float64),
            "relative_gradient": wide(rows, "relative_gradient")[0][:, -1].astype(np.float64),
            "ablation": wide(rows, "ablation_mean")[0][:, -1].astype(np.float64),
        }
    )


def _integers(values: list[int | None]) -> "pd.api.extensions.ExtensionArray":
    return pd.array(values, dtype="Int32")
