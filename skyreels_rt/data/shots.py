"""Cuts between shots, by PySceneDetect's content detector on shrunk frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from skyreels_rt.data.dependencies import opencv, require
from skyreels_rt.data.shards import FPS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_WIDTH = 256  # PySceneDetect's own default: cuts do not need more


class CutDetector:
    """Tells whether a frame begins a new shot; frames come in order.

    Parameters
    ----------
    threshold : float
        Mean change of hue, saturation and value from which a frame is a cut.

    Raises
    ------
    MissingDependency
        PySceneDetect is not installed.
    """

    def __init__(self, threshold: float) -> None:
        detectors = require("scenedetect.detectors", "scenedetect-headless")
        self._time: Any = require("scenedetect", "scenedetect-headless").FrameTimecode
        self._detector: Any = detectors.ContentDetector(threshold=threshold, min_scene_len=0)
        self._cv = opencv()
        self._index = 0

    def begins_shot(self, frame: NDArray[np.uint8]) -> bool:
        """Take the next frame, shape (H, W, 3), uint8, RGB."""
        cv = self._cv
        height, width = frame.shape[:2]
        scale = min(1.0, _WIDTH / width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = cv.cvtColor(cv.resize(frame, size, interpolation=cv.INTER_AREA), cv.COLOR_RGB2BGR)
        found = self._detector.process_frame(self._time(self._index, fps=float(FPS)), small)
        self._index += 1
        return bool(found)
