"""The command that shows a store in the browser."""

import sys
from typing import Annotated

import typer

from ndt_ray.cli.options import DEFAULT_STORE, StoreOption, opened
from ndt_ray.errors import SpecError


def register(ndt: typer.Typer) -> None:
    """Adds this module's command."""
    ndt.command()(serve)


def serve(
    store: StoreOption = DEFAULT_STORE,
    host: Annotated[str, typer.Option("--host", help="Where to listen; any but loopback needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: one that is free.")] = 8765,
    token_file: Annotated[
        str | None, typer.Option("--token-file", help="A file with the token to ask for; else NDT_TOKEN, else none.")
    ] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Show it in a browser.")] = False,
) -> None:
    """Show a store in the browser: sweeps as they run, maps, events, reports, SQL. Read-only; Ctrl-C ends it."""
    import os

    from ndt_ray import service

    there = opened(store)
    token = service.read_token(token_file, os.environ.get("NDT_TOKEN"))
    bound = service.listen(host, port, token)
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        bound.close()
        raise SpecError(f"ndt serve needs {error.name}: pip install -e '.[serve]'") from error
    address = service.address_of(bound)
    print(address, flush=True)
    print(
        f"showing {there.location.uri}, read-only{', with a token' if token else ''}; Ctrl-C ends it", file=sys.stderr
    )
    if open_it:
        import webbrowser

        webbrowser.open(address)
    try:
        service.serve(there, bound, token)
    except KeyboardInterrupt:  # how it is ended; uvicorn raises it again once all is closed
        pass
    finally:
        there.close()
