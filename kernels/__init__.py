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
    from skyreels_rt.kernels.frames_to_uint8 import frames_to_uint8
    from skyreels_rt.kernels.qk_norm_rope import qk_norm_rope

    __all__ = [
        "AudioFold",
        "Impl",
        "KernelPlan",
        "absorbed_audio_attention",
        "audio_cross_attention",
        "fold_audio_projections",
        "frames_to_uint8",
        "qk_norm_rope",
    ]
else:
    # Someone has the repository root on sys.path. A second copy would register every operator
    # twice, so this one is empty; it cannot raise, because transformers imports whatever is called
    # `kernels` to learn its version. The version is older than any it would use.
    __version__ = "0"
    __path__ = []
