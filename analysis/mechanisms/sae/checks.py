"""What must hold of trained dictionaries and their transfer before anybody reads them (founding document S3)."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

SIDES = ("source", "target")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    found: str


DICTIONARY = ("explained_variance", "l0", "dead", "shrinkage", "final_loss", "min_loss")
"""Columns of `sae` that hold a number wherever `flag` is null."""
PAIR = ("aligned", "control", "ceiling", "source_loss", "target_loss")
"""Columns of `sae_transfer` that hold a number wherever `status` is ok."""


def losses_sane(losses: Mapping[str, float], limit: float = 1.0) -> Check:
    """Losses on normalised activations below `limit`: at 1 nothing is learned."""
    high = {name: value for name, value in losses.items() if not value < limit}
    return Check("losses", bool(losses) and not high, _told(high) or f"{len(losses)} below {limit}")


def converged(dictionaries: pd.DataFrame, tolerance: float = 0.1) -> Check:
    """The last epoch's loss is within `tolerance` of the smallest, and of the one before. Rows of `sae`."""
    last, smallest = dictionaries["final_loss"].astype(float), dictionaries["min_loss"].astype(float)
    settled = last.le((1 + tolerance) * smallest) & dictionaries["late_change"].astype(float).fillna(0).abs().le(
        tolerance
    )
    bad = dict(zip(names(dictionaries)[~settled], last[~settled], strict=True))
    return Check("converged", not bad, _told(bad) or f"{len(dictionaries)} of {len(dictionaries)}")


def ratios_sane(ratios: Mapping[str, float], low: float = 0.2, high: float = 50.0) -> Check:
    """Ratios of losses (target / source) within reason: no model's loss vanishes or explodes."""
    bad = {name: v for name, v in ratios.items() if not low <= v <= high}
    return Check("ratios", not bad, _told(bad) or f"{len(ratios)} within {low} to {high}")


def shapes_consistent(dictionaries: pd.DataFrame, pairs: pd.DataFrame) -> Check:
    """A layer has one width, in all its dictionaries and in all pairs that it is part of."""
    own = dictionaries[["trial_id", "step", "layer", "d"]]
    sides = [pairs[[f"{s}_trial", f"{s}_step", f"{s}_layer", f"{s}_d"]].set_axis(own.columns, axis=1) for s in SIDES]
    widths = pd.concat([own, *sides]).dropna(subset="d").groupby(["trial_id", "step", "layer"])["d"].nunique()
    bad = {f"{trial} {layer} at {step}": float(n) for (trial, step, layer), n in widths[widths > 1].items()}
    return Check(
        "shapes", not bad, ", ".join(f"{name}: {n:.0f} widths" for name, n in bad.items()) or f"{len(widths)} layers"
    )


def finite(rows: pd.DataFrame, columns: Sequence[str]) -> Check:
    """A finite number in each of these columns of each row."""
    bad = {
        f"{name} {column}": value
        for column in columns
        for name, value in zip(names(rows), rows[column].astype(float), strict=True)
        if not math.isfinite(value)
    }
    return Check("finite", not bad, _told(bad) or f"{len(rows) * len(columns)} values")


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


def names(rows: pd.DataFrame) -> "pd.Series[str]":
    """What each row of `sae` or `sae_transfer` is called in a message."""
    several = "configuration" in rows and rows["configuration"].nunique() > 1
    how = " [" + rows["configuration"].astype(str) + "]" if several else ""
    if "trial_id" in rows:
        return _node(rows, "") + " (" + rows["dictionary"].astype(str) + ")" + how
    return _node(rows, "source_") + " -> " + _node(rows, "target_") + how


def _node(rows: pd.DataFrame, side: str) -> "pd.Series[str]":
    trial = rows[f"{side}trial" if side else "trial_id"].astype(str).str[:8]
    return trial + " " + rows[f"{side}layer"].astype(str) + " at " + rows[f"{side}step"].astype(str)


def _told(bad: Mapping[str, float]) -> str:
    return ", ".join(f"{name} = {value:.3g}" for name, value in list(bad.items())[:5])
