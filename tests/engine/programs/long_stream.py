"""Streams frames and prints resident memory and sizes of the state: NUM_FRAMES [leak]."""

import json
import os
import sys
from pathlib import Path

import numpy as np

import skyreels_rt as rt
from skyreels_rt.testing.tiny import TinyModel, tiny_components

RATE = 16_000
POINTS = 40


def resident_mib():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main():
    num_frames, kept = int(sys.argv[1]), []
    sizes = {"height": 32, "width": 32, "window": 13, "overlap": 1}
    model = TinyModel().with_generation(**sizes, num_steps=1, audio_guidance_scale=1.0)
    noise = 0.1 * np.random.default_rng(0).standard_normal(5 * RATE).astype(np.float32)
    portrait = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    points, states, done = [], [], 0
    with rt.Engine(tiny_components(model)).open_session(image=portrait) as session:
        while done < num_frames:
            session.push_audio(noise, RATE)
            for chunk in session.frames():
                done += len(chunk.frames)
                if "leak" in sys.argv:
                    kept.append(chunk.frames.copy())
            if done >= num_frames * len(points) / POINTS:
                points.append((done, resident_mib()))
                states.append(len(session.snapshot()))
    sys.stdout.write(json.dumps({"points": points, "sizes": states}))


if __name__ == "__main__":
    main()
