"""Wav2Vec2Features: equal to transformers, to float64 arithmetic, and to themselves in any cut."""

import json
import math

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F

from skyreels_rt.audio.features import FeatureStream
from skyreels_rt.audio.loudness import normalise_loudness
from skyreels_rt.audio.wav2vec2 import Wav2Vec2Features, build_wav2vec2
from skyreels_rt.config import AudioFeatureConfig
from skyreels_rt.errors import InvalidArgument, ModelError
from skyreels_rt.testing.tiny import randomise
from skyreels_rt.weights.key_maps import wav2vec2_key
from skyreels_rt.weights.loader import load_weights, save_weights

SIZES = {
    "model_type": "wav2vec2",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
GRID = AudioFeatureConfig(
    feature_rate=25, past=30, step=10, lookahead=10, layers=((1,), (2,), (3,)), loudness=-23.0
)
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def speech(shared_data):
    samples, rate = soundfile.read(shared_data / "speech" / "jfk_16k_11s.wav", dtype="float32")
    assert rate == 16_000
    return samples


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        built = build_wav2vec2(SIZES)
    randomise(built, seed=3)
    return built


@pytest.fixture(scope="module")
def segment(speech):
    return speech[16_000 : 16_000 + GRID.context * GRID.hop].copy()


class AtVideoRate(torch.nn.Module):
    """MultiTalk's change of transformers' model: features interpolated before its transformer."""

    def __init__(self, extractor, length):
        super().__init__()
        self.extractor, self.length = extractor, length

    def forward(self, samples):
        features = self.extractor(samples)
        return F.interpolate(features, size=self.length, align_corners=True, mode="linear")


def peer_states(model, samples, length):
    """Hidden states of a transformers Wav2Vec2Model with the weights of ``model``."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    config = Wav2Vec2Config(**{k: v for k, v in SIZES.items() if k != "model_type"})
    peer = Wav2Vec2Model(config).eval()
    peer.load_state_dict(model.state_dict(), strict=False)
    peer.feature_extractor = AtVideoRate(peer.feature_extractor, length)
    with torch.no_grad():
        return peer(samples, output_hidden_states=True).hidden_states


def close(found, expected):
    scale = expected.abs().max().item()
    assert (found.double() - expected.double()).abs().max().item() <= TOLERANCE * scale


@pytest.mark.peer
def test_features_are_those_of_transformers(model, segment):
    features = Wav2Vec2Features(model, GRID)
    samples = features.normalised(segment)
    states = peer_states(model, samples, GRID.context)
    kept = slice(GRID.past, GRID.past + GRID.step)
    expected = torch.stack([state[0, kept] for state in states[1:]], dim=1)
    found = features.encode(segment)
    assert found.shape == (GRID.step, 3, 32)
    close(found, expected)


@pytest.mark.peer
def test_normalised_samples_are_those_of_multitalk(segment):
    from transformers import Wav2Vec2FeatureExtractor

    features = Wav2Vec2Features(build_wav2vec2(SIZES), GRID)
    loud = normalise_loudness(segment, 16_000, -23.0)
    expected = Wav2Vec2FeatureExtractor()(loud, sampling_rate=16_000, return_tensors="pt")
    close(features.normalised(segment), expected.input_values)


def float64_states(weights, samples):
    """The same network once more, in float64 and from its published formulas."""
    w = {name: value.double() for name, value in weights.items()}
    x = samples.double()[None]
    for layer in range(7):
        name = f"feature_extractor.conv_layers.{layer}"
        x = F.conv1d(x, w[f"{name}.conv.weight"], stride=5 if layer == 0 else 2)
        if layer == 0:  # group norm with one channel a group: every channel over time
            mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
            x = (x - mean) / (variance + 1e-5).sqrt()
            gain, bias = w[f"{name}.layer_norm.weight"], w[f"{name}.layer_norm.bias"]
            x = x * gain[:, None] + bias[:, None]
        x = gelu(x)
    x = at_video_rate(x[0].T, GRID.context)
    x = linear(w, "feature_projection.projection", norm(w, "feature_projection.layer_norm", x))
    direction = w["encoder.pos_conv_embed.conv.parametrizations.weight.original1"]
    length = w["encoder.pos_conv_embed.conv.parametrizations.weight.original0"]
    kernel = direction * length / direction.square().sum((0, 1), keepdim=True).sqrt()
    bias = w["encoder.pos_conv_embed.conv.bias"]
    position = F.conv1d(x.T[None], kernel, bias, padding=8, groups=4)[0, :, :-1]
    x = norm(w, "encoder.layer_norm", x + gelu(position).T)
    states = [x]
    for layer in range(3):
        name = f"encoder.layers.{layer}"
        x = norm(w, f"{name}.layer_norm", x + attention(w, f"{name}.attention", x))
        hidden = gelu(linear(w, f"{name}.feed_forward.intermediate_dense", x))
        x = x + linear(w, f"{name}.feed_forward.output_dense", hidden)
        x = norm(w, f"{name}.final_layer_norm", x)
        states.append(x)
    return states


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def linear(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(w, name, x):
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def attention(w, name, x):
    q, k, v = (linear(w, f"{name}.{part}_proj", x).reshape(-1, 2, 16) for part in "qkv")
    scores = torch.einsum("qnd,knd->nqk", q, k) / 4
    mixed = torch.einsum("nqk,knd->qnd", scores.softmax(-1), v)
    return linear(w, f"{name}.out_proj", mixed.reshape(-1, 32))


def at_video_rate(features, length):
    """Linear interpolation with aligned corners, row by row."""
    last = len(features) - 1
    rows = []
    for index in range(length):
        whole, rest = divmod(index * last, length - 1)
        after = features[min(whole + 1, last)]
        rows.append(features[whole] + (after - features[whole]) * rest / (length - 1))
    return torch.stack(rows)


def test_features_are_those_of_float64_arithmetic(model, segment):
    features = Wav2Vec2Features(model, GRID)
    states = float64_states(model.state_dict(), features.normalised(segment))
    kept = slice(GRID.past, GRID.past + GRID.step)
    close(features.encode(segment), torch.stack([state[kept] for state in states[1:]], dim=1))


def test_a_context_at_another_rate_is_interpolated_too(model, speech):
    grid = AudioFeatureConfig(
        feature_rate=20, past=30, step=10, lookahead=10, layers=((0,), (2, 3))
    )
    segment = speech[: grid.context * grid.hop].copy()
    features = Wav2Vec2Features(model, grid)
    states = peer_states(model, features.normalised(segment), grid.context)
    found = features.encode(segment)
    close(found[:, 0], states[0][0, 30:40])
    close(found[:, 1], (states[2] + states[3])[0, 30:40] / 2)


@pytest.mark.parametrize("cut", [97, 640, 16_000])
def test_any_cut_of_the_speech_gives_the_same_bytes(model, speech, cut):
    speech = speech[: 3 * 16_000]
    encoder = Wav2Vec2Features(model, GRID)
    whole = FeatureStream(encoder, GRID, fps=25, features_per_frame=1)
    whole.push(speech)
    whole.end()
    expected = whole.read(0, 75)
    live = FeatureStream(encoder, GRID, fps=25, features_per_frame=1)
    rows = []
    for start in range(0, len(speech), cut):
        live.push(speech[start : start + cut])
        ready = min(75, live.num_ready_frames)
        if ready > len(rows):
            rows.extend(live.read(len(rows), ready))
        live.discard(len(rows))
    live.end()
    rows.extend(live.read(len(rows), 75))
    assert torch.equal(torch.stack(rows), expected)


def test_a_checkpoint_with_a_head_and_old_names_loads(tmp_path, model, segment):
    stored = {f"wav2vec2.{name}": value for name, value in model.state_dict().items()}
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        stem = "wav2vec2.encoder.pos_conv_embed.conv"
        stored[f"{stem}.{old}"] = stored.pop(f"{stem}.parametrizations.weight.{new}")
    stored["wav2vec2.masked_spec_embed"] = torch.ones(32)
    stored["quantizer.codevectors"] = torch.ones(4)
    stored["lm_head.weight"] = torch.ones(4)
    save_weights(stored, tmp_path, filename="model.safetensors")
    with torch.device("meta"):
        empty = build_wav2vec2(json.loads(json.dumps(SIZES)))
    load_weights(empty, tmp_path, device="cpu", dtype=torch.float32, key_map=wav2vec2_key)
    expected = Wav2Vec2Features(model, GRID).encode(segment)
    assert torch.equal(Wav2Vec2Features(empty, GRID).encode(segment), expected)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "hubert"}, {"do_stable_layer_norm": True}, {"feat_extract_norm": "layer"},
        {"hidden_size": 33}, {"conv_dim": [16] * 6}, {"num_hidden_layers": 0}, {"conv_dim": []},
        {"conv_stride": [0] * 7},
    ],
)  # fmt: skip
def test_unusable_configs_are_refused(change):
    with pytest.raises(ModelError):
        build_wav2vec2(SIZES | change)


def test_grids_that_do_not_fit_are_refused(model, segment):
    with pytest.raises(ModelError, match="hidden states 0 to 3"):
        Wav2Vec2Features(model, AudioFeatureConfig(feature_rate=25, layers=((4,),)))
    short = AudioFeatureConfig(feature_rate=25, past=0, step=1, lookahead=0, layers=((1,),))
    with pytest.raises(ModelError, match="too short"):
        Wav2Vec2Features(model, short)
    features = Wav2Vec2Features(model, GRID)
    for wrong in (segment[:-1], segment.astype(np.float64)):
        with pytest.raises(InvalidArgument, match="segment"):
            features.encode(wrong)
