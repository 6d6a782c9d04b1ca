"""Columnar batches on their way into a part: checked when handed over, turned into Arrow when committed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ndt_ray.errors import SpecError, did_you_mean
from ndt_ray.sink import Lists
from ndt_ray.store.parquet import sort
from ndt_ray.store.schema import Precision, Table


class Batches:
    """Rows of one table that are not committed yet."""

    def __init__(self, table: Table, precision: Precision) -> None:
        self.table = table
        self.schema = table.arrow(precision)
        self.rows = 0
        self.bytes = 0
        self.trials: set[str] = set()
        self._chunks: dict[str, list[Any]] = {c.name: [] for c in table.columns}

    def add(self, columns: Mapping[str, Any]) -> None:
        """Take a batch: a sequence or array a column, or one value for all rows; columns left out are null."""
        if unknown := columns.keys() - self._chunks.keys():
            name = min(unknown)
            raise SpecError(f"table {self.table.name} has no column {name!r}{did_you_mean(name, self._chunks)}")
        if missing := [name for name in self.table.order if columns.get(name) is None]:
            raise SpecError(f"table {self.table.name}: rows without their key ({missing=})")
        lengths = {name: len(value) for name, value in columns.items() if not _is_scalar(value)}
        if len(set(lengths.values())) > 1:
            raise SpecError(f"table {self.table.name}: columns differ in length ({lengths})")
        rows = next(iter(lengths.values()), 1)
        for name, chunks in self._chunks.items():
            chunk = _chunk(columns.get(name), rows)
            chunks.append(chunk)
            self.bytes += _bytes(chunk)
        self.rows += rows
        if "trial_id" in columns:
            self.trials.update(map(str, self._chunks["trial_id"][-1]))

    def arrow(self) -> pa.Table:
        """All rows, sorted by key. NaN becomes null; SpecError names a column whose values do not fit its type."""
        columns = []
        for field in self.schema:
            try:
                columns.append(_column(self._chunks[field.name], field.type))
            except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
                detail = (str(error).splitlines() or [""])[0]
                raise SpecError(f"table {self.table.name}, column {field.name} ({field.type}): {detail}") from error
        rows = pa.table(columns, schema=self.schema)
        if empty := [name for name in self.table.order if rows.column(name).null_count]:
            raise SpecError(f"table {self.table.name}: rows without their key ({empty=})")
        return sort(rows, self.table)


def _is_scalar(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim == 0
    if isinstance(value, list | Lists):  # as nearly all are: the next question costs ten times this one
        return False
    return isinstance(value, str | bytes) or not isinstance(value, Sequence)


def _chunk(value: Any, rows: int) -> Any:
    """A copy (the caller may reuse its arrays): an ndarray, or a list; `Lists` are left alone by their maker."""
    if isinstance(value, np.ndarray) and value.ndim and value.dtype != object:
        return value.copy()
    if isinstance(value, Lists):
        return value
    if _is_scalar(value):
        return [value.item() if isinstance(value, np.generic | np.ndarray) else value] * rows
    return list(value)


def _bytes(chunk: Any) -> int:
    if isinstance(chunk, np.ndarray):
        return int(chunk.nbytes)
    if isinstance(chunk, Lists):
        return 8 * len(chunk) + chunk.nbytes
    arrays = chunk if chunk and isinstance(chunk[0], np.ndarray) else ()
    return 8 * len(chunk) + sum(getattr(value, "nbytes", 0) for value in arrays)


def _column(chunks: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_list(kind):
        return _lists([part for chunk in chunks for part in _matrices(chunk, kind)], kind)
    if all(isinstance(c, np.ndarray) and c.dtype == chunks[0].dtype for c in chunks) and not _masked(chunks):
        chunks = [np.concatenate(chunks)]
    elif not any(isinstance(c, np.ndarray) for c in chunks):
        chunks = [[value for chunk in chunks for value in chunk]]
    return pa.concat_arrays([_flat(chunk, kind) for chunk in chunks])


def _flat(values: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise ValueError(f"one value a row is wanted, but got shape {values.shape}")
        if pa.types.is_floating(kind):
            with np.errstate(over="ignore"):
                values = values.astype(kind.to_pandas_dtype())
        return pa.array(values, from_pandas=True).cast(kind)
    return pa.array(values, type=kind, from_pandas=True)


def _matrices(chunk: Any, kind: pa.DataType) -> Sequence[np.ndarray | int]:
    """Lists of a column as parts of `Lists`, from rows that are arrays, sequences or None."""
    if isinstance(chunk, Lists):
        return chunk.parts
    if isinstance(chunk, np.ndarray):
        if chunk.ndim != 2:
            raise ValueError(f"one list a row is wanted, but got shape {chunk.shape}")
        return [chunk]
    dtype = kind.value_type.to_pandas_dtype()
    # Here, where NumPy refuses Python's numbers that do not fit; of arrays it wraps them.
    rows = [1 if row is None else np.asarray(row, dtype=dtype)[None] for row in chunk]
    if odd := [row.shape[1:] for row in rows if not isinstance(row, int) and row.ndim != 2]:
        raise ValueError(f"one list a row is wanted, but got shape {odd[0]}")
    return rows


def _lists(parts: Sequence[np.ndarray | int], kind: pa.DataType) -> pa.Array:
    """A list array of matrices, one list a row, and of rows without any."""
    dtype = kind.value_type.to_pandas_dtype()
    lists = [part for part in parts if not isinstance(part, int)]
    values = np.concatenate([np.asarray(part, dtype=dtype).ravel() for part in lists]) if lists else np.empty(0, dtype)
    rows = [part if isinstance(part, int) else len(part) for part in parts]
    lengths = np.repeat([0 if isinstance(part, int) else part.shape[1] for part in parts], rows)
    null = pa.array(np.repeat([isinstance(part, int) for part in parts], rows), type=pa.bool_())
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int32)]).astype(np.int32)
    items = pa.array(values, from_pandas=True).cast(kind.value_type)
    return pa.ListArray.from_arrays(pa.array(offsets), items, type=kind, mask=null)


def _masked(chunks: list[Any]) -> bool:
    return any(isinstance(chunk, np.ma.MaskedArray) for chunk in chunks)
