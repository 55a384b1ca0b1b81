"""How a job is spread over ranks, as four numbers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

from skyreels_rt.config import TransformerConfig
from skyreels_rt.errors import InvalidArgument

if TYPE_CHECKING:
    from skyreels_rt.distributed.cost_model import Hardware, StepShape
    from skyreels_rt.distributed.links import Links


class LoadedModel(Protocol):
    """An engine, as :meth:`Parallel.suggest` sees it."""

    @property
    def transformer_config(self) -> TransformerConfig:
        """Sizes of the transformer."""

    def measure_links(self) -> Links:
        """What the links between its ranks reach."""


@dataclass(frozen=True)
class Parallel:
    """Ranks along each axis of the mesh; their product is the number of ranks.

    Axes are listed from the one that sends least to the one that sends most, and ranks are laid
    out in this order, the last axis fastest: neighbours in ``ring`` and ``ulysses`` are
    neighbours in rank, so they share a machine where they can.

    Attributes
    ----------
    window : int
        Ranks that the BLF windows of a group are dealt to. Only overlaps travel, once a step.
    guidance : int
        Ranks that the guidance passes of a step are dealt to, 1 to 3. Velocities travel.
    ulysses : int
        Ranks that share the tokens of one pass and swap them for heads in self-attention
        (DeepSpeed Ulysses, arXiv 2309.14509).
    ring : int
        Ranks that share the tokens of one pass and hand keys and values around (Ring Attention,
        arXiv 2310.01889).

    Raises
    ------
    InvalidArgument
        A number is not an integer >= 1, or ``guidance`` is more than the three passes there are.
    """

    window: int = 1
    guidance: int = 1
    ulysses: int = 1
    ring: int = 1

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidArgument(
                    f"parallel.{name}", expected="an integer >= 1", got=repr(value)
                )
        if self.guidance > 3:
            raise InvalidArgument(
                "parallel.guidance",
                expected="1 to 3: a step has no more passes",
                got=self.guidance,
            )

    @classmethod
    def suggest(
        cls,
        model: TransformerConfig | LoadedModel,
        shape: StepShape,
        num_gpus: int,
        *,
        hardware: Hardware | None = None,
        measure: bool = False,
    ) -> Parallel:
        """The mesh that :mod:`skyreels_rt.distributed.cost_model` predicts to be fastest.

        Parameters
        ----------
        model : TransformerConfig or Engine
            Sizes of the transformer.
        shape : StepShape
            Sizes of a step; :meth:`Engine.step_shape` gives those of a job.
        num_gpus : int
            Ranks.
        hardware : Hardware, optional
            GPUs and links; H200s by default.
        measure : bool
            Measure the links between the engine's ranks, in place of those of ``hardware``. Under
            ``torchrun`` every rank must ask.

        Raises
        ------
        InvalidMesh
            The step cannot be spread over so many.
        InvalidArgument
            There are no ranks to measure between.
        """
        from skyreels_rt.distributed.cost_model import H200, fastest

        known, config = hardware or H200, model
        if isinstance(config, TransformerConfig):
            if measure:
                raise InvalidArgument("measure", expected="an engine with ranks", got="a config")
        else:
            known = known.over(config.measure_links()) if measure else known
            config = config.transformer_config
        return fastest(config, shape, num_gpus, known)[0].parallel

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return math.prod(asdict(self).values())

    @property
    def sequence(self) -> int:
        """Ranks that share the tokens of one pass."""
        return self.ulysses * self.ring

    def to_dict(self) -> dict[str, int]:
        """JSON data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Parallel:
        """Make what :meth:`to_dict` gave; axes that are not named are 1.

        Raises
        ------
        InvalidArgument
            An unknown axis or a number out of its range.
        """
        known = [field.name for field in fields(cls)]
        for name in data:
            if name not in known:
                raise InvalidArgument("parallel", expected=", ".join(known), got=repr(name))
        return cls(**data)

    @classmethod
    def from_text(cls, text: str) -> Parallel:
        """Read ``"window=2,ulysses=4"``, the form of the command line; the inverse of ``str``.

        Raises
        ------
        InvalidArgument
            The text has another form, an unknown axis or a number out of its range.
        """
        sizes: dict[str, Any] = {}
        for part in filter(None, text.replace(" ", "").split(",")):
            name, _, size = part.partition("=")
            if name in sizes or not (size.isascii() and size.isdigit()):
                raise InvalidArgument(
                    "parallel", expected="axes such as 'window=2,ulysses=4'", got=repr(text)
                )
            sizes[name] = int(size)
        return cls.from_dict(sizes)

    def __str__(self) -> str:
        return ",".join(f"{name}={size}" for name, size in asdict(self).items() if size > 1)
