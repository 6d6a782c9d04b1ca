"""What analyses write: files named by key, and per (sweep, analysis) an index that says which of them are live.

Index files are numbered. A committer claims the next number, merges its entries into the newest index, writes it, and
looks again: if somebody has claimed a higher number meanwhile, that one may not have seen this one's entries, so it
does it all once more. When it sees no higher claim, every later committer starts from an index that holds them.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from ndt_ray.errors import SpecError, StoreError, did_you_mean
from ndt_ray.store.batches import Batches
from ndt_ray.store.filesystem import Location
from ndt_ray.store.manifests import FORMAT, Part, check_name
from ndt_ray.store.parquet import encode, sort
from ndt_ray.store.schema import TABLES, Table, fingerprint
from ndt_ray.store.writer import HasLocation

_CLAIM = re.compile(r"claim-(\d{6,})(~.*)?")
_INDEX = re.compile(r"index-(\d{6,})\.json")


@dataclass(frozen=True)
class Output:
    """What an analysis made of one partition of its input."""

    key: str
    cache_key: str
    """Says what it was computed from (parameters, code, inputs): equal means there is nothing to do."""
    parts: tuple[Part, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)


class Outputs:
    """The outputs of one analysis of one sweep."""

    def __init__(self, store: HasLocation, sweep: str, analysis: str) -> None:
        self._location = store.location
        self.sweep = check_name("sweep", sweep)
        self.analysis = check_name("analysis", analysis)
        self._folder = f"outputs/{sweep}/{analysis}"

    def entries(self) -> dict[str, Output]:
        """The live outputs by key."""
        return newest_index(self._location, self._folder)

    def write(
        self, key: str, tables: Mapping[str, pa.Table | Mapping[str, Any]], *, cache_key: str, **meta: Any
    ) -> Output:
        """Write the files of one key; they are invisible until committed, so that any worker may do this.

        Tables must be registered (schema.register_table); SpecError if one is not, or if columns do not fit. One
        without rows gets its file too: that it was looked for and found empty is a result.
        """
        parts = []
        for name, rows in sorted(tables.items()):
            if name not in TABLES or TABLES[name].origin != "analysis":
                known = [t.name for t in TABLES.values() if t.origin == "analysis"]
                raise SpecError(f"analysis {self.analysis}: no table {name!r} is registered{did_you_mean(name, known)}")
            parts.append(self._write(name, key, _conform(TABLES[name], rows)))
        return Output(key, cache_key, tuple(parts), meta)

    def commit(self, outputs: Iterable[Output], drop: Iterable[str] = ()) -> None:
        """Make outputs live, each in place of the former one of its key, and those of `drop` dead. Safe in parallel."""
        new, gone = {o.key: o for o in outputs}, set(drop)
        while True:
            number = self._claim()
            before = self.entries()
            after = {k: o for k, o in {**before, **new}.items() if k not in gone}
            index = {"format": FORMAT, "entries": [asdict(after[key]) for key in sorted(after)]}
            self._location.write(f"{self._folder}/index-{number:06d}.json", json.dumps(index).encode())
            names = self._location.names(self._folder)
            if _highest(names) == number:
                break
        live = {part.path for output in after.values() for part in output.parts}
        for path in sorted({part.path for output in before.values() for part in output.parts} - live):
            self._location.delete(path)
        for name in names:
            if (found := _CLAIM.fullmatch(name) or _INDEX.fullmatch(name)) and int(found.group(1)) < number:
                self._location.delete(f"{self._folder}/{name}")

    def _claim(self) -> int:
        while True:
            number = _highest(self._location.names(self._folder)) + 1
            if self._location.create_exclusively(f"{self._folder}/claim-{number:06d}", b""):
                return number

    def _write(self, name: str, key: str, rows: pa.Table) -> Part:
        data = encode(rows, docs=True)
        digest = hashlib.sha256(data).hexdigest()
        slug = re.sub(r"[^A-Za-z0-9._-]+", "_", key)[:80]
        distinct = hashlib.sha256(f"{key}\n{digest}".encode()).hexdigest()[:8]
        path = f"data/{name}/sweep={self.sweep}/{self.analysis}-{slug}-{distinct}.parquet"
        self._location.write(path, data)
        return Part(name, path, rows.num_rows, data.size, digest, fingerprint(rows.schema))


def write_output(
    store: HasLocation,
    sweep: str,
    analysis: str,
    key: str,
    tables: Mapping[str, pa.Table | Mapping[str, Any]],
    *,
    cache_key: str,
    **meta: Any,
) -> Output:
    """Write and commit the output of one key."""
    outputs = Outputs(store, sweep, analysis)
    output = outputs.write(key, tables, cache_key=cache_key, **meta)
    outputs.commit([output])
    return output


def newest_index(location: Location, folder: str) -> dict[str, Output]:
    """Live outputs by key as the newest index in a folder says; none if there is no index."""
    for _ in range(5):
        found = [(int(m.group(1)), n) for n in location.names(folder) if (m := _INDEX.fullmatch(n))]
        if not found:
            return {}
        path = f"{folder}/{max(found)[1]}"
        try:
            raw = json.loads(location.read(path))["entries"]
            return {e["key"]: Output(**{**e, "parts": tuple(Part(**p) for p in e["parts"])}) for e in raw}
        except FileNotFoundError:
            continue  # a newer one has replaced it
        except (ValueError, TypeError, KeyError) as error:
            where = location.absolute(path)
            raise StoreError(f"{where} is not an index of outputs - move it away and analyze again") from error
    raise StoreError(f"{location.absolute(folder)}: indexes vanish while being read - try again")


def _conform(table: Table, rows: pa.Table | Mapping[str, Any]) -> pa.Table:
    if not isinstance(rows, pa.Table):
        batches = Batches(table, "float32")
        batches.add(rows)
        return batches.arrow()
    schema = table.arrow()
    if set(rows.column_names) != set(schema.names):
        raise SpecError(f"table {table.name}: columns {rows.column_names} instead of {schema.names}")
    try:
        return sort(rows.select(schema.names).cast(schema), table)
    except pa.ArrowException as error:
        raise SpecError(f"table {table.name}: {error}") from error


def _highest(names: list[str]) -> int:
    found = [int(m.group(1)) for n in names if (m := _CLAIM.fullmatch(n) or _INDEX.fullmatch(n))]
    return max(found, default=0)
