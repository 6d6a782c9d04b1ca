"""Other people's SQL: SELECT only, nothing outside the store, capped, cancellable, with DuckDB's own messages."""

import threading
import time
from pathlib import Path

import duckdb
import pandas as pd
import pytest
from store_rows import STEPS, TRIALS, local, train

from ndt_ray.errors import SpecError, StoreError
from ndt_ray.store.reader import Store
from ndt_ray.store.writer import PackWriter

ENDLESS = "SELECT count(*) FROM range(10000000) a, range(10000000) b WHERE a.range * b.range % 7 = 3"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    found = local(tmp_path_factory.mktemp("sandbox"))
    train(PackWriter(found, "s", "p0"), lambda step: False)
    return found


@pytest.mark.parametrize(
    "query",
    [
        "SELECT model, avg(stable_rank) FROM wide GROUP BY ALL",
        "WITH a AS (SELECT * FROM trials) SELECT * FROM a JOIN scalars USING (trial_id)",
        "FROM trials",
        "VALUES (1)",
        "DESCRIBE measurements",
        "SUMMARIZE trials",
        "SHOW TABLES",
        "SELECT * FROM information_schema.columns",
        "SELECT step, lag(probe_loss) OVER (PARTITION BY trial_id ORDER BY step) FROM scalars",
        "SELECT unnest(eigenvalues) FROM spectra",
        "SELECT * FROM trials NATURAL JOIN outcomes",
        "PIVOT wide ON layer IN ('network.0') USING avg(stable_rank) GROUP BY step",
        "SELECT * FROM range(3);",
        "SELECT error FROM attempts UNION ALL SELECT about FROM sweeps",
        "SELECT (SELECT count(*) FROM outcomes) AS n, list_transform([1], lambda x: x + 1)",
    ],
)
def test_what_researchers_ask_works(store: Store, query: str) -> None:
    assert len(store.sql(query)) > 0


@pytest.mark.parametrize(
    "query",
    [
        "COPY trials TO '{root}/data/x.parquet'",
        "EXPLAIN ANALYZE COPY trials TO '{root}/x.parquet'",
        "ATTACH '{root}/x.db'",
        "CREATE TABLE x (i INT)",
        "DROP VIEW trials",
        "SET threads = 1",
        "PRAGMA database_list",
        "CALL enable_logging()",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SELECT 1; DROP VIEW trials",
        "SELECT 1; SELECT 2",
        "",
        "-- nothing",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('{outside}')",
        "SELECT * FROM read_text('{root}/../outside.txt')",
        "SELECT * FROM read_text('{root}/link')",
        "SELECT * FROM '{outside}'",
        "SELECT * FROM '/etc/passwd.csv'",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM parquet_metadata('{outside}')",
        "SELECT * FROM query('SELECT 1')",
        "SELECT (SELECT content FROM read_text('{outside}'))",
        "SELECT * FROM trials WHERE trial_id IN (SELECT content FROM read_text('{outside}'))",
        "WITH a AS (SELECT * FROM read_blob('{outside}')) SELECT * FROM a",
        "DESCRIBE SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM arrow_scan(1, 2, 3)",
        "SELECT * FROM python_map_function()",
        "SELECT * FROM duckdb_secrets()",
        "SELECT * FROM 'https://example.org/x.parquet'",
        "SELECT * FROM frame_of_the_caller",
    ],
)
def test_what_is_refused(store: Store, tmp_path: Path, query: str) -> None:
    frame_of_the_caller = pd.DataFrame({"a": [1]})
    assert len(frame_of_the_caller)
    root = Path(store.location.root)
    outside = root.parent / "outside.txt"
    outside.write_text("secret")
    if not (root / "link").is_symlink():
        (root / "link").symlink_to(outside)
    before = sorted(root.rglob("*"))
    with pytest.raises(SpecError) as caught:
        store.sql(query.format(root=root, outside=outside))
    assert "secret" not in str(caught.value).replace("duckdb_secrets", "")
    assert sorted(root.rglob("*")) == before
    assert len(store.sql("SELECT * FROM trials")) == len(TRIALS)


