"""How tables look on a terminal."""

import inspect
import json
from typing import TYPE_CHECKING, Any, cast

from ndt_ray import registry
from ndt_ray.errors import SpecError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

    from ndt_ray.plan import Plan
    from ndt_ray.registry import Kind
    from ndt_ray.store.schema import Table

PLURALS = {"models": "model", "datasets": "data", "data": "data", "measures": "measure", "analyses": "analysis"}


def written(frame: "pd.DataFrame", format: str) -> str:
    """A result as text."""
    if format == "csv":
        return str(frame.to_csv(index=False))
    if format == "json":
        return str(frame.to_json(orient="records", lines=False, double_precision=15)) + "\n"
    if format == "md":
        head = "| " + " | ".join(frame.columns) + " |\n|" + "---|" * len(frame.columns) + "\n"
        return head + "".join("| " + " | ".join(map(str, row)) + " |\n" for row in frame.itertuples(index=False))
    import pandas as pd

    with pd.option_context("display.max_columns", None, "display.width", 200, "display.max_rows", 200):
        return f"{frame.to_string(index=False, max_rows=200)}\n" if len(frame) else "no rows\n"


def frame(rows: "pd.DataFrame", as_json: bool) -> None:
    """A table, or the same as JSON records."""
    print(written(rows, "json" if as_json else "table"), end="")


def records(rows: list[dict[str, Any]], as_json: bool, header: bool = False) -> None:
    """A few rows as aligned columns, or as JSON records; needs no pandas."""
    if as_json:
        print(json.dumps(rows))
        return
    columns = list(rows[0]) if rows else []
    if rows and header:
        rows = [{c: c for c in columns}, *rows]
    widths = [max(len(str(row[c])) for row in rows) for c in columns]
    for row in rows:
        print("  ".join(str(row[c]).ljust(w) for c, w in zip(columns, widths, strict=True)).rstrip())


def named_things(kind: str) -> list[dict[str, Any]]:
    """Names and one line on each."""
    if kind == "sweeps":
        from ndt_ray.spec.sweepfile import load_sweep, packaged_sweeps

        return [{"name": n, "about": load_sweep(n).about} for n in packaged_sweeps()]
    if kind == "tables":
        return [{"name": t.name, "about": t.doc} for t in _tables().values()]
    if kind not in PLURALS:
        raise SpecError(f"list {kind}: unknown{did_you_mean(kind, [*PLURALS, 'sweeps', 'tables'])}")
    which = cast("Kind", PLURALS[kind])
    return [{"name": n, "about": registry.summary(which, n)} for n in registry.names(which)]


def table_schema(name: str, as_json: bool) -> None:
    """Columns of a table with types, units and meaning."""
    tables = _tables()
    if name not in tables:
        raise SpecError(f"no table '{name}'{did_you_mean(name, tables)}")
    columns = tables[name].columns
    records([{"column": c.name, "type": c.type, "unit": c.unit, "meaning": c.doc} for c in columns], as_json)


def sweep_file_schema(name: str) -> None:
    """The JSON schema of sweep files; there is no other."""
    from ndt_ray.spec.sweepfile import sweep_schema

    if name not in ("", "sweep"):
        raise SpecError(f"show schema {name}: the only schema is that of sweep files: `ndt show schema`")
    print(json.dumps(sweep_schema(), indent=2))


def _tables() -> dict[str, "Table"]:
    """All tables: those of packs, and those that analyses and importers register when they are imported."""
    import ndt_ray.original  # noqa: F401
    from ndt_ray.store.schema import TABLES

    for analysis in registry.names("analysis"):
        registry.resolve("analysis", analysis)
    return TABLES


def factory(kind: str, name: str, as_json: bool) -> None:
    """Parameters of a registered function, with its documentation."""
    which = cast("Kind", PLURALS.get(kind, kind))
    if which not in registry.kinds():
        raise SpecError(f"show {kind}: unknown{did_you_mean(kind, ['table', 'schema', *registry.kinds()])}")
    function = registry.resolve(which, name)
    parameters = {} if which == "analysis" else _parameters(function)
    if which == "analysis":
        parameters = dict(cast(Any, function).defaults)
    about = inspect.getdoc(function) or ""
    if as_json:
        print(json.dumps({"kind": which, "name": name, "about": about, "parameters": parameters}, default=str))
        return
    print(f"{which} {name}\n{about}")
    for parameter, default in parameters.items():
        print(f"  {parameter} = {default!r}")


def _parameters(function: Any) -> dict[str, Any]:
    found = inspect.signature(function).parameters.values()
    return {p.name: None if p.default is p.empty else p.default for p in found if p.kind is p.KEYWORD_ONLY}


def plan_tables(plan: "Plan") -> None:
    """A plan as a person reads it: one line per cell, then what it all takes."""
    from rich.console import Console
    from rich.table import Table

    from ndt_ray.progress import clock

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("cell", "trials", "packs", "engine", "steps", "core time", "measuring"):
        table.add_column(name, justify="left" if name in ("cell", "engine") else "right")
    cells: dict[str, list[Any]] = {}
    for pack in plan.packs:
        cells.setdefault(pack.lanes[0].cell, []).append(pack)
    for cell, packs in cells.items():
        seconds = sum(p.seconds for p in packs)
        overheads = [p.estimate.overhead for p in packs if p.estimate]
        overhead = f"{100 * sum(overheads) / len(overheads):.0f} %" if overheads else ""
        trials = sum(len(p.lanes) for p in packs)
        first = packs[0].first
        table.add_row(
            cell, str(trials), str(len(packs)), first.engine, f"{first.train.steps:,}", clock(seconds), overhead
        )
    console = Console()
    console.print(f"{plan.sweep.name}  {plan.sweep.about}")
    console.print(table)
    total = plan.total
    size = total.disk_bytes
    shown = f"{size / 2**30:.1f} GiB" if size > 2**30 else f"{size / 2**20:.1f} MiB"
    spectra = total.disk.get("spectra", 0.0) / 2**20
    how = "measured on this machine" if total.calibrated else "partly guessed"
    console.print(
        f"{plan.n_trials:,} trials in {len(plan.packs):,} packs on {plan.workers} workers · {clock(plan.wall_seconds)}"
        f" ({how}) · {total.memory / 2**20:,.0f} MiB a worker · {shown} of disk, {spectra:,.1f} MiB of it spectra"
    )
    for line in power_lines(plan):
        console.print(line)


def power_lines(plan: "Plan") -> list[str]:
    """What the sweep's seeds can show, one line per compare axis, and a warning where that is nothing."""
    from ndt_ray.plan.design import planned_power

    lines = []
    for found in planned_power(plan):
        design = "pairs" if found.paired else "groups"
        reach = f", 80 % from {found.detectable:g} SD" if found.detectable is not None else ""
        lines.append(
            f"compare {found.axis}: {found.contrasts} contrasts of {design} of {found.seeds} seeds ({found.why})"
            f" · power {100 * found.power:.0f} % at {found.effect:g} SD{reach}"
            f" · smallest p {found.smallest_p:.2g}, after Holm over {found.comparisons} {found.smallest_adjusted_p:.2g}"
        )
        if found.warning:
            lines.append(f"! {found.warning}")
    return lines
