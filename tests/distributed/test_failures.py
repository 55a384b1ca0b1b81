"""What the other ranks see when one goes wrong."""

import json

import pytest


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ("not finite", "non_finite", "Step 2 of 3 gave NaN or infinity, first at latent 3"),
        ("cancelled", "cancelled", "Cancelled at step 1 of 3"),
    ],
)
def test_all_ranks_stop_together(launch, fault, code, words):
    for result in launch.run("failures", 2, fault):
        assert result["code"] == code
        assert words in result["message"]


@pytest.mark.parametrize("fault", ["leaves", "hangs"])
def test_no_rank_waits_for_a_lost_one(launch, fault):
    """Long before the process that hangs goes on: its 8 s, the mesh's 2."""
    processes = launch.start("failures", 2, fault)
    try:
        output, _ = processes[0].communicate(timeout=60)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert processes[0].returncode == 0, output
    result = json.loads((launch.folder / "rank0.json").read_text())
    assert result["code"] == "peer_failed"
    assert result["seconds"] < 7
