"""Ranks agree with one rank: real processes, every mesh, numbers that do not divide."""

import itertools

import pytest

import skyreels_rt as rt

TOLERANCE = 1e-5  # the promise, in float32

# Size in latents; a frame is h/2 x w/2 tokens, a window 5 frames: 80 or 75 tokens.
EVEN, UNEVEN = (8, 8), (6, 10)
LINED_UP = {"length": 17, "window": 5, "overlap": 1}  # 4 windows, none shifted
SHIFTED = {"length": 15, "window": 5, "overlap": 2}  # 5 windows, the last shifted back
DENSE = {"length": 9, "window": 5, "overlap": 4}  # a window overlaps four others
BASE = {"heads": 3, "passes": 2, "size": UNEVEN, **SHIFTED}


def case(parallel: str, **changes) -> dict:
    name = " ".join([parallel, *(f"{k}={v}" for k, v in sorted(changes.items()))])
    return {**BASE, **changes, "parallel": parallel, "name": name}


FAST = [
    case("window=2"),
    case("window=2", **LINED_UP, size=EVEN),
    case("window=2", **DENSE, passes=1),
    case("window=2", solver="unipc", pinned=2),
    case("window=2", length=5),  # one window: the second rank is idle
    case("window=2", cache="mask"),
    case("window=2", cache="gate"),
    case("guidance=2", passes=3),
    case("guidance=2", solver="unipc"),
    case("guidance=2", slot=True),
    case("ulysses=2"),
    case("ulysses=2", slot=True),
    case("ulysses=2", size=EVEN, heads=4, passes=1),
    case("ulysses=2", cache="gate"),
    case("ulysses=2", kernels="reference"),
    case("ulysses=2", hears="shared_query"),
    case("ring=2", hears="shared_query", slot=True),
    case("ring=2"),
    case("ring=2", size=EVEN, passes=3),
    case("ring=2", cache="mask"),
]


def every_mesh(world_size: int) -> list[str]:
    sizes = [n for n in range(1, world_size + 1) if world_size % n == 0]
    found = itertools.product(sizes, [n for n in sizes if n <= 3], sizes, sizes)
    meshes = [rt.Parallel(*axes) for axes in found]
    return [str(mesh) for mesh in meshes if mesh.world_size == world_size]


def whole_table(world_size: int) -> list[dict]:
    """Every mesh x even and uneven tokens x heads that divide and do not x 1 to 3 passes."""
    cases = []
    for text, size, heads, passes in itertools.product(
        every_mesh(world_size), (EVEN, UNEVEN), (4, 5, 10), (1, 2, 3)
    ):
        if rt.Parallel.from_text(text).guidance <= passes:
            cases.append(case(text, size=size, heads=heads, passes=passes))
    for text in every_mesh(world_size):
        if rt.Parallel.from_text(text).guidance <= 2:
            cases += [
                case(text, cache="mask"),
                case(text, cache="gate"),
                case(text, hears="shared_query"),
                case(text, solver="unipc", pinned=2, **DENSE),
            ]
    return cases


def check(results: list[dict], cases: list[dict]) -> None:
    """Every rank's result against the promises."""
    for rank, result in enumerate(results):
        for one in cases:
            found, where = result[one["name"]], f"rank {rank}: {one['name']}"
            assert found["difference"] <= TOLERANCE, (where, found)
            assert found["scale"] > 0.5, where  # something was computed
            assert found["steps_agree"], where
            parallel = rt.Parallel.from_text(one["parallel"])
            if parallel.sequence == 1:
                assert found["equal"], where
            if one.get("cache") != "gate":
                assert found["sent"] == found["predicted"], where


PAIR = case("window=2", length=8, passes=1)  # two windows of 5 latents that share 2

FAULTS = [
    case("ring=2", fault="padding is attended"),
    case("ring=2", fault="log-sum-exp is ignored"),
    case("ring=2", fault="log-sum-exps are swapped"),
    case("window=2", fault="overlaps are not exchanged"),
    case("ring=2", hears="shared_query", fault="audio is of another frame"),
    case("guidance=2", fault="passes come back in another order"),
]


@pytest.fixture(scope="module")
def two_ranks(shared_launch):
    """All cases of two ranks in one launch."""
    return shared_launch.run("group_cases", 2, [*FAST, PAIR, *FAULTS])


def test_two_ranks_agree_with_one(two_ranks):
    check(two_ranks, FAST)


def test_window_ranks_send_only_overlaps(two_ranks):
    """In each of 3 steps the 2 latents they share, and in the end each its new ones."""
    plane = 16 * 6 * 10 * 4
    first, second = (result[PAIR["name"]]["sent"]["window"] for result in two_ranks)
    assert (first, second) == ((3 * 2 + 3) * plane, (3 * 2 + 5) * plane)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda one: one["fault"])
def test_planted_fault_is_seen(two_ranks, fault):
    for result in two_ranks:
        assert result[fault["name"]]["difference"] > 10 * TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_mesh_agrees_with_one_rank(launch, world_size):
    cases = whole_table(world_size)
    assert len(cases) > 8
    check(launch.run("group_cases", world_size, cases), cases)
