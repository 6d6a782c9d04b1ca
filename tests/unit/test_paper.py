"""The paper of a sweep: every number a macro that its tables give, nothing of it constant, and LaTeX that is whole."""

import hashlib
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import report_store as planted
from report_store import SEEDS, SWEEP, event, put, put_events, trial_id

from ndt_ray.analysis.tables import JUMP_COUNTS
from ndt_ray.cli import main
from ndt_ray.errors import SpecError, StoreError
from ndt_ray.paper import TEXT, Paper, make_paper, write_paper
from ndt_ray.paper.claims import FOUNDING
from ndt_ray.paper.latex import amount, between, cell, comment, escape, longtable, percent
from ndt_ray.paper.scale import every
from ndt_ray.store.outputs import write_output
from ndt_ray.store.reader import Store
from ndt_ray.store.schema import TABLES, Column, Table, register_table
from ndt_ray.store.writer import PackWriter

EVENTS = [*(event("cnn", seed, 2, 100) for seed in range(SEEDS)), event("mlp", 0, 1, 10, direction="decrease")]
PNG = b"\x89PNG\r\n\x1a\nplanted"


def counted(
    store: Store, observed: dict[str, int], mode: str = "default", noise: float = 1.0, also: str | None = None
) -> None:
    """Rows of `jump_counts`: per layer of each model so many jumps, beside noise that gives `noise`.

    `also`: another measure, which another rule judged, with one jump more.
    """
    register_table(JUMP_COUNTS)
    for model, layers in planted.LAYERS.items():
        for seed in range(SEEDS):
            rows: list[dict[str, Any]] = []
            for i, layer in enumerate(layers):
                row: dict[str, Any] = {c.name: None for c in JUMP_COUNTS.columns}
                row |= {"trial_id": trial_id(model, seed), "layer": layer, "layer_index": i, "view": "units"}
                row |= {
                    "mode": mode,
                    "measure": "stable_rank" if also else "participation_ratio",
                    "detector": "difference_z",
                    "parameters": "{}",
                }
                row |= {"grid_every": 10, "n": 20, "n_missing": 0, "observed": observed[model], "merged": 0, "shown": 0}
                row |= {"n_surrogates": 200, "p_ar1": 0.5, "p_white": 0.5, "phi": 0.0}
                for family in ("white", "ar1"):
                    row |= {f"null_{family}_mean": noise, f"null_{family}_sd": 0.5}
                rows.append(row)
                if also:
                    more = {"measure": also, "detector": "smoothed_gradient", "observed": observed[model] + 1}
                    rows.append(row | more)
            columns = {c.name: [row[c.name] for row in rows] for c in JUMP_COUNTS.columns}
            write_output(store, SWEEP, "jumps", trial_id(model, seed), {"jump_counts": columns}, cache_key=mode)


def settled(model: str, bottom_up: float, p: float, q: float, **more: Any) -> dict[str, Any]:
    row = {"cell": f"{model}/digits", "model": model, "data": "digits", "measure": "participation_ratio"}
    row |= {"mode": "default", "n_trials": SEEDS, "n_without": 0, "n_layers": 3.0, "mean_rho": 0.9, "p": p, "q": q}
    return row | {"bottom_up": bottom_up, "null_bottom_up": 0.125, "excluded": False} | more


