"""FeatureStream: fixed-grid features that do not depend on how, or how fast, the speech came."""

import hashlib
import math
import sys
from fractions import Fraction

import numpy as np
import pytest
import soundfile
import torch

from skyreels_rt.audio.features import FeatureStream
from skyreels_rt.audio.resample import SpeechResampler
from skyreels_rt.audio.whisper import WhisperFeatures, build_whisper_encoder
from skyreels_rt.config import AudioFeatureConfig
from skyreels_rt.errors import InvalidArgument

GRID = AudioFeatureConfig(past=72, step=32, lookahead=24, layers=((0,), (1, 2)))


class FirstSample:
    """Encoder whose features are the first sample of each feature's hop: positions made visible."""

    def __init__(self, grid=GRID):
        self.grid = grid
        self.num_encoded = 0

    def encode(self, segment):
        assert segment.shape == (self.grid.context * self.grid.hop,)
        self.num_encoded += 1
        hops = torch.from_numpy(segment).view(self.grid.context, self.grid.hop)
        return hops[self.grid.past : self.grid.past + self.grid.step, :1].clone()[:, :, None]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads only cost on tensors this small, most of all on a busy machine."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def whisper():
    torch.manual_seed(0)
    encoder = build_whisper_encoder(
        {
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "num_mel_bins": 80,
            "max_source_positions": GRID.context,
        }
    )
    return WhisperFeatures(encoder, GRID, 80)


@pytest.fixture(scope="module")
def jfk(shared_data):
    samples, _ = soundfile.read(shared_data / "speech" / "jfk_16k_11s.wav", dtype="float32")
    return samples


def ramp(num_features):
    """Samples whose value is their index in features, exact in float32."""
    return (np.arange(num_features * GRID.hop) / GRID.hop).astype(np.float32)


def read_offline(encoder, samples, num_frames, fps=25, features_per_frame=2):
    stream = FeatureStream(encoder, GRID, fps, features_per_frame)
    stream.push(samples)
    stream.end()
    return stream.read(0, num_frames)


def read_live(encoder, pieces, num_frames, fps=25, features_per_frame=2, keep=2):
    """Read what is ready after every piece, discard all but ``keep`` frames; sizes of the state."""
    stream = FeatureStream(encoder, GRID, fps, features_per_frame)
    chunks, sizes, done = [], [], 0

    def take():
        nonlocal done
        ready = min(stream.num_ready_frames, num_frames)
        if ready > done:
            chunks.append(stream.read(done, ready))
            done = ready
            stream.discard(done - keep)
        sizes.append(stream.state_bytes)

    for piece in pieces:
        stream.push(piece)
        take()
    stream.end()
    take()
    return torch.cat(chunks), sizes


def digest(features):
    return hashlib.sha256(features.numpy().tobytes()).hexdigest()


def random_pieces(rng, samples, most=100):
    cuts = np.sort(rng.integers(0, len(samples) + 1, rng.integers(0, most)))
    return np.split(samples, cuts)


def test_thirty_cuttings_read_live_give_the_bytes_of_one_push(whisper, jfk):
    num_frames = 290  # 15 more than the speech has
    expected = digest(read_offline(whisper, jfk, num_frames))
    rng = np.random.default_rng(0)
    digests = [
        digest(read_live(whisper, random_pieces(rng, jfk), num_frames)[0]) for _ in range(30)
    ]
    assert set(digests) == {expected}


def test_cuttings_through_the_resampler_give_one_result(whisper, shared_data):
    block, sample_rate = soundfile.read(
        shared_data / "speech" / "speech_44k_stereo.wav", dtype="float32"
    )
    block = block[: 5 * sample_rate]
    rng = np.random.default_rng(1)
    digests = set()
    for most in (1, 100, 100, 100, 100):
        resampler = SpeechResampler(sample_rate, 2)
        pieces = [resampler.push(piece) for piece in random_pieces(rng, block, most)]
        digests.add(digest(read_live(whisper, [*pieces, resampler.finish()], 125)[0]))
    assert len(digests) == 1


def test_order_and_extent_of_reads_do_not_matter(whisper, jfk):
    expected = read_offline(whisper, jfk, 275)
    stream = FeatureStream(whisper, GRID, 25, 2)
    stream.push(jfk)
    stream.end()
    for first, stop in [(200, 275), (0, 1), (37, 38), (10, 120), (0, 275)]:
        assert torch.equal(stream.read(first, stop), expected[first:stop])


def test_pushed_samples_are_copied(whisper, jfk):
    expected = read_offline(whisper, jfk[:32_000], 50)
    buffer, stream = jfk[:32_000].copy(), FeatureStream(whisper, GRID, 25, 2)
    stream.push(buffer)
    buffer[:] = 0
    stream.end()
    assert torch.equal(stream.read(0, 50), expected)


