"""What the server counts beside its engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from skyreels_rt.runtime.metrics import Metrics


class ServeMetrics(Metrics):
    """Connections, bytes and latencies; names begin with ``skyreels_rt_serve_``."""

    def __init__(self) -> None:
        super().__init__()
        name = "skyreels_rt_serve_{}".format
        self.connections = self.gauge(name("connections"), "Open connections.")
        self.closed_connections = self.counter(
            name("connections_total"),
            "Closed connections: finished, left, or the name of a refusal.",
            "outcome",
        )
        self.received_bytes = self.counter(name("received_bytes_total"), "Bytes from clients.")
        self.sent_bytes = self.counter(name("sent_bytes_total"), "Bytes to clients.")
        self.chunk_seconds = self.histogram(
            name("chunk_seconds"), "From the arrival of the last sample a chunk needs to its send."
        )

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Count an open connection inside the ``with`` block."""
        self.connections.add(1)
        try:
            yield
        finally:
            self.connections.add(-1)

    def closed(self, outcome: str) -> None:
        """Count a connection that has ended."""
        self.closed_connections.inc(outcome=outcome)
