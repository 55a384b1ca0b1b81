"""The messages of ``/v1/stream``: what a client may say, what it hears, and how it is refused.

The client's first message is JSON, the options of the session::

    {"type": "start", "sample_rate": 16000, "portrait": "ada", "prompt": "", "horizon": 1,
     "seed": 0, "idle": false, "token": "..."}

Instead of ``portrait`` it may say ``"image_bytes": N``; the next message is then the picture,
binary and of exactly that size. After ``started`` it sends binary messages of PCM (signed 16-bit,
mono, little-endian) and JSON commands: ``{"type": "end_audio"}``, ``{"type": "interrupt"}``,
``{"type": "set_prompt", "prompt": "..."}``. The server answers with binary messages, each one
segment of a fragmented MP4, and JSON events: ``started``, ``progress``, ``interrupted``, ``ended``,
``error``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from skyreels_rt.errors import SkyReelsError
from skyreels_rt.media.encoder import AAC_SAMPLE_RATES

SAMPLE_RATES: Final = tuple(rate for rate in AAC_SAMPLE_RATES if 8_000 <= rate <= 48_000)
MAX_TEXT_BYTES: Final = 16_384
MAX_SEED: Final = 2**63 - 1

ValueT = TypeVar("ValueT", bound=str | int | bool)


@dataclass(frozen=True)
class ServeLimits:
    """What one client may use; chosen by who runs the server, never by a request.

    Attributes
    ----------
    max_sessions : int
        Sessions at a time; one more is refused.
    max_seconds : float
        Seconds of speech a session may take.
    max_bytes : int
        Bytes a connection may send.
    max_message_bytes : int
        Bytes of one message, the portrait's included.
    max_horizon : int
        Largest ``horizon`` a client may ask for.
    max_prompt_chars : int
        Longest prompt.
    start_timeout_s, idle_timeout_s, send_timeout_s : float
        Seconds for the first messages, between messages while nothing is being made, and for a
        client to take a message.
    """

    max_sessions: int = 4
    max_seconds: float = 600.0
    max_bytes: int = 128 * 2**20
    max_message_bytes: int = 8 * 2**20
    max_horizon: int = 4
    max_prompt_chars: int = 1_000
    start_timeout_s: float = 10.0
    idle_timeout_s: float = 120.0
    send_timeout_s: float = 30.0


class Refused(SkyReelsError):
    """A client is refused, with a name for programs and the WebSocket's close code.

    Attributes
    ----------
    reason : str
        What the ``error`` event calls it; see :data:`CLOSE_CODES`.
    close_code : int
        Code the socket is closed with.
    """

    code = "refused"

    def __init__(self, reason: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, stage="serve", hint=hint)
        self.reason = reason
        self.close_code = CLOSE_CODES[reason]


CLOSE_CODES: Final = {
    "malformed": 4400,
    "unauthorized": 4401,
    "forbidden_origin": 4403,
    "timeout": 4408,
    "wrong_state": 4409,
    "too_large": 4413,
    "unusable_media": 4415,
    "busy": 4429,
    "internal": 1011,
}


@dataclass(frozen=True)
class StartRequest:
    """The client's first message, checked.

    Attributes
    ----------
    sample_rate : int
        Of the PCM that follows.
    portrait : str or None
        Name of a built-in portrait.
    image_bytes : int or None
        Size of the picture that follows.
    prompt : str
        What to show.
    horizon, seed : int
        As in :class:`skyreels_rt.LiveOptions`.
    idle : bool
        Whether the portrait keeps moving in silence.
    token : str or None
        The server's token, for clients that cannot send a header.
    """

    sample_rate: int
    portrait: str | None
    image_bytes: int | None
    prompt: str
    horizon: int
    seed: int
    idle: bool
    token: str | None


@dataclass(frozen=True)
class Command:
    """A later message: ``end_audio``, ``interrupt`` or ``set_prompt`` with its prompt."""

    name: str
    prompt: str = ""


def parse_start(text: str, limits: ServeLimits) -> StartRequest:
    """Read the first message.

    Raises
    ------
    Refused
        No JSON object, not ``start``, an unknown field, or a value of the wrong kind or range.
    """
    fields = _object(text)
    if fields.pop("type", None) != "start":
        raise Refused("malformed", 'type: expected "start" in the first message.')
    request = StartRequest(
        sample_rate=_integer(fields, "sample_rate", 16_000, 1, 10**6),
        portrait=_optional(fields, "portrait", str),
        image_bytes=_optional(fields, "image_bytes", int),
        prompt=_prompt(fields, limits),
        horizon=_integer(fields, "horizon", 1, 1, limits.max_horizon),
        seed=_integer(fields, "seed", 0, 0, MAX_SEED),
        idle=bool(_optional(fields, "idle", bool)),
        token=_optional(fields, "token", str),
    )
    _refuse_rest(fields)
    if request.sample_rate not in SAMPLE_RATES:
        known = ", ".join(map(str, SAMPLE_RATES))
        raise Refused("malformed", f"sample_rate: expected one of {known}.")
    if request.portrait is not None and request.image_bytes is not None:
        raise Refused("malformed", "portrait, image_bytes: expected one of both.")
    if request.image_bytes is not None:
        if request.image_bytes < 1:
            raise Refused("malformed", "image_bytes: expected 1 or more.")
        if request.image_bytes > limits.max_message_bytes:
            raise Refused(
                "too_large", f"image_bytes: expected at most {limits.max_message_bytes}.",
                hint="Send a smaller picture.",
            )  # fmt: skip
    return request


def parse_command(text: str, limits: ServeLimits) -> Command:
    """Read a later message.

    Raises
    ------
    Refused
        No JSON object, an unknown command, an unknown field or a bad prompt.
    """
    fields = _object(text)
    name = fields.pop("type", None)
    if name == "set_prompt":
        if "prompt" not in fields:
            raise Refused("malformed", "prompt: expected a string.")
        command = Command(name, _prompt(fields, limits))
    elif name in ("end_audio", "interrupt"):
        command = Command(name)
    else:
        raise Refused("malformed", "type: expected end_audio, interrupt or set_prompt.")
    _refuse_rest(fields)
    return command


def error_event(reason: str, message: str, hint: str | None) -> dict[str, Any]:
    """The ``error`` event, sent before the socket is closed."""
    return {"type": "error", "code": reason, "message": message, "hint": hint}


def _object(text: str) -> dict[str, Any]:
    if len(text.encode("utf-8", "surrogatepass")) > MAX_TEXT_BYTES:
        raise Refused("too_large", f"message: expected at most {MAX_TEXT_BYTES} bytes of text.")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise Refused("malformed", "message: expected JSON.") from None
    if not isinstance(value, dict):
        raise Refused("malformed", "message: expected a JSON object.")
    return value


def _optional(fields: dict[str, Any], name: str, kind: type[ValueT]) -> ValueT | None:
    value = fields.pop(name, None)
    if value is None or type(value) is kind:  # exactly: True is an int, too
        return value
    raise Refused("malformed", f"{name}: expected {kind.__name__}.")


def _integer(fields: dict[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = _optional(fields, name, int)
    if value is None:
        return default
    if not low <= value <= high:
        raise Refused("malformed", f"{name}: expected {low} to {high}.")
    return value


def _prompt(fields: dict[str, Any], limits: ServeLimits) -> str:
    prompt = _optional(fields, "prompt", str) or ""
    if len(prompt) > limits.max_prompt_chars:
        raise Refused(
            "too_large", f"prompt: expected at most {limits.max_prompt_chars} characters."
        )
    return prompt


def _refuse_rest(fields: dict[str, Any]) -> None:
    if fields:
        # The name is the client's: it is not repeated at length.
        raise Refused("malformed", f"{sorted(fields)[0][:40]!r}: an unknown field.")
