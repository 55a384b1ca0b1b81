"""Both guidance forms against their published formulas, and the number of passes they run."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skyreels_rt.diffusion.guidance import GuidancePass, combine, guidance_passes
from skyreels_rt.errors import InvalidArgument

SCALES = st.one_of(st.sampled_from([0.0, 0.1, 0.3, 1.0, 2.0, 5.0]), st.floats(0, 12))
FORMS = ["audio_first", "text_first"]


def published(form, s_text, s_audio, velocity):
    """Formula of `form` as its authors write it, fp64; `velocity(text, audio)` is one pass."""
    u, c = velocity(False, False), velocity(True, True)
    if form == "audio_first":
        a = velocity(False, True)
        return u + s_text * (c - a) + s_audio * (a - u)
    t = velocity(True, False)
    return u + s_text * (t - u) + s_audio * (c - t)


def fields(has_text, has_audio):
    """Velocity by pass; a pass cannot see what the request does not have."""
    generator = torch.Generator().manual_seed(4)
    table = {
        key: torch.randn(3, 4, 5, generator=generator)
        for key in itertools.product([False, True], repeat=2)
    }
    return lambda text, audio: table[text and has_text, audio and has_audio]


def assert_follows_formula(form, s_text, s_audio, has_text, has_audio):
    velocity = fields(has_text, has_audio)
    passes = guidance_passes(form, s_text, s_audio, has_text=has_text, has_audio=has_audio)
    got = combine(passes, [velocity(p.text, p.audio) for p in passes])
    expected = published(form, s_text, s_audio, lambda *key: velocity(*key).double())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=1.3e-6, atol=1e-5)
    return passes


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None)
@given(s_text=SCALES, s_audio=SCALES, has_text=st.booleans(), has_audio=st.booleans())
def test_combination_equals_the_published_formula(form, s_text, s_audio, has_text, has_audio):
    passes = assert_follows_formula(form, s_text, s_audio, has_text, has_audio)
    assert all(p.weight != 0 for p in passes)
    keys = [(p.text, p.audio) for p in passes]
    assert len(set(keys)) == len(keys)
    assert keys == sorted(keys)
    assert all(has_text or not p.text for p in passes)
    assert all(has_audio or not p.audio for p in passes)
    assert len(passes) <= 3 - (not has_text) - (not has_audio) or len(passes) == 1
    if len(passes) == 1:
        assert passes[0].weight == 1.0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("s_text", "s_audio", "has_text", "has_audio", "expected"),
    [
        (1.0, 1.0, True, True, 1),
        (1.0, 1.0, False, True, 1),
        (5.0, 4.0, True, True, 3),
        (3.0, 3.0, True, True, 2),  # equal scales: one condition alone drops out
        (5.0, 2.0, False, True, 2),
        (5.0, 2.0, True, False, 2),
        (5.0, 2.0, False, False, 1),
        (0.3, 1.0, False, True, 1),  # weights cancel to exactly 1, not nearly
        (0.1, 0.3, True, False, 2),
        (0.0, 0.0, True, True, 1),
    ],
)
def test_number_of_passes(form, s_text, s_audio, has_text, has_audio, expected):
    passes = assert_follows_formula(form, s_text, s_audio, has_text, has_audio)
    assert len(passes) == expected


def test_one_scale_off_costs_two_passes():
    for form, scales in (("audio_first", (1.0, 4.0)), ("text_first", (4.0, 1.0))):
        passes = guidance_passes(form, *scales, has_text=True, has_audio=True)
        assert len(passes) == 3  # u, the single condition, and both: none is redundant
    for form, scales in (("audio_first", (4.0, 1.0)), ("text_first", (1.0, 4.0))):
        passes = guidance_passes(form, *scales, has_text=True, has_audio=True)
        assert [p.weight for p in passes] == [-3.0, 4.0]


def test_distilled_scales_run_both_conditions_once():
    passes = guidance_passes("audio_first", 1.0, 1.0, has_text=True, has_audio=True)
    assert passes == (GuidancePass(text=True, audio=True, weight=1.0),)


def test_single_pass_is_returned_bit_by_bit():
    passes = guidance_passes("text_first", 1.0, 1.0, has_text=True, has_audio=True)
    velocity = torch.tensor([-0.0, 1e-42, 3.0, float("inf")])
    assert torch.equal(combine(passes, [velocity]).view(torch.int32), velocity.view(torch.int32))
    assert combine(passes, [velocity.bfloat16()]).dtype == torch.float32


def test_low_precision_passes_are_combined_in_fp32():
    passes = guidance_passes("audio_first", 5.0, 4.0, has_text=True, has_audio=True)
    velocities = [torch.randn(64, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    low = [v.bfloat16() for v in velocities]
    assert torch.equal(combine(passes, low), combine(passes, [v.float() for v in low]))


@pytest.mark.parametrize("scale", [-0.5, math.nan, math.inf])
@pytest.mark.parametrize("argument", ["text_guidance_scale", "audio_guidance_scale"])
def test_refuses_scales(argument, scale):
    scales = {"text_guidance_scale": 1.0, "audio_guidance_scale": 1.0, argument: scale}
    with pytest.raises(InvalidArgument) as caught:
        guidance_passes("audio_first", **scales, has_text=True, has_audio=True)
    assert caught.value.argument == argument


def test_refuses_unknown_form_and_wrong_number_of_velocities():
    with pytest.raises(InvalidArgument, match="form"):
        guidance_passes("both_first", 1.0, 1.0, has_text=True, has_audio=True)
    passes = guidance_passes("audio_first", 5.0, 4.0, has_text=True, has_audio=True)
    with pytest.raises(InvalidArgument, match="velocities"):
        combine(passes, [torch.zeros(2)])
    with pytest.raises(InvalidArgument, match="velocities"):
        combine((), [])
