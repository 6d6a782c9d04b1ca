"""Opening a store, and asking it: SQL over exactly the committed files."""

import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from ndt_ray.errors import CheckpointError, SpecError, StoreError, did_you_mean
from ndt_ray.store import analysis_runs, attempts, views
from ndt_ray.store.checkpoints import Tensors, read_checkpoint
from ndt_ray.store.filesystem import Location
from ndt_ray.store.manifests import Manifest, Part, verify
from ndt_ray.store.schema import COMPUTED, SCHEMA_VERSION, TABLES, Table
from ndt_ray.store.snapshot import Snapshot, Watcher
from ndt_ray.store.sweep import list_sweeps, sweeps_table

if TYPE_CHECKING:
    import pandas as pd

    from ndt_ray.store.sandbox import Database, Parsed, Query

T = TypeVar("T")

FORMAT = 1
MARKER = "ndt-store.json"
ROW_CAP = 100_000
"""What the command line and the service cap a result at, unless told otherwise."""


def open_store(
    where: str | Path,
    *,
    create: bool = False,
    filesystem: pafs.FileSystem | None = None,
    threads: int | None = None,
) -> "Store":
    """A store at a local path, `file://`, `s3://` or `gs://` URI, or a path on a given pyarrow filesystem.

    With `create`, it is made if the directory is empty or absent. StoreError if it is no store, or of a newer format.
    """
    location = Location.of(where, filesystem)
    try:
        marker = location.read(MARKER)
    except FileNotFoundError:
        marker = _create(location) if create else _refuse(location)
    try:
        found = json.loads(marker)
        store_format, version = int(found["format"]), int(found["schema_version"])
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{location.absolute(MARKER)} is not a store's marker - give another --store") from error
    if store_format > FORMAT or version > SCHEMA_VERSION:
        raise StoreError(
            f"{location.uri} was written by a newer ndt-ray ({store_format=}, {version=}; this one knows {FORMAT=}, "
            f"{SCHEMA_VERSION=}) - upgrade ndt-ray"
        )
    return Store(location, threads)


