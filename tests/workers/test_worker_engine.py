"""An engine of worker processes against the engine of one process, and what faults do to it."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import skyreels_rt as rt
from skyreels_rt import errors

RATE = 16_000
DEVICES = ("cpu", "cpu")


def job(seconds=1.3, **options):
    """Arguments of a small job of several windows."""
    random_numbers = np.random.default_rng(0)
    speech = 0.2 * random_numbers.standard_normal(round(seconds * RATE))
    face = random_numbers.integers(0, 256, (64, 80, 3), dtype=np.uint8)
    return {"audio": speech.astype(np.float32), "sample_rate": RATE, "image": face, **options}


@pytest.fixture(scope="module")
def engine(small_model):
    with rt.Engine.from_pretrained(small_model, devices=DEVICES) as started:
        yield started


@pytest.fixture(scope="module")
def alone(small_model):
    return rt.Engine.from_pretrained(small_model)


def pids_of(engine):
    return [one.pid for one in engine.workers]


def test_the_video_is_that_of_one_process(engine, alone):
    seen, expected_seen = [], []
    video = engine.generate(**job(), on_progress=seen.append)
    expected = alone.generate(**job(), on_progress=expected_seen.append)
    np.testing.assert_array_equal(video.frames, expected.frames)
    np.testing.assert_array_equal(video.audio, expected.audio)
    assert (video.sample_rate, video.fps) == (expected.sample_rate, expected.fps)
    assert video.steps == expected.steps
    assert seen == expected_seen


def test_the_file_is_that_of_one_process(engine, alone, tmp_path):
    options = job(teacache=rt.StepMask((True, False)))
    expected = alone.generate(**options).frames
    np.testing.assert_array_equal(engine.generate(**options).frames, expected)
    summary = engine.generate_file(tmp_path / "workers.mp4", **options)
    expected = alone.generate_file(tmp_path / "alone.mp4", **options)
    assert (tmp_path / "workers.mp4").read_bytes() == (tmp_path / "alone.mp4").read_bytes()
    assert summary.settings == expected.settings
    assert summary.steps == expected.steps
    assert set(summary.stage_seconds) == set(expected.stage_seconds)


def test_paths_and_pictures_of_every_kind(engine, alone, tmp_path, monkeypatch):
    import soundfile
    from PIL import Image

    arrays = job()
    soundfile.write(tmp_path / "speech.wav", arrays["audio"], RATE, subtype="FLOAT")
    picture = Image.fromarray(arrays["image"])
    picture.save(tmp_path / "face.png")
    expected = alone.generate(**arrays).frames
    monkeypatch.chdir(tmp_path)  # the workers have another folder
    for image in ("face.png", tmp_path / "face.png", picture):
        found = engine.generate("speech.wav", image=image).frames
        np.testing.assert_array_equal(found, expected)


def test_an_edit_with_arrays(engine, alone):
    source = np.random.default_rng(1).integers(0, 256, (30, 32, 48, 3), dtype=np.uint8)
    mask = np.zeros((32, 48), bool)
    mask[8:24, 8:24] = True
    options = job(image=None, video=source, edit_mask=mask)
    found = engine.generate(**options).frames
    np.testing.assert_array_equal(found, alone.generate(**options).frames)


@pytest.mark.parametrize(
    "options, error",
    [
        ({"num_steps": 0}, errors.InvalidArgument),
        ({"number": 0}, errors.InvalidArgument),
        ({"image": "no/such/face.png"}, errors.MediaError),
        ({"image": None}, errors.InvalidArgument),
        ({"audio": np.full(RATE, np.nan, np.float32)}, errors.NonFinite),
        ({"edit_mask": object()}, errors.InvalidArgument),
        ({"video": np.zeros((3, 32, 48, 3), complex)}, errors.InvalidArgument),
        ({"cancel": True}, errors.InvalidArgument),
    ],
)
def test_what_one_process_refuses_the_workers_refuse_alike(engine, alone, options, error):
    before = pids_of(engine)
    with pytest.raises(error) as found:
        engine.generate(**job(**options))
    with pytest.raises(error) as expected:
        alone.generate(**job(**options))
    if not {"edit_mask", "video"} & set(options):  # those cannot even be sent
        assert found.value.stage == expected.value.stage
        assert str(found.value).replace(f"{Path.cwd()}/", "") == str(expected.value)
    assert pids_of(engine) == before


def test_a_cancelled_job_and_a_dropped_stream_leave_the_workers_as_they_were(engine, alone):
    before, cancel = pids_of(engine), threading.Event()
    with pytest.raises(errors.Cancelled):
        engine.generate(
            **job(20.0, num_steps=50), cancel=cancel, on_progress=lambda _: cancel.set()
        )
    stream = engine.stream(**job(4.0, horizon=2))
    next(stream)
    with pytest.raises(errors.AdmissionRefused):
        engine.generate(**job())
    stream.close()
    engine.stream(**job())  # never begun, dropped at once
    with pytest.raises(ZeroDivisionError):
        engine.generate(**job(), on_progress=lambda _: 1 // 0)
    assert pids_of(engine) == before
    np.testing.assert_array_equal(engine.generate(**job()).frames, alone.generate(**job()).frames)


def test_facts(engine, alone):
    assert engine.facts.name == alone.facts.name
    assert engine.facts.device == "cpu,cpu"
    assert engine.facts.kernel_plan == alone.facts.kernel_plan
    assert engine.estimate(4.0, num_steps=3) == alone.estimate(4.0, num_steps=3)
    text = engine.describe()
    assert "worker 1" in text
    assert "qk_norm_rope" in text
    for one in engine.workers:
        assert one.is_alive
        assert one.usage["peak_rss"] > 0


def test_links_are_measured_and_used(engine, alone):
    links = engine.measure_links()
    assert links.num_ranks == 2
    assert links.latency_s < links.point_to_point < 1e12
    assert 1e6 < links.all_to_all < 1e12
    shape = engine.step_shape(1.3)
    assert engine.transformer_config == alone.transformer_config
    assert rt.Parallel.suggest(engine, shape, 2, measure=True).world_size == 2
    for one in (alone, alone.transformer_config):
        with pytest.raises(errors.InvalidArgument):
            rt.Parallel.suggest(one, shape, 2, measure=True)


@pytest.mark.parametrize("devices", [(), ("cpu", "cuda:0"), ("cuda:0", "cuda:0"), ("tpu",)])
def test_devices_that_cannot_be_a_group_are_refused(devices, small_model):
    with pytest.raises(errors.InvalidArgument):
        rt.Engine.from_pretrained(small_model, devices=devices)


def test_a_model_that_cannot_be_loaded(assert_gone):
    with pytest.raises(errors.ModelError, match="no such model"):
        rt.Engine.from_pretrained("no-such-model", devices=["cpu"])


def limit_memory(pid, more):
    """Let a process have ``more`` bytes beyond what it has."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))


