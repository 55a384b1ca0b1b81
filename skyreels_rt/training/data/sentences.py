"""Sentences to speak, put together from word lists written for this package.

A sentence is a row of clauses (statements, questions, numbers, exclamations) with commas, dashes
and full stops between them, which the synthesiser turns into pauses. The split is by clause: the
hash of a clause says on which side it is, so no clause that evaluation hears was trained on.
Syllable strings do the same without meaning, and bring every bilabial before every vowel.
"""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.training.data.phrases import LEXICONS
from skyreels_rt.training.data.speech import check_split

if TYPE_CHECKING:
    from collections.abc import Sequence

    from skyreels_rt.training.data.phrases import Lexicon
    from skyreels_rt.training.data.speech import Split

MIN_DURATION_S, MAX_DURATION_S = 1.0, 15.0
"""Spoken length that a sentence may be asked for, in seconds at 175 words per minute."""

_HELD_OUT_SHARE = 0.2
_SYLLABLES_PER_S = 4.5
_BILABIALS, _VOWELS = ("p", "b", "m"), ("a", "e", "i", "o", "u")
_CONSONANTS = ("p", "b", "m", "f", "v", "t", "d", "n", "s", "l", "k", "g", "r")

_LEXICON_OF = {
    "en": "en",
    "en-us": "en",
    "en-gb-scotland": "en",
    "en-029": "en",
    "de": "de",
    "fr": "fr",
    "fr-be": "fr",
    "es": "es",
    "es-419": "es",
    "it": "it",
    "pt": "pt",
    "pt-br": "pt",
    "nl": "nl",
    "sv": "sv",
    "pl": "pl",
    "cs": "cs",
    "ru": "ru",
    "tr": "tr",
    "fi": "fi",
    "id": "id",
}


