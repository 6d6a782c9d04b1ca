"""A sweep from its file to its tables: plan, what is left of it, launch, analyses. The `ndt sweep` of programs."""

import contextlib
import functools
import hashlib
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ndt_ray import lease
from ndt_ray.errors import INTERRUPTED, CheckpointError, SpecError
from ndt_ray.jobs import ForeignFingerprint, Job
from ndt_ray.launch import Emit, Executor, ExecutorName, Inline, OnRay, Resources, Summary, Teller, launch
from ndt_ray.plan import Pack, Plan, make_plan
from ndt_ray.plan.file import plan_lines, read_plan
from ndt_ray.progress import Silent, View, event
from ndt_ray.spec.axes import Sweep
from ndt_ray.spec.sweepfile import dump_sweep
from ndt_ray.store.filesystem import Location
from ndt_ray.store.manifests import generation
from ndt_ray.store.reader import Store, open_store
from ndt_ray.store.sweep import Sweep as SweepFolder
from ndt_ray.store.sweep import list_sweeps

if TYPE_CHECKING:
    from ndt_ray.analysis.running.runner import Progress, Report
    from ndt_ray.lanes import Engine

Notify = Callable[[str], None]
ANALYSIS_EVENT_SECONDS = 0.5
"""At least, between two events of an analysis' progress."""


@dataclass(frozen=True)
class Options:
    """How to run; no part of what the trials are."""

    executor: ExecutorName = "ray"
    address: str | None = None
    workers: int | None = None
    """Packs at once on a cluster started here; as many as cores by default."""
    drain: bool = False
    fail_fast: bool = False
    restart: bool = False
    """Begin half-done packs anew, as where another kind of machine began them; with `packs`, finished ones too."""
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
    analyses: "list[Report]" = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Everything that was to be done is done."""
        launched = self.launch
        return not (launched.failed or launched.lanes_failed or launched.stopped) and all(r.ok for r in self.analyses)

    @property
    def exit_code(self) -> int:
        """0; 130 if interrupted; that of the error by which every pack failed; else 1."""
        if self.launch.interrupted:
            return INTERRUPTED
        codes = {int(e.get("code", 1)) for e in self.launch.failed}
        if len(codes) == 1 and not self.launch.finished:
            return codes.pop()
        return 0 if self.ok else 1


# -- planning --------------------------------------------------------------------------------------------------------


def plan_sweep(
    sweep: Sweep,
    store: Store | None,
    options: Options | None = None,
    notify: Notify | None = None,
    *,
    measured: bool = True,
) -> Plan:
    """The plan of a sweep, with packs that an earlier run of it in this store has claimed left as they are.

    With `measured`, times that are not known are measured on this machine, for some seconds; else they are guessed.
    """
    from ndt_ray.catalogue import TorchCatalogue
    from ndt_ray.worker import time_pack

    claimed = _claimed(store, sweep.name) if store is not None else []
    catalogue = TorchCatalogue(timer=time_pack if measured and not sweep.run.gpus else None)
    return make_plan(sweep, catalogue, workers=_workers(sweep, options or Options()), claimed=claimed, notify=notify)


def _workers(sweep: Sweep, options: Options) -> int:
    """How many packs train at once, as far as it is known before a cluster is joined."""
    if options.executor == "inline":
        return 1
    return options.workers or max(1, math.floor((os.cpu_count() or 1) / sweep.run.cpus))


def _claimed(store: Store, name: str) -> list[Pack]:
    """Packs of the stored plan that some worker has claimed: their members never change."""
    if (before := stored_plan(store, name)) is None:
        return []
    claimed = set(store.location.names(f"commits/{name}"))
    return [pack for pack in (*before.packs, *before.outside) if pack.pack_id in claimed]


def stored_plan(store: Store, name: str) -> Plan | None:
    """The plan of the last launch of a sweep, if there was one."""
    if name not in list_sweeps(store):
        return None
    path = f"{SweepFolder(store.location, name).folder}/plan.json"
    if store.location.size(path) is None:
        return None
    return read_plan(store.location.read(path).decode().splitlines(keepends=True), store.location.absolute(path))


def _finished_plan(store: Store, sweep: Sweep) -> Plan | None:
    """The stored plan, if it is certain to be what planning would give again, and all of it is finished.

    Planning loads torch, data and models; a sweep that is done is told from its files alone.
    """
    folder = SweepFolder(store.location, sweep.name)
    if not {"spec.yaml", "env.json", "plan.json"} <= set(store.location.names(folder.folder)):
        return None
    if folder.spec != dump_sweep(sweep) or folder.env.get("code") != code_hash():
        return None
    plan = stored_plan(store, sweep.name)
    done = {m.pack for m in store.manifests(sweep.name) if m.finished}
    if plan is None or any(p.pack_id not in done or p.first.source is not None for p in plan.packs):
        return None
    return plan


@functools.cache
def code_hash() -> str:
    """SHA-256 of the package's own source: with the same spec it gives the same plan."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


