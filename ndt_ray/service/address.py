"""Where the service listens, and whether that needs a token."""

import ipaddress
import socket
from pathlib import Path

from ndt_ray.errors import SpecError

SHORTEST = 16
"""Characters of a token: what `openssl rand -hex 8` gives."""


def loopback(host: str) -> bool:
    """Whether a name or address reaches this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read_token(path: str | None, given: str | None) -> str | None:
    """The token in a file, else the one given (by the environment); None for neither. SpecError for one too short."""
    token = given
    if path is not None:
        try:
            token = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(f"--token-file {path}: cannot be read ({error})") from error
    token = (token or "").strip() or None
    if token is None and path is not None:
        raise SpecError(f"--token-file {path}: is empty - put a token of {SHORTEST} characters or more into it")
    if token is not None and (len(token) < SHORTEST or not token.isascii()):
        raise SpecError(f"a token is {SHORTEST} ASCII characters or more, but got {len(token)} characters")
    return token


def listen(host: str, port: int, token: str | None) -> socket.socket:
    """A socket bound to the address. SpecError for any but loopback without a token, and where it cannot be had."""
    if not loopback(host) and token is None:
        raise SpecError(
            f"ndt serve does not listen on {host} without a token: whoever reaches this machine could read the store - "
            f"put one of {SHORTEST} characters or more into NDT_TOKEN or --token-file, or leave out --host"
        )
    bound = None
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        if bound is not None:
            bound.close()
        why = error.strerror or error
        raise SpecError(f"cannot listen on {host} port {port} ({why}) - give another --port") from error
    return bound


def address_of(bound: socket.socket) -> str:
    """The address to open in a browser."""
    host, port = bound.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"
