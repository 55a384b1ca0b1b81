"""Samples in WebDataset tar shards: one format for real clips and for drawn ones.

A sample ``key`` is a group of members: ``key.mp4`` (H.264) or ``key.mkv`` (FFV1, lossless),
``key.wav`` (16 kHz mono, float32), ``key.txt`` (caption), ``key.masks.npz`` (packed bits of the
regions), ``key.json`` (facts), and ``key.mouth.npy`` where the mouth's true parameters are known.
Any WebDataset reader takes them; the bytes depend on the samples alone.

Legend: F frames, H W pixels, S samples.
"""

from __future__ import annotations

import io
import json
import struct
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import av
import numpy as np

from skyreels_rt.errors import InvalidArgument, ModelError, OutputError
from skyreels_rt.media.video_file import open_video

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from numpy.typing import NDArray

FPS: Final = 25
SAMPLE_RATE: Final = 16_000
_MAX_MEMBER: Final = 1 << 30
_VIDEO_KINDS: Final = ("mp4", "mkv")


@dataclass(frozen=True, eq=False)
class Sample:
    """One synchronised triplet, decoded.

    Attributes
    ----------
    key : str
        Name within its shards.
    frames : ndarray, shape (F, H, W, 3), uint8
        RGB at 25 fps.
    audio : ndarray, shape (S,), float32
        Mono at 16 kHz, as long as the frames.
    caption : str
        What the clip shows.
    masks : dict of str to ndarray, shape (F, H, W), bool
        Regions by name: ``face``, ``mouth``, ``jaw``, ``eye``.
    facts : dict
        Where it comes from and what was measured; JSON data.
    mouth : ndarray, shape (F, 5), float32, or None
        True opening, width, rounding, teeth and tongue, where the clip was drawn.
    """

    key: str
    frames: NDArray[np.uint8]
    audio: NDArray[np.float32]
    caption: str
    masks: Mapping[str, NDArray[np.bool_]]
    facts: Mapping[str, Any]
    mouth: NDArray[np.float32] | None = None


def sample_files(sample: Sample) -> dict[str, bytes]:
    """Members of a sample whose picture is kept without loss, by the ends of their names."""
    files = {
        "mkv": lossless_video(sample.frames),
        **side_files(sample.audio, sample.caption, pack_masks(sample.masks), sample.facts),
    }
    if sample.mouth is not None:
        buffer = io.BytesIO()
        np.save(buffer, sample.mouth, allow_pickle=False)
        files["mouth.npy"] = buffer.getvalue()
    return files


def side_files(
    audio: NDArray[np.float32], caption: str, masks: bytes, facts: Mapping[str, Any]
) -> dict[str, bytes]:
    """Members of a sample but for its picture, by the ends of their names."""
    return {
        "wav": float_wave(audio),
        "txt": caption.encode(),
        "masks.npz": masks,
        "json": json.dumps(facts, sort_keys=True, indent=1).encode(),
    }


def float_wave(audio: NDArray[np.float32], sample_rate: int = SAMPLE_RATE) -> bytes:
    """Bytes of a mono WAV file of float32 samples; libsndfile would write the time of day."""
    data = np.ascontiguousarray(audio, "<f4").tobytes()
    layout = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, 1, sample_rate, 4 * sample_rate, 4, 32)
    fact = struct.pack("<4sII", b"fact", 4, len(audio))
    body = b"WAVE" + layout + fact + struct.pack("<4sI", b"data", len(data)) + data
    return struct.pack("<4sI", b"RIFF", len(body)) + body


def pack_masks(masks: Mapping[str, NDArray[np.bool_]]) -> bytes:
    """Compressed bits of masks (F, H, W), as :func:`unpack_masks` reads them."""
    packed = {name: np.packbits(mask, axis=-1) for name, mask in masks.items()}
    width = next(iter(masks.values())).shape[-1]
    return save_packed_masks(packed, width)


