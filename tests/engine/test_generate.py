"""The whole path on a small random model: determinism, conditions, causality, limits."""

import hashlib
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import skyreels_rt as rt
from skyreels_rt import errors
from skyreels_rt.conditioning.portrait import cover_crop
from skyreels_rt.diffusion.blf import plan_group, window_weights
from skyreels_rt.diffusion.denoise import denoise_group
from skyreels_rt.diffusion.guidance import guidance_passes
from skyreels_rt.diffusion.noise import timeline_noise
from skyreels_rt.diffusion.predictor import PromptContext, WindowPredictor
from skyreels_rt.diffusion.schedule import FlowSchedule
from skyreels_rt.diffusion.solvers import make_solver
from skyreels_rt.options import resolve_settings
from skyreels_rt.session import Session
from skyreels_rt.testing.tiny import TinyModel, tiny_components

RATE = 16_000
SMALL = TinyModel().with_generation(height=32, width=48, window=5, overlap=2, num_steps=2)


def engine_of(tiny=SMALL, **kwargs):
    return rt.Engine(tiny_components(tiny, **kwargs))


@pytest.fixture(scope="module")
def engine():
    return engine_of()


def speech(seconds, seed=0):
    return (0.2 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(
        np.float32
    )


def portrait(seed=1):
    return np.random.default_rng(seed).integers(0, 256, (64, 80, 3), dtype=np.uint8)


def frames(engine, audio, **options):
    options = {"image": portrait(), "sample_rate": RATE, "num_steps": 2} | options
    return engine.generate(audio, **options).frames


def digest(array):
    return hashlib.sha256(array.tobytes()).hexdigest()


def test_three_runs_give_the_same_bytes(engine):
    audio = speech(1.7)
    assert len({digest(frames(engine, audio, seed=5)) for _ in range(3)}) == 1
    assert digest(frames(engine, audio, seed=6)) != digest(frames(engine, audio, seed=5))


def test_a_fresh_process_gives_the_same_bytes(engine):
    code = f"""
import hashlib, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch
torch.set_num_threads({torch.get_num_threads()})
from test_generate import engine_of, frames, speech
print(hashlib.sha256(frames(engine_of(), speech(0.9)).tobytes()).hexdigest())
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == digest(frames(engine, speech(0.9)))


@pytest.mark.parametrize("samples", [1_600, 16_000, 17_001, 30_720])
def test_frames_cover_the_speech(engine, samples):
    video = engine.generate(speech(samples / RATE), image=portrait(), sample_rate=RATE, num_steps=1)
    assert video.num_frames == -(-samples * 25 // RATE)
    assert video.frames.shape[1:] == (32, 48, 3)
    assert video.frames.dtype == np.uint8
    np.testing.assert_array_equal(video.audio[:, 0], speech(samples / RATE))


@pytest.mark.parametrize("rate", [6_000, 15_999, 192_000])
def test_rates_that_no_mp4_can_carry_are_resampled(engine, tmp_path, rate):
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32)
    video = engine.generate(tone, image=portrait(), sample_rate=rate, num_steps=1)
    assert (video.sample_rate, video.num_frames) == (48_000, 25)
    middle = video.audio[4_800:43_200, 0]
    peak = np.argmax(np.abs(np.fft.rfft(middle))) * 48_000 / len(middle)
    assert peak == pytest.approx(440, abs=2)
    video.save(tmp_path / "x.mp4")


def test_chunks_are_continuous_and_carry_their_sound(engine):
    audio = speech(2.0)
    chunks = list(engine.stream(audio, image=portrait(), sample_rate=RATE, num_steps=1, horizon=1))
    index = 0
    for chunk in chunks:
        assert chunk.index == index
        assert chunk.pts * 25 == index
        assert len(chunk.audio) == len(chunk.frames) * RATE // 25
        index += len(chunk.frames)
    assert index == 50
    np.testing.assert_array_equal(np.concatenate([c.audio for c in chunks])[:, 0], audio)


@pytest.mark.parametrize("horizon", [1, 2, None])
def test_any_cutting_of_the_audio_gives_the_same_bytes(engine, horizon):
    audio = speech(2.3)
    options = {"horizon": horizon, "num_steps": 2}
    whole = frames(engine, audio, **options)
    settings = resolve_settings(engine.components, options)
    rng = np.random.default_rng(3)
    for _ in range(3):
        cuts = np.sort(rng.integers(0, len(audio), 7))
        crop = cover_crop(portrait(), 32, 48)
        session = Session(engine.components, settings, portrait=crop)
        parts = []
        for piece in np.split(audio, cuts):
            if len(piece):
                session.push_audio(piece, RATE)
                parts += [chunk.frames for chunk in session.frames()]
        session.end_audio()
        parts += [chunk.frames for chunk in session.frames()]
        assert digest(np.concatenate(parts)) == digest(whole)


def test_horizons_differ_only_after_the_first_group(engine):
    audio = speech(2.3)
    one, two = (frames(engine, audio, horizon=h) for h in (1, 2))
    assert digest(one) != digest(two)


def test_later_audio_changes_no_earlier_group(engine):
    """Nothing before the changed sound's look-ahead changes; what follows does."""
    audio = speech(4.0)
    changed = audio.copy()
    changed[40_000:] = speech(4.0, seed=9)[40_000:]
    before, after = (frames(engine, a, horizon=1) for a in (audio, changed))
    differs = np.flatnonzero((before != after).any(axis=(1, 2, 3)))
    features = engine.components.audio_features
    # The last grid step, and the last group, that cannot know of sample 40,000.
    hop, grid_samples = features.hop, features.step * features.hop
    heard = (40_000 - features.lookahead * hop) // grid_samples * features.step // 2
    latents = (heard - 2 - 1) // 4 + 1
    windows = (latents - 5) // 3 + 1
    safe_frames = (5 + 3 * (windows - 1) - 1) * 4 + 1
    assert 20 < safe_frames < 100
    assert differs.min() >= safe_frames
    assert differs.size > 10


def test_ramp_of_the_model_is_used(engine):
    uniform = engine_of(SMALL.with_generation(ramp="uniform"))
    audio = speech(2.0)
    assert digest(frames(uniform, audio)) != digest(frames(engine, audio))
    alone = speech(0.3)  # one window: nothing to fuse
    assert digest(frames(uniform, alone)) == digest(frames(engine, alone))


def test_every_condition_matters(engine):
    audio = speech(1.0)
    base = digest(frames(engine, audio, prompt="a man"))
    assert digest(frames(engine, audio, prompt="a woman")) != base
    assert digest(frames(engine, audio, prompt="a man", image=portrait(7))) != base
    assert digest(frames(engine, speech(1.0, seed=4), prompt="a man")) != base
    for option in (
        {"audio_guidance_scale": 1.0},
        {"text_guidance_scale": 3.0},
        {"solver": "unipc"},
        {"shift": 2.0},
        {"negative_prompt": "blur", "text_guidance_scale": 2.0},
        {"guidance_form": "audio_first", "text_guidance_scale": 3.0},
    ):
        assert digest(frames(engine, audio, prompt="a man", **option)) != base


def source_video(num_frames=40):
    rng = np.random.default_rng(2)
    small = rng.integers(0, 256, (num_frames, 8, 12, 3), dtype=np.uint8)
    return small.repeat(4, axis=1).repeat(4, axis=2)


def edit_mask():
    mask = np.zeros((32, 48), dtype=np.uint8)
    mask[16:28, 12:36] = 255
    return mask


@pytest.mark.parametrize("with_image", [False, True])
def test_edit_changes_the_region_only(engine, with_image):
    source, mask = source_video(), edit_mask()
    image = portrait() if with_image else None
    made = frames(engine, speech(1.2), image=image, video=source, edit_mask=mask)
    assert len(made) == 30
    outside = mask == 0
    np.testing.assert_array_equal(made[:, outside], source[:30][:, outside])
    assert (made[:, 20:24, 20:28] != source[:30, 20:24, 20:28]).mean() > 0.9


def test_edit_listens_to_portrait_and_mask(engine):
    audio, source = speech(1.0), source_video()
    other = edit_mask()
    other[:, :24] = 0
    made = [
        digest(frames(engine, audio, image=image, video=source, edit_mask=mask))
        for image, mask in ((None, edit_mask()), (portrait(), edit_mask()), (None, other))
    ]
    assert len(set(made)) == 3


def test_edit_ends_with_the_shorter_input(engine):
    made = frames(
        engine, speech(2.0), image=None, video=source_video(23), edit_mask=edit_mask(), horizon=1
    )
    assert len(made) == 23


def test_edit_does_not_leak_the_masked_pixels(engine):
    """What is under the mask in the source has no effect on the result."""
    source, mask = source_video(), edit_mask()
    other = source.copy()
    other[:, mask > 0] = 255 - other[:, mask > 0]
    made = [
        frames(engine, speech(1.0), image=portrait(), video=video, edit_mask=mask)
        for video in (source, other)
    ]
    deep = (slice(None), slice(21, 23), slice(20, 28))  # past the feathered rim
    np.testing.assert_array_equal(made[0][deep], made[1][deep])


def test_prompt_alone_is_enough(engine):
    assert len(frames(engine, speech(0.5), image=None, prompt="a person is talking")) == 13


def test_leading_slot_starts_every_window_from_the_portrait():
    engine = engine_of(SMALL.with_generation(reference_mode="leading_slot"))
    made = [digest(frames(engine, speech(1.3), image=portrait(s), horizon=1)) for s in (1, 2)]
    assert made[0] != made[1]
    assert len(frames(engine, speech(1.3))) == 33


def test_model_without_reference_refuses_a_portrait():
    engine = engine_of(SMALL.with_generation(reference_mode="none"))
    with pytest.raises(errors.InvalidArgument, match="image"):
        frames(engine, speech(0.5))
    assert len(frames(engine, speech(1.3), image=None, prompt="hello")) == 33


@pytest.mark.parametrize("channels", [16, 32, 33])
def test_other_condition_channels(channels):
    engine = engine_of(SMALL.with_transformer(in_channels=channels))
    options = {"image": None, "prompt": "hello"} if channels == 16 else {}
    assert len(frames(engine, speech(0.7), **options)) == 18


def test_windows_in_any_order_give_the_same_bytes(engine):
    parts = engine.components
    settings = resolve_settings(parts, {"prompt": "hello"})
    group = plan_group(0, 13, True, window=5, overlap=2, horizon=9)
    assert len(group.windows) == 4
    passes = guidance_passes("audio_first", 2.0, 3.0, has_text=True, has_audio=True)
    assert len(passes) == 3
    schedule = FlowSchedule(2, 5.0)
    generator = torch.Generator().manual_seed(0)
    adapter = parts.transformer.config.audio
    tokens = torch.randn(13, adapter.num_tokens, adapter.token_dim, generator=generator)
    channels = torch.randn(20, 13, 4, 6, generator=generator)
    results = set()
    for order in ((0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)):
        with torch.inference_mode():
            encode = parts.text_encoder.encode
            texts = [parts.transformer.text_context(encode(t)[None]) for t in ("hello", "")]
            predictor = WindowPredictor(
                parts.transformer, group, passes, PromptContext(*texts), channels=channels,
                tokens=tokens, silent_tokens=torch.zeros_like(tokens),
            )  # fmt: skip
            latents = denoise_group(
                group, predictor, schedule, make_solver("euler", schedule),
                guidance=[one.weight for one in passes], weights=window_weights(group, 2),
                order=order,
                noise=timeline_noise(settings.seed, 0, 13, (16, 4, 6)),
            )  # fmt: skip
        results.add(digest(latents.numpy()))
    assert len(results) == 1


def test_cancel_stops_between_steps(engine, tmp_path):
    cancel, seen = threading.Event(), []

    def stop(progress):
        seen.append(progress.stage)
        cancel.set()

    target = tmp_path / "out.mp4"
    with pytest.raises(errors.Cancelled):
        engine.generate_file(
            target, speech(2.0), sample_rate=RATE, image=portrait(), num_steps=4,
            on_progress=stop, cancel=cancel,
        )  # fmt: skip
    assert seen == ["denoise"]
    assert list(tmp_path.iterdir()) == []
    clean = frames(engine_of(), speech(0.5))
    np.testing.assert_array_equal(frames(engine, speech(0.5)), clean)


def test_progress_reaches_the_end(engine):
    seen = []
    frames(engine, speech(1.0), on_progress=seen.append, num_steps=3)
    assert [p.done for p in seen if p.stage == "denoise"][:3] == [1, 2, 3]
    assert {p.total for p in seen if p.stage == "decode"} == {25}
    assert seen[-1].frames == seen[-1].total == 25


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("sample_rate", "16000"), ("sample_rate", 16000.5), ("cancel", True), ("on_progress", 3),
        ("prompt", b"x"), ("num_steps", 2.0), ("num_steps", True), ("shift", "5"), ("colour", 1),
    ],
)  # fmt: skip
def test_wrong_kinds_are_refused_by_name(engine, option, value):
    with pytest.raises(errors.InvalidArgument, match=option):
        frames(engine, speech(0.5), **{option: value})


