"""The report of planted sweeps: what it says is what their tables hold, and turns with them."""

import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import report_store as planted
from report_store import SEEDS, SWEEP, comparison, concordance, csv, event, put, put_events, robust, spec_text

from ndt_ray.analysis.tables import JUMP_COUNTS, JUMPS
from ndt_ray.cli import main
from ndt_ray.cli.reports import after_sweep
from ndt_ray.errors import SpecError, StoreError
from ndt_ray.report import write_report
from ndt_ray.report.markdown import render_markdown
from ndt_ray.report.page import BADGES, LIMIT, Page, collect, render
from ndt_ray.report.parts import Section, Sheet, plain
from ndt_ray.store.outputs import write_output
from ndt_ray.store.reader import Store
from ndt_ray.store.schema import TABLES, Column, Table, register_table

EVENTS = [*(event("cnn", seed, 2, 100) for seed in range(SEEDS)), event("mlp", 0, 1, 10, direction="decrease")]
VOID = {"meta", "link", "br", "input", "img", "hr"}


class Elements(HTMLParser):
    """Checks that elements nest, and keeps them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    def attributes(self, name: str) -> list[str]:
        return [a[name] or "" for _, a in self.found if name in a]


def said(page: Page, kind: str | None = None) -> str:
    return "\n".join(c.text for c in page.claims if kind in (None, c.kind))


def section(page: Page, name: str) -> Any:
    (found,) = [s for s in page.sections if s.id == name]
    return found


def sheet(page: Page, title: str) -> pd.DataFrame:
    (found,) = [s for part in page.sections for s in part.sheets if s.title == title]
    return found.rows


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A sweep with events, concordance, comparisons and a multiverse; two of its trials did not end well."""
    status = {("mlp", 3): "failed", ("cnn", 3): "diverged"}
    store = planted.planted(tmp_path_factory.mktemp("report"), status)
    put_events(store, EVENTS)
    put(store, "concordance", {"concordance": [concordance(0.01)], "replicated_events": []})
    put(store, "compare", {"comparisons": [comparison(0.02, True)], "cell_status": []})
    row, curve = robust(0.75)
    put(store, "multiverse", {"robustness": [row], "specification_curve": curve})
    return store


@pytest.fixture(scope="module")
def page(whole: Store) -> Page:
    return collect(whole, SWEEP)


@pytest.fixture(scope="module")
def html(page: Page) -> str:
    return render(page)


# -- sentences -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_events_are_told_with_family_null_and_what_could_have_been(page: Page, whole: Store) -> None:
    text = said(page, "finding")
    assert "5 events survive at a false discovery rate of 0.05 over series (5 of 20 are selected)" in text
    assert "0.25 of them are expected to be false" in text
    assert "family “primary”: 20 series that can be tested, of 20; measure participation ratio" in text
    assert "marks 40 candidates, where the null gives 30" in text
    assert "smallest q that a series could have had is 0.04" in text
    counted = whole.sql("SELECT count(*) AS n FROM events WHERE significant")["n"].iloc[0]
    assert counted == 5


def test_counts_by_cell_and_by_phase_stand_beside_their_null_and_add_up(page: Page) -> None:
    text = said(page, "described")
    assert (
        "By cell, beside the false ones expected there: cnn 4 beside 0.15 (in 4 of 4 seeds) and mlp 1 beside 0.1"
        in text
    )
    assert "1 early beside 0.025, 0 mid beside 0.1 and 4 late beside 0.12; together 5" in text
    cells = sheet(page, "Events and candidates by cell")
    assert cells["events"].sum() == 5 and cells[["early", "mid", "late"]].to_numpy().sum() == 5
    assert cells["null gives"].sum() == pytest.approx(30) and cells["false expected"].sum() == pytest.approx(0.25)


def test_every_query_of_a_sentence_and_of_a_table_runs_and_gives_what_is_shown(page: Page, whole: Store) -> None:
    queries = [c.sql for c in page.claims if c.sql] + [s.sql for part in page.sections for s in part.sheets if s.sql]
    assert len(queries) > 15
    for query in dict.fromkeys(queries):
        whole.sql(query)
    for part in page.sections:
        for found in part.sheets:
            if found.table:
                rows = whole.sql(found.sql)
                assert len(rows) == found.count
                pd.testing.assert_frame_equal(
                    rows.head(len(found.rows)).set_axis(found.rows.columns, axis=1),
                    found.rows.reset_index(drop=True),
                )


@pytest.mark.slow
def test_the_sentence_turns_when_the_events_go(tmp_path: Path) -> None:
    store = planted.planted(tmp_path)
    weak = [event("cnn", 0, 2, 100, q=0.31, significant=False)]
    put_events(store, [], n_candidates=1)
    put(store, "events", {"events": weak, "event_families": [planted.family([], n_candidates=1)]})
    text = said(collect(store, SWEEP), "nothing")
    assert "No event survives at a false discovery rate of 0.05: the smallest q found is 0.31" in text
    assert said(collect(store, SWEEP), "finding") == ""