# -- running ---------------------------------------------------------------------------------------------------------


def run_sweep(
    sweep: Sweep,
    store: Store | str | Path,
    options: Options | None = None,
    view: View | None = None,
    notify: Notify | None = None,
) -> Result:
    """Runs what is not finished of a sweep, then its analyses. The same call goes on after any interruption.

    A `store` that is not there yet is made, once the sweep has been found to make sense. SpecError, DataError,
    StoreError or ClusterError where nothing can be run; what goes wrong with single packs is in the result. The first
    Ctrl-C stops gracefully, the second raises KeyboardInterrupt.
    """
    options, view = options or Options(), Silent() if view is None else view
    there = store if isinstance(store, Store) else _existing(store)
    plan = None
    if there is not None:
        lease.refuse(SweepFolder(there.location, sweep.name), "run twice")
        plan = None if options.packs or options.restart else _finished_plan(there, sweep)
    if fresh := plan is None:
        plan = plan_sweep(sweep, there, options, notify, measured=False)
    assert plan is not None
    opened = there or open_store(str(store), create=True)
    folder = SweepFolder(opened.location, sweep.name)
    with contextlib.ExitStack() as stack:
        stack.callback(view.close)
        stack.enter_context(lease.held(folder))
        if fresh:
            _write(folder, plan, sweep)
        tell = Teller(folder, view)
        stack.callback(tell.flush)
        return _run(sweep, opened, folder, plan, options, tell, stack)


def _run(
    sweep: Sweep,
    store: Store,
    folder: SweepFolder,
    plan: Plan,
    options: Options,
    tell: Emit,
    stack: contextlib.ExitStack,
) -> Result:
    done = {m.pack for m in store.manifests(sweep.name) if m.finished}
    todo = [pack for pack in plan.longest_first() if pack.pack_id not in done]
    if options.packs:
        todo = _chosen(plan, options.packs, set() if options.restart else done)
    jobs = [_job(pack, store, sweep, options) for pack in todo]
    already = sum(len(p.lanes) for p in plan.packs if p.pack_id in done)
    executor: Executor = Inline()
    if options.executor == "ray":
        executor = OnRay(Resources(**sweep.run.model_dump(exclude={"lanes"})), options.address, options.workers)
    stack.callback(executor.close)
    tell(event("plan", sweep=sweep.name, packs=[_told(pack) for pack in todo], finished_trials=already))
    summary = launch(folder, jobs, executor, tell, drain=options.drain, fail_fast=options.fail_fast)
    result = Result(plan, summary, already)
    if options.analyses and not summary.interrupted and not options.packs:
        result.analyses = run_analyses(sweep, store, options, executor, tell)
    tell(event("done", finished=summary.finished, failed=len(summary.failed), stopped=summary.stopped, ok=result.ok))
    return result


def run_analyses(sweep: Sweep, store: Store, options: Options, executor: Executor, tell: Emit) -> "list[Report]":
    """The analyses that a sweep names, over what is finished of it; one cluster serves all, if any has work to do."""
    from ndt_ray.analysis.running.stored import analyze_all

    given: dict[str, Any] = {"executor": options.executor, "progress": _AnalysisTeller(executor, tell)}
    if options.executor == "ray":
        given |= {"workers": options.workers, "address": options.address}
    return analyze_all(store, sweep.name, [(named.name, named.params or None) for named in sweep.analyses], **given)


class _AnalysisTeller:
    """An analysis' progress as events, now and then."""

    def __init__(self, executor: Executor, tell: Emit) -> None:
        self.executor, self.tell = executor, tell
        self.last = 0.0

    def __call__(self, p: "Progress") -> None:
        over = p.done + p.skipped + p.dead == p.total
        if p.partition is None and not over:
            self.executor.start()
        now = time.monotonic()
        if over or now - self.last >= ANALYSIS_EVENT_SECONDS:
            self.last = now
            counts = {name: getattr(p, name) for name in ("total", "done", "skipped", "dead", "retries")}
            self.tell(event("analysis", analysis=p.analysis, last=over, **counts))


