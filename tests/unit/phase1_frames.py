"""Planted sweeps for analyses of a whole sweep: trials of cells with seeds, and tables as the runner hands them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa

from ndt_ray.analysis.api import AnalysisInput, Partition

STEPS, EVERY = 2000, 10


def trials(models: Sequence[str], seeds: int, data: Sequence[str] = ("digits",), **columns: Any) -> pd.DataFrame:
    """One row a trial of models × data × seeds; trial_id spells out what it is."""
    rows = [
        {
            "trial_id": f"{m}/{d}/{s}",
            "cell": f"{m}/{d}",
            "model": m,
            "data": d,
            "seed": s,
            "control": "none",
            "steps": STEPS,
            "n_parameters": 1000,
            "spec": json.dumps({"measure": {"every": EVERY}}),
        }
        for m in models
        for d in data
        for s in range(seeds)
    ]
    return pd.DataFrame(rows).assign(**columns)


def given(tables: Mapping[str, pd.DataFrame], reads: Sequence[str], trial_id: str | None = None) -> AnalysisInput:
    """The input of one partition; tables that are read and not planted are empty, as before their analysis ran."""
    arrow = {n: pa.Table.from_pandas(tables[n]) if n in tables else pa.table({}) for n in reads}
    return AnalysisInput("planted", Partition(trial_id), arrow)
