"""Options that several commands share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ndt_ray.errors import SpecError

if TYPE_CHECKING:
    from ndt_ray.spec.axes import Sweep
    from ndt_ray.store.reader import Store

StoreOption = Annotated[
    str, typer.Option("--store", envvar="NDT_STORE", help="Where the store is: a folder, s3:// or gs://.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Replace a value of the sweep; repeatable.")
]
WhereOption = Annotated[
    list[str] | None, typer.Option("--where", metavar="EXPR", help="Only trials for which this holds; repeatable.")
]
ExecutorOption = Annotated[str, typer.Option("--executor", help="ray, or inline: in this process, one after another.")]
AddressOption = Annotated[
    str | None, typer.Option("--address", help="A running Ray cluster; by default one is started on this machine.")
]
WorkersOption = Annotated[int | None, typer.Option("--workers", min=1, help="Workers of a cluster started here.")]

DEFAULT_STORE = "store"


def opened(where: str, create: bool = False) -> "Store":
    """The store that an option names."""
    from ndt_ray.store.reader import open_store

    return open_store(where, create=create)


def sweep_from(name: str, assignments: list[str] | None, where: list[str] | None, store: str) -> "Sweep":
    """The sweep of a command line with its overrides: a file, a packaged name, or a name in the store."""
    from ndt_ray.spec.sweepfile import load_sweep, packaged_sweeps, with_overrides

    if "." not in name and "/" not in name and name not in packaged_sweeps() and exists(store):
        from ndt_ray.spec.sweepfile import parse_sweep
        from ndt_ray.store.sweep import list_sweeps

        there = opened(store)
        if name in list_sweeps(there):
            spec = there.location.read(f"sweeps/{name}/spec.yaml").decode()
            return with_overrides(
                parse_sweep(spec, origin=f"{store}: {name}", folder=Path()), assignments or (), where or ()
            )
    return with_overrides(load_sweep(name), assignments or (), where or ())


def exists(where: str) -> bool:
    """Whether something is at a local path; anything else is left to the store."""
    return "://" in where or Path(where).exists()


def assignment(text: str) -> tuple[str, Any]:
    """Name and YAML value of `--set NAME=VALUE`; SpecError where it is none."""
    from ndt_ray.spec.loader import parse_value

    name, equals, value = text.partition("=")
    if not equals:
        raise SpecError(f"--set {text}: give NAME=VALUE")
    return name, parse_value(value, f"--set {name}")
