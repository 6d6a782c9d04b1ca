"""Who may ask: loopback names without a token, or the token as a bearer or in a cookie; never another site's page."""

import hashlib
import hmac
import secrets
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ndt_ray.service.address import loopback

COOKIE = "ndt_session"
OPEN = ("/login", "/static/")
"""Paths that need no token: the form that takes it, and its style."""
POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: "
    "blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""What a page may load. Vega compiles its expressions, hence unsafe-eval, and writes styles."""


def refusal(status: int, error: str, errors: list[dict[str, str]] | None = None) -> JSONResponse:
    """The one shape of errors."""
    value = {"ok": False, "error": error, "errors": errors or [], "status": status}
    return JSONResponse(value, status, headers={"Cache-Control": "no-store"})


class Guard:
    """Lets a request through, or refuses it. Compares tokens in constant time, and keeps none in a cookie."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app, self.token = app, token
        key = secrets.token_bytes(32)  # of this process: sessions end with it
        self.session = hmac.new(key, b"session", hashlib.sha256).hexdigest() if token else ""

    def knows(self, token: str) -> bool:
        """Whether a token is the one."""
        return self.token is not None and hmac.compare_digest(token.encode(), self.token.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope["state"] = {**scope.get("state", {}), "guard": self}
        refused = self._refused(Request(scope))
        await (refused or self.app)(scope, receive, send)

    def _refused(self, request: Request) -> Response | None:
        headers, path = request.headers, request.url.path
        if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
            return refusal(403, "another site's page may not ask this service")
        if self.token is None:
            # A name that someone else's DNS points to this machine would make their page ours.
            if not loopback(_host(headers)):
                return refusal(421, "without a token this service answers to loopback addresses only")
            return None
        if path == "/login" or path.startswith(OPEN[1]) or self._allowed(request):
            return None
        if path.startswith("/api/"):
            return refusal(401, "a token is needed: Authorization: Bearer TOKEN")
        return RedirectResponse("/login", 303)

    def _allowed(self, request: Request) -> bool:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.knows(token.strip()):
            return True
        return hmac.compare_digest(request.cookies.get(COOKIE, "").encode(), self.session.encode())


def _host(headers: Headers) -> str:
    """The name that a browser thinks it talks to."""
    return urlsplit(f"//{headers.get('host', '')}").hostname or ""
