"""Who is drawn: everything about a portrait that stays the same over a clip, and its caption.

Named colours (``HAIR_COLORS``, ``BACKGROUND_COLORS``, ...) are far apart in RGB, so that the class
can be measured back from pixels. All lengths are in *head units*: 1 is half the height of the face,
the face's centre is the origin, u grows to the right of the frame and v downward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from skyreels_rt.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Color = tuple[int, int, int]

HAIR_COLORS: Mapping[str, Color] = {
    "black": (34, 30, 36),
    "brown": (112, 66, 36),
    "blonde": (228, 190, 106),
    "red": (192, 66, 26),
    "gray": (158, 160, 166),
    "blue": (52, 84, 190),
    "pink": (232, 112, 164),
}
BACKGROUND_COLORS: Mapping[str, Color] = {
    "blue": (74, 116, 196),
    "green": (66, 152, 82),
    "red": (178, 58, 58),
    "yellow": (230, 198, 88),
    "purple": (138, 70, 176),
    "gray": (126, 130, 136),
    "white": (236, 236, 232),
}
CLOTHING_COLORS: Mapping[str, Color] = {
    "white": (226, 226, 222),
    "black": (46, 46, 52),
    "red": (170, 52, 56),
    "blue": (52, 82, 140),
    "green": (66, 118, 82),
    "yellow": (220, 180, 74),
    "purple": (112, 76, 140),
}
EYE_COLORS: Mapping[str, Color] = {
    "brown": (98, 60, 34),
    "blue": (84, 138, 190),
    "green": (92, 142, 92),
    "gray": (128, 140, 150),
    "hazel": (138, 104, 54),
    "dark": (54, 36, 28),
}
# Eight tones from very light to very dark (ours); a skin is a point between two neighbours.
SKIN_TONES: tuple[Color, ...] = (
    (253, 222, 200),
    (245, 206, 176),
    (232, 186, 150),
    (214, 162, 122),
    (188, 132, 94),
    (154, 102, 70),
    (120, 78, 54),
    (92, 60, 44),
)
HAIR_STYLES: Mapping[str, tuple[str, ...]] = {
    "woman": ("short", "fringe", "curly", "afro", "bob", "long", "wavy", "bun"),
    "man": ("bald", "buzz", "short", "side_part", "quiff", "curly", "afro", "long"),
}
GLASSES: tuple[str, ...] = ("none", "round", "square", "horn")
BEARDS: tuple[str, ...] = ("none", "stubble", "moustache", "goatee", "full")
BACKGROUND_KINDS: tuple[str, ...] = ("plain", "gradient", "shapes")
EXPRESSIONS: tuple[str, ...] = ("neutral", "smiling", "surprised", "serious")

_STYLE_WORDS = {
    "buzz": "very short {} hair",
    "short": "short {} hair",
    "fringe": "{} hair with a fringe",
    "side_part": "parted {} hair",
    "quiff": "a {} quiff",
    "curly": "curly {} hair",
    "afro": "a {} afro",
    "bob": "a {} bob",
    "long": "long {} hair",
    "wavy": "wavy {} hair",
    "bun": "{} hair in a bun",
}
_BEARD_WORDS = {
    "stubble": "stubble",
    "moustache": "a moustache",
    "goatee": "a goatee",
    "full": "a full beard",
}
_EXPRESSION_WORDS = {
    "neutral": "",
    "smiling": "smiling",
    "surprised": "looking surprised",
    "serious": "looking serious",
}


@dataclass(frozen=True)
class Identity:
    """Everything about a drawn person that stays the same over a clip.

    Attributes
    ----------
    sex : str
        ``"woman"`` or ``"man"``, as drawn.
    skin : float
        Position in `SKIN_TONES`, 0 (very light) to 7 (very dark); between two is mixed.
    skin_warmth : float
        Tint, -1 (cool) to 1 (warm).
    age : float
        0 (smooth) to 1 (lines around mouth and eyes).
    freckles : float
        Strength, 0 to 1.
    face_width, jaw, chin : float
        Half width of the face (0.68 to 0.84); jaw 0 (tapered) to 1 (square); chin 0 (pointed) to 1.
    ear_size : float
        Scale of the ears around 1.
    hair_style, hair_color : str
        A style of `HAIR_STYLES` and a name of `HAIR_COLORS` (also set for the bald: brows).
    hair_volume, hair_part, hair_length : float
        Volume -1 to 1, side of the parting -1 to 1, length -1 to 1 (for styles that can be long).
    eye_color : str
        A name of `EYE_COLORS`.
    eye_size, eye_spacing, eye_tilt, eye_height : float
        Scale around 1; distance of an eye from the middle line (0.29 to 0.37); tilt in radians;
        height of the eyes (v, around -0.1).
    brow_thickness, brow_arch, brow_tilt : float
        Scale around 1; height of the arch; slope.
    nose_width, nose_length : float
        Scales around 1.
    lip_fullness, mouth_width, lip_red : float
        Scales around 1; redness of the lips 0 to 1.
    glasses, beard : str
        A name of `GLASSES` (with ``glasses_color``, an RGB triple) and of `BEARDS`.
    clothing_color, neckline : str
        A name of `CLOTHING_COLORS`; ``"round"``, ``"vee"`` or ``"collar"``.
    background_kind, background_color : str
        A name of `BACKGROUND_KINDS` and of `BACKGROUND_COLORS`.
    light_angle, light_strength : float
        Where the light comes from (radians from straight above, positive to the right of the
        frame) and how strongly it models the face, 0 to 1.
    head_scale, head_x, head_y : float
        Half height of the face and position of its centre, as shares of the frame.
    detail_seed : int
        Seed of what is too small to be named: strands, freckles, shapes in the background.
    """

    sex: str
    skin: float
    skin_warmth: float
    age: float
    freckles: float
    face_width: float
    jaw: float
    chin: float
    ear_size: float
    hair_style: str
    hair_color: str
    hair_volume: float
    hair_part: float
    hair_length: float
    eye_color: str
    eye_size: float
    eye_spacing: float
    eye_tilt: float
    eye_height: float
    brow_thickness: float
    brow_arch: float
    brow_tilt: float
    nose_width: float
    nose_length: float
    lip_fullness: float
    mouth_width: float
    lip_red: float
    glasses: str
    glasses_color: Color
    beard: str
    clothing_color: str
    neckline: str
    background_kind: str
    background_color: str
    light_angle: float
    light_strength: float
    head_scale: float
    head_x: float
    head_y: float
    detail_seed: int


def check_seed(seed: int) -> None:
    """Refuse a seed that numpy's generators do not take.

    Parameters
    ----------
    seed : int, >= 0
        The seed; a bool is no seed.

    Raises
    ------
    InvalidArgument
        ``seed`` is not an integer, or negative.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise InvalidArgument("seed", expected="an integer >= 0", got=repr(seed))


