"""`ndt fork`: from a sweep that ran to the sweep that intervenes in it, or branches it into siblings."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ndt_ray.cli.options import DEFAULT_STORE, StoreOption, opened
from ndt_ray.errors import SpecError


def register(ndt: typer.Typer) -> None:
    """Adds this module's command."""
    ndt.command()(fork)


def fork(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="Name of a sweep in the store.")],
    name: Annotated[str, typer.Option("--name", help="Name of the new sweep.")],
    store: StoreOption = DEFAULT_STORE,
    cell: Annotated[str | None, typer.Option("--cell", help="Whose trials, if the sweep has several cells.")] = None,
    kind: Annotated[str, typer.Option("--kind", help="ablate, reinit, perturb, frozen or damage.")] = "ablate",
    target: Annotated[
        list[str] | None,
        typer.Option("--target", help="A layer, or blur, flip, noise, labels for damage; by default the events'."),
    ] = None,
    step: Annotated[list[int] | None, typer.Option("--step", min=0, help="When; repeatable.")] = None,
    events: Annotated[int, typer.Option("--events", min=0, help="At so many events, those most seeds share.")] = 0,
    controls: Annotated[int, typer.Option("--controls", min=0, help="And at so many windows matched to each.")] = 2,
    dose: Annotated[
        list[float] | None, typer.Option("--dose", min=0.0, max=1.0, help="Share of the layer's units; repeatable.")
    ] = None,
    length: Annotated[
        int, typer.Option("--length", min=1, help="Steps that a layer is frozen, or data damaged.")
    ] = 100,
    siblings: Annotated[
        int, typer.Option("--siblings", min=0, help="Nothing but so many other batch orders from the step on: a null.")
    ] = 0,
    lr_matched: Annotated[
        bool,
        typer.Option("--lr-matched", help="Later arms once more, followed by the learning rates of the first ones."),
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Every arm once more, with the schedule restarted behind it.")
    ] = False,
    out: Annotated[
        str | None, typer.Option("--out", help="The sweep file; by default NAME.yaml, - for stdout.")
    ] = None,
) -> None:
    """Write a sweep that intervenes in the trials of another: at its events, at matched windows, or at given steps.

    With --siblings it branches them instead: continuations that differ in batch order alone, a null for events.
    """
    from ndt_ray.fork import Question
    from ndt_ray.fork import fork as forked
    from ndt_ray.spec.sweepfile import dump_sweep

    question = Question(
        kind=kind,
        targets=target or (),
        steps=step or (),
        events=events,
        controls=controls,
        doses=dose or (1.0,),
        length=length,
        siblings=siblings,
        lr_matched=lr_matched,
        restart=restart,
    )
    text = dump_sweep(forked(opened(store), sweep, name, question, cell))
    if out == "-":
        print(text, end="")
        return
    path = Path(out or f"{name}.yaml")
    if path.exists():
        raise SpecError(f"{path} exists already: choose another --out, or remove it")
    path.write_text(text, encoding="utf-8")
    print(f"{path}: run it with `ndt sweep {path} --store {store}`", file=sys.stderr)
