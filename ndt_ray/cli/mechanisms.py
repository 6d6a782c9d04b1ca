"""The command that writes the files of the mechanistic analyses."""

import json
import sys
from typing import Annotated

import typer

from ndt_ray.cli.options import DEFAULT_STORE, JsonOption, StoreOption, opened
from ndt_ray.errors import SpecError


def register(ndt: typer.Typer) -> None:
    """Adds this module's commands."""
    ndt.command()(mechanisms)


def mechanisms(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="Name of a sweep in the store.")],
    store: StoreOption = DEFAULT_STORE,
    out: Annotated[str, typer.Option("--out", "-o", help="The folder.")] = "mechanisms",
    archive: Annotated[str | None, typer.Option("--archive", help="Put the files into this zip, too.")] = None,
    trial: Annotated[list[str] | None, typer.Option("--trial", help="Beginning of a trial's id; repeatable.")] = None,
    layer: Annotated[list[str] | None, typer.Option("--layer", help="Path of a layer to draw; repeatable.")] = None,
    events: Annotated[int, typer.Option(min=0, help="Events a cell to draw before, during and after.")] = 2,
    units: Annotated[int, typer.Option(min=0, help="Units a layer to make images for; 20 in the founding plan.")] = 8,
    limit: Annotated[int | None, typer.Option(min=1, help="Figures a section at most.")] = None,
    format: Annotated[str, typer.Option("--format", help="png, pdf or svg.")] = "png",
    load: Annotated[bool, typer.Option("--load/--tables-only", help="Load checkpoints, or draw tables alone.")] = True,
    neurons: Annotated[int | None, typer.Option(min=1, help="Neurons of a modular network; all by default.")] = None,
    grid: Annotated[str, typer.Option(help="Rows x columns of a page of neurons.")] = "16x32",
    page: Annotated[int | None, typer.Option(min=0, help="Only this page of neurons, from 0.")] = None,
    neurons_where: Annotated[
        str | None, typer.Option(help="Only neurons like structure=low_frequency or fraction>=0.85 (scale_metrics).")
    ] = None,
    side: Annotated[int, typer.Option(min=0, help="Side of the maps on a page: 28, 56, or 0 for all p.")] = 28,
    founding: Annotated[
        bool, typer.Option("--founding", help="Write the founding plan's files (phase2_week3_4/ ...), too.")
    ] = False,
    experiment: Annotated[
        list[str] | None, typer.Option("--experiment", help="With --founding: only this cell; repeatable.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write figures, matrices and findings of a sweep's networks with an index of all of them; print the files.

    Around each cell's events, or along training where there are none: filters, attention, activations, images. What
    sae_transfer, features, grokking and others have computed is drawn from their tables. What cannot be drawn stands
    in index.html with its reason.
    """
    from ndt_ray.figures.bundle import Wanted, write_mechanisms
    from ndt_ray.figures.bundle import archive as pack
    from ndt_ray.figures.modular import View

    view = View(neurons, _grid(grid), page, neurons_where, side)
    if view.slow:
        print(f"! {view.slow}", file=sys.stderr)
    wanted = Wanted(trial or (), layer or (), events, units, limit, format, load, view, founding, experiment or ())
    album = write_mechanisms(opened(store), sweep, out, wanted)
    written = album.files
    if not written:
        print(f"! nothing yet: ndt analyze {sweep} sae sae_transfer grokking grokking_timeline", file=sys.stderr)
    if archive is not None and written:
        written = [*written, pack(written, archive, out)]
    for left in album.skips:
        print(f"! {left.section}: {left.what}: {left.reason}", file=sys.stderr)
    print(json.dumps([str(path) for path in written]) if as_json else "\n".join(map(str, written)))


def _grid(text: str) -> tuple[int, int]:
    rows, _, columns = text.lower().partition("x")
    if not (rows.isdigit() and columns.isdigit()):
        raise SpecError(f"--grid is ROWSxCOLUMNS, such as 16x32, but got '{text}'")
    return int(rows), int(columns)
