"""Operators of the engine, imported as :mod:`skyreels_rt.kernels`.

Each operator is a stem: ``<op>.py`` (contract and dispatch), ``reference/<op>.py`` (the
specification in eager torch, also its fp64 oracle and its gradient), ``csrc/cpu/<op>.cpp`` and
``csrc/cuda/<op>.cu`` where they exist, ``tests/kernels/test_<op>.py``.
"""

if __name__ == "skyreels_rt.kernels":
    from skyreels_rt.kernels._select import Impl, KernelPlan
    from skyreels_rt.kernels.absorbed_audio_attention import (
        AudioFold,
        absorbed_audio_attention,
        fold_audio_projections,
    )
    from skyreels_rt.kernels.audio_cross_attention import audio_cross_attention
    from skyreels_rt.kernels.blf_step import blf_step, blf_velocity
    from skyreels_rt.kernels.causal_conv3d import causal_conv3d
    from skyreels_rt.kernels.dense_attention import AttentionBackend, dense_attention
    from skyreels_rt.kernels.frames_to_uint8 import frames_to_uint8
    from skyreels_rt.kernels.gate_residual_norm_modulate import gate_residual_norm_modulate
    from skyreels_rt.kernels.gate_residual_norm_modulate_quantize import (
        gate_residual_norm_modulate_quantize,
    )
    from skyreels_rt.kernels.norm_modulate import norm_modulate
    from skyreels_rt.kernels.norm_modulate_quantize import norm_modulate_quantize
    from skyreels_rt.kernels.qk_norm_rope import qk_norm_rope
    from skyreels_rt.kernels.quantize_rows import quantize_rows
    from skyreels_rt.kernels.residual_apply import residual_apply
    from skyreels_rt.kernels.residual_store import residual_store
    from skyreels_rt.kernels.rms_norm_silu import rms_norm_silu
    from skyreels_rt.kernels.teacache_gate import teacache_gate

    __all__ = [
        "AttentionBackend",
        "AudioFold",
        "Impl",
        "KernelPlan",
        "absorbed_audio_attention",
        "audio_cross_attention",
        "blf_step",
        "blf_velocity",
        "causal_conv3d",
        "dense_attention",
        "fold_audio_projections",
        "frames_to_uint8",
        "gate_residual_norm_modulate",
        "gate_residual_norm_modulate_quantize",
        "norm_modulate",
        "norm_modulate_quantize",
        "qk_norm_rope",
        "quantize_rows",
        "residual_apply",
        "residual_store",
        "rms_norm_silu",
        "teacache_gate",
    ]
else:
    # Someone has the repository root on sys.path. A second copy would register every operator
    # twice, so this one is empty; it cannot raise, because transformers imports whatever is called
    # `kernels` to learn its version. The version is older than any it would use.
    __version__ = "0"
    __path__ = []
