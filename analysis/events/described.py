"""What stands beside an event: its error, what the confirm probe says, and what else happened at its time."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.stats import t as student

from ndt_ray.analysis.detection import Floats, Ints

PAIRED = "participation_ratio"
"""The one measure whose delete-block values are kept with every spectrum; at checkpoints all are."""
LR_CHANGE = 0.01
CONFIRMED = (
    "confirm_size",
    "confirm_relative",
    "confirm_lo",
    "confirm_hi",
    "confirm_relative_lo",
    "confirm_relative_hi",
)
NO_CHECKPOINTS, NO_BLOCKS, NO_SPREAD = "no_checkpoints", "no_blocks", "no_spread"


@dataclass(frozen=True)
class Change:
    """A change between two measured steps with its paired jackknife error, and the same relative to the level before.

    `blocks`: of how many it was computed; under two there is no error, and all is NaN.
    """

    size: float = np.nan
    error: float = np.nan
    relative_error: float = np.nan
    blocks: int = 0

    def half_width(self, error: float) -> float:
        """Half of a 95 % interval, Student's t with a degree of freedom a block but one."""
        return float(student.ppf(0.975, self.blocks - 1)) * error if self.blocks > 1 else np.nan


@dataclass(frozen=True)
class Blocks:
    """Delete-block values of one measure of one series: `values [steps, 16]` at `steps`, rising."""

    steps: Ints
    values: Floats

    def change(self, before: int, after: int) -> Change:
        """Between two steps; nothing where one of them was not measured.

        The same stimuli are left out at both steps, so what both share of the sampling error cancels.
        """
        places = np.searchsorted(self.steps, [before, after])
        if len(self.steps) == 0 or (places >= len(self.steps)).any() or (self.steps[places] != [before, after]).any():
            return Change()
        first, last = self.values[places]
        known = np.isfinite(first) & np.isfinite(last)
        count = int(known.sum())
        if count < 2:
            return Change(blocks=count)
        change = (last - first)[known]
        relative = np.divide(change, np.abs(first[known]), out=np.full(count, np.nan), where=first[known] != 0)
        return Change(float(change.mean()), _jackknife(change), _jackknife(relative), count)


def _jackknife(values: Floats) -> float:
    count = len(values)
    return float(np.sqrt((count - 1) / count * ((values - values.mean()) ** 2).sum()))


@dataclass(frozen=True)
class Deletions:
    """What the confirm probe gives without each block of stimuli: rows of `confirmation_blocks` of one trial.

    `spectra`: participation ratios that came with `confirmation_spectra`, for runs from before there was that table.
    """

    rows: pd.DataFrame
    spectra: dict[tuple[int, str], Blocks]

    def of(self, layer: int, view: str, measure: str) -> Blocks | None:
        """Of one series; None where they were not kept."""
        if measure in self.rows:
            own = self.rows[(self.rows["layer_index"] == layer) & (self.rows["view"] == view)]
            if own[measure].notna().any():
                table = own.pivot_table(index="step", columns="block", values=measure, aggfunc="first")
                return Blocks(table.index.to_numpy(np.int64), table.to_numpy(np.float64))
        return self.spectra.get((layer, view)) if measure == PAIRED else None


def blocks(spectra: pa.Table) -> dict[tuple[int, str], Blocks]:
    """Participation ratios by (layer_index, view), from `spectra` or `confirmation_spectra` of one trial."""
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
    confirm: Deletions
    steps: int

    def around(self, before: int, after: int) -> dict[str, Any]:
        """near_lr_change, near_epoch_boundary, sharpness_before; null where the run did not record them.

        The end of an epoch tells nothing, and is null, where one lies between any two measurements (a full batch).
        """
        known: dict[str, Any] = {"near_lr_change": None, "near_epoch_boundary": None, "sharpness_before": None}
        if not self.scalars.empty:
            step = self.scalars["step"]
            window = self.scalars[(step >= before) & (step <= after)]
            rates = window["lr"].dropna() if "lr" in window else window["step"][:0]
            if len(rates) and rates.max() > 0:
                known["near_lr_change"] = bool(rates.max() > (1 + LR_CHANGE) * rates.min())
            elif len(rates):
                known["near_lr_change"] = False
            if "epoch_boundary" in window and not self.scalars.loc[step > step.min(), "epoch_boundary"].all():
                known["near_epoch_boundary"] = bool(window.loc[window["step"] > before, "epoch_boundary"].any())
        if not self.curvature.empty:
            earlier = self.curvature[self.curvature["step"] <= before].sort_values("step")["sharpness"].dropna()
            known["sharpness_before"] = float(earlier.iloc[-1]) if len(earlier) else None
        return known

    def snr(self, layer: int, view: str, measure: str, before: int, after: int, size: float) -> float | None:
        """|size| over the paired error of the change between these steps on the detect probe; null where none is kept.

        That is for every measure but the participation ratio.
        """
        held = self.detect.get((layer, view))
        if measure != PAIRED or held is None:
            return None
        error = held.change(before, after).error
        return abs(size) / error if error > 0 else None

    def confirmed(
        self, layer: int, view: str, measure: str, before: int, after: int, since: int, share: float
    ) -> tuple[dict[str, Any], float | None, str]:
        """The change on the confirm probe between the checkpoints that bracket the event most tightly: its columns, its
        size in paired errors, and why there is no error where there is none ("confirm" where there is).

        None of them lies before `since`, the end of the transient. They may lie at most `share` of the run apart, or
        three times the event. Interval: delete-block jackknife, t.
        """
        known: dict[str, Any] = dict.fromkeys(CONFIRMED)
        rows = self.confirmations
        if rows.empty:
            return known, None, NO_CHECKPOINTS
        if measure not in rows:
            return known, None, NO_BLOCKS
        own = rows[(rows["layer_index"] == layer) & (rows["view"] == view)].sort_values("step")
        own = own[own[measure].notna()]
        low, high = own[(own["step"] <= before) & (own["step"] >= since)], own[own["step"] >= after]
        if low.empty or high.empty:
            return known, None, NO_CHECKPOINTS
        first, last = low.iloc[-1], high.iloc[0]
        if last["step"] - first["step"] > max(share * self.steps, 3 * (after - before)):
            return known, None, NO_CHECKPOINTS
        size = float(last[measure]) - float(first[measure])
        level = abs(float(first[measure]))
        known |= {"confirm_size": size, "confirm_relative": size / level if level > 0 else None}
        held = self.confirm.of(layer, view, measure)
        if held is None:
            return known, None, NO_BLOCKS
        change = held.change(int(first["step"]), int(last["step"]))
        for name, error in (("confirm", change.error), ("confirm_relative", change.relative_error)):
            value, half = known["confirm_size" if name == "confirm" else name], change.half_width(error)
            if value is not None and np.isfinite(half):
                known |= {f"{name}_lo": value - half, f"{name}_hi": value + half}
        if change.blocks < 2:
            return known, None, NO_BLOCKS
        return (known, abs(size) / change.error, "confirm") if change.error > 0 else (known, None, NO_SPREAD)
