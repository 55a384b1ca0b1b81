"""One source from file to samples: the graph that workers, threads and Ray all run.

Probe, cut into shots, follow faces, hear speech, judge: one pass in constant memory. A last pass
cuts out what was kept; SyncNet, where it is on, has one between. What comes out depends on the
file's bytes and the settings alone.
"""

from __future__ import annotations

import base64
import ctypes
import hashlib
import io
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from skyreels_rt.conditioning.face import FaceFinder
from skyreels_rt.data.caption import load_captioner
from skyreels_rt.data.clip import SAMPLES_PER_FRAME, ClipGauge
from skyreels_rt.data.crop import KeptClip, read_again, write_samples
from skyreels_rt.data.manifest import ClipRow
from skyreels_rt.data.measures import ClipScores
from skyreels_rt.data.probe import Probe, SourceRefused, probe_source
from skyreels_rt.data.shards import FPS, ShardWriter
from skyreels_rt.data.shots import CutDetector
from skyreels_rt.data.soundtrack import SoundTrack
from skyreels_rt.data.speech import VoiceDetector
from skyreels_rt.data.syncnet import face_picture, face_squares, load_syncnet, syncnet_scores
from skyreels_rt.errors import (
    InvalidArgument,
    MediaError,
    NonFinite,
    OutputError,
    SkyReelsError,
)
from skyreels_rt.media.video_file import open_video
from skyreels_rt.runtime.timing import StageClock

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from skyreels_rt.data.settings import DataSettings
    from skyreels_rt.models.syncnet import SyncNet

_MAX_THUMBNAILS = 2  # of a source for each reason
_HASH_BLOCK = 1 << 20
_KEY_DIGITS = 16


