import numpy as np
import pytest

from skyreels_rt.conditioning.edit_mask import resolve_edit_mask
from skyreels_rt.conditioning.face import FaceFinder, face_available, face_status
from skyreels_rt.conditioning.portrait import cover_crop
from skyreels_rt.conditioning.source_video import SourceTrack, composite
from skyreels_rt.errors import FaceNotFound
from skyreels_rt.media.video_file import open_video


class CountingVideo:
    """Frames of noise; counts how many were decoded, and whether it was closed."""

    def __init__(self, num_frames, size=(30, 50)):
        self.num_frames = num_frames
        self.size = size
        self.decoded = 0
        self.is_closed = False
        self.asked_fps = None

    def frame(self, index):
        generator = np.random.default_rng(index)
        return generator.integers(0, 256, (*self.size, 3), dtype=np.uint8)

    def frames(self, fps):
        self.asked_fps = fps
        return self._frames()

    def _frames(self):
        try:
            for index in range(self.num_frames):
                self.decoded += 1
                yield self.frame(index)
        finally:
            self.is_closed = True


class IndexMask:
    """A mask that says in its values which frame it was asked about."""

    def __init__(self):
        self.asked = []

    def alpha(self, frame, index):
        self.asked.append((index, frame.copy()))
        return np.full(frame.shape[:2], index / 1000, np.float32)


def test_reads_the_same_frames_in_any_portions():
    video = CountingVideo(10)
    whole, weights = SourceTrack(video, IndexMask(), 25, 16, 24).read(10)
    track = SourceTrack(CountingVideo(10), IndexMask(), 25, 16, 24)
    parts = [track.read(n) for n in (1, 4, 4, 4)]
    assert [len(frames) for frames, _ in parts] == [1, 4, 4, 1]
    assert np.array_equal(np.concatenate([f for f, _ in parts]), whole)
    assert np.array_equal(np.concatenate([a for _, a in parts]), weights)
    assert whole.dtype == np.uint8
    assert weights.dtype == np.float32
    for index in range(10):
        assert np.array_equal(whole[index], cover_crop(video.frame(index), 16, 24))
        assert (weights[index] == np.float32(index / 1000)).all()


def test_end_of_the_video_gives_fewer_frames_then_none():
    track = SourceTrack(CountingVideo(3), IndexMask(), 25, 16, 24)
    assert len(track.read(5)[0]) == 3
    frames, alpha = track.read(5)
    assert frames.shape == (0, 16, 24, 3)
    assert frames.dtype == np.uint8
    assert alpha.shape == (0, 16, 24)
    assert alpha.dtype == np.float32


def test_mask_sees_the_resized_frame_with_its_number():
    mask, video = IndexMask(), CountingVideo(4)
    track = SourceTrack(video, mask, 24, 16, 24)
    track.read(1)
    frames, _ = track.read(3)
    assert [index for index, _ in mask.asked] == [0, 1, 2, 3]
    assert np.array_equal(mask.asked[3][1], frames[2])
    assert video.asked_fps == 24


def test_nothing_is_decoded_ahead_and_close_lets_go():
    video = CountingVideo(10**9)
    track = SourceTrack(video, IndexMask(), 25, 16, 24)
    assert video.decoded == 0
    track.read(7)
    assert video.decoded == 7
    assert not video.is_closed
    track.close()
    track.close()
    assert video.is_closed
    assert len(track.read(2)[0]) == 0


def test_works_with_a_plain_iterator():
    class Plain:
        def frames(self, fps):
            return iter([np.zeros((4, 4, 3), np.uint8)] * 2)

    track = SourceTrack(Plain(), IndexMask(), 25, 8, 8)
    assert len(track.read(1)[0]) == 1
    track.close()


def test_face_errors_come_through():
    class Blind:
        def find(self, frame):
            return None

    mask = resolve_edit_mask("mouth", 16, 24, Blind())
    with pytest.raises(FaceNotFound):
        SourceTrack(CountingVideo(2), mask, 25, 16, 24).read(1)


def test_mouth_of_a_real_video(shared_data):
    pytest.importorskip("ai_edge_litert", reason="needs the face extra")
    if not face_available():
        pytest.skip(f"needs the face extra: {face_status()}")
    video = open_video(shared_data / "video" / "talking_458_25fps_15s.mp4")
    mask = resolve_edit_mask("mouth", 128, 128, FaceFinder())
    track = SourceTrack(video, mask, 25, 128, 128)
    frames, alpha = track.read(5)
    track.close()
    green = np.full_like(frames, (0, 255, 0))
    result = composite(green, frames, alpha)
    assert frames.shape == (5, 128, 128, 3)
    assert 0.03 < (alpha > 0).mean() < 0.3
    assert np.array_equal(result[alpha == 0], frames[alpha == 0])
    assert (result[alpha == 1] == (0, 255, 0)).all()


def noise(seed, frames=3, height=20, width=28):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def test_composite_equals_the_exact_blend():
    generated, source = noise(0), noise(1)
    alpha = np.random.default_rng(2).integers(0, 65, (3, 20, 28)).astype(np.float32) / 64
    alpha[:, :5] = 0
    alpha[1] = 0
    weight = np.rint(alpha * 64).astype(np.int64)[..., None]
    # In integers: (64 s + a (g - s)) / 64, rounded half up.
    numerator = 64 * source.astype(np.int64) + weight * (generated.astype(np.int64) - source)
    assert np.array_equal(composite(generated, source, alpha), (numerator + 32) // 64)


def test_composite_keeps_the_source_to_the_byte_outside():
    generated, source = noise(3), noise(4)
    alpha = np.zeros((3, 20, 28), np.float32)
    alpha[0, 4:9, 6:12] = 1
    alpha[2, 10:, 20:] = 0.3
    result = composite(generated, source, alpha)
    assert np.array_equal(result[alpha == 0], source[alpha == 0])
    assert np.array_equal(result[alpha == 1], generated[alpha == 1])
    assert (result[2, 10:, 20:] != source[2, 10:, 20:]).any()


def test_composite_makes_a_new_array():
    generated, source = noise(5), noise(6)
    before = source.copy(), generated.copy()
    result = composite(generated, source, np.ones((3, 20, 28), np.float32))
    assert np.array_equal(result, generated)
    result[:] = 0
    assert np.array_equal(source, before[0])
    assert np.array_equal(generated, before[1])


def test_composite_of_no_frames():
    assert composite(noise(0)[:0], noise(1)[:0], np.zeros((0, 20, 28), np.float32)).shape[0] == 0
