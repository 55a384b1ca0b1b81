"""Who may come in: token, origin, and the number of connections."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from skyreels_rt.serve.protocol import Refused

MAX_WAITING: Final = 16
"""Connections beyond ``max_sessions`` that may be in their first messages."""


@dataclass(frozen=True)
class Access:
    """Token and origins that are let in.

    Attributes
    ----------
    token : str or None
        What a client must know; None lets everyone in.
    origins : tuple of str
        Further origins (``https://host[:port]``) whose pages may connect; the server's own may.
    local_only : bool
        Whether requests must name this machine as their host. It keeps pages of other sites from
        reaching a server on loopback by a name of their own (DNS rebinding).
    """

    token: str | None = None
    origins: tuple[str, ...] = ()
    local_only: bool = True

    def knows(self, given: str | None) -> bool:
        """Whether ``given`` is the token; takes the same time for every wrong one."""
        if self.token is None:
            return True
        return hmac.compare_digest((given or "").encode(), self.token.encode())

    def require_origin(self, origin: str | None, host: str | None) -> None:
        """Raise unless a page of ``origin`` may talk to this server as ``host``.

        Raises
        ------
        Refused
            ``forbidden_origin``.
        """
        if self.local_only and not is_loopback(_host_name(host or "")):
            raise Refused(
                "forbidden_origin", "Host: expected a name of this machine.",
                hint="Open http://127.0.0.1:PORT, or start the server with another --host.",
            )  # fmt: skip
        # A program that is no browser sends no origin; it is not what this protects from.
        if origin is None or origin in self.origins:
            return
        _, _, place = origin.partition("://")
        if not place or place != host:
            raise Refused(
                "forbidden_origin", "Origin: expected the server's own page.",
                hint="Start the server with --allow-origin.",
            )  # fmt: skip


def bearer_token(header: str | None) -> str | None:
    """Token of an ``Authorization: Bearer`` header, or None."""
    scheme, _, token = (header or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def is_loopback(host: str) -> bool:
    """Whether ``host`` names this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Places:
    """Counts connections and sessions of one server; used in its event loop alone.

    Parameters
    ----------
    max_sessions : int
        Sessions at a time.
    """

    def __init__(self, max_sessions: int) -> None:
        self.max_sessions = max_sessions
        self.connections = 0
        self.sessions = 0

    @contextmanager
    def connection(self) -> Iterator[None]:
        """A place for a connection inside the ``with`` block.

        Raises
        ------
        Refused
            ``busy``.
        """
        if self.connections >= self.max_sessions + MAX_WAITING:
            raise _busy()
        self.connections += 1
        try:
            yield
        finally:
            self.connections -= 1

    @contextmanager
    def session(self) -> Iterator[None]:
        """A place for a session inside the ``with`` block; raises like :meth:`connection`."""
        if self.sessions >= self.max_sessions:
            raise _busy()
        self.sessions += 1
        try:
            yield
        finally:
            self.sessions -= 1


def _busy() -> Refused:
    return Refused("busy", "All places are taken.", hint="Try again in a while.")


def _host_name(host: str) -> str:
    """Host of a ``Host`` header, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
