"""univariate_transform: equal to the reference, its own derivative and inverse, and differentiable twice."""

import math

import pytest
import torch
from conftest import available_isas, isa
from grids import pairs
from transform_cases import TRANSFORMS

from ar_fast import functional, reference

SIZES = [(0, 3), (1, 1), (7, 3), (5, 19), (111, 7), (3, 989)]
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-3}


def numbers(name, batch, variables, dtype=torch.float64, device="cpu"):
    """x, around the middle of every transform and outside of the splines, and parameters."""
    _, count = TRANSFORMS[name]
    x = 2 * torch.randn(batch, variables, dtype=torch.float64)
    return x.to(device, dtype), torch.randn(batch, variables * count, dtype=torch.float64).to(device, dtype)


def by_number(parameters, variables, by_parameter):
    """(B, D * K) -> (B, D, K)."""
    return parameters.unflatten(1, (-1, variables)).mT if by_parameter else parameters.unflatten(1, (variables, -1))


def away_from_knots(name, x, parameters, by_parameter):
    """x, with the numbers next to a knot moved out of the spline: there the gradient jumps, and rounding of the knots
    decides which side a number is on."""
    constants, own = TRANSFORMS[name][0], by_number(parameters, x.shape[1], by_parameter).double()
    knots, _, _ = reference.transforms.spline_knots(own, name.split()[0], constants)
    near = ((x.unsqueeze(-1) - knots).abs() < 1e-4).any(-1)
    return torch.where(near, constants[1] + 1, x)


