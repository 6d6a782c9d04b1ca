"""The report in a browser: Chromium opens it from disk, and a reader works with it by mouse and by keyboard."""

import csv
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

import report_store as planted
from chromium import ARGUMENTS, CHROMIUM, MARKS
from report_store import SEEDS, SWEEP, event

from ndt_ray.report import write_report
from ndt_ray.store.reader import open_store

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
pytestmark = MARKS
DRAWN = "document.documentElement.dataset.drawn !== undefined"
EVENTS = [*(event("cnn", seed, 2, 100) for seed in range(SEEDS)), event("mlp", 0, 1, 10, direction="decrease")]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a written report."""
    store = planted.planted(tmp_path_factory.mktemp("ui"))
    planted.put_events(store, EVENTS)
    rows = [planted.progress(seed, step) for seed in range(2) for step in (0, 100, 200)]
    planted.put(store, "grokking", {"grokking_measures": rows})
    onsets = [planted.onset(seed) for seed in range(2)]
    planted.put(store, "grokking_timeline", {"grokking_onsets": onsets, "scale_questions": []})
    return Path(write_report(store, SWEEP).path).as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


class Opened:
    """A page with what it asked for and what went wrong in it."""

    def __init__(self, browser: Any, address: str, **context: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | context)
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.wrong: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda m: self.wrong.append(m.text) if m.type in ("error", "warning") else None)
        self.page.goto(address)
        self.page.wait_for_function(DRAWN, timeout=60_000)

    def ground(self) -> str:
        return str(self.page.evaluate("getComputedStyle(document.body).backgroundColor"))

    def column(self, title: str, index: int) -> list[str]:
        rows = self.page.locator(f'.scroll[aria-label="{title}"] tbody tr:visible')
        return [str(t) for t in rows.locator(f"td:nth-child({index})").all_inner_texts()]


@pytest.fixture
def opened(browser: Any, report: str) -> Iterator[Opened]:
    found = Opened(browser, report)
    yield found
    found.context.close()


@pytest.fixture(scope="module")
def at_hand(browser: Any, report: str) -> Iterator[Opened]:
    """One page for the tests that leave its charts as they are: to draw them takes 2 s."""
    found = Opened(browser, report)
    yield found
    found.context.close()


def test_it_draws_every_chart_asks_for_nothing_and_has_no_errors(opened: Opened, report: str) -> None:
    charts = opened.page.locator("[data-chart]")
    assert charts.count() >= 9
    assert opened.page.locator("[data-chart] canvas").count() == charts.count()
    assert opened.page.locator(".chart.failed").count() == 0
    assert [url for url in opened.asked if not url.startswith(("data:", "blob:"))] == [report]
    assert opened.wrong == []


@pytest.mark.parametrize(("width", "height"), [(390, 800), (1280, 900)])
def test_nothing_sticks_out_sideways(browser: Any, report: str, width: int, height: int) -> None:
    found = Opened(browser, report, viewport={"width": width, "height": height})
    assert found.page.evaluate("document.documentElement.scrollWidth") <= width
    found.context.close()


def test_it_follows_the_system_s_theme_until_the_reader_chooses(browser: Any, report: str) -> None:
    found = Opened(browser, report, color_scheme="dark")
    assert found.ground() == "rgb(20, 24, 28)"
    button = found.page.get_by_role("button", name="Dark")
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert found.ground() == "rgb(252, 252, 250)" and button.get_attribute("aria-pressed") == "false"
    found.page.wait_for_function(f"{DRAWN} && document.documentElement.dataset.drawn === '2'", timeout=60_000)
    assert found.wrong == []
    found.context.close()


def test_the_charts_of_a_run_stand_over_one_another_on_one_axis(at_hand: Opened) -> None:
    assert at_hand.page.locator("#grokking .stack").count() == 2
    corners = [
        box["x"]
        for box in map(lambda c: c.bounding_box(), at_hand.page.locator(".stack").first.locator("canvas").all())
    ]
    assert len(corners) == 4 and max(corners) - min(corners) < 1
    place = (
        "[...document.querySelector('.stack').children].map(n => n.view.view.scale('x')(100) + n.view.view.origin()[0])"
    )
    middles = at_hand.page.evaluate(place)
    assert max(middles) - min(middles) < 1.5, middles


def test_steps_become_logarithmic_and_back(opened: Opened) -> None:
    scale = "document.querySelector('#maps [data-chart]').view.view.scale('x').type"
    assert opened.page.evaluate(scale) == "linear"
    opened.page.get_by_role("button", name="Log steps").click()
    opened.page.wait_for_function("document.documentElement.dataset.drawn === '2'", timeout=60_000)
    assert opened.page.evaluate(scale) == "symlog"
    assert opened.wrong == []


def test_tables_are_sorted_by_mouse_and_by_keyboard(at_hand: Opened) -> None:
    title, column = "Accuracy by cell", 1
    unsorted = at_hand.column(title, column)
    head = at_hand.page.locator(f'.scroll[aria-label="{title}"] th').nth(column - 1)
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert at_hand.column(title, column) == sorted(unsorted)
    head.get_by_role("button").focus()
    at_hand.page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert at_hand.column(title, column) == sorted(unsorted, reverse=True)
    at_hand.page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "none" and at_hand.column(title, column) == unsorted


def test_numbers_are_sorted_as_numbers(at_hand: Opened) -> None:
    heads = at_hand.page.locator('.scroll[aria-label="Events"] th').all_inner_texts()
    index = heads.index("step before") + 1
    at_hand.page.locator(f'.scroll[aria-label="Events"] th:nth-child({index}) button').click()
    assert at_hand.column("Events", index) == ["100", "100", "100", "100", "10"]


def test_a_table_is_saved_with_all_digits(at_hand: Opened) -> None:
    sheet = at_hand.page.locator(".sheet", has=at_hand.page.locator('.scroll[aria-label="Accuracy by cell"]'))
    with at_hand.page.expect_download() as waiting:
        sheet.get_by_role("button", name="CSV").click()
    assert waiting.value.suggested_filename == "planted-accuracy-by-cell.csv"
    rows = list(csv.DictReader(io.StringIO(Path(waiting.value.path()).read_text())))
    assert [row["cell"] for row in rows] == ["cnn", "mlp"]
    assert float(rows[0]["accuracy"]) == pytest.approx(0.9, abs=1e-12) and rows[0]["learned"] == "yes"


def test_the_keyboard_reaches_what_was_found_first(opened: Opened) -> None:
    opened.page.keyboard.press("Tab")
    assert opened.page.evaluate("document.activeElement.textContent") == "Skip to what was found"
    opened.page.keyboard.press("Enter")
    assert opened.page.evaluate("location.hash") == "#found"
    opened.page.keyboard.press("Tab")
    outline = opened.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "what has the focus is seen"


def test_as_pdf_it_has_every_chart(report: str, browser: Any, at_hand: Opened, tmp_path: Path) -> None:
    store = open_store(Path(report.removeprefix("file://")).parents[2])
    written = write_report(store, SWEEP, tmp_path / "r.pdf")
    pdf = (tmp_path / "r.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and len(pdf) == written.bytes
    charts = at_hand.page.locator("[data-chart] canvas").count()
    assert charts > 3 and pdf.count(b"/Subtype /Image") >= charts


def test_the_printed_page_is_light_and_whole(opened: Opened) -> None:
    opened.page.emulate_media(media="print")
    assert opened.page.locator("nav").is_hidden()
    assert opened.page.evaluate("getComputedStyle(document.querySelector('.scroll')).maxHeight") == "none"
