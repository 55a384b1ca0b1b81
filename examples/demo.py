"""Lets a drawn portrait talk: the command `make demo`.

Portrait and speech are made here (our renderer draws, espeak-ng speaks: the [train] extra), nothing
is downloaded. The model is the seeded random one, so the picture is noise; the whole path from
sound to file is real.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

import skyreels_rt as rt
from skyreels_rt.training.data.triplets import TripletSource


def main() -> None:
    """Write the video named on the command line, and a strip of its frames beside it."""
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "out/demo.mp4")
    target.parent.mkdir(parents=True, exist_ok=True)
    given = TripletSource("held_out", size=256, duration_s=5.0, difficulty=0.0).triplet(4)
    portrait = given.clip.frames[0]
    engine = rt.Engine.from_pretrained("tiny-random")
    video = engine.generate(
        audio=given.audio, sample_rate=16_000, image=portrait, prompt=given.caption
    )
    video.save(target)
    height, width = video.frames.shape[1:3]
    shown = [np.asarray(Image.fromarray(portrait).resize((width, height)))]
    shown += list(video.frames[:: video.num_frames // 5][:5])
    Image.fromarray(np.concatenate(shown, axis=1)).save(target.with_suffix(".png"))
    sys.stdout.write(
        f"{target}: {video.num_frames} frames, {float(video.duration):.2f} s with sound.\n"
        "The model is the seeded random one (tiny-random): the picture is noise until trained\n"
        "weights are embedded.\n"
    )


if __name__ == "__main__":
    main()
