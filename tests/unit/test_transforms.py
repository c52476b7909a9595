"""The transforms of masked_mlp_sample: equal to a reference that inverts the papers' formulas, and cut anywhere."""

import math

import pytest
import torch
from conftest import available_isas, isa
from grids import pairs
from mlp_cases import NETWORKS, assert_equal_draws, by_reference, mlp_case, sample
from transform_cases import TRANSFORMS

from ar_fast import functional, reference

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def transform_case(name, variables, hidden, **options):
    constants, rows = TRANSFORMS[name]
    return mlp_case(
        variables, hidden, head=name.split()[0], components=rows, constants=constants, activation="tanh", **options
    )


def numbers(case, batch, device="cpu"):
    """Numbers around the middle of every transform, and outside of the splines."""
    dtype = reference.compute_dtype(case.weights[0].dtype)
    return (2 * torch.randn(batch, case.variables, dtype=torch.float64)).to(device, dtype)


@pytest.mark.parametrize("name, dtype", pairs(TRANSFORMS, DTYPES), ids=str)
def test_values_equal_the_reference(device, name, dtype):
    for batch, variables, hidden in ((0, 3, [5]), (1, 1, [1]), (5, 7, [19, 8]), (35, 19, [111])):
        case = transform_case(name, variables, hidden, device=device, dtype=dtype)
        given = numbers(case, batch, device)
        known = torch.rand(batch, variables, device=device) < 0.2
        for options in ({"given": given}, {"given": given, "known": known}):
            # A steep spline makes rounding of the numbers before it larger.
            assert_equal_draws(sample(case, batch, **options), by_reference(case, batch, **options), dtype, single=1e-2)


@pytest.mark.parametrize("network, name", pairs(NETWORKS, TRANSFORMS))
def test_every_network_with_a_context(device, network, name):
    case = transform_case(name, 11, [23, 23, 23], device=device, network=network, context_rows=6, dtype=torch.float64)
    for weight in case.weights:
        weight *= 0.3  # Each variable can be far from the ones before it, and this goes on to infinity.
    given = numbers(case, 6, device)
    assert_equal_draws(sample(case, 6, given=given), by_reference(case, 6, given=given), torch.float64)


@pytest.mark.parametrize("isa_name", available_isas())
@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_instruction_set(name, isa_name):
    case = transform_case(name, 9, [37], dtype=torch.float64)
    given = numbers(case, 37)
    with isa(isa_name):
        assert_equal_draws(sample(case, 37, given=given), by_reference(case, 37, given=given), torch.float64)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_weight_by_input(name):
    constants, rows = TRANSFORMS[name]
    case = transform_case(name, 13, [], dtype=torch.float64)
    case.weights[0] *= 0.3  # Each variable can be far from the ones before it, and this goes on.
    given = numbers(case, 5)
    # From the last position to the first; the rows and columns of one variable ascend.
    by_position = case.weights[0].nan_to_num(0.0).unflatten(0, (13, rows))
    weight = by_position.flip(0, 2).flatten(0, 1).T.contiguous()
    got = functional.masked_mlp_sample(
        torch.zeros(5, 13, dtype=torch.float64), [weight], case.biases, [], [], order=case.order, given=given,
        head=case.head, constants=constants, seed=0, by_input=True,
    )  # fmt: skip
    assert_equal_draws(got, by_reference(case, 5, given=given), torch.float64)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_rows_and_positions_can_be_cut_anywhere(device, name):
    case = transform_case(name, 21, [30, 9], device=device)
    given = numbers(case, 37, device)
    whole = sample(case, 37, given=given)
    parts = [sample(case, end - begin, given=given[begin:end]) for begin, end in ((0, 1), (1, 20), (20, 37))]
    for together, *cut in zip(whole, *parts, strict=True):
        assert torch.equal(together, torch.cat(cut))
    pieces, state = [], None
    for begin, end in ((0, 3), (3, 3), (3, 17), (17, 21)):
        pieces.append(sample(case, 37, given=given, state=state, start=begin, stop=end))
        state = pieces[-1][2]
    assert torch.equal(torch.cat([values for values, _, _ in pieces], 1), whole[0]) and torch.equal(state, whole[2])
    torch.testing.assert_close(sum(log_prob for _, log_prob, _ in pieces), whole[1], rtol=1e-12, atol=1e-12)


