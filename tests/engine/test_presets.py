"""Presets: published numbers, grids that fit the real encoders, folders that name one."""

import json

import pytest
import torch

import skyreels_rt as rt
from skyreels_rt.audio.wav2vec2 import Wav2Vec2Features, build_wav2vec2
from skyreels_rt.audio.whisper import WhisperFeatures, build_whisper_encoder
from skyreels_rt.diffusion.guidance import guidance_passes
from skyreels_rt.diffusion.schedule import FlowSchedule
from skyreels_rt.errors import ModelError
from skyreels_rt.model_folder import PIPELINE_CLASS
from skyreels_rt.presets import (
    PRESETS,
    WAV2VEC2_GRID,
    WHISPER_LARGE_GRID,
    WHISPER_TINY_GRID,
    find_preset,
)
from skyreels_rt.testing.tiny import TinyModel, write_tiny_model
from skyreels_rt.types import Timeline


def test_v3_a2v_runs_four_steps_of_one_pass():
    generation = find_preset("skyreels-v3-a2v").generation
    passes = guidance_passes(
        generation.guidance_form, generation.text_guidance_scale, generation.audio_guidance_scale,
        has_text=True, has_audio=True,
    )  # fmt: skip
    assert [(one.text, one.audio, one.weight) for one in passes] == [(True, True, 1.0)]
    schedule = FlowSchedule(generation.num_steps, generation.shift, generation.spacing)
    assert schedule.timesteps == pytest.approx([1000, 956.59, 846.54, 10.89], abs=0.01)
    assert generation.continuation.hop == 64


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_windows_are_the_81_frames_that_the_family_was_trained_on(name):
    generation = PRESETS[name].generation
    slot = generation.reference_mode == "leading_slot"
    assert Timeline().num_frames(generation.window + slot) == 81
    assert PRESETS[name].source


def test_the_grids_fit_encoders_of_the_real_sizes():
    with torch.device("meta"):
        wav2vec2 = build_wav2vec2({})
        sizes = {"encoder_ffn_dim": 64, "max_source_positions": 1500}
        tiny = build_whisper_encoder(
            sizes | {"d_model": 384, "encoder_layers": 4, "encoder_attention_heads": 6,
                     "num_mel_bins": 80}
        )  # fmt: skip
        large = build_whisper_encoder(
            sizes | {"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20,
                     "num_mel_bins": 128}
        )  # fmt: skip
    assert Wav2Vec2Features(wav2vec2, WAV2VEC2_GRID).feature_dim == 768
    assert len(WAV2VEC2_GRID.layers) == 12
    assert WhisperFeatures(tiny, WHISPER_TINY_GRID, 80).feature_dim == 384
    assert WhisperFeatures(large, WHISPER_LARGE_GRID, 128).feature_dim == 1280
    assert [len(group) for group in WHISPER_LARGE_GRID.layers] == [8, 8, 8, 8, 1]


def test_a_folder_may_name_a_preset_instead_of_its_settings(tmp_path):
    write_tiny_model(tmp_path, TinyModel().with_generation(num_steps=7))
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_preset": "skyreels-v3-a2v"}))
    own = rt.Engine.from_pretrained(tmp_path).components
    assert own.generation.num_steps == 7  # the folder's own file has the last word
    (tmp_path / "generation_config.json").unlink()
    preset = rt.Engine.from_pretrained(tmp_path).components
    assert preset.generation == find_preset("skyreels-v3-a2v").generation


@pytest.mark.parametrize("name", ["skyreels-v9", 7, ["multitalk"]])
def test_unknown_presets_are_refused(tmp_path, name):
    with pytest.raises(ModelError, match="preset"):
        find_preset(name)
    index = {"_class_name": PIPELINE_CLASS, "_preset": name}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="preset"):
        rt.Engine.from_pretrained(tmp_path)