def test_a_selected_series_without_an_event_is_told_as_that(tmp_path: Path) -> None:
    store = planted.planted(tmp_path)
    put_events(store, [])
    weak = [event("cnn", 0, 2, 100, q=0.016, significant=False)]
    put(store, "events", {"events": weak, "event_families": [planted.family([], n_candidates=1, n_selected=1)]})
    text = said(collect(store, SWEEP), "nothing")
    assert "No event survives at a false discovery rate of 0.05: 1 series selected (smallest q 0.016), but no" in text


def test_nothing_is_claimed_where_nothing_could_have_been_found(tmp_path: Path) -> None:
    store = planted.planted(tmp_path)
    put_events(store, [], n_candidates=0, q_attainable=0.3)
    found = collect(store, SWEEP)
    assert "No event could have survived: the smallest q that a series could have had, 0.3, is above 0.05" in said(
        found, "caution"
    )
    assert "No event survives" not in said(found)


def test_series_that_cannot_be_calibrated_are_counted_and_claimed_nothing_of(tmp_path: Path) -> None:
    store = planted.planted(tmp_path)
    for trial, rows in pd.DataFrame(planted.tests(calibrated=False)).groupby("trial_id"):
        made = rows.astype(object).where(rows.notna(), None).to_dict("records")
        put(store, "series_tests", {"series_tests": made, "transients": []}, key=str(trial))
    family = planted.family([], n_calibrated=0, n_candidates=0, q_attainable=None)
    put(store, "events", {"events": [], "event_families": [family]})
    found = collect(store, SWEEP)
    assert "No series could be tested for events" in said(found, "nothing")
    assert "20 of 20 series cannot be tested (20 unit root)" in said(found, "caution")


def test_tables_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    store = planted.planted(tmp_path)
    put_events(store, EVENTS, n_candidates=len(EVENTS), n_events=7)
    with pytest.raises(StoreError, match="do not add up to family 'primary'"):
        collect(store, SWEEP)


def test_events_of_a_control_without_training_are_a_caution(tmp_path: Path) -> None:
    store = planted.planted(tmp_path)
    put_events(store, [], n_candidates=0)
    families = [planted.family([], n_candidates=0)]
    families.append(planted.family([], family="lr0: primary", primary=False, n_events=2, n_series=4, n_calibrated=3))
    put(store, "events", {"events": [], "event_families": families})
    text = said(collect(store, SWEEP), "caution")
    assert "Control lr0: 2 events in 4 series (3 testable), where nothing was trained" in text


def test_a_family_that_nobody_declared_is_a_caution(tmp_path: Path) -> None:
    store = planted.planted(tmp_path)
    put_events(store, EVENTS, n_candidates=len(EVENTS), primary=False)
    assert "No family was declared primary" in said(collect(store, SWEEP), "caution")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("q", "attainable", "kind", "words"),
    [
        (0.01, 0.002, "finding", "beside 1.2 by chance, 4 of 4 seeds, where false events give 0.2, q = 0.01"),
        (0.4, 0.002, "nothing", "It is not shown that seeds agree"),
        (0.4, 0.2, "caution", "Seeds cannot be shown to agree"),
        (None, None, "nothing", "could not be tested: events of one seed only"),
    ],
)
def test_concordance_turns_with_its_q(tmp_path: Path, q: Any, attainable: Any, kind: str, words: str) -> None:
    store = planted.planted(tmp_path)
    row = concordance(q, attainable, null_seeds_with=0.2) | ({"reason": "events of one seed only"} if q is None else {})
    put(store, "concordance", {"concordance": [row], "replicated_events": []})
    found = section(collect(store, SWEEP), "across")
    assert [c.kind for c in found.claims] == [kind] and words in found.claims[0].text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("p", "significant", "reach", "kind", "words"),
    [
        (0.02, True, 0.01, "finding", "Events per series differs: cnn 1.5 against mlp 0.5 (difference 1 [0.4, 1.6]"),
        (0.4, False, 0.01, "nothing", "Events per series: no difference is shown for cnn - mlp (adjusted p = 0.4)"),
        (0.4, False, 0.3, "caution", "no difference could have survived alone (smallest adjusted p attainable 0.3)"),
    ],
)
def test_a_comparison_turns_with_its_p(
    tmp_path: Path, p: float, significant: bool, reach: float, kind: str, words: str
) -> None:
    store = planted.planted(tmp_path)
    row = comparison(p, significant, reach, null_mean=0.02)
    put(store, "compare", {"comparisons": [row], "cell_status": []})
    found = [c for c in section(collect(store, SWEEP), "across").claims if "vents per series" in c.text]
    assert [c.kind for c in found] == [kind] and words in found[0].text
    assert ("3 comparisons, where false events give 0.02." in found[0].text) is significant


