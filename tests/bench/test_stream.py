"""bench stream: real-time speech into live sessions, every row filled."""

import numpy as np
import pytest

import skyreels_rt as rt
from skyreels_rt.bench.stream import measure_stream, measure_sync
from skyreels_rt.errors import FaceNotFound, InvalidArgument, MissingDependency
from skyreels_rt.media.audio_file import open_audio
from skyreels_rt.testing.tiny import TinyModel, tiny_components

SMALL = TinyModel().with_generation(height=32, width=32, window=4, overlap=1, num_steps=1)


def measure(tmp_path, how=measure_stream, **changes):
    from PIL import Image

    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "face.png")
    voice = open_audio(np.zeros(16_000, np.float32), 16_000)
    options = {
        "voice": voice, "image": tmp_path / "face.png", "seconds": 2.5,
        "horizon": 1, "command": "test", **changes,
    }  # fmt: skip
    if how is measure_stream:
        options.setdefault("sessions", 2)
    return how(rt.Engine(tiny_components(SMALL)), **options)


def test_rows_are_filled(tmp_path):
    rows = {row.name: row for row in measure(tmp_path).rows}
    assert rows["stream.dropped"].value == 0
    assert rows["stream.first_need"].value == pytest.approx(1.12)  # 13 frames and the look-ahead
    assert rows["stream.chunk_length"].value == pytest.approx(12 / 25)
    assert rows["stream.first_frame"].value > 0
    assert 0 < rows["stream.chunk_p50"].value <= rows["stream.chunk_p95"].value
    assert rows["stream.rtf"].value > 0
    assert rows["stream.tick_late_p99"].value >= 0
    assert 10 < rows["stream.throughput"].value <= 2 * 26  # the speech comes at its own pace


def test_lips_are_compared_without_a_clock(tmp_path):
    with pytest.raises((FaceNotFound, MissingDependency)):  # noise shows no face
        measure(tmp_path, measure_sync, seconds=2.5)
    with pytest.raises(InvalidArgument):
        measure(tmp_path, measure_sync, seconds=121.0)


@pytest.mark.parametrize("change", [{"sessions": 0}, {"seconds": 0.5}])
def test_bad_numbers_are_refused(tmp_path, change):
    with pytest.raises(InvalidArgument):
        measure(tmp_path, **change)
