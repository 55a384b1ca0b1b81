"""LoRAs of each naming style change exactly the weights they name, by exactly their product."""

import pytest
import torch
from safetensors.torch import save_file

import skyreels_rt as rt
from skyreels_rt.errors import InvalidArgument, ModelError, NonFinite, WeightsMismatch
from skyreels_rt.testing.tiny import TinyModel, write_tiny_model
from skyreels_rt.weights.lora import Lora, LoraStack

Q, OTHER, PATCH = (
    "blocks.0.self_attn.q.weight", "blocks.1.cross_attn.o.weight", "patch_embedding.weight",
)  # fmt: skip
STEM = "blocks.0.self_attn.q"
SHAPES = {
    Q: (6, 4), OTHER: (4, 4), PATCH: (4, 3, 1, 2, 2), "blocks.0.self_attn.q.bias": (6,),
    "blocks.0.modulation": (1, 6, 4), "blocks.0.self_attn.norm_q.weight": (4,),
}  # fmt: skip


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


DOWN, UP = draw(2, 4, seed=1), draw(6, 2, seed=2)


def lora(tmp_path, tensors, scale=1.0, name="lora.safetensors"):
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / name)
    return Lora(tmp_path / name, scale)


def merged(loras, name=Q):
    weight = draw(*SHAPES[name], seed=3)
    return LoraStack(loras, SHAPES).merge(name, weight) - weight


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


STYLES = {
    "wan": ("diffusion_model.blocks.0.self_attn.q", "lora_down.weight", "lora_up.weight"),
    "bare": ("blocks.0.self_attn.q", "lora_down.weight", "lora_up.weight"),
    "comfy": ("diffusion_model.blocks.0.self_attn.q", "lora_A.weight", "lora_B.weight"),
    "diffusers": ("transformer.blocks.0.attn1.to_q", "lora_A.weight", "lora_B.weight"),
    "peft": ("base_model.model.blocks.0.attn1.to_q", "lora_A.default.weight",
             "lora_B.default.weight"),
    "kohya": ("lora_unet_blocks_0_self_attn_q", "lora_down.weight", "lora_up.weight"),
}  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
def test_every_style_adds_the_product(tmp_path, style):
    stem, down, up = STYLES[style]
    one = lora(tmp_path, {f"{stem}.{down}": DOWN, f"{stem}.{up}": UP}, scale=0.5)
    assert LoraStack([one], SHAPES).targets == (Q,)
    close(merged([one]), 0.5 * UP @ DOWN)


def test_alpha_is_over_the_rank(tmp_path):
    stem = "diffusion_model.blocks.0.self_attn.q"
    pair = {f"{stem}.lora_down.weight": DOWN, f"{stem}.lora_up.weight": UP}
    close(merged([lora(tmp_path, pair | {f"{stem}.alpha": torch.tensor(8.0)})]), 4 * UP @ DOWN)


def test_convolutions_are_matrices_of_patches(tmp_path):
    down, up = draw(2, 3, 1, 2, 2), draw(4, 2, 1, 1, 1)
    stem = "diffusion_model.patch_embedding"
    one = lora(tmp_path, {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up})
    expected = torch.einsum("or,r...->o...", up.flatten(1), down)
    close(merged([one], PATCH), expected)


@pytest.mark.parametrize(
    ("suffix", "target"),
    [
        ("blocks.0.self_attn.norm_q.diff", "blocks.0.self_attn.norm_q.weight"),
        ("blocks.0.self_attn.q.diff_b", "blocks.0.self_attn.q.bias"),
        ("blocks.0.diff_m", "blocks.0.modulation"),
    ],
)
def test_plain_differences(tmp_path, suffix, target):
    change = draw(*SHAPES[target], seed=7)
    one = lora(tmp_path, {f"diffusion_model.{suffix}": change}, scale=2.0)
    close(merged([one], target), 2 * change)


def test_several_add_up_and_others_stay(tmp_path):
    pair = {f"{STEM}.lora_down.weight": DOWN, f"{STEM}.lora_up.weight": UP}
    both = [lora(tmp_path, pair, scale, f"{scale}.safetensors") for scale in (1.0, -0.25)]
    close(merged(both), 0.75 * UP @ DOWN)
    weight = draw(4, 4)
    assert LoraStack(both, SHAPES).merge(OTHER, weight) is weight


def test_low_precision_is_summed_in_float32(tmp_path):
    pair = {
        "blocks.0.self_attn.q.lora_down.weight": DOWN.bfloat16(),
        "blocks.0.self_attn.q.lora_up.weight": UP.bfloat16(),
    }
    weight = draw(6, 4).bfloat16()
    total = LoraStack([lora(tmp_path, pair)], SHAPES).merge(Q, weight)
    assert total.dtype == torch.float32
    close(total, weight.float() + UP.bfloat16().float() @ DOWN.bfloat16().float())


