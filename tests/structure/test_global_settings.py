"""Importing and running changes nothing of the process that others rely on."""

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("global_settings.py")


def test_importing_and_running_changes_no_setting(tmp_path):
    done = subprocess.run(
        [sys.executable, "-P", str(PROGRAM)],
        check=True, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["settings"] >= 20
    assert found["changed"] == []
    assert found["missed"] == [], "planted changes"
