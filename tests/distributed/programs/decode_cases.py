"""One rank of a decoder pipeline, compared with decoding alone.

Arguments: folder, rank, world size, and ``null``. Writes, by VAE, whether every frame was equal.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from skyreels_rt import Parallel
from skyreels_rt.config import TinyVAEConfig, WanVAEConfig
from skyreels_rt.distributed.decode_pipeline import DecodePipeline
from skyreels_rt.distributed.mesh import open_mesh
from skyreels_rt.kernels import KernelPlan
from skyreels_rt.models.tiny_vae import TinyVAE
from skyreels_rt.models.wan_vae import WanVAE
from skyreels_rt.testing.tiny import randomise

CPU = torch.device("cpu")
LENGTH, SIDE = 6, 4


def decoded(pipeline, axis, latents, stop):
    """Frames of the next latent on every rank."""
    before = pipeline.num_done
    video = pipeline.next_frames(stop, lambda n: latents[:, :, n : n + 1])
    shape = (1, 3, 4 if before else 1, 8 * SIDE, 8 * SIDE)
    video = None if video is None else video.clamp(-1, 1).contiguous()
    return axis.broadcast(video, shape, torch.float32, pipeline.last)


def check(vae, axis) -> dict[str, bool]:
    draw = torch.Generator().manual_seed(2)
    latents = torch.randn(1, 16, LENGTH, SIDE, SIDE, generator=draw)
    other = torch.randn(1, 16, LENGTH, SIDE, SIDE, generator=draw)
    turned = torch.cat([latents[:, :, :3], other[:, :, 3:]], dim=2)
    whole, whole_turned = vae.decode(latents), vae.decode(turned)
    pipeline = DecodePipeline(vae, axis)
    # Two groups of latents: the pipeline runs ahead inside each.
    parts = [decoded(pipeline, axis, latents, 4 if n < 4 else LENGTH) for n in range(3)]
    caches = pipeline.caches(8 * SIDE, 8 * SIDE)
    parts += [decoded(pipeline, axis, latents, 4 if n < 4 else LENGTH) for n in (3, 4, 5)]
    found = {"frames": torch.equal(torch.cat(parts, dim=2), whole)}
    pipeline.reset(3, caches)
    again = [decoded(pipeline, axis, latents, LENGTH)]
    found["from caches"] = torch.equal(again[0], parts[3])
    pipeline.go_back(3)  # by one: as after frames that were not finite
    later = [decoded(pipeline, axis, turned, LENGTH) for _ in (3, 4, 5)]
    found["other latents"] = torch.equal(torch.cat(later, dim=2), whole_turned[:, :, 9:])
    pipeline.reset(0, ())
    first = [decoded(pipeline, axis, latents, LENGTH) for _ in range(3)]
    pipeline.go_back(3)  # earlier stages are ahead here
    rest = [decoded(pipeline, axis, turned, LENGTH) for _ in (3, 4, 5)]
    found["turned back"] = torch.equal(torch.cat(first + rest, dim=2), whole_turned)
    return found


def main() -> None:
    folder, rank, world_size, _ = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=int(rank), world_size=int(world_size)
    )
    plan = KernelPlan.choose(CPU, torch.float32)
    tiny = TinyVAEConfig(encoder_dims=(8,) * 4, decoder_dims=(48, 32, 16, 8), num_blocks=(1, 1, 2))
    vaes = {
        "tiny": TinyVAE(tiny),
        "wan": WanVAE(WanVAEConfig(base_dim=8, num_res_blocks=1), plan),
    }
    mesh = open_mesh(Parallel(window=int(world_size)), CPU, timeout_s=60)
    results = {}
    with torch.inference_mode():
        for name, vae in vaes.items():
            randomise(vae, 1)
            results[name] = check(vae.eval().requires_grad_(False), mesh.axis("world"))
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
