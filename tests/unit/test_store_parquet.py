"""Bytes on disk, and the round trip of every type of every table."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from store_rows import local, part_files

from ndt_ray.store import compaction
from ndt_ray.store.parquet import encode, options
from ndt_ray.store.reader import open_store
from ndt_ray.store.schema import MEASURES, TABLES, Table, fingerprint, register_table
from ndt_ray.store.writer import PackWriter

LAYERS = 5
SEEDS = 5
STEPS = 800


def walks(n: int, seed: int = 0) -> np.ndarray:
    """Dimensionality as training shows it: a slow drift with noise in all bits, [layers × seeds, steps]."""
    noise = np.random.default_rng(seed).standard_normal((n, STEPS))
    return np.asarray(20 * np.exp(np.cumsum(0.006 * noise, axis=1)), np.float32)


def write_series(writer: PackWriter, columns: dict[str, np.ndarray]) -> None:
    """Rows [layer, seed, step] of `measurements`."""
    trials = np.repeat([f"{s:016x}" for s in range(7, 7 + SEEDS)], STEPS)
    for layer in range(LAYERS):
        place = {"layer": f"network.{2 * layer}", "layer_index": layer, "view": "units", "n_stimuli": 256}
        rows = {name: values[layer].reshape(-1) for name, values in columns.items()}
        writer.rows("measurements", {"trial_id": trials, "step": np.tile(np.arange(STEPS) * 5, SEEDS), **place, **rows})


def test_six_measures_and_energy_90_take_at_most_20_bytes_a_row(tmp_path: Path) -> None:
    store = local(tmp_path)
    writer = PackWriter(store, "s", "p0")
    shape = (LAYERS, SEEDS, STEPS)
    names = [name for name, _, _, _ in MEASURES if name != "energy_90"]
    columns = {name: walks(LAYERS * SEEDS, i).reshape(shape) for i, name in enumerate(names)}
    columns["energy_90"] = (columns["rankme"] * 0.7).astype(np.int16)
    write_series(writer, columns)
    writer.commit(1, None, finished=True)
    (path,) = part_files(store, "measurements")
    a_row = path.stat().st_size / (LAYERS * SEEDS * STEPS)
    assert len(names) == 6 and a_row <= 20

    further = PackWriter(store, "s", "p1")
    write_series(further, {**columns, "participation_ratio_corrected": walks(LAYERS * SEEDS, 9).reshape(shape)})
    further.commit(1, None, finished=True)
    bigger = part_files(store, "measurements")[1].stat().st_size / (LAYERS * SEEDS * STEPS)
    assert bigger - a_row <= 4


def test_encodings_are_the_measured_ones(tmp_path: Path) -> None:
    rows = pa.table([pa.array([], f.type) for f in TABLES["spectra"].arrow()], schema=TABLES["spectra"].arrow())
    chosen = options(rows.schema)
    assert chosen["column_encoding"]["step"] == "DELTA_BINARY_PACKED"
    assert chosen["column_encoding"]["eigenvalues.list.element"] == "BYTE_STREAM_SPLIT"
    assert {"trial_id", "layer", "layer_index", "n_stimuli"} <= set(chosen["use_dictionary"])
    for docs in (True, False):
        file = pq.ParquetFile(pa.BufferReader(encode(rows, docs=docs)))
        assert file.schema_arrow.names == rows.schema.names
        assert file.metadata.metadata[b"ndt_table"] == b"spectra"
        assert (b"doc" in (file.schema_arrow.field("trace").metadata or {})) == docs


def example(table: Table) -> pa.Table:
    """Two rows with a value of the right type in every column."""
    columns = []
    for field in table.arrow():
        if pa.types.is_list(field.type):
            columns.append(pa.array([[1.5, 2.5], None], field.type))
        elif pa.types.is_string(field.type):
            columns.append(pa.array(["é'\"", "b"], field.type))
        elif pa.types.is_boolean(field.type):
            columns.append(pa.array([True, None], field.type))
        else:
            columns.append(pa.array([1, 2], field.type))
    return pa.table(columns, schema=table.arrow())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(name for name, table in TABLES.items() if table.origin == "pack"))
def test_every_table_comes_back_as_it_was_written(tmp_path: Path, name: str) -> None:
    store = local(tmp_path)
    writer = PackWriter(store, "s", "p0")
    rows = example(TABLES[name])
    writer.rows(name, {c: rows[c].to_pylist() for c in rows.column_names})
    writer.commit(0, {"w": np.ones(1)})
    columns = ", ".join(f'"{c}"' for c in rows.column_names)
    order = ", ".join(TABLES[name].order)
    expected = rows.sort_by([(c, "ascending") for c in TABLES[name].order]).to_pylist()
    assert store.arrow(f"SELECT {columns} FROM {name} ORDER BY {order}").to_pylist() == expected
    again = PackWriter(store, "s", "p0")
    again.commit(1, None, finished=True)
    assert open_store(tmp_path / "store").arrow(f"SELECT {columns} FROM {name}").to_pylist() == expected


def test_compaction_in_little_memory_writes_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for n, memory in enumerate((1 << 30, 1)):
        monkeypatch.setattr(compaction, "MEMORY", memory)
        store = local(tmp_path, f"store-{n}")
        writer = PackWriter(store, "s", "p0")
        values = walks(LAYERS * SEEDS).reshape(LAYERS, SEEDS, STEPS)
        for first in range(0, STEPS, 200 if n else 400):
            trials = np.repeat([f"{s:04x}" for s in range(SEEDS)], 200 if n else 400)
            steps = np.arange(first, first + (200 if n else 400))
            rows = {"step": np.tile(steps, SEEDS), "stable_rank": values[0][:, steps].reshape(-1)}
            place = {"trial_id": trials, "layer": "l", "layer_index": 0, "view": "units"}
            writer.rows("measurements", {**place, **rows})
            writer.commit(first, {"w": np.ones(1)})
        writer.commit(STEPS, None, finished=True)
        found.append(store.snapshot().parts["measurements"][0].sha256)
    assert found[0] == found[1]


def test_fingerprints_tell_columns_apart() -> None:
    table = TABLES["measurements"]
    assert fingerprint(table.arrow("float32")) != fingerprint(table.arrow("float64"))
    assert fingerprint(table.arrow()) != fingerprint(TABLES["spectra"].arrow())


def test_every_key_is_a_column_and_every_pack_table_starts_with_the_trial() -> None:
    for table in TABLES.values():
        assert set(table.order) <= {c.name for c in table.columns}
        assert table.origin == "analysis" or table.order[0] == "trial_id"


def test_tables_are_registered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from ndt_ray.store.schema import Column

    known = dict(TABLES)
    try:
        table = Table("toys", "Toys.", (Column("trial_id", "string", ""), Column("n", "int32", "")), ("trial_id",))
        assert register_table(table).origin == "analysis"
        register_table(table)
        for columns, order in [
            ((Column("n", "int32", ""),), ()),
            ((Column("sweep", "string", ""),), ()),
            ((Column("n", "int32", ""), Column("n", "int64", "")), ()),
            ((Column("n", "int32", ""),), ("m",)),
        ]:
            with pytest.raises(ValueError, match="toys"):
                register_table(Table("toys", "Toys.", columns, order))
        with pytest.raises(ValueError, match="attempts"):
            register_table(Table("attempts", "", table.columns, ()))
    finally:
        TABLES.clear()
        TABLES.update(known)