def compare(name, x, parameters, dtype, **options):
    """Results and gradients of the op, and of the reference in float64."""
    constants, transform = TRANSFORMS[name][0], name.split()[0]
    by_parameter = options.get("by_parameter", False)
    if dtype == torch.float32 and transform.startswith("spline_"):
        x = away_from_knots(name, x, parameters, by_parameter)
    results = []
    for own, of in ((functional, dtype), (reference, torch.float64)):
        inputs = [tensor.detach().to(of).requires_grad_() for tensor in (x, parameters)]
        y, log_det = own.univariate_transform(*inputs, transform, list(constants), **options)
        assert y.dtype == log_det.dtype == of and y.shape == x.shape and log_det.shape == x.shape[:1]
        weights = torch.linspace(0.5, 1.5, y.numel(), dtype=of, device=x.device).reshape(y.shape), 1 + log_det.detach()
        results.append([y, log_det, *torch.autograd.grad((y, log_det), inputs, weights)])
    # A narrow bin of a spline makes rounding larger.
    tolerance = 2e-2 if dtype == torch.float32 and transform.startswith("spline_") else TOLERANCES[dtype]
    own, wanted = (
        [*result[:2], result[2][..., None], by_number(result[3], x.shape[1], by_parameter)] for result in results
    )
    # All gradients of a number have the rounding of its largest, from which the others may come by cancellation.
    largest = torch.cat(wanted[2:], -1).abs().amax(-1, keepdim=True).clamp_min(1)
    for got, want, size in zip(own, wanted, (1, 1, largest, largest), strict=True):
        torch.testing.assert_close(got.double() / size, want / size, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name, size, dtype", pairs(TRANSFORMS, SIZES, TOLERANCES), ids=str)
def test_equal_to_the_reference(device, name, size, dtype):
    for by_parameter in (False, True):
        for scale_first in (False, True) if name.startswith("affine_") else (False,):
            x, parameters = numbers(name, *size, dtype, device)
            compare(name, x, parameters, dtype, by_parameter=by_parameter, scale_first=scale_first)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_strides(device, name):
    x, parameters = numbers(name, 6, 5, device=device)
    wide = torch.randn(6, 9, dtype=torch.float64).to(device)
    wide[:, 2:7] = x
    rows, columns = wide[:, 2:7], x.T.contiguous().T
    twice = torch.cat([parameters, parameters], 1)[:, : parameters.shape[1]]
    for own in (rows, columns, x[:1].expand(6, 5), x[::2].repeat_interleave(2, 0)):
        compare(name, own, twice, torch.float64)


@pytest.mark.parametrize("isa_name", available_isas())
@pytest.mark.parametrize("name, dtype", pairs(TRANSFORMS, TOLERANCES), ids=str)
def test_every_instruction_set(name, dtype, isa_name):
    with isa(isa_name):
        compare(name, *numbers(name, 37, 11, dtype), dtype)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_gradients_of_first_and_second_order(device, name):
    constants = list(TRANSFORMS[name][0])
    inputs = [tensor.requires_grad_() for tensor in numbers(name, 4, 3, device=device)]

    def transform(x, parameters):
        return functional.univariate_transform(x, parameters, name.split()[0], constants)

    assert torch.autograd.gradcheck(transform, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(transform, inputs, fast_mode=True)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_penalty_on_gradients_where_the_parameters_depend_on_x(device, name):
    """As in a flow: what reaches x through the parameters is counted once."""
    constants, count = TRANSFORMS[name]
    x, weight = torch.randn(3, 4, dtype=torch.float64), torch.randn(4, 4 * count, dtype=torch.float64)
    x, weight = x.to(device).requires_grad_(), (0.3 * weight).to(device).requires_grad_()
    found = []
    for function in (functional.univariate_transform, reference.univariate_transform):
        y, log_det = function(x, x.sin() @ weight, name.split()[0], list(constants))
        (grad,) = torch.autograd.grad((y.square().sum(1) + log_det).sum(), x, create_graph=True)
        found.append([grad, *torch.autograd.grad(grad.square().sum(), (x, weight))])
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_gradients_of_one_input_only(device, wanted):
    for name in ("affine_soft_clip", "spline_softplus"):
        x, parameters = (t.requires_grad_(w) for t, w in zip(numbers(name, 4, 3, device=device), wanted, strict=True))
        y, log_det = functional.univariate_transform(x, parameters, name, TRANSFORMS[name][0])
        (first,) = torch.autograd.grad(y.sum() + log_det.sum(), x if wanted[0] else parameters, create_graph=True)
        expected = reference.univariate_transform(x, parameters, name, list(TRANSFORMS[name][0]))
        (want,) = torch.autograd.grad(sum(own.sum() for own in expected), x if wanted[0] else parameters)
        torch.testing.assert_close(first, want)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_it_is_increasing_its_log_det_is_its_derivative_and_the_inverse_undoes_it(device, name):
    constants, transform = TRANSFORMS[name][0], name.split()[0]
    x, parameters = numbers(name, 200, 1, device=device)
    x.requires_grad_()
    y, log_det = functional.univariate_transform(x, parameters, transform, constants)
    (derivative,) = torch.autograd.grad(y.sum(), x)
    assert (derivative > 0).all()
    torch.testing.assert_close(log_det, derivative[:, 0].log(), rtol=1e-8, atol=1e-8)
    back, log_back = reference.transform_inverse(parameters, y[:, 0], transform, constants)
    torch.testing.assert_close(back, x[:, 0], rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(log_back, -log_det, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_extreme_parameters_are_finite_where_the_reference_is(device, name):
    constants, transform = list(TRANSFORMS[name][0]), name.split()[0]
    for size in (0.0, 30.0, 1e4):
        for dtype in TOLERANCES:
            x, parameters = numbers(name, 40, 3, dtype, device)
            inputs = x.requires_grad_(), (parameters * size).requires_grad_()
            got = functional.univariate_transform(*inputs, transform, constants)
            want = reference.univariate_transform(*inputs, transform, constants)
            for mine, theirs in zip(got, want, strict=True):
                assert mine[theirs.isfinite()].isfinite().all()
                if dtype == torch.float64:
                    ok = theirs.isfinite()
                    torch.testing.assert_close(mine[ok], theirs[ok], rtol=1e-6, atol=1e-6)
            both = [torch.autograd.grad(sum(own.sum() for own in results), inputs) for results in (got, want)]
            for mine, theirs in zip(*both, strict=True):
                assert mine[theirs.isfinite()].isfinite().all()


@pytest.mark.parametrize("name", TRANSFORMS)
def test_nan_stays_nan_and_in_its_row(device, name):
    constants, transform = TRANSFORMS[name][0], name.split()[0]
    x, parameters = numbers(name, 3, 2, torch.float32, device)
    x[1, 0] = math.nan
    y, log_det = functional.univariate_transform(x, parameters, transform, constants)
    assert y.isnan().tolist() == [[False, False], [True, False], [False, False]]
    assert log_det.isfinite()[::2].all()


@pytest.mark.parametrize("name", ["spline_soft_clip", "spline_softplus"])
def test_a_spline_is_the_identity_outside_and_at_its_ends(device, name):
    low, high = TRANSFORMS[name][0][:2]
    x = torch.tensor([[low - 9], [low], [high], [high + 1e6]], device=device)
    parameters = torch.randn(4, TRANSFORMS[name][1]).to(device)
    y, log_det = functional.univariate_transform(x, parameters, name, TRANSFORMS[name][0])
    torch.testing.assert_close(y, x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(log_det, torch.zeros_like(log_det), rtol=0, atol=1e-5)


def test_rows_do_not_depend_on_the_batch(device):
    for name in TRANSFORMS:
        x, parameters = numbers(name, 37, 5, torch.float32, device)
        arguments = name.split()[0], TRANSFORMS[name][0]
        whole = functional.univariate_transform(x, parameters, *arguments)
        for cut in (slice(0, 1), slice(1, 20), slice(20, 37)):
            part = functional.univariate_transform(x[cut], parameters[cut], *arguments)
            for got, want in zip(part, whole, strict=True):
                torch.testing.assert_close(got, want[cut], rtol=1e-6, atol=1e-6)


@pytest.mark.heavy
def test_opcheck(device, ops):
    for name in ("affine_softplus", "spline_softplus"):
        x, parameters = (tensor.requires_grad_() for tensor in numbers(name, 3, 4, torch.float32, device))
        rest = name, list(TRANSFORMS[name][0]), False, False
        torch.library.opcheck(ops.univariate_transform.default, (x, parameters, *rest))
        grads = torch.randn(3, 4).to(device), torch.randn(3).to(device)
        arguments = (*grads, x.detach(), parameters.detach(), *rest)
        torch.library.opcheck(ops.univariate_transform_backward.default, arguments)
