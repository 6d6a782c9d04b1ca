"""What nobody names any more: parts of commits that never came to be, states, leftovers of superseded writers."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

from ndt_ray.store import artifacts
from ndt_ray.store.filesystem import Entry, Location, is_temporary
from ndt_ray.store.manifests import load, manifest_names
from ndt_ray.store.reader import Store

OLDER_THAN = 3600.0
"""Seconds: a younger file may belong to a commit that is on its way."""

_GENERATION = re.compile(r"gen-(\d{6,})(~.*)?")
_KEPT_MANIFESTS = 2


@dataclass(frozen=True)
class Garbage:
    """A file that can go, and why."""

    path: str
    bytes: int
    reason: str


def gc(store: Store, dry_run: bool = False, older_than: float = OLDER_THAN) -> list[Garbage]:
    """Remove (or with `dry_run` only list) what no manifest names and has not been touched for `older_than` seconds.

    StoreError, and nothing removed, if a manifest cannot be read.
    """
    location = store.location
    before = time.time() - older_than
    # Files first, manifests after: a file that is committed in between is then known to be live.
    tops = ("data", "state", "checkpoints", "commits", "sweeps", artifacts.FOLDER)
    files = [f for top in tops for f in location.files(top)]
    live = _live(store)
    found = list(_unnamed([f for f in files if f.mtime < before], live))
    if not dry_run:
        for item in found:
            location.delete(item.path)
    return found


def _live(store: Store) -> set[str]:
    snapshot = store.snapshot()
    live = {part.path for parts in snapshot.parts.values() for part in parts}
    live |= {path for manifest in snapshot.manifests for path in manifest.files}
    live |= set(store.arrow("SELECT path FROM checkpoints")["path"].to_pylist())
    for table in {part.table for _, _, output in snapshot.outputs for part in output.parts}:
        for column in artifacts.naming(store.arrow(f'FROM "{table}" LIMIT 0').column_names):
            live |= set(store.arrow(f'SELECT DISTINCT "{column}" AS path FROM "{table}"')["path"].to_pylist())
    for sweep, pack in {(m.sweep, m.pack) for m in snapshot.manifests}:
        live |= _kept_of_pack(store.location, f"commits/{sweep}/{pack}")
    return live


def _kept_of_pack(location: Location, folder: str) -> set[str]:
    """The newest manifests, what they name, and the newest generation: a lower one is as taken without its file."""
    names = location.names(folder)
    generations = [(int(m.group(1)), name) for name in names if (m := _GENERATION.fullmatch(name))]
    newest = max(generations, default=(0, ""))[0]
    manifests = [f"{folder}/{name}" for name in manifest_names(names)[-_KEPT_MANIFESTS:]]
    named = {path for manifest in manifests for path in load(location, manifest).files}
    return {*manifests, *named, *(f"{folder}/{name}" for number, name in generations if number == newest)}


def _unnamed(files: list[Entry], live: set[str]) -> Iterator[Garbage]:
    for file in files:
        name = file.path.rpartition("/")[2]
        top = file.path.partition("/")[0]
        if file.path in live:
            continue
        if is_temporary(name):
            yield Garbage(file.path, file.bytes, "unfinished write")
        elif top == "data" and name.endswith(".parquet"):
            yield Garbage(file.path, file.bytes, "not committed")
        elif top == "state" and name.endswith(".safetensors"):
            yield Garbage(file.path, file.bytes, "state of an older commit")
        elif top == "checkpoints" and name.endswith(".safetensors"):
            yield Garbage(file.path, file.bytes, "not committed")
        elif top == artifacts.FOLDER and name.endswith(".safetensors"):
            yield Garbage(file.path, file.bytes, "no row names it")
        elif top == "commits" and (manifest_names([name]) or _GENERATION.fullmatch(name)):
            yield Garbage(file.path, file.bytes, "superseded")