def judged(hypothesis: str, scope: str, verdict: str, **more: Any) -> dict[str, Any]:
    row = {"hypothesis": hypothesis, "scope": scope, "statement": "s", "metric": "m", "prediction": "increase"}
    row |= {"n": 8, "estimate": 0.31, "lo": -0.2, "hi": 0.7, "p": 0.2, "q": 0.4, "confidence": "low", "why": "w"}
    return row | {"verdict": verdict} | more


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Trained and measured, and nothing analysed."""
    return planted.planted(tmp_path_factory.mktemp("bare"), {("mlp", 3): "failed"}, completeness="subset")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = planted.planted(tmp_path_factory.mktemp("whole"))
    put_events(store, EVENTS)
    counted(store, {"mlp": 2, "cnn": 5})
    put(store, "convergence_tests", {
        "convergence_cells": [settled("mlp", 0.75, 0.2, 0.2), settled("cnn", 1.0, 0.01, 0.02),
                              settled("cnn", 1.0, 0.001, 0.001, cell="dead", excluded=True)],
        "convergence_architectures": [],
    })  # fmt: skip
    put(store, "hypotheses", {"hypotheses": [
        judged("magnitude_and_new_features", "*", "weaker_than_predicted", q=0.03),
        judged("filter_differentiation", "cnn/digits", "supported"),
        judged("filter_differentiation", "mlp/digits", "not_shown"),
        judged("filter_differentiation", "none", "no_data"),
    ], "mechanism_patterns": []})  # fmt: skip
    planted.lesioned(store, deficit=0.2, compared=False)
    arm = {"cell": "mlp/digits", "kind": "ablate", "target": "network.0", "until": 100, "dose": 1.0}
    rows = [
        arm | {"trial_id": f"r{seed}-{at}", "untouched": trial_id("mlp", seed), "at": at, "impact": cost,
               "near_event": at == 100}
        for seed in range(SEEDS) for at, cost in ((100, 0.2), (50, 0.05))
    ]  # fmt: skip
    put(store, "recovery", {"recovery": rows, "recovery_contrasts": []})
    store.location.write(f"sweeps/{SWEEP}/layers.png", PNG)
    return store


@pytest.fixture(scope="module")
def little(bare: Store) -> Paper:
    return make_paper(bare, SWEEP)


@pytest.fixture(scope="module")
def much(whole: Store) -> Paper:
    return make_paper(whole, SWEEP)


def macros(paper: Paper) -> dict[str, Any]:
    return {name: macro.value for name, macro in paper.macros.known.items()}


def text(paper: Paper, name: str) -> str:
    return paper.files[name].decode()


def bare_code(tex: str) -> str:
    """Without comments."""
    return "\n".join(re.sub(r"(?<!\\)%.*", "", line) for line in tex.splitlines())


# -- numbers -------------------------------------------------------------------------------------------------------


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
        ("DropNear", "ndt fork planted --name planted-lesions --cell CELL --events 2"),
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


# -- LaTeX -----------------------------------------------------------------------------------------------------------

BUILT_IN = {"ndtmissing", "ndtnovalue"}


@pytest.mark.parametrize("which", ["little", "much"])
def test_the_latex_is_whole(which: str, request: pytest.FixtureRequest) -> None:
    paper = request.getfixturevalue(which)
    defined = re.findall(r"\\newcommand\{\\(ndt\w+)\}", text(paper, "macros.tex"))
    assert len(defined) == len(set(defined)) and set(defined) - BUILT_IN == {f"ndt{n}" for n in paper.macros.known}
    used: set[str] = set()
    for name, data in paper.files.items():
        if not name.endswith(".tex"):
            continue
        code = bare_code(data.decode())
        plain = code.replace(r"\{", "").replace(r"\}", "")
        depth = 0
        for c in plain:
            depth += (c == "{") - (c == "}")
            assert depth >= 0, name
        assert depth == 0, name
        assert len(re.findall(r"(?<!\\)\$", code)) % 2 == 0, name
        opened: list[str] = []
        for kind, environment in re.findall(r"\\(begin|end)\{(\w+)\}", code):
            if kind == "begin":
                opened.append(environment)
            else:
                assert opened.pop() == environment, name
        assert not opened, name
        assert not re.search(r"<<|>>|<%|%>", code), name
        if name != "macros.tex":
            used |= set(re.findall(r"\\(ndt[A-Za-z]+)", code))
            assert not re.search(r"\\ndt[A-Z][A-Za-z]*(?!\{\}|[A-Za-z])", code), "a macro that eats the space after it"
        assert code.isascii()
    assert used <= set(defined)
    lines = text(paper, "macros.tex").splitlines()
    for i, line in enumerate(lines):
        if line.startswith(r"\newcommand"):
            assert lines[i - 1].startswith("% "), f"not documented: {line}"
    labels = Counter(
        re.findall(r"\\label\{([^}]*)\}", "".join(map(bare_code, (text(paper, TEXT), text(paper, "appendix.tex")))))
    )
    assert set(labels.values()) == {1} and set(re.findall(r"\\ref\{([^}]*)\}", text(paper, TEXT))) <= set(labels)


@pytest.mark.parametrize("which", ["little", "much"])
def test_no_number_in_the_text_is_constant_and_no_founding_claim_is_a_result(
    which: str, request: pytest.FixtureRequest
) -> None:
    paper = request.getfixturevalue(which)
    code = bare_code(text(paper, TEXT)).partition(r"\begin{document}")[2]
    code = re.sub(r"\\(input|label|ref|includegraphics)(\[[^]]*\])?\{[^}]*\}", "", code)
    code = code.replace("AR(1) noise", "")
    code = re.sub(r"\\textsuperscript\{2\}|\\ndtmissing\{[^}]*\}", "", code)
    assert not re.search(r"\d", code), re.findall(r".{30}\d.{10}", code)
    assert not re.search(r"\d", bare_code(text(paper, "limitations.tex")))
    flat = " ".join(code.split())
    for name in FOUNDING:
        for place in re.finditer(rf"\\ndt{name}\{{\}}", flat):
            assert "founding claim" in flat[max(0, place.start() - 130) : place.start()].lower(), name
        assert paper.macros.known[name].meaning.startswith("founding claim, no result")


def test_sections_and_their_page_budget(much: Paper) -> None:
    tex = text(much, TEXT)
    found = re.findall(r"\\section\{([^}]*)\}\n% Budget: ([\d.]+) page", tex)
    assert [float(pages) for _, pages in found] == [2, 1, 3, 4, 3, 2, 0.5]
    assert [name for name, _ in found] == [
        "Introduction", "Related Work", "Methods", "Results", "Case Studies", "Discussion", "Conclusion",
    ]  # fmt: skip
    assert r"\paragraph{CNNs.}" in tex and "do filters change" in tex and "Transformers" not in tex


def test_text_is_escaped_whatever_it_holds() -> None:
    assert escape(r"a_b & 5 % of $x$ #1 {y}^2 ~ \n") == (
        r"a\_b \& 5 \% of \$x\$ \#1 \{y\}\textasciicircum{}2 \textasciitilde{} \textbackslash{}n"
    )
    assert (
        escape("mine.py:build <α> ndt fork --name x")
        == r"mine.py:build \textless{}$\alpha$\textgreater{} ndt fork -{}-name x"
    )
    assert escape("1–2 “q” é 中\n\x07") == r"1\textendash{}2 ``q'' é [U+4E2D]  "
    assert amount(17600) == "17,600" and amount(-0.5) == "$-$0.5" and amount(1.2e-7) == r"$1.20\times10^{-7}$"
    assert amount(float("nan")) == r"\textendash{}" and amount(float("inf")) == r"$\infty$"
    assert percent(0.182) == r"18.2\,\%" and percent(1, 4) == r"25\,\%" and percent(1, 0) == "--" == percent(None)
    assert between(1, 2.5) == "[1, 2.5]" and between(None, 1) == "--"
    assert cell(True) == "yes" and cell(None) == "--" and cell("a_b") == r"a\_b" and comment("a\nb") == "% a b"
    with pytest.raises(AssertionError):
        longtable(("a", "b"), [("1",)], "c", "l", "ll")


def test_names_of_a_sweep_are_escaped(tmp_path: Path) -> None:
    store = planted.planted(tmp_path, models={})
    with PackWriter(store, SWEEP, "pack", trials=("0123456789abcdef",)) as writer:
        of = {"cell": "m_y#1&%/d_$x{", "model": "m_y#1&%", "data": "d_$x{", "control": "none", "seed": 0}
        writer.rows("trials", {"trial_id": ["0123456789abcdef"], "steps": 10, "data_completeness": "complete"} | of)
        writer.commit(10, None, finished=True)
    paper = make_paper(store, SWEEP)
    assert r"m\_y\#1\&\%" in text(paper, "appendix.tex") and r"d\_\$x\{ (complete)" in text(paper, "macros.tex")
    assert r"Is it \textless{}there\textgreater{}?" in text(paper, "macros.tex")


# -- files -----------------------------------------------------------------------------------------------------------


def test_the_tables_are_csv_too_with_all_digits(much: Paper) -> None:
    paper = much
    read = {
        n: pd.read_csv(io.StringIO(text(paper, f"tables/{n}")))
        for n in ("a1_summary.csv", "a2_jumps.csv", "a3_targets.csv")
    }
    summary = read["a1_summary.csv"].set_index("macro")
    assert float(summary.loc["ndtEventsFalse", "value"]) == macros(paper)["EventsFalse"]
    assert summary.loc["ndtPeriods", "not computed"] == "ndt analyze planted critical_periods"
    every_group = read["a2_jumps.csv"]
    assert every_group.groupby("grouping")["observed"].sum().to_dict() == dict.fromkeys(("kind", "architecture"), 76)
    jumps = every_group[every_group["grouping"] == "architecture"].set_index("architecture")
    assert jumps.loc["cnn", "mean_jumps"] == 15 and jumps.loc["cnn", "white"] == 12 and jumps.loc["cnn", "events"] == 4
    assert jumps["observed"].sum() == macros(paper)["Jumps"]
    targets = read["a3_targets.csv"].set_index("cell")
    assert set(targets.index) == {"mlp/digits", "cnn/digits"} and len(targets) == 2
    assert targets.loc["mlp/digits", "events"] == 0  # events by seed: 1, 0, 0, 0
    assert targets.loc["cnn/digits", "jumps"] == 15 and targets.loc["cnn/digits", "layers"] == 3
    assert r"cnn & 4 & 15 & 15 & 100\,\% & 60 & 12 [" in text(paper, "appendix.tex")


def test_published_counts_get_a_table_of_their_own(tmp_path: Path) -> None:
    store = planted.planted(tmp_path)
    counted(store, {"mlp": 0, "cnn": 14}, mode="original", also="participation_ratio")
    paper = make_paper(store, SWEEP)
    assert "as published" in text(paper, "appendix.tex") and r"cnn & 4 & 42 & 42" in text(paper, "appendix.tex")
    assert macros(paper)["Jumps"] is None  # the text speaks of correct measures alone


def test_figures_of_the_sweep_are_copied_and_included(little: Paper, much: Paper) -> None:
    paper = much
    assert paper.files["figures/layers.png"] == PNG
    assert r"\includegraphics[width=\linewidth]{figures/layers.png}" in text(paper, TEXT)
    assert "includegraphics" not in text(little, TEXT)
    assert r"\ndtmissing{ndt sweep planted --figure layers.pdf}" in text(little, TEXT).replace("-{}-", "--")


def test_a_picture_is_included_once_under_a_name_that_latex_takes(tmp_path: Path) -> None:
    store = planted.planted(tmp_path)
    for name in ("my map.png", "layers.png", "layers.pdf", "notes.txt"):
        store.location.write(f"sweeps/{SWEEP}/{name}", name.encode())
    files = make_paper(store, SWEEP).files
    assert {n: d for n, d in files.items() if n.startswith("figures/")} == {
        "figures/layers.pdf": b"layers.pdf", "figures/my-map.png": b"my map.png",
    }  # fmt: skip


@pytest.mark.slow
def test_the_same_store_gives_the_same_bytes(whole: Store, tmp_path: Path) -> None:
    def digest(folder: Path) -> dict[str, str]:
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    first = write_paper(whole, SWEEP, tmp_path / "a")
    write_paper(whole, SWEEP, tmp_path / "b")
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != {}
    assert set(digest(tmp_path / "a")) == set(first.files)
    write_paper(whole, SWEEP, tmp_path / "a")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_a_text_that_an_author_changed_is_kept_and_the_numbers_are_new(bare: Store, tmp_path: Path) -> None:
    write_paper(bare, SWEEP, tmp_path)
    mine = (tmp_path / TEXT).read_text().replace(r"\todo{authors}", "A. Uthor")
    (tmp_path / TEXT).write_text(mine)
    (tmp_path / "macros.tex").write_text("old")
    written = write_paper(bare, SWEEP, tmp_path)
    assert written.kept == (TEXT,) and (tmp_path / TEXT).read_text() == mine
    assert "newcommand" in (tmp_path / "macros.tex").read_text()
    assert write_paper(bare, SWEEP, tmp_path, force=True).kept == ()
    assert "A. Uthor" not in (tmp_path / TEXT).read_text()
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_cannot_be_written_is_said(bare: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecError, match="--out"):
        write_paper(bare, SWEEP, tmp_path / "file")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out, said.err


def test_ndt_paper_prints_the_folder_and_what_is_missing(bare: Store, capsys: pytest.CaptureFixture[str]) -> None:
    root = bare.location.root
    code, out, err = run(capsys, "paper", SWEEP, "--store", root)
    assert code == 0 and Path(out.strip()) == Path(root) / "sweeps" / SWEEP / "paper"
    assert (Path(out.strip()) / TEXT).is_file() and "ndt analyze planted jumps" in err
    code, out, _ = run(capsys, "paper", SWEEP, "--store", root, "--json")
    value = json.loads(out)
    assert code == 0 and value["macros"]["Trials"] == 2 * SEEDS and "macros.tex" in value["files"]
    code, _, err = run(capsys, "paper", "nothing", "--store", root)
    assert code == 3 and "nothing" in err
