"""A pack's pen: rows and checkpoints are buffered, and become visible together, with the state to go on from.

The protocol, in order: claim a generation; publish a manifest of it that adopts what the newest manifest names;
then, at each commit, write parts and state under names of this commit, check that no higher generation exists,
publish the manifest, check again, and only then remove what no kept manifest names. Whoever dies at any point leaves
the last manifest true. If the second check sees no higher generation, then any later claimant lists manifests after
this one was published and adopts it, so nothing that a successor reads is ever removed.
"""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, Protocol

import pyarrow.parquet as pq

from ndt_ray.errors import CheckpointError, SpecError, StoreError, did_you_mean
from ndt_ray.store import attempts
from ndt_ray.store.batches import Batches
from ndt_ray.store.checkpoints import Tensors, checkpoint_path, encode_tensors, read_checkpoint
from ndt_ray.store.compaction import merge
from ndt_ray.store.filesystem import Location
from ndt_ray.store.manifests import Manifest, Part, State, Superseded, check_current, claim, folder, newest, publish
from ndt_ray.store.parquet import encode
from ndt_ray.store.schema import TABLES, Precision, fingerprint

COMMIT_ROWS = 8_192
"""Rows of one table that make a part worth writing: 15.5 bytes a row and 1.5 ms, against 56 bytes at 80 rows."""
COMMIT_BYTES = 64 << 20
COMMIT_SECONDS = 30.0
"""Between commits, where NDT_COMMIT_SECONDS does not say otherwise when a writer is opened."""
COMMIT_SHARE = 0.02
"""Of the time, at most, that commits may take, where nobody says how often they are to be: large states come rarely."""
MERGE_PARTS = 16
"""Parts of one level that are merged into one of the next, so that a long run keeps few files."""


class HasLocation(Protocol):
    @property
    def location(self) -> Location: ...


