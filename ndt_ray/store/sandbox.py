"""Other people's SQL, shut in: one SELECT, over the store's tables, with a row cap, and it can be cancelled.

DuckDB's own lock (no external access but the store's directory, no extensions, no change of configuration) still lets
`COPY … TO`, `ATTACH` and the pointer-taking table functions through; so the parsed statement is looked at too.
"""

import json
import os
import re
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from ndt_ray.errors import SpecError, StoreError
from ndt_ray.store.filesystem import Location
from ndt_ray.store.views import View, quote

NOTICE = "ndt_notice"
"""Key of the notice about a capped result: in Arrow schema metadata, and in `DataFrame.attrs`."""

Parameters = Sequence[Any] | Mapping[str, Any] | None

BATCH_ROWS = 100_000
_FUNCTIONS = {"range", "generate_series", "unnest", "repeat", "json_each", "json_tree", "duckdb_functions"}
_CATALOG = {"information_schema", "duckdb_columns", "duckdb_tables", "duckdb_views", "pg_catalog"}


@dataclass(frozen=True)
class Parsed:
    """A SELECT statement. All names in lower case, as SQL does not tell case."""

    text: str
    tables: frozenset[str]
    local_names: frozenset[str]
    """Of its own WITH clauses."""
    strings: frozenset[str]
    """Every word in it: a column that is not among them is not read, unless `any_column`."""
    any_column: bool
    any_table: bool


class Database:
    """An in-memory DuckDB that can read the store's directory and nothing else."""

    def __init__(self, location: Location, threads: int | None = None) -> None:
        self._connection = duckdb.connect(":memory:")
        run = self._connection.execute
        if location.local:
            folders = {location.root, os.path.realpath(location.absolute("data"))}
            run(f"SET allowed_directories = [{', '.join(quote(folder + '/') for folder in sorted(folders))}]")
        spill = os.path.join(tempfile.gettempdir(), f"ndt-duckdb-{os.getpid()}")
        run(f"SET temp_directory = {quote(spill)}")
        run("SET parquet_metadata_cache = true")
        run("SET python_enable_replacements = false")
        run("SET autoinstall_known_extensions = false")
        run("SET autoload_known_extensions = false")
        if threads:
            run(f"SET threads = {int(threads)}")
        run("SET enable_external_access = false")
        run("SET lock_configuration = true")

    def parse(self, query: str) -> Parsed:
        """Look at a statement without running it; SpecError unless it is a single SELECT over tables."""
        cursor = self._connection.cursor()
        try:
            statements = cursor.extract_statements(query)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                kinds = ", ".join(s.type.name for s in statements) or "nothing"
                raise SpecError(f"a query is one SELECT statement, but this is {kinds} - the store is read-only")
            (text,) = cursor.execute("SELECT json_serialize_sql(?)", [query]).fetchone() or ("{}",)
        except duckdb.Error as error:
            raise SpecError(f"{error}{_quote(cursor, str(error))}") from error
        finally:
            cursor.close()
        tree = json.loads(text)
        if tree.get("error"):
            raise SpecError(f"a query is one SELECT statement over the store's tables: {tree['error_message']}")
        return _inspect(query, tree)

    def query(self, parsed: Parsed, parameters: Parameters, definitions: Sequence[tuple[str, View]]) -> "Query":
        """A query that has not begun. The definitions are those of the tables that it names."""
        return Query(self._connection.cursor(), parsed, parameters, definitions)

    def close(self) -> None:
        self._connection.close()


