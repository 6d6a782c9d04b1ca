"""What the service shows, as plain values, computed once for each state of the store."""

import hashlib
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from ndt_ray.errors import SpecError, did_you_mean
from ndt_ray.progress import Tally
from ndt_ray.report.events import events
from ndt_ray.report.learning import trial_sheet
from ndt_ray.report.maps import Marks, layer_maps, mapped_measures
from ndt_ray.report.order import settled_layers
from ndt_ray.report.page import collect, render
from ndt_ray.report.parts import Plate, Section, Sheet, plain
from ndt_ray.report.source import Source
from ndt_ray.report.words import readable
from ndt_ray.store.reader import Store
from ndt_ray.store.sweep import Sweep, list_sweeps
from ndt_ray.summary import planned_lanes

T = TypeVar("T")
Value = dict[str, Any]
KEPT = 32
"""Answers that are kept, the newest; each is of one state of one sweep."""


class UnknownSweep(SpecError):
    """No sweep of that name."""


@dataclass
class _Kept:
    """An answer that is being made, or was."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    made: bool = False
    value: Any = None


class Board:
    """A store's sweeps as values. Safe to use from several threads."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._lock = threading.Lock()
        self._snapshot: object = None
        self._count = 0
        self._tallies: dict[str, tuple[int, int, Tally]] = {}
        self._plans: dict[str, tuple[str, int]] = {}
        self._kept: dict[tuple[Any, ...], _Kept] = {}

    # -- what changes ----------------------------------------------------------------------------------------------

    def version(self) -> int:
        """Counts the changes of what is committed, since the service began."""
        now = self.store.snapshot()
        with self._lock:
            if now is not self._snapshot:
                self._snapshot, self._count = now, self._count + 1
            return self._count

    def tag(self, *of: object) -> str:
        """An ETag for something of the store as it is now."""
        text = repr((id(self), self.version(), *of))
        return f'"{hashlib.sha256(text.encode()).hexdigest()[:20]}"'

    def sweep(self, name: str) -> Sweep:
        """A sweep's folder. UnknownSweep, with the nearest name, for none."""
        known = list_sweeps(self.store)
        if name not in known:
            raise UnknownSweep(f"no sweep '{name}'{did_you_mean(name, known)}")
        return Sweep(self.store.location, name)

    def _once(self, key: tuple[Any, ...], make: Callable[[], T]) -> T:
        """What was made of this state of the store; else makes it, once, whoever else asks for it meanwhile."""
        now = self.version()
        key = (now, *key)
        with self._lock:
            for old in [k for k in self._kept if k[0] != now]:
                del self._kept[old]
            while len(self._kept) > KEPT:
                del self._kept[next(iter(self._kept))]
            kept = self._kept.setdefault(key, _Kept())
        with kept.lock:
            if not kept.made:
                kept.value, kept.made = make(), True
            found: T = kept.value
            return found

    def source(self, name: str) -> Source:
        self.sweep(name)
        return Source(self.store, name)

    # -- sweeps ----------------------------------------------------------------------------------------------------

    def sweeps(self) -> list[Value]:
        """Every sweep with its state, newest first."""
        rows = self.store.sql("SELECT sweep, about, trials, trials_finished FROM sweeps").to_dict("records")
        found = [self._state(Sweep(self.store.location, str(row["sweep"])), row) for row in rows]
        return sorted(found, key=lambda row: (row["began"] or 0.0, row["sweep"]), reverse=True)

    def one(self, name: str) -> Value:
        """A sweep with its state, its packs as the event log has them, its analyses, and the measures of its maps."""
        folder = self.sweep(name)
        rows = self.store.sql("SELECT sweep, about, trials, trials_finished FROM sweeps WHERE sweep = ?", [name])
        tally = self._tally(folder)
        packs = [
            {"pack": key, "cell": p.cell, "trials": p.trials, "step": p.step, "steps": p.steps, "status": p.status}
            for key, p in tally.packs.items()
        ]
        failed = [
            {"pack": e.get("pack"), "cell": e.get("cell"), "error": str(e.get("error", ""))} for e in tally.failed
        ]
        known = self._once(("measures", name), lambda: self._known(name))
        state = self._state(folder, dict(rows.iloc[0].to_dict()))
        return {**state, "packs": packs, "failures": failed, "notices": tally.notices[-5:], **known}

    def _known(self, name: str) -> Value:
        source = self.source(name)
        family = source.family
        events_of = None if family is None else str(family["measure"])
        return {"measures": mapped_measures(source), "analyses": sorted(source.analyses), "events_measure": events_of}

    def _state(self, folder: Sweep, row: Value) -> Value:
        """How far a sweep is. `state`: running, finished, stopped (some is there, nothing runs), waiting or "
        "imported."""
        running, tally, planned = len(folder.running()), self._tally(folder), self._planned(folder)
        done = int(row["trials_finished"])
        if running:
            state = "running"
        elif planned is None:
            state = "imported"
        elif done >= planned:
            state = "finished"
        else:
            state = "stopped" if int(row["trials"]) else "waiting"
        live = state == "running" and bool(tally.packs)
        return {
            "sweep": folder.name,
            "about": plain(row["about"]),
            "state": state,
            "trials": planned if planned is not None else int(row["trials"]),
            "finished": done,
            "failed_packs": len(tally.failed),
            "running_packs": running,
            "share": round(tally.share, 4) if live else None,
            "rate": round(tally.rate, 1) if live else None,
            "eta_seconds": round(tally.eta) if live and tally.eta is not None else None,
            "began": tally.began or None,
        }

    def _planned(self, folder: Sweep) -> int | None:
        """Trials of the plan; None for an imported sweep."""
        path = f"{folder.folder}/plan.json"
        if self.store.location.size(path) is None:
            return None
        digest = hashlib.sha256(self.store.location.read(path)).hexdigest()
        known = self._plans.get(folder.name)
        if known is None or known[0] != digest:
            known = self._plans[folder.name] = (digest, len(planned_lanes(self.store, folder.name)))
        return known[1] or None

    def _tally(self, folder: Sweep) -> Tally:
        """The state that the event log leads to; only what was added is read again."""
        names = self.store.location.names(folder.folder)
        sizes = [self.store.location.size(f"{folder.folder}/{n}") or 0 for n in names if n.startswith("events")]
        with self._lock:
            size, seen, tally = self._tallies.get(folder.name, (-1, 0, Tally()))
            if sum(sizes) != size:
                if sum(sizes) < size:  # removed and begun anew
                    seen, tally = 0, Tally()
                new = folder.events(after=seen)
                for event in new:
                    tally.take(event)
                self._tallies[folder.name] = (sum(sizes), seen + len(new), tally)
            return tally

    # -- of one sweep ----------------------------------------------------------------------------------------------

    def trials(self, name: str) -> Sheet:
        """One row a planned trial."""
        return self._once(("trials", name), lambda: trial_sheet(self.source(name)))

    def events(self, name: str) -> Value:
        """Events with their nulls: the report's section, as values."""
        return self._once(("events", name), lambda: section_value(self._events(name)[0]))

    def map(self, name: str, measure: str | None) -> Value:
        """Layer by step maps of a measure with the significant events marked, whatever measure these were found on."""
        known = self._once(("measures", name), lambda: self._known(name))["measures"]
        if not known:
            raise SpecError(f"sweep {name} has no measurements yet")
        chosen = measure or ("participation_ratio" if "participation_ratio" in known else known[0])
        if chosen not in known:
            raise SpecError(f"sweep {name} has no measure '{chosen}'{did_you_mean(chosen, known)}")
        return self._once(("map", name, chosen), lambda: self._map(name, chosen))

    def report(self, name: str) -> str:
        """The sweep's report, as of now."""
        self.sweep(name)
        return self._once(("report", name), lambda: render(collect(self.store, name)))

    def tables(self) -> list[Value]:
        """Tables that have rows, with the meaning of their columns."""
        rows = self.store.tables()
        found = []
        for table in [n for n in self.store.names() if rows.get(n, 1)]:
            try:
                known = self.store.schema(table)
                columns = [{"name": c.name, "type": c.type, "unit": c.unit, "doc": c.doc} for c in known.columns]
                found.append({"table": table, "rows": rows.get(table), "doc": known.doc, "columns": columns})
            except SpecError:  # of an analysis that this version does not have
                found.append({"table": table, "rows": rows.get(table), "doc": "", "columns": []})
        return found

    def _events(self, name: str) -> tuple[Section, Marks | None]:
        return events(self.source(name))

    def _map(self, name: str, measure: str) -> Value:
        source = self.source(name)
        marks = events(source)[1]
        own = None if marks is None else replace(marks, words=f"{marks.words}, found on {readable(marks.measure)}")
        settled = settled_layers(source) if measure == "participation_ratio" else None
        return {"measure": measure, "plate": plate_value(layer_maps(source, measure, own, settled))}


