"""Files that analyses make beside their tables, named by a hash of all they are made from, so as to be made once.

A table that stands on one names it: in a column `artifact`, or one whose name ends in `_artifact`. What no live row
names any more is garbage.
"""

import re
from collections.abc import Iterable

from ndt_ray.errors import StoreError
from ndt_ray.store.filesystem import Location
from ndt_ray.store.manifests import check_name

FOLDER = "artifacts"
_KEY = re.compile(r"[0-9a-f]{16,64}")


def path(sweep: str, kind: str, key: str) -> str:
    """Where the file of a key is, below the store's root; `key`: 16 to 64 hex digits."""
    if not _KEY.fullmatch(key):
        raise StoreError(f"artifact {kind}: a key has 16 to 64 hex digits, but got {key!r}")
    return f"{FOLDER}/{check_name('sweep', sweep)}/{check_name('artifact', kind)}/{key}.safetensors"


def read(location: Location, sweep: str, kind: str, key: str) -> tuple[str, bytes] | None:
    """(path, bytes); None where there is none."""
    where = path(sweep, kind, key)
    try:
        return where, location.read(where)
    except FileNotFoundError:
        return None


def write(location: Location, sweep: str, kind: str, key: str, data: bytes) -> str:
    """Put it in its place, whole; its path."""
    where = path(sweep, kind, key)
    location.write(where, data)
    return where


def naming(columns: Iterable[str]) -> list[str]:
    """Which of a table's columns name artifacts."""
    return [name for name in columns if name == "artifact" or name.endswith("_artifact")]
