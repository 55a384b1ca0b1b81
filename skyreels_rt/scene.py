"""What a job shows: its portrait and source video, loaded and checked."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from skyreels_rt.components import Components
from skyreels_rt.conditioning.edit_mask import resolve_edit_mask
from skyreels_rt.conditioning.face import FaceFinder, face_available, face_status
from skyreels_rt.conditioning.portrait import prepare_portrait
from skyreels_rt.conditioning.source_video import SourceTrack
from skyreels_rt.errors import InvalidArgument
from skyreels_rt.job import JobSettings
from skyreels_rt.media.image import ImageInput, load_image
from skyreels_rt.options import SceneOptions

logger = logging.getLogger(__name__)


def load_portrait(
    components: Components, settings: JobSettings, image: ImageInput
) -> NDArray[np.uint8]:
    """Portrait (H, W, 3) in the output's shape, cropped around its face where one can be found.

    Raises
    ------
    InvalidArgument
        The model takes no portrait.
    MediaError
        The image cannot be read.
    """
    _require_portrait_use(components)
    finder = FaceFinder() if face_available() else None
    return _cropped(settings, image, finder)


def load_scene(
    components: Components, settings: JobSettings, options: SceneOptions
) -> tuple[NDArray[np.uint8] | None, SourceTrack | None]:
    """Portrait in the output's shape, and the source track; each None if not given.

    Raises
    ------
    InvalidArgument
        Nothing to show was given, or a mask without a video.
    MediaError
        An input cannot be read.
    """
    image, video = options.get("image"), options.get("video")
    mask = options.get("edit_mask")
    if mask is not None and video is None:
        raise InvalidArgument("edit_mask", expected="a video to edit", got="no video")
    if image is None and video is None and not settings.prompt:
        raise InvalidArgument("image", expected="an image, a video or a prompt", got="none of them")
    mask = "mouth" if mask is None else mask
    needs_face = video is not None and isinstance(mask, str) and mask in ("mouth", "face")
    finder = None
    if needs_face or (image is not None and face_available()):
        finder = FaceFinder()
    portrait = source = None
    if image is not None:
        _require_portrait_use(components)
        portrait = _cropped(settings, image, finder)
    if video is not None:
        from skyreels_rt.media.video_file import open_video

        frame_mask = resolve_edit_mask(mask, settings.height, settings.width, finder)
        rate = settings.fps if isinstance(video, np.ndarray) else None
        source = SourceTrack(
            open_video(video, rate), frame_mask, settings.fps, settings.height, settings.width
        )
    return portrait, source


def _require_portrait_use(components: Components) -> None:
    config = components.transformer.config
    sees_reference = (
        config.condition_channels > 0 and components.generation.reference_mode != "none"
    )
    if not sees_reference and config.image_dim is None:
        raise InvalidArgument(
            "image",
            expected="a model that takes a portrait",
            got="a model without reference and image branch",
            hint="Leave the image out, or load another model.",
        )


def _cropped(
    settings: JobSettings, image: ImageInput, finder: FaceFinder | None
) -> NDArray[np.uint8]:
    if finder is None:
        logger.warning("the portrait is cropped at its centre: %s", face_status())
    return prepare_portrait(load_image(image), settings.height, settings.width, finder=finder)
