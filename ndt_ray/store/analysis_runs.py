"""What analyses took, each time they ran: kept in the sweep's log, for it may differ between two runs of the same."""

import socket
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from ndt_ray.store.schema import COMPUTED
from ndt_ray.store.sweep import Sweep, list_sweeps
from ndt_ray.store.writer import HasLocation

EVENT = "analyzed"


def record(store: HasLocation, sweep: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append runs to a sweep's log; a row holds the columns of `analysis_runs` but sweep, ended and host."""
    base = {"event": EVENT, "time": time.time(), "host": socket.gethostname()}
    Sweep(store.location, sweep).append_events([base | dict(row) for row in rows])


def table(store: HasLocation) -> pa.Table:
    """As rows of the table `analysis_runs`."""
    schema, rows = COMPUTED["analysis_runs"].arrow(), []
    for name in list_sweeps(store):
        for event in Sweep(store.location, name).events():
            if event.get("event") == EVENT:
                ended = datetime.fromtimestamp(event["time"], UTC).replace(tzinfo=None)
                rows.append({c: event.get(c) for c in schema.names} | {"sweep": name, "ended": ended})
    return pa.Table.from_pylist(rows, schema=schema)
