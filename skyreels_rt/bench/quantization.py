"""What 8-bit layers cost: error of every kind of layer, and of the whole video.

A layer's error is the relative L2 distance of its output from full precision, on the inputs that it
has in a real run. The videos of each policy are compared with the full one of the same seed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from skyreels_rt.engine import Engine
from skyreels_rt.evaluation.clip_scores import aligned_sync
from skyreels_rt.evaluation.clips import EvalClip
from skyreels_rt.evaluation.fidelity import psnr, ssim
from skyreels_rt.evaluation.mouth import mouth_opening
from skyreels_rt.media.video import Video
from skyreels_rt.models.fp8_linear import Fp8Linear, Fp8Mode
from skyreels_rt.quantization import POLICIES, linear_layers
from skyreels_rt.report import Report, Row

MODES: tuple[Fp8Mode, ...] = ("fp8", "fp8_weight")
LAYER_STEPS = 4
"""Denoising steps of the run in which the layers are measured."""

_SSIM_STEP = 4  # every so many frames: SSIM takes longest


def measure_quantization(
    model: str,
    clips: Sequence[EvalClip],
    *,
    command: str,
    latents: int | None = None,
    device: str = "auto",
    on_run: Callable[[str], None] = lambda _: None,
) -> Report:
    """Measure every layer and every named policy on a model.

    Parameters
    ----------
    model : str
        Model name or folder.
    clips : sequence of EvalClip
        Portraits, voices and truth; the layers are measured on the first.
    command : str
        Command line recorded in the report.
    latents : int, optional
        Length of the videos in latent frames; one window by default.
    device : str
        Where to run.
    on_run : callable
        Told the name of each run that starts.

    Raises
    ------
    SkyReelsError
        From the model or the measures.
    """
    full = Engine.from_pretrained(model, device=device)
    length = full.components.generation.window if latents is None else latents
    on_run("layers")
    rows = _layer_rows(model, clips[0], length, device)
    on_run("full precision")
    expected = [_make(full, clip, length) for clip in clips]
    for name in POLICIES:
        on_run(name)
        engine = Engine.from_pretrained(model, device=device, quantization=name)
        found = [_make(engine, clip, length) for clip in clips]
        rows += _video_rows(f"quantization.{name}", clips, expected, found)
        ratio = _transformer_bytes(engine) / _transformer_bytes(full)
        rows.append(Row(f"quantization.{name}.transformer_bytes", ratio, "of full precision's"))
    parts = full.components
    return Report(
        command=command,
        device=str(parts.device),
        threads=torch.get_num_threads(),
        kernel_plan=parts.plan.to_json(),
        rows=rows,
        details={
            "model": parts.name,
            "dtype": str(parts.dtype),
            "clips": [clip.name for clip in clips],
            "latents": length,
            "layer_steps": LAYER_STEPS,
        },
    )


def _transformer_bytes(engine: Engine) -> int:
    weights = engine.components.transformer.parameters()
    return sum(weight.numel() * weight.element_size() for weight in weights)


def _make(engine: Engine, clip: EvalClip, latents: int, **options: Any) -> Video:  # noqa: ANN401 - of generate
    frames = engine.components.timeline.num_frames(latents)
    return engine.generate(
        clip.audio[: frames * clip.sample_rate // engine.components.generation.fps],
        sample_rate=clip.sample_rate,
        image=clip.portrait,
        prompt=clip.caption,
        on_progress=lambda _: None,
        **options,
    )


def _layer_rows(model: str, clip: EvalClip, latents: int, device: str) -> list[Row]:
    """Mean, least and largest error over the blocks, for each kind of layer and each mode."""
    # The plain kernels call every layer; fused ones read its weight.
    engine = Engine.from_pretrained(model, device=device, kernels="reference")
    meters = {
        name: _LayerMeter(layer) for name, layer in linear_layers(engine.components.transformer)
    }
    _make(engine, clip, latents, num_steps=LAYER_STEPS)
    kinds: dict[str, list[_LayerMeter]] = {}
    for name, meter in meters.items():
        kinds.setdefault(name.split(".", 2)[2], []).append(meter)
    return [
        _row(f"quantization.layer.{kind}.{mode}", [meter.error(mode) for meter in same], "rel. L2")
        for kind, same in kinds.items()
        for mode in MODES
    ]


class _LayerMeter:
    """Runs the 8-bit forms of a layer on whatever the layer sees."""

    def __init__(self, layer: nn.Linear) -> None:
        self._forms = {mode: Fp8Linear(layer.weight, layer.bias, mode) for mode in MODES}
        self._errors = dict.fromkeys(MODES, 0.0)
        self._energy = 0.0
        layer.register_forward_hook(self._on_call)

    def error(self, mode: Fp8Mode) -> float:
        """Relative L2 error over all calls."""
        return math.sqrt(self._errors[mode] / self._energy)

    def _on_call(self, _layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        exact = output.double()
        self._energy += float(exact.square().sum())
        for mode, form in self._forms.items():
            self._errors[mode] += float((form(inputs[0]).double() - exact).square().sum())


def _video_rows(
    prefix: str, clips: Sequence[EvalClip], expected: Sequence[Video], found: Sequence[Video]
) -> list[Row]:
    """Distance of the videos, and what it does to the lips."""

    def sync(clip: EvalClip, video: Video) -> float:
        return aligned_sync(mouth_opening(video.frames, clip.mouth_box), clip.opening_px)

    before = [sync(*pair) for pair in zip(clips, expected, strict=True)]
    after = [sync(*pair) for pair in zip(clips, found, strict=True)]
    pairs = [(new.frames, old.frames) for new, old in zip(found, expected, strict=True)]
    thinned = [(new[::_SSIM_STEP], old[::_SSIM_STEP]) for new, old in pairs]
    lost = [old - new for old, new in zip(before, after, strict=True)]
    return [
        _row(f"{prefix}.psnr", [psnr(*pair) for pair in pairs], "dB to full", higher=True),
        _row(f"{prefix}.ssim", [ssim(*pair) for pair in thinned], "to full", higher=True),
        _row(f"{prefix}.sync", after, "correlation", higher=True),
        _row(f"{prefix}.sync_loss", lost, "correlation"),
        *_interval_rows(f"{prefix}.sync_loss", lost),
    ]


def _interval_rows(prefix: str, values: Sequence[float]) -> list[Row]:
    """Ends of the 95 % interval of the mean over clips, by Student's t; none of a single clip."""
    if len(values) < 2:
        return []
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    reach = student_t(len(values) - 1) * error
    return [
        Row(f"{prefix}.low", mean - reach, "95 % interval"),
        Row(f"{prefix}.high", mean + reach, "95 % interval"),
    ]


def student_t(freedom: int) -> float:
    """97.5 % quantile of Student's distribution, by Hill's expansion of the normal's.

    G. W. Hill, Algorithm 396, CACM 13 (1970); within 1 % from three degrees of freedom on.

    Parameters
    ----------
    freedom : int
        Degrees of freedom; those of one and two are tabled.
    """
    if freedom <= 2:
        return {1: 12.706, 2: 4.303}[freedom]
    z, n = statistics.NormalDist().inv_cdf(0.975), freedom
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )


def _row(name: str, values: list[float], unit: str, *, higher: bool = False) -> Row:
    """Mean with spread."""
    return Row(
        name, statistics.fmean(values), unit, None, "higher" if higher else "lower",
        min(values), max(values),
    )  # fmt: skip
