"""Planted kinds of events come out as stable types that go with their architecture; noise has no types."""

import numpy as np
import pandas as pd
import pytest
from phase1_frames import STEPS, given, trials

from ndt_ray.analysis.events.significant import depth, primary
from ndt_ray.analysis.taxonomy import clusters
from ndt_ray.analysis.taxonomy.representatives import eligible_type_3, founding_steps, rules, select
from ndt_ray.analysis.taxonomy.types import _types, name_of, taxonomy
from ndt_ray.errors import SpecError

FEW = {"resamples": 15, "null_draws": 5, "permutations": 199, "largest_k": 5}


def event(trial_id: str, onset: float, size: float, layer: int, width: float, up: bool = True) -> dict[str, object]:
    """A significant event of the family `main`."""
    before = int(onset * STEPS) // 10 * 10
    return {
        "trial_id": trial_id, "layer": f"l{layer}", "layer_index": layer, "view": "units",
        "measure": "participation_ratio", "detector": "d", "null": "ar_sieve", "family": "main",
        "step_before": before, "step_after": before + 10, "width": width, "direction": "increase" if up else "decrease",
        "size": 10 * size, "relative_size": size, "phase": before / STEPS, "q": 0.01, "significant": True,
        "phase_bin": "early" if onset < 0.1 else "mid" if onset < 0.5 else "late",
    }  # fmt: skip


def planted(
    names: pd.DataFrame, kinds: dict[str, tuple[float, float, int, float, bool]], each: int = 6
) -> pd.DataFrame:
    """Every model's trials have `each` events of its own kind, and as many of the kind `*`."""
    rng, rows = np.random.default_rng(0), []
    for t in names.to_dict("records"):
        for key in (t["model"], "*"):
            if key in kinds:
                phase, size, layer, width, up = kinds[key]
                for _ in range(each):
                    onset, shown = phase + rng.uniform(-0.01, 0.01), size * rng.lognormal(0, 0.1)
                    rows.append(event(t["trial_id"], onset, shown, layer, width * rng.lognormal(0, 0.1), up))
    table = pd.DataFrame(rows)
    table["step_before"] += 10 * table.groupby(["trial_id", "layer_index", "step_before"]).cumcount()
    return table


FAMILIES = pd.DataFrame([{"family": "main", "primary": True, "detector": "d", "null": "ar_sieve"}])


def series_of(names: pd.DataFrame, layers: int = 5) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"trial_id": t, "layer": f"l{i}", "layer_index": i, "view": "units", "measure": "participation_ratio"}
            | {"n": 200, "grid_every": 10, "phi": 0.3, "noise_sd": 0.1}
            for t in names["trial_id"]
            for i in range(layers)
        ]
    )


def run(names: pd.DataFrame, events: pd.DataFrame, **options: object) -> dict[str, pd.DataFrame]:
    tables = {"trials": names, "events": events, "event_families": FAMILIES, "series_tests": series_of(names)}
    out = taxonomy(given(tables, taxonomy.reads), **(FEW | options))
    return {n: t.to_pandas() for n, t in out.items()}


@pytest.mark.slow
def test_planted_kinds_are_found_named_and_go_with_their_architecture() -> None:
    names = trials(("mlp_a", "cnn_b"), 6)
    kinds = {
        "mlp_a": (0.03, 0.5, 0, 20.0, True), "cnn_b": (0.3, 0.1, 2, 60.0, False), "*": (0.8, 0.01, 4, 200.0, True)
    }  # fmt: skip
    out = run(names, planted(names, kinds), null_draws=19)
    fits = out["taxonomy_fits"].query("source == 'events'").set_index("k")
    assert fits.loc[3, ["chosen", "by_gap", "by_silhouette"]].tolist() == [True, True, True]
    assert fits.loc[3, "p_silhouette"] == pytest.approx(0.05)  # 19 null draws, none as clear
    types = out["taxonomy_types"].query("source == 'events'")
    assert types["label"].tolist() == ["Early rapid expansion", "Mid-layer refinement", "Late stabilization"]
    assert types["n"].tolist() == [36, 36, 72] and (types["jaccard"] > 0.9).all()
    assert types["size"].tolist() == pytest.approx([0.5, 0.1, 0.01], rel=0.1)
    association = out["taxonomy_association"].set_index("factor")
    assert association.loc["model", "cramers_v"] == pytest.approx(np.sqrt(0.5), abs=0.01)
    assert association.loc["model", "p"] <= 0.05 and np.isnan(association.loc["data", "p"])
    assigned = out["event_types"]
    assert len(assigned) == 144 and assigned.groupby("type")["representative"].max().tolist() == [3, 3, 3]
    shown = assigned[assigned["representative"].notna()]
    assert shown.groupby("type")["trial_id"].nunique().tolist() == [3, 3, 3]