def save_packed_masks(packed: Mapping[str, NDArray[np.uint8]], width: int) -> bytes:
    """Compressed file of masks whose rows are packed already, shape (F, H, ceil(W / 8))."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {**packed, "width": np.array(width, np.int64)}
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def unpack_masks(data: bytes) -> dict[str, NDArray[np.bool_]]:
    """Masks (F, H, W) by name."""
    with np.load(io.BytesIO(data), allow_pickle=False) as held:
        width = int(held["width"])
        return {
            name: np.unpackbits(held[name], axis=-1, count=width).astype(np.bool_)
            for name in held.files
            if name != "width"
        }


def lossless_video(frames: NDArray[np.uint8]) -> bytes:
    """FFV1 in Matroska: every pixel comes back as it was, and the bytes depend on nothing else."""
    buffer = io.BytesIO()
    options = {"fflags": "+bitexact"}
    with av.open(buffer, "w", format="matroska", container_options=options) as container:
        stream = container.add_stream("ffv1", rate=FPS)
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt = "bgr0"
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        stream.codec_context.thread_count = 1
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            container.mux(stream.encode(frame.reformat(format="bgr0")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


class ShardWriter:
    """Writes one tar shard; the file appears under its name when it is complete.

    Parameters
    ----------
    path : Path
        Target, ending in ``.tar``.

    Raises
    ------
    OutputError
        The file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_samples = 0
        """Samples written so far."""
        self._partial = path.with_suffix(".tar.partial")
        try:
            self._tar = tarfile.open(self._partial, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror}).") from error

    def add(self, key: str, files: Mapping[str, bytes]) -> None:
        """Append one sample, its members in the order of their names.

        Raises
        ------
        InvalidArgument
            ``key`` holds a dot or a slash, which WebDataset would take for the end of the key.
        OutputError
            The file cannot be written.
        """
        if not key or set("./\\") & set(key):
            raise InvalidArgument("key", expected="a name without dots and slashes", got=key)
        try:
            for ending, data in sorted(files.items()):
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size, member.mode = len(data), 0o644
                self._tar.addfile(member, io.BytesIO(data))
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({error.strerror}).") from error
        self.num_samples += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._tar.close()
        if kind is None:
            self._partial.replace(self.path)
        else:
            self._partial.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Member:
    """Bytes of a shard."""

    offset: int
    size: int


@dataclass(frozen=True)
class _Entry:
    """A sample of a shard."""

    key: str
    members: Mapping[str, _Member]


