"""The two forms of a NADE's state on the CPU: pre-activations, or odds exp(-a) where inputs add rows or nothing."""

import pytest
import torch
from conftest import available_isas, isa
from grids import pairs
from nade_cases import nade_case

from ar_fast import _fallback, _library, explain, functional, reference

ISAS = pytest.mark.parametrize("name", available_isas())


def arguments(case):
    structure = {"order": case.order, "in_offsets": case.in_offsets, "out_offsets": case.out_offsets}
    return case.arguments()[:5], structure


def form(case):
    weights, structure = arguments(case)
    said = " ".join(explain("nade", *weights, **structure))
    return "odds" if "states as odds" in said else "pre-activations"


def parameters_and_gradients(case, function):
    """Parameters, and the gradients of a fixed random functional of them."""
    (x, *weights), structure = arguments(case)
    weights = [tensor.detach().clone().requires_grad_() for tensor in weights]
    parameters = function(x, *weights, **structure)
    # In bfloat16, so that every dtype has the same functional.
    direction = torch.randn(parameters.shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    (parameters * direction.to(parameters.dtype)).sum().backward()
    return [parameters.detach(), *(tensor.grad for tensor in weights)]


def assert_equals_the_reference(case, tolerance):
    got = parameters_and_gradients(case, functional.nade)
    want = parameters_and_gradients(case.upcast(), reference.nade)
    # One size of all gradients: that of a single unit's bias is a sum that may cancel, of terms as large as theirs.
    sizes = [max(1.0, *(float(tensor.abs().max()) for tensor in part)) for part in (want[:1], want[1:])]
    for one, other, scale in zip(got, want, [sizes[0], *[sizes[1]] * 4], strict=True):
        torch.testing.assert_close(one.double() / scale, other / scale, rtol=0, atol=tolerance)


@ISAS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("x", ["binary", "category"])
@pytest.mark.parametrize("hidden", [1, 19, 111, 250])
def test_odds_equal_the_reference(name, dtype, x, hidden):
    case = nade_case(41, 67, hidden, dtype=dtype, x=x, ragged=x == "category")
    assert form(case) == "odds"
    with isa(name):
        # In 16 bits rounding of the result alone is half of that.
        tolerance = {torch.float64: 1e-11, torch.float32: 2e-5}.get(dtype) or torch.finfo(dtype).eps
        assert_equals_the_reference(case, tolerance)


@ISAS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [8.0, 40.0, 400.0])
def test_rows_leave_the_odds_where_they_would_overflow(name, dtype, size):
    """Some rows of some strips leave them, at different positions, others keep them to the end."""
    case = nade_case(41, 67, 111, dtype=dtype, x="binary", ordered=False)
    case.in_weight = case.in_weight * size * torch.linspace(0, 1, 67, dtype=dtype)[:, None]
    assert (case.in_bias + case.x @ case.in_weight).abs().max() > 83 / 2
    assert form(case) == "odds"
    with isa(name):
        # A sum of large numbers is only as exact as they are; a sigmoid passes on that error wherever it is not flat.
        assert_equals_the_reference(case, 1e-9 if dtype == torch.float64 else 1e-6 * size)


@ISAS
@pytest.mark.parametrize("bias", [-95.0, 95.0, 1e6, -1e6])
def test_a_bias_out_of_range(name, bias):
    case = nade_case(41, 67, 35, x="binary")
    case.in_bias[::3] = bias
    with isa(name):
        assert_equals_the_reference(case, 2e-5)


@ISAS
def test_infinite_and_undefined_weights(name):
    case = nade_case(41, 67, 35, x="binary", ordered=False)
    case.in_weight[5, 3], case.in_weight[6, 4], case.in_weight[40, 7] = torch.inf, -torch.inf, torch.nan
    (x, *weights), _ = arguments(case)
    with isa(name):
        got = functional.nade(x, *weights)
    # A zero input adds nothing, whatever its weights are.
    in_weight, in_bias, out_weight, out_bias = (tensor.double() for tensor in weights)
    added = torch.where(x[:, :, None] == 1, in_weight, 0.0)
    hidden = (in_bias + torch.cat([torch.zeros(41, 1, 35), added[:, :-1].cumsum(1)], 1)).sigmoid()
    want = (hidden * out_weight).sum(2) + out_bias
    assert want.isnan().any() and not want.isnan().all()
    torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=2e-5, equal_nan=True)


