"""A sweep from its file to its tables: plan, what is left of it, launch, analyses. The `ndt sweep` of programs."""

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from ndt_ray.analysis.runner import Report
from ndt_ray.analysis.stored import analyze
from ndt_ray.axes import Sweep
from ndt_ray.catalogue import TorchCatalogue
from ndt_ray.errors import SpecError
from ndt_ray.launch import ExecutorName, Inline, OnRay, Resources, Summary, launch
from ndt_ray.plan import Pack, Plan, make_plan
from ndt_ray.planfile import plan_lines, read_plan
from ndt_ray.progress import Silent, View
from ndt_ray.store.reader import Store
from ndt_ray.store.sweep import Sweep as SweepFolder
from ndt_ray.store.sweep import list_sweeps
from ndt_ray.sweepfile import dump_sweep
from ndt_ray.worker import Job, time_pack


@dataclass(frozen=True)
class Options:
    """How to run; no part of what the trials are."""

    executor: ExecutorName = "ray"
    address: str | None = None
    workers: int | None = None
    """Workers of a cluster started here; as many as cores by default."""
    drain: bool = False
    fail_fast: bool = False
    restart: bool = False
    """Begin packs anew that were half done on another kind of machine."""
    packs: tuple[str, ...] = ()
    """Only these packs (to reproduce a failure)."""
    analyses: bool = True


@dataclass
class Result:
    """What a run of a sweep did."""

    plan: Plan
    launch: Summary
    already: int
    """Trials that were finished before."""
    analyses: list[Report] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Everything that was to be done is done."""
        launched = self.launch
        return not (launched.failed or launched.lanes_failed or launched.stopped) and all(r.ok for r in self.analyses)


def plan_sweep(
    sweep: Sweep, store: Store | None, options: Options | None = None, notify: Callable[[str], None] | None = None
) -> Plan:
    """The plan of a sweep, with packs that an earlier run of it in this store has claimed left as they are."""
    options = options or Options()
    claimed = _claimed(store, sweep.name) if store is not None else []
    catalogue = TorchCatalogue(timer=None if sweep.run.gpus else time_pack)
    return make_plan(sweep, catalogue, workers=workers_of(options), claimed=claimed, notify=notify)


def workers_of(options: Options) -> int:
    """How many packs train at once, as far as it is known before a cluster is joined."""
    if options.executor == "inline":
        return 1
    return options.workers or os.cpu_count() or 1


def run_sweep(
    sweep: Sweep,
    store: Store,
    options: Options | None = None,
    view: View | None = None,
    notify: Callable[[str], None] | None = None,
) -> Result:
    """Runs what is not finished of a sweep, then its analyses. The same call goes on after any interruption."""
    options, view = options or Options(), view or Silent()
    plan = plan_sweep(sweep, store, options, notify)
    folder = SweepFolder(store.location, sweep.name)
    _write(folder, plan, sweep)
    done = {m.pack for m in store.manifests(sweep.name) if m.finished}
    todo = [pack for pack in plan.longest_first() if pack.pack_id not in done]
    if options.packs:
        todo = _chosen(plan, options.packs, done)
    jobs = [_job(pack, store, sweep, options) for pack in todo]
    already = sum(len(p.lanes) for p in plan.packs if p.pack_id in done)
    resources = Resources(sweep.run.cpus, sweep.run.gpus, sweep.run.retries)
    executor = Inline() if options.executor == "inline" else OnRay(resources, options.address, options.workers)
    try:
        summary = launch(
            folder, jobs, executor, view, finished_trials=already, drain=options.drain, fail_fast=options.fail_fast
        )
    finally:
        view.close()
    result = Result(plan, summary, already)
    if options.analyses and not summary.interrupted and not options.packs:
        result.analyses = run_analyses(sweep, store, options)
    return result


def run_analyses(sweep: Sweep, store: Store, options: Options) -> list[Report]:
    """The analyses that a sweep names, over what is finished of it."""
    reports = []
    for named in sweep.analyses:
        given: dict[str, Any] = {"executor": options.executor, "parameters": named.params or None}
        if options.executor == "ray":
            given |= {"workers": options.workers, "address": options.address}
        reports.append(analyze(store, sweep.name, named.name, **given))
    return reports


def _claimed(store: Store, name: str) -> list[Pack]:
    """Packs of the stored plan that some worker has claimed: their members never change."""
    if name not in list_sweeps(store):
        return []
    folder = SweepFolder(store.location, name)
    if store.location.size(f"{folder.folder}/plan.json") is None:
        return []
    claimed = set(store.location.names(f"commits/{name}"))
    text = store.location.read(f"{folder.folder}/plan.json").decode()
    before = read_plan(text.splitlines(keepends=True), f"{folder.folder}/plan.json")
    return [pack for pack in (*before.packs, *before.outside) if pack.pack_id in claimed]


def _write(folder: SweepFolder, plan: Plan, sweep: Sweep) -> None:
    text = "".join(plan_lines(plan))
    folder.location.write(f"{folder.folder}/plan.json", text.encode())
    folder.write_env(environment())
    folder.write_spec(dump_sweep(sweep))


def _chosen(plan: Plan, wanted: tuple[str, ...], done: set[str]) -> list[Pack]:
    known = {pack.pack_id: pack for pack in plan.packs}
    for name in wanted:
        if name not in known:
            raise SpecError(f"--pack {name}: no such pack in this plan; `ndt plan` lists them")
    return [known[name] for name in wanted if name not in done]


def _job(pack: Pack, store: Store, sweep: Sweep, options: Options) -> Job:
    location = store.location
    return Job(
        store=location.root if location.local else location.uri,
        sweep=sweep.name,
        pack=pack.pack_id,
        trials=tuple(t.model_dump(mode="json") for t in pack.trials),
        cells=tuple(lane.cell for lane in pack.lanes),
        gpus=sweep.run.gpus,
        restart=options.restart,
    )


def environment() -> dict[str, Any]:
    """Where and with what a sweep was launched."""
    versions = {name: _version(name) for name in ("ndt-ray", "torch", "ray", "numpy", "pyarrow", "duckdb")}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "versions": versions,
        "git": _git(),
        "command": sys.argv,
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def _git() -> str | None:
    """Commit (and whether it is modified) of the working directory, where it is a checkout."""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip() or None
