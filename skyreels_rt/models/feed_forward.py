"""Feed-forward part of a transformer block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skyreels_rt.kernels import KernelPlan
from skyreels_rt.models.fp8_linear import QuantizedRows, is_quantized


class FeedForward(nn.Sequential):
    """Linear, GELU (tanh), linear; the parameter names are those of the sequence.

    Without a gradient, oneDNN applies the GELU inside the first product on the CPU: 0.7 of the time
    of both in float32 and 0.5 in bfloat16 at the embedded models' sizes, and half the memory.

    Parameters
    ----------
    dim, hidden_dim : int
        Widths outside and inside.
    plan : KernelPlan
        Kernel implementations to use; with the plain one the GELU stays apart.
    """

    def __init__(self, dim: int, hidden_dim: int, plan: KernelPlan) -> None:
        super().__init__(
            nn.Linear(dim, hidden_dim), nn.GELU(approximate="tanh"), nn.Linear(hidden_dim, dim)
        )
        is_there = hasattr(torch.ops.mkldnn, "_linear_pointwise")  # private to torch
        self.fuses = not plan.is_plain and is_there and torch.backends.mkldnn.is_available()

    def forward(self, input: Tensor | QuantizedRows) -> Tensor:  # noqa: A002 - torch's name for it
        """(B, L, D) -> (B, L, D)."""
        up, act, down = self
        if isinstance(input, QuantizedRows):
            quantised: Tensor = down(act(up(input)))
            return quantised
        fuses = self.fuses and input.is_cpu and input.dtype in (torch.float32, torch.bfloat16)
        fuses &= not is_quantized(up)
        if fuses and not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
            hidden = torch.ops.mkldnn._linear_pointwise(
                input, up.weight, up.bias, "gelu", [], "tanh"
            )
        else:
            hidden = act(up(input))
        out: Tensor = down(hidden)
        return out