class Shard:
    """One tar file, opened for each sample anew; only its headers are kept.

    Raises
    ------
    ModelError
        The file is missing or no shard.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        groups: dict[str, dict[str, _Member]] = {}
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    if member.isreg() and member.size <= _MAX_MEMBER:
                        key, _, ending = Path(member.name).name.partition(".")
                        groups.setdefault(key, {})[ending] = _Member(
                            member.offset_data, member.size
                        )
        except (OSError, tarfile.TarError) as error:
            raise _damaged(path, str(error)) from error
        self._entries = [_Entry(key, members) for key, members in groups.items()]

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def keys(self) -> list[str]:
        """Keys in the order of the file."""
        return [entry.key for entry in self._entries]

    def files(self, index: int) -> tuple[str, dict[str, bytes]]:
        """Key and members of sample ``index``.

        Raises
        ------
        ModelError
            The file is gone or was cut.
        """
        entry = self._entries[index]
        found = {}
        try:
            with self.path.open("rb") as file:
                for ending, member in entry.members.items():
                    file.seek(member.offset)
                    found[ending] = file.read(member.size)
        except OSError as error:
            raise _damaged(self.path, str(error)) from error
        if any(len(found[ending]) != m.size for ending, m in entry.members.items()):
            raise _damaged(self.path, f"sample {entry.key} is cut")
        return entry.key, found

    def sample(self, index: int) -> Sample:
        """Decode sample ``index``.

        Raises
        ------
        ModelError
            It lacks a member or one cannot be decoded.
        """
        key, files = self.files(index)
        try:
            return _decoded(key, files)
        except (KeyError, ValueError, OSError) as error:
            raise _damaged(self.path, f"sample {key}: {error}") from error


class ShardSet:
    """The samples of a folder of shards, in a shuffled order that any number leads into.

    Which sample comes n-th is a function of (seed, n) alone, so a reader that stopped at n goes on
    at n, and remembers nothing else. Shards are shuffled, and samples among ``mix`` shards, so that
    reading stays in a few files at a time.

    Parameters
    ----------
    folder : Path
        Holds ``*.tar``.
    seed : int, optional
        Of the order, a new one every epoch; None keeps the order of the files.
    mix : int
        Shards whose samples are shuffled together.

    Raises
    ------
    ModelError
        There is no sample, or a shard is damaged.
    """

    def __init__(self, folder: Path, *, seed: int | None = None, mix: int = 4) -> None:
        self._shards = [Shard(path) for path in sorted(folder.glob("*.tar"))]
        self._seed, self._mix = seed, mix
        self._places = [(s, i) for s, shard in enumerate(self._shards) for i in range(len(shard))]
        if not self._places:
            raise ModelError(
                f"{folder}: no samples.",
                stage="data",
                hint="Make shards with `skyreels-rt data build` or `skyreels-rt data draw`.",
            )
        self._epoch: tuple[int, list[int]] | None = None

    def __len__(self) -> int:
        return len(self._places)

    @property
    def keys(self) -> list[str]:
        """Keys of all samples in the order of the files."""
        return [key for shard in self._shards for key in shard.keys]

    def place(self, n: int) -> int:
        """Which sample, counted in the order of the files, comes n-th; any n >= 0."""
        epoch, step = divmod(n, len(self))
        if self._seed is None:
            return step
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self._order(self._seed, epoch))
        return self._epoch[1][step]

    def sample(self, n: int) -> Sample:
        """Decode the n-th sample of the order; any n >= 0.

        Raises
        ------
        ModelError
            It is damaged.
        """
        shard, index = self._places[self.place(n)]
        return self._shards[shard].sample(index)

    def stream(self, start: int = 0) -> Iterator[Sample]:
        """Samples of the order from number ``start`` on, without end."""
        n = start
        while True:
            yield self.sample(n)
            n += 1

    def _order(self, seed: int, epoch: int) -> list[int]:
        """One epoch: shards shuffled, then samples among ``mix`` of them."""
        draw = np.random.default_rng([seed, epoch])
        firsts = np.cumsum([0, *(len(shard) for shard in self._shards)])
        shards = draw.permutation(len(self._shards))
        order: list[int] = []
        for start in range(0, len(shards), self._mix):
            group: Sequence[int] = shards[start : start + self._mix].tolist()
            together = np.concatenate([np.arange(firsts[s], firsts[s + 1]) for s in group])
            order.extend(draw.permutation(together).tolist())
        return order


def _decoded(key: str, files: Mapping[str, bytes]) -> Sample:
    kind = next(kind for kind in (*_VIDEO_KINDS, "") if kind in files or not kind)
    mouth = files.get("mouth.npy")
    return Sample(
        key=key,
        frames=_frames(files[kind], kind),
        audio=_samples(files["wav"]),
        caption=files["txt"].decode(),
        masks=unpack_masks(files["masks.npz"]),
        facts=json.loads(files["json"]),
        mouth=None if mouth is None else np.load(io.BytesIO(mouth), allow_pickle=False),
    )


def _frames(data: bytes, kind: str) -> NDArray[np.uint8]:
    """Decode a video through the reader that checks what it opens, which wants a file."""
    with tempfile.NamedTemporaryFile(suffix=f".{kind}") as file:
        file.write(data)
        file.flush()
        return np.stack(list(open_video(file.name).frames(FPS)))


def _samples(data: bytes) -> NDArray[np.float32]:
    import soundfile

    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    if rate != SAMPLE_RATE or samples.ndim != 1:
        raise ValueError(f"expected mono at {SAMPLE_RATE} Hz, got {rate} Hz, {samples.ndim}-d")
    return np.asarray(samples, np.float32)


def _damaged(path: Path, why: str) -> ModelError:
    return ModelError(
        f"{path}: not a readable shard ({why}).", stage="data", hint="Make the shard again."
    )
