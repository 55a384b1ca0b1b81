"""Whole jobs over a mesh: the frames of one process, live sessions, refusals; VAE pipeline."""

import pytest


def test_jobs_give_the_frames_of_one_rank(launch):
    for result in launch.run("engine_cases", 2, ["window=2"]):
        refusals = result.pop("refusals")
        assert len(result) == 3
        assert {name: worst for name, worst in result.items() if worst} == {}
        assert refusals["horizon"] == ["parallel.window", "guidance=2", "ulysses=2", "ring=2"]
        assert refusals["second session"] is True
        assert 3 <= refusals["cancelled after"] <= 4  # both ranks stopped in the same step
        assert "mesh         window=2; rank " in refusals["description"]
        assert refusals["warm-up"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "axes"),
    [
        (2, ["guidance=2", "ulysses=2"]),
        (3, ["ulysses=3", "ring=3"]),
        (4, ["window=2,guidance=2", "ulysses=2,ring=2", "window=2,ulysses=2"]),
    ],
)
def test_other_meshes(launch, world_size, axes):
    for result in launch.run("engine_cases", world_size, axes):
        for name, worst in result.items():  # a ring sums in another order: a level of 255 at most
            assert worst <= (1 if "ring" in name else 0), name


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_decoder_pipeline_gives_the_same_bytes(launch, world_size):
    for result in launch.run("decode_cases", world_size, None):
        assert result.keys() == {"tiny", "wan"}
        for vae, found in result.items():
            assert all(found.values()), (vae, found)
