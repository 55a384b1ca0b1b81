"""frames_to_uint8: every implementation gives the reference's bytes."""

from __future__ import annotations

import pytest
import torch

from skyreels_rt.errors import InvalidArgument, UnsupportedKernel
from skyreels_rt.kernels import Impl, frames_to_uint8
from skyreels_rt.kernels.reference.frames_to_uint8 import frames_to_uint8 as reference
from skyreels_rt.runtime.native import native_status
from skyreels_rt.testing.faults.frames_to_uint8 import FAULTS
from skyreels_rt.testing.numerics import assert_bitwise_equal

LAYERS = {layer.name: layer for layer in native_status()}
needs_cpp = pytest.mark.skipif(not LAYERS["_C"].active, reason=f"_C: {LAYERS['_C'].detail}")
interpreted = pytest.mark.skipif(
    not LAYERS["triton"].active or torch.cuda.is_available(),
    reason=f"interpreter not in use: {LAYERS['triton'].detail}",
)
SHAPES = [(1, 1, 1), (2, 3, 5), (3, 16, 16), (5, 33, 31), (1, 70, 513), (0, 4, 4), (2, 0, 4)]


def make_frames(shape: tuple[int, int, int], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.rand((3, *shape), generator=generator) * 2.4 - 1.2
    # Every exact half level, so that ties are met.
    ties = (torch.arange(255) + 0.5) / 127.5 - 1.0
    flat = frames.view(-1)
    count = min(flat.numel(), ties.numel())
    flat[:count] = ties[:count]
    return frames.to(dtype)


def test_reference_states_the_formula_in_fp64() -> None:
    frames = make_frames((2, 9, 7), torch.float64)
    out = reference(frames)
    for index in ((0, 0, 0, 0), (2, 1, 8, 6), (1, 0, 4, 3)):
        c, f, h, w = index
        level = min(max((frames[index].item() + 1) * 127.5, 0.0), 255.0)
        assert out[f, h, w, c].item() == round(level)  # Python rounds halves to even


def test_special_values() -> None:
    values = torch.tensor([-1.0, 1.0, 0.0, float("nan"), float("inf"), -float("inf"), 3.0, -0.0])
    frames = values.expand(3, 1, 1, 8)
    expected = torch.tensor([0, 255, 128, 0, 255, 0, 255, 128], dtype=torch.uint8)
    for impl in (Impl.REFERENCE, Impl.AUTO):
        for channel in range(3):
            assert_bitwise_equal(frames_to_uint8(frames, impl=impl)[0, 0, :, channel], expected)


@needs_cpp
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpp_equals_reference(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    frames = make_frames(shape, dtype)
    assert_bitwise_equal(frames_to_uint8(frames, impl=Impl.CPP), reference(frames))


@needs_cpp
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpp_takes_views(dtype: torch.dtype) -> None:
    video = make_frames((8, 12, 20), dtype)
    views = [
        video[:, 2:7],
        video[:, ::2],
        video.flip(0),
        video[..., 3:17],  # planes not dense: copied
        video.transpose(2, 3),
        video[:1].expand(3, -1, -1, -1),
    ]
    for view in views:
        assert_bitwise_equal(frames_to_uint8(view, impl=Impl.CPP), reference(view))


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_triton_interpreted_equals_reference(dtype: torch.dtype) -> None:
    for shape in SHAPES:
        frames = make_frames(shape, dtype)
        assert_bitwise_equal(frames_to_uint8(frames, impl=Impl.TRITON), reference(frames))
    video = make_frames((8, 12, 20), dtype)
    video[0, 0, 0, :4] = torch.tensor([float("nan"), float("inf"), -float("inf"), 3.0])
    for view in (video[:, 1::2], video.flip(0), video[..., 3:17], video[:, :, 1:]):
        assert_bitwise_equal(frames_to_uint8(view, impl=Impl.TRITON), reference(view))


@needs_cpp
def test_instruction_sets_and_thread_counts_give_the_same_bytes() -> None:
    from skyreels_rt import _C

    for code, dtype in ((0, torch.float32), (1, torch.bfloat16)):
        frames = make_frames((3, 65, 67), dtype)
        expected = reference(frames)
        for isa in _C.available_isas():
            for threads in (1, 2, 5):
                out = torch.empty_like(expected)
                _C.frames_to_uint8(
                    frames.data_ptr(), out.data_ptr(), code, 3, 65 * 67,
                    frames.stride(0), frames.stride(1), threads, isa,
                )  # fmt: skip
                assert_bitwise_equal(out, expected)


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_rejected(fault: str) -> None:
    frames = make_frames((2, 16, 16), torch.float32)
    with pytest.raises(AssertionError):
        assert_bitwise_equal(FAULTS[fault](frames), reference(frames))


@needs_cpp
def test_registration() -> None:
    op = torch.ops.skyreels_rt.frames_to_uint8.default
    for dtype in (torch.float32, torch.bfloat16):
        frames = make_frames((2, 6, 5), dtype)
        torch.library.opcheck(op, (frames, "cpp"))
        torch.library.opcheck(op, (frames[:, 1:], "cpp"))


@pytest.mark.parametrize("impl", [Impl.AUTO, Impl.REFERENCE])
def test_compiles_whole(impl: Impl) -> None:
    frames = make_frames((2, 6, 5), torch.float32)
    compiled = torch.compile(frames_to_uint8, fullgraph=True, backend="aot_eager")
    assert_bitwise_equal(compiled(frames, impl=impl), reference(frames))


def test_half_precision_runs_on_the_reference() -> None:
    frames = make_frames((1, 4, 4), torch.float16)
    assert_bitwise_equal(frames_to_uint8(frames), reference(frames))
    with pytest.raises(UnsupportedKernel, match="float16"):
        frames_to_uint8(frames, impl=Impl.CPP)


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (torch.zeros(1, 3, 2, 4, 4), r"\(3, F, H, W\)"),
        (torch.zeros(4, 2, 4, 4), r"\(3, F, H, W\)"),
        (torch.zeros(3, 2, 4, 4, dtype=torch.int32), "float32"),
    ],
)
def test_bad_frames(frames: torch.Tensor, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        frames_to_uint8(frames)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("impl", [Impl.CUDA, Impl.TRITON])
def test_gpu_equals_reference(impl: Impl, dtype: torch.dtype) -> None:
    for shape in [*SHAPES, (4, 480, 832)]:
        frames = make_frames(shape, dtype)
        out = frames_to_uint8(frames.cuda(), impl=impl)
        assert_bitwise_equal(out, reference(frames))
    video = make_frames((8, 12, 20), dtype).cuda()
    for view in (video[:, 1::2], video.flip(0), video[..., 3:17], video[:, :, 1:]):
        assert_bitwise_equal(frames_to_uint8(view, impl=impl), reference(view.cpu()))