def test_memory_that_runs_out_in_one_rank_then_a_death(small_model, alone, raised, assert_gone):
    """One engine through both, since starting one takes seconds."""
    with rt.Engine.from_pretrained(small_model, devices=DEVICES) as engine:
        first = pids_of(engine)
        limit_memory(first[1], 32 * 2**20)
        with pytest.raises(errors.OutOfMemory):
            engine.generate(**job(image=None, prompt="a face", height=512, width=512))
        assert_gone(first)
        expected = alone.generate(**job()).frames
        np.testing.assert_array_equal(engine.generate(**job()).frames, expected)

        second = pids_of(engine)
        stream = engine.stream(**job(20.0, horizon=2))
        next(stream)
        os.kill(second[0], signal.SIGKILL)
        for call in (lambda: list(stream), lambda: engine.generate(**job()), engine.describe):
            error = raised(call, errors.WorkerDied)
            assert (error.rank, error.signal) == (0, signal.SIGKILL)
        assert_gone(second)


SCRIPT = """
import signal, sys, numpy as np, skyreels_rt as rt
# What a shell starts in the background ignores SIGINT, and so would this.
signal.signal(signal.SIGINT, signal.default_int_handler)
engine = rt.Engine.from_pretrained(sys.argv[1], devices=["cpu"])
print(engine.workers[0].pid, flush=True)
speech = np.zeros(16_000 * 60, np.float32)
face = np.zeros((32, 48, 3), np.uint8)
print(engine.generate(speech, sample_rate=16_000, image=face, num_steps=500))
"""


