"""Which model family a transformer's checkpoint belongs to, told by the names of its tensors.

The markers are facts about published checkpoints' layouts; each family names the repository whose
module code they were read from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from skyreels_rt.config import AudioKind
from skyreels_rt.errors import ModelError
from skyreels_rt.weights.key_maps import official_key


@dataclass(frozen=True)
class Family:
    """A family of checkpoints.

    Attributes
    ----------
    name : str
        Short name.
    title : str
        Models and the repository of the layout.
    markers : tuple of str
        Prefixes of tensor names, each of which some tensor has.
    absent : tuple of str
        Prefixes that no tensor has.
    audio : {"own_query", "shared_query"} or None
        Kind of the audio adapter; None for a plain video transformer.
    supported : bool
        Whether the engine runs it.
    is_adapter : bool
        Whether the tensors are an addition to another checkpoint.
    """

    name: str
    title: str
    markers: tuple[str, ...]
    absent: tuple[str, ...] = ()
    audio: AudioKind | None = None
    supported: bool = False
    is_adapter: bool = False


_BASE = "patch_embedding.weight"
_OWN_QUERY = "blocks.0.audio_cross_attn.q_linear.weight"
_IMAGE = "blocks.0.cross_attn.k_img.weight"

FAMILIES: tuple[Family, ...] = (
    Family(
        "liveact", "SoulX-LiveAct (Soul-AILab/SoulX-LiveAct)",
        (_OWN_QUERY, "blocks.0.self_attn.memory_proj_k"),
    ),
    Family(
        "longcat-avatar", "LongCat-Video-Avatar (meituan-longcat/LongCat-Video)",
        ("blocks.0.adaLN_modulation.1.weight",),
    ),
    Family(
        "wan2.2-s2v", "Wan2.2-S2V and LiveAvatar (Wan-Video/Wan2.2)",
        ("casual_audio_encoder.", "audio_injector."),
    ),
    Family(
        "omniavatar", "OmniAvatar and LiveTalk (Omni-Avatar/OmniAvatar)", ("audio_cond_projs.0",),
    ),
    Family(
        "echomimic-v3", "EchoMimicV3 (antgroup/echomimic_v3)", ("blocks.0.cross_attn.norm_k_audio",)
    ),
    Family(
        "stableavatar", "StableAvatar (Francis-Rings/StableAvatar)",
        ("blocks.0.cross_attn.k_vocal",),
    ),
    Family("sekotalk", "SekoTalk (ModelTC/LightX2V)", ("ca.0.to_q",), is_adapter=True),
    Family(
        "hunyuan-avatar", "HunyuanVideo-Avatar (Tencent-Hunyuan/HunyuanVideo-Avatar)",
        ("audio_adapter_blocks.0",),
    ),
    Family(
        "vace", "Wan2.1-VACE (Wan-Video/Wan2.1)", ("vace_blocks.0",)
    ),
    Family(
        "multitalk", "MultiTalk, InfiniteTalk, SkyReels-V3-A2V (MeiGen-AI/MultiTalk)",
        (_OWN_QUERY, "audio_proj.proj1_vf.", _BASE), audio="own_query", supported=True,
    ),
    Family(
        "multitalk-adapter", "MultiTalk or InfiniteTalk without its Wan2.1-I2V base",
        (_OWN_QUERY, "audio_proj.proj1_vf."), (_BASE,), audio="own_query", supported=True,
        is_adapter=True,
    ),
    Family(
        "flashhead", "SoulX-FlashHead (Soul-AILab/SoulX-FlashHead)", ("audio_proj.proj1_vf",)
    ),
    Family(
        "fantasy-talking", "FantasyTalking on Wan2.1-I2V (Fantasy-AMAP/fantasy-talking)",
        ("blocks.0.cross_attn.k_audio.weight", "audio_proj.proj.weight", _BASE),
        audio="shared_query", supported=True,
    ),
    Family(
        "fantasy-talking-adapter", "FantasyTalking without its Wan2.1-I2V base",
        ("blocks.0.cross_attn.k_audio.weight", "audio_proj.proj.weight"), (_BASE,),
        audio="shared_query", supported=True, is_adapter=True,
    ),
    Family(
        "wan-i2v", "Wan2.1-I2V (Wan-Video/Wan2.1)", (_BASE, "blocks.0.self_attn.q.", _IMAGE),
        supported=True,
    ),
    Family(
        "wan-t2v", "Wan2.1-T2V (Wan-Video/Wan2.1)", (_BASE, "blocks.0.self_attn.q."), (_IMAGE,),
        supported=True,
    ),
)  # fmt: skip
"""Families told apart, the more particular first: the first whose markers fit is meant."""


def detect_family(names: Iterable[str], *, where: str) -> Family:
    """Family of a checkpoint.

    Parameters
    ----------
    names : iterable of str
        Tensor names, in the official or in diffusers' layout.
    where : str
        Checkpoint named in error messages.

    Returns
    -------
    Family
        One that the engine runs.

    Raises
    ------
    ModelError
        A known family that the engine does not run, or none of those known.
    """
    ours = {official_key(name) for name in names}
    for family in FAMILIES:
        if not all(_any_starts(ours, marker) for marker in family.markers):
            continue
        if any(_any_starts(ours, marker) for marker in family.absent):
            continue
        if not family.supported:
            raise ModelError(
                f"{where}: this is {family.title}, which the engine knows and does not run.",
                stage="load",
                hint=f"It runs {_supported_titles()}.",
            )
        return family
    raise ModelError(
        f"{where}: the tensors belong to no model family known here.",
        stage="load",
        hint=f"Known ones that run: {_supported_titles()}.",
    )


def _any_starts(names: set[str], prefix: str) -> bool:
    return prefix in names or any(name.startswith(prefix) for name in names)


def _supported_titles() -> str:
    return "; ".join(f.title for f in FAMILIES if f.supported and not f.is_adapter)
