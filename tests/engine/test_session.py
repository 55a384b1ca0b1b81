"""A session driven by hand: resuming, refusing, closing."""

import numpy as np
import pytest
import torch

import skyreels_rt as rt
from skyreels_rt import errors
from skyreels_rt.conditioning.edit_mask import resolve_edit_mask
from skyreels_rt.conditioning.source_video import SourceTrack
from skyreels_rt.media.video_file import open_video
from skyreels_rt.options import resolve_settings
from skyreels_rt.session import Session
from skyreels_rt.testing.tiny import TinyModel, tiny_components

RATE = 16_000
SMALL = TinyModel().with_generation(height=32, width=32, window=5, overlap=2, num_steps=1)
SPEECH = 0.1 * np.random.default_rng(0).standard_normal(2 * RATE).astype(np.float32)
PORTRAIT = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def components():
    return tiny_components(SMALL)


def open_session(components, source=None, **kwargs):
    settings = resolve_settings(components, {"prompt": "hello", "horizon": 2})
    return Session(components, settings, portrait=PORTRAIT, source=source, **kwargs)


def drain(session):
    return [chunk.frames for chunk in session.frames()]


@pytest.fixture(scope="module")
def whole(components):
    session = open_session(components)
    session.push_audio(SPEECH, RATE)
    session.end_audio()
    made = np.concatenate(drain(session))
    assert len(made) == 50
    return made


def test_dropping_the_iterator_loses_nothing(components, whole):
    session = open_session(components)
    session.push_audio(SPEECH, RATE)
    session.end_audio()
    made = []
    while not session.is_finished:
        for chunk in session.frames():
            made.append(chunk.frames)
            break
    np.testing.assert_array_equal(np.concatenate(made), whole)


@pytest.mark.parametrize("stage", ["denoise", "decode"])
def test_a_callback_that_raises_loses_nothing(components, whole, stage):
    troubles = []

    def nervous(progress):
        if progress.stage == stage and len(troubles) < 3:
            troubles.append(progress)
            raise RuntimeError("host trouble")

    session = open_session(components, on_progress=nervous)
    session.push_audio(SPEECH, RATE)
    session.end_audio()
    made = []
    while not session.is_finished:
        try:
            for chunk in session.frames():
                made.append(chunk.frames)
        except RuntimeError:
            continue
    assert len(troubles) == {"denoise": 2, "decode": 3}[stage]  # no step is done twice
    np.testing.assert_array_equal(np.concatenate(made), whole)


@pytest.mark.parametrize(
    ("pcm", "rate", "named"),
    [
        (np.zeros(100, dtype=np.int16), RATE, "pcm"),
        (np.zeros(100), RATE, "pcm"),
        ([0.0] * 100, RATE, "pcm"),
        (np.float32(0.5), RATE, "pcm"),
        (np.zeros((1, 2, 3), dtype=np.float32), RATE, "pcm"),
        (np.full(10, np.nan, dtype=np.float32), RATE, "pcm"),
        (np.zeros((10, 2), dtype=np.float32), RATE, "pcm"),
        (np.zeros(100, dtype=np.float32), 8_000, "sample_rate"),
        (np.zeros(100, dtype=np.float32), 0, "sample_rate"),
        (np.zeros(100, dtype=np.float32), "fast", "sample_rate"),
    ],
)
def test_refused_audio_is_named_and_not_taken(components, whole, pcm, rate, named):
    session = open_session(components)
    session.push_audio(SPEECH[:RATE], RATE)
    with pytest.raises(errors.SkyReelsError, match=named):
        session.push_audio(pcm, rate)
    session.push_audio(SPEECH[RATE:], RATE)
    session.end_audio()
    np.testing.assert_array_equal(np.concatenate(drain(session)), whole)


def test_refused_first_push_leaves_the_rate_open(components, whole):
    session = open_session(components)
    with pytest.raises(errors.InvalidArgument, match="sample_rate"):
        session.push_audio(SPEECH, 500)
    session.push_audio(SPEECH, RATE)
    session.end_audio()
    session.end_audio()
    np.testing.assert_array_equal(np.concatenate(drain(session)), whole)


@pytest.mark.parametrize("block", [np.full(1600, 3e3, np.float32), np.zeros((9, 0), np.float32)])
def test_first_push_refused_by_the_resampler_leaves_no_trace(components, whole, block):
    session = open_session(components)
    with pytest.raises(errors.InvalidArgument):
        session.push_audio(block, 48_000)
    session.push_audio(SPEECH, RATE)
    session.end_audio()
    np.testing.assert_array_equal(np.concatenate(drain(session)), whole)


