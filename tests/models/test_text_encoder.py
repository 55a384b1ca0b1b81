"""Prompt encoders: rows after the prompt are zero, prompts differ, umT5 equals transformers'."""

import html
import logging

import pytest
import torch
from torch import nn

from skyreels_rt.config import ByteTextConfig
from skyreels_rt.errors import InvalidArgument, ModelError
from skyreels_rt.models.text_encoder import (
    FIRST_BYTE,
    PAD,
    START,
    ByteTextEncoder,
    TextEncoder,
    UMT5TextEncoder,
    build_umt5,
    clean_prompt,
)
from skyreels_rt.weights.loader import load_weights, save_weights, weights_fingerprint

CONFIG = ByteTextConfig(dim=16, num_heads=2, num_layers=2, max_bytes=12)


@pytest.fixture(scope="module")
def byte_encoder():
    torch.manual_seed(0)
    return ByteTextEncoder(CONFIG).eval()


def num_rows(embeds):
    """Rows up to the last that is not all zeros."""
    (rows,) = torch.nonzero(embeds.abs().sum(-1), as_tuple=True)
    return int(rows[-1]) + 1 if len(rows) else 0


# ---------------------------------------------------------------- bytes


def test_byte_encoder_has_the_interface(byte_encoder):
    assert isinstance(byte_encoder, TextEncoder)
    assert (byte_encoder.text_length, byte_encoder.text_dim) == (13, 16)


@pytest.mark.parametrize("prompt", ["", "a", "hello", "héé", "话说", "x" * 12, "\x00\xff"])
def test_rows_after_the_prompt_are_zero(byte_encoder, prompt):
    embeds = byte_encoder.encode(prompt)
    assert embeds.shape == (13, 16)
    assert num_rows(embeds) == 1 + len(prompt.encode())
    assert torch.isfinite(embeds).all()


def test_tokens_are_start_then_bytes_then_padding(byte_encoder):
    tokens = byte_encoder.tokenize(["é", ""])
    assert tokens[0].tolist() == [START, FIRST_BYTE + 0xC3, FIRST_BYTE + 0xA9, *[PAD] * 10]
    assert tokens[1].tolist() == [START, *[PAD] * 12]


def test_different_prompts_differ_and_equal_ones_do_not(byte_encoder):
    prompts = ["", "a", "b", "ab", "ba", "é", "a b"]
    embeds = [byte_encoder.encode(prompt) for prompt in prompts]
    for i, left in enumerate(embeds):
        assert torch.equal(left, byte_encoder.encode(prompts[i]))
        assert not any(torch.equal(left, right) for right in embeds[i + 1 :])


def test_padding_has_no_influence(byte_encoder):
    longer = ByteTextEncoder(ByteTextConfig(dim=16, num_heads=2, num_layers=2, max_bytes=40)).eval()
    state = byte_encoder.state_dict()
    positions = longer.position_embedding.detach().clone()
    positions[:13] = state["position_embedding"]
    longer.load_state_dict(state | {"position_embedding": positions})
    torch.testing.assert_close(longer.encode("hello")[:13], byte_encoder.encode("hello"))


@pytest.mark.parametrize(
    ("prompt", "kept"),
    [("x" * 13, "x" * 12), ("x" * 11 + "é", "x" * 11), ("话" * 5, "话" * 4), ("😀" * 4, "😀" * 3)],
)
def test_long_prompts_are_cut_between_characters_with_a_warning(byte_encoder, caplog, prompt, kept):
    with caplog.at_level(logging.WARNING, logger="skyreels_rt.models.text_encoder"):
        embeds = byte_encoder.encode(prompt)
    assert str(len(prompt.encode())) in caplog.text
    assert prompt not in caplog.text
    assert torch.equal(embeds, byte_encoder.encode(kept))


def test_a_prompt_that_fits_logs_nothing(byte_encoder, caplog):
    byte_encoder.encode("x" * 12)
    assert not caplog.records


@pytest.mark.parametrize("prompt", ["a\ud800b", b"bytes", None, 3])
def test_prompts_that_are_not_text(byte_encoder, prompt):
    with pytest.raises(InvalidArgument, match="prompt"):
        byte_encoder.encode(prompt)


def test_batch_rows_equal_single_prompts(byte_encoder):
    prompts = ["", "hello", "话说"]
    batch = byte_encoder(byte_encoder.tokenize(prompts))
    for row, prompt in zip(batch, prompts, strict=True):
        torch.testing.assert_close(row, byte_encoder.encode(prompt))