class Query:
    """One query, to be run once; `cancel` may be called from any thread."""

    def __init__(
        self,
        cursor: duckdb.DuckDBPyConnection,
        parsed: Parsed,
        parameters: Parameters,
        definitions: Sequence[tuple[str, View]],
    ) -> None:
        self._cursor = cursor
        self._parsed = parsed
        self._parameters = parameters
        self._definitions = definitions
        self._done = threading.Event()
        self._reason = ""

    def cancel(self, reason: str = "cancelled") -> None:
        """Stop it; it then raises StoreError. An interrupt between two steps of the query is lost, hence several."""
        self._reason = self._reason or reason
        for _ in range(10):
            if self._done.is_set():
                return
            with suppress(duckdb.Error):  # closed meanwhile
                self._cursor.interrupt()
            self._done.wait(0.02)

    def close(self) -> None:
        """Nothing can be read from it any more."""
        self._done.set()
        self._cursor.close()

    @contextmanager
    def batches(self, timeout: float | None = None) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
        """The result's schema and its batches. SpecError for a bad query; StoreError when cancelled or out of time."""
        timer = threading.Timer(timeout, self.cancel, [f"stopped after {timeout} s"]) if timeout else None
        try:
            with self._explain():
                for name, view in self._definitions:
                    self._define(name, view)
                if timer:
                    timer.daemon = True
                    timer.start()
                self._check()
                relation = self._cursor.sql(self._parsed.text, params=self._parameters)
                reader = relation.to_arrow_reader(BATCH_ROWS)
            yield reader.schema, self._checked(reader)
        finally:
            self._done.set()
            if timer:
                timer.cancel()

    def arrow(self, limit: int | None = None, timeout: float | None = None) -> pa.Table:
        """The result, at most `limit` rows of it; if there are more, the schema's metadata hold a notice."""
        with self.batches(timeout) as (schema, batches):
            held, rows = [], 0
            for batch in batches:
                held.append(batch)
                rows += batch.num_rows
                if limit is not None and rows > limit:
                    notice = f"only the first {limit:,} rows are shown; there are more"
                    return pa.Table.from_batches(held).slice(0, limit).replace_schema_metadata({NOTICE: notice})
            return pa.Table.from_batches(held, schema=schema)

    def _define(self, name: str, view: View) -> None:
        for source, data in view.sources.items():
            self._cursor.register(source, data)
        kind = "TABLE" if view.copy else "VIEW"
        self._cursor.execute(f'CREATE TEMP {kind} "{name}" AS {view.select}')
        for source in view.sources if view.copy else ():
            self._cursor.unregister(source)

    def _checked(self, reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        while True:
            with self._explain():
                self._check()
                try:
                    batch = reader.read_next_batch()
                except StopIteration:
                    return
            yield batch

    def _check(self) -> None:
        if self._reason:
            raise StoreError(f"query {self._reason}")

    @contextmanager
    def _explain(self) -> Iterator[None]:
        """DuckDB's errors as ours; OSError is how Arrow passes them on."""
        try:
            yield
        except (duckdb.Error, OSError, pa.ArrowException) as error:
            if self._reason:
                raise StoreError(f"query {self._reason}") from error
            if isinstance(error, duckdb.OutOfMemoryException):
                raise StoreError(f"the query needs more memory than there is: {error}") from error
            # A torn file is an "invalid input" to DuckDB, as a bad argument is.
            of_a_file = isinstance(error, duckdb.InvalidInputException) and ".parquet" in str(error)
            if isinstance(error, _OF_THE_QUERY) and not of_a_file:
                raise SpecError(str(error)) from error
            raise Unreadable(str(error)) from error


class Unreadable(StoreError):
    """A committed file could not be read: compacted away since the snapshot was taken, or damaged."""


_OF_THE_QUERY = (
    duckdb.ProgrammingError,
    duckdb.DataError,
    duckdb.NotSupportedError,
    duckdb.PermissionException,
)


def _quote(cursor: duckdb.DuckDBPyConnection, error: str) -> str:
    """What to do where a column is called as a word of SQL is."""
    near = re.search(r'syntax error at or near "(\w+)"', error)
    words = "SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category = 'reserved'"
    if near is None or (near[1].lower(),) not in cursor.execute(words).fetchall():
        return ""
    return f'\n\n{near[1]} is a word of SQL: a column of that name is written "{near[1]}"'


def _inspect(query: str, tree: dict[str, Any]) -> Parsed:
    tables: set[str] = set()
    local: set[str] = set()
    strings: set[str] = set()
    any_column = any_table = False
    for node in _nodes(tree):
        for value in node.values():
            strings.update(v.lower() for v in (value if isinstance(value, list) else [value]) if isinstance(v, str))
        local.update(entry["key"].lower() for entry in node.get("cte_map", {}).get("map", []))
        kind = node.get("type")
        if kind == "BASE_TABLE":
            schema, table = node["schema_name"].lower(), node["table_name"].lower()
            if {schema, table} & _CATALOG:
                any_table = True
            elif not schema:
                tables.add(table)
        elif kind == "TABLE_FUNCTION":
            name = node["function"]["function_name"].lower()
            if name not in _FUNCTIONS | _CATALOG:
                raise SpecError(f"{name}(): a query reads the store's tables, no files and no other functions")
            any_table |= name in _CATALOG
        elif kind == "SHOW_REF":
            any_table = any_column = True
        any_column |= kind == "STAR" or node.get("ref_type") == "NATURAL"
    return Parsed(query, frozenset(tables), frozenset(local), frozenset(strings), any_column, any_table)


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for item in value.values():
            yield from _nodes(item)
    elif isinstance(value, list):
        for item in value:
            yield from _nodes(item)
