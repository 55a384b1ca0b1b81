"""Counters, gauges and histograms in Prometheus' text format, without a dependency.

Every metric is thread-safe and costs a lock and an addition. Its label values are few: past
``MAX_LABEL_VALUES`` new ones are counted as ``"other"``, so that no input can make a metric grow.
Format: Prometheus text exposition 0.0.4.
"""

from __future__ import annotations

import math
import threading
import time
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Final, Literal

from skyreels_rt.errors import InvalidArgument

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
MAX_LABEL_VALUES: Final = 32
OTHER: Final = "other"
SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the buckets for latencies."""
RATIOS: Final = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0)
"""Upper bounds of the buckets for real-time factors."""


class Metric(ABC):
    """One named family of samples.

    Parameters
    ----------
    name : str
        Full name, unit included (``skyreels_rt_chunk_seconds``).
    description : str
        One line for the reader of a dashboard.
    label : str or None
        Name of its one label; None for a metric without.
    """

    kind: Literal["counter", "gauge", "histogram"]

    def __init__(self, name: str, description: str, label: str | None = None) -> None:
        self.name, self.description, self.label = name, description, label
        self._lock = threading.Lock()
        self._seen: set[str] = set()

    def lines(self) -> Iterator[str]:
        """The family as lines of the text format."""
        yield f"# HELP {self.name} {_escaped(self.description, quotes=False)}"
        yield f"# TYPE {self.name} {self.kind}"
        with self._lock:
            samples = list(self._samples())
        yield from samples

    @abstractmethod
    def _samples(self) -> Iterator[str]:
        """Sample lines; called with the lock held."""

    def _key(self, labels: dict[str, str]) -> str:
        """Label value of ``labels``, ``""`` without a label; called with the lock held."""
        expected = () if self.label is None else (self.label,)
        if tuple(labels) != expected:
            raise InvalidArgument(
                self.name, expected=f"the labels {expected}", got=str(tuple(labels))
            )
        if self.label is None:
            return ""
        value = labels[self.label]
        if value not in self._seen and len(self._seen) >= MAX_LABEL_VALUES:
            return OTHER
        self._seen.add(value)
        return value

    def _sample(self, suffix: str, key: str, value: float, bound: str = "") -> str:
        pairs = [] if self.label is None else [f'{self.label}="{_escaped(key)}"']
        pairs += [f'le="{bound}"'] if bound else []
        inside = "{" + ",".join(pairs) + "}" if pairs else ""
        return f"{self.name}{suffix}{inside} {_number(value)}"


class Counter(Metric):
    """A sum that only grows."""

    kind = "counter"

    def __init__(self, name: str, description: str, label: str | None = None) -> None:
        super().__init__(name, description, label)
        self._values: dict[str, float] = {} if label else {"": 0.0}

    def inc(self, amount: float = 1.0, **labels: str) -> None:
        """Add ``amount`` (0 or more)."""
        if not amount >= 0:
            raise InvalidArgument(self.name, expected="an amount of 0 or more", got=amount)
        with self._lock:
            key = self._key(labels)
            self._values[key] = self._values.get(key, 0.0) + amount

    def _samples(self) -> Iterator[str]:
        for key, value in self._values.items():
            yield self._sample("", key, value)


class Gauge(Metric):
    """A value that goes up and down.

    Parameters
    ----------
    name, description, label
        As in :class:`Metric`.
    read : callable, optional
        Gives the value when the metrics are read, instead of :meth:`set` and :meth:`add`.
    """

    kind = "gauge"

    def __init__(
        self,
        name: str,
        description: str,
        label: str | None = None,
        read: Callable[[], float] | None = None,
    ) -> None:
        super().__init__(name, description, label)
        self._read = read
        self._values: dict[str, float] = {} if label else {"": 0.0}

    def set(self, value: float, **labels: str) -> None:
        """Replace the value."""
        with self._lock:
            self._values[self._key(labels)] = float(value)

    def add(self, amount: float, **labels: str) -> None:
        """Add ``amount``, negative to subtract."""
        with self._lock:
            key = self._key(labels)
            self._values[key] = self._values.get(key, 0.0) + amount

    def _samples(self) -> Iterator[str]:
        values = self._values if self._read is None else {"": self._read()}
        for key, value in values.items():
            yield self._sample("", key, value)


class Histogram(Metric):
    """Counts of observations up to each bound, their sum and number.

    Parameters
    ----------
    name, description, label
        As in :class:`Metric`.
    bounds : tuple of float
        Upper bounds of the buckets, rising; one more bucket holds everything above.
    """

    kind = "histogram"

    def __init__(
        self,
        name: str,
        description: str,
        label: str | None = None,
        bounds: tuple[float, ...] = SECONDS,
    ) -> None:
        super().__init__(name, description, label)
        self.bounds = bounds
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}
        if label is None:
            self._add_key("")

    def observe(self, value: float, **labels: str) -> None:
        """Count one observation."""
        with self._lock:
            key = self._key(labels)
            if key not in self._counts:
                self._add_key(key)
            self._counts[key][bisect_left(self.bounds, value)] += 1
            self._sums[key] += value

    def _add_key(self, key: str) -> None:
        self._counts[key] = [0] * (len(self.bounds) + 1)
        self._sums[key] = 0.0

    def _samples(self) -> Iterator[str]:
        for key, counts in self._counts.items():
            total = 0
            for bound, count in zip((*self.bounds, math.inf), counts, strict=True):
                total += count
                yield self._sample("_bucket", key, total, _number(bound))
            yield self._sample("_sum", key, self._sums[key])
            yield self._sample("_count", key, total)


class Metrics:
    """A set of metrics that are read together."""

    def __init__(self) -> None:
        self._families: dict[str, Metric] = {}

    def counter(self, name: str, description: str, label: str | None = None) -> Counter:
        """A new counter of this set; its name ends in ``_total``."""
        metric = Counter(name, description, label)
        self._add(metric)
        return metric

    def gauge(
        self,
        name: str,
        description: str,
        label: str | None = None,
        read: Callable[[], float] | None = None,
    ) -> Gauge:
        """A new gauge of this set."""
        metric = Gauge(name, description, label, read)
        self._add(metric)
        return metric

    def histogram(
        self,
        name: str,
        description: str,
        label: str | None = None,
        bounds: tuple[float, ...] = SECONDS,
    ) -> Histogram:
        """A new histogram of this set."""
        metric = Histogram(name, description, label, bounds)
        self._add(metric)
        return metric

    def text(self) -> str:
        """All samples in Prometheus' text format."""
        return "".join(f"{line}\n" for family in self._families.values() for line in family.lines())

    def _add(self, metric: Metric) -> None:
        if metric.name in self._families:
            raise InvalidArgument("name", expected="a metric of a new name", got=metric.name)
        self._families[metric.name] = metric


