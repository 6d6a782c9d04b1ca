"""Transformer specialisation as an object: at events attention is stable while the output mapping changes.

Of events in a block's output projections (of the attention and of the feed-forward part) `mechanism_changes` has how
much the patterns of that block's heads change, and how much the layer's own output does, both in SDs of what matched
windows without an event change them by. Such a window is 0.87 SDs away in the mean (Gaussian, five controls).
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from ndt_ray.analysis.hypotheses.estimates import Floats, Tested, of_mean
from ndt_ray.analysis.inference.permutation import sign_flips

NAME = "stable_attention_changing_outputs"
STATEMENT = "At events in output projections attention stays as it is while what they give out changes."
OUTPUTS = ("out_proj", "linear2")
"""Last word of the layers that map a block's attention, or its hidden units, to its output."""
ATTENTION = ("attention_entropy", "head_divergence")
GIVEN_OUT = ("cka_to_initial", "cka_to_last")
LIMIT = 1.5
"""Mean |change| in SDs of matched windows up to which something is stable, and from which on it changes."""
METRIC = f"|change| of the output's CKA - of attention's entropy and divergence, with {LIMIT} between them, SDs"


def stable_attention(changes: pd.DataFrame, cells: Mapping[str, str]) -> Iterator[Tested]:
    """One a cell that has such events. `cells`: by trial_id.

    The estimate is the difference of both; p is the larger of two, that outputs are above `LIMIT` and that attention
    is below it (or both the other way round): each half has to hold.
    """
    if changes.empty:
        return
    known = changes[changes["layer"].str.rpartition(".")[2].isin(OUTPUTS) & np.isfinite(changes["effect"])]
    event = [known[name] for name in ("trial_id", "layer", "step_before", "step_after")]
    own = known["metric"].isin(GIVEN_OUT) & (known["metric_layer"] == known["layer"])
    size, attention = known["effect"].abs(), known["metric"].isin(ATTENTION)
    sizes = {"outputs": size.where(own), "attention": size.where(attention)}
    both = pd.DataFrame({name: values.groupby(event).mean() for name, values in sizes.items()}).dropna()
    by_trial = both.groupby(level="trial_id").mean()
    for cell, rows in by_trial.groupby(by_trial.index.map(cells), sort=True):
        outputs, patterns = rows["outputs"].to_numpy(np.float64), rows["attention"].to_numpy(np.float64)
        found = of_mean(NAME, str(cell), STATEMENT, METRIC, "increase", outputs - patterns)
        sign = 1.0 if found.estimate > 0 else -1.0
        p = max(_above(sign * (outputs - LIMIT)), _above(sign * (LIMIT - patterns)))
        yield replace(found, p=p, p_t=np.nan)


def _above(values: Floats) -> float:
    """Two-sided p of sign flips where the mean is above 0; 1 where it is not."""
    return sign_flips(values).p if len(values) and values.mean() > 0 else 1.0
