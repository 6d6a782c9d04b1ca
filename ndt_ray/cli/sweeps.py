"""Commands that plan, run and tend sweeps."""

import json
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, cast

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
from ndt_ray.errors import INTERRUPTED, SpecError, StoreError

if TYPE_CHECKING:
    from ndt_ray.launch import ExecutorName
    from ndt_ray.run import Result
    from ndt_ray.store.reader import Store

SweepName = Annotated[
    str, typer.Argument(metavar="SWEEP", help="A sweep file, or the name of one that comes along or is in the store.")
]
StoredSweep = Annotated[str, typer.Argument(metavar="SWEEP", help="Name of a sweep in the store.")]

MOST_LANES = 20
"""Failed trials that are listed; the rest is counted."""


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
    from ndt_ray.plan.file import plan_lines
    from ndt_ray.run import Options, plan_sweep

    there = opened(store) if exists(store) else None
    chosen = sweep_from(name, assignments, where, store)
    made = plan_sweep(chosen, there, Options(workers=workers), notify=_notice)
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
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin half-done packs anew (with --pack: finished ones too).")
    ] = False,
    analyses: Annotated[bool, typer.Option("--analyses/--no-analyses", help="Run the sweep's analyses.")] = True,
    figure: Annotated[str | None, typer.Option("--figure", help="Write the layer by step map here.")] = None,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write the report at the end.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Run a sweep, or go on with one: the same command after any interruption."""
    from ndt_ray.progress import make_view
    from ndt_ray.run import Options, run_sweep

    if executor not in ("ray", "inline"):
        raise SpecError(f"--executor {executor}: choose ray or inline")
    chosen = sweep_from(name, assignments, where, store)
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
    try:
        result = run_sweep(chosen, store, options, make_view(as_json), notify=_notice)
    except KeyboardInterrupt:
        print("interrupted at once; the same command goes on from the last commits", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    if not as_json:
        _tell(result, store, chosen.name)
        _figure(store, chosen.name, figure, result)
        if report and not result.launch.interrupted and not options.packs:
            from ndt_ray.cli.reports import after_sweep

            after_sweep(store, chosen.name, result)
    raise typer.Exit(result.exit_code)


def _tell(result: "Result", store: str, name: str) -> None:
    """How a run ended: what went wrong on stderr, each with the command that reproduces it; the summary on stdout."""
    launched = result.launch
    lines = []
    for failed in launched.failed:
        lines += [f"✗ {failed['cell']} (pack {failed['pack']}): {failed['error']}", f"    {failed['reproduce']}"]
    for lane in launched.lanes_failed[:MOST_LANES]:
        lines.append(f"✗ trial {lane.trial} of {lane.cell} (pack {lane.pack}): {lane.error}")
    if launched.lanes_failed:
        lines += [f"    and {len(launched.lanes_failed) - MOST_LANES} trials more"] * (
            len(launched.lanes_failed) > MOST_LANES
        )
        lines += sorted({f"    {lane.reproduce}" for lane in launched.lanes_failed[:MOST_LANES]})
    for report in result.analyses:
        lines += [f"! {report.analysis}: {note}" for note in report.notes]
        lines += [f"✗ {report.analysis} of {letter.partition}: {letter.error}" for letter in report.dead]
    lines += [f"! {event['error']}" for event in launched.taken]
    if unfinished := launched.stopped - len(launched.taken):
        lines.append(f"stopped: {unfinished} packs are not finished; the same command goes on with them")
    if not launched.finished and not launched.failed and not launched.stopped:
        lines.append(f"{result.already:,} of {result.plan.n_trials:,} trials already done: nothing to run")
    for line in lines:
        print(line, file=sys.stderr)
    if launched.finished or result.already:
        from rich.console import Console

        from ndt_ray.summary import sweep_summary

        summary = sweep_summary(opened(store), name, store)
        if sys.stdout.isatty():
            Console().print(summary)
        else:
            sys.stdout.write(summary.text())


def _figure(store: str, name: str, path: str | None, result: "Result") -> None:
    """The layer by step map: where asked, else beside the sweep; drawn anew when there is something new to see."""
    location = opened(store).location
    if path is None:
        if not (result.ok and location.local):
            return
        path = f"{location.root}/sweeps/{name}/layers.png"
        if not result.launch.finished and exists(path):
            return
    from ndt_ray.figures import demo_figure

    demo_figure(opened(store), name, path)
    print(f"figure  {path}", file=sys.stderr)


def status(
    name: Annotated[str | None, typer.Argument(metavar="[SWEEP]", help="All sweeps, by default.")] = None,
    store: StoreOption = DEFAULT_STORE,
    analyses: Annotated[
        bool | None, typer.Option("--analyses/--packs", help="Of a sweep, only these; both by default (JSON: packs).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """How far the sweeps of a store are, or the packs and analyses of one: done, pending, inapplicable."""
    from ndt_ray.cli.show import records

    there = opened(store)
    if name is None:
        columns = "sweep, trials, trials_finished, packs, packs_finished, about"
        records(there.sql(f"SELECT {columns} FROM sweeps ORDER BY sweep").to_dict("records"), as_json, header=True)
        return
    from ndt_ray.run import stored_plan
    from ndt_ray.store.sweep import open_sweep

    folder = open_sweep(there, name)
    if analyses:
        _analyses(there, name, as_json)
        return
    running = {a.pack: f"{a.host} pid {a.pid}" for a in folder.running()}
    committed = {m.pack: m for m in there.manifests(name)}
    planned = stored_plan(there, name)
    rows = []
    for pack in planned.packs if planned else ():
        found = committed.get(pack.pack_id)
        state = "running" if pack.pack_id in running else "waiting"
        rows.append(
            {
                "cell": pack.lanes[0].cell,
                "pack": pack.pack_id,
                "trials": len(pack.lanes),
                "step": found.step if found else 0,
                "steps": pack.first.train.steps,
                "state": "finished" if found and found.finished else state,
                "where": running.get(pack.pack_id, ""),
            }
        )
    if planned is None:  # brought in from elsewhere
        rows = [
            {"pack": m.pack, "trials": len(m.trials), "step": m.step, "state": "imported"} for m in committed.values()
        ]
    records(rows, as_json, header=True)
    if analyses is None and not as_json:
        print()
        _analyses(there, name, as_json)


def _analyses(there: "Store", name: str, as_json: bool) -> None:
    from ndt_ray.analysis.running.status import analysis_states
    from ndt_ray.cli.show import records

    records(analysis_states(there, name), as_json, header=True)


def stop(
    name: StoredSweep,
    store: StoreOption = DEFAULT_STORE,
    drain: Annotated[bool, typer.Option("--drain", help="Let running packs end, start no more.")] = False,
) -> None:
    """Ask a running sweep to commit and stop, wherever it runs."""
    from ndt_ray.lease import driver
    from ndt_ray.store.sweep import open_sweep

    folder = open_sweep(opened(store), name)
    if driver(folder) is None and not folder.running():
        print(f"{name} is not running", file=sys.stderr)
        return
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
        # The log holds every launch of the sweep: only the last one's end is an end.
        training = [event for event in events if event["event"] != "analyzed"]
        if not follow or (training and training[-1]["event"] == "done"):
            break
        time.sleep(1.0)
    for attempt in there.attempts(name) if not follow else ():
        fields = {k: v for k, v in asdict(attempt).items() if v not in (None, "")}
        print(json.dumps({"event": "attempt", **fields}) if as_json else _line(attempt.started, "attempt", fields))


def _event_line(event: dict[str, Any]) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["time"]))
    rest = {k: v for k, v in event.items() if k not in ("time", "event", "packs", "traceback")}
    text = _line(when, event["event"], rest)
    return f"{text}\n{event['traceback']}" if "traceback" in event else text


def _line(when: str, what: str, fields: dict[str, Any]) -> str:
    return f"{when[:19].replace('T', ' ')} {what:9s} " + " ".join(f"{k}={v}" for k, v in fields.items())


def rm(
    name: StoredSweep,
    store: StoreOption = DEFAULT_STORE,
    force: Annotated[bool, typer.Option("--force", help="Even while it runs.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a sweep with all its data."""
    from ndt_ray.lease import refuse
    from ndt_ray.store.sweep import open_sweep, remove_sweep

    there = opened(store)
    folder = open_sweep(there, name)
    if not force:
        refuse(folder, "removed")
    if not yes and not typer.confirm(f"remove {name} and all its data from {store}?"):
        raise StoreError("nothing was removed")
    remove_sweep(there, name, force=force)
    print(f"removed {name} from {store}", file=sys.stderr)


def _notice(text: str) -> None:
    print(text, file=sys.stderr)
