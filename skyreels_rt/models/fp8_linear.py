"""Linear layers in 8-bit floating point, with one scale per token and one per output.

::

    y[m, n] = (sum over k of x8[m, k] w8[n, k]) * x_scale[m] * w_scale[n] + bias[n]
    x8, x_scale = quantize_rows(x)                                              (w alike)

Products of e4m3 numbers are exact in float32. On CUDA the sum is the library's
(``torch._scaled_mm``, compute capability 8.9 or more); elsewhere the same 8-bit numbers and scales
are multiplied in float32, so that only the order of the sum differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skyreels_rt.errors import UnsupportedKernel
from skyreels_rt.kernels import Impl, quantize_rows

CUDA_MULTIPLE = 16
"""What the widths of a CUDA product must be multiples of."""

Fp8Mode = Literal["fp8", "fp8_weight"]


class QuantizedRows(NamedTuple):
    """Rows in e4m3 with their scales.

    Attributes
    ----------
    values : Tensor, shape (..., K), float8_e4m3fn
        Rows divided by their scale, rounded to nearest even.
    scales : Tensor, shape (..., 1), float32
        A 448th of the largest magnitude of each row.
    """

    values: Tensor
    scales: Tensor


class Fp8Linear(nn.Module):
    """A linear layer whose weight is kept in e4m3.

    Parameters
    ----------
    weight : Tensor, shape (N, K), floating
        Weight in full precision; kept as e4m3 with a scale per output.
    bias : Tensor, shape (N,), or None
        Kept as it is.
    mode : {"fp8", "fp8_weight"}
        ``"fp8"`` multiplies in e4m3; ``"fp8_weight"`` brings the weight back to the tokens' type.
    impl : Impl
        Implementation that quantises the tokens, usually ``plan.quantize_rows``.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, mode: Fp8Mode, impl: Impl = Impl.AUTO
    ) -> None:
        super().__init__()
        values, scales = quantize_rows(weight.detach(), impl=Impl.REFERENCE)
        self.weight = nn.Parameter(values, requires_grad=False)
        self.weight_scale = nn.Parameter(scales, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.mode = mode
        self.impl = impl
        self.dtype = weight.dtype

    def forward(self, x: Tensor | QuantizedRows) -> Tensor:
        """(..., K) -> (..., N), in the type of ``x``, or the weight's own if ``x`` is quantised."""
        if isinstance(x, QuantizedRows):
            return self._product(x, self.dtype)
        if self.mode == "fp8":
            return self._product(self.quantized(x), x.dtype)
        return F.linear(x, (self.weight.float() * self.weight_scale).to(x.dtype), self.bias)

    def quantized(self, x: Tensor) -> QuantizedRows:
        """Tokens (..., K) as this layer multiplies them."""
        return QuantizedRows(*quantize_rows(x, impl=self.impl))

    def extra_repr(self) -> str:
        """Sizes and mode."""
        outputs, inputs = self.weight.shape
        return f"{inputs}, {outputs}, {self.mode}"

    def _product(self, rows: QuantizedRows, dtype: torch.dtype) -> Tensor:
        lead = rows.values.shape[:-1]
        values, scales = rows.values.flatten(0, -2), rows.scales.flatten(0, -2)
        if values.is_cuda and dtype == torch.bfloat16:
            out: Tensor = torch._scaled_mm(
                values, self.weight.t(), scale_a=scales, scale_b=self.weight_scale.t(),
                bias=self.bias, out_dtype=dtype, use_fast_accum=True,
            )  # fmt: skip
            whole: Tensor = out.unflatten(0, lead)
            return whole
        products = values.float() @ self.weight.float().t()
        products = products.mul_(scales).mul_(self.weight_scale.t())
        if self.bias is not None:
            products = products.add_(self.bias.float())
        result: Tensor = products.to(dtype).unflatten(0, lead)
        return result


def is_quantized(layer: nn.Module) -> bool:
    """Whether the layer's weight is kept in e4m3."""
    return isinstance(layer, Fp8Linear)


def shared_rows(x: Tensor | QuantizedRows, *layers: nn.Module) -> Tensor | QuantizedRows:
    """Quantise what several layers read once for all, if all of them multiply in e4m3."""
    if isinstance(x, QuantizedRows) or not multiply_rows(*layers):
        return x
    first = cast("Fp8Linear", layers[0])
    return first.quantized(x)


def join_rows(parts: Sequence[Tensor | QuantizedRows]) -> Tensor | QuantizedRows:
    """Runs of tokens (B, l, K), all quantised or none, behind each other: (B, L, K)."""
    plain = [part for part in parts if isinstance(part, Tensor)]
    if plain:
        return torch.cat(plain, dim=1)
    values, scales = zip(*parts, strict=True)
    # As bytes: not every device joins 8-bit floats.
    joined = torch.cat([part.view(torch.uint8) for part in values], dim=1)
    return QuantizedRows(joined.view(values[0].dtype), torch.cat(scales, dim=1))


def multiply_rows(*layers: nn.Module) -> bool:
    """Whether all the layers multiply in e4m3, and so take rows that are quantised already."""
    return all(isinstance(layer, Fp8Linear) and layer.mode == "fp8" for layer in layers)


def require_products(device: torch.device, shape: torch.Size) -> None:
    """Raise unless ``device`` multiplies e4m3 matrices of this shape; only CUDA's may not.

    Raises
    ------
    UnsupportedKernel
        A device below compute capability 8.9, or widths that its products do not take.
    """
    if device.type != "cuda":
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 9):
        raise UnsupportedKernel(
            f"quantization: expected a device of compute capability 8.9 or more, got {capability}.",
            stage="load",
            hint='Take "fp8_weight", which every device can run.',
        )
    if any(size % CUDA_MULTIPLE for size in shape):
        raise UnsupportedKernel(
            f"quantization: expected widths that are multiples of {CUDA_MULTIPLE}, got "
            f"{tuple(shape)}.",
            stage="load",
            hint='Leave this layer "full" in the policy, or take "fp8_weight".',
        )
