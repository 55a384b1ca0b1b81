"""What the cost model predicts, against sums by hand and what must hold of any model."""

import dataclasses
import math

import pytest

import skyreels_rt as rt
from skyreels_rt.bench.scaling import CASES, WAN_1_3B, WAN_14B, scaling_report, scaling_tables
from skyreels_rt.distributed.cost_model import H200, StepShape, fastest, predict, sent_bytes
from skyreels_rt.distributed.links import Links
from skyreels_rt.distributed.parallel import Parallel
from skyreels_rt.errors import InvalidArgument, InvalidMesh

SHAPE = StepShape(window=21, overlap=5, num_windows=4, num_passes=2, height=60, width=104)
ONE = dataclasses.replace(SHAPE, num_windows=1, num_passes=1)


def test_one_gpu_against_a_sum_by_hand():
    tokens, d, ffn, layers = 21 * 30 * 52, 5120, 13824, 40
    assert ONE.num_tokens(WAN_14B) == tokens == 32_760
    linear = tokens * (16 * d**2 + 4 * d * ffn) * layers
    attention = 4 * tokens**2 * d * layers
    contexts = 4 * tokens * d * (512 + 257 + 32) * layers
    seconds = linear / (0.85 * 788e12) + (attention + contexts) / (0.80 * 788e12)
    seconds += 63 * tokens * d * layers / 4.3e12
    cost = predict(WAN_14B, ONE, Parallel())
    assert cost.seconds == pytest.approx(seconds, rel=1e-12)
    assert cost.exchange_s == 0
    assert set(cost.sent_bytes.values()) == {0}


def test_ulysses_bytes_are_four_all_to_alls_of_the_share():
    sent = sent_bytes(WAN_14B, ONE, Parallel(ulysses=8))
    share = 32_760 // 8 * 5120 * 2
    assert sent["ulysses"] == 40 * 4 * share * 7 // 8


def test_ring_bytes_are_all_blocks_of_keys_and_values_but_one():
    sent = sent_bytes(WAN_14B, ONE, Parallel(ring=4))
    assert sent["ring"] == 40 * 3 * 2 * (32_760 // 4) * 5120 * 2


def test_windows_send_their_overlaps_only():
    latent = 16 * 60 * 104 * 2
    two = sent_bytes(WAN_14B, SHAPE, Parallel(window=2))
    four = sent_bytes(WAN_14B, SHAPE, Parallel(window=4))
    assert two["window"] == 5 * 2 * latent
    assert four["window"] == 2 * two["window"]  # a rank in the middle has two neighbours
    assert sum(four.values()) == four["window"]


@pytest.mark.parametrize("config", [WAN_14B, WAN_1_3B])
@pytest.mark.parametrize("parallel", [Parallel(ulysses=2), Parallel(ring=8), Parallel(guidance=2)])
def test_no_mesh_is_faster_than_its_share_of_the_work(config, parallel):
    alone = predict(config, SHAPE, Parallel()).seconds
    assert predict(config, SHAPE, parallel).seconds >= alone / parallel.world_size * (1 - 1e-9)


def test_a_wall_of_slow_links_is_seen():
    """An axis that leaves the machine runs at the speed of the network."""
    inside = predict(WAN_14B, ONE, Parallel(ulysses=8))
    outside = predict(WAN_14B, ONE, Parallel(ulysses=8), dataclasses.replace(H200, node_size=4))
    assert inside.compute_s == outside.compute_s
    sent = inside.sent_bytes["ulysses"] + inside.sent_bytes["sequence"]
    more = sent / H200.node_bandwidth - sent / H200.link_bandwidth
    assert outside.exchange_s - inside.exchange_s == pytest.approx(more)


def test_measured_links_take_the_place_of_given_ones():
    """Slow links: what sends least wins, though fewer ranks then share a pass."""
    links = Links(2, point_to_point=2e6, all_to_all=1e6, latency_s=1e-3)
    hardware = H200.over(links)
    assert (hardware.link_bandwidth, hardware.node_bandwidth) == (1e6, 1e6)
    assert (hardware.latency_s, hardware.flops) == (1e-3, H200.flops)
    cost = predict(WAN_14B, ONE, Parallel(ulysses=2), hardware)
    sent = cost.sent_bytes["ulysses"] + cost.sent_bytes["sequence"]
    assert cost.exchange_s == pytest.approx(sent / 1e6 + 81 * 1e-3)
    two = dataclasses.replace(ONE, num_passes=2)
    assert Parallel.suggest(WAN_14B, two, 2, hardware=hardware) == Parallel(guidance=2)


def test_a_ring_hides_behind_attention_until_its_link_is_too_slow():
    fast = predict(WAN_14B, ONE, Parallel(ring=2))
    slow = predict(WAN_14B, ONE, Parallel(ring=2), dataclasses.replace(H200, link_bandwidth=1e9))
    assert fast.exchange_s < fast.sent_bytes["ring"] / H200.link_bandwidth / 10
    assert slow.exchange_s > 0.5 * slow.sent_bytes["ring"] / 1e9


def test_uneven_heads_wait_for_the_rank_with_most():
    even = predict(WAN_1_3B, ONE, Parallel(ulysses=6)).compute_s
    uneven = predict(WAN_1_3B, ONE, Parallel(ulysses=8)).compute_s  # 12 heads: 2 for some
    assert uneven > even * 6 / 8


def test_windows_are_suggested_first_and_sequences_where_there_is_one_window():
    config = WAN_14B
    assert Parallel.suggest(config, SHAPE, 4) == Parallel(window=4)
    assert Parallel.suggest(config, SHAPE, 8) == Parallel(window=4, guidance=2)
    assert Parallel.suggest(config, ONE, 8).sequence == 8
    found = fastest(config, SHAPE, 8)
    assert found[0].seconds == min(cost.seconds for cost in found)
    assert all(cost.parallel.world_size == 8 for cost in found)
    assert len({str(cost.parallel) for cost in found}) == len(found)


def test_an_engine_suggests_for_its_own_jobs():
    engine = rt.Engine.from_pretrained("tiny-random")
    shape = engine.step_shape(4.0)
    config = engine.components.transformer.config
    assert shape.num_windows == math.ceil((26 - 5) / 16)
    assert Parallel.suggest(engine, shape, 2) == Parallel.suggest(config, shape, 2)
    assert "2 H200" in engine.describe()
    assert "not measured" in engine.describe()


def test_ranks_without_work_are_refused():
    tiny = StepShape(window=1, overlap=0, num_windows=1, num_passes=1, height=2, width=2)
    with pytest.raises(InvalidMesh, match="num_gpus"):
        Parallel.suggest(WAN_14B, tiny, 64)


@pytest.mark.parametrize(
    "field, value", [("window", 0), ("num_passes", 0), ("overlap", -1), ("overlap", 21)]
)
def test_impossible_shapes_are_refused(field, value):
    with pytest.raises(InvalidArgument, match=field):
        dataclasses.replace(SHAPE, **{field: value})


def test_the_page_about_scaling_holds_the_tables_of_the_model(pytestconfig):
    page = (pytestconfig.rootpath / "docs" / "scaling.md").read_text()
    assert scaling_tables().strip() in page, "regenerate with `skyreels-rt bench scaling`"
    names = [row.name for row in scaling_report("").rows]
    assert len(names) == len(set(names)) == 2 * 7 * len(CASES)
