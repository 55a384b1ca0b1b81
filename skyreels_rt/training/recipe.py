"""Recipes as data: everything that decides what a trained model becomes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace

from skyreels_rt.config import (
    AudioAdapterConfig,
    AudioFeatureConfig,
    ByteTextConfig,
    GenerationConfig,
    TinyVAEConfig,
    TransformerConfig,
)
from skyreels_rt.errors import InvalidArgument
from skyreels_rt.training.curriculum import PORTRAIT_CURRICULUM, Curriculum, Dropout, Lesson, Mix
from skyreels_rt.training.face_reader import FaceReading
from skyreels_rt.training.frame_pool import CropSizes
from skyreels_rt.training.sizes import ModelSizes, whisper_sizes
from skyreels_rt.training.trainer import Optimisation


@dataclass(frozen=True)
class Distillation:
    """How the few-step model is made.

    Attributes
    ----------
    optimisation : Optimisation
        Schedule of the stage.
    lesson : Lesson
        Tasks and window.
    num_steps : int
        Steps of the student.
    shift : float
        Of its noise levels.
    teacher_steps : int
        Guided steps of the teacher for one of the student's.
    audio_guidance_scale : float
        Of the teacher.
    window: int
        Latents of the student's windows when it runs, if that is less than the teacher's: live
        speech waits less for a short window.
    """

    optimisation: Optimisation
    lesson: Lesson
    num_steps: int = 4
    shift: float = 11.0
    window: int = 7
    teacher_steps: int = 3
    audio_guidance_scale: float = 1.5


HEARING = ("audio_encoder.", "transformer.audio_proj.", "mouth_head.")
"""Names of the parameters that the speech stage trains; they stay as they are afterwards."""

READING = ("text_encoder.", "caption_head.")
"""Names of the parameters that the text stage trains; they stay as they are afterwards."""


@dataclass(frozen=True)
class TextLessons:
    """How the text encoder is prepared.

    Attributes
    ----------
    optimisation : Optimisation
        Schedule of the stage.
    batch_size : int
        Captions of a step.
    """

    optimisation: Optimisation
    batch_size: int = 64


@dataclass(frozen=True)
class SpeechLessons:
    """How the audio encoder is prepared.

    Attributes
    ----------
    optimisation : Optimisation
        Schedule of the stage.
    num_utterances : int
        Training clips whose sound is used; their pictures are not drawn.
    batch_size : int
        Windows of a step.
    """

    optimisation: Optimisation
    num_utterances: int
    batch_size: int = 32


@dataclass(frozen=True)
class Recipe:
    """A training from nothing to the two shipped models.

    Attributes
    ----------
    name : str
        For folders and logs.
    sizes : ModelSizes
        Of the model; ``sizes.generation`` says how it is meant to be run.
    clip_s : float
        Seconds of the clips of the first two stages.
    num_clips, clip_latents : int
        Encoded training clips and their length; at least a window.
    vae : Optimisation
        First stage.
    crops : CropSizes
        Its batches.
    pool : int
        Clips it draws crops from at a time.
    speech : SpeechLessons
        Second stage: the audio encoder learns to tell mouths.
    text : TextLessons
        Third stage: the text encoder learns to read captions.
    flow : Optimisation
        Fourth stage: the transformer.
    flow_shift : float
        Shift of the noise levels that the fourth stage sees, between those of the two models: high,
        so that most steps are spent where the mouth must be heard because it cannot be seen.
    curriculum : Curriculum
        Its tasks.
    reader : FaceReading
        Stage before it: a reader of faces, which the facial-mask loss uses.
    facial_mask : bool
        Weight face, mouth and eyes up, and read the face.
    distillation : Distillation or None
        Last stage.
    seed : int
        Of everything.
    """

    name: str
    sizes: ModelSizes
    clip_s: float
    num_clips: int
    clip_latents: int
    vae: Optimisation
    crops: CropSizes
    pool: int
    speech: SpeechLessons
    text: TextLessons
    reader: FaceReading
    flow: Optimisation
    curriculum: Curriculum
    flow_shift: float = 20.0
    facial_mask: bool = True
    distillation: Distillation | None = None
    seed: int = 0

    @property
    def fingerprint(self) -> str:
        """Short hash of what a running stage must agree on: sizes, clips' length and seed.

        Steps, curriculum and number of clips are left out: a run may be lengthened.
        """
        parts = [asdict(self.sizes), self.clip_s, self.seed]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


_PORTRAITS = Mix(1.0, 0.0, 0.0, 0.0)


def _demo() -> Recipe:
    return Recipe(
        name="demo",
        sizes=ModelSizes(),
        clip_s=3.0,
        num_clips=2400,
        clip_latents=11,
        vae=Optimisation(2900, 2e-3, decay_share=0.45, weight_decay=0.0, ema_decay=0.995),
        crops=CropSizes(),
        pool=64,
        speech=SpeechLessons(
            Optimisation(
                5000, 2e-3, decay_share=0.5, ema_decay=0.99, muon=("audio_encoder.layers.",)
            ),
            num_utterances=15000,
        ),
        text=TextLessons(Optimisation(800, 2e-3, ema_decay=0.99)),
        reader=FaceReading(
            Optimisation(3600, 2e-3, decay_share=0.5, ema_decay=0.99),
            Lesson("faces", 1.0, window=5, batch_size=16, mix=_PORTRAITS, crop=20),
        ),
        flow=Optimisation(
            9000,
            2e-3,
            warmup_steps=50,
            decay_share=0.35,
            ema_decay=0.998,
            muon=("transformer.blocks.",),
        ),
        curriculum=PORTRAIT_CURRICULUM,
        distillation=Distillation(
            Optimisation(
                240,
                3e-4,
                decay_share=0.5,
                ema_decay=0.98,
                muon=("transformer.blocks.",),
            ),
            Lesson("distil", 1.0, window=9, batch_size=3, crop=24),
            teacher_steps=2,
        ),
    )


def _miniature() -> Recipe:
    sizes = ModelSizes(
        transformer=TransformerConfig(
            patch_size=(1, 2, 2),
            dim=64,
            ffn_dim=128,
            num_heads=2,
            num_layers=2,
            freq_dim=64,
            text_dim=32,
            text_length=144,
            prediction="reference_residual",
            audio=AudioAdapterConfig(
                feature_layers=1, feature_dim=32, num_tokens=4, token_dim=32, hidden_dim=64
            ),
        ),
        vae=TinyVAEConfig(
            patch_size=2,
            encoder_dims=(8, 16, 24, 32),
            decoder_dims=(32, 24, 16, 16),
            num_blocks=(1, 1, 1),
        ),
        text=ByteTextConfig(dim=32, num_heads=2, num_layers=1, max_bytes=143),
        audio_features=AudioFeatureConfig(past=72, step=32, lookahead=24, layers=((1,),)),
        whisper=whisper_sizes(d_model=32, num_layers=1, num_heads=2, context=128),
        generation=GenerationConfig(
            height=64, width=64, window=4, overlap=2, num_steps=6, shift=3.0,
            audio_guidance_scale=1.5,
        ),
    )  # fmt: skip
    mini = Lesson("short", 0.5, window=3, batch_size=4, max_difficulty=0.35)
    whole = Lesson("whole windows", 1.0, window=4, batch_size=4)
    return Recipe(
        name="miniature",
        sizes=sizes,
        clip_s=1.5,
        num_clips=12,
        clip_latents=6,
        vae=Optimisation(300, 2e-3, warmup_steps=10, weight_decay=0.0, ema_decay=0.9),
        crops=CropSizes(batch_size=4, num_frames=5, side=32),
        pool=8,
        speech=SpeechLessons(
            Optimisation(60, 2e-3, warmup_steps=10, ema_decay=0.9, muon=("audio_encoder.layers.",)),
            num_utterances=24,
            batch_size=8,
        ),
        text=TextLessons(Optimisation(60, 2e-3, warmup_steps=10, ema_decay=0.9), batch_size=16),
        reader=FaceReading(
            Optimisation(150, 2e-3, warmup_steps=10, ema_decay=0.9),
            Lesson("faces", 1.0, window=3, batch_size=8, mix=_PORTRAITS),
        ),
        flow=Optimisation(80, 2e-3, warmup_steps=10, ema_decay=0.9, muon=("transformer.blocks.",)),
        curriculum=Curriculum((mini, whole)),
        distillation=Distillation(
            Optimisation(60, 1e-3, warmup_steps=4, ema_decay=0.8),
            replace(whole, name="distil"),
            teacher_steps=2,
        ),
    )


RECIPES = {recipe.name: recipe for recipe in (_demo(), _miniature())}
"""Recipes by name: the embedded model's, and a miniature of it that trains in two minutes."""


def find_recipe(name: str) -> Recipe:
    """Recipe called ``name``.

    Raises
    ------
    InvalidArgument
        There is none.
    """
    if name not in RECIPES:
        raise InvalidArgument("recipe", expected=f"one of {sorted(RECIPES)}", got=name)
    return RECIPES[name]


ABLATIONS = ("facial-mask", "curriculum", "dropout")


def ablated(recipe: Recipe, what: str) -> Recipe:
    """``recipe`` without one ingredient.

    Parameters
    ----------
    recipe : Recipe
        What to take from.
    what : {"facial-mask", "curriculum", "dropout"}
        Ingredient.

    Raises
    ------
    InvalidArgument
        Unknown ingredient.
    """
    if what == "facial-mask":
        return replace(recipe, facial_mask=False)
    if what == "curriculum":
        return replace(recipe, curriculum=recipe.curriculum.without_order())
    if what == "dropout":
        none = Dropout(audio=0.0, text=0.0, image=0.0, everything=0.0)
        return replace(recipe, curriculum=replace(recipe.curriculum, dropout=none))
    raise InvalidArgument("what", expected=f"one of {ABLATIONS}", got=what)
