"""From two files to a video: python examples/offline.py SPEECH IMAGE [OUT] [MODEL]."""

import sys

import skyreels_rt as rt


def main() -> None:
    """Write the video and say how long it took."""
    speech, image, *rest = sys.argv[1:]
    target = rest[0] if rest else "out.mp4"
    engine = rt.Engine.from_pretrained(rest[1] if len(rest) > 1 else "demo")
    made = engine.generate_file(target, speech, image=image)
    sys.stdout.write(f"{target}: {made.num_frames} frames, rtf {made.rtf:.2f}\n")


if __name__ == "__main__":
    main()
