"""The long runs: the slow tests, and peak memory of a 1-minute and a 10-minute job.

usage: python benchmarks/soak.py REPORT.json
"""

import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image

from skyreels_rt.kernels import KernelPlan
from skyreels_rt.report import Report, Row

RATE = 16_000
MAX_GROWTH_MIB = 50.0
ROOT = Path(__file__).resolve().parent.parent


def run_job(folder: Path, minutes: int) -> dict[str, float]:
    """Rows of the report of one job of `minutes` of noise-like speech."""
    rng = np.random.default_rng(minutes)
    speech = 0.1 * rng.standard_normal(RATE * 60 * minutes)
    soundfile.write(folder / "speech.wav", speech, RATE)
    report = folder / f"{minutes}.json"
    command = [
        sys.executable, "-P", "-m", "skyreels_rt", "generate", "--model", "tiny-random",
        "--audio", str(folder / "speech.wav"), "--image", str(folder / "face.png"),
        "-o", str(folder / "out.mp4"), "--json", str(report),
    ]  # fmt: skip
    subprocess.run(command, check=True, cwd=folder)
    return {row["name"]: row["value"] for row in json.loads(report.read_text())["rows"]}


def run_slow_tests(folder: Path) -> dict[str, int]:
    """Counts of the slow tests: fuzzing, kills, every way to build the package."""
    report = folder / "slow.xml"
    command = [
        sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadgroup",
        "-m", "slow and not gpu", "--timeout", "3000", f"--junitxml={report}",
    ]  # fmt: skip
    done = subprocess.run(command, check=False, cwd=ROOT)
    if done.returncode not in (0, 1):  # 1: some tests failed, which the counts will say
        sys.exit(f"pytest ended with {done.returncode}")
    suite = xml.etree.ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    return {key: int(suite.get(key, "0")) for key in ("tests", "failures", "errors", "skipped")}


def main() -> None:
    """Measure, print and store."""
    target = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slow = run_slow_tests(folder)
        picture = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / "face.png")
        one, ten = run_job(folder, 1), run_job(folder, 10)
    growth = ten["generate.peak_rss"] - one["generate.peak_rss"]
    broken = slow["failures"] + slow["errors"]
    rows = [
        Row("soak.slow_tests", slow["tests"] - slow["skipped"], "tests", 10.0, better="higher"),
        Row("soak.slow_tests_skipped", slow["skipped"], "tests"),
        Row("soak.slow_tests_failed", broken, "tests", target=0.0),
        Row("soak.rss_1_minute", one["generate.peak_rss"], "MiB"),
        Row("soak.rss_10_minutes", ten["generate.peak_rss"], "MiB"),
        Row("soak.rss_growth", growth, "MiB", target=MAX_GROWTH_MIB),
        Row("soak.rtf_10_minutes", ten["generate.rtf"], "compute s / media s"),
    ]
    plan = KernelPlan.choose("cpu", torch.float32).to_json()
    Report("make soak", "cpu", torch.get_num_threads(), plan, rows).write(target)
    for row in rows:
        print(f"{row.name:<24} {row.value:10.1f} {row.unit}")
    missed = [row.name for row in rows if row.ok is False]
    if missed:
        sys.exit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
