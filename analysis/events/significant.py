"""The events of a sweep as all that follows reads them: significant ones of the primary family, with their trial."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.api import AnalysisInput
from ndt_ray.analysis.inference.compare import cell_status
from ndt_ray.analysis.inference.sample import usable

NAMES = ("cell", "model", "data", "seed")


def replicates(data: AnalysisInput) -> pd.DataFrame:
    """The sweep's trials, control lanes and lost ones left out, with `untrained`: no trial of its cell ever learned.

    What such cells do is shown, and is no evidence about learning. Reads trials, outcomes, evaluations.
    """
    everyone, outcomes = data.frame("trials"), data.frame("outcomes")
    kept = usable(everyone, outcomes)
    if kept.empty:
        return kept
    status = cell_status(everyone, outcomes, data.frame("evaluations"))
    never = set(status.loc[status["excluded"].astype(bool), "cell"])
    return kept.assign(untrained=kept["cell"].isin(never))


def primary(events: pd.DataFrame, families: pd.DataFrame) -> pd.DataFrame:
    """Significant events of the declared primary family; where none is declared, of the family with most series."""
    if events.empty:
        return events
    own = of_primary_family(events, families)
    own = own[own["significant"].astype(bool)]
    return own.sort_values(["trial_id", "layer_index", "step_before"], ignore_index=True)


def reach(events: pd.DataFrame) -> pd.DataFrame:
    """Windows `start`, `end` of events with their own length on either side: what lies in one is near the event."""
    length = events["step_after"] - events["step_before"]
    return events.assign(start=events["step_before"] - length, end=events["step_after"] + length)


def of_primary_family(events: pd.DataFrame, families: pd.DataFrame) -> pd.DataFrame:
    """All events of that family, candidates too."""
    if events.empty:
        return events
    chosen = primary_family(families)
    if chosen is None:
        own = events[events["family"] == sorted(events["family"].unique())[0]]
    else:
        own = events[events["family"] == chosen["family"]]
        for column in ("detector", "null"):
            own = own[own[column] == chosen[column]] if column in chosen else own
    return own


def primary_family(families: pd.DataFrame) -> pd.Series | None:
    """The row of the family that counts; None where there is none at all."""
    if families.empty:
        return None
    named = families[families["primary"].astype(bool)] if "primary" in families else families.iloc[:0]
    if len(named):
        return named.iloc[0]
    size = "n_series" if "n_series" in families else "family"
    return families.sort_values([size, "family"], ascending=[False, True], kind="stable").iloc[0]


def tests_of(tests: pd.DataFrame, family: Mapping[str, Any] | pd.Series) -> pd.DataFrame:
    """Rows of `series_tests` among which a family's events were sought; `family`: its row of `event_families`."""
    own = tests
    for column in ("measure", "detector", "null"):
        own = own[own[column] == family[column]] if column in family else own
    return own[own["view"] == family["view"]] if family.get("view", "*") != "*" else own


def with_names(rows: pd.DataFrame, trials: pd.DataFrame, extra: Sequence[str] = ()) -> pd.DataFrame:
    """Rows joined with cell, model, data, seed (and `extra`) of their trial; rows of other trials are left out."""
    columns = [c for c in ("trial_id", *NAMES, *extra) if c in trials]
    return rows.merge(trials[columns], on="trial_id", how="inner", validate="many_to_one")


def depth(rows: pd.DataFrame, layers: pd.Series) -> pd.Series:
    """Layer depth in [0, 1]: place / (layers of the trial - 1). `layers`: number of layers by trial_id."""
    last = rows["trial_id"].map(layers).astype(np.float64) - 1
    return (rows["layer_index"].astype(np.float64) / last.where(last > 0)).fillna(0.0).clip(0, 1)
