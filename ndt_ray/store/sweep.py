"""A sweep's directory: what was asked (spec, plan), where it ran (env), what happened (events), and the stop file."""

import json
import re
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import yaml

from ndt_ray.errors import StoreError, did_you_mean
from ndt_ray.store import attempts
from ndt_ray.store.filesystem import Location
from ndt_ray.store.manifests import check_name
from ndt_ray.store.schema import COMPUTED
from ndt_ray.store.snapshot import Snapshot
from ndt_ray.store.writer import HasLocation

ALIVE_SECONDS = 120.0
"""A pack commits every 30 s; one that has not for this long is taken for dead."""

_SEGMENT = re.compile(r"events-\d{17}-[0-9a-f]{8}\.jsonl")


@dataclass(frozen=True)
class Sweep:
    """The directory `sweeps/<name>/` of a store."""

    location: Location
    name: str

    @property
    def folder(self) -> str:
        return f"sweeps/{check_name('sweep', self.name)}"

    @property
    def has_spec(self) -> bool:
        return self.location.size(f"{self.folder}/spec.yaml") is not None

    @property
    def spec(self) -> str:
        """spec.yaml as written."""
        return self._read("spec.yaml").decode()

    @property
    def plan(self) -> dict[str, Any]:
        return self._json("plan.json")

    @property
    def env(self) -> dict[str, Any]:
        return self._json("env.json")

    def write_spec(self, text: str) -> None:
        self.location.write(f"{self.folder}/spec.yaml", text.encode())

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        self._write_json("plan.json", plan)

    def write_env(self, env: Mapping[str, Any]) -> None:
        self._write_json("env.json", env)

    def append_events(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Add to the event log. On an object store, which cannot append, each call is one more segment."""
        data = b"".join(json.dumps(event, default=str).encode() + b"\n" for event in events)
        if not data:
            return
        if self.location.local:
            self.location.append(f"{self.folder}/events.jsonl", data)
        else:
            segment = f"events-{time.time_ns() // 100:017d}-{uuid.uuid4().hex[:8]}.jsonl"
            self.location.write(f"{self.folder}/{segment}", data)

    def events(self, after: int = 0) -> list[dict[str, Any]]:
        """Events but the first `after` of them. A last line that is still being written is left for the next call."""
        names = self.location.names(self.folder)
        segments = ["events.jsonl"] if "events.jsonl" in names else sorted(n for n in names if _SEGMENT.fullmatch(n))
        data = b"".join(self._read(name) for name in segments)
        lines = data[: data.rfind(b"\n") + 1].splitlines()[after:]
        return [json.loads(line) for line in lines]

    def request_stop(self, mode: str = "stop") -> None:
        """Ask every running pack to commit and stop (or, by another mode, what the launcher makes of it)."""
        self.location.write(f"{self.folder}/stop", mode.encode(), durable=False)

    def stop_requested(self) -> str | None:
        """The mode that was asked for, if any."""
        if self.location.size(f"{self.folder}/stop") is None:
            return None
        return self._read("stop").decode()

    def clear_stop(self) -> None:
        self.location.delete(f"{self.folder}/stop")

    def running(self) -> list[attempts.Attempt]:
        """Attempts that committed within two minutes and have not ended."""
        packs = self.location.names(f"commits/{self.name}")
        newest = [found[-1] for pack in packs if (found := attempts.read(self.location, self.name, pack))]
        return [a for a in newest if a.status == "running" and a.idle() < ALIVE_SECONDS]

    def _read(self, name: str) -> bytes:
        try:
            return self.location.read(f"{self.folder}/{name}")
        except FileNotFoundError as error:
            where = self.location.absolute(f"{self.folder}/{name}")
            raise StoreError(f"{where} is missing - run the sweep's command again, which writes it") from error

    def _json(self, name: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self._read(name))
            return found
        except ValueError as error:
            where = self.location.absolute(f"{self.folder}/{name}")
            raise StoreError(f"{where} is not JSON ({error}) - run the sweep's command again") from error

    def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
        self.location.write(f"{self.folder}/{name}", (json.dumps(value, indent=1, default=str) + "\n").encode())


def create_sweep(
    store: HasLocation, name: str, spec: str, plan: Mapping[str, Any], env: Mapping[str, Any] | None = None
) -> Sweep:
    """Make a sweep's directory, or bring the spec and plan of an existing one up to date (a grid may grow)."""
    sweep = Sweep(store.location, name)
    sweep.write_plan(plan)
    sweep.write_env(env or {})
    sweep.write_spec(spec)
    return sweep


def open_sweep(store: HasLocation, name: str) -> Sweep:
    """An existing sweep; StoreError with the nearest name if there is none."""
    known = list_sweeps(store)
    if name not in known:
        raise StoreError(f"{store.location.uri}: no sweep {name!r}{did_you_mean(name, known)}")
    return Sweep(store.location, name)


def list_sweeps(store: HasLocation) -> list[str]:
    """Names of all sweeps that have a directory or commits."""
    location = store.location
    found = set(location.names("sweeps")) | set(location.names("commits"))
    return sorted(name for name in found if not name.startswith("."))


def remove_sweep(store: HasLocation, name: str, *, force: bool = False) -> None:
    """Remove a sweep with all its data. StoreError while a pack of it runs, unless `force`.

    Commits go first: from then on nothing of it is visible, and a worker that still runs finds itself superseded.
    """
    sweep = open_sweep(store, name)
    if not force and (running := sweep.running()):
        hosts = ", ".join(f"{a.pack} on {a.host} (pid {a.pid})" for a in running[:3])
        raise StoreError(f"sweep {name} is running: {hosts} - stop it first (`ndt stop {name}`)")
    location = store.location
    location.delete_tree(f"commits/{name}")
    location.delete_tree(f"outputs/{name}")
    for table in location.names("data"):
        location.delete_tree(f"data/{table}/sweep={name}")
    for kind in ("state", "checkpoints", "artifacts", "sweeps"):
        location.delete_tree(f"{kind}/{name}")


def sweeps_table(store: HasLocation, snapshot: Snapshot) -> pa.Table:
    """Rows of the table `sweeps`."""
    rows = []
    for name in list_sweeps(store):
        sweep = Sweep(store.location, name)
        packs = [m for m in snapshot.manifests if m.sweep == name]
        finished = [m for m in packs if m.finished]
        names = store.location.names(sweep.folder)
        spec = sweep.spec if "spec.yaml" in names else None
        rows.append(
            {
                "sweep": name,
                "about": _about(spec),
                "packs": len(packs),
                "packs_finished": len(finished),
                "trials": sum(len(m.trials) for m in packs),
                "trials_finished": sum(len(m.trials) for m in finished),
                "spec": spec,
                "env": json.dumps(sweep.env) if "env.json" in names else None,
            }
        )
    return pa.Table.from_pylist(rows, schema=COMPUTED["sweeps"].arrow())


def _about(spec: str | None) -> str | None:
    try:
        found = yaml.safe_load(spec or "")
    except yaml.YAMLError:
        return None
    return str(found["about"]) if isinstance(found, dict) and "about" in found else None
