"""masked_mlp_transform: equal to the reference for every network, its Jacobian, and differentiable twice."""

import pytest
import torch
from conftest import available_isas, isa
from grids import pairs
from transform_cases import TRANSFORMS

from ar_fast import functional, reference
from ar_fast.functional import MlpLayer

ACTIVATIONS = ["relu", "sigmoid", "tanh", "elu", "softplus", "silu", "gelu", "leaky_relu"]
# The layers of each network, by their widths; None stands for the parameters.
PROGRAMS = {
    "plain": ([MlpLayer((0,)), MlpLayer((1,)), MlpLayer((2,), activated=False)], [17, 9, None]),
    "linear": ([MlpLayer((0,), activated=False)], [None]),
    "residual": (
        [
            MlpLayer((0,), activated=False), MlpLayer((), add=1), MlpLayer((2,)),
            MlpLayer((3,), add=1, activated=False), MlpLayer((4,), activated=False),
        ],
        [13, 13, 13, 13, None],
    ),
    "direct": ([MlpLayer((0,)), MlpLayer((1, 0), activated=False)], [11, None]),
    "sum": ([MlpLayer((0,)), MlpLayer((0,), add=1), MlpLayer((2, 1), activated=False)], [8, 8, None]),
}  # fmt: skip


def case(network, name, variables, context=0, first=0, dtype=torch.float64, device="cpu", bias_rows=0):
    """The tensors of a random network, with the masks of the order 0 ... D-1, and its options."""
    program, widths = PROGRAMS[network]
    constants, count = TRANSFORMS[name]
    widths = [variables + context, *(variables * count if width is None else width for width in widths)]
    # The degree of a unit: how many variables it may see. Columns of the context have degree 0.
    degrees = [torch.zeros(widths[0], dtype=torch.int64)]
    degrees[0][first : first + variables] = torch.arange(1, variables + 1)
    own, others = (
        torch.arange(variables).repeat_interleave(count),
        [torch.arange(w) % max(1, variables) for w in widths],
    )
    degrees += [own if layer == len(program) - 1 else others[layer + 1] for layer in range(len(program))]
    weights, masks, biases = [], [], []
    for layer, unit in enumerate(program):
        for source in unit.sources:
            mask = degrees[layer + 1][:, None] >= degrees[source]
            masks.append(mask.to(device))
            weights.append(torch.randn(mask.shape, dtype=torch.float64).div(mask.shape[1] ** 0.5).to(device, dtype))
        rows = (bias_rows,) if bias_rows and layer == 0 else ()
        empty = layer == 1 and network == "residual"
        biases.append(torch.randn(0 if empty else (*rows, widths[layer + 1]), dtype=torch.float64).to(device, dtype))
    options = {
        "program": program, "variables": variables, "first": first, "transform": name.split()[0],
        "constants": constants,
    }  # fmt: skip
    return weights, masks, biases, options


def by_reference(
    input, weights, masks, biases, *, program, activation, by_parameter=False, scale_first=False, **options
):
    numbers = [number for layer in program for number in layer.numbers()]
    rest = options["variables"], options["first"], activation, options["transform"], list(options["constants"])
    return reference.masked_mlp_transform(input, weights, masks, biases, numbers, *rest, by_parameter, scale_first)


def results(function, input, weights, masks, biases, dtype, **options):
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in (input, *weights, *biases)]
    x, w, b = leaves[0], leaves[1 : 1 + len(weights)], leaves[1 + len(weights) :]
    y, log_det = function(x, w, masks, b, **options)
    upstream = torch.linspace(0.5, 1.5, y.numel(), dtype=dtype, device=y.device).reshape(y.shape)
    grads = torch.autograd.grad((y, log_det), leaves, (upstream, torch.ones_like(log_det)), allow_unused=True)
    return [y, log_det, *(torch.zeros_like(t) if g is None else g for g, t in zip(grads, leaves, strict=True))]


@pytest.mark.parametrize(
    "network, name, activation, dtype",
    pairs(PROGRAMS, TRANSFORMS, ACTIVATIONS, [torch.float64, torch.float32]),
    ids=str,
)
def test_equal_to_the_reference(device, network, name, activation, dtype):
    for batch, variables, context, first in ((1, 1, 0, 0), (5, 7, 3, 0), (9, 6, 2, 2)):
        bias_rows = batch if context and first == 0 else 0
        *tensors, options = case(network, name, variables, context, first, dtype, device, bias_rows)
        input = torch.randn(batch, variables + context, dtype=torch.float64).to(device, dtype)
        options["activation"] = activation
        got = results(functional.masked_mlp_transform, input, *tensors, dtype, **options)
        want = results(by_reference, input, *tensors, torch.float64, **options)
        tolerance = 1e-9 if dtype == torch.float64 else 5e-2 if name.startswith("spline_") else 2e-3
        for own, other in zip(got, want, strict=True):
            torch.testing.assert_close(own.double(), other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("network", PROGRAMS)
def test_layouts_of_the_parameters(device, network):
    *tensors, options = case(network, "affine_softplus", 5, device=device)
    input = torch.randn(4, 5, dtype=torch.float64).to(device)
    for by_parameter in (False, True):
        own = {**options, "activation": "tanh", "by_parameter": by_parameter, "scale_first": True}
        got = results(functional.masked_mlp_transform, input, *tensors, torch.float64, **own)
        want = results(by_reference, input, *tensors, torch.float64, **own)
        for mine, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32], ids=str)