@pytest.mark.parametrize(("fps", "features_per_frame"), [(25, 2), (24, 2), (30, 2), (25, 1)])
def test_later_samples_change_only_frames_that_look_that_far(whisper, jfk, fps, features_per_frame):
    """Frames whose look-ahead ends by sample t keep their bytes; all the others change."""
    num_frames = 8 * fps
    before = read_offline(whisper, jfk, num_frames, fps, features_per_frame)
    stream = FeatureStream(whisper, GRID, fps, features_per_frame)
    rng = np.random.default_rng(2)
    for t in (17_920, 40_001, 80_000):
        changed = jfk.copy()
        changed[t:] = rng.uniform(-0.5, 0.5, len(jfk) - t)
        after = read_offline(whisper, changed, num_frames, fps, features_per_frame)
        differs = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        reaches = [stream.required_samples(frame) > t for frame in range(num_frames)]
        assert any(reaches)
        assert not all(reaches)
        assert differs == reaches


@pytest.mark.parametrize(("fps", "features_per_frame"), [(25, 2), (24, 2), (30, 2), (16, 3)])
def test_a_frame_is_ready_exactly_when_its_samples_are_there(fps, features_per_frame):
    stream = FeatureStream(FirstSample(), GRID, fps, features_per_frame)
    required = [stream.required_samples(frame) for frame in range(200)]
    assert required == sorted(required)
    for size in (1, 17_918, 1, GRID.hop, 31_999, 12_345):
        stream.push(np.zeros(size, np.float32))
        assert stream.num_ready_frames == sum(n <= stream.num_samples for n in required)
    assert stream.num_ready_frames > 0


def test_reading_a_frame_that_is_not_ready_raises():
    stream = FeatureStream(FirstSample(), GRID, 25, 2)
    with pytest.raises(InvalidArgument, match="ready"):
        stream.read(-1, 0)
    stream.push(np.zeros((GRID.step + GRID.lookahead) * GRID.hop, np.float32))
    assert stream.num_ready_frames == 16
    assert stream.read(0, 16).shape == (16, 2, 1, 1)
    with pytest.raises(InvalidArgument, match="ready"):
        stream.read(15, 17)


def test_copies_features_at_25_fps():
    features = read_offline(FirstSample(), ramp(400), 200)
    assert torch.equal(features.flatten(), torch.arange(400.0))


@pytest.mark.parametrize(
    ("fps", "features_per_frame"), [(24, 2), (30, 2), (16, 4), (25, 3), (60, 1)]
)
def test_interpolates_between_features_at_other_rates(fps, features_per_frame):
    rng = np.random.default_rng(3)
    samples = rng.uniform(-1, 1, 640 * GRID.hop).astype(np.float32)
    hop_values = samples[:: GRID.hop].astype(np.float64)
    num_frames = 10 * fps
    expected = np.empty((num_frames, features_per_frame))
    for frame in range(num_frames):
        for s in range(features_per_frame):
            position = Fraction(frame * features_per_frame + s, fps * features_per_frame) * 50
            lower = math.floor(position)
            weight = float(position - lower)
            expected[frame, s] = (1 - weight) * hop_values[lower] + weight * hop_values[lower + 1]
    features = read_offline(FirstSample(), samples, num_frames, fps, features_per_frame)
    torch.testing.assert_close(features[:, :, 0, 0], torch.from_numpy(expected).float())
    rng = np.random.default_rng(4)
    live, _ = read_live(
        FirstSample(), random_pieces(rng, samples), num_frames, fps, features_per_frame
    )
    assert torch.equal(live, features)


def test_negative_frames_repeat_frame_zero():
    stream = FeatureStream(FirstSample(), GRID, 25, 2)
    stream.push(ramp(64) + 1)
    stream.end()
    features = stream.read(-2, 2)
    assert torch.equal(features.flatten(), torch.tensor([1.0, 2, 1, 2, 1, 2, 3, 4]))


def test_silence_follows_the_end(whisper, jfk):
    """Ending early equals pushing zeros for ever, however far one reads."""
    speech = jfk[:50_001]
    stream = FeatureStream(whisper, GRID, 25, 2)
    stream.push(speech)
    assert stream.num_ready_frames < 79  # frames that begin before the end of the samples
    stream.end()
    stream.end()
    assert stream.num_ready_frames == sys.maxsize
    longer = FeatureStream(whisper, GRID, 25, 2)
    longer.push(np.concatenate([speech, np.zeros(150_000, np.float32)]))
    assert torch.equal(stream.read(0, 240), longer.read(0, 240))
    silent = read_offline(whisper, np.zeros(0, np.float32), 16)
    far = 10**9 // 16 * 16  # a grid step's first frame
    assert torch.equal(stream.read(far, far + 16), silent)


def test_state_stays_constant_over_a_minute(whisper, shared_data):
    samples, _ = soundfile.read(
        shared_data / "speech" / "speech_silence_16k_60s.wav", dtype="float32"
    )
    pieces = np.split(samples, range(1_600, len(samples), 1_600))
    features, sizes = read_live(whisper, pieces, 1_500)
    assert torch.equal(features, read_offline(whisper, samples, 1_500))
    tenth = len(sizes) // 10
    assert max(sizes[tenth:]) == max(sizes[tenth : 2 * tenth])
    page, block = GRID.step * GRID.hop * 4, GRID.step * 2 * 32 * 4
    assert max(sizes) <= GRID.context * GRID.hop * 4 + 3 * page + 3 * block


