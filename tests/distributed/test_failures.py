"""What the other ranks see when one goes wrong."""

import json

import pytest

AGREED = {
    "not finite": ("non_finite", "Step 2 of 3 gave NaN or infinity, first at latent 3"),
    "cancelled": ("cancelled", "Cancelled at step 1 of 3"),
}


@pytest.mark.parametrize("fault", ["hangs", pytest.param("leaves", marks=pytest.mark.slow)])
def test_no_rank_waits_for_a_lost_one(launch, fault):
    """All ranks stop together where one may say why; a lost one is noticed in the mesh's 2 s.

    The process that hangs would go on after 8 s.
    """
    processes = launch.start("failures", 2, [*AGREED, fault])
    try:
        output, _ = processes[0].communicate(timeout=120)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert processes[0].returncode == 0, output
    found = json.loads((launch.folder / "rank0.json").read_text())
    for agreed, (code, words) in AGREED.items():
        assert found[agreed]["code"] == code
        assert words in found[agreed]["message"]
    assert found[fault]["code"] == "peer_failed"
    assert found[fault]["seconds"] < 7