@dataclass
class SourceResult:
    """What became of a source.

    Attributes
    ----------
    rows : list of ClipRow
        Its clips in time order, then what stopped the reading, if anything did.
    seconds : dict of str to float
        Seconds of all cores by stage.
    video_s : float
        Length of the picture that was read.
    thumbnails : dict of str to str
        JPEG in base64 by key, of a few clips for each reason.
    """

    rows: list[ClipRow] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    video_s: float = 0.0
    thumbnails: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The result as JSON data."""
        rows = [row.to_json() for row in self.rows]
        return {
            "rows": rows,
            "seconds": self.seconds,
            "video_s": self.video_s,
            "thumbnails": self.thumbnails,
        }


class SourceGraph:
    """The pipeline for one source after the other, with its networks loaded once.

    Parameters
    ----------
    settings : DataSettings
        What to do.

    Raises
    ------
    MissingDependency
        A package of the ``data`` or ``face`` extra is not installed.
    InvalidArgument
        The captioner that the settings name does not exist.
    ModelError, NonFinite
        The SyncNet weights that the settings name cannot be used.
    """

    def __init__(self, settings: DataSettings) -> None:
        self._settings = settings
        self._finder = FaceFinder()
        self._voice = VoiceDetector()
        self._captioner = load_captioner(settings.caption.hook)
        self._syncnet = _syncnet_of(settings)
        CutDetector(settings.clips.cut_threshold)

    def run(self, path: Path, name: str, target: Path) -> SourceResult:
        """Process one source.

        Parameters
        ----------
        path : Path
            The file.
        name : str
            What the manifest calls it.
        target : Path
            Tar file for its samples; written only if there are any.

        Returns
        -------
        SourceResult
            Whatever the file holds; a file that cannot be used gives a row with the reason.

        Raises
        ------
        OutputError
            The samples cannot be written.
        """
        result = SourceResult()
        clock = StageClock(time.process_time)
        digest = ""
        try:
            with clock.measure("probe"):
                digest = _sha256(path)
                probe = probe_source(path)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix="work-") as folder:
                work = _SourceWork(path, name, digest, probe, Path(folder))
                self._judge(work, result, clock)
                self._confirm(work, result, clock)
                self._write(work, result, clock, target)
        except SourceRefused as refused:
            result.rows = [_refused_row(name, digest, refused.reason, refused.message)]
        except (MediaError, NonFinite) as error:
            # The file changed, or decodes differently the second time.
            message = error.message.replace(str(path), path.name)
            result.rows = [_refused_row(name, digest, "damaged", message)]
        result.seconds = clock.seconds
        return result

    def _judge(self, work: _SourceWork, result: SourceResult, clock: StageClock) -> None:
        """First pass: rows of all clips, meshes of those to keep on disk."""
        try:
            sound = SoundTrack(work.path, work.probe.sound_delay_s, self._voice)
        except MediaError as error:
            raise SourceRefused("unreadable_sound", work.described(error)) from error
        for gauge in self._clips(work, result, clock):
            row, kept = self._verdict(work, gauge, sound, clock)
            result.rows.append(row)
            if kept is not None:
                work.kept.append(kept)
            shown = sum(r.reason == row.reason for r in result.rows)
            if gauge.thumbnail is not None and shown <= _MAX_THUMBNAILS:
                result.thumbnails[row.key] = _jpeg(gauge.thumbnail)
            sound.forget((gauge.start + gauge.num_frames) * SAMPLES_PER_FRAME)
            _return_memory()

    def _clips(
        self, work: _SourceWork, result: SourceResult, clock: StageClock
    ) -> Iterator[ClipGauge]:
        """Finished clips, as the frames pass; damage ends them and adds a row."""
        settings = self._settings.clips
        cuts = CutDetector(settings.cut_threshold)
        frames = open_video(work.path).frames(FPS)
        longest = round(settings.max_s * FPS)
        gauge: ClipGauge | None = None
        index = 0
        while True:
            try:
                with clock.measure("decode"):
                    frame = next(frames, None)
            except MediaError as error:
                work.damage = error
                break
            if frame is None:
                break
            with clock.measure("shots"):
                begins = cuts.begins_shot(frame)
            if gauge is not None and (begins or gauge.num_frames == longest):
                yield gauge
                gauge = None
            if gauge is None:
                gauge = ClipGauge(index, self._settings, self._finder, clock)
            gauge.add(frame)
            index += 1
            result.video_s = index / FPS
        if gauge is not None:
            yield gauge
        if work.damage is not None:
            result.rows.append(work.damaged_row())

    def _verdict(
        self, work: _SourceWork, gauge: ClipGauge, sound: SoundTrack, clock: StageClock
    ) -> tuple[ClipRow, KeptClip | None]:
        """Row of a finished clip, and what is needed to cut it out if it passes."""
        key = f"{work.digest[:_KEY_DIGITS]}_{gauge.start:07d}"
        try:
            scores = gauge.scores(sound, work.probe.fps)
        except (MediaError, NonFinite, InvalidArgument) as error:
            return replace(
                work.row(key, gauge), reason="damaged_sound", detail=work.described(error)
            ), None
        lag = scores.sync.lag if scores.sync else None
        row = self._judged(replace(work.row(key, gauge), lag_frames=lag), scores)
        if row.kept and not any(gauge.track.frames):
            # Without a face there is nothing to cut out, whatever the bounds.
            row = replace(row, kept=False, reason="no_face", failed=("no_face",))
        if not row.kept:
            return row, None
        is_late = lag is not None and abs(lag) >= self._settings.sync.correct_from
        shift = lag if lag is not None and is_late else 0
        crop = gauge.crop()
        row = replace(
            row,
            corrected_frames=shift,
            crop_left=crop.left,
            crop_top=crop.top,
            crop_side=crop.side,
        )
        landmarks = work.folder / f"{gauge.start}.npy"
        with clock.measure("write"):
            np.save(landmarks, gauge.track.landmarks(), allow_pickle=False)
        facts = {
            "source": work.name,
            "sha256": work.digest,
            "start_s": gauge.start / FPS,
            "fps": FPS,
            "lag_frames": lag,
            "corrected_frames": shift,
            "crop": asdict(crop),
            "scores": row.scores,
            "settings": self._settings.digest,
        }
        return row, KeptClip(
            key, gauge.start, gauge.num_frames, crop, shift, scores, landmarks, facts
        )

    def _judged(self, row: ClipRow, scores: ClipScores) -> ClipRow:
        """The row with the verdict of all filters."""
        filters = self._settings.filters
        values = {f.name: f.score(scores) for f in filters}
        failed = tuple(f.name for f in filters if not f.passes(values[f.name]))
        reason = failed[0] if failed else ""
        return replace(row, kept=not failed, reason=reason, failed=failed, scores=values)

    def _confirm(self, work: _SourceWork, result: SourceResult, clock: StageClock) -> None:
        """Pass between the two: SyncNet, which is slow, sees what passed everything else."""
        if self._syncnet is None or not work.kept:
            return
        sound = SoundTrack(work.path, work.probe.sound_delay_s, stop_at_damage=True)
        rows = {row.key: row for row in result.rows}
        confirmed: list[KeptClip] = []
        with clock.measure("syncnet"):
            for clip, frames, audio in read_again(work.path, work.kept, sound):
                squares = face_squares(np.load(clip.landmarks, allow_pickle=False))
                faces = map(face_picture, frames, squares)
                found = syncnet_scores(faces, audio, self._syncnet)
                scores = replace(clip.scores, syncnet=found)
                row = self._judged(rows[clip.key], scores)
                facts = {**clip.facts, "scores": row.scores}
                if row.kept:
                    confirmed.append(replace(clip, scores=scores, facts=facts))
                else:
                    row = replace(row, corrected_frames=0, crop_left=None, crop_top=None,
                                  crop_side=None)  # fmt: skip
                rows[clip.key] = row
        work.kept = confirmed
        result.rows = [rows[row.key] for row in result.rows]

    def _write(
        self, work: _SourceWork, result: SourceResult, clock: StageClock, target: Path
    ) -> None:
        """Second pass: the samples of what was kept."""
        if not work.kept:
            return
        # Sound that is moved may come from behind the clip, where it may be damaged.
        sound = SoundTrack(work.path, work.probe.sound_delay_s, stop_at_damage=True)
        with clock.measure("write"), ShardWriter(target) as writer:
            captions = write_samples(
                work.path, work.kept, sound, writer, self._settings.output, self._captioner
            )
        by_key = {clip.key: caption for clip, caption in zip(work.kept, captions, strict=True)}
        result.rows = [replace(row, caption=by_key.get(row.key, "")) for row in result.rows]


@dataclass
class _SourceWork:
    """A source while it is worked on."""

    path: Path
    name: str
    digest: str
    probe: Probe
    folder: Path
    kept: list[KeptClip] = field(default_factory=list)
    damage: MediaError | None = None

    def row(self, key: str, gauge: ClipGauge) -> ClipRow:
        """Row of a clip before it is judged."""
        return ClipRow(
            key,
            self.name,
            self.digest,
            notes=self.probe.notes,
            start_frame=gauge.start,
            num_frames=gauge.num_frames,
        )

    def described(self, error: SkyReelsError) -> str:
        """Message of an error without the machine's folders."""
        return error.message.replace(str(self.path), self.path.name)

    def damaged_row(self) -> ClipRow:
        """Row of a source whose picture cannot be read to its end."""
        detail = self.described(self.damage) if self.damage else ""
        row = _refused_row(self.name, self.digest, "damaged", detail)
        return replace(row, notes=self.probe.notes)


