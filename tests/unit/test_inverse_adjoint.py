"""inverse_adjoint: equal to the reference and to a dense solve, for every kind of step, size and instruction set."""

import pytest
import torch
from conftest import available_isas, isa
from grids import pairs
from inverse_adjoint_cases import NETWORKS, case, moved

from ar_fast import functional, reference

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def solved(grad, factors, weights, slopes, program, ends):
    """By the dense Jacobian of each row: x_d - sum_k factors_dk theta_dk(x), where theta is linear in x."""
    results = []
    for row in range(len(grad)):

        def residual(x, row=row):
            values, of_weights, of_slopes = [x], iter(weights), iter(slopes)
            for index in range(0, len(program), 4):
                source, other, weighted, sloped = program[index : index + 4]
                value = values[source] @ next(of_weights).T if weighted else values[source]
                value = value * next(of_slopes)[row] if sloped else value
                values.append(value + values[other] if other >= 0 else value)
            return x - (factors[row] * values[-1]).reshape(len(x), -1).sum(1)

        jacobian = torch.autograd.functional.jacobian(residual, torch.zeros_like(grad[row]))
        results.append(torch.linalg.solve(jacobian.T, grad[row]))
    return torch.stack(results)


@pytest.mark.parametrize(
    "network, batch, variables, count, dtype",
    pairs(NETWORKS, [1, 5, 19, 111], [1, 3, 7, 19], [1, 2, 5], DTYPES),
    ids=str,
)
def test_equal_to_the_reference(device, network, batch, variables, count, dtype):
    arguments = case(network, batch, variables, count, dtype=dtype)
    got = functional.inverse_adjoint(*moved(arguments, device))
    want = reference.inverse_adjoint(*moved(arguments, "cpu", torch.float64))
    assert got.dtype == dtype and got.shape == (batch, variables)
    tolerance = {torch.float64: 1e-11, torch.float32: 1e-4}.get(dtype, 0.2)
    error = (got.cpu().double() - want).abs().max() / want.abs().max().clamp_min(1)
    assert error < tolerance


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("levels", [1, 4, 6])
def test_equal_to_a_dense_solve(network, levels):
    arguments = case(network, 5, 6, 2, levels)
    want = solved(*arguments)
    for function in (functional.inverse_adjoint, reference.inverse_adjoint):
        torch.testing.assert_close(function(*arguments), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "isa_name, width, batch, dtype",
    pairs(available_isas(), [1, 4, 7, 111, 300], [1, 8, 9, 16, 17, 40], [torch.float64, torch.float32]),
    ids=str,
)
def test_every_size_and_instruction_set(isa_name, width, batch, dtype):
    arguments = case("plain", batch, 11, 3, dtype=dtype, width=width)
    with isa(isa_name):
        got = functional.inverse_adjoint(*arguments)
    want = reference.inverse_adjoint(*moved(arguments, "cpu", torch.float64))
    tolerance = 1e-10 if dtype == torch.float64 else 1e-3
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance * float(want.abs().max()))


def test_strides_shared_slopes_and_an_empty_batch(device):
    grad, factors, weights, slopes, *rest = moved(case("plain", 9, 5, 2), device)
    want = functional.inverse_adjoint(grad, factors, weights, slopes, *rest)
    strided = [weight.T.contiguous().T for weight in weights]
    got = functional.inverse_adjoint(grad.T.contiguous().T, factors.T.contiguous().T, strided, slopes, *rest)
    torch.testing.assert_close(got, want)
    shared = [slope[:1].expand(9, -1) for slope in slopes]
    got = functional.inverse_adjoint(grad, factors, weights, shared, *rest)
    torch.testing.assert_close(
        got, functional.inverse_adjoint(grad, factors, weights, [slope.contiguous() for slope in shared], *rest)
    )
    empty = functional.inverse_adjoint(grad[:0], factors[:0], weights, [slope[:0] for slope in slopes], *rest)
    assert empty.shape == (0, 5)


def test_rows_do_not_depend_on_the_batch():
    grad, factors, weights, slopes, *rest = case("residual", 37, 7, 2, dtype=torch.float32)
    whole = functional.inverse_adjoint(grad, factors, weights, slopes, *rest)
    for cut in (slice(0, 1), slice(1, 20), slice(20, 37)):
        part = functional.inverse_adjoint(grad[cut], factors[cut], weights, [slope[cut] for slope in slopes], *rest)
        assert torch.equal(part, whole[cut])


@pytest.mark.parametrize(
    "index, value, message",
    [
        (1, torch.ones(2, 7), "factors must have a multiple of D = 4 columns, got 7"),
        (2, [], "weights must hold one tensor for each step with a matrix, got 0"),
        (2, [torch.ones(3, 4), torch.ones(8, 2)], r"weights\[1\] must have shape \(8, 3\), got \[8, 2\]"),
        (2, [torch.ones(3, 4), torch.ones(8, 3), torch.ones(1, 1)], "program must use all tensors, 2 weights"),
        (3, [torch.ones(2, 4)], r"slopes\[0\] must have shape \(2, 3\), got \[2, 4\]"),
        (3, [torch.ones(2, 3).double()], r"slopes\[0\] must have the dtype of grad"),
        (4, [0, -1, 1], "program must hold 4 numbers for each step and at least one step, got 3"),
        (4, [0, -1, 1, 0, 2, -1, 0, 1, 2, -1, 1, 0], "step 1 of program must read values before its own"),
        (4, [0, -1, 1, 0, 0, -1, 0, 1, 2, -1, 1, 0], "step 1 of program must read as many units as it makes, 3, got 4"),
        (5, [0, 0, 4], "ends must hold L . 1 numbers for each of 4 values"),
        (5, [0, 0, 3, 2, 3, 1, 2, 3, 0, 2, 3, 0, 4, 8], "ends must hold L . 1 numbers"),
        (5, [0, 0, 3, 0, 3, 2, 0, 2, 3, 0, 4, 8], "ends must begin at 0 and rise for each value, got others for v"),
        (5, [0, 1, 3, 0, 2, 3, 0, 2, 3, 0, 4, 8], "ends must be 0, 0, ... and at most D = 4 for value 0"),
        (5, [0, 0, 3, 0, 2, 3, 0, 1, 3, 0, 4, 8], "step 1 of program must make its units at the levels of those"),
        (5, [0, 0, 3, 0, 2, 3, 0, 2, 3, 0, 4, 7], "ends must end at D K = 8 for the last value, got 7"),
    ],
)  # fmt: skip
def test_errors(index, value, message):
    arguments = [
        torch.ones(2, 4), torch.ones(2, 8), [torch.ones(3, 4), torch.ones(8, 3)], [torch.ones(2, 3)],
        [0, -1, 1, 0, 1, -1, 0, 1, 2, -1, 1, 0], [0, 0, 3, 0, 2, 3, 0, 2, 3, 0, 4, 8],
    ]  # fmt: skip
    functional.inverse_adjoint(*arguments)
    arguments[index] = value
    with pytest.raises(RuntimeError, match=message):
        functional.inverse_adjoint(*arguments)


@pytest.mark.heavy
def test_opcheck(ops):
    torch.library.opcheck(ops.inverse_adjoint.default, tuple(case("plain", 3, 4, 2)))
