import pytest
import torch

import ar_fast
from ar_fast import Mask
from ar_fast.nn import MaskedLinear


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("out_features, in_features", [(1, 1), (7, 5), (64, 64), (65, 130), (0, 3), (3, 0)])
def test_from_degrees_is_a_comparison(out_features, in_features, strict):
    in_degrees = torch.randint(0, 9, (in_features,), generator=generator(1))
    out_degrees = torch.randint(0, 9, (out_features,), generator=generator(2))
    mask = Mask.from_degrees(in_degrees, out_degrees, strict=strict)
    below, above = in_degrees[None, :], out_degrees[:, None]
    assert torch.equal(mask.to_dense(), below < above if strict else below <= above)
    assert mask.extents.dtype == torch.int32


def test_sorted_degrees_need_no_permutation():
    mask = Mask.from_degrees([1, 2, 3], [0, 1, 1, 3])
    assert mask.rows is None and mask.columns is None and mask.extents.tolist() == [0, 1, 1, 3]
    mask = Mask.from_degrees([3, 1, 2], [3, 0])
    assert mask.columns.tolist() == [1, 2, 0] and mask.rows.tolist() == [1, 0] and mask.extents.tolist() == [3, 0]


@pytest.mark.parametrize("seed", range(20))
def test_from_dense_recovers_any_nested_mask(seed):
    out_features, in_features = torch.randint(1, 90, (2,), generator=generator(seed)).tolist()
    in_degrees = torch.randint(0, 20, (in_features,), generator=generator(seed + 100))
    out_degrees = torch.randint(-1, 21, (out_features,), generator=generator(seed + 200))
    dense = in_degrees[None, :] <= out_degrees[:, None]
    mask = Mask.from_dense(dense)
    assert mask.extents is not None, "the rows are nested sets"
    assert torch.equal(mask.to_dense(), dense)


@pytest.mark.parametrize("seed", range(20))
def test_from_dense_never_makes_a_wrong_plan(seed):
    out_features, in_features = torch.randint(1, 90, (2,), generator=generator(seed)).tolist()
    # A nested mask with a few bits flipped, which may stay nested.
    dense = torch.arange(in_features)[None, :] <= torch.randint(
        0, in_features, (out_features, 1), generator=generator(seed)
    )
    flipped = torch.rand(dense.shape, generator=generator(seed + 100)) < 3 / dense.numel()
    dense = (dense ^ flipped)[:, torch.randperm(in_features, generator=generator(seed))]
    assert torch.equal(Mask.from_dense(dense).to_dense(), dense)


def test_blocks_plan_says_which_tiles_are_empty_full_and_mixed():
    dense = torch.zeros(130, 100, dtype=torch.bool)
    dense[:64, :64] = True
    dense[128:, 64:] = True
    dense[70, 3] = True
    mask = Mask.from_dense(dense)
    assert mask.extents is None and mask.tiles.dtype == torch.int32
    assert mask.tiles.tolist() == [[1, 0], [2, 0], [0, 1]]
    assert torch.equal(mask.to_dense(), dense)


def test_dense_hides_nothing():
    mask = Mask.dense(3, 4)
    assert torch.equal(mask.to_dense(), torch.ones(3, 4, dtype=torch.bool))
    assert mask.rows is None and mask.columns is None


def test_repr_is_short():
    assert repr(Mask.dense(3, 4)) == "Mask(out_features=3, in_features=4, plan='nested', density=1.0)"
    assert repr(Mask.from_dense(torch.eye(4, dtype=torch.bool))) == (
        "Mask(out_features=4, in_features=4, plan='blocks', density=0.25)"
    )


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Mask.from_dense(torch.ones(3, dtype=torch.bool)), r"mask must have shape \(O, I\), got \(3,\)"),
        (lambda: Mask.from_dense(torch.ones(3, 3)), r"mask must be bool, got torch.float32"),
        (lambda: Mask.from_degrees([[1]], [1]), r"in_degrees must be one-dimensional, got shape \(1, 1\)"),
        (lambda: Mask.from_degrees([1], [1.5]), r"out_degrees must hold integers, got torch.float32"),
    ],
)
def test_bad_masks(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def plans(out_features, in_features):
    in_degrees = torch.randint(0, 9, (in_features,), generator=generator(1))
    out_degrees = torch.randint(0, 9, (out_features,), generator=generator(2))
    return {
        "sorted": Mask.from_degrees(in_degrees.sort().values, out_degrees.sort().values),
        "unsorted": Mask.from_degrees(in_degrees, out_degrees),
        "blocks": Mask.from_dense(torch.rand(out_features, in_features, generator=generator(3)) < 0.4),
        "dense": Mask.dense(out_features, in_features),
    }


@pytest.mark.parametrize("name", ["sorted", "unsorted", "blocks", "dense"])
@pytest.mark.parametrize("bias", [True, False])
def test_masked_linear_is_a_linear_layer_with_a_masked_weight(name, bias, device):
    mask = plans(70, 67)[name]
    layer = MaskedLinear(67, 70, mask, bias=bias, dtype=torch.float64).to(device)
    linear = torch.nn.Linear(67, 70, bias=bias, dtype=torch.float64).to(device)
    layer.load_state_dict(linear.state_dict())
    assert layer.state_dict().keys() == linear.state_dict().keys()
    dense = mask.to_dense().to(device)
    with torch.no_grad():
        layer.weight[~dense] = torch.nan
        linear.weight[~dense] = 0
    x = torch.randn(2, 3, 67, generator=generator(4), dtype=torch.float64).to(device)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [layer(inputs[0]), linear(inputs[1])]
    torch.testing.assert_close(*outputs)
    grad = torch.randn(2, 3, 70, generator=generator(5), dtype=torch.float64).to(device)
    for output in outputs:
        output.backward(grad)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    torch.testing.assert_close(layer.weight.grad, linear.weight.grad * dense)
    assert bool((layer.weight.grad[~dense] == 0).all())
    if bias:
        torch.testing.assert_close(layer.bias.grad, linear.bias.grad)


def test_masked_linear_takes_a_bool_matrix_and_shares_a_linear_layer():
    dense = torch.rand(4, 3, generator=generator()) < 0.5
    linear = torch.nn.Linear(3, 4)
    layer = MaskedLinear.from_linear(linear, dense)
    assert layer.weight is linear.weight and layer.bias is linear.bias
    assert torch.equal(layer.mask.to_dense(), dense)
    x = torch.randn(5, 3)
    torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, linear.weight * dense, linear.bias))
    assert repr(layer) == repr(MaskedLinear(3, 4, dense))


def test_a_mask_must_match_the_weight():
    with pytest.raises(
        ValueError, match=r"mask must have shape \(out_features, in_features\) = \(4, 3\), got \(3, 4\)"
    ):
        MaskedLinear(3, 4, Mask.dense(3, 4))
    with pytest.raises(ValueError, match=r"mask must match weight of shape \(4, 3\), got a mask of shape \(3, 4\)"):
        ar_fast.functional.masked_linear(torch.ones(1, 3), torch.ones(4, 3), Mask.dense(3, 4))
    with pytest.raises(TypeError, match=r"mask must be an ar_fast.Mask \(Mask.from_dense makes one\), got Tensor"):
        ar_fast.functional.masked_linear(torch.ones(1, 3), torch.ones(4, 3), torch.ones(4, 3).bool())
