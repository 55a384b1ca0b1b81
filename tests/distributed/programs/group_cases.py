"""One rank that denoises groups over many meshes, and compares each with doing it alone.

Arguments: folder, rank, world size, and the cases as JSON. Writes, per case, the largest difference
to one rank, whether the bytes are equal, the bytes sent by axis, and what the formulas say.
"""

import json
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F

from skyreels_rt import Parallel
from skyreels_rt.config import AudioAdapterConfig, TransformerConfig
from skyreels_rt.diffusion.blf import Group, plan_group, window_weights
from skyreels_rt.diffusion.denoise import denoise_group
from skyreels_rt.diffusion.guidance import GuidancePass
from skyreels_rt.diffusion.noise import timeline_noise
from skyreels_rt.diffusion.predictor import LeadingSlot, PromptContext, WindowPredictor
from skyreels_rt.diffusion.schedule import FlowSchedule
from skyreels_rt.diffusion.solvers import make_solver
from skyreels_rt.diffusion.window_share import WindowShare
from skyreels_rt.distributed import traffic, usp
from skyreels_rt.distributed.axis import Axis
from skyreels_rt.distributed.mesh import open_mesh
from skyreels_rt.kernels import KernelPlan
from skyreels_rt.kernels.dense_attention import dense_attention_lse
from skyreels_rt.models.attention import SharedQueryAudio
from skyreels_rt.models.transformer import SkyReelsTransformer
from skyreels_rt.runtime.step_cache import ChangeGate, StepPlan
from skyreels_rt.testing.tiny import randomise

CPU = torch.device("cpu")
NUM_LAYERS, NUM_STEPS, CHANNELS, AUDIO_TOKENS = 2, 3, 16, 4
GUIDANCE = {1: (1.0,), 2: (-1.0, 2.0), 3: (-0.5, -1.0, 2.5)}
SEES = ((False, False), (True, False), (True, True))


def make_model(num_heads: int, head_dim: int, kernels: str, hears: str) -> SkyReelsTransformer:
    config = TransformerConfig(
        in_channels=36, dim=num_heads * head_dim, ffn_dim=64, num_heads=num_heads,
        num_layers=NUM_LAYERS, freq_dim=32, text_dim=24, text_length=8,
        audio=AudioAdapterConfig(
            kind=hears, feature_layers=1, feature_dim=8, num_tokens=AUDIO_TOKENS, token_dim=16,
            hidden_dim=8,
        ),
    )  # fmt: skip
    model = SkyReelsTransformer(config, KernelPlan.choose(CPU, torch.float32, kernels))
    randomise(model, 3)
    return model.eval().requires_grad_(False)


