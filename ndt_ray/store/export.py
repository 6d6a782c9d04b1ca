"""Query results as files: CSV, Parquet, JSON or Arrow, whole or not at all."""

import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from ndt_ray.errors import SpecError
from ndt_ray.store.filesystem import Stream, explained, replacing
from ndt_ray.store.parquet import options
from ndt_ray.store.reader import Store

Format = Literal["csv", "parquet", "json", "arrow"]

_SUFFIXES: dict[str, Format] = {
    ".csv": "csv",
    ".parquet": "parquet",
    ".json": "json",
    ".arrow": "arrow",
    ".feather": "arrow",
}


def export(
    store: Store,
    query_or_table: str,
    path: str | Path | BinaryIO,
    format: Format | None = None,
    *,
    limit: int | None = None,
) -> int:
    """Write the rows of a table, or of a SELECT, to a file (or an open binary stream); returns how many.

    The format is that of the suffix unless given. JSON is an array with one object a line; CSV holds lists as JSON.
    SpecError for a bad query or an unknown format, StoreError if the file cannot be written.
    """
    kind = format or (_SUFFIXES.get(Path(path).suffix.lower()) if isinstance(path, str | Path) else None)
    if kind not in _WRITERS:
        raise SpecError(f"{path}: unknown format ({format=}) - choose one of {', '.join(_WRITERS)}")
    query = query_or_table
    if re.fullmatch(r"\w+", query.strip()):
        query = f'SELECT * FROM "{query.strip()}"'

    def write(running: Any) -> int:
        with running.batches() as (schema, batches), _opened(path) as stream:
            return _WRITERS[kind](schema, _capped(batches, limit), stream)

    return store.reading(query, None, write)


@contextmanager
def _opened(path: str | Path | BinaryIO) -> Iterator[Stream]:
    if not isinstance(path, str | Path):
        yield Stream(path)
        return
    try:
        with replacing(Path(path)) as file:
            yield Stream(file)
    except OSError as error:
        raise explained(error, "write", str(path)) from error


def _capped(batches: Iterator[pa.RecordBatch], limit: int | None) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        if limit is not None:
            batch = batch.slice(0, limit)
            limit -= batch.num_rows
        yield batch
        if limit == 0:
            return


def _csv(schema: pa.Schema, batches: Iterator[pa.RecordBatch], stream: Stream) -> int:
    flat = pa.schema([pa.field(f.name, pa.string() if _nested(f.type) else f.type) for f in schema])
    rows = 0
    with pacsv.CSVWriter(pa.PythonFile(stream, "w"), flat) as writer:
        for batch in batches:
            columns = [_as_json(c) if _nested(c.type) else c for c in batch.columns]
            writer.write_batch(pa.record_batch(columns, schema=flat))
            rows += batch.num_rows
    return rows


def _parquet(schema: pa.Schema, batches: Iterator[pa.RecordBatch], stream: Stream) -> int:
    rows = 0
    with pq.ParquetWriter(stream, schema, **options(schema)) as writer:
        for batch in batches:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


def _arrow(schema: pa.Schema, batches: Iterator[pa.RecordBatch], stream: Stream) -> int:
    rows = 0
    with pa.ipc.new_file(pa.PythonFile(stream, "w"), schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


def _json(schema: pa.Schema, batches: Iterator[pa.RecordBatch], stream: Stream) -> int:
    rows = 0
    stream.write(b"[")
    for batch in batches:
        for row in batch.to_pylist():
            stream.write((",\n" if rows else "\n").encode() + json.dumps(_finite(row), default=str).encode())
            rows += 1
    stream.write(b"\n]\n")
    return rows


def _nested(kind: pa.DataType) -> bool:
    return bool(pa.types.is_nested(kind))


def _as_json(column: pa.Array) -> pa.Array:
    texts = [None if v is None else json.dumps(_finite(v), default=str) for v in column.to_pylist()]
    return pa.array(texts, pa.string())


def _finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity: null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value


_WRITERS: dict[str, Callable[[pa.Schema, Iterator[pa.RecordBatch], Stream], int]] = {
    "csv": _csv,
    "parquet": _parquet,
    "json": _json,
    "arrow": _arrow,
}
