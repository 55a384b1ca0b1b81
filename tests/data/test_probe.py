"""What a source is: disguises, pipes, lengths, tracks that are not there or start apart."""

import os

import av
import numpy as np
import pytest

from skyreels_rt.bench.data_corpus import TalkingClip
from skyreels_rt.data.probe import MAX_SOURCE_S, SourceRefused, probe_source
from skyreels_rt.data.soundtrack import SoundTrack

DISGUISES = {
    "hls.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{secret}\n#EXT-X-ENDLIST\n",
    "hls_later.mp4": "\n\n#EXTM3U\n#EXTINF:9,\n{secret}\n",
    "concat.avi": "ffconcat version 1.0\nfile '{secret}'\n",
    "dash.webm": '<?xml version="1.0"?><MPD><BaseURL>file://{secret}</BaseURL></MPD>',
    "session.mkv": "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
    "list.m4v": "[playlist]\nFile1={secret}\nNumberOfEntries=1\n",
    "page.mov": "<html><video src='{secret}'></video></html>",
    "script.mp4": "#!/bin/sh\ncat {secret}\n",
}


@pytest.fixture(scope="module")
def clip():
    """A second of noise for both senses."""
    draw = np.random.default_rng(0)
    frames = draw.integers(0, 256, (25, 48, 64, 3), np.uint8)
    return TalkingClip(frames, (0.2 * draw.standard_normal(16_000)).astype(np.float32))


@pytest.mark.parametrize("name", DISGUISES)
def test_disguised_files_open_nothing(tmp_path, clip, encode, name):
    """The file that they point at is a good one: following would succeed."""
    secret = encode(tmp_path / "secret.mp4", clip)
    probe_source(secret)
    (tmp_path / name).write_text(DISGUISES[name].format(secret=secret))
    with pytest.raises(SourceRefused) as refused:
        probe_source(tmp_path / name)
    assert refused.value.reason == "unreadable"
    assert str(tmp_path) not in refused.value.message


def test_a_film_behind_the_name_of_a_playlist_is_a_film(tmp_path, clip, encode):
    """Bytes count, not names."""
    encode(tmp_path / "film.mp4", clip)
    (tmp_path / "film.mp4").rename(tmp_path / "film.m3u8")
    film = probe_source(tmp_path / "film.m3u8")
    assert (film.width, film.height, film.fps) == (64, 48, 25.0)


def test_pipes_folders_and_dead_links_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "link.mp4").symlink_to(tmp_path / "gone.mp4")
    for name in ("pipe.mp4", "folder.mp4", "link.mp4"):
        with pytest.raises(SourceRefused) as refused:
            probe_source(tmp_path / name)
        assert refused.value.reason == "unreadable"


def test_files_that_claim_to_last_for_ever(tmp_path, clip, encode):
    last = (MAX_SOURCE_S + 60) * 1000
    brief = TalkingClip(clip.frames[:3], clip.audio)
    encode(tmp_path / "long.mkv", brief, pts=[0, 40, last])
    with pytest.raises(SourceRefused) as refused:
        probe_source(tmp_path / "long.mkv")
    assert refused.value.reason == "too_long"


def test_a_cover_is_no_picture_track(tmp_path, clip):
    """Music with the picture of its album."""
    from av.stream import Disposition

    with av.open(str(tmp_path / "song.mp4"), "w") as output:
        cover = output.add_stream("png", rate=25)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "rgb24"
        cover.disposition = Disposition.attached_pic
        sound = output.add_stream("aac", rate=16_000, layout="mono")
        output.mux(cover.encode(av.VideoFrame.from_ndarray(clip.frames[0], format="rgb24")))
        output.mux(cover.encode(None))
        block = av.AudioFrame.from_ndarray(clip.audio[None, :1024], format="fltp", layout="mono")
        block.sample_rate, block.pts = 16_000, 0
        output.mux(sound.encode(block))
        output.mux(sound.encode(None))
    with pytest.raises(SourceRefused) as refused:
        probe_source(tmp_path / "song.mp4")
    assert refused.value.reason == "no_video"


@pytest.mark.parametrize("delay_ms", [-400, 0, 480])
def test_tracks_that_start_apart_are_laid_together(tmp_path, clip, encode, delay_ms):
    """Sample 0 belongs to the first frame, whichever track starts first."""
    late, early = max(0, delay_ms), max(0, -delay_ms)
    file = encode(
        tmp_path / "apart.mkv",
        clip,
        pts=[early + 40 * i for i in range(25)],
        audio_start=16 * late,
        codec="pcm_f32le",
    )
    probe = probe_source(file)
    assert abs(probe.sound_delay_s - delay_ms / 1000) < 0.002
    assert ("delayed_sound" in probe.notes) == (delay_ms != 0)
    heard = SoundTrack(file, probe.sound_delay_s).cut(0, 12_000)
    silence = np.zeros(16 * late, np.float32)
    expected = np.concatenate([silence, clip.audio[16 * early :]])[:12_000]
    count = min(len(expected), 8_900)  # the file holds whole blocks alone
    assert np.corrcoef(heard[:count], expected[:count])[0, 1] > 0.99
    assert not heard[: max(0, 16 * late - 32)].any()
