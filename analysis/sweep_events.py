"""The events of a sweep as all that follows reads them: significant ones of the primary family, with their trial."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

NAMES = ("cell", "model", "data", "seed")


def primary(events: pd.DataFrame, families: pd.DataFrame) -> pd.DataFrame:
    """Significant events of the sweep's primary family; of the first family by name where none is declared."""
    if events.empty:
        return events
    named = families[families["primary"].astype(bool)] if "primary" in families else families
    first = str(named["family"].iloc[0]) if len(named) else str(sorted(events["family"].unique())[0])
    own = events[(events["family"] == first) & events["significant"].astype(bool)]
    if len(named) and {"detector", "null"} <= set(named):
        own = own[(own["detector"] == named["detector"].iloc[0]) & (own["null"] == named["null"].iloc[0])]
    return own.sort_values(["trial_id", "layer_index", "step_before"], ignore_index=True)


def with_names(rows: pd.DataFrame, trials: pd.DataFrame, extra: Sequence[str] = ()) -> pd.DataFrame:
    """Rows joined with cell, model, data, seed (and `extra`) of their trial; rows of other trials are left out."""
    columns = [c for c in ("trial_id", *NAMES, *extra) if c in trials]
    return rows.merge(trials[columns], on="trial_id", how="inner", validate="many_to_one")


def depth(rows: pd.DataFrame, layers: pd.Series) -> pd.Series:
    """Layer depth in [0, 1]: place / (layers of the trial - 1). `layers`: number of layers by trial_id."""
    last = rows["trial_id"].map(layers).astype(np.float64) - 1
    return (rows["layer_index"].astype(np.float64) / last.where(last > 0)).fillna(0.0).clip(0, 1)
