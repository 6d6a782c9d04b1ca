"""Generations and manifests: which files a pack has committed, and who may commit more.

A pack's directory `commits/<sweep>/<pack>/` holds `gen-NNNNNN` files, each claimed once, and manifests
`manifest-gNNNNNN-SSSSSSSSSSSS-NNN.json` (generation, step, count at that step). The newest manifest by name is the
truth about the pack; a file that it does not name does not exist. A writer that has been superseded by a higher
generation cannot win: every writer publishes a manifest of its own generation before it does anything else.
"""

import hashlib
import json
import re
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from ndt_ray.errors import StoreError
from ndt_ray.store.filesystem import Location, claimed

FORMAT = 1

_GENERATION = re.compile(r"gen-(\d{6,})(~.*)?")
_MANIFEST = re.compile(r"manifest-g(\d{6,})-(\d{12})-(\d{3,})\.json")
_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,99}")


class Superseded(StoreError):
    """Another worker has taken this pack over; nothing that this one writes will be seen."""


@dataclass(frozen=True)
class Part:
    """A committed Parquet file. `schema` groups files that have the same columns; `level` counts its merges."""

    table: str
    path: str
    rows: int
    bytes: int
    sha256: str
    schema: str
    precision: str = "float32"
    level: int = 0


@dataclass(frozen=True)
class State:
    """The recovery state that belongs to a manifest."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """All that a pack has committed up to a step."""

    sweep: str
    pack: str
    generation: int
    step: int
    sequence: int = 0
    finished: bool = False
    fingerprint: str = ""
    trials: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    state: State | None = None

    @property
    def stem(self) -> str:
        """What the names of this commit's files have in common."""
        return f"g{self.generation:06d}-{self.step:012d}-{self.sequence:03d}"

    @property
    def path(self) -> str:
        return f"{folder(self.sweep, self.pack)}/manifest-{self.stem}.json"

    @property
    def files(self) -> set[str]:
        """Paths of all that it names."""
        return {part.path for part in self.parts} | ({self.state.path} if self.state else set())

    def dump(self) -> bytes:
        return (json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n").encode()


def folder(sweep: str, pack: str) -> str:
    """Where a pack's generations and manifests stand."""
    return f"commits/{check_name('sweep', sweep)}/{check_name('pack', pack)}"


def is_safe(name: str) -> bool:
    """Whether a name can be a directory and the value of a Hive partition everywhere."""
    return _SAFE.fullmatch(name) is not None


def check_name(kind: str, name: str) -> str:
    """The name if it is safe; StoreError if it is not."""
    if not is_safe(name):
        raise StoreError(f"{kind} name {name!r}: use letters, digits, '_', '-', '.', '+', at most 100, no leading '.'")
    return name


def generation(location: Location, sweep: str, pack: str) -> int:
    """The highest generation that anybody has claimed; 0 if none."""
    return _highest(location.names(folder(sweep, pack)))


@dataclass(frozen=True)
class Claim:
    """A generation that is ours; the token tells it from one of the same number after the sweep was removed."""

    sweep: str
    pack: str
    generation: int
    token: str


def claim(location: Location, sweep: str, pack: str) -> Claim:
    """Take the next generation, exclusively; from now on all lower ones are superseded."""
    where, token = folder(sweep, pack), uuid.uuid4().hex
    while True:
        number = _highest(location.names(where)) + 1
        if location.create_exclusively(f"{where}/gen-{number:06d}", token.encode()):
            return Claim(sweep, pack, number, token)


def check_current(location: Location, own: Claim) -> None:
    """Raise Superseded unless it is still the highest generation."""
    where = folder(own.sweep, own.pack)
    names = location.names(where)
    highest = _highest(names)
    if highest > own.generation:
        raise Superseded(
            f"pack {own.sweep}/{own.pack}: generation {own.generation} was superseded by {highest} - another worker "
            "has taken it over; nothing is lost, stop this one"
        )
    files = [name for name in names if claimed(name, f"gen-{own.generation:06d}")]
    tokens = [location.read(f"{where}/{name}") for name in files]
    if own.token.encode() not in tokens:
        raise Superseded(f"pack {own.sweep}/{own.pack}: the sweep was removed while this worker ran - stop it")


def manifest_names(names: list[str]) -> list[str]:
    """Those of a pack's files that are manifests, oldest first."""
    found = [(tuple(int(g) for g in m.groups()), n) for n in names if (m := _MANIFEST.fullmatch(n))]
    return [name for _, name in sorted(found)]


def newest(location: Location, sweep: str, pack: str) -> Manifest | None:
    """The truth about a pack; None before its first commit. StoreError if a foreign or torn file claims to be it."""
    where = folder(sweep, pack)
    for _ in range(5):  # its writer may remove the newest of this listing when it has published the next
        names = manifest_names(location.names(where))
        if not names:
            return None
        try:
            return load(location, f"{where}/{names[-1]}")
        except FileNotFoundError:
            continue
    raise StoreError(f"{location.absolute(where)}: manifests vanish while being read - try again")


def load(location: Location, path: str) -> Manifest:
    """Read a manifest; FileNotFoundError if it is gone."""
    data = location.read(path)
    advice = "move it away; the pack then continues from the manifest before it"
    try:
        raw: dict[str, Any] = json.loads(data)
        found = raw.pop("format")
        if found > FORMAT:
            raise StoreError(f"{location.absolute(path)}: format {found} is newer than this program - upgrade ndt-ray")
        parts = tuple(Part(**part) for part in raw.pop("parts"))
        state = raw.pop("state")
        trials = tuple(raw.pop("trials"))
        manifest = Manifest(parts=parts, trials=trials, state=State(**state) if state else None, **raw)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StoreError(f"{location.absolute(path)} is not a manifest of this store - {advice}") from error
    if manifest.path != path:
        raise StoreError(f"{location.absolute(path)} is the manifest of {manifest.path} - {advice}")
    return manifest


def publish(location: Location, manifest: Manifest) -> None:
    """Commit: once this returns, the files that it names exist and no others."""
    location.write(manifest.path, manifest.dump())


def verify(location: Location, owner: str, files: Iterable[Part | State], *, deep: bool = False) -> None:
    """Raise StoreError for the first committed file that is missing, short or (deep) altered."""
    for file in files:
        size = location.size(file.path)
        if size is None:
            trouble = "is missing"
        elif size != file.bytes:
            trouble = f"has {size} bytes instead of {file.bytes}"
        elif deep and hashlib.sha256(location.read(file.path)).hexdigest() != file.sha256:
            trouble = "is not what was committed (SHA-256)"
        else:
            continue
        raise StoreError(
            f"{location.absolute(file.path)} {trouble}, but {owner} committed it - put it back from a copy, or remove "
            f"commits/{owner} (of an analysis: outputs/{owner}) and run the same command, which makes it again"
        )


def _highest(names: list[str]) -> int:
    """Over claims and manifests: a generation whose claim was tidied away stays taken."""
    found = [m.group(1) for n in names if (m := _GENERATION.fullmatch(n) or _MANIFEST.fullmatch(n))]
    return max((int(number) for number in found), default=0)