def test_critical_periods_are_drawn_on_the_map_of_their_measure_beside_their_number_by_chance(tmp_path: Path) -> None:
    store = planted.planted(tmp_path)
    planted.put_periods(store, [(0, 20, 40), (1, 30, 60), (2, 100, 120)])
    maps = section(collect(store, SWEEP), "maps")
    key = (
        "period",
        "critical period of a seed: it moves faster than its slow-down explains (3 in all, 5 on surrogates)",
    )
    assert key in maps.plates[0].keys and "period" not in dict(maps.plates[1].keys)
    (mlp,) = [figure for figure in maps.plates[0].figures if figure.title == "mlp"]
    spans = csv(mlp.spec["layer"][2])
    assert spans[["row", "from", "to"]].to_numpy().tolist() == [[1, 20, 60], [1, 100, 120]]
    assert spans["text"].tolist()[0].endswith("between steps 20 and 60 in 2 of 4 seeds")
    assert "2 spans of critical periods" in mlp.alt
    (cnn,) = [figure for figure in maps.plates[0].figures if figure.title == "cnn"]
    assert len(cnn.spec["layer"]) == 2 and "critical" not in cnn.alt


def test_the_trials_with_the_best_defined_critical_periods_are_named_with_how_many_were_tried(tmp_path: Path) -> None:
    store = planted.planted(tmp_path)
    planted.put_periods(store, [(1, 30, 60)])
    row = {"measure": "participation_ratio", "rank": 1, "trial_id": planted.trial_id("mlp", 1), "cell": "mlp/digits"}
    row |= {"n_layers": 2, "n_significant": 1, "smallest_p": 0.004, "n_tried": 8}
    put(store, "coordination_tests", {"critical_ranking": [row], "coordination_cells": []})
    found = collect(store, SWEEP)
    assert (
        "Best defined critical periods, picked from 8 trials after looking at all: mlp seed 1 (1 of 2 layers with "
        "q < 0.05, smallest p 0.004)."
    ) in said(found, "described")
    assert sheet(found, "Trials with the best defined critical periods")["n tried"].tolist() == [8]


@pytest.mark.parametrize(
    ("verdict", "q", "kind"), [("supported", 0.01, "finding"), ("not_shown", 0.4, "described"), ("no_data", None, "")]
)
def test_the_founding_sentence_on_cnns_and_mlps_turns_with_its_parts(
    tmp_path: Path, verdict: str, q: float | None, kind: str
) -> None:
    store = planted.planted(tmp_path)
    row = {"scope": "*", "n_cnn": 4, "n_mlp": 4, "n_trials": 8, "rule": "…", "verdict": verdict, "q": q}
    parts: list[dict[str, Any]] = [row | {"claim": "more_events_of_similar_size"}]
    if q is not None:
        ends = {"ratio": 2.5, "lo": 1.6, "hi": 3.9}
        parts += [row | {"claim": name, **ends} for name in ("more_events_per_series", "similar_size")]
    put(store, "architecture_claims", {"architecture_claims": parts})
    found = [c for c in section(collect(store, SWEEP), "across").claims if "MLPs" in c.text]
    assert [c.kind for c in found] == ([kind] if kind else [])
    assert not found or ("ratio 2.5 [1.6, 3.9], q = " in found[0].text and "4 against 4 seeds" in found[0].text)


