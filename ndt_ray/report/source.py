"""The tables of one sweep, asked in SQL: every answer keeps the query that gives it, ready to be pasted."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from ndt_ray.plan import Lane
from ndt_ray.store.reader import Store
from ndt_ray.store.schema import COMPUTED, TABLES
from ndt_ray.store.sweep import open_sweep
from ndt_ray.summary import cell_labels, in_plan_order, planned_lanes

NAME = "t.cell || CASE WHEN t.control = 'none' THEN '' ELSE ' ' || t.control END"
"""What seeds are averaged over: a cell, or its controls of one kind."""
SPOKEN = ("participation_ratio", "stable_rank", "stable_rank_uncentred", "participation_ratio_sv_uncentred")
"""Measures that a section speaks of where none was declared: the first that it has. Its tables have all."""
MINIMUM = 3
"""Seeds below which nothing is said about more than these seeds."""


def quoted(value: object) -> str:
    """As an SQL string literal."""
    return "'" + str(value).replace("'", "''") + "'"


@dataclass(frozen=True)
class Answer:
    """Rows, and the query that gives them."""

    rows: pd.DataFrame
    sql: str


class Source:
    """One sweep of a store, for reading. StoreError for an unknown sweep."""

    def __init__(self, store: Store, sweep: str) -> None:
        self.store, self.sweep = store, sweep
        self.folder = open_sweep(store, sweep)
        self.snapshot = store.snapshot()

    @cached_property
    def rows(self) -> Counter[str]:
        """Rows that this sweep has, by table, from the manifests alone."""
        found: Counter[str] = Counter()
        for manifest in self.snapshot.manifests:
            if manifest.sweep == self.sweep:
                for part in manifest.parts:
                    found[part.table] += part.rows
        for sweep, _, output in self.snapshot.outputs:
            if sweep == self.sweep:
                for part in output.parts:
                    found[part.table] += part.rows
        return found

    @cached_property
    def analyses(self) -> dict[str, set[str]]:
        """Analyses that were run, each with its tables, empty ones too."""
        found: dict[str, set[str]] = {}
        for sweep, analysis, output in self.snapshot.outputs:
            if sweep == self.sweep:
                found.setdefault(analysis, set()).update(part.table for part in output.parts)
        return dict(sorted(found.items()))

    def has(self, table: str, *columns: str) -> bool:
        """Whether the sweep has rows of a table, and they have these columns."""
        return self.rows[table] > 0 and set(columns) <= set(self.columns(table))

    def ran(self, analysis: str) -> bool:
        """Whether an analysis was run, whatever it found."""
        return analysis in self.analyses

    def columns(self, table: str) -> dict[str, str]:
        """Columns of a table with what they mean, as the schema or (of an analysis) its own file says."""
        if table in TABLES or table in COMPUTED:
            return {c.name: f"{c.doc}{f' ({c.unit})' if c.unit else ''}" for c in {**TABLES, **COMPUTED}[table].columns}
        for part in self.snapshot.parts.get(table, []):
            where = self.store.location
            with where.filesystem.open_input_file(where.absolute(part.path)) as file:
                return {f.name: (f.metadata or {}).get(b"doc", b"").decode() for f in pq.read_schema(file)}
        return {}

    def ask(self, sql: str) -> Answer:
        """The answer to a SELECT in which $sweep stands for the sweep's name."""
        text = " ".join(sql.replace("$sweep", quoted(self.sweep)).split())
        return Answer(self.store.sql(text), text)

    @cached_property
    def families(self) -> Answer | None:
        """Families of tested series, the declared primary one first; None where events were not sought."""
        if not self.has("event_families"):
            return None
        order = '"primary" DESC, family, detector, "null"'
        return self.ask(f"SELECT * FROM event_families WHERE sweep = $sweep ORDER BY {order}")

    @cached_property
    def family(self) -> dict[str, Any] | None:
        """The family that the report speaks of: the primary one, else the first."""
        return None if self.families is None else dict(self.families.rows.iloc[0])

    def spoken(self, known: Iterable[str]) -> str:
        """The measure that is spoken of: the primary family's, else the first of `SPOKEN`, else any; "" of none."""
        there = list(known)
        wanted = [*([] if self.family is None else [str(self.family["measure"])]), *SPOKEN]
        return next((m for m in wanted if m in there), there[0] if there else "")

    @cached_property
    def about(self) -> str:
        found = self.ask("SELECT about FROM sweeps WHERE sweep = $sweep").rows["about"]
        return str(found.iloc[0]) if len(found) and isinstance(found.iloc[0], str) else ""

    @cached_property
    def lanes(self) -> list[Lane]:
        """Trials of the plan; none where the sweep was brought in from elsewhere."""
        return planned_lanes(self.store, self.sweep)

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row a trial that has begun, in the plan's order: `name`, and how it ended (`status` null: not yet)."""
        found = self.ask(
            f"SELECT t.*, {NAME} AS name, o.status, o.last_step, o.final_loss, o.final_accuracy, o.error FROM trials t "
            "LEFT JOIN outcomes o ON o.sweep = t.sweep AND o.pack = t.pack AND o.trial_id = t.trial_id "
            "WHERE t.sweep = $sweep ORDER BY t.cell, t.control, t.seed, t.trial_id"
        ).rows
        return in_plan_order(found, self.lanes)

    @cached_property
    def waiting(self) -> list[Lane]:
        """Planned trials that have not begun."""
        begun = set(self.trials["trial_id"])
        return [lane for lane in self.lanes if lane.trial_id not in begun]

    @cached_property
    def labels(self) -> dict[str, str]:
        """Short labels of what seeds are averaged over, in the plan's order: cells first, then controls."""
        known = self.trials.sort_values("control", key=lambda c: c != "none", kind="stable")
        pairs = list(dict.fromkeys(zip(known["name"], known["data"], strict=True)))
        return cell_labels([(str(name), str(data)) for name, data in pairs])

    @cached_property
    def cells(self) -> list[str]:
        """Names of the cells that are no controls."""
        own = set(self.trials.loc[self.trials["control"].fillna("none") == "none", "name"])
        return [name for name in self.labels if name in own]

    def label(self, name: object) -> str:
        return self.labels.get(str(name), str(name))

    def seeds(self, name: str) -> list[str]:
        """Ids of the trials of one name, those of the smallest seed first."""
        return [str(t) for t in self.trials.loc[self.trials["name"] == name, "trial_id"]]

    def seed_labels(self, name: str) -> dict[str, str]:
        """What a trial's seed is called; its id where the four seeds differ."""
        own = self.trials[self.trials["name"] == name]
        return {
            str(t): str(t)[:6] if s != s or s is None else str(int(s))
            for t, s in zip(own["trial_id"], own["seed"], strict=True)
        }

    def horizon(self, name: str) -> int:
        """Planned steps."""
        steps = self.trials.loc[self.trials["name"] == name, "steps"].dropna()
        return int(steps.max()) if len(steps) else 0