@ISAS
@pytest.mark.parametrize("parameters", [1, 3])
@pytest.mark.parametrize("size", [1.0, 8.0, 40.0, 400.0])
@pytest.mark.parametrize("zeros", ["none", "some"])
def test_pre_activations_with_and_without_a_bound(name, parameters, size, zeros):
    """Reals: the larger the weights, the more rows leave the bound under which a sigmoid needs no limits."""
    case = nade_case(9, 67, 111, x="dense", parameters=parameters, ordered=False)
    case.in_weight = case.in_weight * size * torch.linspace(0, 1, 67)[:, None]
    if zeros == "some":
        case.x[:4, ::5] = 0
    assert form(case) == "pre-activations"
    with isa(name):
        assert_equals_the_reference(case, 2e-6 * max(size, 10))


#: A vector's units and strips', some more, and few.
WIDTHS = [1, 3, 8, 35, 64, 70, 130]


@ISAS
@pytest.mark.parametrize(
    "hidden, activation, dtype, scaled",
    pairs(WIDTHS, ["sigmoid", "tanh", "relu"], [torch.float32, torch.float64, torch.bfloat16], [False, True]),
    ids=str,
)
def test_infinite_and_undefined_inputs(name, hidden, activation, dtype, scaled):
    """They give what the definition gives, as saturated units and what is undefined; no other row is touched. Units
    that fill the last vector have weights of zero, whose product with an infinite input must not be seen."""
    case = nade_case(9, 67, hidden, dtype=dtype, x="dense", ordered=False, activation=activation, scaled=scaled)
    case.x[2, 5], case.x[3, 6], case.x[4, 40], case.x[5, 0], case.x[5, 66] = torch.inf, -torch.inf, torch.nan, 7e4, -9e4
    if scaled:
        case.activation_scale[50] = torch.inf
    case = case.map(lambda tensor: tensor.requires_grad_() if tensor.is_floating_point() else tensor)
    plain = case.upcast().map(lambda tensor: tensor.detach().requires_grad_())
    with isa(name):
        got = functional.nade(*case.arguments()[:5], activation=activation, activation_scale=case.activation_scale)
        got.sum().backward()
    want = reference.nade(*plain.arguments()[:5], activation=activation, activation_scale=plain.activation_scale)
    want.sum().backward()
    assert want[4].isnan().any() and (scaled or not want[:2].isnan().any())
    if activation != "relu" and not scaled:
        assert want[2:4].isfinite().all()
    tolerance = {torch.float64: 1e-9, torch.float32: 2e-4}.get(dtype, 2e-2)
    close = {"rtol": tolerance, "atol": tolerance * hidden**0.5 * 3, "equal_nan": True}
    others = [row for row in range(9) if row != 5]
    torch.testing.assert_close(got[others].double(), want[others], **close)
    # The state of relu is as large as its inputs, so that its logits have the rounding of 9e4.
    of_inputs = 9e4 * torch.finfo(dtype).eps * hidden**0.5 if activation == "relu" else 0.0
    torch.testing.assert_close(got[5].double(), want[5], **close | {"atol": close["atol"] + of_inputs})
    # The derivative of relu at NaN is nowhere defined, nor that of a unit saturated by an infinite scale.
    if not scaled:
        rows = [0, 1, 2, 3, 5, 6, 7, 8] if activation != "relu" else [0, 1, 6, 7, 8]
        torch.testing.assert_close(case.x.grad[rows].double(), plain.x.grad[rows], **close)


@ISAS
@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("hidden", WIDTHS)
@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_infinite_known_values(name, hidden, activation, rows):
    case = nade_case(rows, 67, hidden, ordered=False, activation=activation)
    given = torch.zeros(rows, 67)
    given[0, 5], given[-1, 9] = torch.inf, -torch.inf
    known = given != 0
    options = {"activation": activation, "seed": 3, "given": given, "known": known}
    weights = (case.in_weight, case.out_weight, case.out_bias)
    with isa(name):
        got = functional.nade_sample(case.in_bias.expand(rows, -1), *weights, **options)
    options["given"] = given.double()
    wide = [tensor.double() for tensor in (case.in_bias.expand(rows, -1), *weights)]
    with _library.replaced(_fallback.REFERENCES):
        want = functional.nade_sample(*wide, **options)
    assert torch.equal(got[0].double(), want[0])
    torch.testing.assert_close(got[2].double(), want[2], rtol=1e-4, atol=1e-4, equal_nan=True)
    torch.testing.assert_close(got[1], want[1], rtol=1e-4, atol=1e-4, equal_nan=True)


def test_the_form_follows_the_data():
    binary = nade_case(41, 67, 35, x="binary")
    assert form(binary) == "odds"
    one_other = nade_case(41, 67, 35, x="binary")
    one_other.x[40, 66] = 0.5
    assert form(one_other) == "pre-activations"
    assert_equals_the_reference(one_other, 2e-5)
    assert form(nade_case(2, 67, 35, x="binary")) == "pre-activations"  # Too few rows to share exponentials.