def settling(q: float, rho: float) -> dict[str, list[dict[str, Any]]]:
    row = {"cell": "cnn/digits", "model": "cnn", "data": "digits", "measure": "participation_ratio", "mode": "default"}
    row |= {"n_trials": 4, "n_without": 0, "n_layers": 3.0, "mean_rho": rho, "p": q, "q": q, "bottom_up": 1.0}
    return {"convergence_cells": [row | {"null_bottom_up": 0.2}], "convergence_architectures": []}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("q", "rho", "kind", "words"),
    [
        (
            0.01,
            0.9,
            "finding",
            "Layers settle from the first layer to the last in cnn (mean ρ = 0.9, q = 0.01, 4 seeds)",
        ),
        (0.01, -0.9, "finding", "Layers settle from the last layer to the first in cnn"),
        (0.2, 0.9, "nothing", "No order of settling is shown in cnn (mean ρ = 0.9, q = 0.2)"),
    ],
)
def test_the_order_of_settling_turns_with_its_q(tmp_path: Path, q: float, rho: float, kind: str, words: str) -> None:
    store = planted.planted(tmp_path)
    for seed in range(SEEDS):
        rows = []
        for i, layer in enumerate(planted.LAYERS["cnn"]):
            row = {"trial_id": planted.trial_id("cnn", seed), "layer": layer, "layer_index": i, "view": "units"}
            row |= {"measure": "participation_ratio", "mode": "default", "n": 21, "step": 50 + 10 * i if i else None}
            rows.append(row | {"flag": None if i else "never"})
        put(store, "convergence", {"convergence": rows}, key=planted.trial_id("cnn", seed))
    put(store, "convergence_tests", settling(q, rho))
    found = section(collect(store, SWEEP), "order")
    assert "settles within the run in 8 of 12 layer series; 4 never do" in found.claims[0].text
    assert found.claims[1].kind == kind and words in found.claims[1].text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("q", "verdict", "kind", "words"),
    [
        (0.01, "supported", "finding", "“Entropy falls” in mlp: supported (planted; 4 trials, q = 0.01"),
        (0.01, "contradicted", "finding", "“Entropy falls” in mlp: contradicted"),
        (0.3, "not_shown", "nothing", "not shown"),
        (0.3, "supported", "described", "supported"),
    ],
)
def test_a_hypothesis_is_a_finding_only_where_its_q_stands_behind_it(
    tmp_path: Path, q: float, verdict: str, kind: str, words: str
) -> None:
    store = planted.planted(tmp_path)
    row = {"hypothesis": "entropy", "scope": "mlp/digits", "statement": "Entropy falls", "n": 4, "p": q, "q": q}
    rows = [row | {"verdict": verdict, "why": "planted"}, {"hypothesis": "x", "scope": "*", "verdict": "no_data"}]
    put(store, "hypotheses", {"hypotheses": rows})
    claims = section(collect(store, SWEEP), "why").claims
    assert [c.kind for c in claims] == [kind, "caution"] and words in claims[0].text
    assert "1 of 2 hypotheses could not be judged" in claims[1].text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("p", "reach", "kind", "words"),
    [
        (0.01, 0.001, "finding", "AUC 0.8 [0.7, 0.9], the phase of training alone 0.6"),
        (0.4, 0.001, "nothing", "that the drivers add anything is not shown, p = 0.4"),
        (0.4, 0.2, "caution", "no gain could be shown: smallest p 0.2"),
    ],
)
def test_what_foretells_events_turns_with_its_p(tmp_path: Path, p: float, reach: float, kind: str, words: str) -> None:
    store = planted.planted(tmp_path)
    rows = [{"model": "phase", "auc": 0.6, "n_events": 30}]
    rows.append({"model": "all", "auc": 0.8, "lo": 0.7, "hi": 0.9, "gain": 0.2, "p": p, "p_attainable": reach} | rows[0]
                | {"model": "all", "auc": 0.8})  # fmt: skip
    put(store, "timing", {"timing_models": rows})
    (claim,) = section(collect(store, SWEEP), "why").claims
    assert claim.kind == kind and words in claim.text


# -- what was trained ----------------------------------------------------------------------------------------------


def test_accuracy_equals_the_tables_with_an_interval_over_seeds(page: Page, whole: Store) -> None:
    cells = sheet(page, "Accuracy by cell").set_index("cell")
    stored = whole.sql(
        "SELECT model, avg(final_accuracy) AS a FROM outcomes JOIN trials USING (sweep, pack, trial_id) "
        "WHERE status = 'finished' GROUP BY 1"
    ).set_index("model")["a"]
    for model in ("mlp", "cnn"):
        assert cells.loc[model, "accuracy"] == pytest.approx(stored[model])
        assert cells.loc[model, "95 % from"] < stored[model] < cells.loc[model, "to"]
        assert cells.loc[model, "learned"] == "yes" and cells.loc[model, "chance"] == 0.1


def test_trials_that_failed_or_diverged_are_named_and_listed(page: Page) -> None:
    text = said(page, "caution")
    assert "1 trial failed: 1 in mlp" in text and "1 trial diverged" in text
    assert "6 of 8 planned trials finished: 2 cells with 4 seeds each, 200 steps." in text
    trials = sheet(page, "Trials")
    assert trials["status"].value_counts().to_dict() == {"finished": 6, "failed": 1, "diverged": 1}
    assert trials.loc[trials["status"] == "failed", "error"].tolist() == ["RuntimeError: planted"]


def test_a_cell_at_chance_is_flagged_and_kept_out_of_claims_about_learning(tmp_path: Path) -> None:
    found = collect(planted.planted(tmp_path, accuracy={"mlp": 0.1, "cnn": 0.9}), SWEEP)
    assert "mlp never trained: its held-out accuracy 0.100" in said(found, "caution")
    (accuracy,) = [c.text for c in found.claims if c.text.startswith("Held-out accuracy")]
    assert "cnn 0.900" in accuracy and "mlp" not in accuracy


def test_a_cell_of_which_some_seeds_learned_did_not_never_train(tmp_path: Path) -> None:
    """Modular addition: four seeds at 1, two at chance. The interval of their mean reaches below chance."""
    final = {seed: 0.1 if seed < 2 else 1 - 0.001 * seed for seed in range(6)}
    found = collect(planted.planted(tmp_path, seeds=6, accuracy={"mlp": final}), SWEEP)
    text = said(found, "caution")
    assert "Not every seed learned in mlp: the last evaluation of some is not above chance" in text
    assert "never trained" not in text
    cells = sheet(found, "Accuracy by cell").set_index("cell")
    assert cells.loc["mlp", "learned"] == "partly" and cells.loc["cnn", "learned"] == "yes"
    assert cells[["95 % from", "to"]].stack().between(0, 1).all()


