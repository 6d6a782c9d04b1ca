"""Pseudo-events in a trained run: 200 choices of windows without an event, and changes that are planted at them.

`stored/pseudo_events.parquet` holds what the mechanisms' analyses gave at the checkpoints of six seeds of an MLP on
digits: `python -m benchmarks battery --pseudo 1 --pseudo-models mlp --keep FILE` writes it (see its docstring).
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ndt_ray.analysis.mechanisms.before_after import Panel, at_events, looked_at
from ndt_ray.analysis.mechanisms.matching import selected
from ndt_ray.analysis.mechanisms.pseudo import (
    FOUNDING_PHASES,
    PRIMARY,
    event_phases,
    false_discoveries,
    packed,
    pseudo_events,
    unpacked,
)

STORED = Path(__file__).parent / "stored" / "pseudo_events.parquet"
REPLICATES = 200
PLANTED = ("class_selectivity", "unit_response_similarity")


@pytest.fixture(scope="module")
def run() -> dict[str, pd.DataFrame]:
    return unpacked(pd.read_parquet(STORED))


def test_the_stored_run_is_small_and_comes_back_as_it_was(run: dict[str, pd.DataFrame]) -> None:
    assert STORED.stat().st_size < 200_000
    families = PRIMARY
    again = packed(
        run | {"event_families": families, "events": run["events"].assign(family="primary", layer_index=0)},
        sorted(set(run["layers"]["layer"])),
        sorted(run["unit_metrics"]["metric"].unique()),
    )
    stored = pd.read_parquet(STORED)
    assert (
        again.groupby("table", observed=True).size().to_dict()
        == stored.groupby("table", observed=True).size().to_dict()
    )
    values = [frame.loc[frame["table"] == "panel", "value"].sort_values().to_numpy() for frame in (again, stored)]
    np.testing.assert_array_equal(*values)
    assert len(run["trials"]) == 6 and run["unit_metrics"]["metric"].nunique() >= 13


@pytest.mark.slow
def test_pseudo_events_of_a_trained_run_find_nothing(run: dict[str, pd.DataFrame]) -> None:
    """P(any q < 0.05) of each family: within two standard errors of 0.05 over 200 draws of windows."""
    one = run["layers"][run["layers"]["layer"] == "network.2"]
    found = false_discoveries(run | {"layers": one}, FOUNDING_PHASES, REPLICATES, "stored")
    limit = 0.05 + 2 * np.sqrt(0.05 * 0.95 / REPLICATES)
    for kind in ("any_event", "any_test", "any_seed_event", "any_seed_test"):
        assert found[kind] <= limit, (kind, found)
    assert found["tested"] > 0.25, found  # without controls nothing could be found, false or true


LATER = tuple(phase for phase in FOUNDING_PHASES if phase >= 0.3)
"""Early windows have few like them: what is planted there is untested more often than missed."""


@pytest.mark.slow
def test_changes_planted_at_pseudo_events_of_a_trained_run_are_found(run: dict[str, pd.DataFrame]) -> None:
    """Of four SDs of the changes from checkpoint to checkpoint in two metrics of a layer, as large in all seeds."""
    layers = run["layers"][run["layers"]["layer"] == "network.2"].merge(run["trials"][["trial_id", "steps"]])
    looked = looked_at(lambda name: run.get(name, pd.DataFrame()))
    sizes = {metric: 4 * spread(looked.panel, metric) for metric in PLANTED}
    found: dict[str, list[bool]] = {"q": [], "seed_q": [], "others": []}
    for i in range(10):
        drawn = pseudo_events(layers, run["checkpoints"], LATER, run["events"], ("planted", str(i)))
        panel = {key: dict(values) for key, values in looked.panel.items()}
        for event in drawn.itertuples():
            for metric in PLANTED:
                plant(panel[event.trial_id, event.layer, metric], event.step_before, event.step_after, sizes[metric])
        planted = replace(looked, panel=panel)
        tests = at_events(planted, selected(drawn, PRIMARY, 0), drawn)["mechanism_tests"].set_index("metric")
        for kind in ("q", "seed_q"):
            found[kind] += (tests.loc[list(PLANTED), kind] < 0.05).tolist()
        found["others"] += (tests.drop(index=list(PLANTED))["q"] < 0.05).tolist()
    shares = {kind: float(np.mean(hits)) for kind, hits in found.items()}
    assert shares["q"] >= 0.8 and shares["seed_q"] >= 0.8 and shares["others"] <= 0.05, shares


def spread(panel: Panel, metric: str) -> float:
    """SD over trials and checkpoints of the later part of the run."""
    changes = []
    for (_, layer, name), values in panel.items():
        if (layer, name) == ("network.2", metric):
            steps = sorted(step for step in values if step >= 0.3 * max(values))
            changes.append(np.diff([values[step] for step in steps]))
    return float(np.concatenate(changes).std(ddof=1))


def plant(values: dict[int, float], start: int, end: int, size: float) -> None:
    """A rise over the window that stays."""
    for step in values:
        values[step] += size * min(1.0, max(0.0, (step - start) / (end - start)))


def test_phases_are_those_of_the_sweeps_own_events_where_it_has_any() -> None:
    trials = pd.DataFrame({"trial_id": ["a", "b"], "steps": [100, 200]})
    event = {"layer": "l", "layer_index": 0, "family": "primary", "step_after": 60}
    events = pd.DataFrame([
        event | {"trial_id": "a", "step_before": 50, "significant": True},
        event | {"trial_id": "b", "step_before": 20, "significant": True},
        event | {"trial_id": "b", "step_before": 40, "significant": False},
    ])  # fmt: skip
    assert event_phases(events, PRIMARY, trials) == (0.1, 0.5)
    assert event_phases(events.iloc[2:], PRIMARY, trials) == FOUNDING_PHASES
    assert event_phases(pd.DataFrame(), pd.DataFrame(), trials) == FOUNDING_PHASES
