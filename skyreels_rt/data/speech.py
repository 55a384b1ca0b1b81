"""What the sound holds: speech, noise between it, overload, loudness.

Legend: S samples at 16 kHz, K windows of the speech detector.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from skyreels_rt.audio.loudness import integrated_loudness
from skyreels_rt.data.dependencies import package_file, require
from skyreels_rt.data.measures import SpeechScores
from skyreels_rt.data.shards import SAMPLE_RATE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Samples = NDArray[np.float32]

WINDOW = 512
"""Samples that the speech detector judges at a time: 32 ms."""

_CONTEXT = 64
_SPEECH = 0.5  # probability from which a window counts as speech
_SILENCE_LUFS = -70.0
_MIN_PAUSES = 4  # windows without speech that a noise level is taken from
_FLOOR = 1e-10


class VoiceDetector:
    """Silero VAD on a stream; the network comes from the package ``silero-vad``.

    Raises
    ------
    MissingDependency
        ``silero-vad`` or ``onnxruntime`` is not installed.
    """

    def __init__(self) -> None:
        runtime = require("onnxruntime", "onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = package_file("silero_vad", "silero-vad", "data", "silero_vad.onnx")
        self._network: Any = runtime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self.reset()

    def reset(self) -> None:
        """Forget what was heard: the next samples begin a stream."""
        self._state = np.zeros((2, 1, 128), np.float32)
        self._context = np.zeros(_CONTEXT, np.float32)
        self._held = np.zeros(0, np.float32)

    def push(self, samples: Samples) -> NDArray[np.float32]:
        """Probabilities (K,) of the windows that became complete."""
        self._held = np.concatenate([self._held, samples])
        whole = len(self._held) // WINDOW * WINDOW
        windows, self._held = self._held[:whole].reshape(-1, WINDOW), self._held[whole:]
        return np.array([self._judge(window) for window in windows], np.float32)

    def _judge(self, window: Samples) -> float:
        inputs = {
            "input": np.concatenate([self._context, window])[None],
            "state": self._state,
            "sr": np.array(SAMPLE_RATE, np.int64),
        }
        probability, self._state = self._network.run(None, inputs)
        self._context = window[-_CONTEXT:]
        return float(probability[0, 0])


def speech_scores(samples: Samples, probabilities: NDArray[np.float32]) -> SpeechScores:
    """Measure the sound of a clip.

    Parameters
    ----------
    samples : ndarray, shape (S,), float32
        Mono at 16 kHz.
    probabilities : ndarray, shape (K,), float32
        Of the detector's windows that begin inside the clip.

    Returns
    -------
    SpeechScores
    """
    is_speech = probabilities >= _SPEECH
    return SpeechScores(
        share=float(is_speech.mean()) if len(is_speech) else 0.0,
        snr_db=_snr(samples, is_speech),
        clipped_share=clipped_share(samples),
        loudness_lufs=loudness(samples),
    )


def _snr(samples: Samples, is_speech: NDArray[np.bool_]) -> float | None:
    """Decibels of speech over what is between it; None where there is no speech."""
    count = min(len(is_speech), len(samples) // WINDOW)
    powers = np.square(samples[: count * WINDOW], dtype=np.float64).reshape(count, WINDOW).mean(1)
    speech = powers[is_speech[:count]]
    if not len(speech):
        return None
    pauses = powers[~is_speech[:count]]
    # Without pauses the quietest moments of the speech are the upper bound of the noise.
    noise = np.median(pauses) if len(pauses) >= _MIN_PAUSES else np.percentile(speech, 3)
    return float(10 * np.log10((speech.mean() + _FLOOR) / (noise + _FLOOR)))


def clipped_share(samples: Samples) -> float:
    """Share of samples that lie within a tenth of the loudest level, louder than speech does.

    Overloaded sound has flat tops, and codecs leave them rough: many samples near the loudest.

    Parameters
    ----------
    samples : ndarray, shape (S,), float32
        Mono sound.
    """
    sizes = np.abs(samples)
    if not len(sizes):
        return 0.0
    top = float(np.percentile(sizes, 99.95))
    if top < 1e-3:
        return 0.0
    return float((sizes >= 0.9 * top).mean())


def loudness(samples: Samples) -> float:
    """Gated loudness after ITU-R BS.1770.

    Parameters
    ----------
    samples : ndarray, shape (S,), float32
        Mono at 16 kHz.

    Returns
    -------
    float
        LUFS; -70 for silence or less than 0.4 s.
    """
    return max(_SILENCE_LUFS, integrated_loudness(samples, SAMPLE_RATE))
