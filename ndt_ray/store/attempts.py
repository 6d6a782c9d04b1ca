"""Who tried to run a pack, where and when: the one place for what may differ between two runs of the same sweep."""

import json
import os
import re
import socket
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from ndt_ray.errors import StoreError
from ndt_ray.store.filesystem import Location
from ndt_ray.store.manifests import folder
from ndt_ray.store.schema import COMPUTED

_ATTEMPT = re.compile(r"attempt-g(\d{6,})\.json")


@dataclass(frozen=True)
class Attempt:
    """One start of a pack. Times are ISO 8601, UTC. `running` without an `updated` in a while means killed."""

    sweep: str
    pack: str
    generation: int
    host: str
    pid: int
    started: str
    updated: str
    ended: str | None = None
    from_step: int | None = None
    to_step: int | None = None
    status: str = "running"
    error: str | None = None
    fingerprint: str = ""

    @property
    def path(self) -> str:
        return f"{folder(self.sweep, self.pack)}/attempt-g{self.generation:06d}.json"

    def idle(self) -> float:
        """Seconds since its start or last commit."""
        return (datetime.now(UTC) - datetime.fromisoformat(self.updated)).total_seconds()


def start(sweep: str, pack: str, generation: int, fingerprint: str) -> Attempt:
    """The attempt of this process."""
    now = _now()
    return Attempt(sweep, pack, generation, socket.gethostname(), os.getpid(), now, now, fingerprint=fingerprint)


def record(location: Location, attempt: Attempt, **changes: Any) -> Attempt:
    """Write it down with changes; returns the changed one."""
    attempt = replace(attempt, updated=_now(), **changes)
    if attempt.status != "running" and attempt.ended is None:
        attempt = replace(attempt, ended=attempt.updated)
    location.write(attempt.path, (json.dumps(asdict(attempt), indent=1) + "\n").encode(), durable=False)
    return attempt


def read(location: Location, sweep: str, pack: str) -> list[Attempt]:
    """All attempts of a pack, oldest first."""
    where = folder(sweep, pack)
    found = []
    for name in location.names(where):
        if _ATTEMPT.fullmatch(name):
            try:
                found.append(Attempt(**json.loads(location.read(f"{where}/{name}"))))
            except FileNotFoundError:
                continue  # the sweep is being removed
            except (ValueError, TypeError) as error:
                path = location.absolute(f"{where}/{name}")
                raise StoreError(f"{path} is no record of an attempt - move it away") from error
    return sorted(found, key=lambda a: a.generation)


def table(attempts: list[Attempt]) -> pa.Table:
    """As rows of the table `attempts`."""
    schema = COMPUTED["attempts"].arrow()
    columns = []
    for field in fields(Attempt):
        values = [getattr(a, field.name) for a in attempts]
        if pa.types.is_timestamp(schema.field(field.name).type):
            values = [None if v is None else datetime.fromisoformat(v).replace(tzinfo=None) for v in values]
        columns.append(pa.array(values, type=schema.field(field.name).type))
    return pa.table(columns, names=[f.name for f in fields(Attempt)]).select(schema.names).cast(schema)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
