"""The bench of the published size, here at a tiny one: every row, and a floor counted by torch."""

import pytest
import torch
from typer.testing import CliRunner

from skyreels_rt.bench.large_step import (
    FORMS,
    IMAGE_TOKENS,
    V3_A2V,
    LargeShape,
    measure_large_steps,
    step_flops,
)
from skyreels_rt.cli import app
from skyreels_rt.config import AudioAdapterConfig, TransformerConfig, WanVAEConfig
from skyreels_rt.errors import InvalidArgument
from skyreels_rt.kernels import KernelPlan
from skyreels_rt.models.transformer import ContextCache, SkyReelsTransformer
from skyreels_rt.quantization import linear_layers

CPU = torch.device("cpu")
TINY = TransformerConfig(
    in_channels=36, dim=64, ffn_dim=128, num_heads=4, num_layers=2, image_dim=32, freq_dim=32,
    text_dim=32, text_length=16,
    audio=AudioAdapterConfig(feature_layers=2, feature_dim=16, num_tokens=4, token_dim=32),
)  # fmt: skip
SHAPE = LargeShape("tiny", (2, 4, 4), 5, num_steps=3, fps_targets={"fp8": 1e-9})


@pytest.mark.parametrize(
    "peers", [("eager",), pytest.param(("eager", "compiled"), marks=pytest.mark.slow)]
)
def test_every_form_and_window_has_its_rows(peers):
    vae = WanVAEConfig(base_dim=16, num_res_blocks=1)
    report = measure_large_steps(
        command="test", device=CPU, config=TINY, shapes=(SHAPE,), vae=vae, peers=peers
    )
    rows = {row.name: row for row in report.rows}
    for form in FORMS:
        name = f"step.v3-a2v.tiny.{form}"
        seconds, chunk = rows[f"{name}.seconds"], rows[f"{name}.chunk_seconds"]
        assert 0 < seconds.min <= seconds.value <= seconds.max
        assert chunk.min > 3 * seconds.min
        assert rows[f"{name}.chunk_fps"].max == pytest.approx(5 / chunk.min)
        assert 0 < rows[f"{name}.floor_share"].value < 1
    assert rows["step.v3-a2v.tiny.fp8.chunk_fps"].ok is True
    assert report.details["skipped"] == {} or "peer" in report.details["skipped"]
    if not report.details["skipped"]:
        assert all(rows[f"step.v3-a2v.tiny.diffusers_{peer}.seconds"].value > 0 for peer in peers)


def test_the_floor_counts_the_products_of_a_step():
    plan = KernelPlan.choose(CPU, torch.float32, "reference")
    model = SkyReelsTransformer(TINY, plan).eval()
    with torch.inference_mode():
        context = ContextCache(
            model.text_context(torch.ones(1, 16, 32)),
            model.image_context(torch.ones(1, IMAGE_TOKENS, 32)),
            model.audio_context(torch.ones(1, 2, 4, 32)),
        )
        counted = []
        for _, layer in linear_layers(model):
            layer.register_forward_hook(
                lambda own, given, _: counted.append(2 * given[0].numel() * own.out_features)
            )
        model(torch.ones(1, 36, 2, 4, 4), torch.tensor([500.0]), context)
    tokens, keys = 8, 8 + 16 + IMAGE_TOKENS + 4
    attention = 2 * 4 * tokens * keys * TINY.dim  # two blocks; scores and their use, 2 each
    assert step_flops(TINY, (2, 4, 4)) == sum(counted) + attention
    assert step_flops(V3_A2V, (21, 60, 104)) / 788e12 == pytest.approx(2.32, rel=0.1)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(InvalidArgument, match="repeats"):
        measure_large_steps(command="test", device=CPU, repeats=1, config=TINY)
    with pytest.raises(InvalidArgument, match="config"):
        measure_large_steps(command="test", device=CPU, config=TransformerConfig())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here, which would run it")
def test_the_command_says_that_it_needs_a_gpu():
    result = CliRunner().invoke(app, ["bench", "step", "--full"])
    assert result.exit_code != 0
    assert "cuda" in result.output.lower()
