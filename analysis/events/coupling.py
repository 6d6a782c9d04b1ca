"""Do events go with the loss, and most of all early? Shares of events over which it fell, beyond windows nearby."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.detection import Floats
from ndt_ray.analysis.inference.permutation import sign_flips
from ndt_ray.analysis.inference.seeds import interval

CLAIM = "coupling_strongest_early"
RULE = (
    "supported if over the early events of a trial the loss falls more often than over its mid ones, p <= .05; not"
    " supported if less often"
)
NEARBY, RAW = ", beyond windows of the same length nearby", "; windows nearby were not read"


def strongest_early(events: pd.DataFrame, alpha: float = 0.05) -> dict[str, Any]:
    """Row of `phase_verdicts`: early against mid events (trial_id, phase_bin, loss_change, loss_fell_expected).

    Each trial gives one difference of shares, for its events share a run and, in several layers, a window of the loss.
    Under the null early and mid may change places within any trial: p is of all such exchanges.
    """
    change = events["loss_change"].to_numpy(np.float64, na_value=np.nan)
    expected = events["loss_fell_expected"].to_numpy(np.float64, na_value=np.nan)
    raw = not np.isfinite(expected).any()
    beyond = np.where(np.isfinite(change), change < 0, np.nan) - (0.0 if raw else expected)
    known = events.assign(_beyond=beyond)[np.isfinite(beyond) & events["phase_bin"].isin(["early", "mid"]).to_numpy()]
    shares = known.groupby(["trial_id", "phase_bin"])["_beyond"].mean().unstack()
    both = shares.reindex(columns=["early", "mid"]).dropna()
    differences = both["early"].to_numpy(np.float64) - both["mid"].to_numpy(np.float64)
    found, within = sign_flips(differences, "coupling"), interval(differences)
    value = float(differences.mean()) if len(differences) else np.nan
    if np.isfinite(found.p):
        verdict = "undecided" if found.p > alpha else "supported" if value > 0 else "not_supported"
    else:
        verdict = "no_data" if len(events) else "no_events"
    return {
        "claim": CLAIM,
        "rule": RULE + (RAW if raw else NEARBY),
        "value": value,
        "lo": within.lo,
        "hi": within.hi,
        "n_events": int(known["trial_id"].isin(both.index).sum()),
        "n_trials": len(differences),
        "p": found.p,
        "p_attainable": found.smallest if len(differences) else np.nan,
        "verdict": verdict,
    }


def loss_coupling_table(windows: pd.DataFrame, by: Sequence[str] = ("trial_id",)) -> pd.DataFrame:
    """The founding table: number of jumps, mean loss change and share that improved, by `by` and phase bin."""
    known = windows[windows["phase_bin"].notna()]
    rows = []
    for key, group in known.groupby([*by, "phase_bin"], sort=True):
        change = group["loss_change"].to_numpy(np.float64, na_value=np.nan)
        rows.append(
            dict(zip((*by, "timing"), key, strict=True))
            | {"num_jumps": len(group), "mean_loss_change": finite_mean(change)}
            | {"loss_improving_fraction": finite_mean(np.where(np.isfinite(change), change < 0, np.nan))}
        )
    return pd.DataFrame(rows)


def finite_mean(values: Floats) -> float:
    """Of what is finite; NaN where nothing is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")