@pytest.mark.parametrize(
    "how",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_workers_go_with_their_engine(small_model, assert_gone, how):
    command = [sys.executable, "-P", "-c", SCRIPT, str(small_model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        pid = int(parent.stdout.readline())
        time.sleep(0.5)
        parent.send_signal(how)
        parent.wait(10)
    assert_gone([pid])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_kill_at_any_moment(small_model, seed, raised, assert_gone):
    """Any rank, at a random moment from its start on; later calls raise the same."""
    moment = random.Random(seed)
    engine = rt.Engine.from_pretrained(small_model, devices=DEVICES)
    pids, rank = pids_of(engine), moment.randrange(2)
    killer = threading.Timer(moment.uniform(0, 3.0), os.kill, (pids[rank], signal.SIGKILL))
    killer.start()
    killed_at = time.monotonic() + killer.interval
    with pytest.raises(errors.WorkerDied) as caught:
        while True:
            engine.generate(**job(4.0, horizon=moment.randint(2, 4)))
    assert time.monotonic() - killed_at < 5.0
    assert (caught.value.rank, caught.value.signal) == (rank, signal.SIGKILL)
    assert raised(lambda: engine.generate(**job()), errors.WorkerDied).rank == rank
    assert_gone(pids)
    engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_rank_is_a_timeout(small_model, rank, raised, assert_gone):
    timeouts = rt.Timeouts(silence_s=3.0)
    with rt.Engine.from_pretrained(small_model, devices=DEVICES, timeouts=timeouts) as engine:
        pids = pids_of(engine)
        threading.Timer(0.5, os.kill, (pids[rank], signal.SIGSTOP)).start()
        error = raised(
            lambda: engine.generate(**job(60.0, num_steps=50)), errors.WorkerTimeout, 9.0
        )
        assert error.rank == rank
        assert_gone(pids)


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.5, 2.0, 4.0])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_death_while_the_model_loads(small_model, rank, delay, raised, assert_gone, monkeypatch):
    from skyreels_rt.distributed import worker_process

    pids = []
    started = worker_process.WorkerProcess.started.__func__

    def observed(cls, command, number, size, environment):
        worker = started(cls, command, number, size, environment)
        pids.append(worker.process.pid)
        if number == rank:
            threading.Timer(delay, worker.process.kill).start()
        return worker

    monkeypatch.setattr(worker_process.WorkerProcess, "started", classmethod(observed))
    error = raised(
        lambda: rt.Engine.from_pretrained(small_model, devices=DEVICES).generate(**job(60.0)),
        errors.WorkerDied,
        delay + 10.0,
    )
    assert error.rank == rank
    assert_gone(pids)


def test_the_command_line(small_model, tmp_path):
    import soundfile
    from PIL import Image
    from typer.testing import CliRunner

    from skyreels_rt.cli import app

    arrays = job()
    soundfile.write(tmp_path / "speech.wav", arrays["audio"], RATE)
    Image.fromarray(arrays["image"]).save(tmp_path / "face.png")
    common = ["generate", "--model", str(small_model), "--audio", str(tmp_path / "speech.wav")]
    common += ["--image", str(tmp_path / "face.png")]
    for name, more in (("alone", []), ("workers", ["--devices", "cpu,cpu"])):
        report = ["--json", str(tmp_path / f"{name}.json"), "-o", str(tmp_path / f"{name}.mp4")]
        result = CliRunner().invoke(app, [*common, *more, *report])
        assert result.exit_code == 0, result.output
    assert (tmp_path / "workers.mp4").read_bytes() == (tmp_path / "alone.mp4").read_bytes()
    found = json.loads((tmp_path / "workers.json").read_text())
    assert found["device"] == "cpu,cpu"
    assert len(found["details"]["ranks"]) == 2
