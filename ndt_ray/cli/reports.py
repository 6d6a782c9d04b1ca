"""The commands that write a sweep's report, and the skeleton of its paper."""

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ndt_ray.cli.options import DEFAULT_STORE, JsonOption, StoreOption, opened
from ndt_ray.errors import NdtError

if TYPE_CHECKING:
    from ndt_ray.run import Result


def register(ndt: typer.Typer) -> None:
    """Adds this module's commands."""
    ndt.command()(report)
    ndt.command()(paper)


def report(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="Name of a sweep in the store.")],
    store: StoreOption = DEFAULT_STORE,
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="The file (.html, .pdf or .md); by default beside the sweep.")
    ] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Show it in a browser.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write what a sweep's tables say as one HTML file that works offline, as PDF or Markdown, and print its path."""
    from ndt_ray.report import write_report

    written = write_report(opened(store), sweep, out)
    if as_json:
        print(json.dumps({"path": written.path, "bytes": written.bytes, **written.page.value()}))
    else:
        for section in written.page.sections:
            for what, command in section.missing:
                print(f"! {what}: {command}", file=sys.stderr)
        print(written.path)
    if open_it:
        import webbrowser
        from pathlib import Path

        webbrowser.open(Path(written.path).resolve().as_uri() if "://" not in written.path else written.path)


def paper(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="Name of a sweep in the store.")],
    store: StoreOption = DEFAULT_STORE,
    out: Annotated[str | None, typer.Option("--out", "-o", help="The folder; by default beside the sweep.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a paper.tex that you changed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the skeleton of a paper in LaTeX: every number a macro computed from the sweep's tables."""
    from ndt_ray.paper import write_paper
    from ndt_ray.report.words import count

    written = write_paper(opened(store), sweep, out, force)
    missing = written.paper.missing
    if as_json:
        macros = {m.name: m.value for m in written.paper.macros.known.values()}
        value = {"folder": written.folder, "files": written.files, "kept": written.kept}
        print(json.dumps({**value, "missing": missing, "macros": macros}))
        return
    for name in written.kept:
        print(f"! {name} was changed since it was written, and is kept: --force replaces it", file=sys.stderr)
    for command, names in missing.items():
        print(f"! {count(len(names), 'number')} to compute: {command}", file=sys.stderr)
    print(written.folder)


def after_sweep(store: str, name: str, result: "Result") -> None:
    """The report at the end of a sweep, made anew when there is something new to say; its path is the last line."""
    from ndt_ray.report import NAME, write_report

    there = opened(store)
    where = f"sweeps/{name}/{NAME}"
    new = result.launch.finished or result.launch.failed or any(r.done or r.dead for r in result.analyses)
    if not new and there.location.size(where) is not None:
        print(f"report  {there.location.absolute(where)}", file=sys.stderr)
        return
    try:
        print(f"report  {write_report(there, name).path}", file=sys.stderr)
    except NdtError as error:  # the sweep is done and stored: what became of it is not the report's to say
        print(f"! no report: {error}", file=sys.stderr)
