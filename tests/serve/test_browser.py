"""The page in a real browser: speech goes in, a talking face plays, a closed tab frees its session.

Runs in headless Chromium with H.264 and AAC (Debian's has them) through playwright.
"""

from __future__ import annotations

import io
import shutil
import threading
import time

import numpy as np
import pytest
from PIL import Image

import skyreels_rt as rt
from skyreels_rt.conditioning.face import FaceFinder, face_available

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("uvicorn", reason="the [serve] extra is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def server():
    """Address and service of a real server over demo-fast."""
    from skyreels_rt.serve.admission import Access
    from skyreels_rt.serve.protocol import ServeLimits
    from skyreels_rt.serve.run import make_server

    found, addresses = threading.Event(), []

    def listening(address):
        addresses.append(address)
        found.set()

    engine = rt.Engine.from_pretrained("demo-fast")
    uvicorn_server = make_server(
        engine, host="127.0.0.1", port=0, access=Access(), limits=ServeLimits(),
        on_listening=listening,
    )  # fmt: skip
    thread = threading.Thread(target=uvicorn_server.run)
    thread.start()
    assert found.wait(60)
    yield addresses[0], engine
    uvicorn_server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        flags = [
            "--autoplay-policy=no-user-gesture-required", "--no-sandbox",
            "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
        ]  # fmt: skip
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


def open_page(browser, address):
    problems = []
    page = browser.new_page(viewport={"width": 480, "height": 1100})
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    page.goto(address)
    page.wait_for_selector("input[name=face]", state="attached")
    return page, problems


def played(page, seconds, timeout=240.0):
    """Position of the video once it has passed ``seconds``."""
    # The page's own rules forbid it to evaluate strings, which wait_for_function would.
    end, position = time.monotonic() + timeout, 0.0
    while position <= seconds and time.monotonic() < end:
        time.sleep(0.1)
        position = page.evaluate("document.getElementById('video').currentTime")
    assert position > seconds, page.inner_text("#status")
    return position


def finished(page, engine, patience=60.0):
    """Wait for the page to say that all was shown; as long as frames still come, however slowly."""
    since = time.monotonic()
    while page.evaluate("document.body.dataset.state") not in ("done", "failed"):
        made = engine.health().seconds_since_chunk
        if made is not None and made < patience:
            since = time.monotonic()
        assert time.monotonic() - since < patience, page.inner_text("#status")
        time.sleep(0.1)
    state = page.evaluate("document.body.dataset.state")
    assert state == "done", page.inner_text("#problem")


def test_a_recording_plays_as_a_talking_face(server, browser, shared_data, tmp_path):
    address, engine = server
    page, problems = open_page(browser, address)
    page.set_input_files("#file", shared_data / "speech/jfk_16k_11s.wav")
    page.wait_for_selector("body[data-state=speaking], body[data-state=done]", timeout=240_000)
    before = played(page, 0.5)
    assert played(page, before + 0.5) > before
    facts = page.evaluate("""() => {
        const video = document.getElementById('video');
        return {frames: video.getVideoPlaybackQuality().totalVideoFrames, width: video.videoWidth,
                audio: video.webkitAudioDecodedByteCount, error: video.error};
    }""")
    assert facts["frames"] > 0
    assert facts["audio"] > 0, "no sound was decoded"
    assert (facts["width"], facts["error"]) == (256, None)
    shot = page.locator("#video").screenshot()
    (tmp_path / "video.png").write_bytes(shot)
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    if face_available():
        pixels = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"))
        assert FaceFinder().find(pixels) is not None
    assert problems == []
    page.close()
    assert no_session_within(engine, 2.0)


def test_closing_the_tab_frees_the_session(server, browser, shared_data):
    address, engine = server
    page, _ = open_page(browser, address)
    page.set_input_files("#file", shared_data / "speech/speech_silence_16k_60s.wav")
    page.wait_for_selector("body[data-state=listening]", timeout=60_000)
    assert engine.health().num_sessions == 1
    page.close()
    assert no_session_within(engine, 2.0)


def test_microphone_and_interruption(server, browser):
    page, problems = open_page(browser, server[0])
    page.click("#speak")
    page.wait_for_selector("body[data-state=speaking]", timeout=240_000)
    assert page.evaluate("document.getElementById('video').muted")
    page.click("#interrupt")
    # The page says so only until the next frames are there: the engine's count is what stays.
    end = time.monotonic() + 60
    while "skyreels_rt_cancel_seconds_count 1" not in server[1].metrics():
        assert time.monotonic() < end
        time.sleep(0.05)
    before = page.evaluate("document.getElementById('video').currentTime")
    assert played(page, before + 1.0) > before
    # A page that was busy finds blocks of the microphone in its queue behind the click.
    page.evaluate("""() => {
        const until = performance.now() + 1000;
        while (performance.now() < until);
        document.getElementById('stop').click();
    }""")
    finished(page, server[1])
    assert problems == []
    page.close()
    assert no_session_within(server[1], 2.0)


def test_errors_are_words(server, browser, tmp_path):
    page, _ = open_page(browser, server[0])
    (tmp_path / "noise.wav").write_bytes(b"no sound at all")
    page.set_input_files("#file", tmp_path / "noise.wav")
    page.wait_for_selector("#problem:not([hidden])")
    assert "no sound" in page.inner_text("#problem")
    page.close()


def no_session_within(engine, seconds):
    end = time.monotonic() + seconds
    while engine.health().num_sessions and time.monotonic() < end:
        time.sleep(0.02)
    return engine.health().num_sessions == 0
