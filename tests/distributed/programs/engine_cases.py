"""One rank of an engine over a mesh: the same jobs as alone, live sessions, refusals.

Arguments: folder, rank, world size, and the axes to try as JSON. Writes what it found, by name.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from skyreels_rt import Engine, Parallel
from skyreels_rt.distributed.mesh import open_mesh
from skyreels_rt.errors import AdmissionRefused, Cancelled, InvalidMesh
from skyreels_rt.job import JobSettings
from skyreels_rt.options import resolve_settings
from skyreels_rt.session import Session
from skyreels_rt.testing.tiny import TinyModel, tiny_components

CPU = torch.device("cpu")
RATE = 16_000


def speech(seconds: float) -> np.ndarray:
    time = np.arange(int(seconds * RATE)) / RATE
    return (0.3 * np.sin(1300 * time) * (np.sin(9 * time) > 0)).astype(np.float32)


def face() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)


def settings_of(parts, **options) -> JobSettings:
    return resolve_settings(parts, {"audio_guidance_scale": 2.0, **options})


def drained(session: Session) -> np.ndarray:
    return np.concatenate([chunk.frames for chunk in session.frames()])


def interrupted(parts) -> list[np.ndarray]:
    """A job that is cut, goes on with other speech, is written down and taken up again."""
    settings = settings_of(parts, horizon=2)
    frames = []
    with Session(parts, settings, portrait=face()) as session:
        session.push_audio(speech(2.5), RATE)
        frames += [session.next_chunk().frames for _ in range(3)]
        session.rewind()
        session.push_audio(speech(2.5)[::-1].copy(), RATE)
        frames += [session.next_chunk().frames for _ in range(2)]
        state = session.state()
        frames.append(session.next_chunk().frames)
    with Session.restored(parts, state) as session:
        frames.append(session.next_chunk().frames)
        session.end_audio()
        frames.append(drained(session))
    assert np.array_equal(frames[-3], frames[-2])
    return frames


def job_frames(parts, **options) -> np.ndarray:
    quiet = {"on_progress": lambda state: None, "sample_rate": RATE, "image": face()}
    video = Engine(parts).generate(speech(2.2), **quiet, **options)
    return video.frames, [(run.start, run.stop, run.computed) for run in video.steps]


def refusals(parts) -> dict[str, object]:
    """What a mesh with two window ranks says to jobs that cannot use them."""
    found = {}
    engine = Engine(parts)
    try:
        engine.open_session(image=face())  # horizon 1
    except InvalidMesh as error:
        found["horizon"] = [error.argument, *error.suggestions]
    with engine.open_session(image=face(), horizon=2):
        try:
            engine.open_session(image=face(), horizon=2)
        except AdmissionRefused:
            found["second session"] = True
    rank, asked = parts.mesh.rank, []

    def second_rank_stops() -> bool:
        asked.append(1)
        return rank == 1 and len(asked) > 2

    session = Session(
        parts, settings_of(parts, horizon=2), portrait=face(), is_cancelled=second_rank_stops
    )
    with session:
        session.push_audio(speech(2.2), RATE)
        try:
            session.next_chunk()
        except Cancelled:
            found["cancelled after"] = len(asked)
    found["description"] = engine.describe()
    found["warm-up"] = engine.warmup()
    return found


def main() -> None:
    folder, rank, world_size, axes = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=int(rank), world_size=int(world_size)
    )
    tiny = TinyModel().with_generation(window=5, overlap=2, height=64, width=64, num_steps=2)
    parts = tiny_components(tiny)
    jobs = {"all windows": {"horizon": 9}, "groups": {"horizon": 2, "solver": "unipc"}}
    alone = {name: job_frames(parts, **options) for name, options in jobs.items()}
    cut = interrupted(parts)
    results = {}
    for text in json.loads(axes):
        mesh = open_mesh(Parallel.from_text(text), CPU, timeout_s=60)
        spread = replace(parts, mesh=mesh)
        for name, options in jobs.items():
            frames, steps = job_frames(spread, **options)
            same = frames.shape == alone[name][0].shape and steps == alone[name][1]
            worst = int(np.abs(frames.astype(int) - alone[name][0]).max()) if same else 255
            results[f"{text} {name}"] = worst
        pairs = zip(interrupted(spread), cut, strict=True)
        results[f"{text} interrupted"] = max(
            int(np.abs(a.astype(int) - b).max()) if a.shape == b.shape else 255 for a, b in pairs
        )
        if text == "window=2":
            results["refusals"] = refusals(spread)
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
