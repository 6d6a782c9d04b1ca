"""The files of a paper: LaTeX that is whole and has no constant number, CSV, figures; the text of an author is kept."""

import hashlib
import io
import json
import re
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import report_store as planted
from paper_store import PNG, bare_code, bare_sweep, counted, macros, text, whole_sweep
from report_store import SEEDS, SWEEP

from ndt_ray.cli import main
from ndt_ray.errors import SpecError
from ndt_ray.paper import TEXT, Paper, make_paper, write_paper
from ndt_ray.paper.claims import FOUNDING
from ndt_ray.paper.latex import amount, between, cell, comment, escape, longtable, percent
from ndt_ray.store.reader import Store
from ndt_ray.store.writer import PackWriter


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


# -- LaTeX -----------------------------------------------------------------------------------------------------------

BUILT_IN = {"ndtmissing", "ndtnovalue"}


@pytest.mark.slow
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
