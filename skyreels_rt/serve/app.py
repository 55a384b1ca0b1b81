"""The HTTP application: the stream, the page, and what operators and monitors read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse

from skyreels_rt import __version__
from skyreels_rt.errors import SkyReelsError
from skyreels_rt.media.portraits import portrait_names, portrait_path
from skyreels_rt.runtime.metrics import CONTENT_TYPE
from skyreels_rt.serve.admission import Access, Places, bearer_token
from skyreels_rt.serve.conversation import Conversation, Service
from skyreels_rt.serve.metrics import ServeMetrics
from skyreels_rt.serve.protocol import ServeLimits

if TYPE_CHECKING:
    from skyreels_rt.engine import Engine

PAGE: Final = Path(__file__).parent / "page"
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
logger = logging.getLogger(__name__)
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' "
    "blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def create_app(
    engine: Engine,
    *,
    access: Access | None = None,
    limits: ServeLimits | None = None,
) -> FastAPI:
    """The application that serves ``engine``.

    Parameters
    ----------
    engine : Engine
        The loaded model; warmed up when the application starts.
    access : Access, optional
        Token and origins; by default everyone on this machine.
    limits : ServeLimits, optional
        What a client may use.

    Returns
    -------
    FastAPI
        ``/`` (page), ``/v1/stream`` (WebSocket), ``/v1/portraits``, ``/healthz``, ``/readyz``,
        ``/metrics``.
    """
    chosen = limits or ServeLimits()
    service = Service(
        engine, chosen, access or Access(), Places(chosen.max_sessions), ServeMetrics()
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.warm = False
        warming = asyncio.create_task(_warm_up(app, engine))
        yield
        await warming

    # Its documentation pages would load scripts from elsewhere.
    app = FastAPI(
        title="skyreels_rt", version=__version__, lifespan=lifespan,
        docs_url=None, redoc_url=None, openapi_url=None,
    )  # fmt: skip
    app.state.service = service

    @app.middleware("http")
    async def add_headers(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        response = await call_next(request)
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    @app.websocket("/v1/stream")
    async def stream(socket: WebSocket) -> None:
        await Conversation(socket, service).run()

    _add_pages(app, service)
    _add_operator_pages(app, service)
    return app


async def _warm_up(app: FastAPI, engine: Engine) -> None:
    """Make a first frame; only then is the server ready."""
    try:
        await asyncio.to_thread(engine.warmup)
    except SkyReelsError:
        logger.exception("the warm-up failed: the server is not ready")
    else:
        app.state.warm = True


def _add_pages(app: FastAPI, service: Service) -> None:
    """The browser's page and its files; the list is fixed, no name is ever joined to a path."""
    files = {f"/{path.name}": path for path in PAGE.iterdir() if path.suffix in _TYPES}
    files["/"] = files.pop("/index.html")
    for route, path in files.items():
        app.add_api_route(route, _file_route(path, _TYPES[path.suffix]), methods=["GET"])
    for name in portrait_names():
        route = f"/portraits/{name}.png"
        app.add_api_route(route, _file_route(portrait_path(name), "image/png"), methods=["GET"])

    @app.get("/v1/portraits")
    async def portraits() -> dict[str, Any]:
        return {
            "portraits": [
                {"name": name, "url": f"portraits/{name}.png"} for name in portrait_names()
            ],
            "needs_token": service.access.token is not None,
            "max_image_bytes": service.limits.max_message_bytes,
        }


def _file_route(path: Path, media_type: str) -> Callable[[], Awaitable[FileResponse]]:
    async def route() -> FileResponse:
        return FileResponse(path, media_type=media_type)

    return route


def _add_operator_pages(app: FastAPI, service: Service) -> None:
    """What monitors read: is the process there, can it work, what did it count."""

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok", "version": __version__}

    @app.get("/readyz")
    async def readyz() -> Response:
        ready = bool(app.state.warm)
        state = {
            "ready": ready,
            "sessions": service.places.sessions,
            "max_sessions": service.places.max_sessions,
        }
        return JSONResponse(state, 200 if ready else 503)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        if not service.access.knows(bearer_token(request.headers.get("authorization"))):
            return PlainTextResponse("unauthorized\n", 401, headers={"WWW-Authenticate": "Bearer"})
        text = service.engine.metrics() + service.metrics.text()
        return PlainTextResponse(text, media_type=CONTENT_TYPE)