class PackWriter:
    """Writes one pack of one sweep. Opening it fences every other writer of the same pack.

    `resume` is where to go on: (step, tensors) of the last commit, or None at the start. `finished` says that the
    pack was finished before; then nothing can be written. StoreError if the store cannot be written or if `trials`
    differ from those that the pack was claimed with; CheckpointError if the recovery state is corrupt. With
    `restart`, all that the pack has committed is given up and it begins again.
    """

    def __init__(
        self,
        store: HasLocation,
        sweep: str,
        pack: str,
        *,
        trials: tuple[str, ...] = (),
        fingerprint: str = "",
        precision: Precision = "float32",
        restart: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._location = store.location
        self._precision = precision
        self._fingerprint = fingerprint
        self._declared = tuple(sorted(trials))
        self._clock = clock
        given = os.environ.get("NDT_COMMIT_SECONDS")
        self._seconds = float(given or COMMIT_SECONDS)
        self._share = 0.0 if given else COMMIT_SHARE
        self._pause = 0.0
        self._buffers: dict[str, Batches] = {}
        self._saved: set[tuple[str, int]] | None = None
        self._closed = False
        _check_members(newest(self._location, sweep, pack), trials)
        self._claim = claim(self._location, sweep, pack)
        self._attempt = attempts.start(sweep, pack, self.generation, fingerprint)
        base = Manifest(sweep, pack, self.generation, 0, fingerprint=fingerprint, trials=self._declared)
        try:
            before, self.resume = (None, None) if restart else self._adopt(sweep, pack)
            if before:
                # Its fingerprint stays until something is committed on this one: the caller may yet refuse to go on.
                members = before.trials or self._declared
                base = replace(before, generation=self.generation, sequence=0, trials=members)
            publish(self._location, base)
            self._manifest = base
            self._kept = [m for m in (before, base) if m]
            from_step = self.resume[0] if self.resume else None
            self._attempt = attempts.record(self._location, self._attempt, from_step=from_step)
        except BaseException as error:
            self._closed = True
            with suppress(StoreError):
                attempts.record(self._location, self._attempt, status="failed", error=_first_line(error))
            raise
        self.fingerprint_before = before.fingerprint if before else ""
        self._last = clock()

    @property
    def generation(self) -> int:
        return self._claim.generation

    @property
    def finished(self) -> bool:
        return self._manifest.finished

    @property
    def step(self) -> int:
        """Of the last commit."""
        return self._manifest.step

    def rows(self, table: str, columns: Mapping[str, Any]) -> None:
        """Buffer a batch: a sequence or array a column, or one value for all rows; columns left out are null.

        SpecError for an unknown table or column, for a missing key and for columns of different length.
        """
        self._check_open()
        if table not in self._buffers:
            if table not in TABLES:
                raise SpecError(f"no table {table!r}{did_you_mean(table, TABLES)}")
            self._buffers[table] = Batches(TABLES[table], self._precision)
        self._buffers[table].add(columns)

    def checkpoint(self, trial_id: str, step: int, tensors: Mapping[str, Any], reason: str) -> None:
        """Save a checkpoint at once and buffer its row; a second one of the same trial and step changes nothing."""
        self._check_open()
        if self._saved is None:
            self._saved = self._committed_checkpoints()
        if (trial_id, step) in self._saved:
            return
        self._check_current()
        path = checkpoint_path(self._manifest.sweep, trial_id, step)
        data = encode_tensors(tensors, {"trial_id": trial_id, "step": step})
        with self._location.writing(path) as stream:
            stream.write(data)
        row = {"trial_id": trial_id, "step": step, "reason": reason, "path": path}
        self.rows("checkpoints", {**row, "sha256": stream.sha256, "bytes": stream.bytes})
        self._saved.add((trial_id, step))

    def should_commit(self) -> bool:
        """True at 64 MB of rows, at 8,192 of one table, or 30 s after a commit; later where that took long."""
        buffers = self._buffers.values()
        if sum(b.bytes for b in buffers) >= COMMIT_BYTES:
            return True
        since = self._clock() - self._last
        if since < self._pause:
            return False
        return since >= self._seconds or any(b.rows >= COMMIT_ROWS for b in buffers)

    def commit(self, step: int, state: Mapping[str, Any] | None, finished: bool = False) -> None:
        """Make all that is buffered visible, with the state to resume from at `step`, or (finished) for good.

        Superseded if another worker has taken the pack over: then this one's rows are gone, and must be. StoreError
        if the disk is full or not writable: nothing half-written is left, the buffers are kept, and it may be tried
        again. When finished, the parts are compacted to one sorted file a table.
        """
        self._check_open()
        began, manifest = self._clock(), self._manifest
        if step < manifest.step:
            raise SpecError(f"commit at step {step} after one at {manifest.step}")
        sequence = manifest.sequence + 1 if step == manifest.step else 0
        target = replace(manifest, step=step, sequence=sequence, finished=finished, state=None)
        target = replace(target, fingerprint=self._fingerprint or manifest.fingerprint)
        written: list[str] = []
        try:
            self._check_current()
            write = self._compact if finished else self._parts
            target = replace(target, parts=write(target, written), trials=self._members())
            if state is not None and not finished:
                target = replace(target, state=self._state(target, state, written))
            self._check_current()
        except BaseException:
            self._delete(written)
            raise
        self._publish(target, written)
        self._manifest = target
        self._buffers.clear()
        self._last = self._clock()
        self._pause = (self._last - began) / self._share if self._share else 0.0
        self._check_current()
        self._tidy(set(written), keep=1 if finished else 2)
        self._closed = finished
        status = "finished" if finished else "running"
        self._attempt = attempts.record(self._location, self._attempt, to_step=step, status=status)

    def close(self, status: str = "stopped", error: str | None = None) -> None:
        """End the attempt; what is not committed is dropped. After a finishing commit, or twice, it does nothing."""
        if not self._closed:
            self._closed = True
            self._buffers.clear()
            with suppress(StoreError):  # a full disk must not hide what was going on
                attempts.record(self._location, self._attempt, status=status, error=error)

    def __enter__(self) -> "PackWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, Exception):
            self.close("superseded" if isinstance(error, Superseded) else "failed", _first_line(error))
        else:
            self.close()

    def _adopt(self, sweep: str, pack: str) -> tuple[Manifest | None, tuple[int, Tensors] | None]:
        """The newest manifest and its state; its writer may still be alive and replace both while they are read."""
        for attempt in range(3):
            manifest = newest(self._location, sweep, pack)
            if manifest is None or manifest.state is None:
                return manifest, None
            try:
                tensors, _ = read_checkpoint(self._location, manifest.state.path, manifest.state.sha256)
                return manifest, (manifest.step, tensors)
            except CheckpointError as error:
                if attempt == 2:
                    raise CheckpointError(f"recovery state of pack {sweep}/{pack}: {error}; or restart it") from error
        raise AssertionError

    def _parts(self, target: Manifest, written: list[str]) -> tuple[Part, ...]:
        """The committed parts and one for each table with rows."""
        parts = list(target.parts)
        for name, buffer in sorted(self._buffers.items()):
            rows = buffer.arrow()
            path = self._path(name, f"part-{target.stem}-from-{self._manifest.step:012d}")
            written.append(path)
            with self._location.writing(path) as stream:
                stream.write(encode(rows))
            digest = fingerprint(rows.schema)
            parts.append(Part(name, path, rows.num_rows, stream.bytes, stream.sha256, digest, self._precision))
            self._merge_full_levels(name, parts, target.stem, written)
        return tuple(parts)

    def _merge_full_levels(self, name: str, parts: list[Part], stem: str, written: list[str]) -> None:
        level = 0
        while len(full := [p for p in parts if p.table == name and p.level == level]) >= MERGE_PARTS:
            path = self._path(name, f"part-{stem}-level-{level + 1}")
            written.append(path)
            merged = merge(self._location, TABLES[name], full, path, unique=False)
            parts[:] = [p for p in parts if p not in full] + [merged]
            level += 1

    def _compact(self, target: Manifest, written: list[str]) -> tuple[Part, ...]:
        """One sorted file for each table of the pack, of its parts and of what is still buffered."""
        compacted = []
        for name in sorted({p.table for p in target.parts} | set(self._buffers)):
            path = self._path(name, f"pack-{target.stem}")
            written.append(path)
            parts = [p for p in target.parts if p.table == name]
            more = self._buffers[name].arrow() if name in self._buffers else None
            table = TABLES[name]
            merged = merge(self._location, table, parts, path, unique=True, more=more, precision=self._precision)
            compacted.append(merged)
        return tuple(compacted)

    def _state(self, target: Manifest, state: Mapping[str, Any], written: list[str]) -> State:
        path = f"state/{target.sweep}/{target.pack}/state-{target.stem}.safetensors"
        written.append(path)
        with self._location.writing(path) as stream:
            stream.write(encode_tensors(state, {"step": target.step}))
        return State(path, stream.bytes, stream.sha256)

    def _publish(self, target: Manifest, written: list[str]) -> None:
        try:
            publish(self._location, target)
        except BaseException:
            # A put that failed may still arrive, and a successor build on it: only what surely is not there is undone.
            if self._location.local and self._location.size(target.path) is None:
                self._delete(written)
            raise

    def _delete(self, paths: list[str]) -> None:
        for path in paths:
            with suppress(StoreError):
                self._location.delete(path)

    def _members(self) -> tuple[str, ...]:
        """Trials as declared, or else as seen in the rows."""
        seen = {trial for b in self._buffers.values() for trial in b.trials}
        return self._declared or tuple(sorted(seen | set(self._manifest.trials)))

    def _committed_checkpoints(self) -> set[tuple[str, int]]:
        found: set[tuple[str, int]] = set()
        for part in self._manifest.parts:
            if part.table == "checkpoints":
                source = self._location.filesystem.open_input_file(self._location.absolute(part.path))
                rows = pq.read_table(source, columns=["trial_id", "step"]).to_pylist()
                found |= {(row["trial_id"], row["step"]) for row in rows}
        return found

    def _tidy(self, written: set[str], *, keep: int) -> None:
        """Forget all but the newest manifests, and the files that only the forgotten ones (or nobody) name."""
        self._kept.append(self._manifest)
        forgotten, self._kept = self._kept[:-keep], self._kept[-keep:]
        live = {path for manifest in self._kept for path in manifest.files}
        doomed = {path for manifest in forgotten for path in manifest.files} | written
        for path in sorted(doomed - live) + [manifest.path for manifest in forgotten]:
            self._location.delete(path)

    def _path(self, table: str, stem: str) -> str:
        return f"data/{table}/sweep={self._manifest.sweep}/pack={self._manifest.pack}/{stem}.parquet"

    def _check_current(self) -> None:
        try:
            check_current(self._location, self._claim)
        except Superseded as error:
            self.close("superseded", _first_line(error))
            raise

    def _check_open(self) -> None:
        if self._closed or self.finished:
            where = folder(self._manifest.sweep, self._manifest.pack)
            raise StoreError(f"{where}: this writer is closed ({self.finished=}) - nothing more can be written")


def _check_members(manifest: Manifest | None, trials: tuple[str, ...]) -> None:
    if manifest and trials and manifest.trials and set(manifest.trials) != set(trials):
        raise StoreError(
            f"pack {manifest.sweep}/{manifest.pack} was claimed with other trials ({len(manifest.trials)} against "
            f"{len(trials)}) - a claimed pack never changes; plan new packs for new trials"
        )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
