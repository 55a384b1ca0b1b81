"""Tiny official releases: every file in the layout, and under the names, of the published ones."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from skyreels_rt.config import AudioAdapterConfig, TransformerConfig
from skyreels_rt.kernels import KernelPlan
from skyreels_rt.models.transformer import SkyReelsTransformer
from skyreels_rt.testing.tiny import random_tensors, randomise

SHAPES = Path(__file__).parents[1] / "weights" / "official_encoder_shapes.json"
TEXT_DIM, IMAGE_DIM, SPEECH_DIM = 48, 64, 32
OWN = AudioAdapterConfig(
    feature_layers=12, feature_dim=SPEECH_DIM, features_per_frame=1, num_tokens=4, token_dim=24,
    hidden_dim=16,
)  # fmt: skip
SHARED = AudioAdapterConfig(
    kind="shared_query", feature_layers=1, feature_dim=SPEECH_DIM, features_per_frame=2,
    num_tokens=17, token_dim=24,
)  # fmt: skip
SIZES = {
    "dim": 64, "ffn_dim": 96, "num_heads": 4, "num_layers": 2, "freq_dim": 32,
    "text_dim": TEXT_DIM, "text_length": 20,
}  # fmt: skip
CONFIGS = {
    "skyreels-v3-a2v": TransformerConfig(image_dim=IMAGE_DIM, audio=OWN, **SIZES),
    "fantasytalking": TransformerConfig(image_dim=IMAGE_DIM, audio=SHARED, **SIZES),
    "wan2.1-i2v": TransformerConfig(image_dim=IMAGE_DIM, **SIZES),
    "wan2.1-t2v": TransformerConfig(in_channels=16, **SIZES),
}
CONFIGS["infinitetalk"] = CONFIGS["multitalk"] = CONFIGS["skyreels-v3-a2v"]
AUDIO_MARKS = ("audio_", "norm_x", "k_audio", "v_audio")


def canonical(name, seed=0):
    """The model of a family with seeded weights."""
    with torch.random.fork_rng():
        plan = KernelPlan.choose(torch.device("cpu"), torch.float32)
        model = SkyReelsTransformer(CONFIGS[name], plan)
    randomise(model, seed)
    return model.eval().requires_grad_(False)


def official_config(config):
    """``config.json`` as the official class writes it."""
    return {
        "_class_name": "WanModel", "_diffusers_version": "0.30.0",
        "model_type": "i2v" if config.image_dim else "t2v",
        "dim": config.dim, "ffn_dim": config.ffn_dim, "freq_dim": config.freq_dim,
        "in_dim": config.in_channels, "out_dim": config.out_channels, "eps": config.eps,
        "num_heads": config.num_heads, "num_layers": config.num_layers,
        "text_len": config.text_length,
    }  # fmt: skip


def write_shards(folder, state, count=3, stem="diffusion_pytorch_model", index=True):
    """Safetensors shards with their index."""
    names = sorted(state)
    weight_map = {}
    for number in range(count):
        file = f"{stem}-{number + 1:05}-of-{count:05}.safetensors"
        part = {name: state[name] for name in names[number::count]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    if index:
        write_index(folder, weight_map, stem)
    return weight_map


def write_index(folder, weight_map, stem="diffusion_pytorch_model"):
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def official_encoder(kind, seed=1):
    """Seeded tensors of a tiny official encoder, under its names."""
    shapes = json.loads(SHAPES.read_text())[kind]
    return random_tensors({name: tuple(shape) for name, shape in shapes.items()}, seed)


def write_tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "man": 4, "woman": 5, "speaks": 6}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))


def write_wav2vec2(folder):
    """A transformers folder with a pickled checkpoint, weight norm under torch's old names."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    config = Wav2Vec2Config(
        hidden_size=SPEECH_DIM, num_hidden_layers=12, num_attention_heads=2, intermediate_size=48,
        conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        model = Wav2Vec2Model(config)
    randomise(model, 9)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    past = {"original0": "weight_g", "original1": "weight_v"}
    state = {
        re.sub(r"parametrizations\.weight\.(\w+)", lambda new: past[new[1]], name): value
        for name, value in model.state_dict().items()
    }
    torch.save(state, folder / "pytorch_model.bin")


def write_encoders(folder, *, image, speech):
    torch.save(official_encoder("umt5"), folder / "models_t5_umt5-xxl-enc-bf16.pth")
    torch.save(official_encoder("vae"), folder / "Wan2.1_VAE.pth")
    write_tokenizer(folder / "google" / "umt5-xxl")
    if image:
        name = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
        torch.save(official_encoder("clip"), folder / name)
    if speech:
        write_wav2vec2(folder / "chinese-wav2vec2-base")


def write_release(folder, name):
    """Write a release of the family ``name``; returns the folder and the adapter, if it has one."""
    folder.mkdir()
    config, state = CONFIGS[name], canonical(name).state_dict()
    (folder / "config.json").write_text(json.dumps(official_config(config)))
    write_encoders(folder, image=bool(config.image_dim), speech=config.audio is not None)
    audio = {key: value for key, value in state.items() if any(m in key for m in AUDIO_MARKS)}
    base = {key: value for key, value in state.items() if key not in audio}
    if name == "infinitetalk":
        # Its file also replaces tensors of the base.
        changed = "blocks.1.cross_attn.o.weight"
        write_shards(folder, base | {changed: torch.zeros_like(base[changed])})
        adapter = folder.parent / "infinitetalk.safetensors"
        save_file(audio | {changed: base[changed]}, adapter)
        return folder, adapter
    if name == "multitalk":
        # Its index, which takes the place of the base's, names its file among the base's shards.
        changed = "norm3.weight"
        moved = {key: value for key, value in base.items() if key.endswith(changed)}
        stale = {key: torch.zeros_like(value) for key, value in moved.items()}
        weight_map = write_shards(folder, base | stale)
        save_file(audio | moved, folder / "multitalk.safetensors")
        write_index(folder, weight_map | dict.fromkeys(audio | moved, "multitalk.safetensors"))
        return folder, None
    if name == "fantasytalking":
        write_shards(folder, base)
        adapter = folder.parent / "fantasytalking_model.ckpt"
        torch.save(fantasy_talking(audio), adapter)
        return folder, adapter
    write_shards(folder, state)
    return folder, None


def fantasy_talking(audio):
    """The adapter's tensors as its file nests them."""
    nested = {"proj_model": {}, "audio_processor": {}}
    for key, value in audio.items():
        if key.startswith("audio_proj."):
            nested["proj_model"][key.removeprefix("audio_proj.")] = value
        else:
            name = key.replace("k_audio", "processor.k_proj").replace("v_audio", "processor.v_proj")
            nested["audio_processor"][name] = value
    return nested


@pytest.fixture(scope="session")
def releases(tmp_path_factory):
    """``releases(name)`` -> (folder, adapter); each written once."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = write_release(tmp_path_factory.mktemp(name) / "release", name)
        return made[name]

    return get


@pytest.fixture(scope="session")
def canonical_model():
    """``canonical_model(name)``: the family's model with the weights of its release."""
    return canonical


@pytest.fixture(scope="session")
def write_to():
    """``write_to(folder, name)``: a release of one's own, to damage."""
    return write_release