def _existing(store: str | Path) -> Store | None:
    """A store that is there; None where there is nothing yet. StoreError where something else is."""
    location = Location.of(store)
    taken = any(not name.startswith(".") for name in location.names(""))
    return open_store(store, create=True) if taken else None  # with create, its error names what is in the way


def _write(folder: SweepFolder, plan: Plan, sweep: Sweep) -> None:
    folder.location.write(f"{folder.folder}/plan.json", "".join(plan_lines(plan)).encode())
    folder.write_env(environment())
    folder.write_spec(dump_sweep(sweep))


def _chosen(plan: Plan, wanted: tuple[str, ...], done: set[str]) -> list[Pack]:
    known = {pack.pack_id: pack for pack in plan.packs}
    for name in wanted:
        if name not in known:
            raise SpecError(f"--pack {name}: no such pack in this plan; `ndt plan --json` lists them")
    return [known[name] for name in wanted if name not in done]


def _told(pack: Pack) -> dict[str, Any]:
    """A pack as the plan event names it."""
    trials, steps = len(pack.lanes), pack.first.train.steps
    return {"pack": pack.pack_id, "cell": pack.lanes[0].cell, "trials": trials, "steps": steps}


def _job(pack: Pack, store: Store, sweep: Sweep, options: Options) -> Job:
    location = store.location
    where = location.root if location.local else location.uri
    first = pack.first.model_dump_json()
    begin_after = generation(location, sweep.name, pack.pack_id) if options.restart else 0
    return Job(where, sweep.name, pack.pack_id, first, pack.lanes, sweep.run.gpus, begin_after)


# -- one trial -------------------------------------------------------------------------------------------------------


def continue_from(
    store: Store, trial_id: str, step: int, until: int | None = None, sweep: str | None = None
) -> "Engine":
    """Trains a trial on from its checkpoint at `step` to `until` (its last step by default), recording nothing.

    The trajectory is that of the run that saved it, bit for bit: `engine.lane_state(0)` at a later step equals the
    checkpoint stored there, and `engine.models[0]` is the module. CheckpointError where there is no such checkpoint
    or it is corrupt, ForeignFingerprint where this machine's numbers would differ, SpecError for steps out of range.
    """
    import torch

    from ndt_ray import native
    from ndt_ray.lanes.numerics import fingerprint
    from ndt_ray.spec import Trial
    from ndt_ray.train import continue_trial
    from ndt_ray.worker import make_pack, prepared

    rows = store.arrow(
        "SELECT sweep, cell, engine, fingerprint, spec FROM trials WHERE trial_id = ? AND (? IS NULL OR sweep = ?)",
        [trial_id, sweep, sweep],
    ).to_pylist()
    if not rows:
        raise CheckpointError(
            f'no trial {trial_id} in {store.location.uri} - `ndt query "SELECT trial_id FROM trials"`'
        )
    trial = Trial.model_validate_json(rows[0]["spec"])
    last = trial.train.steps
    until = last if until is None else until
    if not 0 <= step <= until <= last:
        raise SpecError(f"steps must be in order, 0 <= step <= until <= {last}, but got ({step=}, {until=})")
    state, _ = store.checkpoint(trial_id, step, rows[0]["sweep"])
    on_gpu = " cuda" in rows[0]["fingerprint"] and torch.cuda.is_available()
    with prepared(float(on_gpu)) as device, native.as_recorded(rows[0]["fingerprint"]):
        if fingerprint(device) != rows[0]["fingerprint"]:
            raise ForeignFingerprint(
                f"trial {trial_id} was trained on '{rows[0]['fingerprint']}', and this machine is "
                f"'{fingerprint(device)}': its numbers would not be the trial's"
            )
        return continue_trial(make_pack([trial], (rows[0]["cell"],), device), state, step, until)


# -- where it ran ----------------------------------------------------------------------------------------------------


def environment() -> dict[str, Any]:
    """Where and with what a sweep was launched."""
    versions = {name: _version(name) for name in ("ndt-ray", "torch", "ray", "numpy", "pyarrow", "duckdb")}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "versions": versions,
        "code": code_hash(),
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
