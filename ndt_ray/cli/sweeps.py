"""Commands that plan, run and tend sweeps."""

import json
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from ndt_ray.cli.options import (
    DEFAULT_STORE,
    AddressOption,
    ExecutorOption,
    JsonOption,
    SetOption,
    StoreOption,
    WhereOption,
    WorkersOption,
    exists,
    opened,
    sweep_from,
)
from ndt_ray.errors import SpecError, StoreError

if TYPE_CHECKING:
    from ndt_ray.launch import ExecutorName
    from ndt_ray.run import Result

SweepName = Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep file, or the name of one that comes along.")]
StoredSweep = Annotated[str, typer.Argument(metavar="SWEEP", help="Name of a sweep in the store.")]


def register(ndt: typer.Typer) -> None:
    """Adds this module's commands."""
    for command in (plan, sweep, status, stop, logs, rm):
        ndt.command()(command)


def plan(
    name: SweepName,
    store: StoreOption = DEFAULT_STORE,
    assignments: SetOption = None,
    where: WhereOption = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a sweep would do: trials, packs, time, memory, disk. Starts nothing and writes nothing."""
    from ndt_ray.cli.show import plan_tables
    from ndt_ray.planfile import plan_lines
    from ndt_ray.run import Options, plan_sweep

    there = opened(store) if exists(store) else None
    made = plan_sweep(sweep_from(name, assignments, where), there, Options(workers=workers), notify=_notice)
    if as_json:
        sys.stdout.writelines(plan_lines(made))
    else:
        plan_tables(made)


def sweep(
    name: SweepName,
    store: StoreOption = DEFAULT_STORE,
    assignments: SetOption = None,
    where: WhereOption = None,
    executor: ExecutorOption = "ray",
    address: AddressOption = None,
    workers: WorkersOption = None,
    pack: Annotated[list[str] | None, typer.Option("--pack", help="Only this pack, e.g. one that failed.")] = None,
    drain: Annotated[bool, typer.Option("--drain", help="Ctrl-C lets running packs end.")] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first failed pack.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew what another kind of machine began.")] = False,
    analyses: Annotated[bool, typer.Option("--analyses/--no-analyses", help="Run the sweep's analyses.")] = True,
    figure: Annotated[str | None, typer.Option("--figure", help="Write the layer by step map here.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a sweep, or go on with one: the same command after any interruption."""
    from ndt_ray.progress import make_view
    from ndt_ray.run import Options, run_sweep

    if executor not in ("ray", "inline"):
        raise SpecError(f"--executor {executor}: choose ray or inline")
    chosen = sweep_from(name, assignments, where)
    options = Options(
        executor=cast("ExecutorName", executor),
        address=address,
        workers=workers,
        drain=drain,
        fail_fast=fail_fast,
        restart=restart,
        packs=tuple(pack or ()),
        analyses=analyses,
    )
    there = opened(store, create=True)
    result = run_sweep(chosen, there, options, make_view(as_json), notify=_notice)
    if not as_json:
        _tell(result, store, chosen.name)
        if figure is not None or result.ok:
            _figure(there, chosen.name, figure)
    if result.launch.interrupted:
        raise typer.Exit(130)
    raise typer.Exit(0 if result.ok else 1)


def _tell(result: "Result", store: str, name: str) -> None:
    """How a run ended, on stderr: failures first, each with the command that reproduces it."""
    launched = result.launch
    lines = []
    for failure in launched.failed:
        lines += [f"✗ {failure['pack']} {failure['cell']}: {failure['error']}", f"    {failure['reproduce']}"]
    lines += [f"✗ trial {trial}: {error}" for trial, error in launched.lanes_failed]
    for report in result.analyses:
        lines += [f"✗ {report.analysis}: {letter}" for letter in report.dead]
    if launched.stopped:
        lines.append(f"stopped: {launched.stopped} packs are not finished; the same command goes on")
    if not launched.finished and not launched.failed and not launched.stopped:
        lines.append(f"{result.already} of {result.plan.n_trials} trials already done: nothing to run")
    for line in lines:
        print(line, file=sys.stderr)
    if launched.finished or result.already:
        from ndt_ray.summary import print_summary

        print_summary(opened(store), name, store)


def _figure(store: Any, name: str, path: str | None) -> None:
    from ndt_ray.figures import demo_figure

    target = path or (f"{store.location.root}/sweeps/{name}/layers.png" if store.location.local else None)
    if target is not None:
        demo_figure(store, name, target)
        print(f"figure  {target}", file=sys.stderr)


def status(
    name: Annotated[str | None, typer.Argument(metavar="[SWEEP]")] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """How far the sweeps of a store are."""
    from ndt_ray.cli.show import frame

    there = opened(store)
    if name is None:
        frame(there.sweeps(), as_json)
        return
    from ndt_ray.store.sweep import open_sweep

    folder = open_sweep(there, name)
    running = {a.pack: f"{a.host} pid {a.pid}" for a in folder.running()}
    rows = [
        {
            "pack": m.pack,
            "trials": len(m.trials),
            "step": m.step,
            "state": "finished" if m.finished else "running" if m.pack in running else "waiting",
            "where": running.get(m.pack, ""),
        }
        for m in there.manifests(name)
    ]
    known = {m.pack for m in there.manifests(name)}
    for planned in folder.plan["packs"]:
        if planned["pack_id"] not in known:
            rows.append(
                {
                    "pack": planned["pack_id"],
                    "trials": len(planned["lanes"]),
                    "step": 0,
                    "state": "waiting",
                    "where": "",
                }
            )
    import pandas as pd

    frame(pd.DataFrame(rows), as_json)


def stop(
    name: StoredSweep,
    store: StoreOption = DEFAULT_STORE,
    drain: Annotated[bool, typer.Option("--drain", help="Let running packs end, start no more.")] = False,
) -> None:
    """Ask a running sweep to commit and stop, wherever it runs."""
    from ndt_ray.store.sweep import open_sweep

    folder = open_sweep(opened(store), name)
    folder.request_stop("drain" if drain else "stop")
    print(f"asked {name} to {'drain' if drain else 'stop'}; `ndt sweep` goes on with it", file=sys.stderr)


def logs(
    name: StoredSweep,
    store: StoreOption = DEFAULT_STORE,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the sweep is done.")] = False,
    as_json: JsonOption = False,
) -> None:
    """The events of a sweep, and every attempt at its packs."""
    from ndt_ray.store.sweep import open_sweep

    there = opened(store)
    folder = open_sweep(there, name)
    seen = 0
    while True:
        events = folder.events(after=seen)
        seen += len(events)
        for event in events:
            print(json.dumps(event) if as_json else _event_line(event), flush=True)
        if not follow or any(e["event"] == "done" for e in events):
            break
        time.sleep(1.0)
    for attempt in there.attempts(name) if not follow else ():
        print(json.dumps({"attempt": asdict(attempt)}, default=str) if as_json else f"attempt {attempt}")


def _event_line(event: dict[str, Any]) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["time"]))
    rest = {k: v for k, v in event.items() if k not in ("time", "event", "packs")}
    return f"{when} {event['event']:9s} " + " ".join(f"{k}={v}" for k, v in rest.items())


def rm(
    name: StoredSweep,
    store: StoreOption = DEFAULT_STORE,
    force: Annotated[Literal["", "yes"], typer.Option("--force", help="'yes': even while it runs.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove a sweep with all its data."""
    from ndt_ray.store.sweep import open_sweep, remove_sweep

    there = opened(store)
    open_sweep(there, name)
    if not yes and not typer.confirm(f"remove {name} and all its data from {store}?"):
        raise StoreError("nothing was removed")
    remove_sweep(there, name, force=force == "yes")


def _notice(text: str) -> None:
    print(text, file=sys.stderr)
