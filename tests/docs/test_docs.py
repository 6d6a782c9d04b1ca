"""The documents say what is so: generated pages match the code, links lead somewhere, commands and names exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
README = ROOT / "README.md"


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ +(.*)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.relative_to(ROOT)} links to {target}, which is not there"
        assert file.is_relative_to(ROOT), f"{page.relative_to(ROOT)} links out of the repository: {target}"
        if anchor:
            assert anchor in anchors(file.read_text()), f"{page.relative_to(ROOT)}: no heading for {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_named_in_backquotes_exist(page: Path) -> None:
    """`docs/cluster.md`, `sweeps/digits.yaml`, ... : a path that begins with one of our folders."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    folders = "|".join(["ndt_ray", "analysis", "sweeps", "tests", "docs", "tools", "benchmarks"])
    for name in re.findall(rf"`((?:{folders})/[\w./-]+)`", text):
        assert (ROOT / name).exists(), f"{page.relative_to(ROOT)} names {name}, which is not there"


def test_generated_pages_are_what_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "gen_docs.py"), "--check"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.M))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_make_targets_exist(page: Path) -> None:
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.M))
    assert named <= targets()


def test_continuous_integration_runs_what_the_readme_says() -> None:
    text = README.read_text()
    assert "make demo" in text
    assert "make test" in text
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_sweeps_named_in_the_readme_exist() -> None:
    names = set(re.findall(r"ndt (?:sweep|plan) ([a-z]+)\b(?!\.yaml)", README.read_text()))
    assert names <= {p.stem for p in (ROOT / "sweeps").glob("*.yaml")}


def test_commands_named_in_the_documents_exist() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    known = {heading.split()[1] for heading in re.findall(r"^## (ndt .*)$", page, re.M)}
    for document in PAGES:
        code = re.findall(r"`(ndt [^`]*)`", document.read_text())
        code += re.findall(r"^\s*(?:[A-Z_]+=\S+ )*(ndt .*)$", document.read_text(), re.M)
        for line in code:
            name = line.split()[1]
            assert name in known or not name[0].isalpha() or name.isupper(), f"{document.name}: no command `ndt {name}`"


def test_tables_named_in_the_readme_exist() -> None:
    from ndt_ray import registry
    from ndt_ray.store.schema import COMPUTED, TABLES

    for name in registry.names("analysis"):
        registry.resolve("analysis", name)  # registers its tables
    known = {*TABLES, *COMPUTED, "wide"}
    queries = re.findall(r"ndt query \"(.*?)\"", README.read_text(), re.S)
    for query in queries:
        assert set(re.findall(r"\b(?:from|join) (\w+)", query)) <= known


def test_the_changelog_names_the_version() -> None:
    from importlib import metadata

    assert f"## {metadata.version('ndt-ray')}" in (ROOT / "CHANGELOG.md").read_text()
