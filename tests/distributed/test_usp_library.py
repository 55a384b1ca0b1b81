"""yunchang as what exchanges tokens: equal to ours where it is right, refused where it is not."""

import importlib.util

import pytest
import torch

import skyreels_rt as rt
from skyreels_rt.distributed.mesh import open_mesh
from skyreels_rt.distributed.usp_library import USPLibrary, use_library
from skyreels_rt.errors import InvalidArgument

TOLERANCE = 1e-5
needs_yunchang = pytest.mark.skipif(
    importlib.util.find_spec("yunchang") is None, reason="yunchang ([usp]) is not installed"
)


def check(results, axes):
    for result in results:
        assert list(result) == axes
        for text, found in result.items():
            assert found["difference"] <= TOLERANCE, (text, found)
            assert found["scale"] > 0.2
            assert found["sent"] == found["predicted"], (text, found)
            assert sum(found["sent"].values()) > 0
            assert found["auto"] == [True, "on the CPU"]
            assert found["uneven tokens"][0] == "invalid_mesh"
            assert "usp by yunchang" in found["describe"]
            if "ring" in text:
                code, words = found["as it is"]
                assert code == "unsupported_kernel"
                assert "ring by torch_math: self-test is off by 0." in words
                assert found["left"]
            if "ulysses" in text:
                assert found["3 heads"][0] == "invalid_mesh"


@pytest.mark.peer
@needs_yunchang
def test_ulysses_equals_ours_and_the_ring_without_weights_is_refused(launch):
    """Also a ring with a kernel that returns its log-sum-exp, as those on GPUs do."""
    axes = ["ulysses=2", "ring=2"]
    check(launch.run("usp_cases", 2, ["cpu", axes]), axes)


@pytest.mark.peer
@pytest.mark.slow
@needs_yunchang
def test_both_together(launch):
    axes = ["ulysses=4", "ring=4", "ulysses=2,ring=2"]
    check(launch.run("usp_cases", 4, ["cpu", axes]), axes)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two GPUs are needed")
@needs_yunchang
def test_gpus_take_what_is_right(launch):
    """Whichever kernel passed: within a few roundings of bfloat16, and bytes by the formulas."""
    for result in launch.run("usp_cases", 2, ["cuda", ["ulysses=2", "ring=2"]]):
        for text, found in result.items():
            assert found["difference"] <= 4 * torch.finfo(torch.bfloat16).eps * found["scale"]
            assert found["sent"] == found["predicted"], text
        assert "usp by yunchang" in result["ulysses=2"]["describe"]


def test_asked_for_without_ranks_that_share_tokens():
    mesh = open_mesh(rt.Parallel(), torch.device("cpu"))
    with pytest.raises(InvalidArgument, match="usp: expected ulysses or ring ranks"):
        use_library(USPLibrary.YUNCHANG, mesh, torch.float32, 4)
    use_library(USPLibrary.AUTO, mesh, torch.float32, 4)
    assert mesh.exchange is None
    with pytest.raises(InvalidArgument, match="usp"):
        rt.Engine.from_pretrained("tiny-random", usp="yunchang")
    with pytest.raises(InvalidArgument, match="auto, torch, yunchang"):
        rt.Engine.from_pretrained("tiny-random", usp="xfuser")
