"""The founding plan's third phase: its table of events, under its column names, from a sweep's own.

The plan's lines on it (`results_df['jump_magnitude'].corr(…)`, by `arch_type`) run on the file as they stand. A row is
an event, and events of one trial share a seed: the verdicts of `hypotheses` are over trials, not over these rows.
"""

from collections.abc import Mapping

import pandas as pd

from ndt_ray.figures.album import Album
from ndt_ray.figures.founding_phase1 import named

SECTION = "Founding plan, phase 3"
RESULTS = "results/phase3/results_df.csv"
TABLES = ("trials", "event_mechanisms")
COLUMNS = (
    "experiment_id", "jump_step", "jump_magnitude", "new_feature_types_after", "selectivity_before_jump",
    "selectivity_after_jump", "selectivity_increase", "compositional_depth", "num_jumps", "arch_type",
)  # fmt: skip
"""All that the plan's lines name; `experiment_id` is architecture_dataset, so that seeds give it several rows."""
BESIDE = ("trial_id", "seed", "layer")


def write(album: Album, tables: Mapping[str, pd.DataFrame]) -> None:
    """The file, or why there is none; control lanes are left out."""
    table = results(tables["event_mechanisms"], tables["trials"])
    if table.empty:
        album.skip(SECTION, RESULTS, f"no significant event, or not computed yet: {album.analyze('hypotheses')}")
        return
    caption = f"{len(table)} events of {table['trial_id'].nunique()} trials, with what was measured around them."
    album.text(SECTION, RESULTS, table.to_csv(index=False), caption)


def results(events: pd.DataFrame, trials: pd.DataFrame) -> pd.DataFrame:
    """Rows of `event_mechanisms` under the plan's names, then what tells one seed and layer from another."""
    columns = [*COLUMNS, *BESIDE]
    if events.empty:
        return pd.DataFrame(columns=columns)
    names = named(trials).rename(columns={"experiment": "experiment_id"})[["trial_id", "experiment_id", "seed"]]
    rows = events.merge(names, on="trial_id").sort_values(["experiment_id", "seed", "trial_id", "jump_step", "layer"])
    return rows[columns].reset_index(drop=True)
