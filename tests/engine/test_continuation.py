"""Clip after clip, as SkyReels-V3-A2V continues, on a tiny model of its shape; and BLF on it."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

import skyreels_rt as rt
from skyreels_rt.audio.wav2vec2 import Wav2Vec2Features, build_wav2vec2
from skyreels_rt.conditioning.channels import latent_mask
from skyreels_rt.conditioning.condition_track import clip_conditions, to_video_tensor
from skyreels_rt.config import AudioAdapterConfig, AudioFeatureConfig
from skyreels_rt.continuation import plan_clip
from skyreels_rt.continuation_config import ContinuationConfig
from skyreels_rt.errors import Cancelled, InvalidArgument
from skyreels_rt.models.image_encoder import ClipImageEncoder, build_clip_vision
from skyreels_rt.testing.tiny import TinyModel, randomise, tiny_components

PUBLISHED = ContinuationConfig()
SHORT = ContinuationConfig(frames=17, motion_frames=5, drop_frames=4, key_frames=5)
SIDE = 64


def v3_shaped(continuation, **generation):
    """Image branch, wav2vec2 of twelve layers, leading slot, 36 channels: V3-A2V in small."""
    tiny = (
        TinyModel()
        .with_transformer(
            image_dim=32,
            audio=AudioAdapterConfig(
                feature_layers=12, feature_dim=32, features_per_frame=1, num_tokens=8,
                token_dim=64, hidden_dim=64,
            ),
        )
        .with_generation(
            height=SIDE, width=SIDE, reference_mode="leading_slot", guidance_form="audio_first",
            spacing="to_timestep_1", shift=11.0, audio_guidance_scale=1.0,
            continuation=continuation, **generation,
        )
    )  # fmt: skip
    grid = AudioFeatureConfig(
        feature_rate=25, past=30, step=10, lookahead=10, loudness=-23.0,
        layers=tuple((layer,) for layer in range(1, 13)),
    )  # fmt: skip
    speech = build_wav2vec2(
        {
            "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 12,
            "num_attention_heads": 2, "conv_dim": [16] * 7, "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
        }
    )  # fmt: skip
    sight = build_clip_vision(
        {
            "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
        }
    )  # fmt: skip
    for seed, module in enumerate((speech, sight)):
        randomise(module, seed)
    parts = replace(
        tiny_components(tiny),
        audio_encoder=Wav2Vec2Features(speech, grid),
        audio_features=grid,
        image_encoder=ClipImageEncoder(sight),
    )
    return rt.Engine(parts)


@pytest.fixture(scope="module")
def engine():
    return v3_shaped(SHORT, window=4, overlap=1, num_steps=2)


@pytest.fixture(scope="module")
def portrait():
    return np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def speech(shared_data):
    samples, rate = soundfile.read(shared_data / "speech" / "jfk_16k_11s.wav", dtype="float32")
    assert rate == 16_000
    return samples[: 2 * rate]  # 50 frames


def generate(engine, speech, portrait, **options):
    return engine.generate(
        speech, sample_rate=16_000, image=portrait, long_form="continuation", **options
    )


@pytest.mark.parametrize("config", [PUBLISHED, SHORT, replace(SHORT, drop_frames=0, key_frames=0)])
@pytest.mark.parametrize("total", [1, 16, 17, 18, 25, 81, 82, 145, 146, 750])
def test_clips_cover_every_frame_once_and_in_order(config, total):
    covered, index = [], 0
    while (clip := plan_clip(index, total, config)) is not None:
        new = range(clip.first_frame + clip.first_new, clip.first_frame + clip.stop_new)
        covered.extend(new)
        assert 0 <= clip.first_new < clip.stop_new <= config.frames
        index += 1
    assert covered == list(range(total))


def test_the_published_numbers():
    assert PUBLISHED.hop == 64
    clips = [plan_clip(index, 81 + 2 * 64, PUBLISHED) for index in range(4)]
    assert clips[3] is None
    assert [(c.first_frame, c.first_new, c.stop_new) for c in clips[:3]] == [
        (0, 0, 69), (64, 5, 69), (128, 5, 81),
    ]  # fmt: skip
    # Upstream scales the clips' ends (80, 144, 208) to the 81 frames of the first clip.
    assert [c.goal for c in clips[:3]] == [31, 55, 80]
    assert plan_clip(0, 81, PUBLISHED).goal is None


@pytest.mark.parametrize(
    "changes",
    [
        {"frames": 80}, {"motion_frames": 4}, {"drop_frames": 3}, {"key_frames": -1},
        {"frames": 17, "motion_frames": 13, "drop_frames": 4}, {"motion_frames": -3},
    ],
)  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(changes):
    with pytest.raises(InvalidArgument, match="continuation"):
        replace(PUBLISHED, **changes)


def test_conditions_of_a_clip_are_wans(engine):
    """The same as encoding the clip at once, grey in the middle, and marking what is known."""
    parts = engine.components
    pictures = np.random.default_rng(2).integers(0, 256, (10, SIDE, SIDE, 3), dtype=np.uint8)
    latents, channels = clip_conditions(
        parts.transformer.config, parts.vae, pictures[:5], pictures[5:], 17
    )
    video = torch.zeros(1, 3, 17, SIDE, SIDE)
    video[:, :, :5] = to_video_tensor(pictures[:5], parts.vae)
    video[:, :, 12:] = to_video_tensor(pictures[5:], parts.vae)
    torch.testing.assert_close(latents, parts.vae.encode(video)[0])
    alpha = np.ones((17, SIDE, SIDE), np.float32)
    alpha[:5] = alpha[12:] = 0
    assert torch.equal(channels[:4], latent_mask(alpha, 8, 4))
    assert torch.equal(channels[4:], latents)


def test_every_frame_comes_with_its_sound(engine, speech, portrait):
    video = generate(engine, speech, portrait)
    assert video.frames.shape == (50, SIDE, SIDE, 3)
    assert np.array_equal(video.audio[:, 0], speech)
    assert (video.frames[1:] != video.frames[:-1]).any(axis=(1, 2, 3)).all()
    assert [(run.windows, run.computed) for run in video.steps] == [(6, (True, True))]


def test_a_short_video_is_one_clip_with_the_users_prompt(engine, speech, portrait):
    short = speech[: 17 * 640]
    frames = [generate(engine, short, portrait, prompt=p).frames for p in ("a man", "a woman")]
    assert len(frames[0]) == 17
    plain = replace(engine.components.generation, continuation=replace(SHORT, prompt=None))
    other = rt.Engine(replace(engine.components, generation=plain))
    assert np.array_equal(generate(other, short, portrait, prompt="a man").frames, frames[0])


def test_what_was_shown_is_what_the_next_clip_starts_from(engine, speech, portrait):
    """Another portrait's first clip changes the second through its frames, not its sound."""
    options = {"num_steps": 1}
    base = generate(engine, speech, portrait, **options).frames
    other = generate(engine, speech, 255 - portrait, **options).frames
    assert (base[20:30] != other[20:30]).any()


