"""Program: what a process has set, before the package is imported and after it ran. Prints JSON.

Libraries of others are imported first: what they set is theirs.
"""

import asyncio
import atexit
import decimal
import faulthandler
import gc
import hashlib
import json
import locale
import logging
import multiprocessing
import os
import random
import resource
import signal
import socket
import sys
import tempfile
import threading
import warnings
from pathlib import Path

import av
import numpy as np
import PIL.Image
import safetensors.torch
import soxr
import torch
import transformers.models.whisper.modeling_whisper as whisper


def digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def handlers() -> dict[str, str]:
    known = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
    return {str(number): repr(signal.getsignal(number)) for number in known}


def settings() -> dict[str, object]:
    root, backends = logging.getLogger(), torch.backends
    tiny = torch.tensor([1e-40])
    return {
        "torch default dtype": str(torch.get_default_dtype()),
        "torch default device": str(torch.get_default_device()),
        "torch threads": torch.get_num_threads(),
        "torch inter-op threads": torch.get_num_interop_threads(),
        "torch gradients": torch.is_grad_enabled(),
        "torch inference mode": torch.is_inference_mode_enabled(),
        "torch anomaly detection": torch.is_anomaly_enabled(),
        "torch deterministic": torch.are_deterministic_algorithms_enabled(),
        "torch deterministic warnings": torch.is_deterministic_algorithms_warn_only_enabled(),
        "torch matmul precision": torch.get_float32_matmul_precision(),
        "torch denormals": bool((tiny * 1.0 > 0).item()),
        "torch print options": repr(torch._tensor_str.PRINT_OPTS),
        "torch sharing": torch.multiprocessing.get_sharing_strategy(),
        "torch random state": digest(torch.get_rng_state().numpy().tobytes()),
        "torch CUDA begun": torch.cuda.is_initialized(),
        "TF32 matmul": backends.cuda.matmul.allow_tf32,
        "reduced bf16": backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        "reduced fp16": backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
        "flash SDPA": backends.cuda.flash_sdp_enabled(),
        "efficient SDPA": backends.cuda.mem_efficient_sdp_enabled(),
        "cuDNN SDPA": backends.cuda.cudnn_sdp_enabled(),
        "math SDPA": backends.cuda.math_sdp_enabled(),
        "cuDNN": backends.cudnn.enabled,
        "cuDNN TF32": backends.cudnn.allow_tf32,
        "cuDNN benchmark": backends.cudnn.benchmark,
        "cuDNN deterministic": backends.cudnn.deterministic,
        "oneDNN": backends.mkldnn.enabled,
        "NumPy random state": digest(
            (np.random.get_state()[1].tobytes(), np.random.get_state()[2:])
        ),
        "NumPy errors": repr(np.geterr()),
        "NumPy print options": repr(np.get_printoptions()),
        "random state": digest(random.getstate()),
        "start method": multiprocessing.get_start_method(allow_none=True),
        "signal handlers": handlers(),
        "root logger": [root.level, [repr(one) for one in root.handlers], root.manager.disable],
        "logging errors": logging.raiseExceptions,
        "logging class": repr(logging.getLoggerClass()),
        "warnings filters": [repr(one) for one in warnings.filters],
        "warnings shown by": repr(warnings.showwarning),
        "environment": dict(os.environ),
        "working directory": str(Path.cwd()),
        "umask": umask(),
        "limits": [resource.getrlimit(one) for one in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS)],
        "niceness": os.nice(0),
        "hooks": [repr(sys.excepthook), repr(threading.excepthook), repr(sys.unraisablehook)],
        "streams": [repr(sys.stdin), repr(sys.stdout), repr(sys.stderr)],
        "recursion limit": sys.getrecursionlimit(),
        "switch interval": sys.getswitchinterval(),
        "trace": [repr(sys.gettrace()), repr(sys.getprofile())],
        "import path": list(sys.path),
        "locale": locale.setlocale(locale.LC_ALL),
        "decimal": repr(decimal.getcontext()),
        "garbage collector": [gc.isenabled(), gc.get_threshold(), gc.get_debug()],
        "socket timeout": socket.getdefaulttimeout(),
        "fault handler": faulthandler.is_enabled(),
        "event loop policy": repr(asyncio.get_event_loop_policy()),
        "exit functions": atexit._ncallbacks(),
        "temporary folder": tempfile.tempdir,
        "picture limit": PIL.Image.MAX_IMAGE_PIXELS,
    }


def changed(before: dict[str, object]) -> list[str]:
    after = settings()
    return [
        f"{name}: {before[name]} -> {after[name]}" for name in before if before[name] != after[name]
    ]


def use_everything(folder: Path) -> None:
    import skyreels_rt as rt

    engine = rt.Engine.from_pretrained("tiny-random")
    speech = 0.1 * np.random.default_rng(0).standard_normal(32_000).astype(np.float32)
    face = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    engine.generate(speech, sample_rate=16_000, image=face).save(folder / "out.mp4")
    with engine.open_session(image=face) as session:
        session.push_audio(speech, 16_000)
        session.end_audio()
        sum(len(chunk.frames) for chunk in session)
        with engine.restore_session(session.snapshot()):
            pass

    async def talk() -> None:
        async with engine.open_session(image=face) as session:
            await session.push_audio(speech, 16_000)
            await session.end_audio()
            async for _ in session:
                pass

    asyncio.run(talk())


def plants() -> dict[str, object]:
    """Things that a careless package does, each with the setting that shows it."""
    return {
        "torch threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
        "torch random state": lambda: torch.manual_seed(torch.initial_seed() + 1),
        "cuDNN benchmark": lambda: setattr(torch.backends.cudnn, "benchmark", True),
        "root logger": lambda: logging.basicConfig(level=logging.DEBUG),
        "warnings filters": lambda: warnings.simplefilter("ignore"),
        "environment": lambda: os.environ.update(TOKENIZERS_PARALLELISM="false"),
        "signal handlers": lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
    }


def main() -> None:
    assert av and safetensors.torch and soxr and whisper
    asyncio.run(asyncio.sleep(0))  # the first loop of a process sets a policy
    tempfile.gettempdir()
    before = settings()
    with tempfile.TemporaryDirectory() as name:
        use_everything(Path(name))
    found = {"settings": len(before), "changed": changed(before), "missed": []}
    for name, plant in plants().items():
        plant()
        if not any(line.startswith(f"{name}: ") for line in changed(before)):
            found["missed"].append(name)
    sys.stdout.write(json.dumps(found))


main()
