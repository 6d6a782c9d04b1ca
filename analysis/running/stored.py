"""The tables of one sweep of a store, as the runner wants them: by partition, with a hash of what they hold."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import yaml

from ndt_ray.analysis.api import KEYS, OF_SIBLINGS, Partition, Per
from ndt_ray.analysis.running.order import in_order
from ndt_ray.analysis.running.pool import Crew
from ndt_ray.analysis.running.runner import Report, check_layers, resolved, run, run_together, together
from ndt_ray.spec import Named, Trial
from ndt_ray.store import analysis_runs, artifacts
from ndt_ray.store.checkpoints import Tensors
from ndt_ray.store.outputs import Output, Outputs
from ndt_ray.store.reader import Store
from ndt_ray.store.schema import COMPUTED, TABLES
from ndt_ray.store.sweep import Sweep, open_sweep


@dataclass(frozen=True)
class StoredSweep:
    """One sweep of a store; workers open the store again where they are."""

    store: Store
    sweep: str

    def partitions(self, per: Per) -> list[Partition]:
        """Trials that have rows; checkpoints that were saved; or the sweep as a whole."""
        if per == "sweep":
            return [Partition()]
        source = "trials" if per == "trial" else "checkpoints"
        columns = ", ".join(KEYS[per])
        rows = self.store.arrow(
            f"SELECT DISTINCT {columns} FROM {source} WHERE sweep = ? ORDER BY {columns}", [self.sweep]
        )
        return [Partition(**row) for row in rows.to_pylist()]

    def layers(self) -> list[str]:
        """Paths of all layers that were measured in its trials."""
        if "measurements" not in self.store.names():
            return []
        query = "SELECT DISTINCT layer FROM measurements WHERE sweep = ? ORDER BY layer"
        return [str(row["layer"]) for row in self.store.arrow(query, [self.sweep]).to_pylist()]

    def input_hashes(self, reads: Iterable[str], partitions: Sequence[Partition]) -> list[str]:
        """From manifests alone: who trained how far, with how many rows, and which outputs of analyses are in place.

        A pack's rows are a function of its trials, fingerprint and step, so compaction changes nothing here; its
        generation is part of the hash because a pack that was begun anew may have been trained by other code.
        """
        wanted = set(reads)
        tables = sorted({OF_SIBLINGS.get(t, t) for t in wanted})
        siblings = self._siblings() if wanted & set(OF_SIBLINGS) else {}
        snapshot = self.store.snapshot()
        packs: dict[str | None, list[str]] = {None: []}
        for m in sorted((m for m in snapshot.manifests if m.sweep == self.sweep), key=lambda m: m.pack):
            rows = {t: sum(p.rows for p in m.parts if p.table == t) for t in tables}
            line = f"{m.pack} {m.trials} {m.fingerprint} {m.generation} {m.step} {rows}"
            for trial in (None, *m.trials):
                packs.setdefault(trial, []).append(line)
        outputs: dict[str | None, list[str]] = {None: []}
        for sweep, name, output in snapshot.outputs:
            if sweep == self.sweep and any(p.table in tables for p in output.parts):
                first = output.key.split()[0]
                for trial in {None, None if first == str(Partition()) else first}:
                    outputs.setdefault(trial, []).append(f"{name} {output.key} {output.cache_key}")
        shared = [line for line in outputs[None] if line.split()[1] == str(Partition())]
        hashes = []
        for p in partitions:
            own = outputs[None] if p.trial_id is None else [*outputs.get(p.trial_id, []), *shared]
            others = sorted({line for s in siblings.get(p.trial_id, []) for line in packs.get(s, [])})
            lines = [str(p), *packs.get(p.trial_id, []), *others, *sorted(own)]
            hashes.append(hashlib.sha256("\n".join(lines).encode()).hexdigest())
        return hashes

    def read(self, table: str, partition: Partition) -> pa.Table:
        """Rows of the partition's trial (in `checkpoints`, of its step); all of the sweep for tables without trials."""
        if table in OF_SIBLINGS:
            return self._read_siblings(OF_SIBLINGS[table], partition)
        if table not in self.store.names():
            return pa.table({})
        known = {**TABLES, **COMPUTED}.get(table)
        names = (
            {c.name for c in known.columns} if known else set(self.store.arrow(f'FROM "{table}" LIMIT 0').column_names)
        )
        wanted: dict[str, Any] = {"sweep": self.sweep}
        if partition.trial_id is not None and "trial_id" in names:
            wanted["trial_id"] = partition.trial_id
            packs = [m.pack for m in self.store.manifests(self.sweep) if partition.trial_id in m.trials]
            if len(packs) == 1 and known is not None and "pack" in known.partitions:
                wanted["pack"] = packs[0]  # so that no other pack's files are opened
        if partition.step is not None and table == "checkpoints":
            wanted["step"] = partition.step
        tests = " AND ".join(f'"{name}" = ?' for name in wanted)
        return self.store.arrow(f'SELECT * FROM "{table}" WHERE {tests}', list(wanted.values()))

    def _siblings(self) -> dict[str | None, list[str]]:
        """Siblings by the trial that they branch off from."""
        found: dict[str | None, list[str]] = {}
        query = "SELECT trial_id, spec FROM trials WHERE sweep = ? AND control LIKE 'reorder:%' ORDER BY trial_id"
        for row in self.store.arrow(query, [self.sweep]).to_pylist():
            untouched = Trial.model_validate_json(row["spec"]).untouched.trial_id
            found.setdefault(untouched, []).append(row["trial_id"])
        return found

    def _read_siblings(self, table: str, partition: Partition) -> pa.Table:
        own = self._siblings().get(partition.trial_id, [])
        if not own:
            return pa.table({})
        query = f"SELECT m.*, t.control FROM {table} m JOIN trials t USING (sweep, pack, trial_id) WHERE sweep = ?"
        return self.store.arrow(f"{query} AND trial_id IN ({', '.join('?' * len(own))})", [self.sweep, *own])

    def checkpoint(self, trial_id: str, step: int) -> Tensors:
        """Arrays of a saved checkpoint; CheckpointError where there is none, or it is corrupt."""
        return self.store.checkpoint(trial_id, step, self.sweep)[0]

    def artifact(self, kind: str, key: str) -> tuple[str, bytes] | None:
        """(path, bytes) of what an analysis kept under this key; None where nothing was kept."""
        return artifacts.read(self.store.location, self.sweep, kind, key)

    def keep_artifact(self, kind: str, key: str, data: bytes) -> str:
        """Keep a file that is dear to make; its path."""
        return artifacts.write(self.store.location, self.sweep, kind, key, data)

    def committed(self, analysis: str) -> dict[str, str]:
        """Keys of the outputs in place, by partition."""
        return {key: output.cache_key for key, output in self._outputs(analysis).entries().items()}

    def write(
        self,
        analysis: str,
        partition: Partition,
        key: str,
        tables: Mapping[str, pa.Table],
        parameters: Mapping[str, Any],
    ) -> Output:
        """Write an output's files; invisible until committed."""
        return self._outputs(analysis).write(str(partition), tables, cache_key=key, parameters=dict(parameters))

    def parameters(self, analysis: str) -> dict[str, Any] | None:
        """What all outputs in place were computed with; None where there are none, or they differ."""
        found = [output.meta.get("parameters") for output in self._outputs(analysis).entries().values()]
        return found[0] if found and all(p == found[0] for p in found) else None

    def commit(self, analysis: str, written: Iterable[Output], drop: Iterable[str] = ()) -> None:
        """Put outputs in place of the former ones of their partitions."""
        self._outputs(analysis).commit(written, drop)

    def _outputs(self, analysis: str) -> Outputs:
        return Outputs(self.store, self.sweep, analysis)


