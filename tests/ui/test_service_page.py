"""The service in a browser: a reader goes from the sweeps to a map and to the console, and the address says where."""

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

import report_store as planted
from chromium import ARGUMENTS, CHROMIUM, MARKS
from report_store import SEEDS, SWEEP, event

from ndt_ray.service import address_of, listen
from ndt_ray.service.app import create_app
from ndt_ray.store.reader import Store

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
pytestmark = MARKS
EVENTS = [*(event("cnn", seed, 2, 100) for seed in range(SEEDS)), event("mlp", 0, 1, 10, direction="decrease")]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    made = planted.planted(tmp_path_factory.mktemp("served"))
    planted.put_events(made, EVENTS)
    return made


@pytest.fixture(scope="module")
def address(store: Store) -> Iterator[str]:
    """Where the service answers, on loopback."""
    with listen("127.0.0.1", 0, None) as bound:
        server = uvicorn.Server(uvicorn.Config(create_app(store), log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.02)
        yield address_of(bound)
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        made = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light").new_page()
        made.set_default_timeout(90_000)  # two cores that others use too: a map takes seconds
        made.asked, made.wrong = [], []
        made.on("request", lambda request: made.asked.append(request.url))
        made.on("pageerror", lambda error: made.wrong.append(str(error)))
        made.on("console", lambda m: made.wrong.append(m.text) if m.type in ("error", "warning") else None)
        made.goto(address)
        made.get_by_role("link", name=SWEEP).wait_for(timeout=60_000)
        yield made
        browser.close()


def column(page: Any, title: str, name: str) -> list[str]:
    region = page.locator(f'.scroll[aria-label="{title}"]')
    at = region.locator("thead th").all_inner_texts().index(name) + 1
    return [str(t) for t in region.locator(f"tbody td:nth-child({at})").all_inner_texts()]


def test_a_reader_finds_a_sweep_sorts_filters_maps_and_asks(page: Any, address: str, store: Store) -> None:
    page.get_by_role("link", name=SWEEP).click()
    page.locator('.scroll[aria-label="Trials"]').wait_for()
    assert f"sweep={SWEEP}" in page.url and page.title() == f"{SWEEP} · ndt"
    page.get_by_role("button", name="accuracy", exact=True).click()
    values = column(page, "Trials", "accuracy")
    assert values == sorted(values, reverse=True) and "sort=accuracy" in page.url and "dir=desc" in page.url
    page.get_by_label("Filter Trials").fill("cnn")
    assert column(page, "Trials", "cell") == ["cnn"] * SEEDS and "filter=cnn" in page.url
    page.reload()
    page.locator('.scroll[aria-label="Trials"]').wait_for()
    assert column(page, "Trials", "cell") == ["cnn"] * SEEDS, "the address holds the state"

    page.get_by_role("link", name="Map").click()
    page.locator("figure canvas").nth(1).wait_for(timeout=60_000)
    page.get_by_label("measure", exact=True).select_option("velocity")
    page.get_by_role("heading", name="Representation velocity").wait_for()
    assert "measure=velocity" in page.url
    page.go_back()
    page.get_by_role("heading", name="Participation ratio relative").wait_for()

    page.get_by_role("link", name="Events").click()
    page.get_by_text("5 events survive").wait_for(timeout=60_000)
    page.locator("figure canvas").nth(2).wait_for(timeout=60_000)
    assert page.locator(".chart.failed").count() == 0

    page.get_by_role("link", name="SQL").click()
    page.get_by_label("Query").fill("SELECT model, count(*) AS n FROM trials GROUP BY 1 ORDER BY 1")
    page.keyboard.press("Control+Enter")
    result = page.locator("#result table")
    result.wait_for()
    assert result.locator("tbody tr").all_inner_texts() == [f"cnn\t{SEEDS}", f"mlp\t{SEEDS}"]
    assert "sql=SELECT" in page.url
    page.wait_for_timeout(2300)
    assert page.wrong == [] and all(u.startswith((address, "data:", "blob:")) for u in page.asked)


def test_a_refused_query_is_said_and_the_theme_follows_the_reader(page: Any, address: str) -> None:
    page.goto(f"{address}?view=sql&sql=DROP%20TABLE%20trials")
    page.get_by_role("alert").wait_for()
    assert "one SELECT statement" in page.get_by_role("alert").inner_text()
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(ground) == "rgb(252, 252, 250)"
    page.get_by_role("button", name="Dark").click()
    assert page.evaluate(ground) == "rgb(20, 24, 28)"
    page.get_by_role("button", name="Dark").click()


def test_it_asks_again_while_it_is_looked_at_and_an_unchanged_answer_is_304(page: Any, address: str) -> None:
    page.goto(address)
    page.get_by_role("link", name=SWEEP).wait_for()
    with page.expect_response(lambda r: r.url.endswith("/api/v1/sweeps") and r.status == 304, timeout=15_000):
        pass
    page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    page.get_by_text("paused").wait_for(timeout=15_000)
    asked = len(page.asked)
    page.wait_for_timeout(2500)
    assert len(page.asked) == asked


@pytest.mark.parametrize("query", ["", f"?sweep={SWEEP}", f"?sweep={SWEEP}&view=map", "?view=sql"])
def test_nothing_sticks_out_of_a_small_window(page: Any, address: str, query: str) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto(f"{address}{query}")
    page.wait_for_function("document.documentElement.dataset.shown !== undefined", timeout=60_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
