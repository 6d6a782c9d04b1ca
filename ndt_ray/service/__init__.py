"""`ndt serve`: a store in the browser - its sweeps as they run, their maps and events, a console for SQL. Read-only."""

import socket

from ndt_ray.service.address import address_of, listen, read_token
from ndt_ray.store.reader import Store

__all__ = ["address_of", "listen", "read_token", "serve"]


def serve(store: Store, bound: socket.socket, token: str | None) -> None:
    """Answer until interrupted. Requests are not logged: their addresses hold what was asked."""
    import uvicorn

    from ndt_ray.service.app import create_app

    settings = uvicorn.Config(create_app(store, token), log_level="warning", access_log=False, server_header=False)
    uvicorn.Server(settings).run(sockets=[bound])