def test_each_grid_step_is_encoded_once(jfk):
    encoder = FirstSample()
    read_live(encoder, np.split(jfk, range(100, len(jfk), 100)), 275)
    assert encoder.num_encoded == math.ceil(550 / GRID.step)


def test_discarded_frames_cannot_be_read_and_later_ones_can():
    stream = FeatureStream(FirstSample(), GRID, 25, 2)
    stream.push(ramp(400))
    stream.end()
    stream.discard(50)
    stream.discard(20)
    with pytest.raises(InvalidArgument, match="discarded"):
        stream.read(49, 60)
    with pytest.raises(InvalidArgument, match="discarded"):
        stream.read(-1, 60)
    assert torch.equal(stream.read(50, 60).flatten(), torch.arange(100.0, 120))


def test_discarding_ahead_of_the_audio_skips_it():
    encoder = FirstSample()
    stream = FeatureStream(encoder, GRID, 25, 2)
    stream.discard(150)
    for piece in np.split(ramp(400), range(999, 400 * GRID.hop, 999)):
        stream.push(piece)
    assert stream.state_bytes < 400 * GRID.hop * 4
    assert torch.equal(stream.read(150, 160).flatten(), torch.arange(300.0, 320))
    assert encoder.num_encoded == 1


def test_discarding_frees_audio_that_was_never_read():
    stream = FeatureStream(FirstSample(), GRID, 25, 2)
    stream.push(ramp(400))
    stream.discard(150)
    context_pages = -(-GRID.past // GRID.step) + 4  # of the 13 pushed: its past and what follows
    assert stream.state_bytes <= context_pages * GRID.step * GRID.hop * 4


@pytest.mark.parametrize("frame", [0, 1, 60, 99, 150, 260])
def test_rewind_forgets_what_came_later(jfk, whisper, frame):
    """Features are then those of the speech up to there, followed by the other speech."""
    other = jfk[::-1][: 3 * 16_000].copy()
    position = frame * 640
    before = np.pad(jfk[:position], (0, max(0, position - len(jfk[:position]))))
    expected = read_offline(whisper, np.concatenate([before, other]), frame + 75)
    stream = FeatureStream(whisper, GRID, 25, 2)
    stream.push(jfk)
    stream.end()
    stream.read(0, 120)  # steps behind the cut are encoded already
    stream.discard(frame - 10)
    stream.rewind(frame)
    stream.push(other)
    stream.end()
    first = max(0, frame - 10)
    assert torch.equal(stream.read(first, frame + 75), expected[first:])
    with pytest.raises(InvalidArgument, match="frame"):
        stream.rewind(first - 1)


@pytest.mark.parametrize("sample_rate", [16_000, 44_100])
def test_state_goes_on_where_it_was_taken(jfk, whisper, sample_rate):
    def pieces():
        return np.split(jfk[:, None], range(0, len(jfk), 9_001))

    def run(stop_at):
        resampler, stream = SpeechResampler(sample_rate, 1), FeatureStream(whisper, GRID, 25, 2)
        for index, piece in enumerate(pieces()):
            if index == stop_at:
                resampler = SpeechResampler.restored(resampler.state())
                state, stream = stream.state(), FeatureStream(whisper, GRID, 25, 2)
                stream.restore(state)
            stream.push(resampler.push(piece))
            if index == 14:
                stream.read(0, 30)
                stream.discard(25)
        stream.push(resampler.finish())
        stream.end()
        return stream.read(25, 90)

    expected = run(None)
    for stop_at in (1, 8, 14, 15, 18):
        assert torch.equal(run(stop_at), expected)


def test_empty_range_raises():
    stream = FeatureStream(FirstSample(), GRID, 25, 2)
    stream.end()
    with pytest.raises(InvalidArgument, match="stop_frame"):
        stream.read(3, 3)


def test_nothing_is_pushed_after_the_end():
    stream = FeatureStream(FirstSample(), GRID, 25, 2)
    stream.end()
    with pytest.raises(InvalidArgument, match="end"):
        stream.push(np.zeros(1, np.float32))


@pytest.mark.parametrize("samples", [np.zeros(4), np.zeros((4, 1), np.float32)])
def test_wrong_samples_raise(samples):
    with pytest.raises(InvalidArgument, match="samples"):
        FeatureStream(FirstSample(), GRID, 25, 2).push(samples)


@pytest.mark.parametrize(("fps", "features_per_frame"), [(0, 2), (25, 0)])
def test_wrong_rates_raise(fps, features_per_frame):
    with pytest.raises(InvalidArgument):
        FeatureStream(FirstSample(), GRID, fps, features_per_frame)
