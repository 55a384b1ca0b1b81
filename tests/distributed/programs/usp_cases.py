"""One rank that attends over shared tokens by yunchang and by our own exchange, and compares.

Arguments: folder, rank, world size, and as JSON the kind of device and the axes to try.
``ring`` needs a kernel with a log-sum-exp, which yunchang has none of on a CPU: it is tried as it
is, and with torch's own.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from skyreels_rt import Parallel, errors
from skyreels_rt.distributed import traffic
from skyreels_rt.distributed.mesh import open_mesh
from skyreels_rt.distributed.usp import SequenceShard
from skyreels_rt.distributed.usp_library import USPLibrary, use_library
from skyreels_rt.kernels import AttentionBackend
from skyreels_rt.kernels.dense_attention import dense_attention_lse

SDPA = AttentionBackend.SDPA
DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}
HEADS, HEAD_DIM, TOKENS = 4, 16, 84


def right_kernel(q, k, v, **_):
    """Attention with its log-sum-exp, in yunchang's layout (B, L, N, K)."""
    out, lse = dense_attention_lse(*(x.transpose(1, 2) for x in (q, k, v)))
    return out.transpose(1, 2), lse


def refusal(call) -> list[str]:
    try:
        call()
    except errors.SkyReelsError as error:
        return [error.code, str(error)]
    return ["none", ""]


def compared(mesh) -> dict[str, object]:
    """yunchang's result against ours, and the bytes that it sent against the formulas."""
    draw = torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(2, TOKENS, HEADS * HEAD_DIM, generator=draw) for _ in range(3))
    q, k, v = (x.to(mesh.device, DTYPES[mesh.device.type]) for x in (q, k, v))
    library = SequenceShard(mesh, TOKENS)
    own = slice(library.start, library.stop)
    before = mesh.sent_bytes
    found = library.attend(q[:, own], k[:, own], v[:, own], HEADS, SDPA)
    sent = {name: count - before[name] for name, count in mesh.sent_bytes.items()}
    refused = refusal(lambda: SequenceShard(mesh, TOKENS + 1))
    text = mesh.describe()
    use_library(USPLibrary.TORCH, mesh, torch.float32, HEADS)
    ours = SequenceShard(mesh, TOKENS).attend(q[:, own], k[:, own], v[:, own], HEADS, SDPA)
    parallel = mesh.parallel
    shape = traffic.AttentionShape(TOKENS, HEADS, HEAD_DIM, 2 * q.itemsize)  # a batch of two
    at = (parallel, mesh.axis("ulysses").index, mesh.axis("ring").index)
    every = {
        "ulysses": traffic.ulysses_bytes(shape, *at),
        "ring": traffic.ring_bytes(shape, *at),
    }
    return {
        "difference": float((found - ours).abs().max()),
        "scale": float(ours.abs().max()),
        "sent": {name: sent[name] for name in every if name in sent},
        "predicted": {name: every[name] for name in every if name in sent},
        "uneven tokens": refused,
        "describe": text,
    }


def main() -> None:
    folder, rank, world_size, facts = sys.argv[1:]
    kind, axes = json.loads(facts)
    torch.set_num_threads(1)
    device = torch.device(kind, int(rank)) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo",
        init_method=f"file://{folder}/store",
        rank=int(rank),
        world_size=int(world_size),
    )
    import yunchang.kernels

    wrong_kernel = yunchang.kernels.pytorch_attn_forward
    results = {}
    for text in axes:
        mesh = open_mesh(Parallel.from_text(text), device, timeout_s=60)
        use_library(USPLibrary.AUTO, mesh, DTYPES[kind], HEADS)
        found = {"auto": [mesh.exchange is None, mesh.exchange_note]}
        if kind == "cuda":
            results[text] = found | compared(mesh)
            continue
        asked = (USPLibrary.YUNCHANG, mesh, DTYPES[kind])
        found["3 heads"] = refusal(lambda: use_library(*asked, 3))  # noqa: B023 - called at once
        if mesh.parallel.ring > 1:
            found["as it is"] = refusal(lambda: use_library(*asked, HEADS))  # noqa: B023
            found["left"] = mesh.exchange is None
            yunchang.kernels.pytorch_attn_forward = right_kernel
        use_library(*asked, HEADS)
        results[text] = found | compared(mesh)
        yunchang.kernels.pytorch_attn_forward = wrong_kernel
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
