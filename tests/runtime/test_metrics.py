"""Metrics: what a Prometheus server reads is what was counted."""

import math
import threading

import pytest

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.runtime.metrics import MAX_LABEL_VALUES, OTHER, EngineMetrics, Metrics

parser = pytest.importorskip("prometheus_client.parser")


def read(metrics):
    """Samples by (name, labels), through Prometheus' own parser."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parser.text_string_to_metric_families(metrics.text())
        for sample in family.samples
    }


def test_counters_and_gauges():
    metrics = Metrics()
    frames = metrics.counter("frames_total", "Frames.")
    faults = metrics.counter("faults_total", "Faults.", "code")
    backlog = metrics.gauge("backlog_seconds", "Backlog.")
    metrics.gauge("age_seconds", "Age.", read=lambda: 2.5)
    assert read(metrics)["frames_total",] == 0
    frames.inc()
    frames.inc(2**40)
    faults.inc(code="media")
    faults.inc(code='od"d\\\n')
    backlog.set(1.25)
    backlog.add(-0.5)
    got = read(metrics)
    assert got["frames_total",] == 2**40 + 1
    assert got["faults_total", ("code", "media")] == 1
    assert got["faults_total", ("code", 'od"d\\\n')] == 1
    assert got["backlog_seconds",] == 0.75
    assert got["age_seconds",] == 2.5


def test_histogram_is_cumulative():
    metrics = Metrics()
    latency = metrics.histogram("latency_seconds", "Latency.", "stage", bounds=(0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 7.0):
        latency.observe(value, stage="decode")
    got = read(metrics)
    stage = ("stage", "decode")
    counts = [got["latency_seconds_bucket", ("le", le), stage] for le in ("0.1", "1", "+Inf")]
    assert counts == [2, 3, 4]
    assert got["latency_seconds_count", stage] == 4
    assert got["latency_seconds_sum", stage] == pytest.approx(7.65)


def test_no_input_makes_a_metric_grow():
    metrics = Metrics()
    faults = metrics.counter("faults_total", "Faults.", "code")
    for number in range(1000):
        faults.inc(code=str(number))
    got = read(metrics)
    assert len(got) == MAX_LABEL_VALUES + 1
    assert got["faults_total", ("code", OTHER)] == 1000 - MAX_LABEL_VALUES
    assert sum(got.values()) == 1000


def test_threads_lose_nothing():
    metrics = Metrics()
    frames = metrics.counter("frames_total", "Frames.")
    latency = metrics.histogram("latency_seconds", "Latency.", bounds=(1.0,))

    def work():
        for _ in range(2000):
            frames.inc()
            latency.observe(0.5)
            metrics.text()[:1]

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    got = read(metrics)
    assert got["frames_total",] == got["latency_seconds_count",] == 8000


def test_misuse_is_refused():
    metrics = Metrics()
    faults = metrics.counter("faults_total", "Faults.", "code")
    for call in (
        faults.inc,
        lambda: faults.inc(kind="media"),
        lambda: faults.inc(-1, code="media"),
        lambda: faults.inc(math.nan, code="media"),
        lambda: metrics.gauge("faults_total", "Again."),
    ):
        with pytest.raises(InvalidArgument):
            call()
    assert read(metrics) == {}


def test_engine_metrics():
    metrics = EngineMetrics()
    names = {name for name, *_ in read(metrics)}
    assert all(name.startswith("skyreels_rt_") for name in names)
    assert math.isnan(read(metrics)["skyreels_rt_last_chunk_age_seconds",])
    metrics.chunk_delivered(4)
    got = read(metrics)
    assert got["skyreels_rt_frames_total",] == 4
    assert got["skyreels_rt_last_chunk_age_seconds",] >= 0
