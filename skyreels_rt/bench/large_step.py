"""Steps of SkyReels-V3-A2V's size with random weights, made on the device: time, memory, floor.

Needs torch and triton alone, so that a bare GPU machine can run it; diffusers is timed where it is
installed. Its stack has no audio part: ours does more.
"""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from skyreels_rt.bench.rates import seconds_of
from skyreels_rt.bench.step import median_row
from skyreels_rt.config import AudioAdapterConfig, TransformerConfig, WanVAEConfig
from skyreels_rt.distributed.cost_model import H200
from skyreels_rt.errors import InvalidArgument, MissingDependency
from skyreels_rt.kernels import KernelPlan
from skyreels_rt.models.transformer import ContextCache, SkyReelsTransformer
from skyreels_rt.models.wan_vae import WanVAE
from skyreels_rt.quantization import POLICIES, quantize_transformer
from skyreels_rt.report import Report, Row

Peer = Literal["eager", "compiled"]
MIN_REPEATS = 5
IMAGE_TOKENS = 257
WEIGHT_STD = 0.02

V3_A2V = TransformerConfig(
    in_channels=36, dim=5120, ffn_dim=13824, num_heads=40, num_layers=40, image_dim=1280,
    audio=AudioAdapterConfig(feature_layers=12, feature_dim=768, features_per_frame=1),
)  # fmt: skip
"""Sizes of the published model, 18.88 billion parameters."""


@dataclass(frozen=True)
class LargeShape:
    """A window to time.

    Attributes
    ----------
    name : str
        Part of the rows' names.
    latents : tuple of int
        Frames, rows and columns.
    frames : int
        Video frames of the window.
    num_steps : int
        Steps, of one pass each, that a chunk takes.
    targets : mapping of str to float
        Most seconds a step should take, by form.
    fps_targets : mapping of str to float
        Least frames a second of a whole chunk, by form.
    """

    name: str
    latents: tuple[int, int, int]
    frames: int
    num_steps: int = 4
    targets: Mapping[str, float] = field(default_factory=dict)
    fps_targets: Mapping[str, float] = field(default_factory=dict)


SHAPES = (
    LargeShape(
        "832x480x81", (21, 60, 104), 81, targets={"bf16": 2.75, "absorbed": 2.6, "fp8": 2.1}
    ),
    LargeShape("512x512x33", (9, 64, 64), 33, fps_targets={"absorbed": 13.0, "fp8": 20.0}),
)
FORMS = ("bf16", "absorbed", "fp8")
"""Audio projections as they are; folded into keys and values; folded, other layers in 8 bits."""


def measure_large_steps(
    *,
    command: str,
    device: torch.device,
    repeats: int = MIN_REPEATS,
    config: TransformerConfig = V3_A2V,
    shapes: tuple[LargeShape, ...] = SHAPES,
    vae: WanVAEConfig | None = None,
    peers: tuple[Peer, ...] = ("eager", "compiled"),
    on_row: Callable[[Row], None] = lambda _: None,
) -> Report:
    """Time a step, and a chunk with its decoding, in three forms and against diffusers.

    Parameters
    ----------
    command : str
        Command line recorded in the report.
    device : torch.device
        Where to run; the full size needs a GPU of 80 GiB.
    repeats : int
        Timed runs of each, at least 5, after two that warm up.
    config : TransformerConfig
        Sizes of the model, with image branch and audio adapter.
    shapes : tuple of LargeShape
        Windows.
    vae : WanVAEConfig, optional
        Sizes of the VAE; Wan2.1's by default.
    peers : tuple of {"eager", "compiled"}
        How diffusers' stack is run.
    on_row : callable
        Called with every finished row.

    Raises
    ------
    InvalidArgument
        Too few repeats, or a config without audio or image.
    """
    if repeats < MIN_REPEATS:
        raise InvalidArgument("repeats", expected=f"at least {MIN_REPEATS}", got=repeats)
    if config.audio is None or config.image_dim is None:
        raise InvalidArgument("config", expected="an audio adapter and an image branch", got=config)
    rows: list[Row] = []

    def add(*found: Row) -> None:
        for row in found:
            rows.append(row)
            on_row(row)

    with torch.inference_mode():
        decode = {shape.name: _decode_seconds(shape, vae, device, repeats) for shape in shapes}
        model: SkyReelsTransformer | None = None
        for form in FORMS:
            if form == "fp8":  # made of the absorbed one, in place
                assert model is not None
                quantize_transformer(model, POLICIES["fp8"], device)
            else:
                model = None  # its memory, before the next is made
                _free(device)
                model = _random_model(config, device, folds=form == "absorbed")
            for shape in shapes:
                add(*_shape_rows(model, form, shape, device, repeats, decode[shape.name]))
        plan = model.plan.to_json() if model is not None else {}
        del model
        _free(device)
        skipped = _peer_rows(config, shapes, device, repeats, peers, add)
    return Report(
        command=command,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        threads=torch.get_num_threads(),
        kernel_plan=plan,
        rows=rows,
        details={
            "repeats": repeats,
            "dtype": "bfloat16",
            "weights": "random",
            "flops_floor": f"{H200.flops:.3g} FLOP/s, given for an H200",
            "shapes": {shape.name: shape.latents for shape in shapes},
            "skipped": skipped,
        },
    )


