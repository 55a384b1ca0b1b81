"""Engine for audio-conditioned talking portraits.

>>> import skyreels_rt as rt
>>> engine = rt.Engine.from_pretrained("demo")
>>> video = engine.generate(audio="speech.wav", image="face.png")
>>> video.save("out.mp4")

Importing this package loads none of its heavy dependencies; names are resolved on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from skyreels_rt.distributed.parallel import Parallel
    from skyreels_rt.distributed.workers import Timeouts
    from skyreels_rt.engine import Engine, Health
    from skyreels_rt.errors import SkyReelsError
    from skyreels_rt.live.asynchronous import AsyncSession
    from skyreels_rt.live.session import Interruption, LiveSession
    from skyreels_rt.media.video import Video
    from skyreels_rt.models.vae_options import VAEOptions
    from skyreels_rt.offline import GenerationSummary
    from skyreels_rt.options import GenerateOptions, LiveOptions
    from skyreels_rt.quantization import QuantPolicy
    from skyreels_rt.runtime.magcache import MagCache
    from skyreels_rt.runtime.memory import MemoryEstimate
    from skyreels_rt.runtime.step_cache import StepMask
    from skyreels_rt.runtime.teacache import TeaCache
    from skyreels_rt.types import FrameChunk, LoadProgress, Progress
    from skyreels_rt.weights.lora import Lora
    from skyreels_rt.worker_engine import WorkerEngine

__version__ = "0.1.0"

__all__ = [
    "AsyncSession",
    "Engine",
    "FrameChunk",
    "GenerateOptions",
    "GenerationSummary",
    "Health",
    "Interruption",
    "LiveOptions",
    "LiveSession",
    "LoadProgress",
    "Lora",
    "MagCache",
    "MemoryEstimate",
    "Parallel",
    "Progress",
    "QuantPolicy",
    "SkyReelsError",
    "StepMask",
    "TeaCache",
    "Timeouts",
    "VAEOptions",
    "Video",
    "WorkerEngine",
    "__version__",
]

_HOMES = {
    "AsyncSession": "skyreels_rt.live.asynchronous",
    "Engine": "skyreels_rt.engine",
    "FrameChunk": "skyreels_rt.types",
    "GenerateOptions": "skyreels_rt.options",
    "GenerationSummary": "skyreels_rt.offline",
    "Health": "skyreels_rt.engine",
    "Interruption": "skyreels_rt.live.session",
    "LiveOptions": "skyreels_rt.options",
    "LiveSession": "skyreels_rt.live.session",
    "LoadProgress": "skyreels_rt.types",
    "Lora": "skyreels_rt.weights.lora",
    "MagCache": "skyreels_rt.runtime.magcache",
    "MemoryEstimate": "skyreels_rt.runtime.memory",
    "Parallel": "skyreels_rt.distributed.parallel",
    "Progress": "skyreels_rt.types",
    "QuantPolicy": "skyreels_rt.quantization",
    "SkyReelsError": "skyreels_rt.errors",
    "StepMask": "skyreels_rt.runtime.step_cache",
    "TeaCache": "skyreels_rt.runtime.teacache",
    "Timeouts": "skyreels_rt.distributed.workers",
    "VAEOptions": "skyreels_rt.models.vae_options",
    "Video": "skyreels_rt.media.video",
    "WorkerEngine": "skyreels_rt.worker_engine",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
