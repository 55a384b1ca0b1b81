import numpy as np
import pytest
import torch

from skyreels_rt.conditioning.channels import condition_channels, edited_cells, latent_mask
from skyreels_rt.config import TransformerConfig
from skyreels_rt.errors import InvalidArgument
from skyreels_rt.types import Timeline

NUM_LATENTS, HEIGHT, WIDTH, CHANNELS = 5, 3, 4, 16
STRIDE = 4


def config_of(condition, known_value=1):
    return TransformerConfig(in_channels=16 + condition, mask_known_value=known_value)


def alpha_of(num_frames, seed=0):
    """Edit weights with untouched cells, cells edited in one pixel, and cells edited whole."""
    generator = np.random.default_rng(seed)
    alpha = np.zeros((num_frames, HEIGHT * 8, WIDTH * 8), np.float32)
    for index in np.ndindex(num_frames, HEIGHT, WIDTH):
        kind = generator.integers(0, 3)
        frame, row, column = index
        cell = alpha[frame, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
        if kind == 1:
            cell[generator.integers(0, 8), generator.integers(0, 8)] = 1e-3
        elif kind == 2:
            cell[:] = 1
    return alpha


def naive_mask(alpha, timeline, num_latents):
    """Pixel by pixel: which slots of which cells are known."""
    mask = np.zeros((STRIDE, num_latents, HEIGHT, WIDTH), np.int64)
    for latent in range(num_latents):
        first, stop = timeline.first_frame(latent), timeline.first_frame(latent + 1)
        for slot in range(STRIDE):
            frame = first + slot if stop - first == STRIDE else first
            for row in range(HEIGHT):
                for column in range(WIDTH):
                    known = 1
                    for y in range(row * 8, row * 8 + 8):
                        for x in range(column * 8, column * 8 + 8):
                            if alpha[frame, y, x] != 0:
                                known = 0
                    mask[slot, latent, row, column] = known
    return mask


def naive_channels(condition, known_value, reference, given, mask):
    """Frame by frame and cell by cell, in double precision."""
    num_masks = {0: 0, 16: 0, 17: 1, 20: 4}[condition]
    if condition == 0:
        return np.zeros((0, NUM_LATENTS, HEIGHT, WIDTH))
    result = np.zeros((condition, NUM_LATENTS, HEIGHT, WIDTH), np.float64)
    for n in range(NUM_LATENTS):
        for y in range(HEIGHT):
            for x in range(WIDTH):
                slots = [0] * STRIDE if mask is None else [int(s) for s in mask[:, n, y, x]]
                shown = slots if num_masks == 4 else [int(all(slots))] * num_masks
                for slot in range(num_masks):
                    result[slot, n, y, x] = shown[slot] if known_value == 1 else 1 - shown[slot]
                for c in range(CHANNELS):
                    value = 0.0
                    if reference is not None:
                        value = reference[c, y, x] if reference.ndim == 3 else reference[c, n, y, x]
                    if given is not None and all(slots):
                        value = given[c, n, y, x]
                    result[num_masks + c, n, y, x] = value
    return result


def latents(seed, *shape):
    """Values that are never zero."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator) + 0.5


def mask_of(seed=0):
    mask = latent_mask(alpha_of(1 + STRIDE * (NUM_LATENTS - 1), seed), 8, STRIDE)
    mask[:, 1, 0, 0] = 1
    mask[:, 2, 1, 1] = 0
    mask[:, 3, 2, 2] = torch.tensor([1.0, 0.0, 1.0, 1.0])
    return mask


@pytest.mark.parametrize("primed", [False, True])
def test_latent_mask_equals_the_loop(primed):
    timeline = Timeline(STRIDE, primed)
    alpha = alpha_of(timeline.num_frames(NUM_LATENTS))
    mask = latent_mask(alpha, 8, STRIDE)
    assert mask.shape == (STRIDE, NUM_LATENTS, HEIGHT, WIDTH)
    assert mask.dtype == torch.float32
    expected = naive_mask(alpha, timeline, NUM_LATENTS)
    assert 0 < expected.sum() < expected.size
    assert np.array_equal(mask.numpy(), expected)


def test_first_frame_fills_all_slots_of_the_first_latent():
    alpha = np.ones((1 + STRIDE, 8, 8), np.float32)
    alpha[0] = 0
    mask = latent_mask(alpha, 8, STRIDE)
    assert mask[:, 0].eq(1).all()
    assert mask[:, 1].eq(0).all()


def test_slot_order_is_frame_order():
    alpha = np.ones((2 * STRIDE, 8, 8), np.float32)
    alpha[STRIDE + 2] = 0
    mask = latent_mask(alpha, 8, STRIDE)
    assert mask[:, 1, 0, 0].tolist() == [0, 0, 1, 0]
    assert mask[:, 0].eq(0).all()


def test_a_single_touched_pixel_makes_its_cell_unknown():
    alpha = np.zeros((1, 16, 24), np.float32)
    alpha[0, 15, 8] = np.float32(1e-6)
    mask = latent_mask(alpha, 8, STRIDE)[0, 0]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 1]]


def test_pieces_of_a_stream_give_the_whole():
    alpha = alpha_of(1 + 4 * STRIDE)
    pieces = [alpha[:1], alpha[1:5], alpha[5:13], alpha[13:]]
    joined = torch.cat([latent_mask(piece, 8, STRIDE) for piece in pieces], dim=1)
    assert torch.equal(joined, latent_mask(alpha, 8, STRIDE))


def test_stride_one_has_one_slot():
    assert latent_mask(np.zeros((3, 8, 8), np.float32), 8, 1).shape == (1, 3, 1, 1)


@pytest.mark.parametrize(
    "shape", [(0, 8, 8), (2, 8, 8), (3, 8, 8), (6, 8, 8), (1, 9, 8), (1, 8, 4)]
)
def test_latent_mask_refuses_parts_of_latents(shape):
    with pytest.raises(InvalidArgument) as caught:
        latent_mask(np.zeros(shape, np.float32), 8, STRIDE)
    assert caught.value.argument == "alpha"


@pytest.mark.parametrize("condition", [0, 16, 17, 20])
@pytest.mark.parametrize("known_value", [0, 1])
@pytest.mark.parametrize("reference_kind", ["none", "one", "per_frame"])
@pytest.mark.parametrize("is_given", [False, True])
def test_channels_equal_the_loop(condition, known_value, reference_kind, is_given):
    size = (NUM_LATENTS, HEIGHT, WIDTH)
    reference = {
        "none": None,
        "one": latents(1, CHANNELS, HEIGHT, WIDTH),
        "per_frame": latents(2, CHANNELS, *size),
    }[reference_kind]
    given = -latents(3, CHANNELS, *size) if is_given else None
    mask = mask_of() if is_given else None
    result = condition_channels(
        config_of(condition, known_value),
        *size,
        reference_latents=reference,
        given_latents=given,
        given_mask=mask,
    )
    expected = naive_channels(
        condition,
        known_value,
        *(None if t is None else t.double().numpy() for t in (reference, given, mask)),
    )
    assert result.shape == (condition, *size)
    assert np.array_equal(result.double().numpy(), expected)
    if is_given and condition >= 16:
        assert (result[-16:] < 0).any()
        assert (result[-16:] >= 0).any()


@pytest.mark.parametrize("known_value", [0, 1])
def test_without_any_condition_everything_is_to_generate(known_value):
    result = condition_channels(
        config_of(20, known_value),
        2,
        3,
        4,
        reference_latents=None,
        given_latents=None,
        given_mask=None,
    )
    assert result.dtype == torch.float32
    assert result[:4].eq(1 - known_value).all()
    assert result[4:].eq(0).all()


def test_partly_known_cells_keep_the_reference():
    given, reference = latents(0, 16, 1, 1, 1), -latents(1, 16, 1, 1)
    mask = torch.tensor([1.0, 1.0, 0.0, 1.0]).reshape(4, 1, 1, 1)
    result = condition_channels(
        config_of(20),
        1,
        1,
        1,
        reference_latents=reference,
        given_latents=given,
        given_mask=mask,
    )
    assert result[:4].flatten().tolist() == [1, 1, 0, 1]
    assert torch.equal(result[4:, 0], reference)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_type_follows_the_given_latents(dtype):
    size = (NUM_LATENTS, HEIGHT, WIDTH)
    given = latents(0, CHANNELS, *size).to(dtype)
    result = condition_channels(
        config_of(20),
        *size,
        reference_latents=latents(1, CHANNELS, HEIGHT, WIDTH),
        given_latents=given,
        given_mask=mask_of(),
    )
    assert result.dtype == dtype
    known = mask_of().bool().all(dim=0).expand(CHANNELS, -1, -1, -1)
    assert torch.equal(result[4:][known], given[known])


def test_inputs_are_left_alone():
    size = (NUM_LATENTS, HEIGHT, WIDTH)
    reference, given, mask = latents(0, CHANNELS, *size), latents(1, CHANNELS, *size), mask_of()
    copies = [t.clone() for t in (reference, given, mask)]
    result = condition_channels(
        config_of(16),
        *size,
        reference_latents=reference,
        given_latents=given,
        given_mask=mask,
    )
    result.zero_()
    for tensor, copy in zip((reference, given, mask), copies, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        ("reference_latents", {"reference_latents": torch.ones(15, 3, 4)}),
        ("reference_latents", {"reference_latents": torch.ones(16, 4, 3, 4)}),
        ("reference_latents", {"reference_latents": torch.ones(3, 4)}),
        ("given_latents", {"given_latents": torch.ones(16, 5, 3, 5)}),
        ("given_mask", {"given_mask": torch.ones(3, 5, 3, 4)}),
        ("given_mask", {"given_mask": torch.ones(4, 6, 3, 4)}),
        ("given_latents, given_mask", {"given_mask": None}),
        ("given_latents, given_mask", {"given_latents": None}),
    ],
)
def test_bad_tensors_are_named(argument, change):
    tensors = {
        "reference_latents": torch.ones(16, 3, 4),
        "given_latents": torch.ones(16, 5, 3, 4),
        "given_mask": torch.ones(4, 5, 3, 4),
    } | change
    with pytest.raises(InvalidArgument) as caught:
        condition_channels(config_of(20), 5, 3, 4, **tensors)
    assert caught.value.argument == argument


def test_edited_cells_are_those_that_the_mask_calls_unknown():
    alpha = alpha_of(1 + STRIDE * (NUM_LATENTS - 1))
    blank = edited_cells(alpha, 8)
    assert blank.shape == alpha.shape and blank[alpha > 0].all()
    known = latent_mask(blank.astype(np.float32), 8, STRIDE)
    assert torch.equal(known, latent_mask(alpha, 8, STRIDE))
    # Whole cells: every pixel of a cell is what its corner is.
    corner = blank[:, ::8, ::8].repeat(8, axis=1).repeat(8, axis=2)
    np.testing.assert_array_equal(blank, corner)
