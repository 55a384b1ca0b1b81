"""WhisperFeatures: log-mel and hidden states equal those of openai's filters and transformers."""

import numpy as np
import pytest
import soundfile
import torch

from skyreels_rt.audio.features import FeatureStream
from skyreels_rt.audio.whisper import WhisperFeatures, build_whisper_encoder
from skyreels_rt.config import AudioFeatureConfig
from skyreels_rt.errors import InvalidArgument, ModelError

SIZES = {
    "model_type": "whisper",
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "num_mel_bins": 80,
    "max_source_positions": 128,
}
GRID = AudioFeatureConfig(past=72, step=32, lookahead=24, layers=((0,), (1,), (2,)))


def build(sizes=SIZES):
    torch.manual_seed(0)
    return build_whisper_encoder(sizes)


def peer_encoder(sizes):
    """Encoder of a whole transformers WhisperModel with random weights, layers made to matter."""
    from transformers import WhisperConfig, WhisperModel

    torch.manual_seed(1)
    config = WhisperConfig(
        **sizes,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        vocab_size=64,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=0,
        init_std=0.2,
    )
    return WhisperModel(config).encoder.eval()


@pytest.fixture(scope="module")
def jfk(shared_data):
    samples, sample_rate = soundfile.read(
        shared_data / "speech" / "jfk_16k_11s.wav", dtype="float32"
    )
    assert sample_rate == 16_000
    return samples


@pytest.mark.parametrize("num_mel_bins", [80, 128])
def test_log_mel_uses_the_published_filters(shared_data, jfk, num_mel_bins):
    with np.load(shared_data / "tensors" / "whisper_mel_filters.npz", allow_pickle=False) as file:
        filters = torch.from_numpy(file[f"mel_{num_mel_bins}"])
    features = WhisperFeatures(build(SIZES | {"num_mel_bins": num_mel_bins}), GRID, num_mel_bins)
    segment = jfk[: GRID.context * GRID.hop]

    spectrum = torch.stft(
        torch.from_numpy(segment), 400, 160, window=torch.hann_window(400), return_complex=True
    )
    log_power = (filters @ spectrum[:, :-1].abs() ** 2).clamp(min=1e-10).log10()
    expected = (log_power.clamp(min=log_power.max().item() - 8) + 4) / 4

    mel = features.log_mel(segment)
    assert mel.shape == (1, num_mel_bins, 2 * GRID.context)
    torch.testing.assert_close(mel[0], expected)


def test_log_mel_is_normalised_inside_its_segment(jfk):
    features = WhisperFeatures(build(), GRID, 80)
    segment = jfk[16_000 : 16_000 + GRID.context * GRID.hop].copy()
    segment[: 10 * GRID.hop] = 0
    mel = features.log_mel(segment)
    torch.testing.assert_close(mel.min(), mel.max() - 2.0)


@pytest.mark.peer
def test_equals_transformers_on_the_same_context(jfk):
    from transformers import WhisperFeatureExtractor

    peer, encoder = peer_encoder(SIZES), build()
    encoder.load_state_dict(peer.state_dict())
    segment = jfk[: GRID.context * GRID.hop]
    mel = WhisperFeatureExtractor(feature_size=80)(
        segment, sampling_rate=16_000, padding="do_not_pad", return_tensors="pt"
    ).input_features
    with torch.no_grad():
        states = peer(mel, output_hidden_states=True).hidden_states

    features = WhisperFeatures(encoder, GRID, 80).encode(segment)
    expected = torch.stack([state[0, 72:104] for state in states], dim=1)
    assert features.shape == (32, 3, 32)
    assert (features - expected).abs().max() <= 1e-5


