"""`ndt analyze`, and what `ndt mechanisms --run` does before it draws: events, checkpoints around them, analyses."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ndt_ray.cli.options import (
    DEFAULT_STORE,
    AddressOption,
    ExecutorOption,
    JsonOption,
    StoreOption,
    WorkersOption,
    assignment,
    opened,
)
from ndt_ray.errors import NdtError, SpecError

if TYPE_CHECKING:
    from ndt_ray.analysis.running.runner import Report
    from ndt_ray.store.reader import Store

SOUGHT = ("events", "taxonomy")
"""What a plan of checkpoints reads; the rest is of use only once the checkpoints are there."""
Parameters = Mapping[str, Mapping[str, Any]]


def register(ndt: typer.Typer) -> None:
    """Adds this module's command."""
    ndt.command()(analyze)


@dataclass(frozen=True)
class Where:
    """What computes: `ray` or `inline`, and for ray an address and a number of workers."""

    executor: str = "ray"
    address: str | None = None
    workers: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        if self.executor != "ray":
            return {"executor": self.executor}
        return {"executor": self.executor, "workers": self.workers, "address": self.address}


def analyze(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="Name of a sweep in the store.")],
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[ANALYSIS]...", help="All that there are, by default.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="[ANALYSIS.]NAME=VALUE", help="A parameter, of all analyses named or of one; repeatable."
        ),
    ] = None,
    executor: ExecutorOption = "ray",
    address: AddressOption = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run analyses over a sweep, and those that they stand on; what is computed already is skipped."""
    given = parameters(names, assignments)
    ok = compute(opened(store), sweep, given, Where(executor, address, workers), as_json=as_json)
    raise typer.Exit(0 if ok else 1)


def parameters(names: Sequence[str] | None, assignments: Sequence[str] | None) -> Parameters:
    """Parameters of the analyses (all, by default) from `[ANALYSIS.]NAME=VALUE`."""
    from ndt_ray import registry

    return _parameters(list(names or registry.names("analysis")), [assignment(a) for a in assignments or ()])


def compute(there: "Store", sweep: str, wanted: Parameters, where: Where, *, as_json: bool = False) -> bool:
    """Runs the analyses, telling of each on stderr (or, as JSON, on stdout); whether all of them went well."""
    from ndt_ray.analysis.running.stored import analyze_all
    from ndt_ray.progress import AnalysisLines

    options = where.options if as_json else {**where.options, "progress": AnalysisLines(sys.stderr)}
    ok = True
    for report in analyze_all(there, sweep, [(name, given or None) for name, given in wanted.items()], **options):
        ok &= report.ok
        (_as_json if as_json else _told)(report)
    return ok


def _as_json(report: "Report") -> None:
    told = {name: getattr(report, name) for name in ("analysis", "total", "skipped", "seconds", "busy", "notes")}
    print(json.dumps(told | {"failed": [str(d) for d in report.dead]}))


def _told(report: "Report") -> None:
    lines = [
        f"{report.analysis}: {report.total - len(report.dead)} of {report.total}, "
        f"{report.skipped} of them before, {report.seconds:.1f} s",
        *(f"! {report.analysis}: {note}" for note in report.notes),
        *(f"✗ {report.analysis}: {letter.partition}: {letter.error}" for letter in report.dead),
    ]
    print("\n".join(lines), file=sys.stderr)


def _parameters(analyses: list[str], assignments: list[tuple[str, Any]]) -> dict[str, dict[str, Any]]:
    """By analysis; NAME alone is for every one of them, ANALYSIS.NAME for that one."""
    found: dict[str, dict[str, Any]] = {analysis: {} for analysis in analyses}
    for path, value in assignments:
        analysis, dot, name = path.rpartition(".")
        if dot and analysis not in found:
            raise SpecError(f"--set {path}: analysis '{analysis}' is not among those to run ({', '.join(analyses)})")
        for chosen in [analysis] if dot else analyses:
            found[chosen][name] = value
    return found


# -- all that a drawing of mechanisms needs ----------------------------------------------------------------------------


def everything(there: "Store", sweep: str, wanted: Parameters, where: Where, planned: Mapping[str, Any]) -> bool:
    """Seeks a sweep's events, brings back checkpoints around them and around matched windows, and runs the analyses.

    `planned`: options of `plan_checkpoints`. Each stage is told on stderr, and one that has nothing to do is passed
    over. What fails - an analysis of a trial, a trial that this machine cannot replay - is told, and the rest goes on:
    False. StoreError for an unknown sweep, SpecError for an unknown analysis or parameter, before anything is computed.
    """
    from ndt_ray.analysis.running.runner import resolved
    from ndt_ray.store.sweep import open_sweep

    open_sweep(there, sweep)
    for name, given in wanted.items():
        resolved(name).parameters(given)
    _stage(1, "events of the sweep, and their types")
    ok = compute(there, sweep, {name: wanted.get(name, _in_place(there, sweep, name)) for name in SOUGHT}, where)
    _stage(2, "checkpoints around the events and around windows like them without one")
    ok &= _brought_back(there, sweep, planned)
    _stage(3, f"{len(wanted)} analyses, and those that they stand on")
    ok &= compute(there, sweep, wanted, where)
    _stage(4, "figures and tables")
    return ok


def _in_place(there: "Store", sweep: str, name: str) -> Mapping[str, Any]:
    """Parameters of the outputs that are there, so that what nobody asked for stays as it is."""
    from ndt_ray.analysis.running.runner import resolved
    from ndt_ray.analysis.running.stored import StoredSweep

    kept = StoredSweep(there, sweep).parameters(name) or {}
    return {key: value for key, value in kept.items() if key in resolved(name).defaults}


def _stage(number: int, what: str) -> None:
    print(f"[{number}/4] {what}", file=sys.stderr)


def _brought_back(there: "Store", sweep: str, options: Mapping[str, Any]) -> bool:
    """Replays what a plan around the events lacks; whether all of it is there."""
    from ndt_ray.analysis.events.checkpoint_plan import planned
    from ndt_ray.cli.checkpoints import bring_back
    from ndt_ray.report.words import count

    plan = planned(there, sweep, **options)
    for text in plan.notices:
        print(f"! {text}", file=sys.stderr)
    if not plan.entries or plan.source != "events":
        print("nothing to bring back: no tested event to plan around", file=sys.stderr)
        return True
    lacking = plan.lacking(there.table("checkpoints", sweep))
    states, missing = (sum(map(len, steps.values())) for steps in (plan.steps, lacking))
    told = f"{count(len(plan.entries), 'event')} of {count(len(plan.steps), 'trial')}: {count(states, 'state')}"
    print(f"{told}, {states - missing:,} of them there already", file=sys.stderr)
    ok = True
    for trial, steps in lacking.items():
        try:
            bring_back(there, sweep, trial, steps)
        except NdtError as error:  # the other trials can be looked at all the same
            print(f"✗ trial {trial}: {error}", file=sys.stderr)
            ok = False
    return ok
