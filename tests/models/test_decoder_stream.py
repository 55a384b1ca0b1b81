"""A decoder with its memory in place gives the bytes of one whose caches are values."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from skyreels_rt.config import TinyVAEConfig, WanVAEConfig
from skyreels_rt.engine import Engine
from skyreels_rt.errors import GraphCaptureFailed, InvalidArgument
from skyreels_rt.kernels import KernelPlan
from skyreels_rt.models import decoder_stream
from skyreels_rt.models.decoder_stream import DecoderStream
from skyreels_rt.models.tiny_vae import TinyVAE
from skyreels_rt.models.vae_options import VAEOptions
from skyreels_rt.models.wan_vae import WanVAE
from skyreels_rt.runtime.cuda_graphs import CudaRecorder, StepGraphs
from skyreels_rt.testing.graph_recorder import RerunRecorder
from skyreels_rt.testing.tiny import randomise

PLAN = KernelPlan.choose("cpu", torch.float32)
TINY = TinyVAEConfig(
    z_dim=8, encoder_dims=(8, 12, 16, 20), decoder_dims=(20, 16, 12, 8), num_blocks=(2, 1, 2)
)
SIZES = {"wan": (1, 5, 9), "batch": (2, 2, 3), "tiny": (1, 2, 3)}  # the first through the operator


@pytest.fixture(params=SIZES)
def stream_and_latents(request):
    wan = request.param != "tiny"
    vae = WanVAE(WanVAEConfig(base_dim=16, num_res_blocks=1), PLAN) if wan else TinyVAE(TINY)
    randomise(vae, 0)
    batch, *grid = SIZES[request.param]
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn((batch, vae.latent_channels, 6, *grid), generator=generator)
    return vae.eval().requires_grad_(False), latents.split(1, dim=2)


def by_value(vae, latents, cache=None):
    frames = []
    for one in latents:
        decoded, cache = vae.decode_step(one, cache)
        frames.append(decoded)
    return frames, cache


def same(actual, expected):
    return all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_in_place_equals_by_value(stream_and_latents):
    vae, latents = stream_and_latents
    stream = DecoderStream(vae)
    assert stream.values() == ()
    expected, cache = by_value(vae, latents)
    assert same([stream.step(one).clone() for one in latents], expected)
    assert same(stream.values(), cache)


def test_a_step_can_be_forgotten(stream_and_latents):
    vae, latents = stream_and_latents
    stream = DecoderStream(vae)
    wrong = torch.full_like(latents[0], float("nan"))
    for one, expected in zip(latents, by_value(vae, latents)[0], strict=True):
        stream.step(wrong)
        stream.go_back()
        assert torch.equal(stream.step(one), expected)


def test_an_error_leaves_the_memory_as_it_was(stream_and_latents, monkeypatch):
    vae, latents = stream_and_latents
    expected, _ = by_value(vae, latents)
    stream = DecoderStream(vae)
    conv = vae.decoder.conv_out

    def broken(*_):
        raise RuntimeError("out of memory")

    for one, frames in zip(latents, expected, strict=True):
        with monkeypatch.context() as broke:
            broke.setattr(conv, "step" if isinstance(vae, WanVAE) else "forward", broken)
            with pytest.raises(RuntimeError, match="out of memory"):
                stream.step(one)
        if stream.is_started:
            stream.load(stream.values())
        assert torch.equal(stream.step(one), frames)


def test_a_stream_goes_on_where_another_was(stream_and_latents):
    vae, latents = stream_and_latents
    expected, _ = by_value(vae, latents)
    one, other = DecoderStream(vae), DecoderStream(vae)
    for part in latents[:3]:
        one.step(part)
    for part in latents[3:]:
        other.step(part)  # of another video, whose buffers are to be used again
    other.load(one.values())
    assert same([other.step(part).clone() for part in latents[3:]], expected[3:])
    for begin_again in (other.restart, other.forget):
        begin_again()
        assert other.values() == ()
        assert same([other.step(part).clone() for part in latents], expected)


def test_steady_steps_stay_in_the_same_memory(stream_and_latents):
    vae, latents = stream_and_latents
    stream = DecoderStream(vae)
    places = []
    for part in latents:
        stream.step(part)
        places.append([one.data_ptr() for one in stream._buffers._buffers])
    assert len(places[1]) == len(vae.decoder_cache_shapes(8, 8))
    assert all(found == places[1] for found in places[2:])


class Counted(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_a_steady_step_of_wan_pads_joins_and_clones_nothing():
    vae = WanVAE(WanVAEConfig(base_dim=16, num_res_blocks=1), PLAN)
    randomise(vae, 0)
    latents = torch.randn(1, 16, 1, 2, 3)
    stream = DecoderStream(vae.eval().requires_grad_(False))
    with torch.inference_mode():
        _, cache = vae.decode_step(latents)
        _, cache = vae.decode_step(latents, cache)
        with Counted() as by_values:
            vae.decode_step(latents, cache)
        for _ in range(3):
            stream.step(latents)
        with Counted() as in_place:
            stream.step(latents)
    assert {"cat", "clone"} <= set(by_values.names)
    assert not {"cat", "constant_pad_nd", "pad"} & set(in_place.names)
    assert in_place.names.count("clone") <= 3  # latents, and two splits of time


def test_the_step_can_be_recorded(stream_and_latents):
    vae, latents = stream_and_latents
    recorder = RerunRecorder()
    stream = DecoderStream(vae, partial(StepGraphs(recorder).record_in_place, "decode"))
    with torch.inference_mode():
        expected, _ = by_value(vae, latents)
        for begin_again in (stream.restart, stream.forget):
            assert same([stream.step(one).clone() for one in latents], expected)
            begin_again()
        assert same([stream.step(one).clone() for one in latents], expected)
    assert recorder.num_recorded == 2  # once, and again after it was forgotten
    assert recorder.num_replayed == 3 * (len(latents) - 1)


@pytest.mark.parametrize("required", [False, True])
def test_a_step_that_cannot_be_recorded_runs_as_it_is(required, stream_and_latents, monkeypatch):
    class Refuses:
        def record(self, work):
            work()
            raise GraphCaptureFailed("no.", operation="copy")

        def apart(self):
            return self

    vae, latents = stream_and_latents
    graphs = StepGraphs(Refuses(), required=required)
    stream = DecoderStream(vae, partial(graphs.record_in_place, "decode"))
    with torch.inference_mode():
        expected, cache = by_value(vae, latents[:2])
        assert torch.equal(stream.step(latents[0]), expected[0])
        if required:
            with pytest.raises(GraphCaptureFailed, match="Step 'decode': no"):
                stream.step(latents[1])
        else:
            assert torch.equal(stream.step(latents[1]), expected[1])
            assert same(stream.values(), cache)


def test_faults_are_told(stream_and_latents, monkeypatch):
    vae, latents = stream_and_latents
    stream = DecoderStream(vae)
    monkeypatch.setattr(decoder_stream, "_move_to_front", lambda buffer, length: None)
    found = [stream.step(one).clone() for one in latents]
    expected, _ = by_value(vae, latents)
    assert same(found[:2], expected[:2])
    assert not torch.equal(found[2], expected[2])
    with pytest.raises(InvalidArgument, match="latents"):
        stream.step(latents[0][..., 1:])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_place_equals_by_value_on_the_gpu(dtype):
    plan = KernelPlan.choose("cuda", dtype)
    vae = WanVAE(WanVAEConfig(base_dim=16, num_res_blocks=1), plan)
    randomise(vae, 0)
    vae = vae.eval().requires_grad_(False).to("cuda", dtype).channels_last_weights()
    latents = torch.randn(1, 16, 5, 8, 12, device="cuda", dtype=dtype).split(1, dim=2)
    with torch.inference_mode():
        expected, cache = by_value(vae, latents)
        graphs = StepGraphs(CudaRecorder(torch.device("cuda")), required=True)
        for record in (None, partial(graphs.record_in_place, "decode")):
            stream = DecoderStream(vae, record)
            assert same([stream.step(one).clone() for one in latents], expected)
            assert same(stream.values(), cache)


def test_a_session_with_buffers_makes_the_same_video():
    speech = np.sin(np.arange(16_000) / 20).astype(np.float32)
    image = np.full((64, 64, 3), 100, np.uint8)
    videos = []
    for buffers in (False, True):
        engine = Engine.from_pretrained("tiny-random", vae_options=VAEOptions(buffers=buffers))
        job = {"sample_rate": 16_000, "num_steps": 1, "on_progress": lambda _: None}
        videos.append(engine.generate(speech, image=image, **job).frames)
        held = engine.components.vae.cache_bytes(16, 16, torch.float32)
    assert np.array_equal(*videos)
    assert held > engine.components.vae.decoder_cache_bytes(16, 16, torch.float32)
