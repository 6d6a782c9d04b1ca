"""Many parts of one table into one sorted file, in bounded memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ndt_ray.errors import StoreError
from ndt_ray.store.filesystem import Location
from ndt_ray.store.manifests import Part
from ndt_ray.store.parquet import SortedWriter, first_duplicate, sort
from ndt_ray.store.schema import Precision, Table, fingerprint

MEMORY = 512 << 20
"""Decoded bytes held at a time; beyond it the parts are read once for every so many trials."""


def merge(
    location: Location,
    table: Table,
    parts: Sequence[Part],
    path: str,
    *,
    unique: bool,
    more: pa.Table | None = None,
    precision: Precision = "float32",
) -> Part:
    """Write the rows of `parts` to one file, sorted by the table's order; which bytes depends on the rows alone.

    `more` rows, of this precision, come from no part. With `unique`, StoreError if two rows share their key. StoreError
    too if a part cannot be read.
    """
    if any(p.precision == "float64" for p in parts):
        precision = "float64"
    schema = table.arrow(precision)
    with location.writing(path) as stream, SortedWriter(stream, schema) as writer:
        for rows in _trials(location, table, parts, schema, more):
            if unique and (key := first_duplicate(rows, table)):
                raise StoreError(f"table {table.name}: two rows have the key {key} - report this, it is a defect")
            writer.add(rows)
    level = max((p.level for p in parts), default=0) + 1
    return Part(table.name, path, writer.rows, stream.bytes, stream.sha256, fingerprint(schema), precision, level)


def _trials(
    location: Location, table: Table, parts: Sequence[Part], schema: pa.Schema, more: pa.Table | None
) -> Iterator[pa.Table]:
    """The sorted rows of one trial after the other."""
    key = table.order[0]
    sources: list[_Source | _Held] = [_Source(location, part, schema) for part in parts]
    if more is not None:
        sources.append(_Held(more.cast(schema)))
    size = sum(source.bytes for source in sources)
    if size <= MEMORY:
        yield from _split(sort(pa.concat_tables([g for s in sources for g in s.groups()]), table), key)
        return
    ids = sorted({value for s in sources for g in s.groups([key]) for value in pc.unique(g[key]).to_pylist()})
    at_once = max(len(ids) * MEMORY // size, 1)
    for first in range(0, len(ids), at_once):
        wanted = pa.array(ids[first : first + at_once])
        held = [g.filter(pc.is_in(g[key], wanted)) for s in sources for g in s.groups()]
        yield from _split(sort(pa.concat_tables(held), table), key)


def _split(rows: pa.Table, key: str) -> Iterator[pa.Table]:
    """Runs of equal key of sorted rows."""
    if not rows.num_rows:
        return
    start = 0
    for end in pc.run_end_encode(rows[key].combine_chunks()).run_ends.to_pylist():
        yield rows.slice(start, end - start)
        start = end


class _Held:
    """Rows that are in memory already."""

    def __init__(self, rows: pa.Table) -> None:
        self._rows = rows
        self.bytes = rows.nbytes

    def groups(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        yield self._rows.select(columns) if columns else self._rows


class _Source:
    """A committed part, read in today's columns (a part of an older program may lack some)."""

    def __init__(self, location: Location, part: Part, schema: pa.Schema) -> None:
        self._where = location.absolute(part.path)
        self._filesystem = location.filesystem
        self._schema = schema
        with self._open() as file:
            meta = file.metadata
            self.bytes = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))

    def groups(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Row group after row group; all columns, or some as they are stored."""
        with self._open() as file:
            for i in range(file.metadata.num_row_groups):
                rows = file.read_row_group(i, columns=columns)
                yield rows if columns else self._conform(rows)

    @contextmanager
    def _open(self) -> Iterator[pq.ParquetFile]:
        try:
            with self._filesystem.open_input_file(self._where) as source, pq.ParquetFile(source) as file:
                yield file
        except (OSError, pa.ArrowException) as error:
            raise StoreError(
                f"{self._where} is committed but missing or torn - put it back from a copy, or remove its pack's "
                "folder in commits/ and run the same command: the pack is trained again"
            ) from error

    def _conform(self, rows: pa.Table) -> pa.Table:
        names, n = set(rows.column_names), rows.num_rows
        columns = [rows[f.name].cast(f.type) if f.name in names else pa.nulls(n, f.type) for f in self._schema]
        return pa.table(columns, schema=self._schema)
