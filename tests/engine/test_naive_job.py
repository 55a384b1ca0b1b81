"""A whole job against a loop over latents, written from the models alone."""

import numpy as np
import pytest
import torch

import skyreels_rt as rt
from skyreels_rt.appearance import SLOT_NOISE_INDEX
from skyreels_rt.audio.features import FeatureStream
from skyreels_rt.conditioning.portrait import cover_crop
from skyreels_rt.diffusion.blf import plan_group, window_weights
from skyreels_rt.diffusion.denoise import denoise_group
from skyreels_rt.diffusion.noise import timeline_noise
from skyreels_rt.diffusion.schedule import FlowSchedule
from skyreels_rt.diffusion.solvers import make_solver
from skyreels_rt.models.transformer import ContextCache
from skyreels_rt.testing.tiny import TinyModel, tiny_components

SHAPE = (16, 4, 6)
SEED, STEPS, SHIFT, S_TEXT, S_AUDIO = 5, 3, 4.0, 3.0, 2.0
WINDOW, OVERLAP, HORIZON, NUM_FRAMES = 5, 2, 2, 57


def video_tensor(frames):
    return torch.from_numpy(np.asarray(frames, np.float32)).permute(3, 0, 1, 2)[None] / 127.5 - 1


def naive_frames(parts, audio, image, prompts, mode, source=None, edited=None):
    """Frames of the job; ``edited`` (H, W) bool says which pixels of ``source`` are made anew."""
    model, vae, adapter = parts.transformer, parts.vae, parts.transformer.config.audio
    primed = mode == "leading_slot"
    first = [4 * n if primed else max(0, 4 * n - 3) for n in range(40)]
    total = next(n for n in range(40) if first[n] >= NUM_FRAMES)
    stream = FeatureStream(
        parts.audio_encoder, parts.audio_features, 25, adapter.features_per_frame
    )
    stream.push(audio)
    stream.end()
    heard = stream.read(0, first[total] + 8)

    def tokens(features, start, stop):
        rows = [features[max(f, 0)] for f in range(start - 2, stop + 2)]
        return model.audio_proj(torch.stack(rows)[None])

    reference = vae.encode(video_tensor(image[None]))[0, :, :1]
    known = torch.zeros(4, total, *SHAPE[1:])
    given = torch.zeros(16, total, *SHAPE[1:])
    if source is not None:
        blanked = video_tensor(source[: first[total]])
        blanked[..., torch.from_numpy(edited)] = 0
        given = vae.encode(blanked)[0]
        cells = torch.from_numpy(~edited.reshape(4, 8, 6, 8).any(axis=(1, 3))).float()
        known[:] = cells
    texts = {True: prompts[0], False: prompts[1]}
    texts = {k: model.text_context(parts.text_encoder.encode(v)[None]) for k, v in texts.items()}
    slot_channels = None
    if primed:
        clip = torch.cat([video_tensor(image[None]), torch.zeros(1, 3, 4 * WINDOW, 32, 48)], 2)
        shown = torch.zeros(4, 1 + WINDOW, *SHAPE[1:])
        shown[:, 0] = 1
        slot_channels = torch.cat([shown, vae.encode(clip)[0]])
    slot_noise = timeline_noise(SEED, SLOT_NOISE_INDEX, 1, SHAPE)
    schedule, done = FlowSchedule(STEPS, SHIFT), torch.zeros(16, 0, *SHAPE[1:])

    def predict(window, latents, step, timestep):
        del step
        if primed:
            slot = (1 - timestep / 1000) * reference + timestep / 1000 * slot_noise
            inputs = torch.cat(
                [torch.cat([slot, latents], 1), slot_channels[:, : 1 + window.length]]
            )
        else:
            columns = []
            for n in range(window.start, window.stop):
                mask, value = (
                    known[:, n],
                    torch.where(known[:, n].all(0), given[:, n], reference[:, 0]),
                )
                if n < done.shape[1]:
                    mask, value = torch.ones_like(mask), done[:, n]
                columns.append(torch.cat([mask, value]))
            inputs = torch.cat([latents, torch.stack(columns, 1)])

        def velocity(text, audio):
            features = heard if audio else torch.zeros_like(heard)
            rows = [
                tokens(features, first[n], first[n + 1]) for n in range(window.start, window.stop)
            ]
            if primed:
                rows.insert(0, tokens(features, first[window.start], first[window.start] + 1))
            context = ContextCache(texts[text], None, model.audio_context(torch.cat(rows)[None]))
            out = model(inputs[None], torch.tensor([timestep]), context)[0]
            return out[:, 1:] if primed else out

        u, t, c = velocity(False, False), velocity(True, False), velocity(True, True)
        return (u + S_TEXT * (t - u) + S_AUDIO * (c - t))[None]

    while (group := plan_group(
        done.shape[1], total, True, window=WINDOW, overlap=OVERLAP, horizon=HORIZON
    )) is not None:  # fmt: skip
        noise = [timeline_noise(SEED, n, 1, SHAPE) for n in range(group.start, group.stop)]
        new = denoise_group(
            group, predict, schedule, make_solver("euler", schedule), guidance=[1.0],
            weights=window_weights(group, OVERLAP), noise=torch.cat(noise, 1),
            pinned=done[:, group.start :],
        )  # fmt: skip
        done = torch.cat([done, new], 1)
    whole = vae.decode(torch.cat([reference, done], 1)[None] if primed else done[None])[0]
    pixels = ((whole + 1) * 127.5).clamp(0, 255).round().permute(1, 2, 3, 0).numpy()
    return pixels[1 if primed else 0 :][:NUM_FRAMES]


@pytest.mark.parametrize("kind", ["portrait", "edit", "edit+portrait", "leading_slot"])
def test_a_job_equals_the_naive_loop(kind):
    mode = "leading_slot" if kind == "leading_slot" else "all_frames"
    tiny = TinyModel().with_generation(
        height=32, width=48, window=WINDOW, overlap=OVERLAP, reference_mode=mode,
        guidance_form="text_first",
    )  # fmt: skip
    parts = tiny_components(tiny)
    rng = np.random.default_rng(0)
    audio = (0.2 * rng.standard_normal(NUM_FRAMES * 640)).astype(np.float32)
    image = rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)
    source = rng.integers(0, 256, (80, 8, 12, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    edited = np.zeros((32, 48), bool)
    edited[16:28, 12:36] = True
    options = {"image": None if kind == "edit" else image}
    if kind.startswith("edit"):
        options |= {"video": source, "edit_mask": edited}
    made = rt.Engine(parts).generate(
        audio, sample_rate=16_000, prompt="a man", negative_prompt="blur", seed=SEED,
        num_steps=STEPS, shift=SHIFT, text_guidance_scale=S_TEXT, audio_guidance_scale=S_AUDIO,
        horizon=HORIZON, solver="euler", **options,
    ).frames  # fmt: skip
    with torch.inference_mode():
        face = source[0] if kind == "edit" else cover_crop(image, 32, 48)
        is_edit = kind.startswith("edit")
        expected = naive_frames(
            parts, audio, face, ("a man", "blur"), mode, source if is_edit else None, edited
        )
    assert len(made) == NUM_FRAMES
    where = np.zeros((32, 48), bool) if is_edit else np.ones((32, 48), bool)
    if is_edit:
        where[20:24, 18:30] = True  # past the feathered rim
    assert np.abs(made[:, where] - expected[:, where]).max() <= 1