def analyze(store: Store, sweep: str, analysis: str, **options: Any) -> Report:
    """Run a registered analysis over a sweep of a store; options as in runner.run. StoreError for an unknown sweep."""
    open_sweep(store, sweep)
    report = run(analysis, StoredSweep(store, sweep), **options)
    _timed(store, sweep, [report])
    return report


def analyze_all(
    store: Store,
    sweep: str,
    analyses: Sequence[tuple[str, Mapping[str, Any] | None]],
    *,
    workers: int | None = None,
    cpus: float = 1.0,
    address: str | None = None,
    **options: Any,
) -> list[Report]:
    """Run several, with their parameters, and those whose tables they read, writers first; a report each.

    Parameters that are not given are those that the sweep's spec declares for the analysis, else its defaults. One
    that is not asked for keeps the parameters of the outputs in place. SpecError for an unknown parameter, or a layer
    that no network of the sweep has, before anything is computed.

    Neighbours that look at networks share each one's loading. With executor `ray`, the same workers serve all, hired
    when the first of them has work to do.
    """
    declared = declared_parameters(open_sweep(store, sweep))
    asked = {resolved(name).name for name, _ in analyses}
    ordered = []
    for name, given in in_order(analyses):
        found = resolved(name)
        parameters = {**declared.get(found.name, {}), **(given or {})}
        found.parameters(parameters)
        kept = None if found.name in asked else StoredSweep(store, sweep).parameters(found.name)
        parameters = {k: v for k, v in kept.items() if k in found.defaults} if kept else parameters
        check_layers(found, parameters, StoredSweep(store, sweep))
        ordered.append((name, parameters))
    reports: list[Report] = []
    with Crew(workers, cpus, address) as crew:
        for places in together(ordered):
            group = [ordered[place] for place in places]
            reports += run_together(group, StoredSweep(store, sweep), workers=workers, crew=crew, **options)
            _timed(store, sweep, reports[-len(group) :])
    return reports


def declared_parameters(sweep: Sweep) -> dict[str, dict[str, Any]]:
    """Parameters of analyses by name, as the spec declares them. A tracker's sweep may have none, an imported one has
    little more than these."""
    if not sweep.has_spec:
        return {}
    named = [Named.model_validate(each) for each in (yaml.safe_load(sweep.spec) or {}).get("analyses") or ()]
    return {each.name: each.params for each in named}


def _timed(store: Store, sweep: str, reports: Sequence[Report]) -> None:
    """What took any time goes to the sweep's log: durations differ from run to run, so they stand in no output."""
    counts = ("analysis", "total", "done", "skipped", "retries", "seconds", "busy")
    rows = [
        {name: getattr(r, name) for name in counts}
        | {"dead": len(r.dead), "slowest": r.slowest[0], "slowest_partition": r.slowest[1]}
        for r in reports
        if r.done or r.dead
    ]
    if rows:
        analysis_runs.record(store, sweep, rows)
