"""Jumps by the founding rules per architecture: the published columns, beside what the same rule counts in noise."""

from dataclasses import dataclass

import pandas as pd

from ndt_ray.report.noise import rule_spoken
from ndt_ray.report.source import Answer, Source
from ndt_ray.verdicts import Jumps, jump_verdicts


@dataclass(frozen=True)
class Statistics:
    """One mode, rule, measure and group of trials (controls left out): jumps a trial, and the judged total."""

    mode: str
    mean: float
    """Jumps a trial, all of its layers together."""
    most: int
    with_jumps: int
    """Trials that have one."""
    total: Jumps

    @property
    def key(self) -> tuple[str, str, str]:
        return self.mode, self.total.detector, self.total.measure


def counts(source: Source) -> Answer:
    """Rows of `jump_counts` of trials that are no controls, with their model and cell."""
    return source.ask(
        "SELECT t.model, t.cell, j.* EXCLUDE (sweep, layer) FROM jump_counts j JOIN trials t USING (sweep, trial_id) "
        "WHERE sweep = $sweep AND coalesce(t.control, 'none') = 'none' ORDER BY j.mode, j.measure, j.detector, "
        "t.cell, j.trial_id, j.layer_index"
    )


def spoken(source: Source, rows: pd.DataFrame, mode: str = "default") -> pd.DataFrame:
    """Counts of the one rule and measure that the report and the summary speak of too."""
    own = rows[rows["mode"] == mode]
    own = own[own["detector"] == rule_spoken(own)]  # published rules judged different measures
    return own[own["measure"] == source.spoken(own["measure"])]


def statistics(rows: pd.DataFrame) -> list[Statistics]:
    """By mode, rule, measure and group; `rows`: `counts` with a column `name` that says which trials are one group."""
    found = []
    for mode, own in rows.groupby("mode", sort=True):
        by_trial = own.groupby(["detector", "measure", "name", "trial_id"])["observed"].sum()
        for total in jump_verdicts(own):
            mine = by_trial.loc[(total.detector, total.measure, total.name)]
            found.append(Statistics(str(mode), float(mine.mean()), int(mine.max()), int((mine > 0).sum()), total))
    return found
