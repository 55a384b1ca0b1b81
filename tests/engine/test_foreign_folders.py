"""A folder put together from what diffusers and transformers themselves save."""

import json
import shutil

import numpy as np
import pytest
import torch

import skyreels_rt as rt
from skyreels_rt.config import GenerationConfig, config_to_dict
from skyreels_rt.presets import PRESETS
from skyreels_rt.testing.tiny import randomise

IMAGE_DIM, TEXT_DIM = 32, 48


def save_tokenizer(path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "man": 4, "woman": 5, "speaks": 6}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    path.mkdir()
    tokenizer.save(str(path / "tokenizer.json"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Wan-I2V-shaped: image branch, Wan VAE, umT5, CLIP; every part saved by its own library."""
    diffusers = pytest.importorskip("diffusers")
    import transformers

    root = tmp_path_factory.mktemp("foreign")
    torch.manual_seed(0)
    parts = {
        "transformer": diffusers.WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=32, in_channels=36, ffn_dim=128, num_layers=2,
            text_dim=TEXT_DIM, freq_dim=32, image_dim=IMAGE_DIM, added_kv_proj_dim=64,
        ),
        "vae": diffusers.AutoencoderKLWan(base_dim=8),
        "text_encoder": transformers.UMT5EncoderModel(
            transformers.UMT5Config(
                vocab_size=16, d_model=TEXT_DIM, d_kv=16, d_ff=64, num_layers=1, num_heads=3
            )
        ),
        "image_encoder": transformers.CLIPVisionModel(
            transformers.CLIPVisionConfig(
                hidden_size=IMAGE_DIM, intermediate_size=64, num_hidden_layers=2,
                num_attention_heads=2, image_size=28, patch_size=14,
            )
        ),
    }  # fmt: skip
    for offset, (name, module) in enumerate(parts.items()):
        randomise(module, offset)
        module.save_pretrained(root / name)
    save_tokenizer(root / "tokenizer")
    index = {
        "_class_name": "SkyReelsAudioPipeline",
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "image_encoder": ["transformers", "CLIPVisionModel"],
    }
    (root / "model_index.json").write_text(json.dumps(index))
    generation = GenerationConfig(
        height=32, width=32, window=5, overlap=2, num_steps=1, reference_mode="leading_slot"
    )
    (root / "generation_config.json").write_text(json.dumps(config_to_dict(generation)))
    return root


@pytest.mark.peer
def test_every_foreign_part_takes_part(folder):
    engine = rt.Engine.from_pretrained(folder)
    rng = np.random.default_rng(0)
    speech = 0.1 * rng.standard_normal(12_000).astype(np.float32)
    portraits = rng.integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)

    def frames(image, prompt):
        return engine.generate(speech, sample_rate=16_000, image=image, prompt=prompt).frames

    base = frames(portraits[0], "a man speaks")
    assert base.shape == (19, 32, 32, 3)
    assert (base != frames(portraits[0], "a woman speaks")).any()
    assert (base != frames(portraits[1], "a man speaks")).any()


@pytest.mark.peer
def test_image_branch_sees_the_portrait(folder):
    """The CLIP tokens alone change the velocity."""
    parts = rt.Engine.from_pretrained(folder).components
    images = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    from skyreels_rt.models.transformer import ContextCache

    latents, timestep = torch.randn(1, 36, 2, 4, 4), torch.tensor([500.0])
    with torch.inference_mode():
        text = parts.transformer.text_context(parts.text_encoder.encode("a man")[None])
        velocities = [
            parts.transformer(
                latents,
                timestep,
                ContextCache(
                    text, parts.transformer.image_context(parts.image_encoder.encode(image)[None])
                ),
            )
            for image in images
        ]
    assert not torch.equal(*velocities)


@pytest.mark.peer
def test_a_portrait_is_needed_where_every_window_starts_from_it(folder):
    engine = rt.Engine.from_pretrained(folder)
    speech = np.zeros(8_000, dtype=np.float32)
    with pytest.raises(rt.SkyReelsError, match="image"):
        engine.generate(speech, sample_rate=16_000, prompt="a man speaks")


@pytest.mark.peer
def test_the_session_hands_image_tokens_on(folder, monkeypatch):
    engine = rt.Engine.from_pretrained(folder)
    options = {"sample_rate": 16_000, "image": np.zeros((32, 32, 3), np.uint8), "prompt": "a man"}
    base = engine.generate(np.zeros(8_000, np.float32), **options).frames
    encode = engine.components.image_encoder.encode
    monkeypatch.setattr(engine.components.image_encoder, "encode", lambda image: -encode(image))
    assert (engine.generate(np.zeros(8_000, np.float32), **options).frames != base).any()


@pytest.mark.peer
def test_a_folder_of_diffusers_pipeline_loads_as_it_is(folder, tmp_path):
    """``WanImageToVideoPipeline.save_pretrained``: no file of ours, entries we do not use."""
    path = tmp_path / "wan"
    shutil.copytree(folder, path, ignore=shutil.ignore_patterns("generation_config.json"))
    index = json.loads((path / "model_index.json").read_text())
    index |= {
        "_class_name": "WanImageToVideoPipeline",
        "_diffusers_version": "0.33.0",
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "image_processor": ["transformers", "CLIPImageProcessor"],
    }
    (path / "model_index.json").write_text(json.dumps(index))
    engine = rt.Engine.from_pretrained(path)
    assert engine.components.generation == PRESETS["wan2.1-i2v"].generation
    frames = engine.generate(
        np.zeros(4_000, np.float32), sample_rate=16_000, image=np.zeros((32, 32, 3), np.uint8),
        height=32, width=32, num_steps=1, text_guidance_scale=1.0,
    ).frames  # fmt: skip
    assert frames.shape == (4, 32, 32, 3)


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", None, ["WanPipeline"], 3])
def test_other_pipelines_are_refused(tmp_path, name):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(rt.SkyReelsError, match="_class_name"):
        rt.Engine.from_pretrained(tmp_path)