@pytest.mark.slow
def test_a_number_of_types_can_be_asked_for() -> None:
    names = trials(("mlp_a", "cnn_b"), 6)
    events = planted(names, {"mlp_a": (0.03, 0.5, 0, 20.0, True), "*": (0.8, 0.01, 4, 200.0, False)})
    for asked, got in ((0, 2), (3, 3), (1, 1), (40, 10)):  # 108 events: one type for ten at most
        found = run(names, events, k=asked, null_draws=2)
        fits = found["taxonomy_fits"].query("source == 'events'").set_index("k")
        assert fits["chosen"].idxmax() == got, asked
        assert found["event_types"]["type"].nunique() == got and (asked > 0 or fits.loc[2, "by_silhouette"])
    with pytest.raises(SpecError, match="1 or more"):
        run(names, events, k=-1)


def test_one_kind_is_one_type_and_no_verdict_of_clusters() -> None:
    names = trials(("mlp_a",), 6)
    rng = np.random.default_rng(1)
    rows = [
        event(t, rng.uniform(0.1, 0.9), rng.lognormal(-2, 0.3), int(rng.integers(5)), 50 * rng.lognormal(0, 0.3))
        for t in names["trial_id"]
        for _ in range(8)
    ]
    out = run(names, pd.DataFrame(rows).drop_duplicates(["trial_id", "layer_index", "step_before"]))
    fits = out["taxonomy_fits"].query("source == 'events' and chosen")
    assert fits["k"].tolist() == [1] and np.isnan(fits["p_silhouette"].iloc[0])


