"""A view for each table over exactly the committed files, and `wide`: measurements with what they belong to."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from ndt_ray.store.filesystem import Location
from ndt_ray.store.manifests import Part
from ndt_ray.store.schema import COMPUTED, TABLES, Column, Precision, Table, fingerprint
from ndt_ray.store.snapshot import Snapshot

WIDE = "wide"
_OF_TRIALS = {
    "lane": "lane",
    "cell": "cell",
    "model": "model",
    "data": "data",
    "seed": "seed",
    "seed_init": "seed_init",
    "seed_order": "seed_order",
    "seed_dropout": "seed_dropout",
    "seed_data": "seed_data",
    "control": "control",
    "engine": "engine",
    "steps": "steps",
    "batch": "batch",
    "optimizer": "optimizer",
    "base_lr": "lr",
    "weight_decay": "weight_decay",
}
_OF_SCALARS = (
    "epoch",
    "epoch_boundary",
    "lr",
    "batch_loss",
    "probe_loss",
    "probe_accuracy",
    "grad_norm",
    "update_norm",
    "weight_norm",
    "init_distance",
)
_HIVE = re.compile(r"/sweep=([^/]+)/(?:pack=([^/]+)/)?[^/]+$")


@dataclass(frozen=True)
class View:
    """A SELECT, and the Arrow tables and datasets that it reads, by the names under which to register them."""

    select: str
    sources: Mapping[str, Any] = field(default_factory=dict)
    copy: bool = False
    """Take the rows over at once (they are few), so that the sources need not stay."""


def names(snapshot: Snapshot) -> list[str]:
    """All tables and views: known to the schema, or found in the store."""
    return sorted({*TABLES, *COMPUTED, *snapshot.parts, WIDE})


def wide_columns() -> list[str]:
    """Columns of `wide`, in order."""
    own = [c.name for c in TABLES["measurements"].columns]
    return [*own, "phase", *_OF_TRIALS, *_OF_SCALARS, "sweep", "pack"]


def wide_table() -> Table:
    """The columns of `wide`, described."""
    docs = {c.name: c for table in ("scalars", "trials", "measurements") for c in TABLES[table].columns}
    docs["phase"] = Column("phase", "float64", "step / planned steps, in [0, 1]")
    docs["base_lr"] = replace(docs["lr"], doc="base learning rate")
    docs["lr"] = next(c for c in TABLES["scalars"].columns if c.name == "lr")
    docs |= {name: Column(name, "string", f"name of the {name}") for name in TABLES["measurements"].partitions}
    columns = tuple(replace(docs[name], name=name) for name in wide_columns())
    return Table(WIDE, "Measurements with their trial and the scalars of their step.", columns, ())


def wide(strings: set[str] | None) -> View:
    """Measurements with their trial and the scalars of their step.

    `strings`: every word of the query, or None if it may mean any column. Scalars are joined only when a word names one
    of their columns: without it the mean over seeds of ten million rows takes a third of a second, with it seconds.
    """
    trials = ", ".join(f't."{column}" AS "{name}"' for name, column in _OF_TRIALS.items())
    own = ", ".join(f'm."{c.name}"' for c in TABLES["measurements"].columns)
    scalars, join = "", ""
    if strings is None or strings & set(_OF_SCALARS):
        scalars = "".join(f', s."{name}"' for name in _OF_SCALARS)
        join = " LEFT JOIN scalars s ON s.sweep = m.sweep AND s.pack = m.pack AND s.trial_id = m.trial_id "
        join += "AND s.step = m.step"
    return View(
        f"SELECT {own}, m.step / t.steps AS phase, {trials}{scalars}, m.sweep, m.pack FROM measurements m "
        f"LEFT JOIN trials t ON t.sweep = m.sweep AND t.pack = m.pack AND t.trial_id = m.trial_id{join}"
    )


class TableViews:
    """Makes the views of one store; keeps those of the last snapshot."""

    def __init__(self, location: Location) -> None:
        self._location = location
        # DuckDB reads local paths; it would take these characters for a pattern.
        self._direct = location.local and not any(c in location.root for c in "*?[")
        self._snapshot: Snapshot | None = None
        self._made: dict[str, View] = {}
        self._schemas: dict[str, pa.Schema] = {}

    def view(self, snapshot: Snapshot, name: str) -> View:
        if snapshot is not self._snapshot:
            self._snapshot, self._made = snapshot, {}
        if name not in self._made:
            self._made[name] = self._make(name, snapshot.parts.get(name, []))
        return self._made[name]

    def _make(self, name: str, parts: list[Part]) -> View:
        groups: dict[str, list[Part]] = {}
        for part in sorted(parts, key=lambda p: (not p.rows, p.path)):
            group = groups.setdefault(part.schema, [])
            if part.rows or not group:  # of empty files one is enough to know the columns
                group.append(part)
        schemas = {digest: self._schema(group[0]) for digest, group in groups.items()}
        columns = _columns(TABLES.get(name), schemas.values())
        partitions = TABLES[name].partitions if name in TABLES else ("sweep",)
        if not groups:
            nulls = [f'CAST(NULL AS {_sql(t)}) AS "{c}"' for c, t in columns.items()]
            nulls += [f"CAST(NULL AS VARCHAR) AS {p}" for p in partitions]
            return View(f"SELECT {', '.join(nulls)} WHERE false")
        selects, sources = [], {}
        for digest, group in groups.items():
            source = f"_{name}_{digest}"
            if self._direct:
                files = ", ".join(quote(self._location.absolute(p.path)) for p in group)
                origin = f"read_parquet([{files}], hive_partitioning = true, hive_types_autocast = false)"
            else:
                origin = f'"{source}"'
                sources[source] = self._dataset(group, schemas[digest], partitions)
            wanted = [_select(c, t, schemas[digest]) for c, t in columns.items()] + list(partitions)
            selects.append(f"SELECT {', '.join(wanted)} FROM {origin}")
        return View(" UNION ALL ".join(selects), sources)

    def _schema(self, part: Part) -> pa.Schema:
        """Columns of a part: today's if its digest says so, or else as the file says."""
        if part.schema not in self._schemas:
            precisions: tuple[Precision, ...] = ("float32", "float64")
            known = [TABLES[part.table].arrow(p) for p in precisions] if part.table in TABLES else []
            same = [schema for schema in known if fingerprint(schema) == part.schema]
            self._schemas[part.schema] = same[0] if same else self._read_schema(part)
        return self._schemas[part.schema]

    def _read_schema(self, part: Part) -> pa.Schema:
        with self._location.filesystem.open_input_file(self._location.absolute(part.path)) as file:
            return pq.read_schema(file)

    def _dataset(self, parts: list[Part], schema: pa.Schema, partitions: tuple[str, ...]) -> pads.Dataset:
        full = pa.schema([*schema, *(pa.field(p, pa.string()) for p in partitions)])
        values = []
        for part in parts:
            found = _HIVE.search("/" + part.path)
            assert found
            pairs = zip(("sweep", "pack"), found.groups(), strict=True)
            equal = [pads.field(key) == value for key, value in pairs if value is not None]
            values.append(equal[0] & equal[1] if len(equal) == 2 else equal[0])
        return pads.FileSystemDataset.from_paths(
            [self._location.absolute(p.path) for p in parts],
            schema=full,
            format=pads.ParquetFileFormat(),
            filesystem=self._location.filesystem,
            partitions=values,
        )


def quote(text: str) -> str:
    """As an SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def _columns(table: Table | None, schemas: Iterable[pa.Schema]) -> dict[str, pa.DataType]:
    """The view's columns: of the schema, and of an unknown table those of its files; float64 where any file has it."""
    found: dict[str, pa.DataType] = {f.name: f.type for f in table.arrow()} if table else {}
    for schema in schemas:
        for item in schema:
            if table is None or (item.name in found and item.type == pa.float64()):
                found[item.name] = item.type
    return found


def _select(column: str, wanted: pa.DataType, schema: pa.Schema) -> str:
    if column not in schema.names:
        return f'CAST(NULL AS {_sql(wanted)}) AS "{column}"'
    if schema.field(column).type == wanted:
        return f'"{column}"'
    return f'CAST("{column}" AS {_sql(wanted)}) AS "{column}"'


def _sql(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return _sql(kind.value_type) + "[]"
    return _SQL[str(kind)]


_SQL = {
    "string": "VARCHAR",
    "bool": "BOOLEAN",
    "int8": "TINYINT",
    "int16": "SMALLINT",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "float": "FLOAT",
    "double": "DOUBLE",
    "timestamp[us]": "TIMESTAMP",
}
