"""The HTTP application: `/api/v1` as JSON, pages and their files beside it. Nothing here writes to the store."""

import hashlib
import json
import logging
from importlib import resources
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from ndt_ray.errors import NdtError, SpecError
from ndt_ray.figures.charts import config
from ndt_ray.figures.charts.theme import DARK, LIGHT
from ndt_ray.report.page import colours, embedded, vega
from ndt_ray.report.parts import plain
from ndt_ray.service.access import COOKIE, POLICY, Guard, refusal
from ndt_ray.service.board import Board, UnknownSweep, sheet_value
from ndt_ray.service.console import MOST_ROWS, ROWS, SECONDS, Busy, Console, Stopped, answer, csv
from ndt_ray.store.reader import Store

API = "/api/v1"
FILES = {
    "app.js": "text/javascript", "view.js": "text/javascript", "table.js": "text/javascript",
    "service.css": "text/css", "style.css": "text/css", "vega.js": "text/javascript",
}  # fmt: skip
STATUS: tuple[tuple[type[NdtError], int], ...] = (
    (UnknownSweep, 404), (Busy, 429), (Stopped, 408), (SpecError, 400), (NdtError, 503),
)  # fmt: skip
"""HTTP status of an error of ours, the first that it is."""
Name = Annotated[str, Path(max_length=200, description="Name of a sweep.")]
log = logging.getLogger("ndt_ray.service")


class Asked(BaseModel, extra="forbid"):
    """A query for the console."""

    sql: str = Field(max_length=100_000, description="One SELECT over the tables of the store.")
    id: str = Field(default="console", pattern=r"^[\w-]{1,64}$", description="To cancel it by; one runs at a time.")
    limit: int = Field(default=ROWS, ge=1, le=MOST_ROWS)
    timeout: float = Field(default=SECONDS, gt=0, le=SECONDS, description="Seconds until it is stopped.")


def create_app(store: Store, token: str | None = None) -> FastAPI:
    """The application over a store; with a token, nothing is shown without it."""
    app = FastAPI(
        title="ndt-ray",
        description="A store of sweeps, read-only.",
        docs_url=None,  # FastAPI's own pages load their scripts from elsewhere
        redoc_url=None,
        openapi_url=f"{API}/openapi.json",
    )
    board, console = Board(store), Console(store)
    _errors(app)
    _sweeps(app, board)
    _sql(app, board, console)
    _pages(app, board, token)
    app.add_middleware(Guard, token=token)
    return app


# -- the API -----------------------------------------------------------------------------------------------------------


def _sweeps(app: FastAPI, board: Board) -> None:
    @app.get(f"{API}/sweeps", tags=["sweeps"], summary="Every sweep with its state, newest first")
    def sweeps(request: Request) -> Response:
        return _json(request, {"sweeps": board.sweeps()})

    @app.get(
        f"{API}/sweeps/{{sweep}}", tags=["sweeps"], summary="One sweep: state, packs, failures, what can be mapped"
    )
    def sweep(request: Request, sweep: Name) -> Response:
        return _json(request, board.one(sweep))

    @app.get(f"{API}/sweeps/{{sweep}}/trials", tags=["sweeps"], summary="One row a planned trial")
    def trials(request: Request, sweep: Name) -> Response:
        return _unchanged(request, board, sweep) or _json(
            request, sheet_value(board.trials(sweep)), _tag(request, board)
        )

    @app.get(f"{API}/sweeps/{{sweep}}/trials.csv", tags=["sweeps"], summary="The same as CSV, all digits")
    def trials_csv(sweep: Name) -> Response:
        return _csv(board.trials(sweep).rows.to_csv(index=False), f"{sweep}-trials")

    @app.get(f"{API}/sweeps/{{sweep}}/map", tags=["sweeps"], summary="Layer by step maps, events marked, as Vega-Lite")
    def layer_map(
        request: Request,
        sweep: Name,
        measure: Annotated[
            str | None, Query(max_length=100, description="A measure of the spectra, or velocity.")
        ] = None,
    ) -> Response:
        return _unchanged(request, board, sweep) or _json(request, board.map(sweep, measure), _tag(request, board))

    @app.get(
        f"{API}/sweeps/{{sweep}}/events",
        tags=["sweeps"],
        summary="Events beside their nulls: sentences, charts, tables",
    )
    def events(request: Request, sweep: Name) -> Response:
        return _unchanged(request, board, sweep) or _json(request, board.events(sweep), _tag(request, board))