def spline_forward(parameters, x, name, constants):
    """Durkan et al., 2019, equation 4, at one number."""
    knots_x, knots_y, slopes = reference.transforms.spline_knots(parameters, name, constants)
    k = int((knots_x[1:-1] <= x).sum())
    s = (knots_y[k + 1] - knots_y[k]) / (knots_x[k + 1] - knots_x[k])
    z = (x - knots_x[k]) / (knots_x[k + 1] - knots_x[k])
    numerator = (knots_y[k + 1] - knots_y[k]) * (s * z**2 + slopes[k] * z * (1 - z))
    return knots_y[k] + numerator / (s + (slopes[k + 1] + slopes[k] - 2 * s) * z * (1 - z))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_reference_inverts_the_transform_and_knows_its_derivative(name):
    constants, rows = TRANSFORMS[name]
    transform = name.split()[0]
    parameters = torch.randn(50, rows, dtype=torch.float64)
    noise = (2 * torch.randn(50, dtype=torch.float64)).requires_grad_()
    x, log_derivative = reference.transform_inverse(parameters, noise, transform, constants)
    (derivative,) = torch.autograd.grad(x.sum(), noise)
    torch.testing.assert_close(log_derivative, derivative.log(), rtol=1e-8, atol=1e-8)
    for row, value, number in zip(parameters, x.detach(), noise.detach(), strict=True):
        if transform.startswith("spline_"):
            inside = constants[0] <= value <= constants[1]
            forward = spline_forward(row, value, transform, constants) if inside else value
        else:
            shift, scale = row[0], reference.transforms.affine_scale(row[1], transform, constants).exp()
            forward = scale * value + (shift * (1 - scale) if transform == "affine_gated" else shift)
        torch.testing.assert_close(forward, number, rtol=1e-9, atol=1e-9)


def last_layer_only(name, parameters, given, **options):
    """One variable whose parameters are the biases."""
    constants, rows = TRANSFORMS[name]
    weight = torch.zeros(rows, 1, dtype=parameters.dtype, device=parameters.device)
    extents = torch.zeros(rows, dtype=torch.int32, device=given.device)
    return functional.masked_mlp_sample(
        torch.zeros_like(given), [weight], [parameters], [extents], [], given=given, head=name.split()[0],
        constants=constants, seed=0, **options,
    )  # fmt: skip


