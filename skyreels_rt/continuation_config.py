"""How a model family continues a video beyond one clip, as configuration."""

from __future__ import annotations

from dataclasses import dataclass

from skyreels_rt.errors import InvalidArgument


@dataclass(frozen=True)
class ContinuationConfig:
    """A family's own way to long videos: clips that start from the last frames of the one before.

    The defaults are those of SkyReels-V3-A2V (SkyworkAI/SkyReels-V3 ``generate_video.py`` and
    ``pipelines/talking_avatar_pipeline.py``).

    Attributes
    ----------
    frames : int
        Frames of a clip, ``1 + 4 k``.
    motion_frames : int
        Last frames of a clip that the next one starts from, ``1 + 4 k``.
    drop_frames : int
        Frames at the end of every clip but the last that are thrown away, a multiple of 4.
    key_frames : int
        Frames at the end of every clip that show, as a goal, one frame of a first clip made for
        this purpose; 0 makes no such clip.
    prompt : str or None
        Prompt of the clips, which takes the place of the user's; None keeps that.
    """

    frames: int = 81
    motion_frames: int = 5
    drop_frames: int = 12
    key_frames: int = 5
    prompt: str | None = "a person is talking"

    def __post_init__(self) -> None:
        for name in ("frames", "motion_frames"):
            if getattr(self, name) < 1 or (getattr(self, name) - 1) % 4:
                raise InvalidArgument(
                    f"continuation.{name}", expected="1 + 4 k", got=getattr(self, name)
                )
        if self.drop_frames < 0 or self.drop_frames % 4 or self.key_frames < 0:
            raise InvalidArgument(
                "continuation.drop_frames, key_frames",
                expected="a multiple of 4, and >= 0",
                got=(self.drop_frames, self.key_frames),
            )
        if self.motion_frames + max(self.drop_frames, self.key_frames) >= self.frames:
            raise InvalidArgument(
                "continuation.frames", expected="more than what is given or dropped",
                got=self.frames,
            )  # fmt: skip

    @property
    def hop(self) -> int:
        """Frames from the start of a clip to that of the next."""
        return self.frames - self.motion_frames - self.drop_frames
