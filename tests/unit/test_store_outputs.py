"""Outputs of analyses: invisible until committed, replaced by key, safe under several committers."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from store_rows import local, object_store

from ndt_ray.errors import SpecError, StoreError
from ndt_ray.store.outputs import Outputs, write_output
from ndt_ray.store.reader import Store
from ndt_ray.store.schema import TABLES, Column, Table, register_table

TOYS = Table(
    "toys",
    "Toys.",
    (Column("trial_id", "string", ""), Column("n", "int32", ""), Column("value", "float64", "")),
    ("trial_id", "n"),
)


@pytest.fixture(autouse=True)
def _toys() -> Iterator[None]:
    register_table(TOYS)
    yield
    del TABLES["toys"]


@pytest.fixture(params=[local, object_store])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return request.param(tmp_path)


def rows(trial: str, n: int) -> dict:
    return {"trial_id": trial, "n": np.arange(n)[::-1], "value": np.full(n, np.nan)}


def shown(store: Store) -> list[tuple[str, int]]:
    found = store.arrow("SELECT trial_id, count(*) AS n FROM toys GROUP BY ALL ORDER BY ALL").to_pylist()
    return [(r["trial_id"], r["n"]) for r in found]


def test_outputs_appear_when_committed_and_are_replaced_by_key(store: Store) -> None:
    assert shown(store) == []
    outputs = Outputs(store, "s", "jumps")
    first = outputs.write("a", {"toys": rows("a", 3)}, cache_key="1", source="g1")
    assert shown(store) == [] and outputs.entries() == {}
    outputs.commit([first])
    assert shown(store) == [("a", 3)]
    assert outputs.entries()["a"].cache_key == "1" and outputs.entries()["a"].meta == {"source": "g1"}
    write_output(store, "s", "jumps", "a", {"toys": rows("a", 5)}, cache_key="2")
    write_output(store, "s", "jumps", "trial=b, layer 'x'", {"toys": rows("b", 2)}, cache_key="2")
    write_output(store, "s", "other", "a", {"toys": rows("c", 1)}, cache_key="2")
    assert shown(store) == [("a", 5), ("b", 2), ("c", 1)]
    assert len(store.location.files("data")) == 3
    outputs.commit([], drop=["a"])
    assert shown(store) == [("b", 2), ("c", 1)]
    assert set(store.table("toys").columns) == {"trial_id", "n", "value", "sweep"}
    assert store.sql("SELECT value FROM toys").value.isna().all()


def test_an_output_without_rows_is_still_done(store: Store) -> None:
    write_output(store, "s", "jumps", "quiet", {"toys": rows("q", 0)}, cache_key="1")
    assert shown(store) == [] and Outputs(store, "s", "jumps").entries()["quiet"].parts[0].rows == 0


def test_a_table_that_was_found_empty_is_there_for_a_reader_who_does_not_know_it(store: Store) -> None:
    write_output(store, "s", "jumps", "a", {"toys": rows("a", 0)}, cache_key="1")
    write_output(store, "s", "jumps", "b", {"toys": rows("b", 0)}, cache_key="1")
    known = TABLES.pop("toys")
    try:
        assert shown(store) == [] and list(store.table("toys").columns) == ["trial_id", "n", "value", "sweep"]
        TABLES["toys"] = known
        write_output(store, "s", "jumps", "c", {"toys": rows("c", 2)}, cache_key="1")
        del TABLES["toys"]
        assert shown(store) == [("c", 2)]
    finally:
        TABLES["toys"] = known


def test_an_arrow_table_is_taken_if_its_columns_are_right(store: Store) -> None:
    table = pa.table({"n": pa.array([2, 1], pa.int64()), "value": [0.5, 1.5], "trial_id": ["a", "a"]})
    write_output(store, "s", "jumps", "a", {"toys": table}, cache_key="1")
    assert store.sql("SELECT n, value FROM toys ORDER BY n").values.tolist() == [[1, 1.5], [2, 0.5]]
    for bad in (table.drop_columns("n"), table.append_column("m", [[1, 2]]), table.set_column(0, "n", [["x", "y"]])):
        with pytest.raises(SpecError, match="toys"):
            write_output(store, "s", "jumps", "a", {"toys": bad}, cache_key="1")
    with pytest.raises(SpecError, match="did you mean 'toys'"):
        write_output(store, "s", "jumps", "a", {"toy": table}, cache_key="1")


def test_a_table_whose_analysis_is_not_loaded_is_still_read(store: Store) -> None:
    write_output(store, "s", "jumps", "a", {"toys": rows("a", 3)}, cache_key="1")
    known = TABLES.pop("toys")
    try:
        assert shown(store) == [("a", 3)] and "toys" in store.names()
    finally:
        TABLES["toys"] = known


def test_committers_in_parallel_lose_nothing(store: Store) -> None:
    failed: list[BaseException] = []

    def commit(who: int) -> None:
        try:
            for n in range(4):
                key = f"{who}-{n}"
                write_output(store, "s", "jumps", key, {"toys": rows(key, 1)}, cache_key="1")
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=commit, args=[n]) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(Outputs(store, "s", "jumps").entries()) == 16 == len(shown(store))


def test_a_foreign_index_is_named(tmp_path: Path) -> None:
    store = local(tmp_path)
    write_output(store, "s", "jumps", "a", {"toys": rows("a", 1)}, cache_key="1")
    foreign = tmp_path / "store/outputs/s/jumps/index-000099.json"
    foreign.write_text("{}")
    with pytest.raises(StoreError, match="index-000099.json is not an index"):
        shown(store)