def test_two_directions_in_two_layers_are_no_types() -> None:
    names, rng, rows = trials(("mlp_a",), 6), np.random.default_rng(2), []
    for t in names["trial_id"]:
        for i in range(10):
            onset, size, width = rng.uniform(0.05, 0.95), rng.lognormal(-4.5, 0.2), 60 * rng.lognormal(0, 0.5)
            rows.append(event(t, onset, size, 4 * (i % 2), width, bool(i // 2 % 2)))
    out = run(names, pd.DataFrame(rows).drop_duplicates(["trial_id", "layer_index", "step_before"]))
    fits = out["taxonomy_fits"].set_index(["source", "k"])
    assert fits.loc[("events", 1), "chosen"] and len(out["taxonomy_types"].query("source == 'events'")) == 1
    assert fits.loc[("null", 2), "n"] == fits.loc[("events", 2), "n"]  # as many of noise, in the same series


def test_stable_clusters_that_noise_has_too_get_no_name() -> None:
    labels, raw = np.repeat([0, 1], 10), np.repeat([[0.05, -1, 0, -2, 1], [0.7, -3, 1, -1, -1.0]], 10, axis=0)
    args = ("default", "events", labels, raw, np.arange(20), np.array([1.0, 0.4]))
    named = _types(*args, named=True)
    assert named["label"].fillna("").tolist() == ["Early rapid expansion", ""] and named["stable"].tolist() == [
        True,
        False,
    ]
    assert _types(*args, named=False)["label"].isna().all()


@pytest.mark.slow
def test_a_type_is_associated_with_nothing_at_the_nominal_rate() -> None:
    hits = 0
    for r in range(20):
        names = trials(("mlp_a", "cnn_b"), 6).assign(trial_id=lambda t, r=r: t["trial_id"] + f"#{r}")
        rng = np.random.default_rng(r)
        rows = []
        for t in names["trial_id"]:
            late = rng.random() < 0.5  # a run has one kind: its events are no independent votes
            rows += [event(t, (0.8 if late else 0.03) + 0.005 * i, 0.1, i % 5, 20.0) for i in range(4)]
        tables = {"trials": names, "events": pd.DataFrame(rows), "event_families": FAMILIES}
        data = given(tables | {"series_tests": series_of(names)}, taxonomy.reads)
        out = taxonomy(data, resamples=1, null_draws=0, permutations=99, largest_k=2)
        hits += out["taxonomy_association"].to_pandas().set_index("factor").loc["model", "p"] <= 0.05
    assert hits <= 5  # of 20 at .05: 99.97 % below 6


def test_few_events_one_seed_missing_sizes_and_nothing_are_survived() -> None:
    names = trials(("mlp_a",), 1)
    few = pd.DataFrame([event(names["trial_id"][0], 0.2, 0.1, i, 20.0) for i in range(3)])
    few.loc[0, "relative_size"] = np.nan
    out = run(names, few)
    fit = out["taxonomy_fits"].query("source == 'events'").iloc[0]
    assert (fit["k"], fit["n"], fit["n_left_out"]) == (1, 2, 1)
    assert run(names, few.assign(significant=False))["event_types"].empty
    assert all(t.num_rows == 0 for t in taxonomy(given({}, taxonomy.reads)).values())


@pytest.mark.slow
def test_clusters_that_do_not_come_back_are_told_from_those_that_do() -> None:
    rng = np.random.default_rng(0)
    clear = np.concatenate([rng.normal(c, 0.2, (40, 2)) for c in (0, 5)])
    blob = rng.normal(0, 1, (80, 2))
    runs = np.arange(80) % 16
    labels, _ = clusters.kmeans(clear, 2)
    assert (clusters.jaccard(clear, labels, runs, 20) > 0.95).all()
    labels, _ = clusters.kmeans(blob, 5)
    assert clusters.jaccard(blob, labels, runs, 20).min() < clusters.STABLE + 0.15
    assert clusters.chosen(clusters.fits(clear))[2] == 2 and clusters.chosen(clusters.fits(blob))[2] == 1
    assert clusters.chosen(clusters.fits(np.zeros((30, 3))))[2] == 1 and clusters.fits(np.zeros((0, 3))) == []
    assert [f.k for f in clusters.fits(np.ones((1, 3)))] == [1]


def test_names_fall_back_to_what_the_medians_say() -> None:
    assert name_of(0.7, 0.0, 0.9, -2, 0.0, -1.0) == "Late rapid contraction, last layers"
    assert name_of(0.2, 0.0, 0.0, -0.5, 0.5, -1.0) == "Mid-training gradual change, first layers"


def test_only_the_primary_family_counts() -> None:
    names = trials(("mlp_a",), 1)
    rows = pd.DataFrame([event(names["trial_id"][0], 0.2, 0.1, i, 20.0) for i in range(2)])
    both = pd.concat([rows, rows.assign(family="other")])
    assert len(primary(both, FAMILIES)) == 2 and len(primary(both, pd.DataFrame())) == 2
    assert depth(rows, pd.Series({names["trial_id"][0]: 2})).tolist() == [0.0, 1.0]


def _jumps(*rows: tuple[int, float, int]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["index", "magnitude", "cluster"])
    return table.assign(phase=table["index"] / 2000)


def test_the_founding_choice_and_its_fallbacks() -> None:
    whole = _jumps((300, 5, 4), (310, 4, 4), (320, 3, 4), (3, 9, 3), (4, 8, 3), (5, 7, 3), (100, 1, 2), (120, 1, 2))
    chosen = select(whole, rule="founding")
    assert chosen["index"].tolist() == [3, 4, 100, 300, 310] and len(eligible_type_3(whole)) == 2
    assert founding_steps(chosen)[:4] == [0, 3, 4, 13]
    lone = _jumps((0, 1, 0), (1, 2, 0), (2, 3, 0), (40, 1, 0), (50, 1, 0))
    assert select(lone, rule="founding")["index"].tolist() == [0, 1, 2, 40, 50]
    assert select(lone, n=2, rule="founding")["index"].tolist() == [0, 1]


def test_the_balanced_choice_takes_types_in_turn_and_keeps_events_apart() -> None:
    rows = [event("t", p, s, 0, 10.0) for p, s in ((0.01, 0.9), (0.012, 0.8), (0.05, 0.7), (0.3, 0.2), (0.8, 0.1))]
    table = pd.DataFrame(rows)
    assert select(table, n=3)["phase_bin"].tolist() == ["early", "mid", "late"]
    wide = table.assign(width=60.0)
    assert select(wide, n=4)["step_before"].tolist() == [20, 100, 600, 1600]  # two at 20: the larger stays
    typed = table.assign(type=[1, 1, 2, 2, 2])
    assert select(typed, n=2)["relative_size"].tolist() == [0.9, 0.7]
    assert select(table, n=0).empty and select(table.iloc[:0]).empty and len(select(table, n=99)) <= 5


def test_the_balanced_choice_keeps_events_apart_within_a_trial_only() -> None:
    rows = [event(t, 0.05, s, 0, 10.0) for t, s in (("a", 0.9), ("b", 0.8), ("a", 0.7), ("c", 0.6))]
    table = pd.DataFrame(rows)
    assert select(table)["trial_id"].tolist() == ["a", "b", "c"]
    assert select(table, n=2)["relative_size"].tolist() == [0.9, 0.8]
    assert select(table.drop(columns="trial_id"))["relative_size"].tolist() == [0.9]  # taken for one run


def test_unknown_rules_and_missing_columns_are_refused() -> None:
    assert rules() == ["balanced", "founding"]
    with pytest.raises(SpecError, match="did you mean"):
        select(pd.DataFrame(), rule="foundling")
    with pytest.raises(SpecError, match="cluster"):
        select(pd.DataFrame({"index": [1]}), rule="founding")
    with pytest.raises(SpecError, match="negative"):
        select(pd.DataFrame(), n=-1)