@pytest.mark.parametrize("name", TRANSFORMS)
def test_extreme_parameters_are_as_in_the_reference(device, name):
    """In float64; in float32, where a bin of a spline can be very narrow, they are finite where the reference's are."""
    constants, rows = TRANSFORMS[name]
    transform = name.split()[0]
    given = torch.linspace(-6, 6, 40, dtype=torch.float64, device=device)[:, None]
    for size in (0.0, 30.0, 1e4):
        parameters = (torch.randn(rows, dtype=torch.float64) * size).to(device)
        for dtype in (torch.float64, torch.float32):
            own, noise = parameters.to(dtype), given.to(dtype)
            values, log_prob, _ = last_layer_only(name, own, noise)
            want = reference.transform_inverse(own.expand(40, -1), noise[:, 0], transform, constants)
            for got, expected in zip((values[:, 0], log_prob), want, strict=True):
                finite = expected.isfinite()
                assert got[finite].isfinite().all()
                if dtype == torch.float64:
                    torch.testing.assert_close(got[finite], expected[finite].double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_nan_stays_nan_and_in_its_row(device, name):
    given = torch.tensor([[0.3], [math.nan], [-0.2]], device=device)
    parameters = torch.randn(TRANSFORMS[name][1]).to(device)
    values, log_prob, _ = last_layer_only(name, parameters, given)
    assert values[:, 0].isnan().tolist() == [False, True, False]
    assert log_prob.isfinite()[::2].all()


@pytest.mark.parametrize("name", ["spline_soft_clip", "spline_softplus"])
def test_a_spline_is_the_identity_outside_and_at_its_ends(device, name):
    low, high = TRANSFORMS[name][0][:2]
    given = torch.tensor([[low - 9], [low], [high], [high + 1e6]], device=device)
    values, log_prob, _ = last_layer_only(name, torch.randn(TRANSFORMS[name][1]).to(device), given)
    torch.testing.assert_close(values, given, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(log_prob, torch.zeros_like(log_prob), rtol=0, atol=1e-5)


@pytest.mark.heavy
def test_opcheck(device, ops):
    case = transform_case("affine_softplus", 5, [6], device=device)
    arguments = (
        torch.zeros(3, case.state_features, device=device), case.weights, case.biases, case.extents, case.unit_ends,
        case.numbers, case.order, None, None, numbers(case, 3, device), None, 5, "tanh", case.head, 0, None, 3, 0, 0, 5,
        1.0, "auto", False, [1e-3],
    )  # fmt: skip
    torch.library.opcheck(ops.masked_mlp_sample.default, arguments)


BAD_INPUTS = {
    "given must hold the numbers that a transform is applied to, got none": {"given": None},
    "temperature must be 1 for a transform, got 2": {"temperature": 2.0},
    "constants must hold 1 numbers for affine_softplus, got 0": {"constants": ()},
    "constants must hold 2 numbers for affine_clamp, got 1": {"head": "affine_clamp"},
    "constants must begin with low < high for affine_clamp, got": {"head": "affine_clamp", "constants": (1.0, 1.0)},
    "constants must be finite, got": {"constants": (math.inf,)},
    "constants must be empty except for a transform as head, got 1 of them for 'bernoulli'": {"head": "bernoulli"},
    "the limit among constants must be positive, got": {"head": "affine_soft_clip", "constants": (0.0,)},
    "a transform must be affine_soft_clip, .* or spline_softplus, got 'affine_cubic'": {"head": "affine_cubic"},
    "levels must be 0 and head_kinds must not be given for a transform, got 3": {"levels": 3},
    "out_offsets must not be given for a transform": {"out_offsets": torch.tensor([0, 2, 4, 6])},
    "the last layer must have 3 K - 1 or 3 K . 1 rows per variable": {
        "head": "spline_soft_clip", "constants": (-1.0, 1.0, 2.0), "biases": [torch.zeros(9)],
        "weights": [torch.zeros(9, 3)], "extents": [torch.zeros(9, dtype=torch.int32)],
    },
    "the last layer must have 2 rows per variable .* got 9": {
        "biases": [torch.zeros(9)], "weights": [torch.zeros(9, 3)], "extents": [torch.zeros(9, dtype=torch.int32)],
    },
    "the least shares among constants must be at most 1 / K = 1 / 1, got 2 and 0": {
        "head": "spline_softplus", "constants": (-1.0, 1.0, 2.0, 0.0, 0.0, 1.0),
    },
    "the least shares and derivative among constants must not be negative": {
        "head": "spline_softplus", "constants": (-1.0, 1.0, 0.0, 0.0, -1.0, 1.0),
    },
    "given must have 3 variables": {"given": torch.zeros(2, 4)},
}  # fmt: skip


@pytest.mark.parametrize("message", BAD_INPUTS)
def test_bad_input(message):
    arguments = {
        "weights": [torch.zeros(6, 3)], "biases": [torch.zeros(6)], "extents": [torch.zeros(6, dtype=torch.int32)],
        "unit_ends": [], "given": torch.zeros(2, 3), "head": "affine_softplus", "constants": (1e-3,), "seed": 0,
        **BAD_INPUTS[message],
    }  # fmt: skip
    with pytest.raises(RuntimeError, match=f"masked_mlp_sample: {message}"):
        functional.masked_mlp_sample(torch.zeros(2, 3), **arguments)


def test_only_masked_mlp_sample_takes_a_transform():
    with pytest.raises(RuntimeError, match=r"nade_sample: head must be bernoulli, .*, got 'affine_softplus'"):
        functional.nade_sample(
            torch.zeros(1, 2), torch.zeros(3, 2), torch.zeros(6, 2), torch.zeros(6), seed=0, head="affine_softplus"
        )