def test_audio_after_its_end_is_refused(components):
    session = open_session(components)
    with pytest.raises(errors.MediaError, match="no samples"):
        session.end_audio()
    session.push_audio(SPEECH, RATE)
    session.end_audio()
    with pytest.raises(errors.InvalidArgument, match="ended"):
        session.push_audio(SPEECH, RATE)


def source_track(num_frames):
    frames = np.random.default_rng(3).integers(0, 256, (num_frames, 32, 32, 3), dtype=np.uint8)
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[8:24, 8:24] = 255
    return SourceTrack(
        open_video(frames, 25), resolve_edit_mask(mask, 32, 32, None), 25, 32, 32
    )  # fmt: skip


def test_closed_session_says_so(components):
    session = open_session(components, source=source_track(100))
    session.push_audio(SPEECH, RATE)
    iterator = session.frames()
    next(iterator)
    session.close()
    session.close()
    with pytest.raises(errors.InvalidArgument, match="closed"):
        next(iterator)
    for call in (lambda: session.push_audio(SPEECH, RATE), session.end_audio, session.frames):
        with pytest.raises(errors.InvalidArgument, match="closed"):
            list(call() or ())


def test_speech_past_the_end_of_the_source_is_dropped(components):
    session = open_session(components, source=source_track(9))
    made, sizes = [], []
    for _ in range(20):
        session.push_audio(SPEECH, RATE)
        made += drain(session)
        sizes.append(held_bytes(session))
    assert session.is_finished
    assert len(np.concatenate(made)) == 9
    assert sizes[-1] == sizes[1]


def test_sessions_do_not_disturb_each_other(components, whole):
    sessions = [open_session(components) for _ in range(2)]
    made = [[], []]
    for start in range(0, len(SPEECH), 3_000):
        sessions[0].push_audio(SPEECH[start : start + 3_000], RATE)
        sessions[1].push_audio(SPEECH[::-1][start : start + 3_000], RATE)
        for index, session in enumerate(sessions):
            made[index].extend(drain(session))
    for index, session in enumerate(sessions):
        session.end_audio()
        made[index].extend(drain(session))
    np.testing.assert_array_equal(np.concatenate(made[0]), whole)
    assert (np.concatenate(made[1]) != whole).any()


def test_state_does_not_grow():
    """Bytes of every tensor and array a session holds, after 5 s and after 40 s."""
    components = tiny_components(SMALL)
    session = open_session(components)
    rng = np.random.default_rng(0)
    sizes = []
    for second in range(40):
        session.push_audio(0.1 * rng.standard_normal(RATE).astype(np.float32), RATE)
        drain(session)
        if second % 4 == 0:  # the same phase of groups and grid
            sizes.append(held_bytes(session))
    assert max(sizes[5:]) <= max(sizes[1:5])


def held_bytes(value, seen=None):
    seen = set() if seen is None else seen
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, torch.nn.Module) or type(value).__name__ in (
        "Components",
        "WhisperFeatures",
    ):
        return 0
    if isinstance(value, dict):
        return sum(held_bytes(item, seen) for item in value.values())
    if isinstance(value, list | tuple):
        return sum(held_bytes(item, seen) for item in value)
    return held_bytes(vars(value), seen) if hasattr(value, "__dict__") else 0


def test_time_path_stays_in_float32():
    model = tiny_components(SMALL, dtype=torch.bfloat16).transformer
    kept = {name for name, p in model.named_parameters() if p.dtype == torch.float32}
    assert kept == {name for name, _ in model.named_parameters() if "time_" in name
                    or name.endswith("modulation")}  # fmt: skip


def test_source_of_another_rate_is_resampled(components, tmp_path):
    from skyreels_rt.media.video_writer import VideoWriter

    rng = np.random.default_rng(5)
    colours = rng.integers(40, 216, (40, 1, 1, 3), dtype=np.uint8)
    fast = np.broadcast_to(colours, (40, 64, 64, 3)).copy()
    with VideoWriter(tmp_path / "fast.mp4", fps=50, height=64, width=64, crf=1) as writer:
        writer.write(fast)
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[8:24, 8:24] = 255
    video = rt.Engine(components).generate(
        SPEECH, sample_rate=RATE, video=tmp_path / "fast.mp4", edit_mask=mask
    )
    assert video.num_frames == 20
    corner = video.frames[:, 2, 2].astype(int)
    assert np.abs(corner - fast[::2, 0, 0]).max() <= 6
