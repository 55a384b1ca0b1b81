"""Signatures of the compiled CPU operators (csrc/bindings/module.cpp).

Tensors are addresses; sizes and strides count elements; ``dtype`` is 0 (fp32) or 1 (bf16); ``isa``
is ``""`` (widest), ``"plain"``, ``"avx2"``, ``"avx512"`` or ``"avx512_bf16"``. A bad argument
raises ValueError. The GIL is released while computing. A ``SegmentTable`` stands for a
(B or 1, S, D) fp32 tensor: its address, S, stride of the batch (0 where broadcast), stride of a
segment.
"""

from collections.abc import Sequence

SegmentTable = tuple[int, int, int, int]

ABI_VERSION: int

def isa() -> str: ...
def available_isas() -> list[str]: ...
def prefer_huge_pages(address: int, size: int) -> None: ...
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
def blf_step(
    latents: int,
    velocities: list[int],
    starts: list[int],
    weights: int,
    guidance: list[float],
    out: int,
    dtype: int,
    window: int,
    channels: int,
    length: int,
    num_pinned: int,
    plane: int,
    latents_stride_channel: int,
    latents_stride_frame: int,
    stride_pass: int,
    stride_channel: int,
    stride_frame: int,
    delta: float,
    num_threads: int,
    isa: str = "",
) -> None: ...
def causal_conv3d(
    past: int,
    x: int,
    weight: int,
    bias: int,
    residual: int,
    y: int,
    batch: int,
    channels: int,
    out_channels: int,
    frames: int,
    height: int,
    width: int,
    taps: int,
    doubled: bool,
    num_threads: int,
    isa: str = "",
) -> None: ...
def pack_conv_weight(
    weight: int,
    packed: int,
    out_channels: int,
    channels: int,
    taps: int,
    strides: tuple[int, int, int, int],
    num_threads: int,
    isa: str = "",
) -> None: ...
def dense_attention(
    q: int,
    k: int,
    v: int,
    out: int,
    maxima: int,
    exponentials: int,
    dtype: int,
    sizes: Sequence[int],
    strides: Sequence[Sequence[int]],
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
def gate_residual_norm_modulate(
    x: int,
    y: int,
    normed: int,
    gate: SegmentTable,
    weight: SegmentTable,
    bias: SegmentTable,
    dtype: int,
    batch: int,
    length: int,
    width: int,
    x_stride_batch: int,
    x_stride_row: int,
    y_stride_batch: int,
    y_stride_row: int,
    eps: float,
    num_threads: int,
    isa: str = "",
) -> None: ...
def norm_modulate(
    x: int,
    y: int,
    weight: SegmentTable,
    bias: SegmentTable,
    dtype: int,
    batch: int,
    length: int,
    width: int,
    stride_batch: int,
    stride_row: int,
    eps: float,
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
def rms_norm_silu(
    x: int,
    y: int,
    gamma: int,
    dtype: int,
    batch: int,
    channels: int,
    positions: int,
    channels_last: bool,
    silu: bool,
    num_threads: int,
    isa: str = "",
) -> None: ...
def residual_apply(
    x: int, residual: int, dtype: int, count: int, num_threads: int, isa: str = ""
) -> None: ...
def residual_store(
    before: int, after: int, out: int, dtype: int, count: int, num_threads: int, isa: str = ""
) -> None: ...
def teacache_gate(
    signal: int,
    previous: int,
    accumulated: int,
    skip: int,
    coefficients: list[float],
    dtype: int,
    forced: bool,
    count: int,
    threshold: float,
    num_threads: int,
    isa: str = "",
) -> None: ...
