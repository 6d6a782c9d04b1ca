"""Where the rows of one run go that no sweep plans: the store's tables, or the same tables in memory."""

import atexit
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa

from ndt_ray.errors import SpecError, StoreError, did_you_mean
from ndt_ray.jobs import ForeignFingerprint
from ndt_ray.store import attempts
from ndt_ray.store.batches import Batches
from ndt_ray.store.manifests import Manifest, Superseded
from ndt_ray.store.reader import Store
from ndt_ray.store.schema import TABLES
from ndt_ray.store.sweep import ALIVE_SECONDS
from ndt_ray.store.writer import PackWriter

log = logging.getLogger(__name__)

Existing = Literal["refuse", "resume", "resume_different", "replace"]
"""What to do where a run of this name is in the store already; resume_different: also where other numerics begun it."""

Tables = Mapping[str, Sequence[Mapping[str, Any]]]
"""Batches of columns by table."""

GROUP = 32
"""Measured steps that wait before rows are made of them: together they cost a tenth."""

MEMORY_NOTICE = 1 << 30
"""Bytes of rows in memory at which it is said that a store would hold them."""
RETRY_SECONDS = 30.0
PENDING_ROWS = 1 << 16
"""Measurement rows that wait while the store cannot be written; later ones are dropped, and counted."""


class Source(Protocol):
    """What is recorded: steps that wait, and the state to resume from."""

    def drain(self) -> Tables: ...
    def state(self) -> Mapping[str, np.ndarray]: ...


class Recording(ABC):
    """Takes rows and gives tables back."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._waiting = 0

    @property
    def resumed(self) -> Mapping[str, np.ndarray] | None:
        """State of the last commit of the run that is gone on with."""
        return None

    @abstractmethod
    def rows(self, table: str, columns: Mapping[str, Any]) -> None: ...

    def settle(self, step: int) -> None:
        """The source has measured `step`."""
        self._waiting += 1
        if self._waiting >= GROUP:
            self._pull()

    def _pull(self) -> None:
        self._waiting = 0
        for table, batches in self._source.drain().items():
            for columns in batches:
                self.rows(table, columns)

    @abstractmethod
    def flush(self) -> None:
        """Make all rows visible; StoreError where that fails."""

    @abstractmethod
    def close(self, *, finished: bool, error: str | None = None) -> None: ...

    @abstractmethod
    def table(self, name: str) -> pa.Table: ...


class InMemory(Recording):
    """Rows in memory, as the store's tables would hold them."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self._tables: dict[str, Batches] = {}
        self._told = False

    def rows(self, table: str, columns: Mapping[str, Any]) -> None:
        self._tables.setdefault(table, Batches(TABLES[table], "float32")).add(columns)

    def settle(self, step: int) -> None:
        super().settle(step)
        held = sum(batches.bytes for batches in self._tables.values())
        if held > MEMORY_NOTICE and not self._told:
            self._told = True
            log.warning("the tracker holds %.1f GB of rows: give it a store, or spectra='none'", held / 1e9)

    def flush(self) -> None:
        self._pull()

    def close(self, *, finished: bool, error: str | None = None) -> None:
        self._pull()

    def table(self, name: str) -> pa.Table:
        self._pull()
        if name not in TABLES:
            raise SpecError(f"no table {name!r}{did_you_mean(name, TABLES)}")
        batches = self._tables.get(name)
        return batches.arrow() if batches else TABLES[name].arrow().empty_table()


