"""Commands of mechanistic analyses: their files; activations of other models, captured and compared."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ndt_ray.cli.options import (
    DEFAULT_STORE,
    AddressOption,
    JsonOption,
    StoreOption,
    WorkersOption,
    assignment,
    opened,
)
from ndt_ray.errors import SpecError

WINDOWS = 5
"""Events a trial, and matched windows an event, that --run brings checkpoints back for."""


def register(ndt: typer.Typer) -> None:
    """Adds this module's commands."""
    for command in (mechanisms, capture, transfer):
        ndt.command()(command)


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
    run: Annotated[
        bool,
        typer.Option("--run", help="First all it draws: events, checkpoints around them brought back, analyses."),
    ] = False,
    controls: Annotated[
        int | None, typer.Option(min=0, help="With --run: matched windows an event; 5 by default.", show_default=False)
    ] = None,
    per_trial: Annotated[
        int | None, typer.Option(min=1, help="With --run: events a trial; 5 by default.", show_default=False)
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=1, help="With --run: steps before and after an event; by default its width.")
    ] = None,
    analysis: Annotated[
        list[str] | None, typer.Option("--analysis", help="With --run: only this one; repeatable. All by default.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="[ANALYSIS.]NAME=VALUE", help="With --run: a parameter; repeatable."),
    ] = None,
    executor: Annotated[
        str | None, typer.Option("--executor", help="With --run: ray (the default), or inline: in this process.")
    ] = None,
    address: AddressOption = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write figures, matrices and findings of a sweep's networks with an index of all of them; print the files.

    Around each cell's events, or along training where there are none: filters, attention, activations, images. What
    sae_transfer, features, grokking and others have computed is drawn from their tables. What cannot be drawn stands
    in index.html with its reason. --run computes all of it first; the same command goes on where it was stopped.
    """
    from ndt_ray.cli.analyses import Where, everything, parameters
    from ndt_ray.figures.bundle import Wanted, empty_album, write_mechanisms
    from ndt_ray.figures.bundle import archive as pack
    from ndt_ray.figures.modular import View

    view = View(neurons, _grid(grid), page, neurons_where, side)
    if view.slow:
        print(f"! {view.slow}", file=sys.stderr)
    wanted = Wanted(trial or (), layer or (), events, units, limit, format, load, view, founding, experiment or ())
    there, ok = opened(store), True
    of_run: dict[str, Any] = {"--controls": controls, "--per-trial": per_trial, "--window": window}
    of_run |= {
        "--analysis": analysis,
        "--set": assignments,
        "--executor": executor,
        "--address": address,
        "--workers": workers,
    }
    if run:
        empty_album(there, sweep, out, wanted)  # what cannot be drawn is refused now, not after hours
        where = Where(executor or "ray", address, workers)
        planned = {
            "per_trial": per_trial or WINDOWS,
            "controls": WINDOWS if controls is None else controls,
            "window": window,
        }
        ok = everything(there, sweep, parameters(analysis, assignments), where, planned)
    elif given := [name for name, value in of_run.items() if value not in (None, [])]:
        raise SpecError(f"{', '.join(given)}: give --run, too, which they are for")
    album = write_mechanisms(there, sweep, out, wanted)
    written = album.files
    if not written:
        print(f"! nothing yet: ndt analyze {sweep} sae sae_transfer grokking grokking_timeline", file=sys.stderr)
    if archive is not None and written:
        written = [*written, pack(written, archive, out)]
    for left in album.skips:
        print(f"! {left.section}: {left.what}: {left.reason}", file=sys.stderr)
    print(json.dumps([str(path) for path in written]) if as_json else "\n".join(map(str, written)))
    raise typer.Exit(0 if ok else 1)


def _grid(text: str) -> tuple[int, int]:
    rows, _, columns = text.lower().partition("x")
    if not (rows.isdigit() and columns.isdigit()):
        raise SpecError(f"--grid is ROWSxCOLUMNS, such as 16x32, but got '{text}'")
    return int(rows), int(columns)


def capture(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Names on the Hugging Face hub, or local folders.")
    ],
    texts: Annotated[
        list[str], typer.Option("--texts", metavar="[TASK=]FILE", help="Texts to show, one a line; repeatable.")
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="The folder.")] = "activations",
    layers: Annotated[
        str | None, typer.Option("--layers", help="Numbers, as 4,8,12; 0 is the embedding. All, by default.")
    ] = None,
    length: Annotated[int, typer.Option("--length", min=1, help="Tokens of a text at most.")] = 128,
    as_json: JsonOption = False,
) -> None:
    """Capture activations of Hugging Face models: one file a model, layer and task, its metadata beside it."""
    from ndt_ray.analysis.mechanisms.sae import huggingface

    wanted = None if layers is None else _numbers(layers)
    tasks = [("", one) if not equals else (name, rest) for one in texts for name, equals, rest in [one.partition("=")]]
    read = [(task, file, huggingface.read_texts(Path(file))) for task, file in tasks]
    if len({task for task, _, _ in read}) < len(read):
        raise SpecError("--texts: give each file a task of its own, TASK=FILE")
    written: list[Path] = []
    for name in models:
        model, tokenizer = huggingface.load_model(name)
        label = Path(name).name if Path(name).is_dir() else name
        for task, file, lines in read:
            note = {"source": name, "file": Path(file).name}
            options: dict[str, Any] = {"layers": wanted, "task": task, "length": length, "metadata": note}
            written += huggingface.capture(Path(out), label, model, tokenizer, lines, **options)
    print(json.dumps([str(path) for path in written]) if as_json else "\n".join(map(str, written)))


def _numbers(text: str) -> list[int]:
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found or not all(part.isdigit() for part in found):
        raise SpecError(f"--layers {text}: give numbers with commas, as 4,8,12")
    return [int(part) for part in found]


def transfer(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Files that `ndt capture` wrote.")],
    store: StoreOption = DEFAULT_STORE,
    sweep: Annotated[str, typer.Option(help="Name of the sweep whose tables the rows go to.")] = "activations",
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A parameter of sae_transfer, as layers=4,8; repeatable."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train sparse autoencoders on captured activations, and compare layers, models and tasks."""
    import inspect

    from ndt_ray.analysis.mechanisms.sae.from_files import transfer_files
    from ndt_ray.errors import did_you_mean

    given = dict(assignment(a) for a in assignments or ())
    known = [p.name for p in inspect.signature(transfer_files).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for name in given:
        if name not in known:
            raise SpecError(f"--set {name}: no such parameter{did_you_mean(name, known)}")
    found = transfer_files(folder, opened(store, create=True), sweep, **given)
    for note in found.notes:
        print(f"! {note}", file=sys.stderr)
    if as_json:
        print(json.dumps({"sweep": sweep, "rows": dict(found.rows), "skipped": found.skipped}))
    else:
        told = ", ".join(f"{count} rows of {name}" for name, count in found.rows.items())
        print(
            f"{told} in sweep {sweep}{' (there before)' if found.skipped else ''}; `ndt mechanisms {sweep}` draws them"
        )
