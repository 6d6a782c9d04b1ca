"""Other people's SQL over HTTP: the store's sandbox, with a cap on rows, on time and on how many run at once."""

import threading
import time
from typing import Any

import pyarrow as pa
import pyarrow.types as pat

from ndt_ray.errors import NdtError, StoreError
from ndt_ray.service.board import json_value
from ndt_ray.store.reader import Store
from ndt_ray.store.sandbox import NOTICE, Query

ROWS, MOST_ROWS = 1_000, 100_000
"""Rows that a page shows, and that a CSV holds, at most."""
SECONDS = 60.0
AT_ONCE = 4
"""Queries that run together; DuckDB takes every core for each."""


class Busy(NdtError):
    """Too many queries run, or one of that id does."""


class Stopped(NdtError):
    """A query was cancelled, or ran out of time."""


class Console:
    """Runs queries, each known by an id of whoever asks, and cancels them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._lock = threading.Lock()
        self._running: dict[str, Query | None] = {}

    def ask(self, sql: str, id: str, limit: int = ROWS, seconds: float = SECONDS) -> tuple[pa.Table, float]:
        """(rows, seconds it took). SpecError for what is not one SELECT over the tables; Busy, Stopped."""
        with self._lock:
            if id in self._running:
                raise Busy(f"a query of the id {id!r} is running - cancel it, or give another id")
            if len(self._running) >= AT_ONCE:
                raise Busy(f"{AT_ONCE} queries are running already - wait, or cancel one")
            self._running[id] = None
        began = time.perf_counter()

        def use(query: Query) -> pa.Table:
            with self._lock:
                self._running[id] = query
            return query.arrow(limit, seconds)

        try:
            return self.store.reading(sql, None, use), time.perf_counter() - began
        except StoreError as error:
            if str(error).startswith("query "):
                raise Stopped(str(error)) from error
            raise
        finally:
            with self._lock:
                del self._running[id]

    def cancel(self, id: str) -> bool:
        """Whether such a query was running."""
        with self._lock:
            found, query = id in self._running, self._running.get(id)
        if query is not None:
            query.cancel()
        return found


def answer(rows: pa.Table, seconds: float) -> dict[str, Any]:
    """A result as JSON."""
    columns = [column.to_pylist() for column in rows.columns]
    values = [[json_value(v) for v in row] for row in zip(*columns, strict=True)]
    numbers = [pat.is_integer(t) or pat.is_floating(t) or pat.is_decimal(t) for t in rows.schema.types]
    notice = (rows.schema.metadata or {}).get(NOTICE.encode(), b"").decode() or None
    return {
        "columns": rows.column_names,
        "numeric": numbers,
        "rows": values,
        "notice": notice,
        "seconds": round(seconds, 3),
    }


def csv(rows: pa.Table) -> str:
    """A result as CSV, all digits; lists as Python writes them."""
    text: str = rows.to_pandas().to_csv(index=False)
    return text