@pytest.mark.peer
def test_thirty_second_context_equals_the_standard_pipeline(jfk):
    from transformers import WhisperFeatureExtractor

    sizes = SIZES | {"max_source_positions": 1500}
    peer, encoder = peer_encoder(sizes), build(sizes)
    encoder.load_state_dict(peer.state_dict())
    mel = WhisperFeatureExtractor()(jfk, sampling_rate=16_000, return_tensors="pt").input_features
    with torch.no_grad():
        expected = peer(mel).last_hidden_state[0]

    grid = AudioFeatureConfig(past=0, step=1500, lookahead=0, layers=((2,),))
    stream = FeatureStream(WhisperFeatures(encoder, grid, 80), grid, 25, 2)
    stream.push(jfk)
    stream.end()
    features = stream.read(0, 750).reshape(1500, 32)
    assert (features - expected).abs().max() <= 1e-5


def test_layer_groups_are_means():
    segment = np.random.default_rng(0).uniform(-0.5, 0.5, GRID.context * GRID.hop)
    segment = segment.astype(np.float32)
    encoder = build()
    single = WhisperFeatures(encoder, GRID, 80).encode(segment)
    grouped_grid = AudioFeatureConfig(
        past=72, step=32, lookahead=24, layers=((0, 1), (2,), (0, 1, 2))
    )
    grouped = WhisperFeatures(encoder, grouped_grid, 80).encode(segment)
    expected = torch.stack([single[:, :2].mean(1), single[:, 2], single.mean(1)], dim=1)
    torch.testing.assert_close(grouped, expected)


def test_features_are_float32_and_trainable_on(jfk):
    features = WhisperFeatures(build().to(torch.bfloat16), GRID, 80)
    out = features.encode(jfk[: GRID.context * GRID.hop])
    assert out.dtype == torch.float32
    assert not out.is_inference()
    assert not out.requires_grad


def test_encoder_builds_on_meta_and_takes_weights_later(jfk):
    full = build()
    with torch.device("meta"):
        lazy = build_whisper_encoder(SIZES)
    assert all(parameter.is_meta for parameter in lazy.parameters())
    assert not list(lazy.buffers())
    features = WhisperFeatures(lazy, GRID, 80)
    lazy.load_state_dict(full.state_dict(), assign=True)
    segment = jfk[: GRID.context * GRID.hop]
    assert torch.equal(features.encode(segment), WhisperFeatures(full, GRID, 80).encode(segment))


def test_encoder_is_frozen_and_in_eval_mode():
    encoder = build()
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_foreign_keys_of_the_config_change_nothing(jfk):
    segment = jfk[: GRID.context * GRID.hop]
    plain = WhisperFeatures(build(), GRID, 80).encode(segment)
    foreign = {"dropout": 0.9, "output_attentions": True, "_attn_implementation": "eager"}
    assert torch.equal(WhisperFeatures(build(SIZES | foreign), GRID, 80).encode(segment), plain)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("d_model", None),
        ("d_model", 0),
        ("encoder_layers", 2.0),
        ("num_mel_bins", "80"),
        ("encoder_attention_heads", 5),
        ("model_type", "wav2vec2"),
        ("activation_function", "no such"),
        ("scale_embedding", "yes"),
    ],
)
def test_unusable_encoder_config_raises(key, value):
    with pytest.raises(ModelError, match="audio encoder"):
        build_whisper_encoder(SIZES | {key: value})


@pytest.mark.parametrize(
    ("change", "num_mel_bins", "word"),
    [
        ({"past": 73}, 80, "max_source_positions"),
        ({}, 128, "mel"),
        ({"sample_rate": 24_000}, 80, "24000"),
        ({"feature_rate": 16_000}, 80, "even"),
        ({"layers": ((0,), (3,))}, 80, "layers"),
        ({"layers": ((-1,),)}, 80, "layers"),
    ],
)
def test_grid_that_does_not_fit_the_encoder_raises(change, num_mel_bins, word):
    values = {"past": 72, "step": 32, "lookahead": 24, "layers": ((0,),)} | change
    with pytest.raises(ModelError, match=word):
        WhisperFeatures(build(), AudioFeatureConfig(**values), num_mel_bins)


@pytest.mark.parametrize(
    "segment", [np.zeros(128 * 320 - 1, np.float32), np.zeros(128 * 320, np.float64)]
)
def test_wrong_segment_raises(segment):
    with pytest.raises(InvalidArgument, match="segment"):
        WhisperFeatures(build(), GRID, 80).encode(segment)
