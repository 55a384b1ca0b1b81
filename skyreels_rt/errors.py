"""Every error the library raises on purpose, under one base.

A message says what was wrong with which argument, what was expected, what came, and what to do.
Messages carry no file content and no secrets.
"""

from __future__ import annotations

from typing import ClassVar


class SkyReelsError(Exception):
    """Base of every error raised on purpose.

    Attributes
    ----------
    code : str
        Stable machine-readable name of the kind of error.
    stage : str or None
        Part of the run that failed (``"load"``, ``"audio"``, ``"denoise"`` ...), where known.
    hint : str or None
        One sentence that says what to do about it.
    """

    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, stage: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.stage = stage
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class InvalidArgument(SkyReelsError, ValueError):
    """An argument has a value the call cannot accept.

    Attributes
    ----------
    argument : str
        Name of the offending argument, as the caller wrote it.
    expected, got : str
        What would have been accepted, and what came.
    """

    code = "invalid_argument"

    def __init__(
        self,
        argument: str,
        *,
        expected: str,
        got: object,
        stage: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(f"{argument}: expected {expected}, got {got}.", stage=stage, hint=hint)
        self.argument = argument
        self.expected = expected
        self.got = str(got)


class MediaError(SkyReelsError, ValueError):
    """An image, audio or video input cannot be used: missing, damaged, disguised or too large."""

    code = "media"


class FaceNotFound(MediaError):
    """A face is needed and the detector found none."""

    code = "face_not_found"


class ModelError(SkyReelsError, ValueError):
    """A model folder, its configuration or its name cannot be used."""

    code = "model"


class WeightsMismatch(ModelError):
    """A checkpoint does not hold exactly the tensors that the model needs.

    Attributes
    ----------
    missing, unexpected, misshaped : tuple of str
        Tensor names; ``misshaped`` entries also say both shapes.
    """

    code = "weights_mismatch"

    def __init__(
        self,
        message: str,
        *,
        missing: tuple[str, ...] = (),
        unexpected: tuple[str, ...] = (),
        misshaped: tuple[str, ...] = (),
        hint: str | None = None,
    ) -> None:
        super().__init__(message, stage="load", hint=hint)
        self.missing = missing
        self.unexpected = unexpected
        self.misshaped = misshaped


class MissingDependency(SkyReelsError, ImportError):
    """An optional package is needed for this call and is not installed."""

    code = "missing_dependency"


class UnsupportedKernel(SkyReelsError):
    """An explicitly requested kernel implementation cannot run here; nothing falls back."""

    code = "unsupported_kernel"


class GraphCaptureFailed(SkyReelsError, RuntimeError):
    """A step cannot be recorded as a CUDA graph, and graphs were asked for.

    Attributes
    ----------
    operation : str
        The operation that broke the recording, e.g. ``"aten.nonzero"``.
    """

    code = "graph_capture"

    def __init__(self, message: str, *, operation: str) -> None:
        super().__init__(
            message, stage="denoise", hint='graphs="auto" runs such steps without a graph.'
        )
        self.operation = operation


class NonFinite(SkyReelsError, ArithmeticError):
    """NaN or infinity appeared in an input or inside the run; no frame that holds it came out."""

    code = "non_finite"


class Cancelled(SkyReelsError):
    """The caller cancelled the run."""

    code = "cancelled"


class SessionStateError(SkyReelsError, RuntimeError):
    """A call that a session in its state cannot take: closed, or its audio has ended."""

    code = "session_state"


class QueueFull(SkyReelsError, RuntimeError):
    """More audio is waiting than the session may hold; nothing of the push was taken."""

    code = "queue_full"


class AdmissionRefused(SkyReelsError, RuntimeError):
    """The engine runs as many sessions as it may."""

    code = "admission_refused"


class InvalidMesh(InvalidArgument):
    """Ranks, model and job do not fit the requested axes.

    Attributes
    ----------
    suggestions : tuple of str
        The nearest that fit, such as ``"window=2,ulysses=2"``.
    """

    code = "invalid_mesh"

    def __init__(
        self, argument: str, *, expected: str, got: object, suggestions: tuple[str, ...] = ()
    ) -> None:
        hint = f"Nearest that fit: {'; '.join(suggestions)}." if suggestions else None
        super().__init__(argument, expected=expected, got=got, stage="mesh", hint=hint)
        self.suggestions = suggestions


class PeerFailed(SkyReelsError, RuntimeError):
    """Another rank of the mesh left, or did not answer in time; the mesh is of no more use."""

    code = "peer_failed"


class OutputError(SkyReelsError, OSError):
    """The output file cannot be written; nothing is left under its final name."""

    code = "output"


class OutOfMemory(SkyReelsError, RuntimeError):
    """A job needs more memory than there is; nothing of it is kept, and the engine stays usable."""

    code = "out_of_memory"


class WorkerDied(SkyReelsError, RuntimeError):
    """A worker process ended on its own; its group was ended, too, and takes no more calls.

    Attributes
    ----------
    rank : int
        Which worker.
    signal : int or None
        Signal that ended it (9 is also how the kernel ends what takes too much memory); None
        if it exited.
    exit_code : int or None
        Its exit code; None if a signal ended it.
    """

    code = "worker_died"

    def __init__(self, rank: int, signal: int | None, exit_code: int | None = None) -> None:
        how = f"signal {signal}" if signal is not None else f"exit code {exit_code}"
        super().__init__(
            f"Worker {rank} died ({how}).",
            stage="worker",
            hint="Load the engine again; what the worker last said is on standard error.",
        )
        self.rank = rank
        self.signal = signal
        self.exit_code = exit_code


class WorkerTimeout(SkyReelsError, TimeoutError):
    """A worker gave no sign of life, or got no further; its group was ended.

    Attributes
    ----------
    rank : int
        Which worker.
    seconds : float
        How long nothing came.
    """

    code = "worker_timeout"

    def __init__(self, rank: int, seconds: float, what: str) -> None:
        super().__init__(
            f"Worker {rank} {what} for {seconds:.1f} s.",
            stage="worker",
            hint="Load the engine again; `timeouts` sets how long is waited.",
        )
        self.rank = rank
        self.seconds = seconds


class WorkerFailed(SkyReelsError, RuntimeError):
    """A worker process cannot go on, by an error without a type; an engine starts new ones next."""

    code = "worker_failed"
