"""blf_step: the bytes of combine, fuse and EulerSolver.step, whichever implementation runs."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch

from skyreels_rt.diffusion.blf import Group, Window, window_weights
from skyreels_rt.diffusion.guidance import combine, guidance_passes
from skyreels_rt.diffusion.schedule import FlowSchedule
from skyreels_rt.diffusion.solvers import EulerSolver
from skyreels_rt.errors import InvalidArgument, UnsupportedKernel
from skyreels_rt.kernels import Impl, blf_step, blf_velocity
from skyreels_rt.kernels.reference import blf_step as _reference
from skyreels_rt.runtime.native import native_status
from skyreels_rt.testing.faults.blf_step import FAULTS
from skyreels_rt.testing.numerics import assert_bitwise_equal, assert_within_budget

LAYERS = {layer.name: layer for layer in native_status()}
needs_cpp = pytest.mark.skipif(not LAYERS["_C"].active, reason=f"_C: {LAYERS['_C'].detail}")
needs_triton = pytest.mark.skipif(
    not LAYERS["triton"].active, reason=f"triton: {LAYERS['triton'].detail}"
)
STEP = 2
SCHEDULE = FlowSchedule(num_steps=6, shift=3.0)
SCALES = {1: (1.0, 1.0), 2: (1.0, 2.5), 3: (4.0, 2.5)}


class Case(NamedTuple):
    """A group and the sizes of its latents."""

    starts: tuple[int, ...]
    window: int
    overlap: int
    num_pinned: int
    passes: int
    channels: int
    height: int
    width: int


CASES = {
    "one window, one pass": Case((0,), 9, 3, 0, 1, 16, 16, 16),
    "one window, three passes": Case((0,), 5, 2, 0, 3, 4, 8, 8),
    "two windows": Case((0, 6), 9, 3, 0, 1, 4, 12, 10),
    "pinned, guided": Case((0, 6, 12), 9, 3, 3, 2, 3, 7, 5),
    "last shifted back: three cover a latent": Case((0, 4, 5), 7, 3, 2, 3, 2, 9, 15),
    "no overlap": Case((0, 2, 4), 2, 0, 1, 1, 2, 3, 1),
    "dense windows": Case((0, 1, 2, 3, 4), 6, 5, 0, 2, 1, 1, 67),
    "all pinned": Case((0, 1), 3, 2, 4, 1, 2, 2, 3),
    "no pixels": Case((0, 2), 3, 1, 1, 2, 2, 0, 4),
    "no channels": Case((0,), 3, 1, 0, 1, 0, 2, 2),
}
SMALL = [
    "two windows", "pinned, guided", "last shifted back: three cover a latent", "no overlap",
    "dense windows", "all pinned", "no pixels",
]  # fmt: skip


def group_of(case: Case) -> Group:
    windows = tuple(Window(start, start + case.window) for start in case.starts)
    return Group(0, case.num_pinned, windows[-1].stop, windows)


def make_arguments(case: Case, dtype: torch.dtype, seed: int = 0) -> dict[str, Any]:
    """Arguments of ``blf_step`` with real weights, real guidance factors and a real delta."""
    generator = torch.Generator().manual_seed(seed)
    group, plane = group_of(case), (case.height, case.width)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, *plane, generator=generator)

    velocities = [drawn(case.passes, case.channels, case.window).to(dtype) for _ in case.starts]
    for velocity in velocities:
        velocity.view(-1)[::7] = -0.0
    wide = torch.promote_types(dtype, torch.float32)
    return {
        "latents": drawn(case.channels, group.length).to(wide),
        "velocities": velocities,
        "starts": case.starts,
        "weights": window_weights(group, case.overlap).to(wide),
        "guidance": tuple(p.weight for p in passes_of(case)),
        "delta": SCHEDULE.sigmas[STEP + 1] - SCHEDULE.sigmas[STEP],
        "num_pinned": case.num_pinned,
    }


def reference(arguments: dict[str, Any], step: Any = _reference.blf_step) -> torch.Tensor:
    *positional, num_pinned = arguments.values()
    return step(*positional, num_pinned=num_pinned)


def passes_of(case: Case) -> tuple[Any, ...]:
    text, audio = SCALES[case.passes]
    return guidance_passes("audio_first", text, audio, has_text=case.passes == 3, has_audio=True)


def fuse(combined: list[torch.Tensor], group: Group, weights: Any) -> torch.Tensor:
    """Weighted average, latent by latent; the first window that covers a latent starts its sum."""
    fused = torch.empty_like(combined[0][:, :1]).expand(-1, group.length, -1, -1).clone()
    for n in range(group.length):
        terms = [
            velocity[:, n - window.start].float() * weight[n - window.start]
            for window, velocity, weight in zip(group.windows, combined, weights, strict=True)
            if window.start <= n < window.stop
        ]
        fused[:, n] = sum(terms[1:], start=terms[0])
    return fused


def chain(case: Case, arguments: dict[str, Any]) -> torch.Tensor:
    """What the denoise loop does with the public functions of ``skyreels_rt.diffusion``."""
    group, pinned = group_of(case), case.num_pinned
    combined = [
        combine(passes_of(case), velocity.unbind(0)) for velocity in arguments["velocities"]
    ]
    velocity = fuse(combined, group, window_weights(group, case.overlap))
    solver, latents = EulerSolver(SCHEDULE), arguments["latents"]
    new, _ = solver.step(STEP, latents[:, pinned:], velocity[:, pinned:], solver.init())
    return torch.cat([latents[:, :pinned], new], dim=1)


def through_fp64(arguments: dict[str, Any]) -> dict[str, Any]:
    return arguments | {
        "latents": arguments["latents"].double(),
        "velocities": [velocity.double() for velocity in arguments["velocities"]],
        "weights": arguments["weights"].double(),
    }


def test_reference_is_a_scatter_add_in_fp64() -> None:
    case = CASES["last shifted back: three cover a latent"]
    arguments = make_arguments(case, torch.float64)
    expected = torch.zeros_like(arguments["latents"])
    for velocity, start, weight in zip(
        arguments["velocities"], case.starts, arguments["weights"], strict=True
    ):
        combined = torch.einsum("p,pcnhw,n->cnhw", torch.tensor(arguments["guidance"]).double(),
                                velocity, weight)  # fmt: skip
        expected[:, start : start + case.window] += combined
    expected = arguments["latents"] + arguments["delta"] * expected
    expected[:, : case.num_pinned] = arguments["latents"][:, : case.num_pinned]
    torch.testing.assert_close(reference(arguments), expected)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_reference_gives_the_bytes_of_the_chain(name: str, dtype: torch.dtype) -> None:
    arguments = make_arguments(CASES[name], dtype)
    assert_bitwise_equal(blf_step(**arguments, impl=Impl.REFERENCE), chain(CASES[name], arguments))


@needs_cpp
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpp_gives_the_bytes_of_the_chain(name: str, dtype: torch.dtype) -> None:
    arguments = make_arguments(CASES[name], dtype)
    before = arguments["latents"].clone()
    assert_bitwise_equal(blf_step(**arguments, impl=Impl.CPP), chain(CASES[name], arguments))
    assert_bitwise_equal(arguments["latents"], before)


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="the device test runs it compiled")
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_triton_gives_the_bytes_of_the_chain(name: str, dtype: torch.dtype) -> None:
    arguments = make_arguments(CASES[name], dtype)
    assert_bitwise_equal(blf_step(**arguments, impl=Impl.TRITON), chain(CASES[name], arguments))


@pytest.mark.parametrize("impl", [Impl.REFERENCE, Impl.CPP, Impl.TRITON])
@pytest.mark.parametrize("name", ["pinned, guided", "dense windows", "no pixels"])
def test_velocity_alone_is_what_fuse_gives(name: str, impl: Impl) -> None:
    if not LAYERS[{Impl.CPP: "_C", Impl.TRITON: "triton"}.get(impl, "_C")].active:
        pytest.skip("not on this machine")
    if impl is Impl.TRITON and torch.cuda.is_available():
        pytest.skip("the device test runs it compiled")
    case = CASES[name]
    arguments = make_arguments(case, torch.float32)
    combined = [combine(passes_of(case), v.unbind(0)) for v in arguments["velocities"]]
    expected = fuse(combined, group_of(case), window_weights(group_of(case), case.overlap))
    actual = blf_velocity(
        arguments["velocities"], case.starts, arguments["weights"], arguments["guidance"],
        length=expected.shape[1], impl=impl,
    )  # fmt: skip
    assert_bitwise_equal(actual, expected)


def test_one_window_and_one_pass_is_plain_euler() -> None:
    arguments = make_arguments(CASES["one window, one pass"], torch.bfloat16)
    assert bool((arguments["weights"] == 1).all())
    assert arguments["guidance"] == (1.0,)
    expected = arguments["latents"] + arguments["velocities"][0][0].float() * arguments["delta"]
    for impl in (Impl.AUTO, Impl.REFERENCE):
        assert_bitwise_equal(blf_step(**arguments, impl=impl), expected)


def views(arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """The same values in other layouts: slot removed, passes apart, columns cut, latents sliced."""
    velocities, latents = arguments["velocities"], arguments["latents"]
    slot = [torch.cat([v[:, :, :1], v], dim=2)[:, :, 1:] for v in velocities]
    apart = [v.transpose(0, 1).contiguous().transpose(0, 1) for v in velocities]
    columns = [torch.cat([v, v], dim=-1)[..., : v.shape[-1]] for v in velocities]
    mixed = [*slot[:1], *velocities[1:]]
    odd = [torch.cat([v.flatten()[:1], v.flatten()])[1:].view(v.shape) for v in velocities]
    longer = torch.cat([latents[:, :1], latents, latents[:, :1]], dim=1)[:, 1:-1]
    turned = latents.transpose(2, 3).contiguous().transpose(2, 3)
    layouts = [{"velocities": v} for v in (slot, apart, columns, mixed, odd)]
    return [arguments | change for change in (*layouts, {"latents": longer}, {"latents": turned})]


@needs_cpp
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_strides(dtype: torch.dtype) -> None:
    case = CASES["pinned, guided"]
    arguments = make_arguments(case, dtype)
    expected = chain(case, arguments)
    for view in views(arguments):
        for impl in (Impl.CPP, Impl.REFERENCE):
            assert_bitwise_equal(blf_step(**view, impl=impl), expected)


@needs_cpp
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_instruction_sets_and_thread_counts_give_the_same_bytes(dtype: torch.dtype) -> None:
    from skyreels_rt import _C

    case = Case((0, 5, 8), 9, 4, 2, 3, 5, 31, 33)
    arguments = make_arguments(case, dtype)
    expected, length = chain(case, arguments), 17
    latents, velocities = arguments["latents"], arguments["velocities"]
    for isa in _C.available_isas():
        for threads in (1, 2, 5):
            out = torch.full_like(latents, float("nan"))
            _C.blf_step(
                latents.data_ptr(), [v.data_ptr() for v in velocities], list(case.starts),
                arguments["weights"].data_ptr(), list(arguments["guidance"]), out.data_ptr(),
                {torch.float32: 0, torch.bfloat16: 1}[dtype], case.window, case.channels, length,
                case.num_pinned, 31 * 33, *latents.stride()[:2], *velocities[0].stride()[:3],
                arguments["delta"], threads, isa,
            )  # fmt: skip
            assert_bitwise_equal(out, expected)


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_rejected(fault: str) -> None:
    case = Case((0, 6), 9, 3, 3, 2, 16, 8, 8)
    arguments = make_arguments(case, torch.bfloat16)
    high = reference(through_fp64(arguments))
    right = reference(arguments)
    assert_within_budget(right, high, right, torch.float32)
    with pytest.raises(AssertionError):
        assert_within_budget(reference(arguments, FAULTS[fault]), high, right, torch.float32)


@needs_cpp
def test_registration() -> None:
    op = torch.ops.skyreels_rt.blf_step.default
    for dtype in (torch.float32, torch.bfloat16):
        a = make_arguments(CASES["pinned, guided"], dtype)
        rest = (a["velocities"], a["starts"], a["weights"], a["guidance"], a["delta"])
        length = a["latents"].shape[1]
        torch.library.opcheck(op, (a["latents"], *rest, length, 3, "cpp"))
        torch.library.opcheck(op, (a["latents"].flip(1), *rest, length, 3, "cpp"))
        torch.library.opcheck(op, (None, *rest, length, 0, "cpp"))


@pytest.mark.parametrize("impl", [Impl.AUTO, Impl.REFERENCE])
def test_compiles_whole(impl: Impl) -> None:
    case = CASES["pinned, guided"]
    arguments = make_arguments(case, torch.float32)
    latents, velocities = arguments.pop("latents"), arguments.pop("velocities")

    def stepped(latents: torch.Tensor, velocities: list[torch.Tensor]) -> torch.Tensor:
        return blf_step(latents * 2, [v + 1 for v in velocities], **arguments, impl=impl)

    compiled = torch.compile(stepped, fullgraph=True, backend="aot_eager")
    assert_bitwise_equal(compiled(latents, velocities), stepped(latents, velocities))


def test_gradients_come_from_the_reference() -> None:
    arguments = make_arguments(CASES["pinned, guided"], torch.float32)
    latents = arguments["latents"].requires_grad_()
    velocity = arguments["velocities"][1].requires_grad_()
    blf_step(**arguments).square().sum().backward()
    assert latents.grad is not None
    assert velocity.grad is not None
    assert float(velocity.grad.abs().sum()) > 0


ZEROS = torch.zeros
BAD = {
    "latents rank": ({"latents": ZEROS(2, 6, 4)}, r"latents: .*\(C, N, h, w\)"),
    "latents dtype": ({"latents": ZEROS(2, 6, 4, 4).bfloat16()}, "latents: .*float32"),
    "latents length": ({"latents": ZEROS(2, 7, 4, 4)}, "starts: .*N = 7"),
    "channels": ({"latents": ZEROS(3, 6, 4, 4)}, r"velocities: .*\(P, C, n, h, w\)"),
    "no window": ({"velocities": []}, "velocities: .*at least one"),
    "rank": ({"velocities": [ZEROS(2, 4, 4, 4)] * 2}, r"velocities: .*\(P, C, n, h, w\)"),
    "integers": ({"velocities": [ZEROS(1, 2, 4, 4, 4).int()] * 2}, "velocities: .*float32"),
    "one shape": ({"velocities": [ZEROS(1, 2, 4, 4, 4), ZEROS(1, 2, 3, 4, 4)]}, "one shape"),
    "one dtype": (
        {"velocities": [ZEROS(1, 2, 4, 4, 4), ZEROS(1, 2, 4, 4, 4).half()]}, r"velocities\[0\]"
    ),
    "four passes": ({"velocities": [ZEROS(4, 2, 4, 4, 4)] * 2}, "1 to 3 passes"),
    "no pass": ({"velocities": [ZEROS(0, 2, 4, 4, 4)] * 2, "guidance": ()}, "1 to 3 passes"),
    "guidance": ({"guidance": (0.5, 0.5)}, "guidance: .*1 factors, got 2"),
    "starts count": ({"starts": (0,)}, "starts: .*2 ascending"),
    "starts gap": ({"starts": (0, 5)}, "starts"),
    "starts twice": ({"starts": (0, 0)}, "starts"),
    "starts late": ({"starts": (1, 2)}, "starts"),
    "weights": ({"weights": ZEROS(2, 3)}, r"weights: .*\(W, n\)"),
    "weights dtype": ({"weights": ZEROS(2, 4).double()}, "weights: .*float32"),
    "pinned": ({"num_pinned": 7}, "num_pinned: .*0 to N = 6"),
    "negative": ({"num_pinned": -1}, "num_pinned"),
    "device": ({"weights": ZEROS(2, 4, device="meta")}, "weights: .*cpu"),
    "latents device": ({"latents": ZEROS(2, 6, 4, 4, device="meta")}, "latents: .*cpu"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_calls(case: str) -> None:
    arguments = {
        "latents": ZEROS(2, 6, 4, 4), "velocities": [ZEROS(1, 2, 4, 4, 4)] * 2, "starts": (0, 2),
        "weights": ZEROS(2, 4), "guidance": (1.0,), "delta": -0.1,
    }  # fmt: skip
    changed, words = BAD[case]
    with pytest.raises(InvalidArgument, match=words):
        blf_step(**(arguments | changed))


def test_half_precision_runs_on_the_reference() -> None:
    arguments = make_arguments(CASES["two windows"], torch.float16)
    assert_bitwise_equal(blf_step(**arguments), reference(arguments))
    with pytest.raises(UnsupportedKernel, match="float16"):
        blf_step(**arguments, impl=Impl.CPP)


@needs_cpp
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"velocities": [0, 0]}, "velocities"),
        ({"velocities": [1]}, "velocities"),
        ({"starts": [0, 5]}, "starts"),
        ({"guidance": []}, "guidance"),
        ({"num_pinned": 9}, "num_pinned"),
        ({"weights": 0}, "weights"),
        ({"dtype": 2}, "dtype"),
        ({"num_threads": 0}, "num_threads"),
    ],
)
def test_native_function_checks_its_arguments(change: dict[str, Any], words: str) -> None:
    from skyreels_rt import _C

    x = torch.zeros(64)
    good = {
        "latents": x.data_ptr(), "velocities": [x.data_ptr()] * 2, "starts": [0, 2],
        "weights": x.data_ptr(), "guidance": [1.0], "out": x.data_ptr(), "dtype": 0, "window": 4,
        "channels": 1, "length": 6, "num_pinned": 0, "plane": 1, "latents_stride_channel": 6,
        "latents_stride_frame": 1, "stride_pass": 4, "stride_channel": 4, "stride_frame": 1,
        "delta": 0.1, "num_threads": 1,
    }  # fmt: skip
    with pytest.raises(ValueError, match=words):
        _C.blf_step(**(good | change))


@pytest.mark.gpu
@pytest.mark.parametrize("impl", [Impl.CUDA, Impl.TRITON])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_device_gives_the_bytes_of_the_chain(dtype: torch.dtype, impl: Impl) -> None:
    many = Case(tuple(range(0, 1200, 2)), 4, 2, 3, 1, 2, 8, 8)  # more windows than one launch takes
    for case in [*CASES.values(), Case((0, 13), 21, 8, 8, 3, 16, 60, 104), many]:
        arguments = make_arguments(case, dtype)
        expected = chain(case, arguments)
        layouts = [arguments] if expected.numel() == 0 else [arguments, *views(arguments)]
        for layout in layouts:
            moved = layout | {name: layout[name].cuda() for name in ("latents", "weights")}
            moved["velocities"] = [to_device(v) for v in layout["velocities"]]
            assert_bitwise_equal(blf_step(**moved, impl=impl).cpu(), expected)


def to_device(x: torch.Tensor) -> torch.Tensor:
    """A copy on the device with the same strides and offset."""
    storage = x.new_empty(0).set_(x.untyped_storage()).cuda()
    return storage.as_strided(x.shape, x.stride(), x.storage_offset())