def test_masks_of_other_dtypes(device, dtype):
    weights, masks, biases, options = case("plain", "affine_clamp", 4, dtype=torch.float32, device=device)
    input = torch.randn(3, 4).to(device)
    want = functional.masked_mlp_transform(input, weights, masks, biases, **options)
    got = functional.masked_mlp_transform(input, weights, [mask.to(dtype) for mask in masks], biases, **options)
    for own, other in zip(got, want, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("isa_name", available_isas())
@pytest.mark.parametrize(
    "batch, width, dtype",
    pairs([1, 5, 6, 7, 37, 200], [1, 7, 19, 111, 256, 300], [torch.float64, torch.float32]),
    ids=str,
)
def test_products_of_every_size_and_instruction_set(batch, width, dtype, isa_name, monkeypatch):
    monkeypatch.setitem(PROGRAMS, "plain", (PROGRAMS["plain"][0], [width, width + 1, None]))
    *tensors, options = case("plain", "affine_clamp", 5, dtype=dtype)
    tensors[1] = [mask.to(dtype) for mask in tensors[1]]
    input = torch.randn(batch, 5, dtype=torch.float64).to(dtype)
    options["activation"] = "tanh"
    with isa(isa_name):
        got = results(functional.masked_mlp_transform, input, *tensors, dtype, **options)
    want = results(
        by_reference, input, tensors[0], [mask.double() for mask in tensors[1]], tensors[2], torch.float64, **options
    )
    tolerance = 1e-9 if dtype == torch.float64 else 5e-3
    for own, other in zip(got, want, strict=True):
        torch.testing.assert_close(own.double(), other, rtol=tolerance, atol=tolerance)


def test_rows_do_not_depend_on_the_batch(device):
    weights, masks, biases, options = case("plain", "spline_softplus", 5, dtype=torch.float32, device=device)
    masks = [mask.float() for mask in masks]
    input = torch.randn(37, 5).to(device)
    whole = functional.masked_mlp_transform(input, weights, masks, biases, **options)
    for cut in (slice(0, 1), slice(1, 20), slice(20, 37)):
        part = functional.masked_mlp_transform(input[cut], weights, masks, biases, **options)
        for got, want in zip(part, whole, strict=True):
            torch.testing.assert_close(got, want[cut], rtol=1e-5, atol=1e-5)


def test_an_empty_batch(device):
    *tensors, options = case("plain", "spline_softplus", 4, device=device)
    y, log_det, *grads = results(
        functional.masked_mlp_transform, torch.zeros(0, 4, dtype=torch.float64, device=device), *tensors, torch.float64,
        **options,
    )  # fmt: skip
    assert y.shape == (0, 4) and log_det.shape == (0,) and not any(grad.any() for grad in grads)


@pytest.mark.parametrize("name", ["affine_soft_clip", "affine_gated", "spline_softplus"])
@pytest.mark.parametrize("network", PROGRAMS)
def test_gradients_of_first_and_second_order(device, network, name):
    weights, masks, biases, options = case(network, name, 3, context=1, device=device)
    input = torch.randn(2, 4, dtype=torch.float64).to(device)
    leaves = [tensor.requires_grad_() for tensor in (input, *weights, *biases)]

    def transform(x, *rest):
        w, b = rest[: len(weights)], rest[len(weights) :]
        return functional.masked_mlp_transform(x, w, masks, b, activation="silu", **options)

    assert torch.autograd.gradcheck(transform, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(transform, leaves, fast_mode=True)


def test_frozen_tensors_get_no_gradient(device):
    weights, masks, biases, options = case("plain", "affine_softplus", 4, device=device)
    input = torch.randn(3, 4, dtype=torch.float64).to(device)
    weights[1].requires_grad_()
    biases[2].requires_grad_()
    y, log_det = functional.masked_mlp_transform(input, weights, masks, biases, **options)
    got = torch.autograd.grad(y.sum() + log_det.sum(), (weights[1], biases[2]))
    expected = by_reference(input, weights, masks, biases, activation="relu", **options)
    want = torch.autograd.grad(sum(own.sum() for own in expected), (weights[1], biases[2]))
    for own, other in zip(got, want, strict=True):
        torch.testing.assert_close(own, other)
    assert not (got[0] * ~masks[1]).any()


@pytest.mark.parametrize("network", PROGRAMS)
def test_the_jacobian_is_triangular_and_gives_log_det(device, network):
    weights, masks, biases, options = case(network, "affine_softplus", 6, context=2, device=device)
    input = torch.randn(8, dtype=torch.float64).to(device)

    def transform(x):
        whole = torch.cat([x, input[6:]])[None]
        return functional.masked_mlp_transform(whole, weights, masks, biases, activation="tanh", **options)[0][0]

    jacobian = torch.autograd.functional.jacobian(transform, input[:6])
    assert not jacobian.triu(1).any()
    _, log_det = functional.masked_mlp_transform(input[None], weights, masks, biases, activation="tanh", **options)
    torch.testing.assert_close(log_det[0], jacobian.det().abs().log())


def test_a_weight_written_before_the_backward_pass_is_an_error(device):
    weights, masks, biases, options = case("plain", "affine_softplus", 4, device=device)
    weights[0].requires_grad_()
    y, _ = functional.masked_mlp_transform(
        torch.randn(2, 4, dtype=torch.float64).to(device), weights, masks, biases, **options
    )
    with torch.no_grad():
        weights[0].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.heavy
def test_opcheck(device, ops):
    weights, masks, biases, options = case("residual", "affine_softplus", 3, dtype=torch.float32, device=device)
    numbers = [number for layer in options["program"] for number in layer.numbers()]
    leaves = [tensor.requires_grad_() for tensor in (torch.randn(2, 3).to(device), *weights, *biases)]
    x, w, b = leaves[0], leaves[1 : 1 + len(weights)], leaves[1 + len(weights) :]
    rest = numbers, 3, 0, "relu", "affine_softplus", [1e-3], False, False
    torch.library.opcheck(ops.masked_mlp_transform.default, (x, w, masks, b, *rest))
