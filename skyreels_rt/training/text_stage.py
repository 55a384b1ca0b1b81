"""Teaches the text encoder to read captions before there is a picture to paint.

Captions cost nothing to draw, so in a minute the encoder reads more people than the joint stage
shows; there, words matter only where no portrait tells the colours anyway.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from skyreels_rt.training.data.identity import (
    BACKGROUND_COLORS,
    EXPRESSIONS,
    HAIR_COLORS,
    Identity,
    caption,
    sample_identity,
)
from skyreels_rt.training.portrait_model import PortraitModel

LOOKS: dict[str, tuple[str, ...]] = {
    "hair": (*HAIR_COLORS, "bald"),
    "background": tuple(BACKGROUND_COLORS),
    "sex": ("woman", "man"),
    "glasses": ("none", "some"),
}
"""What is read from a caption: kinds of looks and their classes."""


def looks_of(identity: Identity) -> dict[str, str]:
    """Class of a person in every kind of :data:`LOOKS`."""
    return {
        "hair": "bald" if identity.hair_style == "bald" else identity.hair_color,
        "background": identity.background_color,
        "sex": identity.sex,
        "glasses": "none" if identity.glasses == "none" else "some",
    }


class CaptionObjective:
    """Loss of a step: the looks that a linear map reads from the mean of a caption's rows.

    That mean is what a cross-attention that does not yet look anywhere hands to every patch.

    Parameters
    ----------
    model : PortraitModel
        Its text encoder and caption head are used.
    batch_size : int
        Captions of a step.
    seed : int
        Of everything drawn.
    """

    def __init__(self, model: PortraitModel, batch_size: int, *, seed: int = 0) -> None:
        self._model = model
        self._batch_size = batch_size
        self._seed = seed

    def __call__(self, step: int) -> dict[str, Tensor]:
        """``loss`` of step ``step``, and the share of captions misread in any kind of looks."""
        draw = np.random.default_rng([self._seed, 0x7E97, step])
        # Even seeds are the train half of all people.
        people = [sample_identity(2 * int(n)) for n in draw.integers(2**31, size=self._batch_size)]
        moods = draw.integers(len(EXPRESSIONS), size=self._batch_size)
        prompts = [
            caption(person, EXPRESSIONS[mood], seed=int(draw.integers(2**31)))
            for person, mood in zip(people, moods, strict=True)
        ]
        read = self._model.looks(prompts).split([len(names) for names in LOOKS.values()], dim=-1)
        device = self._model.device
        loss = torch.zeros((), device=device)
        right = torch.ones(self._batch_size, dtype=torch.bool, device=device)
        for (kind, names), logits in zip(LOOKS.items(), read, strict=True):
            classes = [names.index(looks_of(person)[kind]) for person in people]
            truth = torch.tensor(classes, device=device)
            loss = loss + F.cross_entropy(logits, truth)
            right &= logits.argmax(-1) == truth
        return {"loss": loss, "misread": 1 - right.float().mean()}
