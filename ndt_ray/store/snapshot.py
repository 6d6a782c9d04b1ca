"""Which files are committed now: the newest manifest of every pack and the newest index of every analysis."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

from ndt_ray.store.filesystem import Location
from ndt_ray.store.manifests import Manifest, Part, State, is_safe, newest
from ndt_ray.store.outputs import Output, newest_index

T = TypeVar("T")

_SETTLED = 2_000_000_000
"""Nanoseconds: a folder changed more recently than this before it was listed may have changed again unnoticed, in
the same tick of its modification time."""


@dataclass(frozen=True)
class Snapshot:
    """All that a reader may see, as of one moment; a pack's tables are consistent with each other."""

    manifests: tuple[Manifest, ...]
    outputs: tuple[tuple[str, str, Output], ...]
    """(sweep, analysis, output)."""

    @cached_property
    def parts(self) -> dict[str, list[Part]]:
        """Committed files by table."""
        found: dict[str, list[Part]] = {}
        for part in [p for m in self.manifests for p in m.parts] + [p for _, _, o in self.outputs for p in o.parts]:
            found.setdefault(part.table, []).append(part)
        return found

    @cached_property
    def files(self) -> dict[tuple[str, str], list[Part | State]]:
        """Committed files by (sweep, pack or analysis)."""
        found: dict[tuple[str, str], list[Part | State]] = {}
        for m in self.manifests:
            found[m.sweep, m.pack] = [*m.parts, *([m.state] if m.state else [])]
        for sweep, analysis, output in self.outputs:
            found.setdefault((sweep, analysis), []).extend(output.parts)
        return found


class Watcher:
    """Takes snapshots; only what has changed is read again."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._packs: _Folders[Manifest | None] = _Folders(location, lambda s, p: newest(location, s, p))
        self._analyses: _Folders[dict[str, Output]] = _Folders(
            location, lambda s, a: newest_index(location, f"outputs/{s}/{a}")
        )
        self._last = Snapshot((), ())

    def snapshot(self) -> Snapshot:
        """The committed files now; the same object as before if nothing has changed."""
        manifests = tuple(m for m in self._packs.read("commits").values() if m)
        indexes = self._analyses.read("outputs")
        outputs = tuple((*key, output) for key, index in indexes.items() for output in index.values())
        now = Snapshot(manifests, outputs)
        if now != self._last:
            self._last = now
        return self._last


class _Folders(Generic[T]):
    """What was read from each folder `<top>/<sweep>/<name>/`, and the modification time that it had then."""

    def __init__(self, location: Location, read: Callable[[str, str], T]) -> None:
        self._location = location
        self._read = read
        self._seen: dict[tuple[str, str], tuple[int, T]] = {}

    def read(self, top: str) -> dict[tuple[str, str], T]:
        keys = {key: changed for key, changed in self._list(top).items() if all(map(is_safe, key))}
        stale = [(key, changed) for key, changed in keys.items() if self._seen.get(key, (-1,))[0] != changed]
        started = time.time_ns()

        def load(item: tuple[tuple[str, str], int]) -> tuple[tuple[str, str], tuple[int, T]]:
            key, changed = item
            settled = not self._location.local or started - changed > _SETTLED
            return key, (changed if settled else -2, self._read(*key))

        if self._location.local:
            fresh = dict(map(load, stale))
        else:
            with ThreadPoolExecutor(16) as pool:
                fresh = dict(pool.map(load, stale))
        self._seen = {key: fresh.get(key) or self._seen[key] for key in sorted(keys)}
        return {key: value for key, (_, value) in self._seen.items()}

    def _list(self, top: str) -> dict[tuple[str, str], int]:
        """Folders and when they changed; on object stores, where a folder has no time, a hash of its listing."""
        if not self._location.local:
            listing: dict[tuple[str, str], list[str]] = {}
            for entry in self._location.files(top):
                sweep, _, rest = entry.path.removeprefix(top + "/").partition("/")
                name, _, file = rest.partition("/")
                if file:
                    listing.setdefault((sweep, name), []).append(file)
            return {key: abs(hash(tuple(sorted(files)))) for key, files in listing.items()}
        found = {}
        for sweep in self._location.names(top):
            try:
                with os.scandir(self._location.absolute(f"{top}/{sweep}")) as folders:
                    for folder in folders:
                        if folder.is_dir():
                            found[sweep, folder.name] = folder.stat().st_mtime_ns
            except (FileNotFoundError, NotADirectoryError):
                continue  # removed meanwhile, or a stray file
        return found
