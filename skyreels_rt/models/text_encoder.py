"""Prompt encoders: a small byte-level transformer of our own, and umT5 as Wan2.1 uses it.

Both give ``text_length`` rows of width ``text_dim``, with zeros after the prompt's last token: the
transformer attends to the zero rows too, as Wan2.1 was trained to (Wan-Video/Wan2.1,
``wan/modules/t5.py``).
"""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skyreels_rt.config import ByteTextConfig, config_from_dict, require_positive
from skyreels_rt.errors import InvalidArgument, ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

PAD, START, FIRST_BYTE = 0, 1, 2
"""Token ids of the byte encoder; byte ``b`` is token ``FIRST_BYTE + b``."""

_NUM_TOKENS = FIRST_BYTE + 256
_EMBEDDING_STD = 0.02
_EOS = "</s>"

# The part of ftfy's clean-up that umT5's own NFKC normalisation does not already do.
_STRAIGHT_QUOTES = str.maketrans(
    dict.fromkeys("\u02bc\u2018\u2019\u201a\u201b", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u201f", '"')
)


@runtime_checkable
class TextEncoder(Protocol):
    """What the engine needs of a prompt encoder.

    Attributes
    ----------
    text_dim : int
        Width of the embeddings.
    text_length : int
        Rows of the embeddings, whatever the prompt's length.
    """

    text_dim: int
    text_length: int

    def encode(self, prompt: str) -> Tensor:
        """Embed ``prompt``; shape (text_length, text_dim), zeros after its last token."""
        ...


class ByteTextEncoder(nn.Module):
    """Small pre-norm transformer encoder over UTF-8 bytes with learned positions (ours).

    A start token comes first, so even the empty prompt has one row, and ``text_length`` is
    ``config.max_bytes + 1``.

    Parameters
    ----------
    config : ByteTextConfig
        Sizes.

    Raises
    ------
    InvalidArgument
        ``config.dim`` is not a multiple of ``config.num_heads``.
    """

    def __init__(self, config: ByteTextConfig) -> None:
        super().__init__()
        if config.dim % config.num_heads:
            raise InvalidArgument(
                "dim", expected=f"a multiple of num_heads={config.num_heads}", got=config.dim
            )
        self.config = config
        self.text_dim = config.dim
        self.text_length = config.max_bytes + 1
        self.token_embedding = nn.Embedding(_NUM_TOKENS, config.dim)
        self.position_embedding = nn.Parameter(torch.empty(self.text_length, config.dim))
        self.blocks = nn.ModuleList(
            _EncoderBlock(config.dim, config.num_heads) for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.dim)
        nn.init.normal_(self.token_embedding.weight, std=_EMBEDDING_STD)
        nn.init.normal_(self.position_embedding, std=_EMBEDDING_STD)

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Turn prompts into token ids on the model's device.

        Prompts longer than ``config.max_bytes`` bytes are cut between two characters, and a
        warning is logged.

        Parameters
        ----------
        prompts : sequence of str
            B prompts.

        Returns
        -------
        Tensor, shape (B, text_length), int64
            ``START``, the bytes plus ``FIRST_BYTE``, then ``PAD``.

        Raises
        ------
        InvalidArgument
            A prompt is not text that UTF-8 can express.
        """
        rows = torch.full((len(prompts), self.text_length), PAD, dtype=torch.int64)
        rows[:, 0] = START
        for row, prompt in zip(rows, prompts, strict=True):
            data = self._cut(_utf8(prompt))
            row[1 : 1 + len(data)] = FIRST_BYTE + torch.tensor(list(data), dtype=torch.int64)
        return rows.to(self.position_embedding.device)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed token ids, with gradients.

        Parameters
        ----------
        tokens : Tensor, shape (B, text_length), int64
            Output of :meth:`tokenize`.

        Returns
        -------
        Tensor, shape (B, text_length, text_dim)
            Embeddings, zero where ``tokens`` is ``PAD``.
        """
        given_BL = tokens != PAD
        x_BLD = self.token_embedding(tokens) + self.position_embedding
        for block in self.blocks:
            x_BLD = block(x_BLD, given_BL[:, None, None, :])
        x_BLD = self.norm(x_BLD)
        return cast("Tensor", x_BLD.masked_fill(~given_BL[..., None], 0.0))

    @torch.no_grad()
    def encode(self, prompt: str) -> Tensor:
        """Embed one prompt, without gradients.

        Parameters
        ----------
        prompt : str
            Any text; what is longer than ``config.max_bytes`` bytes is cut with a logged warning.

        Returns
        -------
        Tensor, shape (text_length, text_dim)
            Zeros after the prompt's last byte.

        Raises
        ------
        InvalidArgument
            ``prompt`` is not text that UTF-8 can express.
        """
        return cast("Tensor", self(self.tokenize([prompt]))[0])

    def _cut(self, data: bytes) -> bytes:
        """At most ``max_bytes`` of ``data``, ending between two characters."""
        limit = self.config.max_bytes
        if len(data) <= limit:
            return data
        logger.warning("prompt of %d bytes cut to the %d that the model reads", len(data), limit)
        return data[:limit].decode("utf-8", errors="ignore").encode("utf-8")


class _EncoderBlock(nn.Module):
    """Pre-norm self-attention and MLP over x (B, L, D); the mask says which keys exist."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x_BLD: Tensor, mask: Tensor) -> Tensor:
        """One block; ``mask`` broadcasts to (B, N, L, L)."""
        qkv = self.qkv(self.norm1(x_BLD)).unflatten(-1, (3, self.num_heads, -1))
        q_BNLK, k_BNLK, v_BNLK = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q_BNLK, k_BNLK, v_BNLK, attn_mask=mask)
        x_BLD = x_BLD + self.proj(attended.transpose(1, 2).flatten(2))
        return cast("Tensor", x_BLD + self.fc2(F.gelu(self.fc1(self.norm2(x_BLD)))))


@dataclass(frozen=True)
class UMT5Config:
    """Sizes of a umT5 encoder, under the names of transformers' ``config.json``.

    Only these keys of the file are read. Defaults are those of ``google/umt5-xxl``, which Wan2.1
    uses.
    """

    vocab_size: int = 256384
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: Literal["gated-gelu", "relu"] = "gated-gelu"

    def __post_init__(self) -> None:
        require_positive(self, "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
        require_positive(self, "relative_attention_num_buckets", "layer_norm_epsilon")
        require_positive(self, "relative_attention_max_distance")


def build_umt5(config_json: dict[str, Any]) -> nn.Module:
    """Build transformers' ``UMT5EncoderModel`` without weights and without network.

    Under ``with torch.device("meta")`` nothing is allocated and no random number drawn.

    Parameters
    ----------
    config_json : dict
        Parsed ``config.json`` of the text encoder. Keys beyond the sizes are not looked at:
        some of them (attention implementations, automatic classes) can name code to fetch.

    Returns
    -------
    nn.Module
        The encoder in evaluation mode, without gradients.

    Raises
    ------
    ModelError
        Another kind of model, or a size that is missing its type or range.
    """
    kind = config_json.get("model_type", "umt5")
    if kind != "umt5":
        raise ModelError(f"text encoder: expected model_type 'umt5', got {kind!r}.", stage="load")
    known = {field.name for field in fields(UMT5Config)}
    sizes = {key: value for key, value in config_json.items() if key in known}
    config = config_from_dict(UMT5Config, sizes, where="text encoder config")

    from transformers import UMT5Config as TransformersConfig
    from transformers import UMT5EncoderModel

    model = UMT5EncoderModel(TransformersConfig(**asdict(config), dropout_rate=0.0))
    return cast("nn.Module", model.eval().requires_grad_(False))


class UMT5TextEncoder(nn.Module):
    """umT5 with its tokenizer, prompts cleaned and padded as Wan2.1 does.

    The encoder runs over the prompt's own tokens only. Its positions are relative, so this equals
    running it padded with a mask, in less time.

    Parameters
    ----------
    model : nn.Module
        Encoder from :func:`build_umt5`, with weights, in fp32 or bf16.
    tokenizer_file : Path
        Local ``tokenizer.json``.
    text_length : int
        Rows of the embeddings, end token included; 512 for Wan2.1.

    Raises
    ------
    ModelError
        The tokenizer cannot be read, has no end token, or knows more tokens than the model.
    InvalidArgument
        ``text_length`` below 1, or a model in fp16, whose range umT5's activations leave.
    """

    def __init__(self, model: nn.Module, tokenizer_file: Path, *, text_length: int = 512) -> None:
        super().__init__()
        if text_length < 1:
            raise InvalidArgument("text_length", expected="at least 1", got=text_length)
        embedding = cast("nn.Embedding", cast("Any", model).get_input_embeddings())
        if embedding.weight.dtype == torch.float16:
            raise InvalidArgument(
                "model", expected="a umT5 in float32 or bfloat16", got="float16", stage="load"
            )
        self.model = model
        self.text_dim = embedding.embedding_dim
        self.text_length = text_length
        self._tokenizer, self._eos = _read_tokenizer(tokenizer_file, embedding.num_embeddings)

    def token_ids(self, prompt: str) -> list[int]:
        """Token ids of ``prompt``, cleaned, with the end token, at most ``text_length``.

        Parameters
        ----------
        prompt : str
            Any text; what does not fit is cut before the end token, with a logged warning.

        Returns
        -------
        list of int
            Between 1 and ``text_length`` ids.

        Raises
        ------
        InvalidArgument
            ``prompt`` is not text that UTF-8 can express.
        """
        _utf8(prompt)
        ids = self._tokenizer.encode(clean_prompt(prompt), add_special_tokens=False).ids
        room = self.text_length - 1
        if len(ids) > room:
            logger.warning("prompt of %d tokens cut to the %d that fit", len(ids), room)
        return [*ids[:room], self._eos]

    @torch.no_grad()
    def encode(self, prompt: str) -> Tensor:
        """Embed one prompt, without gradients.

        Parameters
        ----------
        prompt : str
            Any text, the empty one included.

        Returns
        -------
        Tensor, shape (text_length, text_dim), the model's dtype and device
            Zeros after the end token.

        Raises
        ------
        InvalidArgument
            ``prompt`` is not text that UTF-8 can express.
        """
        ids = self.token_ids(prompt)
        device = next(self.model.parameters()).device
        tokens = torch.tensor([ids], dtype=torch.int64, device=device)
        hidden = cast("Tensor", self.model(tokens).last_hidden_state)
        return F.pad(hidden[0], (0, 0, 0, self.text_length - len(ids)))


def clean_prompt(prompt: str) -> str:
    """Clean a prompt the way Wan2.1 does before umT5 (``wan/modules/tokenizers.py``).

    HTML entities are resolved (twice), curly quotes made straight, and every run of white space
    becomes one blank. Wan2.1 also runs ftfy; of its repairs, those that the tokenizer's own
    Unicode normalisation does not cover are the quotes, and damaged encodings, which stay as given.

    Parameters
    ----------
    prompt : str
        Text as the user wrote it.

    Returns
    -------
    str
        Cleaned text, without blanks at its ends.
    """
    text = html.unescape(html.unescape(prompt)).translate(_STRAIGHT_QUOTES)
    return re.sub(r"\s+", " ", text).strip()


def _utf8(prompt: str) -> bytes:
    """UTF-8 bytes of ``prompt``, or InvalidArgument."""
    if not isinstance(prompt, str):
        raise InvalidArgument("prompt", expected="text (str)", got=type(prompt).__name__)
    try:
        return prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidArgument(
            "prompt", expected="valid Unicode text", got=f"a lone surrogate at {error.start}"
        ) from error


def _read_tokenizer(path: Path, vocab_size: int) -> tuple[Tokenizer, int]:
    """Tokenizer of ``path`` with its end token's id, checked against the model's vocabulary."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ModelError(f"{path}: not a readable tokenizer ({error}).", stage="load") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    eos = tokenizer.token_to_id(_EOS)
    if eos is None:
        raise ModelError(f"{path}: the tokenizer has no end token {_EOS}.", stage="load")
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if largest >= vocab_size:
        raise ModelError(
            f"{path}: token ids up to {largest}, but the model knows {vocab_size} tokens.",
            stage="load",
            hint="Use the tokenizer that belongs to this text encoder.",
        )
    return tokenizer, eos