def test_duckdb_alone_would_refuse_files_outside_too(store: Store, tmp_path: Path) -> None:
    """The second lock holds where the first one is blind."""
    (tmp_path / "secret.txt").write_text("x")
    database = store._open()
    cursor = database._connection.cursor()
    frame = pd.DataFrame({"a": [1]})
    assert len(frame)
    for query, message in [
        (f"SELECT * FROM read_text('{tmp_path}/secret.txt')", "disabled by configuration"),
        ("SET enable_external_access = true", "locked"),
        ("SELECT * FROM frame", "frame does not exist"),
    ]:
        with pytest.raises(duckdb.Error, match=message):
            cursor.execute(query)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("SELEC 1", "syntax error at or near"),
        ("SELECT primary FROM t", 'primary is a word of SQL: a column of that name is written "primary"'),
        ("SELECT stable_rnk FROM measurements", "stable_rnk"),
        ("SELECT * FROM measurement", "did you mean 'measurements'"),
        ("SELECT * FROM trials WHERE trial_id = ?", "parameter"),
        ("SELECT 'x'::INT", "Could not convert"),
        ("INSERT INTO trials VALUES (1)", "one SELECT statement, but this is INSERT"),
    ],
)
def test_mistakes_are_explained(store: Store, query: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        store.sql(query)


def test_parameters(store: Store) -> None:
    assert store.sql("SELECT lane FROM trials WHERE trial_id = ?", [TRIALS[1]]).lane.tolist() == [1]
    assert store.sql("SELECT lane FROM trials WHERE trial_id = $id", {"id": TRIALS[1]}).lane.tolist() == [1]
    assert len(store.sql("SELECT * FROM trials WHERE trial_id = ?", ["' OR true --"])) == 0


def test_the_row_cap_says_that_there_is_more(store: Store) -> None:
    frame = store.sql("SELECT step FROM scalars ORDER BY step, trial_id", limit=3)
    assert frame.step.tolist() == [0, 0, 1]
    assert frame.attrs["ndt_notice"] == "only the first 3 rows are shown; there are more"
    whole = store.sql("SELECT step FROM scalars", limit=(STEPS + 1) * len(TRIALS))
    assert len(whole) == (STEPS + 1) * len(TRIALS) and not whole.attrs
    begin = time.perf_counter()
    assert len(store.sql("SELECT * FROM range(100000000000)", limit=10)) == 10
    assert time.perf_counter() - begin < 2


def test_a_runaway_query_ends_in_time(store: Store) -> None:
    begin = time.perf_counter()
    with pytest.raises(StoreError, match=r"stopped after 0\.2 s"):
        store.sql(ENDLESS, timeout=0.2)
    assert time.perf_counter() - begin < 2
    assert len(store.sql("SELECT * FROM trials", timeout=60)) == len(TRIALS)


def test_a_query_is_cancelled_from_another_thread(store: Store) -> None:
    caught: list[BaseException] = []

    def ask() -> None:
        try:
            store.sql(ENDLESS)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while not store._running:
        time.sleep(0.01)
    store.cancel()
    thread.join(5)
    assert not thread.is_alive()
    assert isinstance(caught[0], StoreError) and "cancelled" in str(caught[0])
    assert len(store.sql("SELECT * FROM trials")) == len(TRIALS)


def test_a_large_result_is_cancelled_between_batches(store: Store) -> None:
    def use(query):  # type: ignore[no-untyped-def]
        with query.batches() as (_, batches):
            next(batches)
            query.cancel("enough")
            return list(batches)

    with pytest.raises(StoreError, match="enough"):
        store.reading("SELECT * FROM range(100000000000)", None, use)


def test_a_closed_store_opens_again(store: Store) -> None:
    store.close()
    with store:
        assert len(store.sql("SELECT * FROM trials")) == len(TRIALS)