def test_the_verdict_of_cell_status_stands_over_the_report_s_own(tmp_path: Path) -> None:
    store = planted.planted(tmp_path)
    put(store, "compare", {"comparisons": [], "cell_status": [{"cell": "mlp/digits", "status": "never_trained"}]})
    assert "mlp never trained" in said(collect(store, SWEEP), "caution")


def test_unfinished_sweeps_and_single_seeds_say_so(tmp_path: Path) -> None:
    found = collect(planted.planted(tmp_path, {("mlp", 0): "running"}, seeds=1), SWEEP)
    text = said(found, "caution")
    assert "1 trial is not finished: what follows is of what is committed so far" in text
    assert "fewer than 3 seeds: every cell" in text
    assert all(c.kind != "finding" for c in found.claims)


def test_an_empty_sweep_has_a_report_too(tmp_path: Path) -> None:
    store = planted.planted(tmp_path, models={})
    found = collect(store, SWEEP)
    assert "Nothing is committed yet." in said(found, "caution")
    Elements(render(found))
    with pytest.raises(StoreError, match="did you mean 'planted'"):
        collect(store, "plantet")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("completeness", "kind", "words"),
    [
        ("complete", "described", "digits (1,000 training samples) is complete."),
        ("generated", "described", "digits (1,000 training samples) is generated."),
        ("subset", "caution", "is only a subset of what was published; no claim extends to the whole of it."),
        ("surrogate", "caution", "surrogate inputs, which stand in for the published ones"),
    ],
)
def test_the_completeness_of_the_data_is_said(tmp_path: Path, completeness: str, kind: str, words: str) -> None:
    found = collect(planted.planted(tmp_path, completeness=completeness), SWEEP)
    (claim,) = [c for c in found.claims if c.text.startswith("Data:")]
    assert claim.kind == kind and words in claim.text and claim.headline == (kind == "caution")
    assert f"digits ({completeness})" in set(sheet(found, "Accuracy by cell")["data"])


def test_events_by_kind_of_layer_stand_beside_their_null(tmp_path: Path) -> None:
    store = planted.planted(tmp_path)
    put_events(store, [event("mlp", 0, 1, 100)])
    missing = ("Events were not counted by layer", "ndt analyze planted event_layers")
    assert missing in section(collect(store, SWEEP), "events").missing
    row = {"mode": "default", "cell": "mlp/digits", "model": "mlp", "data": "digits", "n_series": 4}
    kinds = [
        row | {"layer_kind": kind, "n": n, "null_n": 0.25, "to_linear1": n / 2}
        for kind, n in (("linear1", 2), ("linear2", 5), ("out_proj", 1), ("fc", 0))
    ]
    put(store, "event_layers", {"event_kinds": [*kinds, kinds[0] | {"mode": "original", "n": 90}]})
    found = collect(store, SWEEP)
    assert (
        "linear2 (out of it) 5 beside 0.25 in 4 series, linear1 (into the feed-forward block) 2 beside 0.25 in 4 "
        "series and out_proj (out of attention) 1 beside 0.25 in 4 series; none in fc. linear2 to linear1: 2.5."
    ) in said(found, "described")
    assert sheet(found, "Events by kind of layer").query("mode == 'default'")["n"].sum() == 8
    assert missing not in section(found, "events").missing


def test_what_was_not_computed_is_said_with_the_command_that_would(tmp_path: Path) -> None:
    found = collect(planted.planted(tmp_path), SWEEP)
    commands = [command for part in found.sections for _, command in part.missing]
    for command in ("series_tests events", "concordance", "compare", "jumps", "convergence convergence_tests"):
        assert f"ndt analyze planted {command}" in commands
    assert "nothing here says whether a change is real" in said(found, "caution")


# -- jumps, in both modes ------------------------------------------------------------------------------------------


def jump_rows(trial: str, mode: str, observed: int, expected: float) -> dict[str, dict[str, Any]]:
    counts: dict[str, Any] = {c.name: [None] for c in JUMP_COUNTS.columns}
    of = {"trial_id": [trial], "layer": ["network.0"], "layer_index": [0], "view": ["units"], "mode": [mode]}
    of |= {"measure": ["participation_ratio"], "detector": ["difference_z"], "parameters": ['{"threshold": 2.0}']}
    counts |= of | {"grid_every": [10], "n": [20], "n_missing": [0], "observed": [observed], "merged": [observed]}
    counts |= {"shown": [0], "n_surrogates": [200], "p_ar1": [0.01]}
    for family in ("white", "ar1"):
        counts |= {f"null_{family}_mean": [expected], f"null_{family}_sd": [1.0]}
    jumps: dict[str, Any] = {c.name: [None] * observed for c in JUMPS.columns}
    jumps |= {k: v * observed for k, v in of.items()} | {"index": np.arange(observed), "counted": [True] * observed}
    jumps |= {"step_before": [0] * observed, "step_after": [10] * observed, "direction": ["increase"] * observed}
    jumps |= {"phase_bin": [None if i == 0 else "mid" for i in range(observed)]}
    return {"jump_counts": counts, "jumps": jumps}