def test_gradients_reach_every_parameter_in_use():
    torch.manual_seed(0)
    encoder = ByteTextEncoder(CONFIG)
    embeds = encoder(encoder.tokenize(["hello", "x" * 12]))
    embeds.square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert not encoder.token_embedding.weight.grad[PAD].any()
    assert not encoder.encode("hello").requires_grad


def test_byte_encoder_round_trip_through_a_checkpoint(byte_encoder, tmp_path):
    save_weights(byte_encoder.state_dict(), tmp_path, filename="model.safetensors")
    with torch.device("meta"):
        other = ByteTextEncoder(CONFIG)
    load_weights(other, tmp_path, device="cpu", dtype=torch.float32)
    assert torch.equal(other.eval().encode("hello"), byte_encoder.encode("hello"))


def test_heads_must_divide_the_width():
    with pytest.raises(InvalidArgument, match="num_heads=3"):
        ByteTextEncoder(ByteTextConfig(dim=16, num_heads=3))


# ---------------------------------------------------------------- umT5

UMT5_JSON = {
    "architectures": ["UMT5EncoderModel"],
    "model_type": "umt5",
    "vocab_size": 64,
    "d_model": 24,
    "d_kv": 6,
    "d_ff": 48,
    "num_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "gated-gelu",
    "torch_dtype": "bfloat16",
}
WORDS = ["a", "person", "is", "talking", "to", "the", "camera", "smiling", '"hi"', "话"]


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    """A word-level tokenizer whose file asks for an end token, padding and truncation."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing

    vocab = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    vocab |= {word: 3 + i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.enable_padding(length=20)
    tokenizer.enable_truncation(3)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def umt5(tokenizer_file):
    torch.manual_seed(0)
    return UMT5TextEncoder(build_umt5(UMT5_JSON), tokenizer_file, text_length=12)


def test_umt5_has_the_interface(umt5):
    assert isinstance(umt5, TextEncoder)
    assert (umt5.text_length, umt5.text_dim) == (12, 24)
    assert not umt5.model.training
    assert not any(parameter.requires_grad for parameter in umt5.parameters())


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("", [1]),
        ("a person is talking", [3, 4, 5, 6, 1]),
        ("  a\n\tperson  ", [3, 4, 1]),
        ("&amp;quot;hi&quot;", [11, 1]),
        ("\u201chi\u201d", [11, 1]),
        ("话 unheard", [12, 2, 1]),
        ("a " * 30, [3] * 11 + [1]),
    ],
)
def test_umt5_token_ids(umt5, prompt, ids):
    assert umt5.token_ids(prompt) == ids


def test_umt5_long_prompts_are_cut_with_a_warning(umt5, caplog):
    umt5.encode("a " * 11)
    assert not caplog.records
    umt5.encode("a " * 12)
    assert "12 tokens cut to the 11" in caplog.text


@pytest.mark.parametrize("prompt", ["\ud800", 7])
def test_umt5_prompts_that_are_not_text(umt5, prompt):
    with pytest.raises(InvalidArgument, match="prompt"):
        umt5.encode(prompt)


@pytest.mark.peer
@pytest.mark.parametrize("prompt", ["", "a person is talking to the camera", "a " * 40])
def test_umt5_equals_transformers_padded_and_masked(umt5, prompt):
    ids = umt5.token_ids(prompt)
    padded = torch.tensor([ids + [0] * (12 - len(ids))])
    mask = (torch.arange(12) < len(ids)).long()[None]
    expected = umt5.model(padded, attention_mask=mask).last_hidden_state[0]
    embeds = umt5.encode(prompt)
    torch.testing.assert_close(embeds[: len(ids)], expected[: len(ids)])
    assert num_rows(embeds) == len(ids)
    assert not embeds[len(ids) :].any()


@pytest.mark.peer
def test_umt5_equals_the_wan_pipeline_of_diffusers(umt5, tokenizer_file):
    from diffusers import WanPipeline
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer_file), pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    pipeline = WanPipeline(
        tokenizer=tokenizer, text_encoder=umt5.model, vae=None, scheduler=None, transformer=None
    )
    for prompt in ("a person   is talking &amp; smiling", "", "a " * 40):
        expected, _ = pipeline.encode_prompt(
            prompt, do_classifier_free_guidance=False, max_sequence_length=12, device="cpu"
        )
        torch.testing.assert_close(umt5.encode(prompt), expected[0])


def test_umt5_in_bfloat16(umt5, tokenizer_file, tmp_path):
    save_weights(umt5.model.state_dict(), tmp_path, filename="model.safetensors")
    with torch.device("meta"):
        model = build_umt5(UMT5_JSON)
    load_weights(model, tmp_path, device="cpu", dtype=torch.bfloat16)
    embeds = UMT5TextEncoder(model, tokenizer_file, text_length=12).encode("a person is talking")
    assert embeds.dtype == torch.bfloat16
    wanted = umt5.encode("a person is talking")
    assert (embeds.float() - wanted).norm() < 0.05 * wanted.norm()


def test_umt5_from_meta_equals_the_original(umt5, tokenizer_file, tmp_path):
    state = dict(umt5.model.state_dict())
    del state["encoder.embed_tokens.weight"]
    save_weights(state, tmp_path, filename="model.safetensors")
    with torch.device("meta"):
        model = build_umt5(UMT5_JSON)
    load_weights(model, tmp_path, device="cpu", dtype=torch.float32)
    assert weights_fingerprint(model) == weights_fingerprint(umt5.model)
    other = UMT5TextEncoder(model, tokenizer_file, text_length=12)
    assert torch.equal(other.encode("a person"), umt5.encode("a person"))


def test_building_on_meta_draws_no_random_numbers():
    state = torch.get_rng_state()
    with torch.device("meta"):
        build_umt5(UMT5_JSON)
    assert torch.equal(state, torch.get_rng_state())


def test_keys_that_could_name_code_are_not_read():
    hostile = UMT5_JSON | {
        "attn_implementation": "someone/kernel",
        "_attn_implementation": "someone/kernel",
        "auto_map": {"AutoModel": "someone/repo--module.Class"},
        "quantization_config": {"quant_method": "someone"},
    }
    model = build_umt5(hostile)
    assert "someone" not in str(model.config)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "t5"},
        {"num_layers": "3"},
        {"num_layers": 0},
        {"d_model": -4},
        {"vocab_size": None},
        {"feed_forward_proj": "gated-someone"},
        {"layer_norm_epsilon": [1]},
    ],
)
def test_umt5_configs_that_are_refused(change):
    with pytest.raises(ModelError, match="text encoder"):
        build_umt5(UMT5_JSON | change)


def test_tokenizers_that_are_refused(umt5, tokenizer_file, tmp_path):
    bad = tmp_path / "tokenizer.json"
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        UMT5TextEncoder(umt5.model, bad)
    bad.write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        UMT5TextEncoder(umt5.model, bad)
    bad.write_text(tokenizer_file.read_text().replace("</s>", "<end>"))
    with pytest.raises(ModelError, match="no end token"):
        UMT5TextEncoder(umt5.model, bad)
    small = build_umt5(UMT5_JSON | {"vocab_size": 8})
    with pytest.raises(ModelError, match="token ids up to 12"):
        UMT5TextEncoder(small, tokenizer_file)


def test_models_and_lengths_that_are_refused(umt5, tokenizer_file):
    with pytest.raises(InvalidArgument, match="text_length"):
        UMT5TextEncoder(umt5.model, tokenizer_file, text_length=0)
    with pytest.raises(InvalidArgument, match="float16"):
        UMT5TextEncoder(build_umt5(UMT5_JSON).half(), tokenizer_file)


def test_prompt_cleaning():
    assert clean_prompt("  a \n b\u00a0c ") == "a b c"
    assert clean_prompt("&amp;lt;b&amp;gt;") == "<b>"
    assert clean_prompt("it\u2019s \u201cso\u201d") == 'it\'s "so"'
    assert clean_prompt("") == ""


@pytest.mark.peer
def test_prompt_cleaning_equals_diffusers_where_ftfy_has_nothing_to_do():
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    for text in (
        "  a \n b\u00a0c ",
        html.escape(html.escape("<x> & 'y'")),
        "话 说\u3000话",
        "",
        "\t",
    ):
        assert clean_prompt(text) == prompt_clean(text)


def test_the_model_is_a_submodule(umt5):
    assert isinstance(umt5, nn.Module)
    assert {name.split(".")[0] for name in umt5.state_dict()} == {"model"}
