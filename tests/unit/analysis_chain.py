"""Analyses one after the other over tables in memory, as the runner would go: each reads what those before it wrote."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
import pyarrow as pa

from ndt_ray import registry
from ndt_ray.analysis.api import AnalysisInput, Partition


def analysed(
    tables: Mapping[str, pd.DataFrame],
    names: Iterable[str],
    parameters: Mapping[str, Mapping[str, Any]] | None = None,
    sweep: str = "s",
) -> dict[str, pd.DataFrame]:
    """The tables with those that the named analyses write; `parameters` by analysis. `trials` names the partitions."""
    known = dict(tables)
    for name in names:
        found = registry.resolve("analysis", name)
        each = found.per == "trial"
        read = {n: known[n] for n in found.reads if n in known}
        groups = {n: by_trial(t) if each else {None: arrow(t)} for n, t in read.items()}
        made: dict[str, list[pd.DataFrame]] = {table.name: [] for table in found.writes}
        for key in known["trials"]["trial_id"] if each else [None]:
            own = {n: groups.get(n, {}).get(key, pa.table({})) for n in found.reads}
            given = AnalysisInput(sweep, Partition(key), own)
            for table, rows in found(given, **(parameters or {}).get(name, {})).items():
                made[table].append(rows.to_pandas())
        known |= {
            n: pd.concat([p for p in parts if len(p)] or parts[:1], ignore_index=True) for n, parts in made.items()
        }
    return known


def by_trial(table: pd.DataFrame) -> dict[str | None, pa.Table]:
    return {str(key): arrow(rows) for key, rows in table.groupby("trial_id")} if "trial_id" in table else {}


def arrow(table: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(table, preserve_index=False) if len(table.columns) else pa.table({})
