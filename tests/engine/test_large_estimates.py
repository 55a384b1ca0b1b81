"""SkyReels-V3-A2V in its full size, from a folder of configurations: what it needs where."""

import json

import pytest

from skyreels_rt.estimate import estimate_job
from skyreels_rt.model_folder import PIPELINE_CLASS
from skyreels_rt.options import resolve_settings
from skyreels_rt.pretrained import load_shapes

TRANSFORMER = {
    "dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40, "image_dim": 1280,
    "audio": {
        "feature_layers": 12, "feature_dim": 768, "features_per_frame": 1, "num_tokens": 32,
        "token_dim": 768, "hidden_dim": 512,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tokenizers import Tokenizer, models

    root = tmp_path_factory.mktemp("v3")
    index = {
        "_class_name": PIPELINE_CLASS,
        "_preset": "skyreels-v3-a2v",
        "transformer": ["skyreels_rt", "SkyReelsTransformer"],
        "vae": ["diffusers", "AutoencoderKLWan"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "image_encoder": ["transformers", "CLIPVisionModel"],
        "audio_encoder": ["transformers", "Wav2Vec2Model"],
    }
    (root / "model_index.json").write_text(json.dumps(index))
    for name, config in (
        ("transformer", TRANSFORMER), ("vae", {}), ("text_encoder", {}), ("image_encoder", {}),
        ("audio_encoder", {}),
    ):  # fmt: skip
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(config))
    (root / "tokenizer").mkdir()
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    words.save(str(root / "tokenizer" / "tokenizer.json"))
    return root


def estimate(folder, **options):
    parts = load_shapes(folder, dtype="bfloat16", **options)
    count = sum(weight.numel() for weight in parts.transformer.parameters())
    return count, estimate_job(parts, resolve_settings(parts, {}), 60.0, has_source=False)


def test_the_full_model_and_its_smaller_forms(folder):
    count, full = estimate(folder)
    assert abs(count / 1e9 - 18.88) < 0.01
    assert 37.7e9 < full.weights < 39e9
    _, small = estimate(folder, quantization="fp8")
    assert small.weights < 0.62 * full.weights
    _, away = estimate(folder, offload=True)
    assert away.weights < 0.1 * full.weights
    assert away.weights + away.host == pytest.approx(full.weights, rel=0.06)
    _, both = estimate(folder, quantization="fp8", offload=True)
    assert both.weights < away.weights
