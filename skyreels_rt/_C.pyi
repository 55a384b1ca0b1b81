"""Signatures of the compiled CPU operators (csrc/bindings/module.cpp).

Tensors are addresses; sizes and strides count elements; ``dtype`` is 0 (fp32) or 1 (bf16); ``isa``
is ``""`` (widest), ``"plain"``, ``"avx2"`` or ``"avx512"``. A bad argument raises ValueError. The
GIL is released while computing.
"""

from collections.abc import Sequence

ABI_VERSION: int

def isa() -> str: ...
def available_isas() -> list[str]: ...
def audio_cross_attention(
    q: int,
    k: int,
    v: int,
    out: int,
    ranges: int,
    token_mask: int,
    gate: int,
    norm_weight: int,
    dtype: int,
    sizes: Sequence[int],
    strides: Sequence[int],
    eps: float,
    num_threads: int,
    isa: str = "",
) -> None: ...
def frames_to_uint8(
    src: int,
    dst: int,
    dtype: int,
    num_frames: int,
    plane: int,
    stride_channel: int,
    stride_frame: int,
    num_threads: int,
    isa: str = "",
) -> None: ...
def group_softmax(
    logits: int,
    shifts: int,
    out: int,
    dtype: int,
    frames: int,
    rows: int,
    num_heads: int,
    tokens: int,
    num_threads: int,
    isa: str = "",
) -> None: ...
def qk_norm_rope(
    q: int,
    k: int,
    weight_q: int,
    weight_k: int,
    cos: int,
    sin: int,
    dtype: int,
    batch: int,
    length: int,
    num_heads: int,
    head_dim: int,
    q_stride_batch: int,
    q_stride_row: int,
    k_stride_batch: int,
    k_stride_row: int,
    eps: float,
    num_threads: int,
    isa: str = "",
) -> None: ...
