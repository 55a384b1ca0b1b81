"""Draws a portrait, makes a speech-like sound, and lets the model talk: the command `make demo`.

Nothing is downloaded. The model is the seeded random one, so the picture is noise; the whole path
from sound to file is real.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

import skyreels_rt as rt

SAMPLE_RATE = 16_000


def draw_portrait(size: int = 512) -> Image.Image:
    """A head-and-shoulders drawing."""
    picture = Image.new("RGB", (size, size), (122, 150, 170))
    draw = ImageDraw.Draw(picture)

    def ellipse(x, y, width, height, colour):
        box = [(x - width / 2) * size, (y - height / 2) * size]
        draw.ellipse([*box, box[0] + width * size, box[1] + height * size], fill=colour)

    ellipse(0.5, 1.02, 0.85, 0.55, (60, 70, 110))
    ellipse(0.5, 0.40, 0.50, 0.60, (70, 45, 30))
    ellipse(0.5, 0.48, 0.40, 0.54, (226, 182, 152))
    for side in (-0.09, 0.09):
        ellipse(0.5 + side, 0.43, 0.075, 0.045, (250, 250, 250))
        ellipse(0.5 + side, 0.43, 0.032, 0.036, (60, 90, 60))
    ellipse(0.5, 0.52, 0.03, 0.06, (205, 155, 128))
    ellipse(0.5, 0.62, 0.13, 0.035, (170, 75, 75))
    return picture.filter(ImageFilter.GaussianBlur(size / 256))


def speech_like_sound(seconds: float = 4.0) -> np.ndarray:
    """A pulse train through two moving resonances, in syllables; float32 at 16 kHz."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    pitch = 120 + 15 * np.sin(2 * np.pi * 0.7 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    first = 500 + 250 * np.sin(2 * np.pi * 2.1 * time)
    second = 1500 + 500 * np.sin(2 * np.pi * 1.3 * time + 1)
    sound = np.zeros_like(time)
    for harmonic in range(1, 30):
        frequency = harmonic * pitch
        gain = sum(1 / (1 + ((frequency - formant) / 120) ** 2) for formant in (first, second))
        sound += gain * np.sin(harmonic * phase)
    syllables = np.clip(np.sin(2 * np.pi * 3.5 * time), 0, 1) ** 0.5
    sound *= syllables
    return (0.5 * sound / np.abs(sound).max()).astype(np.float32)


def main() -> None:
    """Write the video named on the command line, and a strip of its frames beside it."""
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "out/demo.mp4")
    target.parent.mkdir(parents=True, exist_ok=True)
    engine = rt.Engine.from_pretrained("tiny-random")
    video = engine.generate(
        audio=speech_like_sound(),
        sample_rate=SAMPLE_RATE,
        image=draw_portrait(),
        prompt="a person is talking",
    )
    video.save(target)
    strip = np.concatenate(video.frames[:: max(1, video.num_frames // 6)][:6], axis=1)
    Image.fromarray(strip).save(target.with_suffix(".png"))
    sys.stdout.write(
        f"{target}: {video.num_frames} frames, {float(video.duration):.2f} s with sound.\n"
        "The model is the seeded random one (tiny-random): the picture is noise until trained\n"
        "weights are embedded.\n"
    )


if __name__ == "__main__":
    main()
