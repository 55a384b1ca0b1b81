"""CLIP image encoder: penultimate states as transformers gives them, and both preprocessings."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from skyreels_rt.errors import InvalidArgument, ModelError
from skyreels_rt.models.image_encoder import (
    CLIP_MEAN,
    CLIP_STD,
    ClipImageEncoder,
    build_clip_vision,
)
from skyreels_rt.weights.key_maps import clip_vision_key
from skyreels_rt.weights.loader import load_weights, save_weights, weights_fingerprint

CLIP_JSON = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": 16,
    "torch_dtype": "float32",
}


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    return build_clip_vision(CLIP_JSON)


def noise_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth_image(height, width):
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 17 + i) * np.cos(y / (23 + i)) for i in range(3)]
    return (127.5 + 120 * np.stack(waves, axis=-1)).astype(np.uint8)


def pixels(normalised):
    """Back from normalised values to 0 .. 255."""
    mean, std = (torch.tensor(c).view(1, 3, 1, 1) for c in (CLIP_MEAN, CLIP_STD))
    return (normalised * std + mean) * 255


@pytest.mark.parametrize("resize", ["stretch", "center_crop"])
@pytest.mark.parametrize("size", [(56, 56), (40, 90), (90, 40), (200, 133), (57, 57), (1, 1)])
def test_shapes(tower, resize, size):
    encoder = ClipImageEncoder(tower, resize=resize)
    embeds = encoder.encode(noise_image(*size))
    assert embeds.shape == (encoder.num_tokens, encoder.image_dim) == (17, 32)
    assert torch.isfinite(embeds).all()
    assert not embeds.requires_grad


@pytest.mark.peer
def test_tokens_are_the_states_before_the_last_layer(tower):
    encoder = ClipImageEncoder(tower)
    image = noise_image(70, 80)
    embeds = encoder.encode(image)
    with torch.no_grad():
        states = tower(encoder.preprocess(image), output_hidden_states=True)
        hidden = tower.pre_layrnorm(tower.embeddings(encoder.preprocess(image)))
        for layer in tower.encoder.layers[:-1]:
            hidden = layer(hidden, attention_mask=None)
    assert len(states.hidden_states) == 5
    assert torch.equal(embeds, states.hidden_states[-2][0])
    torch.testing.assert_close(embeds, hidden[0])
    assert not torch.allclose(embeds, states.last_hidden_state[0])


def test_an_image_of_the_right_size_is_only_normalised(tower):
    image = noise_image(56, 56)
    for resize in ("stretch", "center_crop"):
        result = pixels(ClipImageEncoder(tower, resize=resize).preprocess(image))
        expected = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        torch.testing.assert_close(result, expected, atol=1e-3, rtol=0)


def test_stretch_is_the_formula_of_the_wan_release(tower):
    image = noise_image(100, 130)
    video = torch.from_numpy(image).permute(2, 0, 1).float() / 255 * 2 - 1
    resized = F.interpolate(video[None], size=(56, 56), mode="bicubic", align_corners=False)
    mean, std = (torch.tensor(c).view(1, 3, 1, 1) for c in (CLIP_MEAN, CLIP_STD))
    expected = (resized * 0.5 + 0.5 - mean) / std
    torch.testing.assert_close(
        ClipImageEncoder(tower).preprocess(image), expected, atol=1e-5, rtol=1e-5
    )


@pytest.mark.peer
@pytest.mark.parametrize("size", [(56, 56), (40, 90), (90, 41), (200, 133), (57, 101), (30, 31)])
def test_center_crop_equals_the_processor_of_transformers(tower, size):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}
    )
    image = noise_image(*size)
    expected = processor(images=image, return_tensors="pt")["pixel_values"]
    result = ClipImageEncoder(tower, resize="center_crop").preprocess(image)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.peer
def test_stretch_differs_from_the_processor_only_by_its_resampling(tower, record_property):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}
    )
    image = smooth_image(120, 120)
    expected = processor(images=image, return_tensors="pt")["pixel_values"]
    difference = (pixels(ClipImageEncoder(tower).preprocess(image)) - pixels(expected)).abs()
    record_property("max_difference_in_pixel_values", difference.max().item())
    assert difference.max() < 2.0  # rounding to uint8, and two bicubic kernels, on smooth content


def test_real_portrait_encodes_alike_either_way(tower, shared_data):
    from PIL import Image

    with Image.open(shared_data / "portraits" / "girl_1024.png") as file:
        image = np.asarray(file.convert("RGB"))
    stretched = ClipImageEncoder(tower).encode(image)
    cropped = ClipImageEncoder(tower, resize="center_crop").encode(image)
    similarity = F.cosine_similarity(stretched, cropped, dim=-1)
    assert similarity.min() > 0.9
    assert not torch.equal(stretched, cropped)


def test_images_that_differ_give_other_tokens(tower):
    encoder = ClipImageEncoder(tower)
    first, second = encoder.encode(noise_image(60, 60, 1)), encoder.encode(noise_image(60, 60, 2))
    assert not torch.allclose(first, second)
    assert torch.equal(first, encoder.encode(noise_image(60, 60, 1)))


def test_read_only_and_strided_images_are_accepted(tower):
    image = noise_image(60, 70)[::-1, ::2]
    image.flags.writeable = False
    encoder = ClipImageEncoder(tower)
    assert torch.equal(encoder.encode(image), encoder.encode(image.copy()))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
    ],
    ids=["grey", "alpha", "channels_first", "float", "empty"],
)
def test_images_that_are_refused(tower, image):
    with pytest.raises(InvalidArgument, match="image"):
        ClipImageEncoder(tower).encode(image)


def test_a_sliver_is_refused_where_it_would_be_scaled_up(tower):
    with pytest.raises(InvalidArgument, match="1:64"):
        ClipImageEncoder(tower, resize="center_crop").encode(noise_image(1, 65))
    assert ClipImageEncoder(tower, resize="center_crop").encode(noise_image(1, 64)).shape[0] == 17


def test_unknown_resize(tower):
    with pytest.raises(InvalidArgument, match="resize"):
        ClipImageEncoder(tower, resize="pad")


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_meta_tower_loads_either_layout(tower, tmp_path, prefix):
    state = {f"{prefix}{name}": value for name, value in tower.state_dict().items()}
    save_weights(state, tmp_path, filename="model.safetensors")
    before = torch.get_rng_state()
    with torch.device("meta"):
        other = build_clip_vision(CLIP_JSON)
    assert torch.equal(before, torch.get_rng_state())
    load_weights(other, tmp_path, device="cpu", dtype=torch.float32, key_map=clip_vision_key)
    assert weights_fingerprint(other) == weights_fingerprint(tower)
    image = noise_image(60, 60)
    assert torch.equal(ClipImageEncoder(other).encode(image), ClipImageEncoder(tower).encode(image))


def test_bfloat16_tower_gives_bfloat16_tokens(tower):
    tower16 = build_clip_vision(CLIP_JSON).bfloat16()
    tower16.load_state_dict(tower.state_dict())
    embeds = ClipImageEncoder(tower16).encode(noise_image(60, 60))
    wanted = ClipImageEncoder(tower).encode(noise_image(60, 60))
    assert embeds.dtype == torch.bfloat16
    assert (embeds.float() - wanted).norm() < 0.05 * wanted.norm()


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "clip"},
        {"hidden_size": 30},
        {"hidden_size": "32"},
        {"num_hidden_layers": 0},
        {"num_channels": 4},
        {"hidden_act": "someone"},
        {"image_size": 7},
    ],
)
def test_configs_that_are_refused(change):
    with pytest.raises(ModelError, match="image encoder"):
        build_clip_vision(CLIP_JSON | change)


def test_keys_that_could_name_code_are_not_read():
    hostile = CLIP_JSON | {
        "attn_implementation": "someone/kernel",
        "_attn_implementation": "someone/kernel",
        "auto_map": {"AutoModel": "someone/repo--module.Class"},
    }
    assert "someone" not in str(build_clip_vision(hostile).config)


def test_the_sizes_of_wan_i2v():
    with torch.device("meta"):
        encoder = ClipImageEncoder(build_clip_vision({}))
    assert (encoder.num_tokens, encoder.image_dim, encoder.image_size) == (257, 1280, 224)
    count = sum(parameter.numel() for parameter in encoder.parameters())
    assert 6.3e8 < count < 6.4e8
