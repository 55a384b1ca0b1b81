"""What training shows the model is what the engine shows it."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import skyreels_rt as rt
from skyreels_rt.audio.token_track import TokenTrack
from skyreels_rt.diffusion.schedule import FlowSchedule
from skyreels_rt.errors import InvalidArgument
from skyreels_rt.training.audio_windows import AudioWindows
from skyreels_rt.training.batches import BLINK_WEIGHT, WindowSampler
from skyreels_rt.training.clips import REGIONS, draw_short_clip
from skyreels_rt.training.curriculum import Curriculum, Dropout, Lesson, Mix
from skyreels_rt.training.distillation import DistillationObjective
from skyreels_rt.training.flow_stage import flow_error, noisy_latents
from skyreels_rt.training.latent_cache import cells, edit_cells, load_clips
from skyreels_rt.training.portrait_model import PortraitModel
from skyreels_rt.types import Timeline

pytestmark = pytest.mark.xdist_group("miniature")
KEEP = Dropout(0.0, 0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def clips(trained, miniature):
    return load_clips(trained / "clips", miniature.num_clips)


@pytest.fixture(scope="module")
def sampler(clips, miniature):
    sizes = miniature.sizes
    return WindowSampler(clips, sizes.transformer, sizes.audio_features)


def lesson(**shares):
    mix = Mix(**{"image_to_video": 0, "text_to_video": 0, "edit": 0, "continuation": 0, **shares})
    return Lesson("test", 1.0, window=4, batch_size=6, mix=mix)


def parts(batch):
    return batch.channels[:, :4], batch.channels[:, 4:]


def test_a_batch_depends_on_the_step_alone(sampler):
    one, again, other = (sampler.batch(n, lesson(edit=1), KEEP) for n in (3, 3, 4))
    for name, value in vars(one).items():
        same = getattr(again, name)
        assert torch.equal(value, same) if isinstance(value, torch.Tensor) else value == same
    assert not torch.equal(one.noise, other.noise)


def test_noise_levels_are_spread_over_the_strata(sampler):
    sigma = sampler.batch(0, lesson(image_to_video=1), KEEP).sigma.double().sort().values
    even = sigma / (3 - 2 * sigma)  # undo the shift of 3
    assert torch.equal((even * len(even)).long(), torch.arange(len(even)))


def test_a_portrait_stands_on_every_frame_and_nothing_is_known(sampler, clips):
    mask, latents = parts(sampler.batch(0, lesson(image_to_video=1), KEEP))
    assert not mask.any()
    portraits = torch.cat([clip.portraits.float() for clip in clips])
    for sample in latents:
        assert all(torch.equal(sample[:, 0], frame) for frame in sample.unbind(1))
        assert any(torch.equal(sample[:, 0], portrait) for portrait in portraits)


def test_text_to_video_sees_no_portrait_and_reads_its_caption(sampler, clips):
    batch = sampler.batch(0, lesson(text_to_video=1), Dropout(0.0, 1.0, 0.0, 0.0))
    assert not batch.channels.any()
    assert set(batch.prompts) <= {clip.caption for clip in clips}


def test_a_continuation_gives_the_first_latents_and_does_not_score_them(sampler):
    batch = sampler.batch(1, lesson(continuation=1), KEEP)
    mask, latents = parts(batch)
    given = mask.flatten(3).amin(-1).amin(1).sum(1)
    assert set(given.tolist()) <= {1.0, 2.0, 3.0}
    for sample in range(len(given)):
        count = int(given[sample])
        assert torch.equal(latents[sample, :, :count], batch.clean[sample, :, :count])
        assert not batch.weights[sample, :, :count].any()
        assert (batch.weights[sample, :, count:] >= 1).all()


def test_an_edit_hides_the_mouth_and_shows_the_rest(sampler, clips):
    batch = sampler.batch(2, lesson(edit=1), KEEP)
    mask, _ = parts(batch)
    assert 0 < mask.mean() < 1
    assert [clip.edited is not None for clip in clips] == [n % 5 == 0 for n in range(len(clips))]
    for clip in clips[::5]:
        hidden = clip.known.amin(0) == 0
        mouth = clip.regions[REGIONS.index("mouth")] > 0
        assert (hidden | ~mouth).all()
        assert not torch.equal(clip.edited, clip.latents)


def test_the_facial_mask_weighs_the_mouth_most_and_can_be_switched_off(clips, miniature):
    sizes = miniature.sizes
    plain = WindowSampler(clips, sizes.transformer, sizes.audio_features, facial_mask=False)
    batch = plain.batch(0, lesson(image_to_video=1), KEEP)
    assert (batch.weights == 1).all()
    weighted = WindowSampler(clips, sizes.transformer, sizes.audio_features)
    weights = weighted.batch(0, lesson(image_to_video=1), KEEP).weights
    assert weights.min() == 1
    assert weights.max() > 6


def test_the_facial_mask_weighs_blinking_eyes_more_and_nothing_else(clips, miniature):
    sizes = miniature.sizes
    closed, opened, unknown = (
        WindowSampler(
            [replace(clip, lids=torch.full_like(clip.lids, lids)) for clip in clips],
            sizes.transformer,
            sizes.audio_features,
        ).batch(0, lesson(image_to_video=1), KEEP)
        for lids in (1.0, 0.0, torch.nan)
    )
    added = closed.weights[:, 0] - opened.weights[:, 0]
    assert torch.allclose(added, BLINK_WEIGHT * closed.eye_cells, atol=1e-5)
    assert added.max() > 1
    assert torch.equal(opened.weights, unknown.weights)


def test_dropout_leaves_conditions_out(sampler):
    batch = sampler.batch(0, lesson(image_to_video=1), Dropout(1.0, 1.0, 1.0, 0.0))
    assert not batch.hears.any() and not any(batch.prompts) and not batch.channels.any()
    everything = sampler.batch(0, lesson(text_to_video=1), Dropout(0.0, 0.0, 0.0, 1.0))
    assert not everything.hears.any() and not any(everything.prompts)


def test_a_crop_is_a_square_of_patches_with_a_piece_of_the_mouth(clips, miniature):
    sizes = miniature.sizes
    sampler = WindowSampler(clips, sizes.transformer, sizes.audio_features)
    cut = Lesson("cut", 1.0, window=4, batch_size=24, mix=Mix(0, 0, 0, 1), crop=4)
    batch = sampler.batch(0, cut, KEEP)
    assert batch.clean.shape[2:] == (4, 4, 4)
    assert batch.channels.shape[2:] == (4, 4, 4) and batch.weights.shape[2:] == (4, 4, 4)
    # Latents that are given are those of the same cells: all parts were cut alike.
    mask, given = parts(batch)
    known = mask[:, :1].bool().expand_as(given)
    assert known.any() and torch.equal(given[known], batch.clean[known])
    portraits = torch.cat([clip.portraits.float() for clip in clips])
    corners = set()
    for sample in given[:, :, -1]:
        for row in range(5):
            for column in range(5):
                here = portraits[:, :, row : row + 4, column : column + 4]
                if (here == sample).flatten(1).all(1).any():
                    corners.add((row, column))
    assert len(corners) > 1
    assert all(row % 2 == 0 and column % 2 == 0 for row, column in corners)
    assert (batch.weights.flatten(1).amax(1) > 1.5).float().mean() > 0.9


def test_hard_sound_waits_for_its_lesson(sampler, clips):
    easy = Lesson("easy", 1.0, window=4, batch_size=32, max_difficulty=0.0)
    allowed = torch.stack([c.mels[0, :, -1].float() for c in clips if c.difficulty == 0])
    batch = sampler.batch(5, easy, KEEP)
    starts = batch.mels[batch.starts_clip][:, 0, :, -1]
    assert len(starts)
    assert all((allowed == row).all(-1).any() for row in starts)


@pytest.fixture(scope="module")
def model(trained, miniature):
    from skyreels_rt.training.checkpoint import load_checkpoint

    model = PortraitModel(miniature.sizes)
    for stage in ("speech", "text", "flow"):
        weights = load_checkpoint(trained / f"{stage}.safetensors").part("averages")
        model.load_state_dict({**model.state_dict(), **weights})
    return model.eval()


def test_tokens_are_those_of_the_engine(trained, miniature, model, sampler, tmp_path):
    """Batched and differentiable in training, segment by segment in the engine: the same tokens.

    On the grid of the training; the shipped grid's steps are the ends of those.
    """
    index, size = 5, miniature.sizes.generation.height
    triplet = draw_short_clip(index, size=size, num_latents=miniature.clip_latents)
    engine = rt.Engine.from_pretrained(trained / "demo", dtype="float32")
    shipped = engine.components
    grid, trained_grid = shipped.audio_features, miniature.sizes.audio_features
    assert (grid.context, grid.lookahead) == (trained_grid.context, trained_grid.lookahead)
    assert trained_grid.step % grid.step == 0
    folder = shutil.copytree(trained / "demo", tmp_path / "demo")
    fields = json.loads((folder / "audio_encoder" / "feature_config.json").read_text())
    fields |= {"past": trained_grid.past, "step": trained_grid.step}
    (folder / "audio_encoder" / "feature_config.json").write_text(json.dumps(fields))
    shipped = rt.Engine.from_pretrained(folder, dtype="float32").components
    track = TokenTrack(
        shipped.transformer.audio_proj, shipped.audio_encoder, shipped.audio_features,
        Timeline(), 25,
    )  # fmt: skip
    track.push(triplet.audio[:, None], 16_000)
    track.end()
    clip = load_clips(trained / "clips", index + 1)[index]
    window, start = 4, 2
    sizes = miniature.sizes
    windows = AudioWindows(sizes.transformer.audio, sizes.audio_features)
    sound = windows.cut(clip.mels, clip.mouth, start, start + window)
    with torch.no_grad():
        batch = sampler.batch(0, lesson(image_to_video=1), KEEP)
        one = type(batch)(
            **{
                **vars(batch),
                "mels": sound["mels"][None],
                "frame_features": sound["frame_features"][None],
                "starts_clip": torch.tensor([False]),
                "hears": torch.tensor([True]),
            }
        )
        tokens = model.audio_tokens(one)[0]
    expected = track.tokens(start, start + window)
    # The shipped weights are bfloat16, the spectrogram of training is float16.
    scale = expected.abs().mean()
    assert (tokens - expected).abs().mean() < 0.02 * scale
    assert (tokens - track.tokens(start + 1, start + window + 1)).abs().mean() > 0.1 * scale


def test_silence_is_the_engines_silence(trained, model, sampler):
    batch = sampler.batch(0, lesson(image_to_video=1), Dropout(1.0, 0.0, 0.0, 0.0))
    with torch.no_grad():
        tokens = model.audio_tokens(batch)
    zeros = lambda first, stop: torch.zeros(stop - first, 2, 1, 32)  # noqa: E731
    with torch.no_grad():
        usual = model.transformer.audio_proj.pack(zeros, 1, 2, Timeline())[0]
        first = model.transformer.audio_proj.pack(zeros, 0, 1, Timeline())[0]
    for sample, starts in zip(tokens, batch.starts_clip, strict=True):
        torch.testing.assert_close(sample[0], first if starts else usual)
        torch.testing.assert_close(sample[1], usual)


def test_the_flow_error_is_zero_at_the_truth_and_counts_only_weighted_cells(sampler):
    batch = sampler.batch(1, lesson(continuation=1), KEEP)
    truth = batch.noise - batch.clean
    assert flow_error(truth, batch) == 0
    elsewhere = truth + (batch.weights == 0)
    assert flow_error(elsewhere, batch) == 0
    assert flow_error(truth + 1, batch) > 0.1


def test_one_plain_teacher_step_is_the_students_own_step(model, sampler, miniature):
    """With one step and no guidance the student, a copy, has nothing to learn."""
    schedule = FlowSchedule(4, 3.0)
    for steps, scale, learns in ((1, 1.0, False), (3, 1.0, True), (1, 2.0, True)):
        objective = DistillationObjective(
            model, model, sampler, lesson(image_to_video=1), schedule,
            teacher_steps=steps, audio_guidance_scale=scale,
        )  # fmt: skip
        loss = float(objective(1)["loss"])
        assert (loss > 1e-6) == learns, (steps, scale, loss)


def test_a_student_goes_on_from_its_own_steps(model, sampler):
    """What it starts from and is taught does not show the clip, only what leads to it."""

    class OtherFilms:
        def batch(self, *args):
            batch = sampler.batch(*args)
            return replace(batch, clean=torch.flip(batch.clean, [0]))

    losses = [
        [
            float(
                DistillationObjective(
                    model, model, films, lesson(image_to_video=1), FlowSchedule(4, 11.0),
                    audio_guidance_scale=2.0,
                )(step)["loss"]
            )
            for step in range(4)
        ]
        for films in (sampler, OtherFilms())
    ]  # fmt: skip
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 4


def test_noisy_latents_are_between_clean_and_noise(sampler):
    batch = sampler.batch(0, lesson(image_to_video=1), KEEP)
    noisy, sigma = noisy_latents(batch), batch.sigma.view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(noisy, batch.clean + sigma * (batch.noise - batch.clean))


def test_cells_of_a_mask_are_empty_only_where_it_is():
    mask = np.zeros((1, 16, 16), bool)
    mask[0, 3, 3] = True
    share = cells(mask)
    assert share.shape == (1, 2, 2) and share[0, 0, 0] > 0 and share.sum() == share[0, 0, 0]


def test_edits_cover_the_mouth_and_vary():
    masks = {name: np.zeros((5, 8, 8), np.uint8) for name in REGIONS}
    masks["jaw"][:, 4:6, 3:5] = 255
    masks["face"][:, 2:6, 2:6] = 255
    regions = [edit_cells(masks, np.random.default_rng(n)) for n in range(20)]
    assert all((region | (masks["jaw"] == 0)).all() for region in regions)
    assert len({region.sum() for region in regions}) > 3


def test_lessons_follow_each_other():
    a, b = (Lesson(name, until, 4, 1) for name, until in (("a", 0.5), ("b", 1.0)))
    plan = Curriculum((a, b))
    assert [plan.lesson(step, 10).name for step in (0, 4, 5, 9)] == ["a", "a", "b", "b"]
    assert plan.without_order().lesson(0, 10).name == "b"
    mixed = replace(plan, interlude=Lesson("c", 1.0, 2, 1), interlude_every=3)
    assert "".join(mixed.lesson(step, 10).name for step in range(10)) == "aacaacbbcb"
    with pytest.raises(InvalidArgument, match="lessons"):
        Curriculum((b, a))