def _choose(rng: np.random.Generator, names: Sequence[str]) -> str:
    return names[int(rng.integers(len(names)))]


def sample_identity(seed: int) -> Identity:
    """Draw a person; the global random state is neither read nor changed.

    Parameters
    ----------
    seed : int, >= 0
        The same seed gives the same person on every machine.

    Returns
    -------
    Identity
        Hair and background colours are uniform over their classes and independent of all else.

    Raises
    ------
    InvalidArgument
        ``seed`` is not an integer, or negative.
    """
    check_seed(seed)
    rng = np.random.default_rng([seed, 0x1DE])

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    sex = _choose(rng, ("woman", "man"))
    is_man = sex == "man"
    frame = int(rng.integers(20, 70))
    return Identity(
        sex=sex,
        skin=between(0.0, 7.0),
        skin_warmth=between(-1.0, 1.0),
        age=between(0.0, 1.0) ** 2,
        freckles=between(0.3, 1.0) if rng.random() < 0.15 else 0.0,
        face_width=between(0.73, 0.84) if is_man else between(0.69, 0.80),
        jaw=between(0.35, 1.0) if is_man else between(0.0, 0.55),
        chin=between(0.3, 1.0) if is_man else between(0.0, 0.6),
        ear_size=between(0.85, 1.2),
        hair_style=_choose(rng, HAIR_STYLES[sex]),
        hair_color=_choose(rng, tuple(HAIR_COLORS)),
        hair_volume=between(-1.0, 1.0),
        hair_part=between(-1.0, 1.0),
        hair_length=between(-1.0, 1.0),
        eye_color=_choose(rng, tuple(EYE_COLORS)),
        eye_size=between(0.85, 1.05) if is_man else between(0.95, 1.18),
        eye_spacing=between(0.30, 0.36),
        eye_tilt=between(-0.06, 0.14),
        eye_height=between(-0.14, -0.05),
        brow_thickness=between(0.9, 1.5) if is_man else between(0.55, 1.0),
        brow_arch=between(0.02, 0.06) if is_man else between(0.03, 0.09),
        brow_tilt=between(-0.05, 0.015),
        nose_width=between(0.8, 1.3),
        nose_length=between(0.88, 1.12),
        lip_fullness=between(0.7, 1.1) if is_man else between(0.9, 1.4),
        mouth_width=between(0.88, 1.12),
        lip_red=between(0.0, 0.35) if is_man else between(0.2, 1.0),
        glasses=_choose(rng, GLASSES[1:]) if rng.random() < 0.3 else "none",
        glasses_color=(frame, frame // 2 + 10, frame // 2 + 8),
        beard=_choose(rng, BEARDS) if is_man else "none",
        clothing_color=_choose(rng, tuple(CLOTHING_COLORS)),
        neckline=_choose(rng, ("round", "vee", "collar")),
        background_kind=_choose(rng, BACKGROUND_KINDS),
        background_color=_choose(rng, tuple(BACKGROUND_COLORS)),
        light_angle=between(-1.1, 1.1),
        light_strength=between(0.35, 1.0),
        head_scale=between(0.285, 0.335),
        head_x=between(0.46, 0.54),
        head_y=between(0.46, 0.50),
        detail_seed=int(rng.integers(2**31)),
    )


def skin_color(identity: Identity) -> Color:
    """Mix the skin's colour from its tone and warmth.

    Parameters
    ----------
    identity : Identity
        Whose skin.

    Returns
    -------
    tuple of int
        RGB, 0 to 255, before lighting.
    """
    tones = np.asarray(SKIN_TONES, dtype=np.float64)
    position = np.arange(len(tones))
    tint = identity.skin_warmth * np.array([3.0, 0.0, -6.0])
    mixed = [np.interp(identity.skin, position, tones[:, c]) + tint[c] for c in range(3)]
    red, green, blue = (int(np.clip(round(value), 0, 255)) for value in mixed)
    return red, green, blue


def _attributes(identity: Identity) -> list[str]:
    """Name hair, glasses and beard as noun phrases, hair first."""
    found = []
    if identity.hair_style != "bald":
        found.append(_STYLE_WORDS[identity.hair_style].format(identity.hair_color))
    if identity.glasses != "none":
        found.append("glasses")
    if identity.beard != "none":
        found.append(_BEARD_WORDS[identity.beard])
    return found


def _join(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def caption(identity: Identity, expression: str, *, seed: int = 0) -> str:
    """Describe a speaking portrait in one sentence.

    Parameters
    ----------
    identity : Identity
        Who is drawn. Hair colour (unless bald) and background colour are always named, the
        clothing's colour in some phrasings.
    expression : str
        A name of `EXPRESSIONS`.
    seed : int, >= 0
        Chooses the phrasing.

    Returns
    -------
    str
        For example ``"a woman with red hair and glasses speaks, smiling, in front of a blue
        background"``.

    Raises
    ------
    InvalidArgument
        The expression is unknown, or the seed is none.
    """
    if expression not in EXPRESSIONS:
        raise InvalidArgument("expression", expected=f"one of {EXPRESSIONS}", got=repr(expression))
    check_seed(seed)
    rng = np.random.default_rng([seed, 0xCA9])
    person = f"a bald {identity.sex}" if identity.hair_style == "bald" else f"a {identity.sex}"
    attributes = _attributes(identity)
    looks = f"{person} with {_join(attributes)}" if attributes else person
    mood = _EXPRESSION_WORDS[expression]
    behind = f"{identity.background_color} background"
    clothes = f"{identity.clothing_color} clothes"
    said = f", {mood}," if mood else ""
    tail = f", {mood}" if mood else ""
    phrasings = (
        f"{looks} speaks{said} in front of a {behind}",
        f"{looks} is talking to the camera{said} before a {behind}",
        f"portrait of {looks} speaking{tail}, {behind}",
        f"{looks}, wearing {clothes}, speaks{said} in front of a {behind}",
        f"a drawn portrait: {looks} talks{tail}; the background is {identity.background_color}",
    )
    return _choose(rng, phrasings)
