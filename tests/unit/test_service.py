"""The service: what each address answers, that it says the store's numbers, and whom and what it refuses."""

import asyncio
import io
import json
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
import report_store as planted
from report_store import SEEDS, SWEEP, event

from ndt_ray import progress
from ndt_ray.cli import main
from ndt_ray.errors import SpecError
from ndt_ray.service.address import SHORTEST, address_of, listen, loopback, read_token
from ndt_ray.service.app import FILES, create_app
from ndt_ray.service.board import Board, json_value
from ndt_ray.service.console import AT_ONCE, Busy, Console, Stopped
from ndt_ray.store.reader import Store
from ndt_ray.store.sweep import Sweep

EVENTS = [*(event("cnn", seed, 2, 100) for seed in range(SEEDS)), event("mlp", 0, 1, 10, direction="decrease")]
TOKEN = "a token of one's own, long enough"


class Client:
    """Asks an application without a socket; as a browser on this machine, unless told otherwise."""

    def __init__(self, app: Any, base: str = "http://127.0.0.1:8765") -> None:
        self.app, self.base = app, base
        self.cookies = httpx.Cookies()

    def __call__(self, path: str, method: str = "GET", **more: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url=self.base, cookies=self.cookies) as client:
                answer = await client.request(method, path, **more)
                self.cookies = client.cookies
                return answer

        return asyncio.run(ask())

    def value(self, path: str, **more: Any) -> Any:
        answer = self(f"/api/v1{path}", **more)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The planted sweep with events; one trial failed, and its event log says that it was launched and ended."""
    made = planted.planted(tmp_path_factory.mktemp("service"), {("mlp", 3): "failed"})
    planted.put_events(made, EVENTS)
    return made


@pytest.fixture(scope="module")
def ask(store: Store) -> Client:
    return Client(create_app(store))


# -- what it says --------------------------------------------------------------------------------------------------


def test_sweeps_have_a_state_and_a_question(ask: Client) -> None:
    (row,) = ask.value("/sweeps")["sweeps"]
    assert row["sweep"] == SWEEP and row["about"] == "Is it <there>?" and row["state"] == "imported"
    one = ask.value(f"/sweeps/{SWEEP}")
    assert one["measures"] == ["participation_ratio", "velocity"] and one["events_measure"] == "participation_ratio"
    assert one["analyses"] == ["events", "series_tests"]


def test_trials_are_those_of_the_store_in_json_and_csv(ask: Client, store: Store) -> None:
    found = ask.value(f"/sweeps/{SWEEP}/trials")
    rows = pd.DataFrame(found["rows"], columns=found["columns"])
    assert found["total"] == len(rows) == 8 and rows["status"].value_counts().to_dict() == {"finished": 7, "failed": 1}
    stored = store.sql("SELECT trial_id, final_accuracy FROM outcomes").set_index("trial_id")["final_accuracy"]
    assert rows.set_index("trial")["accuracy"].to_dict() == pytest.approx(stored.to_dict())
    answer = ask(f"/api/v1/sweeps/{SWEEP}/trials.csv")
    assert (
        answer.headers["content-type"].startswith("text/csv") and "attachment" in answer.headers["content-disposition"]
    )
    assert pd.read_csv(io.StringIO(answer.text))["trial"].tolist() == rows["trial"].tolist()


def test_a_map_has_the_measure_that_was_asked_for_with_its_events(ask: Client) -> None:
    found = ask.value(f"/sweeps/{SWEEP}/map", params={"measure": "velocity"})
    assert found["measure"] == "velocity" and [f["title"] for f in found["plate"]["figures"]] == ["cnn", "mlp"]
    default = ask.value(f"/sweeps/{SWEEP}/map")["plate"]
    marks = planted.csv(default["figures"][0]["specs"][0]["layer"][-1])
    assert marks[["row", "seeds"]].to_numpy().tolist() == [[2, 4]]
    assert default["keys"][0][0] == "event" and "found on participation ratio" in default["keys"][0][1]
    assert default["ramp"]["range"] == "diverging"


def test_events_stand_beside_their_null(ask: Client) -> None:
    found = ask.value(f"/sweeps/{SWEEP}/events")
    assert found["claims"][0]["kind"] == "finding" and "5 events survive" in found["claims"][0]["text"]
    cells = found["sheets"][0]
    at = {c: i for i, c in enumerate(cells["columns"])}
    assert sum(row[at["events"]] for row in cells["rows"]) == 5
    assert sum(row[at["null gives"]] for row in cells["rows"]) == pytest.approx(30)
    assert found["plates"] and all(spec for p in found["plates"] for f in p["figures"] for spec in f["specs"])


@pytest.mark.slow
def test_the_report_is_the_one_that_the_command_writes(ask: Client, store: Store) -> None:
    text = ask(f"/sweeps/{SWEEP}/report").text
    assert text.startswith("<!doctype html>") and "5 events survive" in text and "default-src 'none'" in text


def test_tables_have_their_columns_meaning(ask: Client) -> None:
    found = {t["table"]: t for t in ask.value("/tables")["tables"]}
    assert found["measurements"]["rows"] == 2 * SEEDS * 21 + 3 * SEEDS * 21 and "wide" in found
    assert {c["name"]: c["doc"] for c in found["trials"]["columns"]}["trial_id"]
    assert "jumps" not in found, "tables without rows are left out"


def test_what_has_not_changed_is_not_sent_again(ask: Client, tmp_path: Path) -> None:
    for path in ("/sweeps", f"/sweeps/{SWEEP}", f"/sweeps/{SWEEP}/trials", f"/sweeps/{SWEEP}/map", "/tables"):
        first = ask(f"/api/v1{path}")
        again = ask(f"/api/v1{path}", headers={"If-None-Match": first.headers["etag"]})
        assert first.status_code == 200 and again.status_code == 304 and not again.content, path
    store = planted.planted(tmp_path)
    other = Client(create_app(store))
    first = other(f"/api/v1/sweeps/{SWEEP}/trials")
    planted.lesioned(store, compared=False)
    again = other(f"/api/v1/sweeps/{SWEEP}/trials", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 200 and again.json()["total"] == 12


def test_a_running_sweep_is_told_by_its_event_log(tmp_path: Path) -> None:
    store = planted.planted(tmp_path)
    folder, board = Sweep(store.location, SWEEP), Board(store)
    pack = {"pack": "p0", "cell": "mlp", "trials": 4, "steps": 100}
    folder.append_events([progress.event("plan", sweep=SWEEP, finished_trials=0, packs=[pack])])
    assert board.one(SWEEP)["packs"][0]["status"] == "waiting"
    folder.append_events([progress.event("progress", pack="p0", step=25, seed_steps_s=10.0)])
    assert board.one(SWEEP)["packs"][0] == pack | {"step": 25, "status": "running"}
    folder.append_events([progress.event("fail", pack="p0", cell="mlp", error="RuntimeError: planted\nmore")])
    one = board.one(SWEEP)
    assert one["failed_packs"] == 1 and one["failures"] == [
        {"pack": "p0", "cell": "mlp", "error": "RuntimeError: planted\nmore"}
    ]


# -- the console ---------------------------------------------------------------------------------------------------


def run(ask: Client, sql: str, **more: Any) -> httpx.Response:
    return ask("/api/v1/sql", "POST", json={"sql": sql} | more)


def test_a_select_is_answered_with_a_cap_that_is_said(ask: Client) -> None:
    found = run(ask, "SELECT model, count(*) AS n FROM trials GROUP BY 1 ORDER BY 1").json()
    assert found["rows"] == [["cnn", 4], ["mlp", 4]] and found["numeric"] == [False, True] and found["notice"] is None
    capped = run(ask, "SELECT * FROM range(50)", limit=10).json()
    assert len(capped["rows"]) == 10 and "only the first 10 rows" in capped["notice"]
    text = ask("/api/v1/sql.csv", params={"q": "SELECT 1 AS a, 'x,y' AS b"}).text
    assert text == 'a,b\n1,"x,y"\n'
    odd = run(ask, "SELECT 'nan'::DOUBLE AS a, 'inf'::DOUBLE AS b, 9007199254740993 AS c, [1, NULL] AS d").json()
    assert odd["rows"] == [[None, "inf", "9007199254740993", [1, None]]]


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("COPY (SELECT 1) TO 'x.csv'", "one SELECT statement"),
        ("SELECT 1; SELECT 2", "one SELECT statement"),
        ("INSTALL httpfs", "one SELECT statement"),
        ("SELECT * FROM read_csv('/etc/passwd')", "no files"),
        ("SELECT * FROM '/etc/passwd'", "no table"),
        ("SELECT * FROM trails", "did you mean 'trials'"),
        ("SELEKT", "syntax error"),
    ],
)
def test_what_is_not_a_select_over_the_tables_is_refused(ask: Client, sql: str, words: str) -> None:
    for answer in (run(ask, sql), ask("/api/v1/sql.csv", params={"q": sql})):
        value = answer.json()
        assert answer.status_code == 400 and value.keys() == {"ok", "error", "errors", "status"}
        assert value["ok"] is False and value["status"] == 400 and words in value["error"]


SLOW = "SELECT count(*) FROM range(3000000) a, range(3000000) b"


def test_a_query_that_takes_too_long_is_stopped(ask: Client) -> None:
    began = time.perf_counter()
    answer = run(ask, SLOW, timeout=0.3)
    assert answer.status_code == 408 and "stopped after 0.3 s" in answer.json()["error"]
    assert time.perf_counter() - began < 20


def test_a_query_can_be_cancelled_and_few_run_together(store: Store) -> None:
    console, ended = Console(store), list[str]()

    def one(i: int) -> None:
        try:
            console.ask(SLOW, f"q{i}")
        except Stopped as error:
            ended.append(str(error))

    threads = [threading.Thread(target=one, args=(i,)) for i in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 30
    while not all(console._running.get(f"q{i}") for i in range(AT_ONCE)) and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(Busy, match="queries are running already"):
        console.ask("SELECT 1", "another")
    with pytest.raises(Busy, match="of the id 'q0'"):
        console.ask("SELECT 1", "q0")
    while any(thread.is_alive() for thread in threads) and time.monotonic() < deadline:
        assert all(console.cancel(f"q{i}") or not threads[i].is_alive() for i in range(AT_ONCE))
        for thread in threads:
            thread.join(0.2)
    assert ended == ["query cancelled"] * AT_ONCE and not console.cancel("q0")
    assert console.ask("SELECT 1 AS a", "q0")[0].to_pylist() == [{"a": 1}]


# -- errors, access ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "method", "body", "status", "words"),
    [
        ("/api/v1/sweeps/plantet", "GET", None, 404, "did you mean 'planted'"),
        ("/api/v1/sweeps/plantet/map", "GET", None, 404, "did you mean 'planted'"),
        (f"/api/v1/sweeps/{SWEEP}/map?measure=velocities", "GET", None, 400, "did you mean 'velocity'"),
        ("/api/v1/nothing", "GET", None, 404, "Not Found"),
        ("/api/v1/sweeps", "POST", {}, 405, "Method Not Allowed"),
        ("/api/v1/sql", "POST", {}, 422, "body.sql: Field required"),
        ("/api/v1/sql", "POST", {"sql": "SELECT 1", "limit": 10**9}, 422, "body.limit"),
        ("/api/v1/sql", "POST", {"sql": "SELECT 1", "write": True}, 422, "body.write"),
        ("/static/../app.py", "GET", None, 404, ""),
        ("/static/secrets", "GET", None, 404, "no file"),
    ],
)
def test_errors_have_one_shape(ask: Client, path: str, method: str, body: Any, status: int, words: str) -> None:
    answer = ask(path, method, json=body) if body is not None else ask(path, method)
    value = answer.json()
    assert answer.status_code == value["status"] == status and words in value["error"] and value["ok"] is False
    assert bool(value["errors"]) == (status == 422)


def test_what_nobody_foresaw_is_said_without_its_details(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Board, "sweeps", lambda self: 1 / 0)
    answer = Client(create_app(store))("/api/v1/sweeps")
    assert answer.status_code == 500 and answer.json()["error"] == "the service failed; its terminal says why"


def test_without_a_token_only_loopback_names_are_answered(store: Store) -> None:
    app = create_app(store)
    for base in ("http://localhost:8765", "http://[::1]:8765", "http://127.0.0.1"):
        assert Client(app, base)("/api/v1/sweeps").status_code == 200
    assert Client(app, "http://rebound.example")("/api/v1/sweeps").status_code == 421
    foreign = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}
    assert Client(app)("/api/v1/sql", "POST", json={"sql": "SELECT 1"}, headers=foreign).status_code == 403
    followed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert Client(app)("/", headers=followed).status_code == 200, "a link may lead here"


def test_with_a_token_nothing_is_shown_without_it(store: Store) -> None:
    ask = Client(create_app(store, TOKEN), "http://lab.example")
    for path in ("/api/v1/sweeps", "/api/v1/tables", "/api/v1/openapi.json", "/api/v1/nothing"):
        assert ask(path).status_code == 401
        assert ask(path, headers={"Authorization": f"Bearer {TOKEN[:-1]}"}).status_code == 401
    assert ask("/").headers["location"] == ask(f"/sweeps/{SWEEP}/report").headers["location"] == "/login"
    assert ask("/api/v1/sweeps", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    form = ask("/login")
    assert form.status_code == 200 and SWEEP not in form.text and ask("/static/style.css").status_code == 200
    assert ask("/login", "POST", data={"token": "wrong"}).status_code == 401
    entered = ask("/login", "POST", data={"token": TOKEN})
    cookie = entered.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and TOKEN.lower() not in cookie
    assert ask("/api/v1/sweeps").status_code == 200, "the cookie"
    other = Client(create_app(store, TOKEN), "http://lab.example")
    other.cookies = ask.cookies
    assert other("/api/v1/sweeps").status_code == 401, "a session ends with its service"


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True), ("localhost", True), ("0.0.0.0", False),
     ("::", False), ("10.0.0.1", False), ("example.org", False), ("", False), ("localhost.example.org", False)],
)  # fmt: skip
def test_which_addresses_reach_this_machine_alone(host: str, is_loopback: bool) -> None:
    assert loopback(host) == is_loopback


def test_it_listens_elsewhere_only_with_a_token() -> None:
    with pytest.raises(SpecError, match="does not listen on 0.0.0.0 without a token"):
        listen("0.0.0.0", 0, None)
    with listen("0.0.0.0", 0, TOKEN) as bound:
        assert bound.getsockname()[0] == "0.0.0.0"
    with listen("127.0.0.1", 0, None) as bound:
        assert address_of(bound) == f"http://127.0.0.1:{bound.getsockname()[1]}/"
        bound.listen()
        with pytest.raises(SpecError, match="give another --port"):
            listen("127.0.0.1", bound.getsockname()[1], None)


def test_tokens_come_from_a_file_or_the_environment_and_are_long(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert read_token(str(file), "other") == TOKEN and read_token(None, f" {TOKEN} ") == TOKEN
    assert read_token(None, None) is read_token(None, "") is None
    file.write_text("\n")
    for path, given in (
        (str(file), TOKEN),
        (str(tmp_path / "none"), None),
        (None, "x" * (SHORTEST - 1)),
        (None, "é" * 20),
    ):
        with pytest.raises(SpecError):
            read_token(path, given)


def test_the_command_refuses_before_it_starts(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NDT_TOKEN", raising=False)
    with pytest.raises(SystemExit) as end:
        main(["serve", "--store", store.location.root, "--host", "0.0.0.0"])
    assert end.value.code == 2 and "without a token" in capsys.readouterr().err
    monkeypatch.setenv("NDT_TOKEN", "short")
    with pytest.raises(SystemExit) as end:
        main(["serve", "--store", store.location.root])
    said = capsys.readouterr().err
    assert end.value.code == 2 and "16 ASCII characters" in said and "short" not in said


# -- pages ---------------------------------------------------------------------------------------------------------


def test_pages_ask_no_other_address(ask: Client) -> None:
    for path in ("/", "/docs"):
        answer = ask(path)
        assert answer.status_code == 200 and "http://" not in answer.text and "https://" not in answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    page = ask("/docs").text
    described = json.loads(ask("/api/v1/openapi.json").text)["paths"]
    assert len(described) >= 9 and all(f"{path}</code>" in page for path in described)
    assert ask("/redoc").status_code == 404


def test_files_of_the_pages_are_served_and_remembered(ask: Client) -> None:
    for name, kind in FILES.items():
        if name == "vega.js":
            continue
        answer = ask(f"/static/{name}")
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(kind) and answer.text
        assert "http" not in answer.text.replace("http-equiv", ""), name
        assert ask(f"/static/{name}", headers={"If-None-Match": answer.headers["etag"]}).status_code == 304


def test_every_package_and_the_pages_files_are_in_the_wheel() -> None:
    root = Path(__file__).parents[2]
    settings = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {"ndt_ray.sweeps"}
    for top, package in ((root / "ndt_ray", "ndt_ray"), (root / "analysis", "ndt_ray.analysis")):
        inside = [path.parent.relative_to(top).parts for path in top.rglob("__init__.py")]
        found |= {".".join((package, *parts)) for parts in inside}
    assert set(settings["packages"]) == found
    for package in ("service", "report"):
        (pattern,) = settings["package-data"][f"ndt_ray.{package}"]
        folder = root / "ndt_ray" / package
        assert set(folder.glob(pattern)) == {path for path in (folder / "templates").rglob("*") if path.is_file()}


def test_values_are_json() -> None:
    assert json_value({"a": (1, float("-inf"))}) == {"a": [1, "-inf"]}
    assert json_value(2**53) == 2**53 and json_value(2**53 + 1) == str(2**53 + 1) and json_value(True) is True


@pytest.fixture(scope="module", autouse=True)
def closed(store: Store) -> Iterator[None]:
    yield
    store.close()