def test_video_without_a_usable_frame(engine):
    with pytest.raises(errors.SkyReelsError):
        frames(engine, speech(0.5), video=np.zeros((0, 32, 48, 3), np.uint8), edit_mask=edit_mask())


def test_infinite_weights_never_reach_the_frames():
    components = tiny_components(SMALL)
    with torch.no_grad():
        components.transformer.blocks[1].ffn[2].bias[3] = float("inf")
    with pytest.raises(errors.NonFinite, match="Step 1"):
        frames(rt.Engine(components), speech(0.5))


def test_global_random_state_is_untouched(engine):
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    rt.Engine.from_pretrained("tiny-random")
    frames(engine, speech(0.5))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_bfloat16_runs_close_to_float32(engine):
    low = engine_of(dtype=torch.bfloat16)
    audio = speech(0.6)
    made, exact = frames(low, audio).astype(int), frames(engine, audio).astype(int)
    assert np.abs(made - exact).mean() < 16


def test_reference_kernels_agree(engine):
    plain = rt.Engine.from_pretrained("tiny-random", kernels="reference")
    fast = rt.Engine.from_pretrained("tiny-random")
    made = [frames(e, speech(0.3), height=32, width=32, num_steps=1) for e in (plain, fast)]
    assert np.abs(made[0].astype(int) - made[1].astype(int)).max() <= 1


def test_estimate_counts_every_owner(engine):
    short, long = engine.estimate(1.0, horizon=4), engine.estimate(600.0, horizon=4)
    assert long.total >= short.total > long.weights > 0
    assert engine.estimate(6000.0).total == engine.estimate(600.0).total
    assert "qk_norm_rope" in engine.describe()
    for seconds in (0.0, -1.0, float("nan")):
        with pytest.raises(errors.InvalidArgument, match="seconds"):
            engine.estimate(seconds)
