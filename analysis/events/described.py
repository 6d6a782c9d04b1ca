"""What stands beside an event: its error, what the confirm probe says, and what else happened at its time."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.stats import t as student

from ndt_ray.analysis.detection import Floats, Ints

PAIRED = "participation_ratio"
"""The one measure whose delete-block values are kept with every spectrum."""
LR_CHANGE = 0.01


@dataclass(frozen=True)
class Blocks:
    """Delete-block participation ratios of one series: `values [steps, 16]` at `steps`, rising."""

    steps: Ints
    values: Floats

    def change(self, before: int, after: int) -> tuple[float, float, int]:
        """Change between two measured steps, its paired jackknife error and the blocks; NaN where one is not there.

        The same stimuli are left out at both steps, so what both share of the sampling error cancels.
        """
        places = np.searchsorted(self.steps, [before, after])
        if len(self.steps) == 0 or (places >= len(self.steps)).any() or (self.steps[places] != [before, after]).any():
            return float("nan"), float("nan"), 0
        change = self.values[places[1]] - self.values[places[0]]
        change = change[np.isfinite(change)]
        count = len(change)
        if count < 2:
            return float("nan"), float("nan"), count
        return float(change.mean()), float(np.sqrt((count - 1) / count * ((change - change.mean()) ** 2).sum())), count


def blocks(spectra: pa.Table) -> dict[tuple[int, str], Blocks]:
    """By (layer_index, view), from `spectra` or `confirmation_spectra` of one trial."""
    if spectra.num_rows == 0 or "delete_block_pr" not in spectra.column_names:
        return {}
    frame = spectra.select(["step", "layer_index", "view", "delete_block_pr"]).to_pandas()
    frame = frame[frame["delete_block_pr"].notna()]
    found = {}
    for (layer, view), group in frame.groupby(["layer_index", "view"]):
        ordered = group.sort_values("step").drop_duplicates("step")
        lengths = ordered["delete_block_pr"].map(len)
        ordered = ordered[lengths == lengths.max()]
        values = np.stack([np.asarray(v, np.float64) for v in ordered["delete_block_pr"]])
        found[(int(layer), str(view))] = Blocks(ordered["step"].to_numpy(np.int64), values)
    return found


@dataclass(frozen=True)
class Run:
    """What one trial's tables say about the time around an event."""

    scalars: pd.DataFrame
    curvature: pd.DataFrame
    confirmations: pd.DataFrame
    detect: dict[tuple[int, str], Blocks]
    confirm: dict[tuple[int, str], Blocks]
    steps: int

    def around(self, before: int, after: int) -> dict[str, Any]:
        """near_lr_change, near_epoch_boundary, sharpness_before; null where the run did not record them."""
        known: dict[str, Any] = {"near_lr_change": None, "near_epoch_boundary": None, "sharpness_before": None}
        if not self.scalars.empty:
            step = self.scalars["step"]
            window = self.scalars[(step >= before) & (step <= after)]
            rates = window["lr"].dropna() if "lr" in window else window["step"][:0]
            if len(rates) and rates.max() > 0:
                known["near_lr_change"] = bool(rates.max() > (1 + LR_CHANGE) * rates.min())
            elif len(rates):
                known["near_lr_change"] = False
            if "epoch_boundary" in window:
                known["near_epoch_boundary"] = bool(window.loc[window["step"] > before, "epoch_boundary"].any())
        if not self.curvature.empty:
            earlier = self.curvature[self.curvature["step"] <= before].sort_values("step")["sharpness"].dropna()
            known["sharpness_before"] = float(earlier.iloc[-1]) if len(earlier) else None
        return known

    def snr(self, layer: int, view: str, measure: str, before: int, after: int, size: float) -> float | None:
        """|size| over the paired error of the change between these steps; null for measures without delete-blocks."""
        held = self.detect.get((layer, view))
        if measure != PAIRED or held is None:
            return None
        error = held.change(before, after)[1]
        return abs(size) / error if error > 0 else None

    def confirmed(
        self, layer: int, view: str, measure: str, before: int, after: int, since: int, share: float
    ) -> dict[str, Any]:
        """The change on the confirm probe between the checkpoints that bracket the event most tightly.

        None of them lies before `since`, the end of the transient. They may lie at most `share` of the run apart, or
        three times the event. Interval: delete-block jackknife, t.
        """
        known: dict[str, Any] = dict.fromkeys(("confirm_size", "confirm_relative", "confirm_lo", "confirm_hi"))
        rows = self.confirmations
        if rows.empty or measure not in rows:
            return known
        own = rows[(rows["layer_index"] == layer) & (rows["view"] == view)].sort_values("step")
        own = own[own[measure].notna()]
        low, high = own[(own["step"] <= before) & (own["step"] >= since)], own[own["step"] >= after]
        if low.empty or high.empty:
            return known
        first, last = low.iloc[-1], high.iloc[0]
        if last["step"] - first["step"] > max(share * self.steps, 3 * (after - before)):
            return known
        change = float(last[measure]) - float(first[measure])
        level = abs(float(first[measure]))
        known |= {"confirm_size": change, "confirm_relative": change / level if level > 0 else None}
        held = self.confirm.get((layer, view))
        if measure == PAIRED and held is not None:
            _, error, count = held.change(int(first["step"]), int(last["step"]))
            if count > 1 and np.isfinite(error):
                half = float(student.ppf(0.975, count - 1)) * error
                known |= {"confirm_lo": change - half, "confirm_hi": change + half}
        return known
