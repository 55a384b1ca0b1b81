"""A rank's tokens cut by frame, and the decoder's pieces cut by work."""

import pytest

from skyreels_rt.models.token_shard import FrameSegment, frame_segments
from skyreels_rt.models.vae_pieces import balanced


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        (0, 12, [(12, 0, 3)]),
        (1, 3, [(2, 0, 1)]),
        (2, 11, [(2, 0, 1), (4, 1, 2), (3, 2, 3)]),
        (4, 9, [(4, 1, 2), (1, 2, 3)]),
        (3, 5, [(1, 0, 1), (1, 1, 2)]),
        (5, 5, []),
    ],
)
def test_tokens_are_cut_into_part_whole_frames_and_part(start, stop, expected):
    assert frame_segments(start, stop, 4) == tuple(FrameSegment(*one) for one in expected)


def test_stages_are_balanced_and_none_is_empty():
    assert balanced([5, 1, 1, 1, 4], 2) == [range(2), range(2, 5)]
    assert balanced([1, 1, 100], 3) == [range(1), range(1, 2), range(2, 3)]
    assert balanced([3, 3], 1) == [range(2)]