@pytest.mark.parametrize("key_frames", [0, 5])
def test_any_cut_of_the_speech_gives_the_same_bytes(engine, speech, portrait, key_frames, tmp_path):
    generation = replace(
        engine.components.generation, continuation=replace(SHORT, key_frames=key_frames)
    )
    cut = rt.Engine(replace(engine.components, generation=generation))
    soundfile.write(tmp_path / "speech.wav", speech, 16_000, subtype="FLOAT")
    whole = generate(cut, speech, portrait).frames
    from_file = cut.generate(
        tmp_path / "speech.wav", image=portrait, long_form="continuation"
    ).frames
    assert np.array_equal(whole, from_file)
    first = next(cut.stream(speech, sample_rate=16_000, image=portrait, long_form="continuation"))
    assert np.array_equal(first.frames, whole[: len(first.frames)])


def test_later_speech_changes_no_earlier_clip_without_goals(engine, speech, portrait):
    generation = replace(engine.components.generation, continuation=replace(SHORT, key_frames=0))
    streaming = rt.Engine(replace(engine.components, generation=generation))
    base = generate(streaming, speech, portrait, num_steps=1).frames
    changed = speech.copy()
    changed[-5_000:] = 0
    later = generate(streaming, changed, portrait, num_steps=1).frames
    assert np.array_equal(base[:13], later[:13])
    assert (base[-5:] != later[-5:]).any()


def test_a_cancelled_job_stops(engine, speech, portrait):
    import threading

    cancel = threading.Event()
    with pytest.raises(Cancelled):
        generate(engine, speech, portrait, cancel=cancel, on_progress=lambda _: cancel.set())


def test_what_cannot_continue_is_refused(engine, speech, portrait):
    with pytest.raises(InvalidArgument, match="image"):
        engine.generate(speech, sample_rate=16_000, prompt="x", long_form="continuation")
    with pytest.raises(InvalidArgument, match="long_form"):
        generate(rt.Engine.from_pretrained("tiny-random"), speech, portrait)
    with pytest.raises(InvalidArgument, match="long_form"):
        engine.generate(speech, sample_rate=16_000, prompt="x", long_form="rolling")


@pytest.mark.slow
@pytest.mark.parametrize("long_form", ["blf", "continuation"])
def test_thirty_seconds_with_the_published_numbers(shared_data, portrait, long_form):
    """81 frames, motion 5, drop 12, four steps at shift 11, one pass, as SkyReels-V3-A2V."""
    speech, rate = soundfile.read(
        shared_data / "speech" / "speech_silence_16k_60s.wav", dtype="float32", frames=30 * 16_000
    )
    engine = v3_shaped(PUBLISHED, window=20, overlap=5, num_steps=4, color_correction=1.0)
    video = engine.generate(speech, sample_rate=rate, image=portrait, long_form=long_form)
    assert video.frames.shape == (750, SIDE, SIDE, 3)
    assert np.array_equal(video.audio[:, 0], speech)
    clips = 1 + -(-(750 - 81) // 64)
    assert long_form == "blf" or sum(run.windows for run in video.steps) == clips