class Store:
    """A store that is open for reading; writers take it for where to write. Safe to use from several threads."""

    def __init__(self, location: Location, threads: int | None = None) -> None:
        self.location = location
        self._threads = threads
        self._lock = threading.Lock()
        self._watcher = Watcher(location)
        self._views = views.TableViews(location)
        self._database: Database | None = None
        self._running: set[Query] = set()

    def __repr__(self) -> str:
        return f"Store({self.location.uri!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        given = None if "://" in self.location.uri or self.location.local else self.location.filesystem
        return _reopen, (self.location.root if self.location.local else self.location.uri, given, self._threads)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what runs and free the database; the next query opens another."""
        self.cancel()
        with self._lock:
            database, self._database = self._database, None
        if database:
            database.close()

    def sql(
        self,
        query: str,
        parameters: Sequence[Any] | Mapping[str, Any] | None = None,
        *,
        limit: int | None = None,
        timeout: float | None = None,
    ) -> "pd.DataFrame":
        """The result of one SELECT (`?` or `$name` for parameters) as a DataFrame.

        With `limit`, at most so many rows; if there are more, `attrs["ndt_notice"]` says so. With `timeout` (s),
        StoreError when it is over. SpecError, with DuckDB's message, for a query that is wrong or not allowed.
        """
        table = self.arrow(query, parameters, limit=limit, timeout=timeout)
        frame: pd.DataFrame = table.to_pandas()
        if table.schema.metadata and b"ndt_notice" in table.schema.metadata:
            frame.attrs["ndt_notice"] = table.schema.metadata[b"ndt_notice"].decode()
        return frame

    def arrow(
        self,
        query: str,
        parameters: Sequence[Any] | Mapping[str, Any] | None = None,
        *,
        limit: int | None = None,
        timeout: float | None = None,
    ) -> pa.Table:
        """The same as an Arrow table; the notice is in its schema's metadata."""
        return self.reading(query, parameters, lambda running: running.arrow(limit, timeout))

    def cancel(self) -> None:
        """Stop all queries that run on this store, from another thread."""
        for query in list(self._running):
            query.cancel()

    def measurements(
        self,
        *,
        sweep: str | None = None,
        trial: str | Sequence[str] | None = None,
        model: str | Sequence[str] | None = None,
        data: str | Sequence[str] | None = None,
        seed: int | Sequence[int] | None = None,
        control: str | Sequence[str] | None = None,
        layer: str | Sequence[str] | None = None,
        view: str | Sequence[str] | None = None,
        steps: tuple[int, int] | None = None,
        columns: Sequence[str] | None = None,
    ) -> "pd.DataFrame":
        """Rows of `wide` that match all that is given, in order of trial, layer, view and step.

        `steps` = (first, last), both included. `columns`: these only. A `trial` is read from its own pack's file.
        """
        wanted = {"sweep": sweep, "trial_id": trial, "model": model, "data": data, "seed": seed}
        wanted |= {"control": control, "layer": layer, "view": view, "pack": self._packs_of(trial)}
        tests: list[str] = []
        parameters: list[Any] = []
        for column, values in wanted.items():
            if values is not None:
                listed = list(values) if isinstance(values, Sequence) and not isinstance(values, str) else [values]
                tests.append(f'"{column}" IN ({", ".join("?" * len(listed))})' if listed else "false")
                parameters.extend(listed)
        if steps is not None:
            tests.append("step BETWEEN ? AND ?")
            parameters.extend(steps)
        known = views.wide_columns()
        for column in columns or ():
            if column not in known:
                raise SpecError(f"wide has no column {column!r}{did_you_mean(column, known)}")
        shown = ", ".join(f'"{column}"' for column in columns or known)
        where = f" WHERE {' AND '.join(tests)}" if tests else ""
        query = f"SELECT {shown} FROM wide{where} ORDER BY sweep, trial_id, layer_index, view, step"
        return self.sql(query, parameters)

    def table(self, name: str, sweep: str | None = None) -> "pd.DataFrame":
        """All committed rows of a table, or of one sweep."""
        if name not in self.names():
            raise SpecError(f"no table {name!r}{did_you_mean(name, self.names())}")
        if sweep is None:
            return self.sql(f'SELECT * FROM "{name}"')
        return self.sql(f'SELECT * FROM "{name}" WHERE sweep = ?', [sweep])

    def sweeps(self) -> "pd.DataFrame":
        """One row per sweep."""
        return self.table("sweeps")

    def trials(self, sweep: str | None = None) -> "pd.DataFrame":
        """One row per trial."""
        return self.table("trials", sweep)

    def names(self) -> list[str]:
        """All tables and views."""
        return views.names(self.snapshot())

    def tables(self) -> dict[str, int]:
        """Committed rows by table, from the manifests alone."""
        parts = self.snapshot().parts
        return {name: sum(p.rows for p in parts.get(name, [])) for name in sorted({*TABLES, *parts})}

    def schema(self, name: str) -> Table:
        """What a table's columns mean; StoreError for an unknown one. Views add `sweep` and (of packs) `pack`."""
        known = {**TABLES, **COMPUTED}
        if name == views.WIDE:
            return views.wide_table()
        if name not in known:
            raise SpecError(f"no table {name!r}{did_you_mean(name, known)}")
        return known[name]

    def snapshot(self) -> Snapshot:
        """The committed files, as of now."""
        with self._lock:
            return self._watcher.snapshot()

    def manifests(self, sweep: str | None = None) -> list[Manifest]:
        """The newest manifest of every pack (of one sweep): step, finished, trials, files."""
        return [m for m in self.snapshot().manifests if sweep in (None, m.sweep)]

    def attempts(self, sweep: str | None = None) -> list[attempts.Attempt]:
        """Every start of every pack (of one sweep)."""
        location = self.location
        sweeps = [sweep] if sweep else list_sweeps(self)
        return [a for s in sweeps for p in location.names(f"commits/{s}") for a in attempts.read(location, s, p)]

    def checkpoint(self, trial_id: str, step: int, sweep: str | None = None) -> tuple[Tensors, dict[str, Any]]:
        """Tensors and metadata of a saved checkpoint; CheckpointError if there is none, or it is corrupt."""
        rows = self.arrow(
            "SELECT step, path, sha256 FROM checkpoints WHERE trial_id = ? AND (? IS NULL OR sweep = ?) ORDER BY step",
            [trial_id, sweep, sweep],
        ).to_pylist()
        found = [row for row in rows if row["step"] == step]
        if not found:
            steps = ", ".join(str(row["step"]) for row in rows) or "none"
            raise CheckpointError(f"trial {trial_id} has no checkpoint at step {step} - there are: {steps}")
        return read_checkpoint(self.location, found[0]["path"], found[0]["sha256"])

    def verify(self, sweep: str | None = None, *, tables: Iterable[str] | None = None, deep: bool = False) -> None:
        """StoreError for the first committed file that is missing, short or (deep) altered."""
        for owner, files in self.snapshot().files.items():
            if sweep in (None, owner[0]):
                chosen = [f for f in files if tables is None or (isinstance(f, Part) and f.table in tables)]
                verify(self.location, "/".join(owner), chosen, deep=deep)

    def reading(
        self,
        query: str,
        parameters: Sequence[Any] | Mapping[str, Any] | None,
        use: "Callable[[Query], T]",
    ) -> T:
        """`use` a query over the committed files; once more if a file of them was compacted away meanwhile."""
        from ndt_ray.store.sandbox import Unreadable

        database = self._open()
        parsed = database.parse(query)
        for last in (False, True):
            definitions = self._definitions(parsed, self.snapshot())
            running = database.query(parsed, parameters, definitions)
            self._running.add(running)
            try:
                return use(running)
            except Unreadable:
                if last:
                    self.verify()
                    self.verify(tables=[name for name, _ in definitions], deep=True)
                    raise
            finally:
                self._running.discard(running)
                running.close()
        raise AssertionError

    def _definitions(self, parsed: "Parsed", snapshot: Snapshot) -> "list[tuple[str, views.View]]":
        """What the query's tables are, in the order in which to define them."""
        known = set(views.names(snapshot))
        if unknown := parsed.tables - known - parsed.local_names:
            raise SpecError(f"no table {min(unknown)!r}{did_you_mean(min(unknown), known)}")
        wanted = known if parsed.any_table else parsed.tables & known
        made = []
        if views.WIDE in wanted:
            wide = views.wide(None if parsed.any_column else set(parsed.strings))
            wanted = (wanted | {"measurements", "trials", "scalars"}) - {views.WIDE}
            made = [(views.WIDE, wide)]
        return [(name, self._definition(snapshot, name)) for name in sorted(wanted)] + made

    def _definition(self, snapshot: Snapshot, name: str) -> views.View:
        if name not in COMPUTED:
            return self._views.view(snapshot, name)
        if name == "attempts":
            rows = attempts.table(self.attempts())
        else:
            rows = analysis_runs.table(self) if name == "analysis_runs" else sweeps_table(self, snapshot)
        return views.View(f"SELECT * FROM _{name}_rows", {f"_{name}_rows": rows}, copy=True)

    def _packs_of(self, trial: str | Sequence[str] | None) -> list[str] | None:
        if trial is None:
            return None
        trials = {trial} if isinstance(trial, str) else set(trial)
        return sorted({m.pack for m in self.snapshot().manifests if trials & set(m.trials)})

    def _open(self) -> "Database":
        from ndt_ray.store.sandbox import Database

        with self._lock:
            if self._database is None:
                self._database = Database(self.location, self._threads)
            return self._database


def _reopen(where: str, filesystem: pafs.FileSystem | None, threads: int | None) -> Store:
    return open_store(where, filesystem=filesystem, threads=threads)


def _create(location: Location) -> bytes:
    strangers = [name for name in location.names("") if not name.startswith(".")]
    if strangers:
        raise StoreError(
            f"{location.uri} is not an ndt store and holds other files ({', '.join(strangers[:3])}, …) - give an empty "
            "directory to make one in"
        )
    marker = (json.dumps({"format": FORMAT, "schema_version": SCHEMA_VERSION}) + "\n").encode()
    location.write(MARKER, marker)
    return marker


def _refuse(location: Location) -> bytes:
    raise StoreError(
        f"{location.uri} is not an ndt store ({MARKER} is missing) - give --store (or NDT_STORE), or run a sweep, "
        "which makes one"
    )