def test_counts_of_both_modes_stand_side_by_side_beside_noise(tmp_path: Path) -> None:
    register_table(JUMPS)
    register_table(JUMP_COUNTS)
    store = planted.planted(tmp_path)
    for seed in range(SEEDS):
        trial = planted.trial_id("mlp", seed)
        default, original = jump_rows(trial, "default", 2, 2.0), jump_rows(trial, "original", 5, 1.0)
        both = {t: {c: list(default[t][c]) + list(original[t][c]) for c in default[t]} for t in default}
        write_output(store, SWEEP, "jumps", trial, both, cache_key="1")
    found = collect(store, SWEEP)
    text = said(found, "described")
    assert (
        "flagged by the uncalibrated rule difference_z: mlp 8 beside 8 [4, 12] in AR(1) noise, what noise gives" in text
    )
    assert "As published (participation ratio, difference_z): 20 jumps in 4 series; white noise gives 4 [0, 8]" in text
    assert "16 mid, 0 late and 4 dropped; together 20, 20 % of them left out of every published phase" in text
    table = sheet(found, "Jumps by mode, measure and rule").set_index("mode")
    assert table["observed"].to_dict() == {"default": 8, "original": 20}
    assert table["AR(1) noise"].to_dict() == {"default": 8.0, "original": 4.0}
    assert "Flagged by" not in text  # no events were sought


def test_jumps_that_lie_within_an_event_that_survives_are_counted_beside_chance(tmp_path: Path) -> None:
    register_table(JUMPS)
    register_table(JUMP_COUNTS)
    store = planted.planted(tmp_path)
    trial = planted.trial_id("mlp", 0)
    write_output(store, SWEEP, "jumps", trial, jump_rows(trial, "default", 2, 2.0), cache_key="1")
    for events, said_of in (
        ([], "within one of the 0 events that survive (family “primary”): of 2 jumps of participation ratio 0."),
        (
            [planted.event("mlp", 0, 0, 0), planted.event("mlp", 0, 0, 100)],
            "within one of the 2 events that survive (family “primary”): of 2 jumps of participation ratio 2 "
            "(placed at random 0.211).",
        ),
    ):
        planted.put_events(store, events)  # and candidates that are no events
        assert said_of in said(collect(store, SWEEP), "described")


# -- maps ----------------------------------------------------------------------------------------------------------


def test_maps_hold_the_mean_log_ratio_of_the_tables_and_the_events(page: Page, whole: Store) -> None:
    (dimensions, velocity) = section(page, "maps").plates
    assert [f.title for f in dimensions.figures] == ["cnn", "mlp"]
    spec = dimensions.figures[0].spec
    cells, marks = csv(spec["layer"][1]), csv(spec["layer"][-1])
    expected = whole.sql(
        "SELECT step, avg(log2(participation_ratio / 8)) AS v FROM measurements m JOIN trials USING (sweep, pack, "
        "trial_id) WHERE model = 'cnn' AND m.layer_index = 2 GROUP BY 1 ORDER BY 1"
    )
    own = cells[cells["row"] == 2].sort_values("x")
    np.testing.assert_allclose(own["value"], expected["v"], atol=1e-4)
    assert (cells["n"] == SEEDS).all()
    assert marks[["row", "seeds", "direction"]].to_numpy().tolist() == [[2, 4, "increase"]]
    assert "in 4 of 4 seeds" in marks["text"].iloc[0]
    assert "velocity" in velocity.title and len(velocity.figures) == 2


# -- the page ------------------------------------------------------------------------------------------------------


def test_the_page_is_one_file_that_asks_no_address(html: str) -> None:
    assert len(html.encode()) < LIMIT
    elements = Elements(html)
    assert not elements.attributes("src")
    assert all(href.startswith(("#", "data:,")) for href in elements.attributes("href"))
    assert "default-src 'none'" in html
    styles = html[html.index("<style>") : html.index("</style>")]
    assert "@import" not in styles and "url(" not in styles
    known = ("http://www.w3.org/", "https://vega.github.io/", "https://github.com/vega/")
    assert [u for u in re.findall(r"https?://[^\s\"'`)]+", html) if not u.startswith(known)] == []


def test_the_page_says_all_that_was_collected(html: str, page: Page) -> None:
    words = re.sub(r"\s+", " ", "".join(Elements(html).words))
    for claim in page.claims:
        assert claim.only_top or claim.text in words
    for name, value in page.facts:
        assert name in words and value in words
    assert "Is it <there>?" in words and "<there>" not in html