class InStore(Recording):
    """Rows in a pack of their own, committed by rows and time, when closed, and when the program ends.

    While the store cannot be written, rows wait and it is tried again every 30 s; the user's loop goes on, and `close`
    raises what was in the way. A run that was closed is finished; one that only ended can be resumed.
    """

    def __init__(
        self,
        source: Source,
        store: Store,
        sweep: str,
        pack: str,
        trial_id: str,
        *,
        existing: Existing = "refuse",
        fingerprint: str = "",
    ) -> None:
        super().__init__(source)
        self._store, self._sweep, self._trial_id = store, sweep, trial_id
        restart = _begin_anew(store, sweep, pack, existing, fingerprint)
        self._writer = PackWriter(store, sweep, pack, trials=(trial_id,), fingerprint=fingerprint, restart=restart)
        self._step = self._writer.step
        self._pid = os.getpid()
        self._open = True
        self._failure: StoreError | None = None
        self._retry_at = 0.0
        self._pending = 0
        self.dropped = 0
        atexit.register(self._at_exit)

    @property
    def resumed(self) -> Mapping[str, np.ndarray] | None:
        return self._writer.resume[1] if self._writer.resume else None

    def rows(self, table: str, columns: Mapping[str, Any]) -> None:
        if isinstance(self._failure, Superseded) or (self._failure and self._pending >= PENDING_ROWS):
            self.dropped += 1
            return
        self._writer.rows(table, columns)
        if table == "measurements":
            self._pending += len(columns["layer"])

    def settle(self, step: int) -> None:
        self._step = step
        super().settle(step)
        if isinstance(self._failure, Superseded) or time.monotonic() < self._retry_at:
            return
        if self._failure or self._writer.should_commit():
            try:
                self._commit(finished=False)
            except Exception as error:  # kept, told, and raised by `close` if it lasts
                failure = error if isinstance(error, StoreError) else StoreError(f"{type(error).__name__}: {error}")
                if str(failure) != str(self._failure):
                    log.warning("rows could not be stored, the run goes on: %s", failure)
                self._failure, self._retry_at = failure, time.monotonic() + RETRY_SECONDS

    def flush(self) -> None:
        if self._open and os.getpid() == self._pid:
            self._commit(finished=False)

    def close(self, *, finished: bool, error: str | None = None) -> None:
        if not self._open or os.getpid() != self._pid:
            return
        self._open = False
        atexit.unregister(self._at_exit)
        try:
            if isinstance(self._failure, Superseded):
                raise self._failure
            self._commit(finished=finished)
        except Exception as failure:
            self._writer.close("failed", str(failure))
            raise StoreError(f"{failure}; {self._unstored()}") from failure
        if not finished:
            self._writer.close("failed" if error else "stopped", error)
        if self.dropped:
            raise StoreError(f"the store could not be written for a while; {self._unstored()}")

    def table(self, name: str) -> pa.Table:
        if self._open:
            self.flush()
        if name not in TABLES:
            raise SpecError(f"no table {name!r}{did_you_mean(name, TABLES)}")
        order = ", ".join(f'"{column}"' for column in TABLES[name].order)
        return self._store.arrow(
            f"SELECT * FROM {name} WHERE sweep = ? AND trial_id = ? ORDER BY {order}", [self._sweep, self._trial_id]
        )

    def _commit(self, finished: bool) -> None:
        self._pull()
        self._writer.commit(self._step, None if finished else self._source.state(), finished)
        self._failure, self._pending = None, 0

    def _at_exit(self) -> None:
        try:
            self.close(finished=False)
        except StoreError as error:
            log.error("at exit: %s", error)

    def _unstored(self) -> str:
        return f"rows of {self.dropped} batches were dropped, and those since the last commit are lost"


def begun_on(store: Store, sweep: str, pack: str, existing: Existing) -> str | None:
    """The numerics fingerprint of the run that is to be gone on with, if there is one."""
    before = _before(store, sweep, pack) if existing.startswith("resume") else None
    return None if before is None else before.fingerprint


def _before(store: Store, sweep: str, pack: str) -> Manifest | None:
    return next((m for m in store.manifests(sweep) if m.pack == pack), None)


def _begin_anew(store: Store, sweep: str, pack: str, existing: Existing, fingerprint: str) -> bool:
    """Whether to begin again over what is there; StoreError where that was not asked for, ForeignFingerprint where it
    was measured on other numerics and `existing` does not say that these may be mixed."""
    before = _before(store, sweep, pack)
    if before is None or existing == "replace":
        return before is not None
    where = f"run {sweep}/{pack} in {store.location.uri}"
    if not any(part.table == "measurements" for part in before.parts):
        last = attempts.read(store.location, sweep, pack)[-1]
        if last.status == "running" and last.idle() < ALIVE_SECONDS:
            raise StoreError(
                f"{where} was begun {last.idle():.0f} s ago by {last.host} (pid {last.pid}) and may be running: give "
                "another run name, or existing='replace' to begin again"
            )
        return True  # it ended before it had measured anything
    if existing == "refuse":
        raise StoreError(
            f"{where} stands there already, up to step {before.step}: give another run name, or existing='resume' to "
            "go on, or existing='replace' to begin again"
        )
    if before.finished:
        raise StoreError(
            f"{where} was closed at step {before.step}, so that nothing can be added: give another run name, or "
            "existing='replace' to begin again"
        )
    if before.fingerprint != fingerprint:
        differ = f"{where} was measured on '{before.fingerprint}' up to step {before.step}, and this is '{fingerprint}'"
        if existing != "resume_different":
            raise ForeignFingerprint(
                f"{differ}: a run does not mix two. Go on there, or give another run name, or existing='replace' to "
                "begin again, or existing='resume_different' to mix them: digits then differ from that step on"
            )
        log.warning("%s: from there on the last digits of measures differ (the table attempts says which)", differ)
    return False
