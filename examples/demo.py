"""Lets a drawn portrait talk: the command `make demo`.

Portrait and speech are made here (our renderer draws, espeak-ng speaks: the [train] extra), from
the half of their world that no training sees; nothing is downloaded. Writes the video, a contact
sheet (.png) and a report (.json) that measures lips and background.
"""

import shlex
import sys
import time
from pathlib import Path

import torch
from PIL import Image

import skyreels_rt as rt
from skyreels_rt.evaluation.clips import still_mask
from skyreels_rt.evaluation.contact_sheet import contact_sheet
from skyreels_rt.evaluation.fidelity import psnr
from skyreels_rt.evaluation.mouth import mouth_opening
from skyreels_rt.evaluation.sync import sync_at
from skyreels_rt.held_out import clip_of
from skyreels_rt.report import Report, Row
from skyreels_rt.training.data.triplets import FPS, TripletSource

SIZE = 256
CLIP = 2004  # not among the clips of `skyreels-rt eval`


def main() -> None:
    """Write the files beside the one named on the command line; a second word names the model."""
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "out/demo.mp4")
    model = sys.argv[2] if len(sys.argv) > 2 else "demo"
    target.parent.mkdir(parents=True, exist_ok=True)
    clip = clip_of(TripletSource("held_out", SIZE, 5.0, 0.0).triplet(CLIP), f"clip {CLIP}")
    engine = rt.Engine.from_pretrained(model)
    start = time.perf_counter()
    video = engine.generate(
        audio=clip.audio,
        sample_rate=clip.sample_rate,
        image=clip.frames[0],
        prompt=clip.caption,
        height=SIZE,
        width=SIZE,
    )
    seconds = time.perf_counter() - start
    video.save(target)
    sheet = contact_sheet([clip.frames, video.frames], ["truth (drawn)", f"made by {model}"], 8)
    Image.fromarray(sheet).save(target.with_suffix(".png"))
    opening = mouth_opening(video.frames, clip.mouth_box)
    still = still_mask(clip.frames, clip.frames[0])
    rows = [
        Row("demo.sync", sync_at(opening, clip.opening_px[: len(opening)]), "correlation",
            better="higher"),
        Row("demo.psnr", psnr(video.frames, clip.frames[: len(opening)], still), "dB",
            better="higher"),
        Row("demo.rtf", seconds * FPS / video.num_frames, "s/s"),
    ]  # fmt: skip
    parts = engine.components
    Report(
        command=f"python {shlex.join(sys.argv)}",
        device=str(parts.device),
        threads=torch.get_num_threads(),
        kernel_plan=parts.plan.to_json(),
        rows=rows,
        details={"model": model, "caption": clip.caption, "num_frames": video.num_frames},
    ).write(target.with_suffix(".json"))
    sys.stdout.write(f"{target}: {video.num_frames} frames, {float(video.duration):.2f} s\n")
    for row in rows:
        sys.stdout.write(f"  {row.name:10} {row.value:6.2f} {row.unit}\n")


if __name__ == "__main__":
    main()
