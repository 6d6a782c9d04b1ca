"""Commands around sweeps: measuring checkpoints, importing, the doctor."""

import json
import sys
from dataclasses import asdict
from typing import Annotated, Literal, cast

import typer

from ndt_ray.cli.options import DEFAULT_STORE, AddressOption, JsonOption, StoreOption, assignment, opened
from ndt_ray.errors import SpecError


def register(ndt: typer.Typer) -> None:
    """Adds this module's commands."""
    for command in (measure, doctor):
        ndt.command()(command)
    ndt.command("import")(import_)


def measure(
    model: Annotated[str, typer.Argument(metavar="FACTORY", help="FILE.py:FUNCTION, or a registered model.")],
    checkpoints: Annotated[list[str], typer.Option(help="Files, folders or glob patterns; repeatable.")],
    probe: Annotated[str, typer.Option(help="A data set by name, or a file of inputs (.npz, .pt, .safetensors).")],
    store: StoreOption = DEFAULT_STORE,
    step_pattern: Annotated[str | None, typer.Option(help="Regular expression whose group is the step.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A parameter of the model.")
    ] = None,
    probe_size: Annotated[int | None, typer.Option(min=2, help="Stimuli of the probe.")] = None,
    probe_seed: Annotated[int, typer.Option(min=0, help="Of the choice of stimuli.")] = 0,
    layers: Annotated[list[str] | None, typer.Option(help="Glob patterns of layers.")] = None,
    view: Annotated[
        list[str] | None, typer.Option(metavar="KIND=VIEW", help="How layers of a kind become matrices.")
    ] = None,
    spectra: Annotated[str, typer.Option(help="full, none, or how many eigenvalues to keep.")] = "full",
    run: Annotated[str | None, typer.Option(help="Name of the series.")] = None,
    sweep: Annotated[str, typer.Option(help="Name of the sweep it becomes part of.")] = "series",
    as_json: JsonOption = False,
) -> None:
    """Measure a series of checkpoints that you already have."""
    from ndt_ray.tracking.checkpoint_series import measure_series

    if spectra not in ("full", "none") and not spectra.isdigit():
        raise SpecError(f"--spectra {spectra}: choose full, none or a number")
    report = measure_series(
        model,
        checkpoints,
        probe,
        opened(store, create=True),
        params=dict(assignment(a) for a in assignments or ()),
        run=run,
        sweep=sweep,
        step_pattern=step_pattern,
        probe_size=probe_size,
        probe_seed=probe_seed,
        layers=layers,
        views={kind: str(name) for kind, name in map(assignment, view or ())},
        spectra=int(spectra) if spectra.isdigit() else cast("Literal['full', 'none']", spectra),
        progress=lambda done, total, name: print(f"{done}/{total} {name}", file=sys.stderr),
    )
    for name, why in report.skipped:
        print(f"✗ skipped {name}: {why}", file=sys.stderr)
    if as_json:
        print(json.dumps(asdict(report)))
    else:
        gaps = f", {len(report.gaps)} gaps" if report.gaps else ""
        print(
            f"{len(report.layers)} layers at {len(report.steps)} steps{gaps}: trial {report.trial_id} of sweep {sweep}"
        )
    raise typer.Exit(report.exit_code)


def import_(
    kind: Annotated[str, typer.Argument(help="original: the founding study's published measurements.")],
    path: Annotated[str, typer.Argument(help="The file.")],
    store: StoreOption = DEFAULT_STORE,
    sweep: Annotated[str, typer.Option(help="Name of the sweep it becomes.")] = "original",
) -> None:
    """Bring measurements made elsewhere into the store."""
    if kind != "original":
        raise SpecError(f"import {kind}: unknown; known: original")
    from ndt_ray.original import import_published

    published = import_published(path, opened(store, create=True), sweep)
    for name, why in published.skipped:
        print(f"skipped {name}: {why}", file=sys.stderr)
    print(f"{len(published.experiments)} experiments as sweep {sweep}", file=sys.stderr)


def doctor(
    store: StoreOption = DEFAULT_STORE,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Is every node fit to train? Versions, GPUs, memory, disk, clock, and whether it sees the store."""
    from ndt_ray.doctor import doctor as examine

    checks = list(examine(store, address))
    if as_json:
        print(json.dumps([c.asdict() for c in checks]))
    else:
        signs = {"ok": "✓", "warn": "!", "fail": "✗"}
        for c in checks:
            print(f"{signs[c.status]} {c.node:20s} {c.name:12s} {c.found}" + (f" - {c.todo}" if c.todo else ""))
    raise typer.Exit(4 if any(c.status == "fail" for c in checks) else 0)
