"""Exports: each format read back by another reader, whole or not at all."""

import csv
import errno
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from store_rows import STEPS, TRIALS, local, train

from ndt_ray.errors import SpecError, StoreError
from ndt_ray.store import filesystem
from ndt_ray.store.export import export
from ndt_ray.store.reader import Store
from ndt_ray.store.writer import PackWriter

QUERY = "SELECT trial_id, step, eigenvalues, trace, n_rows FROM spectra WHERE layer_index = 0 ORDER BY trial_id, step"
ROWS = (STEPS + 1) * len(TRIALS)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    found = local(tmp_path_factory.mktemp("export"))
    train(PackWriter(found, "s", "p0"), lambda step: False)
    return found


def test_every_format_holds_the_same_rows(store: Store, tmp_path: Path) -> None:
    expected = store.arrow(QUERY)
    for suffix in ("csv", "parquet", "json", "arrow"):
        path = tmp_path / "new folder" / f"x.{suffix}"
        assert export(store, QUERY, path) == ROWS
        if suffix == "parquet":
            assert pa.parquet.read_table(path).equals(expected)
        elif suffix == "arrow":
            assert pa.ipc.open_file(path).read_all().equals(expected)
        elif suffix == "json":
            assert json.loads(path.read_text()) == expected.to_pylist()
        else:
            read = list(csv.DictReader(io.StringIO(path.read_text())))
            assert [int(r["step"]) for r in read] == expected["step"].to_pylist()
            assert json.loads(read[0]["eigenvalues"]) == pytest.approx(expected["eigenvalues"][0].as_py())
            assert read[0]["n_rows"] == ""
    assert sorted(p.name for p in path.parent.iterdir()) == ["x.arrow", "x.csv", "x.json", "x.parquet"]


def test_a_table_name_is_enough_and_rows_can_be_capped(store: Store, tmp_path: Path) -> None:
    assert export(store, "scalars", tmp_path / "x.csv") == ROWS == len(pd.read_csv(tmp_path / "x.csv"))
    assert export(store, "scalars", tmp_path / "x.csv", limit=3) == 3 == len(pd.read_csv(tmp_path / "x.csv"))
    assert export(store, "wide", tmp_path / "data", format="parquet") == 2 * ROWS
    assert export(store, "curvature", tmp_path / "empty.json") == 0
    assert json.loads((tmp_path / "empty.json").read_text()) == []


def test_an_open_stream_will_do(store: Store) -> None:
    stream = io.BytesIO()
    assert export(store, "trials", stream, "csv") == len(TRIALS)
    assert stream.getvalue().startswith(b'"trial_id"')


def test_json_has_no_nan(store: Store, tmp_path: Path) -> None:
    export(store, "SELECT 'NaN'::DOUBLE AS a, 'inf'::FLOAT AS b, [1.5, 'NaN'::DOUBLE] AS c", tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text()) == [{"a": None, "b": None, "c": [1.5, None]}]


@pytest.mark.parametrize(
    ("query", "name", "message"),
    [
        ("trials", "x.xlsx", "unknown format"),
        ("trails", "x.csv", "did you mean 'trials'"),
        ("DROP TABLE trials", "x.csv", "one SELECT"),
    ],
)
def test_mistakes(store: Store, tmp_path: Path, query: str, name: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        export(store, query, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", ["csv", "parquet", "json", "arrow"])
def test_a_full_disk_leaves_the_old_file(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"x.{suffix}"
    path.write_text("old")

    def fail(file: Any, data: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(filesystem, "write_all", fail)
    with pytest.raises(StoreError, match="disk is full"):
        export(store, "trials", path)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_numpy_types_survive(store: Store, tmp_path: Path) -> None:
    export(store, QUERY, tmp_path / "x.parquet")
    assert np.stack(pd.read_parquet(tmp_path / "x.parquet").eigenvalues).dtype == np.float32
