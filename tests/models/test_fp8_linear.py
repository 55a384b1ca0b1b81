"""8-bit linear layers: exact scales, errors within e4m3's rounding, torch's product as a peer."""

import pytest
import torch

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.kernels import KernelPlan
from skyreels_rt.kernels import quantize_rows as quantize
from skyreels_rt.models.fp8_linear import Fp8Linear, QuantizedRows, shared_rows
from skyreels_rt.models.transformer import ContextCache
from skyreels_rt.quantization import (
    POLICIES,
    QuantPolicy,
    linear_layers,
    quantize_transformer,
    resolve_policy,
)
from skyreels_rt.testing.tiny import tiny_components

CPU = torch.device("cpu")


def numbers(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def quantize_rows(x):
    return QuantizedRows(*quantize(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_product_is_that_of_the_8_bit_numbers(dtype):
    x, weight, bias = numbers(2, 5, 32, dtype=dtype), numbers(48, 32, seed=1), numbers(48, seed=2)
    layer = Fp8Linear(weight.to(dtype), bias.to(dtype), "fp8")
    rows, matrix = quantize_rows(x), quantize_rows(weight.to(dtype))
    exact = (rows.values.double() * rows.scales.double()) @ (
        matrix.values.double() * matrix.scales.double()
    ).T + bias.to(dtype).double()
    found = layer(x)
    assert found.dtype == dtype and found.shape == (2, 5, 48)
    tolerance = 1e-5 if dtype == torch.float32 else 2.0**-8
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance)
    assert torch.equal(layer(rows), found)


def test_weights_alone_in_8_bits_leave_the_tokens_precise():
    x, weight = numbers(5, 32), numbers(48, 32, seed=1)
    layer = Fp8Linear(weight, None, "fp8_weight")
    matrix = quantize_rows(weight)
    torch.testing.assert_close(layer(x), x @ (matrix.values.float() * matrix.scales).T)
    both = Fp8Linear(weight, None, "fp8")(x)
    exact = x @ weight.T
    assert (layer(x) - exact).norm() < (both - exact).norm() < 0.06 * exact.norm()


@pytest.mark.peer
def test_torchs_own_rowwise_product_agrees():
    x, weight = numbers(32, 64), numbers(48, 64, seed=1)
    rows, matrix = quantize_rows(x), quantize_rows(weight)
    peer = torch._scaled_mm(
        rows.values, matrix.values.t(), scale_a=rows.scales, scale_b=matrix.scales.t(),
        out_dtype=torch.bfloat16,
    )  # fmt: skip
    ours = Fp8Linear(weight, None, "fp8")(x)
    torch.testing.assert_close(ours, peer.float(), rtol=2.0**-8, atol=2.0**-8)


def test_layers_that_read_the_same_share_one_quantisation():
    x, layers = numbers(3, 32), [Fp8Linear(numbers(16, 32, seed=k), None, "fp8") for k in range(3)]
    rows = shared_rows(x, *layers)
    assert not isinstance(rows, torch.Tensor)
    assert all(torch.equal(layer(rows), layer(x)) for layer in layers)
    assert shared_rows(x, *layers[:2], torch.nn.Linear(32, 16)) is x


def test_policies_name_layers_and_refuse_what_fits_none():
    policy = POLICIES["fp8"]
    modes = {name: policy.mode(f"blocks.3.{name}") for name in (
        "self_attn.q", "self_attn.o", "cross_attn.q", "cross_attn.k_img", "ffn.0",
        "audio_cross_attn.q_linear", "cross_attn.k", "cross_attn.v_audio",
    )}  # fmt: skip
    assert modes == {
        "self_attn.q": "fp8", "self_attn.o": "fp8", "cross_attn.q": "fp8",
        "cross_attn.k_img": "fp8_weight", "ffn.0": "fp8", "audio_cross_attn.q_linear": "full",
        "cross_attn.k": "fp8_weight", "cross_attn.v_audio": "full",
    }  # fmt: skip
    first = QuantPolicy((("blocks.0.*", "full"), ("blocks.*", "fp8")))
    assert [first.mode(f"blocks.{k}.ffn.0") for k in (0, 1)] == ["full", "fp8"]
    with pytest.raises(InvalidArgument, match="int4"):
        QuantPolicy((("blocks.*", "int4"),))
    with pytest.raises(InvalidArgument, match="quantization"):
        resolve_policy("int8")
    unfit = QuantPolicy((("transformer.*", "fp8"),))
    with pytest.raises(InvalidArgument, match=r"transformer\.\*"):
        quantize_transformer(tiny_components().transformer, unfit, CPU)


def velocity(parts):
    model = parts.transformer
    with torch.inference_mode():
        context = ContextCache(
            model.text_context(parts.text_encoder.encode("a man")[None]),
            audio=model.audio_context(numbers(1, 3, 8, 64)),
        )
        return model(numbers(1, 36, 3, 8, 8, seed=4), torch.tensor([500.0]), context)


@pytest.mark.parametrize("plan", ["auto", "reference"])
@pytest.mark.parametrize(("name", "bound"), [("fp8", 0.05), ("fp8_weight", 0.03)])
def test_a_quantised_model_stays_close(name, bound, plan):
    plans = KernelPlan.choose(CPU, torch.float32, plan)
    exact = velocity(tiny_components(plan=plans))
    parts = tiny_components(plan=plans)
    before = parts.num_bytes
    count = quantize_transformer(parts.transformer, POLICIES[name], CPU)
    found = velocity(parts)
    assert count == 3 * 10
    assert 0 < (found - exact).norm() < bound * exact.norm()
    assert parts.num_bytes < 0.8 * before
    assert parts.transformer.dtype == torch.float32


def test_audio_projections_may_be_quantised_too():
    parts = tiny_components()
    exact = velocity(parts)
    policy = QuantPolicy((("blocks.*.audio_cross_attn.*", "fp8"),))
    assert quantize_transformer(parts.transformer, policy, CPU) == 9
    assert 0 < (velocity(parts) - exact).norm() < 0.05 * exact.norm()


def test_only_layers_of_the_blocks_can_be_named():
    names = [name for name, _ in linear_layers(tiny_components().transformer)]
    assert all(name.startswith("blocks.") for name in names)
    assert len(names) == 3 * 13


@pytest.mark.gpu
def test_cuda_multiplies_the_same_8_bit_numbers():
    x, weight, bias = numbers(3, 77, 512), numbers(256, 512, seed=1), numbers(256, seed=2)
    x, weight, bias = x.bfloat16(), weight.bfloat16(), bias.bfloat16()
    expected = Fp8Linear(weight, bias, "fp8")(x)
    layer = Fp8Linear(weight.cuda(), bias.cuda(), "fp8")
    assert torch.equal(layer.weight.cpu().float(), Fp8Linear(weight, bias, "fp8").weight.float())
    found = layer(x.cuda()).cpu()
    # Hopper adds 8-bit products with some fourteen bits: less than a tenth of their own error.
    assert (found.float() - expected.float()).norm() < 0.004 * expected.float().norm()


@pytest.mark.gpu
def test_widths_that_cuda_does_not_multiply_are_refused():
    from skyreels_rt.errors import UnsupportedKernel
    from skyreels_rt.models.fp8_linear import require_products

    with pytest.raises(UnsupportedKernel, match="multiples of 16"):
        require_products(torch.device("cuda"), torch.Size((24, 32)))
