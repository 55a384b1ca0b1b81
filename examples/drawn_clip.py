"""Writes one synthetic training clip with its sound: python examples/drawn_clip.py [NUMBER] [FILE].

Needs the [train] extra (espeak-ng speaks, our renderer draws).
"""

import sys
from pathlib import Path

from skyreels_rt.media.video import Video
from skyreels_rt.training.data.triplets import FPS, TripletSource


def main() -> None:
    """Draw clip NUMBER of the held-out half and save it."""
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    target = Path(sys.argv[2] if len(sys.argv) > 2 else "out/drawn_clip.mp4")
    target.parent.mkdir(parents=True, exist_ok=True)
    triplet = TripletSource("held_out", size=256).triplet(number)
    Video(triplet.clip.frames, triplet.audio[:, None], 16_000, FPS).save(target)
    sys.stdout.write(f"{target}: {triplet.caption}\n  says: {triplet.text}\n")


if __name__ == "__main__":
    main()