# -- values ------------------------------------------------------------------------------------------------------------


def sheet_value(sheet: Sheet) -> Value:
    """A table as JSON: rows as lists, null for what is missing."""
    return {
        "title": sheet.title,
        **rows_value(sheet.rows),
        "docs": sheet.docs,
        "sql": sheet.sql,
        "total": sheet.count,
        "folded": sheet.folded,
    }


def rows_value(rows: pd.DataFrame) -> Value:
    numeric = [bool(pd.api.types.is_numeric_dtype(t) and not pd.api.types.is_bool_dtype(t)) for t in rows.dtypes]
    values = [[json_value(v) for v in row] for row in rows.itertuples(index=False, name=None)]
    return {"columns": [str(c).strip() for c in rows.columns], "numeric": numeric, "rows": values}


def json_value(value: Any) -> Any:
    """As JSON takes it: no infinity, no number that JavaScript would round, lists as lists."""
    if isinstance(value, list | tuple | np.ndarray):
        return [json_value(v) for v in value]
    if isinstance(value, dict):
        return {str(k): json_value(v) for k, v in value.items()}
    value = plain(value)
    if isinstance(value, float) and math.isinf(value):
        return str(value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**53 else value


def plate_value(plate: Plate) -> Value:
    ramp = (
        None
        if plate.ramp is None
        else {"title": plate.ramp.title, "range": plate.ramp.range, "ticks": plate.ramp.ticks}
    )
    figures = [{"title": f.title, "alt": f.alt, "specs": list(f.specs)} for f in plate.figures]
    return {
        "title": plate.title,
        "note": plate.note,
        "wide": plate.wide,
        "keys": plate.keys,
        "ramp": ramp,
        "figures": figures,
    }


def section_value(section: Section) -> Value:
    return {
        "title": section.title,
        "claims": [{"kind": c.kind, "text": c.text, "sql": c.sql} for c in section.told],
        "missing": [{"what": what, "command": command} for what, command in section.missing],
        "plates": [plate_value(p) for p in section.plates],
        "sheets": [sheet_value(s) for s in section.sheets],
    }