def step_flops(config: TransformerConfig, latents: tuple[int, int, int]) -> float:
    """Multiplications and additions of one forward pass; keys and values of conditions are kept.

    Parameters
    ----------
    config : TransformerConfig
        Sizes.
    latents : tuple of int
        Frames, rows and columns of the window.
    """
    frames, height, width = (s // p for s, p in zip(latents, config.patch_size, strict=True))
    tokens, dim = frames * height * width, config.dim
    keys = tokens + config.text_length + (IMAGE_TOKENS if config.image_dim else 0)
    matrices = 6 * dim * dim + 2 * dim * config.ffn_dim  # self q k v o, cross q o
    if config.audio is not None:
        keys += config.audio.num_tokens
        matrices += 2 * dim * dim
    return float(config.num_layers * (2 * tokens * matrices + 4 * tokens * keys * dim))


def _shape_rows(
    model: SkyReelsTransformer,
    form: str,
    shape: LargeShape,
    device: torch.device,
    repeats: int,
    decode: list[float],
) -> list[Row]:
    """Step, share of the floor, chunk and peak memory of one form and window."""
    step = _step(model, shape, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = _timed(step, device, repeats)
    name = f"step.v3-a2v.{shape.name}.{form}"
    floor = step_flops(model.config, shape.latents) / H200.flops
    chunk = [shape.num_steps * s + d for s, d in zip(seconds, decode, strict=True)]
    rates = [shape.frames / one for one in chunk]
    rows = [
        median_row(f"{name}.seconds", seconds, "s", shape.targets.get(form)),
        Row(f"{name}.floor_share", floor / sorted(seconds)[repeats // 2], "of the time", None,
            "higher"),
        median_row(f"{name}.chunk_seconds", chunk, f"s, {shape.num_steps} steps and decoding"),
        Row(f"{name}.chunk_fps", sorted(rates)[repeats // 2], "frames/s",
            shape.fps_targets.get(form), "higher", min(rates), max(rates)),
    ]  # fmt: skip
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 2**30
        rows.append(Row(f"{name}.peak_memory", peak, "GiB"))
    return rows


def _step(
    model: SkyReelsTransformer, shape: LargeShape, device: torch.device
) -> Callable[[], Tensor]:
    """A denoising step with the conditions' keys and values made before, as in a job."""
    config = model.config
    assert config.audio is not None and config.image_dim is not None
    draw = _Draw(device)
    latents = draw(1, config.in_channels, *shape.latents)
    tokens = draw(1, shape.latents[0], config.audio.num_tokens, config.audio.token_dim)
    context = ContextCache(
        model.text_context(draw(1, config.text_length, config.text_dim)),
        model.image_context(draw(1, IMAGE_TOKENS, config.image_dim)),
        model.audio_context(tokens),
    )
    rope, timestep = model.rope(*shape.latents), torch.tensor([500.0], device=device)
    return lambda: model(latents, timestep, context, rope)


def _random_model(
    config: TransformerConfig, device: torch.device, *, folds: bool
) -> SkyReelsTransformer:
    """A model that was never on the host, in bfloat16 but for the time path."""
    chosen = {} if folds else {"absorbed_audio_attention": "reference"}
    plan = KernelPlan.choose(device, torch.bfloat16, chosen)
    with torch.device("meta"):
        model = SkyReelsTransformer(config, plan).to_compute_dtype(torch.bfloat16)
    _randomise(model, device)
    return model


def _randomise(model: nn.Module, device: torch.device) -> None:
    """Bring the module to ``device``, small random numbers in every parameter."""
    model.to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for parameter in model.parameters():
        parameter.normal_(0.0, WEIGHT_STD, generator=generator)


def _decode_seconds(
    shape: LargeShape, config: WanVAEConfig | None, device: torch.device, repeats: int
) -> list[float]:
    """Times of decoding a window's latents by a VAE of Wan's sizes, random weights."""
    vae = WanVAE(config or WanVAEConfig(), KernelPlan.choose(device, torch.bfloat16))
    vae = vae.to(device, torch.bfloat16).eval().requires_grad_(False)
    vae.channels_last_weights()
    latents = _Draw(device)(1, vae.latent_channels, *shape.latents).float()
    return _timed(lambda: vae.decode(latents), device, repeats)


def _peer_rows(
    config: TransformerConfig,
    shapes: tuple[LargeShape, ...],
    device: torch.device,
    repeats: int,
    peers: tuple[Peer, ...],
    add: Callable[[Row], None],
) -> dict[str, str]:
    """Time diffusers' stack of the same size, eager and compiled; what was left out, and why."""
    try:
        eager = _peer(config, device)
    except MissingDependency as error:
        return {"peer": str(error)}
    skipped: dict[str, str] = {}
    for kind in peers:
        if kind == "compiled" and device.type == "cuda" and not importlib.util.find_spec("triton"):
            skipped["peer, compiled"] = "triton is not installed"
            continue
        peer = torch.compile(eager) if kind == "compiled" else eager
        for shape in shapes:
            draw = _Draw(device)
            inputs = {
                "hidden_states": draw(1, config.in_channels, *shape.latents),
                "timestep": torch.tensor([500.0], device=device),
                "encoder_hidden_states": draw(1, config.text_length, config.text_dim),
                "encoder_hidden_states_image": draw(1, IMAGE_TOKENS, int(config.image_dim or 0)),
                "return_dict": False,
            }
            seconds = _timed(partial(peer, **inputs), device, repeats)
            add(median_row(f"step.v3-a2v.{shape.name}.diffusers_{kind}.seconds", seconds, "s"))
    return skipped


def _peer(config: TransformerConfig, device: torch.device) -> Any:  # noqa: ANN401 - diffusers is untyped
    """The Wan transformer of diffusers in the same sizes; it has no audio part."""
    try:
        from diffusers import WanTransformer3DModel
    except ImportError as error:
        raise MissingDependency(
            "diffusers is not installed.", stage="bench", hint="pip install diffusers"
        ) from error
    with torch.device("meta"):
        model = WanTransformer3DModel(
            patch_size=config.patch_size, num_attention_heads=config.num_heads,
            attention_head_dim=config.head_dim, in_channels=config.in_channels,
            out_channels=config.out_channels, text_dim=config.text_dim, freq_dim=config.freq_dim,
            ffn_dim=config.ffn_dim, num_layers=config.num_layers, image_dim=config.image_dim,
            added_kv_proj_dim=config.dim,
        ).to(torch.bfloat16)  # fmt: skip
    _randomise(model, device)
    # Its rotary tables are buffers, which have no numbers yet.
    for buffer in model.buffers():
        buffer.normal_()
    return model


class _Draw:
    """Seeded normal numbers in bfloat16 on a device."""

    def __init__(self, device: torch.device) -> None:
        self._generator = torch.Generator(device).manual_seed(1)
        self._device = device

    def __call__(self, *shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=self._generator, device=self._device)
        return drawn.to(torch.bfloat16)


def _timed(call: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    """Seconds of ``repeats`` calls after two that warm up."""
    seconds_of(call, 2, device)
    return [seconds_of(call, 1, device) for _ in range(repeats)]


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
