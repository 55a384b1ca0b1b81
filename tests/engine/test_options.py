"""Options: the model's defaults, what the caller gives, and the passes that follow from them."""

from dataclasses import fields

import numpy as np
import pytest

import skyreels_rt as rt
from skyreels_rt.config import GenerationConfig
from skyreels_rt.options import resolve_settings
from skyreels_rt.testing.tiny import TinyModel, tiny_components


def test_defaults_are_the_models_and_given_values_win():
    model = GenerationConfig(
        num_steps=7, shift=3.5, solver="unipc", text_guidance_scale=1.5, audio_guidance_scale=2.5,
        guidance_form="audio_first", negative_prompt="blur", height=48, width=32, window=6,
        overlap=1,
    )  # fmt: skip
    given = {
        "num_steps": 3, "shift": 2.0, "solver": "euler", "text_guidance_scale": 4.0,
        "audio_guidance_scale": 5.0, "guidance_form": "text_first", "negative_prompt": "x",
        "height": 64, "width": 80, "seed": 9, "prompt": "p", "horizon": 3,
    }  # fmt: skip
    parts = tiny_components(TinyModel(generation=model))
    settings, chosen = resolve_settings(parts, {}), resolve_settings(parts, given)
    for field in fields(settings):
        if hasattr(model, field.name):
            assert getattr(settings, field.name) == getattr(model, field.name), field.name
        if field.name in given:
            assert getattr(chosen, field.name) == given[field.name], field.name


@pytest.mark.parametrize(
    ("prompt", "text", "audio", "passes"),
    [("", 3.0, 1.0, 1), ("", 3.0, 2.0, 2), ("a", 1.0, 2.0, 2), ("a", 3.0, 2.0, 3)],
)
def test_a_session_runs_no_redundant_pass(prompt, text, audio, passes):
    tiny = TinyModel().with_generation(
        height=32, width=32, window=5, overlap=2, guidance_form="text_first"
    )
    engine, calls = rt.Engine(tiny_components(tiny)), []
    engine.components.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    engine.generate(
        np.zeros(16_000 * 17 // 25, np.float32), sample_rate=16_000, num_steps=2, prompt=prompt,
        image=np.zeros((32, 32, 3), np.uint8), text_guidance_scale=text,
        audio_guidance_scale=audio,
    )  # fmt: skip
    assert len(calls) == 2 * passes
