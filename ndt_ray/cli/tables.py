"""Commands that read a store."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ndt_ray.cli.options import DEFAULT_STORE, JsonOption, StoreOption, opened
from ndt_ray.errors import SpecError

if TYPE_CHECKING:
    from ndt_ray.store.reader import Store

FORMATS = ("table", "csv", "json", "md")


def register(ndt: typer.Typer) -> None:
    """Adds this module's commands."""
    for command in (query, export, show, gc):
        ndt.command()(command)
    ndt.command("list")(list_names)


def query(
    sql: Annotated[str, typer.Argument(help="One SELECT over the tables of the store; '-' reads it from stdin.")],
    store: StoreOption = DEFAULT_STORE,
    format: Annotated[str, typer.Option("-f", "--format", help="table, csv, json or md.")] = "table",
    limit: Annotated[int, typer.Option(min=1, help="Rows at most.")] = 10_000,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds until it is cancelled.")] = 60.0,
) -> None:
    """Ask the store in SQL: read-only, one SELECT, nothing outside the store."""
    if format not in FORMATS:
        raise SpecError(f"--format {format}: choose one of {', '.join(FORMATS)}")
    text = sys.stdin.read() if sql == "-" else sql
    found = opened(store).sql(text, limit=limit, timeout=timeout)
    if notice := found.attrs.get("ndt_notice"):
        print(notice, file=sys.stderr)
    from ndt_ray.cli.show import written

    sys.stdout.write(written(found, format))


def export(
    what: Annotated[
        str,
        typer.Argument(metavar="TABLE|SELECT|checkpoint|founding", help="What to export."),
    ],
    out: Annotated[str, typer.Option("-o", "--out", help="The file; its suffix is the format. Of founding: a folder.")],
    store: StoreOption = DEFAULT_STORE,
    format: Annotated[
        str | None,
        typer.Option("--format", help="csv, parquet, json, arrow; of a checkpoint founding (.pt), onnx."),
    ] = None,
    sweep: Annotated[str | None, typer.Option("--sweep", help="Of the checkpoint, or of founding.")] = None,
    trial: Annotated[str | None, typer.Option("--trial", help="Of the checkpoint: an id, or its beginning.")] = None,
    step: Annotated[int | None, typer.Option("--step", help="Of the checkpoint.")] = None,
) -> None:
    """Write a table, what a SELECT gives, or a checkpoint to a file: for plain PyTorch, or as ONNX (for Netron).

    `founding` writes the founding study's first and third phase under its names, as far as they have been analysed.
    """
    if what == "founding":
        _founding(opened(store), sweep, out)
        return
    if what == "checkpoint":
        if sweep is None or trial is None or step is None:
            raise SpecError("export checkpoint needs --sweep, --trial and --step")
        _checkpoint(opened(store), sweep, trial, step, out, format)
        return
    from ndt_ray.store.export import export as write

    rows = write(opened(store), what, out, format)  # type: ignore[arg-type]
    print(f"{rows:,} rows to {out}", file=sys.stderr)


def _founding(store: "Store", sweep: str | None, out: str) -> None:
    from ndt_ray.figures.bundle import write_phases

    if sweep is None:
        raise SpecError("export founding needs --sweep")
    album = write_phases(store, sweep, out)
    for left in album.skips:
        print(f"! {left.what}: {left.reason}", file=sys.stderr)
    print("\n".join(map(str, album.files)))


def _checkpoint(store: "Store", sweep: str, trial: str, step: int, out: str, format: str | None) -> None:
    chosen = format or ("onnx" if out.endswith(".onnx") else "founding")
    if chosen == "onnx":
        from ndt_ray.onnx_export import export_onnx

        found = export_onnx(store, sweep, trial, step, out)
        told = f"{found.bytes:,} bytes to {out}; its logits differ from PyTorch's by at most {found.difference:.1g}"
    elif chosen == "founding":
        from ndt_ray.founding import export_checkpoint

        told = f"{export_checkpoint(store, sweep, trial, step, out):,} bytes to {out}"
    else:
        raise SpecError(f"--format {chosen}: a checkpoint is exported as founding or onnx")
    print(told, file=sys.stderr)


def show(
    kind: Annotated[str, typer.Argument(help="table, model, data, measure, analysis or schema.")],
    name: Annotated[str, typer.Argument(help="As `ndt list` has it; of a schema, nothing.")] = "",
    as_json: JsonOption = False,
) -> None:
    """What one named thing is: the columns of a table, the parameters of a model or a data set, and so on.

    `ndt show schema` prints the JSON schema of sweep files, with which editors complete and check them.
    """
    from ndt_ray.cli import show as shown

    if kind == "schema":
        shown.sweep_file_schema(name)
    elif kind == "table":
        shown.table_schema(name, as_json)
    else:
        shown.factory(kind, name, as_json)


def list_names(
    kind: Annotated[str, typer.Argument(help="models, data, measures, analyses, sweeps or tables.")],
    as_json: JsonOption = False,
) -> None:
    """What there is, with a line on each."""
    from ndt_ray.cli.show import named_things, records

    records(named_things(kind), as_json)


def gc(
    store: StoreOption = DEFAULT_STORE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, remove nothing.")] = False,
) -> None:
    """Remove what no manifest names: leftovers of killed workers."""
    from ndt_ray.store.garbage import gc as collect

    found: list[Any] = collect(opened(store), dry_run=dry_run)
    for garbage in found:
        print(garbage)
    print(f"{len(found)} files {'would be' if dry_run else 'were'} removed", file=sys.stderr)