def test_every_chart_has_its_specification_and_a_description(html: str, page: Page) -> None:
    charts = [a for _, a in Elements(html).found if "data-chart" in a]
    specs = spec_text(html)["specs"]
    assert {a["data-chart"] for a in charts} == set(specs) and len(charts) > 8
    for attributes in charts:
        assert attributes["role"] == "img" and len(attributes["aria-label"] or "") > 20


def test_tables_carry_all_digits_and_can_be_sorted_and_saved(html: str, page: Page) -> None:
    accuracy = float(sheet(page, "Accuracy by cell")["accuracy"].iloc[0])
    assert f'data-v="{accuracy!r}"' in html
    elements = Elements(html)
    tables = sum(tag == "table" for tag, _ in elements.found)
    assert tables == sum(len(s.rows) > 0 for part in page.sections for s in part.sheets)
    assert tables == sum("csv" == a.get("class") for _, a in elements.found)
    headers = [a for tag, a in elements.found if tag == "th"]
    assert headers and all(a["scope"] == "col" and a["aria-sort"] == "none" for a in headers)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ([0.5, 2.5], "0.5, 2.5"),
        (np.arange(3), "0, 1, 2"),
        (np.zeros((4, 4)), "16 values"),
        ([], ""),
        (np.float32(2), 2.0),
    ],
)
def test_lists_in_cells_are_short(value: Any, shown: Any) -> None:
    assert plain(value) == shown


def test_landmarks_and_labels(html: str) -> None:
    elements = Elements(html)
    tags = [tag for tag, _ in elements.found]
    assert all(tags.count(t) == 1 for t in ("header", "nav", "main", "footer", "h1"))
    ids = [a["id"] for _, a in elements.found if "id" in a]
    assert len(ids) == len(set(ids))
    assert {h[1:] for h in elements.attributes("href") if h.startswith("#")} <= set(ids)
    assert set(elements.attributes("aria-labelledby")) <= set(ids)


@pytest.mark.slow
def test_a_sweep_as_large_as_the_founding_study_stays_small(tmp_path: Path) -> None:
    """57 cells of 12 layers, 401 measured steps: 274,000 values a measure and seed."""
    layers = tuple(f"layers.{i}" for i in range(12))
    models = {f"mlp_{i:02d}": layers for i in range(57)}
    store = planted.planted(tmp_path, models=models, grid=np.arange(0, 2001, 5), seeds=1)
    text = render(collect(store, SWEEP))
    assert len(text.encode()) < LIMIT
    assert len(spec_text(text)["specs"]) >= 2 * 57


def test_a_page_that_would_be_too_large_shows_fewer_rows_and_says_so(
    monkeypatch: pytest.MonkeyPatch, page: Page
) -> None:
    import ndt_ray.report.page as module

    small = len(module._rendered(page, 4)) + 100
    monkeypatch.setattr(module, "LIMIT", small)
    monkeypatch.setattr(module, "MOST_ROWS", 8)
    text = render(page)
    assert len(text) <= small and "first 4 of 8 rows" in text


# -- writing -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_report_is_written_beside_its_sweep_or_where_asked(whole: Store, tmp_path: Path) -> None:
    written = write_report(whole, SWEEP)
    assert Path(written.path) == Path(whole.location.root) / "sweeps" / SWEEP / "report.html"
    assert Path(written.path).stat().st_size == written.bytes
    other = write_report(whole, SWEEP, tmp_path / "new folder" / "r.html")
    assert Path(other.path).read_text().startswith("<!doctype html>")
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecError, match="cannot be written"):
        write_report(whole, SWEEP, tmp_path / "file" / "r.html")


@pytest.mark.parametrize(
    ("q", "flag", "kind", "said"),
    [
        (
            0.01,
            None,
            "finding",
            r"2 of 3 metrics .* 80 % of the change of loss by 5 % of the run \(mlp, q = 0\.01\)"
            r" and nc3 goes from 1 to 5 \(2 at the end\) by",
        ),
        (0.4, None, "nothing", r"No metric changes otherwise than an even course .* smallest q is 0\.4 "),
        (None, "no_checkpoint", "caution", r"could not be tested: no checkpoint \(3\)"),
    ],
)
def test_what_changes_while_layers_leave_their_initialisation_is_told(
    tmp_path: Path, q: float | None, flag: str | None, kind: str, said: str
) -> None:
    store = planted.planted(tmp_path)
    row = {"cell": "mlp", "layer": "*", "n_trials": 6, "share": 0.8, "time_share": 0.05, "effect": 3.0, "flag": flag}
    rows = [row | {"metric": name, "p": p, "q": p} for name, p in (("nc3", q), ("loss", q), ("nc1", q and 0.9))]
    rows[0] |= {"share": 4.0, "initial": 1.0, "after": 5.0, "final": 2.0}  # it comes back
    planted.put(store, "escape", {"escape": rows})
    section = next(s for s in collect(store, SWEEP).sections if s.id == "transients")
    (claim,) = [c for c in section.claims if "leave their initialisation" in c.text]
    assert claim.kind == kind and re.search(said, claim.text), claim.text
    assert any(sheet.table == "escape" for sheet in section.sheets)


