"""How the published checkpoints of each family are meant to be run, with the source of each number.

A model folder whose ``model_index.json`` says ``"_preset": NAME`` needs neither
``generation_config.json`` nor ``feature_config.json``. BLF's overlap is ours throughout; so is the
grid of audio features, which takes SoulX-FlashTalk's context of eight seconds where upstream
encodes a whole file.
"""

from __future__ import annotations

from dataclasses import dataclass

from skyreels_rt.config import AudioFeatureConfig, GenerationConfig
from skyreels_rt.continuation_config import ContinuationConfig
from skyreels_rt.errors import ModelError

WAV2VEC2_GRID = AudioFeatureConfig(
    feature_rate=25, past=160, step=20, lookahead=20, loudness=-23.0,
    layers=tuple((layer,) for layer in range(1, 13)),
)  # fmt: skip
"""wav2vec2-base at 25 fps: twelve layers of width 768 (MultiTalk ``src/audio_analysis``)."""

WHISPER_TINY_GRID = AudioFeatureConfig()
"""whisper-tiny: five hidden states of width 384 at 50 Hz (MuseTalk, LatentSync, Sonic)."""

WHISPER_LARGE_GRID = AudioFeatureConfig(
    layers=(*(tuple(range(first, first + 8)) for first in (0, 8, 16, 24)), (32,))
)
"""whisper-large-v3: means over four groups of layers and the last (LongCat-Video-Avatar-1.5)."""

NEGATIVE_PROMPT = (
    "bright tones, overexposed, static, blurred details, subtitles, style, works, paintings, "
    "images, static, overall gray, worst quality, low quality, JPEG compression residue, ugly, "
    "incomplete, extra fingers, poorly drawn hands, poorly drawn faces, deformed, disfigured, "
    "misshapen limbs, fused fingers, still picture, messy background, three legs, many people in "
    "the background, walking backwards"
)
"""Of MultiTalk and SkyReels-V3 (``configs/talking_avatar_19B.py``)."""


@dataclass(frozen=True)
class Preset:
    """Settings of one family.

    Attributes
    ----------
    source : str
        Where they are published.
    generation : GenerationConfig
        Shape, windows, schedule, guidance.
    audio_features : AudioFeatureConfig or None
        Grid of the audio encoder; None for models without one.
    """

    source: str
    generation: GenerationConfig
    audio_features: AudioFeatureConfig | None = None


def _multitalk(
    *,
    num_steps: int = 40,
    shift: float = 7.0,
    text: float = 5.0,
    audio: float = 4.0,
    continuation: ContinuationConfig | None,
) -> GenerationConfig:
    """What MultiTalk and its descendants share: 81 frames, the portrait's slot among them."""
    return GenerationConfig(
        height=640,
        width=640,
        window=20,
        num_steps=num_steps,
        shift=shift,
        spacing="to_timestep_1",
        text_guidance_scale=text,
        audio_guidance_scale=audio,
        guidance_form="audio_first",
        reference_mode="leading_slot",
        negative_prompt=NEGATIVE_PROMPT,
        color_correction=1.0,
        continuation=continuation,
    )


PRESETS: dict[str, Preset] = {
    "skyreels-v3-a2v": Preset(
        "SkyworkAI/SkyReels-V3 generate_video.py (28c771e): 4 steps, shift 11, guidance 1 and 1, "
        "81 frames, motion 5, drop 12, 480P",
        _multitalk(
            num_steps=4, shift=11.0, text=1.0, audio=1.0, continuation=ContinuationConfig()
        ),
        WAV2VEC2_GRID,
    ),
    "multitalk": Preset(
        "MeiGen-AI/MultiTalk generate_multitalk.py: 40 steps, shift 7 at 480P, guidance 5 and 4, "
        "motion 25",
        _multitalk(
            continuation=ContinuationConfig(
                motion_frames=25, drop_frames=0, key_frames=0, prompt=None
            )
        ),
        WAV2VEC2_GRID,
    ),
    "infinitetalk": Preset(
        "MeiGen-AI/InfiniteTalk generate_infinitetalk.py: 40 steps, shift 7 at 480P, guidance 5 "
        "and 4; its continuation (the portrait as condition, motion written in) is not offered",
        _multitalk(continuation=None),
        WAV2VEC2_GRID,
    ),
    "fantasytalking": Preset(
        "Fantasy-AMAP/fantasy-talking infer.py: 30 steps, guidance 5 and 5, 23 fps; shift 5 is "
        "that of its DiffSynth pipeline",
        GenerationConfig(
            fps=23, height=512, width=512, window=20, num_steps=30,
            text_guidance_scale=5.0, audio_guidance_scale=5.0, guidance_form="text_first",
            reference_mode="leading_slot",
        ),
        AudioFeatureConfig(past=320, step=40, lookahead=40, layers=((12,),)),
    ),
    "wan2.1-i2v": Preset(
        "Wan-Video/Wan2.1 generate.py: 40 steps, shift 3 at 480P, guidance 5, UniPC, 16 fps",
        GenerationConfig(
            fps=16, window=20, num_steps=40, shift=3.0, solver="unipc",
            text_guidance_scale=5.0, audio_guidance_scale=1.0, reference_mode="leading_slot",
        ),
    ),
    "wan2.1-t2v": Preset(
        "Wan-Video/Wan2.1 generate.py: 50 steps, shift 5, guidance 5, UniPC, 16 fps",
        GenerationConfig(
            fps=16, num_steps=50, solver="unipc",
            text_guidance_scale=5.0, audio_guidance_scale=1.0, reference_mode="none",
        ),
    ),
}  # fmt: skip


def find_preset(name: str) -> Preset:
    """Preset of a family.

    Raises
    ------
    ModelError
        There is none of this name.
    """
    try:
        return PRESETS[name]
    except (KeyError, TypeError) as error:
        raise ModelError(
            f"preset {name!r}: unknown.", stage="load", hint=f"Known: {', '.join(PRESETS)}."
        ) from error