# ---------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    "name",
    [
        "diffusion_model.blocks.9.self_attn.q.lora_down.weight", "text_model.x.lora_down.weight",
        "blocks.0.self_attn.q.weight", "lora_unet_blocks_7_ffn_0.lora_up.weight", "x.dora_scale",
    ],
)  # fmt: skip
def test_unknown_keys_are_reported(tmp_path, name):
    pair = {f"{STEM}.lora_down.weight": DOWN, f"{STEM}.lora_up.weight": UP}
    with pytest.raises(WeightsMismatch) as caught:
        LoraStack([lora(tmp_path, pair | {name: DOWN.clone()})], SHAPES)
    assert caught.value.unexpected == (name,)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    "tensors",
    [
        {"q.lora_down.weight": DOWN},
        {"q.lora_up.weight": UP},
        {"q.alpha": torch.ones(())},
        {"q.lora_down.weight": DOWN, "q.lora_up.weight": UP.T},
        {"q.lora_down.weight": DOWN[:, :3], "q.lora_up.weight": UP},
        {"q.lora_down.weight": DOWN[:0], "q.lora_up.weight": UP[:, :0]},
        {"q.lora_down.weight": DOWN[0], "q.lora_up.weight": UP},
        {"q.lora_down.weight": DOWN, "q.lora_up.weight": UP, "q.alpha": torch.ones(2)},
        {"q.diff": DOWN},
        {"q.lora_down.weight": DOWN, "q.lora_up.weight": UP, "q.lora_A.weight": DOWN.clone()},
    ],
)
def test_parts_that_do_not_fit_are_named(tmp_path, tensors):
    one = lora(tmp_path, {f"blocks.0.self_attn.{name}": v for name, v in tensors.items()})
    with pytest.raises(WeightsMismatch, match=r"blocks\.0\.self_attn\.q") as caught:
        LoraStack([one], SHAPES)
    assert caught.value.misshaped


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(WeightsMismatch, match="no tensors"):
        LoraStack([lora(tmp_path, {})], SHAPES)


def test_files_that_are_not_safetensors(tmp_path):
    for name, message in (("a.pt", "safetensors file only"), ("b.safetensors", "no such file")):
        with pytest.raises(ModelError, match=message):
            LoraStack([Lora(tmp_path / name)], SHAPES)


def test_an_addition_that_is_not_finite(tmp_path):
    stem = "blocks.0.self_attn.q"
    bad = {f"{stem}.lora_down.weight": DOWN, f"{stem}.lora_up.weight": UP * float("inf")}
    stack = LoraStack([lora(tmp_path, bad)], SHAPES)
    with pytest.raises(NonFinite, match="blocks"):
        stack.merge(Q, draw(6, 4))


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_the_scale_is_finite(scale):
    with pytest.raises(InvalidArgument):
        Lora("x.safetensors", scale)


# ---------------------------------------------------------------- in an engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    write_tiny_model(path, TinyModel())
    return path


def test_an_engine_merges_at_load(folder, tmp_path):
    plain = rt.Engine.from_pretrained(folder).components.transformer
    name = "blocks.1.ffn.0"
    weight = plain.get_parameter(f"{name}.weight")
    down, up = draw(3, weight.shape[1]), draw(weight.shape[0], 3, seed=1)
    pair = {f"transformer.{name}.lora_A.weight": down, f"transformer.{name}.lora_B.weight": up}
    states = []
    engine = rt.Engine.from_pretrained(
        folder, loras=[lora(tmp_path, pair, 0.5)], on_progress=states.append
    )
    changed = engine.components.transformer
    close(changed.get_parameter(f"{name}.weight"), weight + 0.5 * up @ down)
    others = [n for n, _ in plain.named_parameters() if n != f"{name}.weight"]
    assert all(torch.equal(plain.get_parameter(n), changed.get_parameter(n)) for n in others)
    assert states[0].component == "transformer"
    assert states[-1].done == states[-1].total


def test_a_lora_of_another_model_is_refused(folder, tmp_path):
    pair = {"blocks.40.self_attn.q.lora_A.weight": DOWN, "blocks.40.self_attn.q.lora_B.weight": UP}
    with pytest.raises(WeightsMismatch, match=r"blocks\.40"):
        rt.Engine.from_pretrained(folder, loras=[lora(tmp_path, pair)])


def test_the_random_model_takes_none(tmp_path):
    with pytest.raises(InvalidArgument, match="loras"):
        rt.Engine.from_pretrained("tiny-random", loras=[Lora(tmp_path / "x.safetensors")])
