"""The command that writes the files of the mechanistic analyses."""

import json
import sys
from typing import Annotated

import typer

from ndt_ray.cli.options import DEFAULT_STORE, JsonOption, StoreOption, opened


def register(ndt: typer.Typer) -> None:
    """Adds this module's commands."""
    ndt.command()(mechanisms)


def mechanisms(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="Name of a sweep in the store.")],
    store: StoreOption = DEFAULT_STORE,
    out: Annotated[str, typer.Option("--out", "-o", help="The folder.")] = "mechanisms",
    archive: Annotated[str | None, typer.Option("--archive", help="Put the files into this zip, too.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write figures, matrices and findings of the analyses sae, sae_transfer and grokking; print the files."""
    from ndt_ray.figures.bundle import archive as pack
    from ndt_ray.figures.bundle import write_mechanisms

    written = write_mechanisms(opened(store), sweep, out)
    if not written:
        print(f"! nothing yet: ndt analyze {sweep} sae sae_transfer grokking grokking_timeline", file=sys.stderr)
    if archive is not None and written:
        written.append(pack(written, archive))
    print(json.dumps([str(path) for path in written]) if as_json else "\n".join(map(str, written)))