def _sql(app: FastAPI, board: Board, console: Console) -> None:
    @app.get(f"{API}/tables", tags=["sql"], summary="Tables that have rows, with the meaning of their columns")
    def tables(request: Request) -> Response:
        return _json(request, {"tables": board.tables()})

    @app.post(f"{API}/sql", tags=["sql"], summary="One SELECT over the tables of the store")
    def sql(asked: Asked) -> Response:
        rows, seconds = console.ask(asked.sql, asked.id, asked.limit, asked.timeout)
        return JSONResponse(answer(rows, seconds), headers={"Cache-Control": "no-store"})

    @app.delete(f"{API}/sql/{{id}}", tags=["sql"], summary="Cancel a query")
    def cancel(id: Annotated[str, Path(max_length=64)]) -> dict[str, bool]:
        return {"cancelled": console.cancel(id)}

    @app.get(f"{API}/sql.csv", tags=["sql"], summary="What a SELECT gives, as CSV")
    def sql_csv(q: Annotated[str, Query(max_length=100_000, description="One SELECT.")]) -> Response:
        rows, _ = console.ask(q, f"csv-{id(q)}", MOST_ROWS)
        return _csv(csv(rows), "query")


def _tag(request: Request, board: Board) -> str:
    return board.tag(request.url.path, request.url.query)


def _unchanged(request: Request, board: Board, sweep: str) -> Response | None:
    """304 where the asker has what is committed now."""
    board.sweep(sweep)
    tag = _tag(request, board)
    return Response(status_code=304, headers={"ETag": tag}) if request.headers.get("if-none-match") == tag else None


def _json(request: Request, value: Any, tag: str | None = None) -> Response:
    """JSON with an ETag (of its content, unless given), or 304."""
    body = json.dumps(value, separators=(",", ":"), allow_nan=False, default=plain).encode()
    found = tag or f'"{hashlib.sha256(body).hexdigest()[:20]}"'
    headers = {"ETag": found, "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == found:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)


def _csv(text: str, name: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}.csv"', "Cache-Control": "no-store"}
    return Response(text, media_type="text/csv; charset=utf-8", headers=headers)


# -- errors ------------------------------------------------------------------------------------------------------------


def _errors(app: FastAPI) -> None:
    """One shape for all: ok, error, errors, status."""

    @app.exception_handler(NdtError)
    def ours(_: Request, error: NdtError) -> Response:
        return refusal(next(status for kind, status in STATUS if isinstance(error, kind)), str(error))

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> Response:
        found = [{"where": ".".join(map(str, e["loc"])), "error": str(e["msg"])} for e in error.errors()]
        return refusal(422, "; ".join(f"{e['where']}: {e['error']}" for e in found), found)

    @app.exception_handler(HTTPException)
    def other(_: Request, error: HTTPException) -> Response:
        return refusal(error.status_code, str(error.detail))

    @app.exception_handler(Exception)
    def unexpected(_: Request, error: Exception) -> Response:
        log.error("a request failed", exc_info=error)
        return refusal(500, "the service failed; its terminal says why")


# -- pages -------------------------------------------------------------------------------------------------------------


def _pages(app: FastAPI, board: Board, token: str | None) -> None:
    env = Environment(
        loader=ChoiceLoader(
            [PackageLoader("ndt_ray.service", "templates"), PackageLoader("ndt_ray.report", "templates")]
        ),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    theme = {"light": colours(LIGHT), "dark": colours(DARK)}
    files = {name: _file(name).encode() for name in FILES if name != "vega.js"}

    def page(name: str, **values: Any) -> Response:
        text = env.get_template(name).render(**theme, **values)
        return HTMLResponse(text, headers={"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"})

    @app.get("/", include_in_schema=False)
    def index() -> Response:
        charts = embedded({"light": config(False), "dark": config(True)})
        return page("index.html", charts=charts, store=board.store.location.uri, token=token is not None)

    @app.get("/docs", include_in_schema=False)
    def docs() -> Response:
        return page("docs.html", api=app.openapi())

    @app.get("/sweeps/{sweep}/report", include_in_schema=False)
    def report(sweep: Name) -> Response:
        return HTMLResponse(board.report(sweep), headers={"Cache-Control": "no-cache"})

    @app.get("/static/{name}", include_in_schema=False)
    def static(request: Request, name: str) -> Response:
        if name not in FILES:
            raise HTTPException(404, f"no file {name}")
        body = vega().encode() if name == "vega.js" else files[name]
        tag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'
        headers = {"ETag": tag, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(body, media_type=f"{FILES[name]}; charset=utf-8", headers=headers)

    @app.get("/login", include_in_schema=False)
    def form() -> Response:
        return page("login.html", wrong=False) if token else RedirectResponse("/", 303)

    @app.post("/login", include_in_schema=False)
    async def login(request: Request) -> Response:
        guard: Guard = request.state.guard
        given = parse_qs((await request.body())[:4096].decode("ascii", "replace")).get("token", [""])[0]
        if not guard.knows(given.strip()):
            answered = page("login.html", wrong=True)
            answered.status_code = 401
            return answered
        answered = RedirectResponse("/", 303)
        answered.set_cookie(
            COOKIE, guard.session, httponly=True, samesite="strict", secure=request.url.scheme == "https"
        )
        return answered

    @app.get("/robots.txt", include_in_schema=False)
    def robots() -> Response:
        return PlainTextResponse("User-agent: *\nDisallow: /\n")


def _file(name: str) -> str:
    package = "ndt_ray.report" if name == "style.css" else "ndt_ray.service"
    return (resources.files(package) / "templates" / name).read_text(encoding="utf-8")
