"""Disguised playlists open no other file; damaged files end in a result or a typed error."""

from __future__ import annotations

import ctypes
import io
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from skyreels_rt.errors import SkyReelsError
from skyreels_rt.media.audio_file import open_audio
from skyreels_rt.media.image import load_image
from skyreels_rt.media.video_file import open_video
from skyreels_rt.media.video_writer import VideoWriter

SCRIPTS = {
    "ffconcat": "ffconcat version 1.0\nfile '{decoy}'\n",
    "concat without signature": "file '{decoy}'\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\n{decoy}\n#EXT-X-ENDLIST\n",
    "dash": (
        '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static">'
        '<Period><AdaptationSet mimeType="audio/mp4"><Representation id="1" bandwidth="1">'
        "<BaseURL>{decoy}</BaseURL></Representation></AdaptationSet></Period></MPD>\n"
    ),
    "sdp": (
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n"
    ),
    "subfile": "subfile,,start,0,end,0,,:{decoy}\n",
    "m3u after an ID3 tag": "ID3\x03\0\0\0\0\0\0#EXTM3U\n#EXTINF:1,\n{decoy}\n",
    "smil": '<smil><body><audio src="{decoy}"/></body></smil>',
    "svg": '<svg xmlns="http://www.w3.org/2000/svg"><image href="file://{decoy}"/></svg>',
}

# Counts every file that Python opens and every use of the network while one source is read.
PROBE = """
import sys
import numpy as np
from skyreels_rt.errors import MediaError
from skyreels_rt.media.audio_file import open_audio
from skyreels_rt.media.image import load_image
from skyreels_rt.media.video_file import open_video
import PIL.BmpImagePlugin, PIL.JpegImagePlugin, PIL.PngImagePlugin, PIL.TiffImagePlugin
import PIL.WebPImagePlugin, soundfile

source, seen = sys.argv[1], []
def watch(event, arguments):
    if event == "open" or event.startswith("socket."):
        seen.append((event, str(arguments[0])))
sys.addaudithook(watch)
for read in (
    lambda: list(open_audio(source).blocks()),
    lambda: list(open_video(source).frames(25)),
    lambda: load_image(source),
):
    try:
        read()
    except MediaError as error:
        assert error.hint
    else:
        raise SystemExit("something was decoded")
others = [entry for entry in seen if entry != ("open", source)]
assert seen, "the hook saw nothing, so the probe proves nothing"
raise SystemExit(f"opened {others}" if others else 0)
"""


class OpenWatch:
    """Says whether a file was opened since the last question, by whatever code (Linux inotify).

    Python's audit hook does not see what FFmpeg opens in C.
    """

    IN_OPEN = 0x20

    def __init__(self, path: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._queue = self._libc.inotify_init1(os.O_NONBLOCK)
        assert self._libc.inotify_add_watch(self._queue, os.fsencode(path), self.IN_OPEN) >= 0

    def opened(self) -> bool:
        try:
            return bool(os.read(self._queue, 4096))
        except BlockingIOError:
            return False

    def close(self) -> None:
        os.close(self._queue)


@pytest.fixture
def watched_decoy(tmp_path):
    if not sys.platform.startswith("linux"):
        pytest.skip("inotify is Linux's")
    decoy = ones(tmp_path / "decoy.wav")
    watch = OpenWatch(decoy)
    yield decoy, watch
    watch.close()


def ones(path: Path) -> Path:
    soundfile.write(path, np.full(16_000, 0.5), 16_000)
    return path


def test_the_decoy_would_be_followed_without_our_care(tmp_path, watched_decoy):
    # The control: FFmpeg itself, left to guess, reads the other file, and the watch sees it.
    decoy, watch = watched_decoy
    assert not watch.opened()
    (tmp_path / "a.wav").write_text(SCRIPTS["ffconcat"].format(decoy=decoy.name))
    with av.open(str(tmp_path / "a.wav")) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) == 16_000
    assert watch.opened()


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_disguised_scripts_are_refused_and_open_no_other_file(tmp_path, script, watched_decoy):
    decoy, watch = watched_decoy
    for suffix in (".wav", ".mp4", ".mp3", ".png"):
        for named in (decoy.name, str(decoy)):
            path = tmp_path / f"a{suffix}"
            path.write_text(SCRIPTS[script].format(decoy=named))
            for read in (
                lambda path=path: list(open_audio(path).blocks()),
                lambda path=path: list(open_video(path).frames(25)),
                lambda path=path: load_image(path),
            ):
                with pytest.raises(SkyReelsError):
                    read()
    assert not watch.opened()


def test_no_other_file_and_no_socket_is_opened(tmp_path):
    decoy = ones(tmp_path / "decoy.wav")
    path = tmp_path / "a.mp4"
    # As nested as it gets: a real MP4 start, then a script.
    path.write_bytes(
        b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + SCRIPTS["hls"].format(decoy=decoy).encode()
    )
    for content in (path.read_bytes(), SCRIPTS["ffconcat"].format(decoy=decoy).encode()):
        path.write_bytes(content)
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(PROBE), str(path)],
            check=False,
            capture_output=True,
            cwd=tmp_path,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr.decode()


def image_bytes(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def sound_bytes(kind: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.sin(np.arange(4000) / 9), 16_000, format=kind)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> dict[str, bytes]:
    """One small valid file of each kind."""
    path = tmp_path_factory.mktemp("media") / "a.mp4"
    with VideoWriter(path, fps=25, height=32, width=32, sample_rate=16_000) as output:
        frames = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
        output.write(frames, np.full((7680, 1), 0.1, np.float32))
    images = {f"image {kind}": image_bytes(kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF")}
    sounds = {f"sound {kind}": sound_bytes(kind) for kind in ("WAV", "FLAC", "OGG", "MP3")}
    return images | sounds | {"video MP4": path.read_bytes()}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    kind=st.sampled_from(
        [
            "image PNG", "image JPEG", "image WEBP", "image BMP", "image TIFF", "sound WAV",
            "sound FLAC", "sound OGG", "sound MP3", "video MP4",
        ]
    ),
    edits=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=8),
    keep=st.floats(0.01, 1.0),
)  # fmt: skip
def test_damaged_files_give_a_result_or_a_typed_error(tmp_path, samples, kind, edits, keep):
    data = bytearray(samples[kind])
    for place, value in edits:
        data[int(place * len(data))] = value
    path = tmp_path / "damaged"
    path.write_bytes(data[: max(1, int(keep * len(data)))])
    try:
        if kind.startswith("image"):
            assert load_image(path).dtype == np.uint8
        if kind.startswith(("sound", "video")):
            for block in open_audio(path).blocks():
                assert np.isfinite(block).all()
        if kind.startswith("video"):
            for frame in open_video(path).frames(1):
                assert frame.ndim == 3
    except SkyReelsError as error:
        assert error.hint