class _Dice:
    """Choices from a seed that stay the same in every version of Python."""

    def __init__(self, *key: object) -> None:
        self._rng = random.Random(":".join(str(part) for part in key))

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self._rng.random() < probability

    def between(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self._rng.random()

    def pick(self, items: Sequence[str]) -> str:
        """One of the items."""
        return items[int(self._rng.random() * len(items))]


def clause_split(clause: str) -> Split:
    """Side of the split that a clause or a nonsense word is on.

    Parameters
    ----------
    clause : str
        Lower or upper case, without the punctuation around it.

    Returns
    -------
    {"train", "held_out"}
        By SHA-256 of the lower-case text; one in five is held out.
    """
    digest = hashlib.sha256(clause.strip().lower().encode("utf-8")).digest()
    is_held_out = int.from_bytes(digest[:4], "big") < _HELD_OUT_SHARE * 2**32
    return "held_out" if is_held_out else "train"


def sample_clauses(
    seed: int, language: str, split: Split, *, duration_s: float | None = None
) -> tuple[tuple[str, str], ...]:
    """Clauses of a sentence, each with the punctuation or conjunction after it.

    Parameters
    ----------
    seed : int
        Same seed, same clauses.
    language : str
        One of :data:`skyreels_rt.training.data.speech.LANGUAGES`.
    split : {"train", "held_out"}
        Every clause is on this side.
    duration_s : float, optional
        Spoken length to aim for; drawn from 1-15 s by default.

    Returns
    -------
    tuple of (str, str)
        Clause and what follows it, at least one.

    Raises
    ------
    InvalidArgument
        Unknown language or split, or a length outside 1-15 s.
    """
    check_split(split)
    if language not in _LEXICON_OF:
        raise InvalidArgument(
            "language", expected=f"one of {', '.join(_LEXICON_OF)}", got=repr(language)
        )
    lexicon = LEXICONS[_LEXICON_OF[language]]
    dice = _Dice("sentence", language, split, seed)
    budget = lexicon.characters_per_s * _duration(dice, duration_s)
    clauses: list[tuple[str, str]] = []
    used = 0.0
    is_linked = False
    while True:
        kind = _kind(dice, budget - used, is_linked=is_linked)
        clause = _clause(dice, lexicon, kind)
        while clause_split(clause) != split:
            clause = _clause(dice, lexicon, kind)
        ending = _ending(dice, lexicon, kind)
        is_linked = ending[0] == ","
        clauses.append((clause, ending))
        # A pause takes about as long as four characters.
        used += len(clause) + 4
        if used > budget - 12:
            return tuple(clauses)


def sample_sentence(
    seed: int, language: str, split: Split, *, duration_s: float | None = None
) -> str:
    """Sentence or short paragraph to speak.

    Parameters
    ----------
    seed, language, split, duration_s
        As for :func:`sample_clauses`; the spoken length is met to about a third, at least one
        clause, at 175 words per minute.

    Returns
    -------
    str
        Statements, questions, numbers and exclamations with punctuation.

    Raises
    ------
    InvalidArgument
        Unknown language or split, or a length outside 1-15 s.
    """
    parts: list[str] = []
    is_start = True
    clauses = sample_clauses(seed, language, split, duration_s=duration_s)
    for position, (clause, ending) in enumerate(clauses):
        mark = ending if position < len(clauses) - 1 or ending in ".?!" else "."
        parts.append((clause[:1].upper() + clause[1:] if is_start else clause) + mark)
        is_start = mark[0] in ".?!"
    return " ".join(parts)


def sample_syllables(seed: int, split: Split, *, duration_s: float | None = None) -> str:
    """Nonsense words in which p, b and m meet each of a, e, i, o and u.

    Parameters
    ----------
    seed : int
        Same seed, same words.
    split : {"train", "held_out"}
        Every word is on this side of :func:`clause_split`.
    duration_s : float, optional
        Spoken length to aim for, 1-15 s; never shorter than the fifteen pairs need (about 4 s).

    Returns
    -------
    str
        Words of two to five syllables with commas; any Latin-script language can speak them.

    Raises
    ------
    InvalidArgument
        Unknown split, or a length outside 1-15 s.
    """
    check_split(split)
    dice = _Dice("syllables", split, seed)
    num_syllables = int(_duration(dice, duration_s) * _SYLLABLES_PER_S)
    waiting = [consonant + vowel for consonant in _BILABIALS for vowel in _VOWELS]
    while len(waiting) < num_syllables:
        waiting.append(dice.pick(_CONSONANTS) + dice.pick(_VOWELS))
    words: list[str] = []
    while waiting:
        length = min(int(dice.between(2, 5)), len(waiting))
        chosen = sorted(range(len(waiting)), key=lambda _: dice.between(0, 1))[:length]
        word = "".join(waiting[index] for index in chosen)
        if len(chosen) < 2 or clause_split(word) != split:
            # One more free syllable gives a word that no longer finds its side another chance.
            word += dice.pick(_CONSONANTS) + dice.pick(_VOWELS)
        if clause_split(word) != split:
            continue
        words.append(word)
        waiting = [syllable for index, syllable in enumerate(waiting) if index not in chosen]
    joined = "".join(word + (", " if dice.chance(0.25) else " ") for word in words)
    return joined.strip(", ").capitalize() + ("?" if dice.chance(0.2) else ".")


def _duration(dice: _Dice, duration_s: float | None) -> float:
    if duration_s is None:
        return dice.between(MIN_DURATION_S, MAX_DURATION_S)
    if not MIN_DURATION_S <= duration_s <= MAX_DURATION_S:
        raise InvalidArgument("duration_s", expected="1 to 15 seconds", got=duration_s)
    return duration_s


def _kind(dice: _Dice, room: float, *, is_linked: bool) -> str:
    """Kind of the next clause: short where little room is left, a statement after a conjunction."""
    lot = dice.between(0, 1)
    if is_linked:
        return "number" if lot < 0.2 else "statement"
    if room < 20:
        return "cry"
    if room < 30:
        return "cry" if lot < 0.4 else "question"
    for kind, limit in (("cry", 0.08), ("question", 0.24), ("number", 0.4)):
        if lot < limit:
            return kind
    return "statement"


def _clause(dice: _Dice, lexicon: Lexicon, kind: str) -> str:
    if kind == "cry":
        # Two together, or one alone: enough different ones for both sides of the split.
        first, second = dice.pick(lexicon.cry), dice.pick(lexicon.cry)
        return f"{first}, {second}" if first != second and dice.chance(0.6) else first
    if kind == "question":
        return dice.pick(lexicon.question).format(x=dice.pick(lexicon.thing))
    if kind == "number":
        number = int(10.0 ** dice.between(0.31, 3.6))
        return dice.pick(lexicon.number).format(n=number)
    subject, predicate = dice.pick(lexicon.subject), dice.pick(lexicon.predicate)
    tail = dice.pick(lexicon.tail) if dice.chance(0.7) else ""
    order = (subject, tail, predicate) if lexicon.is_verb_last else (subject, predicate, tail)
    return " ".join(part for part in order if part)


def _ending(dice: _Dice, lexicon: Lexicon, kind: str) -> str:
    if kind == "question":
        return "?"
    if kind == "cry":
        return "!" if dice.chance(0.6) else "."
    if dice.chance(0.4):
        return ", " + dice.pick(lexicon.link)
    return "." if dice.chance(0.75) else ";"