class EngineMetrics(Metrics):
    """What an engine and its sessions count; one per engine.

    The kinds follow SGLang's list (queue, running, requests by status, latency by stage), the rest
    is what live speech adds.
    """

    def __init__(self) -> None:
        super().__init__()
        self._last_chunk: float | None = None
        name = "skyreels_rt_{}".format
        self.sessions_active = self.gauge(name("sessions_active"), "Sessions that are open.")
        self.sessions_waiting = self.gauge(
            name("sessions_waiting"), "Sessions that wait for their turn at the device."
        )
        self.sessions = self.counter(
            name("sessions_total"),
            "Sessions by outcome: finished, closed, failed, refused.",
            "outcome",
        )
        self.session_seconds = self.histogram(
            name("session_seconds"), "Life of a session, from open to close.",
            bounds=(1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0, 28800.0),
        )  # fmt: skip
        self.queue_seconds = self.histogram(
            name("queue_seconds"), "Time a step or a latent waited for its turn at the device."
        )
        self.stage_seconds = self.histogram(
            name("stage_seconds"), "Compute time of a chunk by stage.", "stage"
        )
        self.real_time_factor = self.histogram(
            name("real_time_factor"), "Compute seconds per second of video.", bounds=RATIOS
        )
        self.first_frame_seconds = self.histogram(
            name("first_frame_seconds"), "From the last sample the first group needs to its frame."
        )
        self.chunk_seconds = self.histogram(
            name("chunk_seconds"), "From the moment a chunk is due to its frames."
        )
        self.deadline_misses = self.counter(
            name("deadline_misses_total"),
            "Chunks later than the length of their group's new frames.",
        )
        self.audio_backlog_seconds = self.gauge(
            name("audio_backlog_seconds"), "Pushed audio that no frame was made of yet."
        )
        self.frames = self.counter(name("frames_total"), "Frames delivered.")
        self.frames_dropped = self.counter(
            name("frames_dropped_total"), "Frames whose speech was dropped by an interruption."
        )
        self.cancel_seconds = self.histogram(
            name("cancel_seconds"), "From a cancel or an interruption to its end."
        )
        self.device_bytes = self.gauge(
            name("device_bytes"), "Device memory: allocated, reserved.", "kind"
        )
        self.last_chunk_age_seconds = self.gauge(
            name("last_chunk_age_seconds"),
            "Time since any session delivered a chunk; NaN before the first.",
            read=self._chunk_age,
        )
        self.faults = self.counter(name("faults_total"), "Errors raised, by code.", "code")

    def chunk_delivered(self, num_frames: int) -> None:
        """Count a delivered chunk; its time is the sign of life."""
        self._last_chunk = time.monotonic()
        self.frames.inc(num_frames)

    @property
    def seconds_since_chunk(self) -> float | None:
        """Time since any session delivered a chunk; None before the first."""
        return None if self._last_chunk is None else time.monotonic() - self._last_chunk

    def _chunk_age(self) -> float:
        age = self.seconds_since_chunk
        return math.nan if age is None else age


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(float(value))


def _escaped(text: str, *, quotes: bool = True) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text