class Job:
    """A group with random conditions, the same on every rank."""

    def __init__(self, case: dict) -> None:
        self.case = case
        shape = {"window": case["window"], "overlap": case["overlap"], "horizon": 99}
        group = plan_group(0, case["length"], True, **shape)
        self.group = Group(0, case.get("pinned", 0), group.stop, group.windows)
        self.model = make_model(
            case["heads"], case.get("head_dim", 8), case.get("kernels", "auto"),
            case.get("hears", "own_query"),
        )  # fmt: skip
        draw = torch.Generator().manual_seed(1)
        self.size = tuple(case["size"])
        length = self.group.length
        self.channels = torch.randn(20, length, *self.size, generator=draw)
        self.tokens = torch.randn(length, AUDIO_TOKENS, 16, generator=draw)
        if case.get("hears") == "shared_query":
            self.tokens[1::3, 1:] = 0  # absent, as before the start of the speech
        prompts = torch.randn(2, 1, 8, 24, generator=draw)
        self.prompt = PromptContext(*(self.model.text_context(prompt) for prompt in prompts))
        self.noise = timeline_noise(0, 0, length, (CHANNELS, *self.size))
        self.pinned = torch.randn(CHANNELS, self.group.num_pinned, *self.size, generator=draw)
        weights = GUIDANCE[case["passes"]]
        sees = SEES[-len(weights) :]
        self.passes = [
            GuidancePass(*pair, weight) for pair, weight in zip(sees, weights, strict=True)
        ]
        self.slot = self.leading_slot(draw) if case.get("slot") else None
        self.steps = {
            None: None,
            "mask": StepPlan((True, False, True)),
            "gate": StepPlan((True, False, False), ChangeGate((0.0, 0.0, 0.0, 1.0, 0.0), 0.5)),
        }[case.get("cache")]

    def leading_slot(self, draw: torch.Generator) -> LeadingSlot:
        """A frame of the portrait in front of every window."""
        latents, noise = torch.randn(2, CHANNELS, 1, *self.size, generator=draw)
        tokens = torch.randn(len(self.group.windows), 1, AUDIO_TOKENS, 16, generator=draw)
        channels = torch.randn(20, 1 + self.case["window"], *self.size, generator=draw)
        return LeadingSlot(latents, noise, channels, tuple(tokens), torch.zeros_like(tokens[0]))

    def run(self, mesh):
        schedule = FlowSchedule(NUM_STEPS, 3.0)
        predictor = WindowPredictor(
            self.model, self.group, self.passes, self.prompt, channels=self.channels,
            tokens=self.tokens, silent_tokens=torch.zeros_like(self.tokens), steps=self.steps,
            slot=self.slot, mesh=mesh,
        )  # fmt: skip
        solver = make_solver(self.case.get("solver", "euler"), schedule)
        latents = denoise_group(
            self.group, predictor, schedule, solver,
            guidance=[one.weight for one in self.passes],
            weights=window_weights(self.group, self.case["overlap"]), noise=self.noise,
            pinned=self.pinned, mesh=mesh,
        )  # fmt: skip
        return latents, predictor

    def predicted_bytes(self, parallel: Parallel, mesh) -> dict[str, int]:
        """What the formulas say this rank sends; without gates, which add their decisions."""
        index = {name: mesh.axis(name).index for name in mesh.sent_bytes}
        place = {name: index.get(name, 0) for name in ("window", "guidance", "ulysses", "ring")}
        case, config = self.case, self.model.config
        plane = CHANNELS * self.size[0] * self.size[1] * 4
        windows = [(w.start, w.stop) for w in self.group.windows]
        counts = traffic.split_evenly(len(windows), parallel.window)
        passes = traffic.split_evenly(case["passes"], parallel.guidance)[place["guidance"]]
        calls = counts[place["window"]] * passes  # of the model, in a step
        frames = case["window"] + (self.slot is not None)
        num_tokens = frames * (self.size[0] // 2) * (self.size[1] // 2)
        shape = traffic.AttentionShape(num_tokens, config.num_heads, config.head_dim, 4)
        computed = NUM_STEPS if self.steps is None else sum(self.steps.computed)
        at = (parallel, place["ulysses"], place["ring"])
        blocks = calls * NUM_LAYERS * computed
        every = {
            "window": NUM_STEPS
            * traffic.window_bytes(windows, parallel, place["window"], case["passes"] * plane)
            + traffic.group_end_bytes(
                windows, parallel, place["window"], plane, num_pinned=self.group.num_pinned
            ),
            "guidance": NUM_STEPS
            * counts[place["window"]]
            * traffic.guidance_bytes(
                case["passes"], parallel, place["guidance"], case["window"] * plane
            ),
            "ulysses": blocks * traffic.ulysses_bytes(shape, *at),
            "ring": blocks * traffic.ring_bytes(shape, *at),
            "sequence": NUM_STEPS
            * calls
            * traffic.sequence_bytes(num_tokens, parallel, index.get("sequence", 0), 64 * 4),
            "pass": 0,
            "world": 0,
        }
        return {name: every[name] for name in mesh.sent_bytes}


def attends_padding(q, k, v, *, backend):
    """Keys and values padded with zeros to a multiple of 8 and attended, as engines have done."""
    pad = (0, 0, 0, -k.shape[2] % 8)
    return dense_attention_lse(q, F.pad(k, pad), F.pad(v, pad), backend=backend)


def merges_evenly(out, lse, other, other_lse):
    """Key sets weighed alike, whatever their log-sum-exp says."""
    return (out + other) / 2, torch.logaddexp(lse, other_lse)


def merges_swapped(out, lse, other, other_lse):
    """Each set with the other's weight."""
    return usp_merge(out, other_lse, other, lse)


def keeps_to_itself(share, velocities):
    """Overlapping windows of other ranks taken for zero."""
    model = next(iter(velocities.values()))
    return [velocities.get(index, torch.zeros_like(model)) for index in share.seen]


def gathers_backwards(axis, x, shapes):
    """Ranks' tensors in the wrong order."""
    return all_gather(axis, x, shapes)[::-1]


def hears_the_next_frame(audio):
    """Each run of tokens with the audio of a frame beside its own."""
    lengths, cuts = zip(*audio_cuts(audio), strict=True)
    return zip(lengths, (replace(one, values=one.values.roll(1, 1)) for one in cuts), strict=True)


usp_merge, all_gather = usp.merge_attention, Axis.all_gather
audio_cuts = SharedQueryAudio.cuts
FAULTS = {
    "padding is attended": (usp, "dense_attention_lse", attends_padding),
    "log-sum-exp is ignored": (usp, "merge_attention", merges_evenly),
    "log-sum-exps are swapped": (usp, "merge_attention", merges_swapped),
    "overlaps are not exchanged": (WindowShare, "exchange", keeps_to_itself),
    "audio is of another frame": (SharedQueryAudio, "cuts", hears_the_next_frame),
    "passes come back in another order": (Axis, "all_gather", gathers_backwards),
}


@contextmanager
def planted(fault):
    """Run with one of FAULTS in the ranks' code."""
    if fault is None:
        yield
        return
    owner, name, wrong = FAULTS[fault]
    right = getattr(owner, name)
    setattr(owner, name, wrong)
    try:
        yield
    finally:
        setattr(owner, name, right)


def main() -> None:
    folder, rank, world_size, cases = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=int(rank), world_size=int(world_size)
    )
    meshes, alone, results = {}, {}, {}
    for case in json.loads(cases):
        parallel = Parallel.from_text(case["parallel"])
        if parallel not in meshes:
            meshes[parallel] = open_mesh(parallel, CPU, timeout_s=120)
        mesh = meshes[parallel]
        same = json.dumps({k: v for k, v in case.items() if k not in ("parallel", "name", "fault")})
        if same not in alone:
            job = Job(case)
            alone[same] = (job, job.run(None))
        job, (expected, lone) = alone[same]
        before = mesh.sent_bytes
        with planted(case.get("fault")):
            latents, predictor = job.run(mesh)
        steps = {window: predictor.computed_steps(window) for window in job.group.windows}
        results[case["name"]] = {
            "difference": float((latents - expected).abs().max()),
            "scale": float(expected.abs().max()),
            "equal": bool(torch.equal(latents, expected)),
            "steps_agree": all(not s or s == lone.computed_steps(w) for w, s in steps.items()),
            "sent": {name: count - before[name] for name, count in mesh.sent_bytes.items()},
            "predicted": job.predicted_bytes(parallel, mesh),
        }
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