def test_as_markdown_it_says_the_same(whole: Store, tmp_path: Path) -> None:
    written = write_report(whole, SWEEP, tmp_path / "r.md")
    text = Path(written.path).read_text()
    assert text.startswith(f"# {SWEEP}\n") and text.endswith("\n")
    for shown in written.page.sections:
        assert f"## {shown.title}\n" in text
        for claim in shown.told:
            assert f"- **{BADGES[claim.kind]}** {claim.text}" in text
            assert not claim.sql or claim.sql.strip() in text
        for figure in (figure for plate in shown.plates for figure in plate.figures):
            assert f"- Chart: {figure.title}. {figure.alt}" in text
        assert all(f"**{sheet.title}**" in text for sheet in shown.sheets)
        assert all(f"- {what}: `{command}`" in text for what, command in shown.missing)
    numbers = [int(n) for n in re.findall(r"\(query (\d+)\)", text)]
    assert numbers and max(numbers) == len(re.findall(r"^\d+\.\n```sql$", text, re.M))
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(bars) == 1, table  # a bar in a cell is escaped


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (None, "none of chromium"),
        ("echo broken >&2; exit 3", r"exit 3\): broken"),
        ("exit 0", r"did not print"),
    ],
)
def test_a_pdf_needs_a_browser_that_works(
    whole: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, said: str
) -> None:
    monkeypatch.delenv("NDT_BROWSER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    if script:
        (tmp_path / "chromium").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "chromium").chmod(0o755)
    with pytest.raises(SpecError, match=said):
        write_report(whole, SWEEP, tmp_path / "r.pdf")
    assert not (tmp_path / "r.pdf").exists()
    monkeypatch.setenv("NDT_BROWSER", "/nowhere/chrome")
    with pytest.raises(SpecError, match="NDT_BROWSER=/nowhere/chrome is none"):
        write_report(whole, SWEEP, tmp_path / "r.pdf")


def test_a_table_of_the_markdown_is_cut_short_and_says_so() -> None:
    rows = pd.DataFrame({"a|b": [f"x|{i}\ny" for i in range(40)], "n": np.arange(40) / 3})
    page = Page("s", "", (Section("t", "T", sheets=[Sheet("Long", rows, sql="SELECT 1")]),), (), "", 0.0)
    text = render_markdown(page)
    assert "**Long**, the first 30 of 40 rows (query 1)" in text and "| x\\|29 y | 9.67 |" in text
    assert "x\\|30" not in text and "| a\\|b | n |\n| --- | --- |" in text


def test_a_part_whose_table_is_of_another_version_says_so_and_the_rest_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = planted.planted(tmp_path)
    columns = tuple(Column(c, "string", "") for c in ("trial_id", "mode", "measure"))
    monkeypatch.setitem(TABLES, "growth", Table("growth", "of old", columns, ("trial_id",), origin="analysis"))
    old = {"trial_id": ["t"], "mode": ["default"], "measure": ["participation_ratio"]}
    write_output(store, SWEEP, "growth", "t", {"growth": old}, cache_key="1")
    found = collect(store, SWEEP)
    assert "could not be made" in section(found, "order").missing[0][0]
    assert len(section(found, "maps").plates) == 2


@pytest.mark.slow
def test_the_end_of_a_sweep_names_its_report(whole: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = Path(whole.location.root) / "sweeps" / SWEEP / "report.html"
    launch = SimpleNamespace(finished=1, failed=[], interrupted=False)
    done: Any = SimpleNamespace(launch=launch, analyses=[])
    after_sweep(whole.location.root, SWEEP, done)
    assert capsys.readouterr().err == f"report  {where}\n"
    written = where.stat().st_mtime_ns
    launch.finished = 0
    after_sweep(whole.location.root, SWEEP, done)
    assert capsys.readouterr().err == f"report  {where}\n"
    assert where.stat().st_mtime_ns == written, "nothing new: not written again"
    broken = planted.planted(tmp_path)
    put_events(broken, EVENTS, n_candidates=1)
    launch.finished = 1
    after_sweep(broken.location.root, SWEEP, done)
    assert capsys.readouterr().err.startswith("! no report: sweep planted: the cells do not add up")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out, said.err


@pytest.mark.slow
def test_ndt_report_prints_the_path_and_what_is_missing(whole: Store, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "report", SWEEP, "--store", whole.location.root)
    assert code == 0 and Path(out.strip()).is_file()
    assert "ndt analyze planted jumps" in err
    code, out, _ = run(capsys, "report", SWEEP, "--store", whole.location.root, "--json")
    value: Mapping[str, Any] = json.loads(out)
    assert code == 0 and value["bytes"] == Path(value["path"]).stat().st_size
    assert {"section", "kind", "text", "sql"} == set(value["claims"][0])
    code, _, err = run(capsys, "report", "nothing", "--store", whole.location.root)
    assert code == 3 and "nothing" in err