def _syncnet_of(settings: DataSettings) -> SyncNet | None:
    """The network that the settings name, if any."""
    weights = settings.syncnet
    if not weights.file:
        return None
    import torch

    torch.set_num_threads(1)  # processes share the cores, and the same sums come out on any number
    return load_syncnet(Path(weights.file), weights.sha256)


def _peak_rss_mb() -> float:
    """Most memory this process ever held, in MiB; 0 where the system does not say.

    Not ``ru_maxrss``: that begins with what the process held that started this one.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    kibibytes = (int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return next(kibibytes, 0) / 1024


def _return_memory() -> None:
    """Give freed memory back: decoders leave glibc's heap in pieces that would only grow."""
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _refused_row(name: str, digest: str, reason: str, detail: str) -> ClipRow:
    return ClipRow(digest[:_KEY_DIGITS], name, digest, reason=reason, detail=detail)


def answer_for(graph: SourceGraph, task: Mapping[str, str]) -> dict[str, Any]:
    """Process a task and describe what became of it, for whoever sent it from another process.

    Parameters
    ----------
    graph : SourceGraph
        Ready to run.
    task : mapping
        ``path``, ``name`` and ``target`` of :meth:`SourceGraph.run`.

    Returns
    -------
    dict
        JSON data: ``{"result": ...}``; ``{"error": ...}`` for an error of this library, which ends
        the build; ``{"crashed": ...}`` for any other, which costs the source.
    """
    try:
        result = graph.run(Path(task["path"]), task["name"], Path(task["target"])).to_json()
    except SkyReelsError as error:
        return error_answer(error)
    except OSError as error:
        # Readers turn theirs into media errors: this is a full or failing disk under the output.
        why = error.strerror or type(error).__name__
        return error_answer(OutputError(f"{task['name']}: its samples cannot be written ({why})."))
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return {"crashed": f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}"}
    result["peak_rss_mb"] = _peak_rss_mb()
    return {"result": result}


def error_answer(error: SkyReelsError) -> dict[str, Any]:
    """An error of this library as an answer."""
    return {"error": {"code": error.code, "message": error.message, "hint": error.hint}}


def _sha256(path: Path) -> str:
    """Digest of a file's bytes.

    Raises
    ------
    SourceRefused
        It cannot be read.
    """
    from skyreels_rt.media.local_file import open_local

    digest = hashlib.sha256()
    try:
        with open_local(path, stage="video") as file:
            while block := file.read(_HASH_BLOCK):
                digest.update(block)
    except (MediaError, OSError) as error:
        message = getattr(error, "message", str(error)).replace(str(path), path.name)
        raise SourceRefused("unreadable", message) from error
    return digest.hexdigest()


def _jpeg(pixels: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()
