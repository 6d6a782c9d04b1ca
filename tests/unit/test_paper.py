"""The numbers of a paper: those of its tables, each beside its null, or a marker; limits that are true of the sweep."""

from pathlib import Path
from typing import Any

import pytest
import report_store as planted
from paper_store import bare_sweep, counted, macros, settled, text, whole_sweep
from report_store import SEEDS, SWEEP, put, put_events

from ndt_ray.errors import StoreError
from ndt_ray.paper import Paper, make_paper, write_paper
from ndt_ray.paper.latex import escape
from ndt_ray.paper.scale import every
from ndt_ray.store.outputs import write_output
from ndt_ray.store.reader import Store
from ndt_ray.store.schema import TABLES, Column, Table


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return bare_sweep(tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return whole_sweep(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def little(bare: Store) -> Paper:
    return make_paper(bare, SWEEP)


@pytest.fixture(scope="module")
def much(whole: Store) -> Paper:
    return make_paper(whole, SWEEP)


# -- numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_counts_are_those_of_independent_queries(whole: Store, much: Paper) -> None:
    found = macros(much)

    def one(sql: str) -> Any:
        return whole.sql(sql).iloc[0, 0]

    own = "control = 'none'"
    assert found["Architectures"] == one(f"SELECT count(*) FROM (SELECT DISTINCT model FROM trials WHERE {own})") == 2
    assert found["Trials"] == one(f"SELECT count(*) FROM trials WHERE {own}") == 2 * SEEDS
    assert found["Controls"] == one(f"SELECT count(*) FROM trials WHERE NOT {own}") == SEEDS
    assert found["Measurements"] == one("SELECT count(*) FROM measurements") == SEEDS * 21 * 5
    assert found["MeasuredSteps"] == len(whole.sql("SELECT DISTINCT trial_id, step FROM measurements")) == SEEDS * 42
    assert found["Series"] == len(whole.sql("SELECT DISTINCT trial_id, layer FROM measurements"))
    assert found["Events"] == one("SELECT count(*) FROM events WHERE significant") == 5
    assert found["EventsTrials"] == one("SELECT count(DISTINCT trial_id) FROM events WHERE significant")
    assert found["Jumps"] == one("SELECT sum(observed) FROM jump_counts") == SEEDS * (2 * 2 + 3 * 5)
    assert found["JumpsWhite"] == pytest.approx(one("SELECT sum(null_white_mean) FROM jump_counts"))
    accuracy = whole.sql(
        f"SELECT avg(final_accuracy) a FROM outcomes JOIN trials USING (trial_id) WHERE {own} GROUP BY cell"
    )
    assert found["AccuracyLowest"] == pytest.approx(accuracy["a"].min())
    assert found["Seeds"] == str(SEEDS) and found["SeedsFewest"] == SEEDS and found["SmallestSignP"] == 2 / 2**SEEDS


def test_every_claim_stands_beside_what_the_null_gives(much: Paper) -> None:
    found = macros(much)
    assert found["EventsFalse"] == pytest.approx(0.25) and found["EventsCandidatesNull"] == 30
    assert found["JumpsVerdict"] == "more than noise gives" and found["JumpsNoise"] == 20
    assert found["CnnJumpsMean"] == 15 and found["CnnJumpsNoise"] == 3 and found["MlpJumpsMost"] == 4
    assert found["CnnEvents"] == 4 and found["MlpEvents"] == 1
    assert found["CnnEventsFalse"] + found["MlpEventsFalse"] == pytest.approx(found["EventsFalse"])
    # three of four and four of four; the excluded cell is no part of it
    assert found["BottomUp"] == 7 / 8 and found["BottomUpNull"] == 0.125 and found["OrderTrials"] == 8
    assert found["BottomUpCells"] == 1 and found["OrderSmallestP"] == 0.01
    assert found["OrderVerdict"] == "a bottom-up order is shown in some cells and the other one in none"
    assert found["Features"] == 0.31 and found["FeaturesVerdict"] == "weaker than predicted"
    assert (found["FiltersSupported"], found["FiltersCells"]) == (1, 2)
    assert found["DropNear"] == pytest.approx(0.2) and found["DropAway"] == pytest.approx(0.05)
    assert found["DropTrials"] == SEEDS and found["DropLanes"] == 2 * SEEDS


@pytest.mark.slow
def test_words_turn_with_the_tables(tmp_path: Path) -> None:
    store = planted.planted(tmp_path)
    put_events(store, [])
    put(store, "convergence_tests", {"convergence_cells": [settled("mlp", 0.0, 0.5, 0.5)]})
    counted(store, {"mlp": 1, "cnn": 1})
    found = macros(make_paper(store, SWEEP))
    assert found["EventsVerdict"] == "no event survives the correction"
    assert found["OrderVerdict"] == "no order of settling is shown"
    assert found["JumpsVerdict"] == "what noise gives"
    put_events(store, [], q_attainable=0.4)
    assert macros(make_paper(store, SWEEP))["EventsVerdict"].startswith("no event could have survived")


@pytest.mark.slow
def test_interventions_of_another_sweep_count_where_they_are_in_trials_of_this_one(whole: Store, much: Paper) -> None:
    rows = whole.sql("SELECT * EXCLUDE (sweep) FROM recovery").to_dict("records")
    assert macros(much)["DropLanes"] == len(rows)
    strangers = [row | {"trial_id": f"s{i}", "untouched": "another"} for i, row in enumerate(rows)]
    columns = {name: [row[name] for row in strangers] for name in rows[0]}
    write_output(whole, "elsewhere", "recovery", "sweep", {"recovery": columns}, cache_key="1")
    assert macros(make_paper(whole, SWEEP))["DropLanes"] == len(rows)


def test_measured_distance_comes_from_specs_that_have_one() -> None:
    assert every(['{"measure": {"every": 5}}', None, "{}", "not json"]) == [5.0]


# -- what is not computed --------------------------------------------------------------------------------------------


def test_a_sweep_without_analyses_prints_markers_that_name_the_command(little: Paper) -> None:
    paper = little
    for name, command in (
        ("Events", "ndt analyze planted series_tests events"), ("Jumps", "ndt analyze planted jumps"),
        ("BottomUp", "ndt analyze planted convergence convergence_tests"),
        ("EarlyLossFell", "ndt analyze planted event_windows event_phases"),
        ("DropNear", "ndt fork planted --name planted-lesions --cell cnn/digits --events 2"),
        ("RunsSmooth", "ndt analyze planted investigation"), ("FeatureImages", "ndt analyze planted features"),
        ("MlpJumpsMean", "ndt analyze planted jumps"),
    ):  # fmt: skip
        assert name in paper.missing[command]
        assert rf"\newcommand{{\ndt{name}}}{{\ndtmissing{{{escape(command)}}}}}" in text(paper, "macros.tex")
        assert macros(paper)[name] is None
    assert macros(paper)["NotComputed"] == sum(map(len, paper.missing.values())) > 60
    assert macros(paper)["Trials"] == 2 * SEEDS and macros(paper)["Failed"] == 1
    assert "-- & --" in text(paper, "appendix.tex") and r"\ndtmissing{ndt analyze planted jumps}" in text(
        paper, "appendix.tex"
    )
    assert r"no transformer in this sweep" in text(paper, "macros.tex")  # asked for, and there is none: no command


def test_what_was_computed_without_a_value_names_no_command(tmp_path: Path) -> None:
    store = planted.planted(tmp_path)
    put(store, "growth", {"taxonomy_fits": []})  # an analysis that ran, and wrote no row
    put(store, "hypotheses", {"hypotheses": []})
    paper = make_paper(store, SWEEP)
    assert paper.macros.known["GrowthMean"].text == r"\ndtnovalue{nothing could be fitted}"
    assert not any("growth" in command for command in paper.missing)


def test_a_table_of_another_version_counts_as_not_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = planted.planted(tmp_path)
    columns = tuple(Column(c, "string", "") for c in ("trial_id", "mode", "measure"))
    monkeypatch.setitem(
        TABLES, "critical_series", Table("critical_series", "of old", columns, ("trial_id",), origin="analysis")
    )
    old = {"trial_id": ["t"], "mode": ["default"], "measure": ["participation_ratio"]}
    write_output(store, SWEEP, "critical_periods", "t", {"critical_series": old}, cache_key="1")
    assert macros(make_paper(store, SWEEP))["Periods"] is None


def test_an_empty_sweep_and_an_unknown_one_are_refused(tmp_path: Path) -> None:
    store = planted.planted(tmp_path, models={})
    with pytest.raises(StoreError, match="no trial is committed yet"):
        write_paper(store, SWEEP, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(StoreError, match="did you mean 'planted'"):
        make_paper(store, "plantet")


# -- limitations -----------------------------------------------------------------------------------------------------


def test_limitations_are_those_of_the_sweep(little: Paper, much: Paper, tmp_path: Path) -> None:
    first, second = (text(paper, "limitations.tex") for paper in (little, much))
    for said in ("No intervention was made", "No event was calibrated", r"\ndtPartialData{}", r"\ndtFailed{} failed"):
        assert said in first and said not in second
    for said in (r"Interventions were made in \ndtDropLanes{} lanes", "No control lane without training"):
        assert said in second and said not in first
    for said in ("not what it means and not why", "No feature was visualised", r"\ndtSmallestSignP{}"):
        assert said in first and said in second
    few = planted.planted(tmp_path, seeds=2)
    assert "describes these trials, and no more" in text(make_paper(few, SWEEP), "limitations.tex")


def test_series_that_cannot_be_tested_are_a_limit(tmp_path: Path) -> None:
    store = planted.planted(tmp_path)
    untestable = planted.tests(calibrated=False)
    put(store, "series_tests", {"series_tests": untestable})
    put(store, "events", {"events": [], "event_families": [
        planted.family([], n_calibrated=0, n_candidates=0)
    ]})  # fmt: skip
    paper = make_paper(store, SWEEP)
    assert macros(paper)["EventsUntestable"] == len(untestable)
    assert "they are uncalibrated" in text(paper, "limitations.tex")
    assert macros(paper)["EventsVerdict"] == "no series could be tested"
