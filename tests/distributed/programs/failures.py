"""One of two ranks of a group that goes wrong.

Arguments: folder, rank, world size, and what goes wrong, one after the other. Writes the error that
came out each time, and after how many seconds.
"""

import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from skyreels_rt import Parallel
from skyreels_rt.diffusion.blf import plan_group, window_weights
from skyreels_rt.diffusion.denoise import denoise_group
from skyreels_rt.diffusion.noise import timeline_noise
from skyreels_rt.diffusion.schedule import FlowSchedule
from skyreels_rt.diffusion.solvers import make_solver
from skyreels_rt.distributed.mesh import open_mesh
from skyreels_rt.errors import SkyReelsError


def failed_group(mesh, rank: int, fault: str) -> dict:
    """Error of a group in which rank 1 does what ``fault`` says."""
    group = plan_group(0, 8, True, window=5, overlap=2, horizon=9)
    schedule = FlowSchedule(3, 3.0)

    def predict(window, latents, step, timestep):
        if rank == 1 and step == 1:
            if fault == "leaves":
                sys.exit(0)
            if fault == "hangs":
                time.sleep(8)
            if fault == "not finite":
                return torch.full_like(latents, torch.nan)[None]
        return latents[None]

    start, caught = time.monotonic(), {}
    try:
        denoise_group(
            group, predict, schedule, make_solver("euler", schedule), guidance=[1.0],
            weights=window_weights(group, 2), noise=timeline_noise(0, 0, 8, (2, 2, 2)), mesh=mesh,
            is_cancelled=mesh.agreed(lambda: fault == "cancelled" and rank == 1),
        )  # fmt: skip
    except SkyReelsError as error:
        caught = {"code": error.code, "message": str(error)}
    return {**caught, "seconds": time.monotonic() - start}


def main() -> None:
    folder, number, world_size, faults = sys.argv[1:]
    rank = int(number)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=int(world_size)
    )
    mesh = open_mesh(Parallel(window=2), torch.device("cpu"), timeout_s=2.0)
    results = {fault: failed_group(mesh, rank, fault) for fault in json.loads(faults)}
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
