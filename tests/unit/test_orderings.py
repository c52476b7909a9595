import pytest
import torch

from ar_fast import orderings


def test_raster_puts_the_channels_of_a_pixel_next_to_each_other():
    order = orderings.raster((3, 2, 2))
    positions = [tuple(int(i) for i in torch.unravel_index(v, (3, 2, 2))) for v in order]
    assert positions[:4] == [(0, 0, 0), (1, 0, 0), (2, 0, 0), (0, 0, 1)]
    assert positions[6] == (0, 1, 0)


@pytest.mark.parametrize("shape", [5, (5,), (4, 5), (1, 4, 5), (2, 2, 3, 2)])
def test_raster_is_the_identity_where_there_is_one_channel(shape):
    order = orderings.raster(shape)
    assert torch.equal(order, torch.arange(order.numel()))
    assert torch.equal(orderings.reversed(shape), order.flip(0))


def test_snake_moves_to_a_neighbouring_pixel_each_time():
    rows, columns = torch.unravel_index(orderings.snake((4, 3)), (4, 3))
    assert bool(((rows.diff().abs() + columns.diff().abs()) == 1).all())
    channels = orderings.snake((2, 3, 3)).reshape(9, 2)
    assert torch.equal(channels[:, 1] - channels[:, 0], torch.full((9,), 9))


def test_random_is_a_permutation_that_its_seed_fixes_and_touches_no_generator():
    before = torch.get_rng_state()
    order = orderings.random((3, 4), seed=5)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(order, orderings.random(12, seed=5))
    assert not torch.equal(order, orderings.random(12, seed=6))
    assert torch.equal(orderings.check(order), order)
    assert torch.equal(orderings.inverse(order)[order], torch.arange(12))


@pytest.mark.parametrize(
    "order, message",
    [
        ([0, 0, 1], r"order: must be a permutation of 0 \.\.\. 2, got 0 2 times"),
        ([0, 3, 1], r"got 3 at position 1"),
        ([0, -1, 1], r"got -1 at position 1"),
        ([[0, 1]], r"must have shape \(D,\), got \(1, 2\)"),
        ([0.0, 1.0], r"must hold integers, got torch.float32"),
        ([True, False], r"must hold integers, got torch.bool"),
    ],
)
def test_check_says_what_is_wrong(order, message):
    with pytest.raises(ValueError, match=message):
        orderings.check(order)


def test_check_knows_the_number_of_variables():
    with pytest.raises(ValueError, match=r"permutation of 0 \.\.\. 3, got 3 entries"):
        orderings.check([0, 1, 2], variables=4)


@pytest.mark.parametrize("shape", [0, (), (3, 0), -1])
def test_event_shapes_must_be_positive(shape):
    with pytest.raises(ValueError, match="orderings: event_shape must be one or more positive sizes"):
        orderings.raster(shape)
