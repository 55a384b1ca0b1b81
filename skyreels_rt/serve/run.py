"""Run the application under uvicorn until it is told to stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import uvicorn

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.serve.admission import Access, is_loopback
from skyreels_rt.serve.app import create_app
from skyreels_rt.serve.protocol import ServeLimits

if TYPE_CHECKING:
    from skyreels_rt.engine import Engine

SHUTDOWN_SECONDS: Final = 5
_MIN_TOKEN: Final = 16


def require_safe(host: str, token: str | None) -> None:
    """Raise for a server that strangers could use by accident.

    Raises
    ------
    InvalidArgument
        ``token`` is short, or ``host`` is not this machine alone and there is no token.
    """
    if token is not None and len(token) < _MIN_TOKEN:
        raise InvalidArgument(
            "token", expected=f"at least {_MIN_TOKEN} characters", got=f"{len(token)}",
            hint="For example: openssl rand -hex 16.",
        )  # fmt: skip
    if token is None and not is_loopback(host):
        raise InvalidArgument(
            "token", expected="one, because others can reach this address", got="none",
            hint="Give --token, or listen on 127.0.0.1.",
        )  # fmt: skip


class _Server(uvicorn.Server):
    """Uvicorn's server that tells when and where it listens."""

    def __init__(self, config: uvicorn.Config, on_listening: Callable[[str], None]) -> None:
        super().__init__(config)
        self._on_listening = on_listening

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Listen, then tell."""
        await super().startup(sockets)  # type: ignore[arg-type]
        for server in self.servers:
            for socket in server.sockets:
                host, port = socket.getsockname()[:2]
                self._on_listening(f"http://{f'[{host}]' if ':' in host else host}:{port}")


def make_server(
    engine: Engine,
    *,
    host: str,
    port: int,
    access: Access,
    limits: ServeLimits,
    on_listening: Callable[[str], None],
) -> uvicorn.Server:
    """The server, not running yet; see :func:`run_server`."""
    config = uvicorn.Config(
        create_app(engine, access=access, limits=limits),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="websockets-sansio",
        # The protocol's own limit answers first, with words; this one guards the memory.
        ws_max_size=limits.max_message_bytes + 1024,
        ws_max_queue=8,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        h11_max_incomplete_event_size=32 * 1024,
    )
    return _Server(config, on_listening)


def run_server(
    engine: Engine,
    *,
    host: str,
    port: int,
    access: Access,
    limits: ServeLimits,
    on_listening: Callable[[str], None],
) -> None:
    """Serve until SIGINT or SIGTERM; open sessions are closed.

    Parameters
    ----------
    engine : Engine
        The loaded model.
    host : str
        Address to listen on.
    port : int
        Port; 0 takes a free one.
    access : Access
        Who may come in.
    limits : ServeLimits
        What a client may use.
    on_listening : callable
        Called with the server's address once it listens.
    """
    make_server(
        engine, host=host, port=port, access=access, limits=limits, on_listening=on_listening
    ).run()
