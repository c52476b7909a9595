"""Integer inputs: the dtype that holds a value changes nothing, however small it is."""

import pytest
import torch
from model_cases import KINDS, SHARED_KINDS, make_model

from ar_fast import functional, heads

pytestmark = pytest.mark.heavy

# Values up to 126, which every dtype holds, of heads whose bounds some of them do not hold.
HEADS = {
    "bernoulli": (heads.Bernoulli(), [1, 0, 1]),
    "levels": (heads.LogisticMixture(1, 256), [126, 0, 3]),
    "many levels": (heads.LogisticMixture(1, 2**16), [126, 0, 3]),
    "categories": (heads.Categorical(256), [126, 0, 3]),
    "own categories": (heads.Categorical([256, 300, 2]), [126, 7, 1]),
    "own heads": (
        heads.PerVariable([heads.LogisticMixture(1, 256), heads.Categorical(300), heads.GaussianMixture(1)]),
        [126, 7, 3],
    ),
    "real": (heads.GaussianMixture(1), [126, 0, 3]),
}
DTYPES = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64]
INTEGERS = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


@pytest.mark.parametrize("name", [name for name in HEADS if name != "many levels"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_integer_dtype_gives_the_int64_result(kind, name, device):
    head, values = HEADS[name]
    if kind in SHARED_KINDS and isinstance(head.counts(3), list):
        pytest.skip("a model of shared weights takes heads of as many parameters for every variable")
    model = make_model(kind, 3, head=head, validate_args=True, device=device)
    if model.standardization is not None:
        # A mean that the small dtypes do not hold.
        model.standardize(mean=torch.full((3,), 1000.0), std=torch.full((3,), 900.0))
    x = torch.tensor([values, values[::-1] if isinstance(head.counts(3), int) else values], device=device)
    known = torch.zeros(3, dtype=torch.bool, device=device).index_fill(0, model.order[:1], True)

    def results(x):
        yield model.log_prob(x)
        yield model.log_prob(x, observed=known)
        yield model(x)
        yield model.sample(2, seed=1, given=x[0], known=known)
        yield model.next(model.begin(2), x[:, int(model.order[0])]).parameters

    expected = list(results(x))
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.uint16):
        for result, wanted in zip(results(x.to(dtype)), expected, strict=True):
            assert torch.equal(result, wanted), dtype


@INTEGERS
@pytest.mark.parametrize("name", HEADS)
def test_supports_in_every_integer_dtype(name, dtype):
    head, values = HEADS[name]
    x = torch.tensor(values)
    upper = torch.tensor(head.categories) if name == "own categories" else None
    assert bool(head.support(torch.Size([3])).check(x.to(dtype)).all()) and head.supports(x.to(dtype), upper)
    if head.sizes(3)[2] is not None:
        too_large = torch.tensor([0, 0, head.sizes(3)[2]])
        if too_large[2] <= torch.iinfo(dtype).max:
            expected = [False, False, True]
            assert head.violation(too_large.to(dtype), upper).tolist() == expected, "a value beyond the last"
            assert (~head.support(torch.Size([3])).check(too_large.to(dtype))).tolist() == expected
    if dtype in (torch.int8, torch.int16, torch.int32) and name != "real":
        assert head.violation(torch.tensor([-1, 0, 0], dtype=dtype), upper).tolist() == [True, False, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bounds_that_a_16_bit_float_does_not_hold(dtype):
    """257 is 256 in bfloat16, and 2049 is 2048 in float16."""
    last = 256 if dtype == torch.bfloat16 else 2048
    x, categories = torch.tensor([last], dtype=dtype), heads.Categorical(last + 1)
    for head in (categories, heads.LogisticMixture(1, last + 1), heads.PerVariable([categories])):
        assert not bool(head.violation(x).any()) and bool(head.support(torch.Size([1])).check(x).all())
        assert bool(head.violation(torch.nextafter(x, torch.tensor(torch.inf, dtype=dtype))).all())


def test_ops_take_every_integer_dtype(device):
    x, order = torch.tensor([[126, 0, 3], [7, 1, 126]], device=device), torch.tensor([2, 0, 1], device=device)
    for rows, head in ((3 * 300, "categorical"), (3, "bernoulli"), (9, "gaussian_mixture")):
        in_rows = rows if head == "categorical" else 3
        weights = [torch.randn(*shape, device=device) for shape in ((in_rows, 2), (2,), (rows, 2), (rows,))]

        def results(x, weights=weights, head=head):
            yield functional.nade(x, *weights, order=order)
            yield functional.nade_log_prob(x, *weights, order=order, head=head)
            yield functional.head_log_prob(weights[3].expand(2, -1), x, head=head)

        expected = list(results(x))
        for dtype in DTYPES:
            for result, wanted in zip(results(x.to(dtype)), expected, strict=True):
                assert torch.equal(result, wanted), dtype


def test_the_smallest_case():
    model = make_model("NADE", 2, head=heads.LogisticMixture(1, 256))
    assert model.log_prob(torch.zeros(1, 2, dtype=torch.uint8)) == model.log_prob(torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"x must be in the support .*, got 256 at index \(0, 1\)"):
        model.log_prob(torch.tensor([[0, 256]], dtype=torch.int16))
