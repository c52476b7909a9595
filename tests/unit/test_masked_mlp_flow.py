"""masked_mlp_flow: equal to the reference for every network and chain, its Jacobian, and differentiable twice."""

import pytest
import torch
from conftest import available_isas, isa
from grids import pairs
from masked_mlp_flow_cases import CHAINS, PROGRAMS, case, inputs
from transform_cases import TRANSFORMS

from ar_fast import functional, reference

ACTIVATIONS = ["relu", "sigmoid", "tanh", "elu", "softplus", "silu", "gelu", "leaky_relu"]


def by_reference(
    x, weights, masks, biases, *, context=None, program, orders, context_columns, activation="relu", transform,
    constants, by_parameter=False, scale_first=False,
):  # fmt: skip
    numbers = [number for layer in program for number in layer.numbers()]
    rest = orders, context_columns, activation, transform, list(constants), by_parameter, scale_first
    return reference.masked_mlp_flow(x, context, weights, masks, biases, numbers, *rest)


def results(function, x, context, weights, masks, biases, dtype, **options):
    given = [x, *([] if context is None else [context]), *weights, *biases]
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in given]
    x, rest = leaves[0], leaves[1:]
    context = None if context is None else rest.pop(0)
    w, b = rest[: len(weights)], rest[len(weights) :]
    y, log_det = function(x, w, masks, b, context=context, **options)
    upstream = torch.linspace(0.5, 1.5, y.numel(), dtype=dtype, device=y.device).reshape(y.shape)
    grads = torch.autograd.grad((y, log_det), leaves, (upstream, torch.ones_like(log_det)), allow_unused=True)
    return [y, log_det, *(torch.zeros_like(t) if g is None else g for g, t in zip(grads, leaves, strict=True))]


@pytest.mark.parametrize(
    "network, chain, name, dtype, activation",
    pairs(PROGRAMS, CHAINS, TRANSFORMS, [torch.float64, torch.float32], ACTIVATIONS),
    ids=str,
)
def test_equal_to_the_reference(device, network, chain, name, dtype, activation):
    for batch, variables, context in ((1, 1, 0), (5, 7, 3), (9, 6, 2)):
        bias_rows = batch if context == 3 else 0
        context, *tensors, options = case(network, name, variables, context, chain, dtype, device, bias_rows)
        options["activation"] = activation
        given = inputs(batch, variables, context, dtype, device)
        weights, masks, biases = tensors
        want = results(by_reference, *given, *tensors, torch.float64, **options)
        # Masks in the dtype of the weights run on the CPU's products of small matrices, others on torch's.
        masks = masks if chain == "after" else [mask.to(dtype) for mask in masks]
        got = results(functional.masked_mlp_flow, *given, weights, masks, biases, dtype, **options)
        tolerance = 1e-9 if dtype == torch.float64 else 5e-2 if name.startswith("spline_") else 2e-3
        # A chain can magnify what one transform rounds.
        tolerance *= CHAINS[chain][0] ** 2
        for own, other in zip(got, want, strict=True):
            scale = max(1.0, float(other.detach().abs().max())) if other.numel() else 1.0
            torch.testing.assert_close(own.double() / scale, other / scale, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("network", PROGRAMS)
def test_layouts_of_the_parameters(device, network):
    context, *tensors, options = case(network, "affine_softplus", 5, chain="before", device=device)
    given = inputs(4, 5, context, device=device)
    for by_parameter in (False, True):
        own = {**options, "activation": "tanh", "by_parameter": by_parameter, "scale_first": True}
        got = results(functional.masked_mlp_flow, *given, *tensors, torch.float64, **own)
        want = results(by_reference, *given, *tensors, torch.float64, **own)
        for mine, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_a_chain_is_its_transforms_one_after_the_other(device):
    context, weights, masks, biases, options = case("within", "affine_softplus", 6, 2, "before", device=device)
    x, given = inputs(5, 6, context, device=device)
    y, log_det = functional.masked_mlp_flow(x, weights, masks, biases, context=given, **options)
    own, total, terms = x, 0.0, len(weights) // 3
    for index in range(3):
        part = slice(index * terms, (index + 1) * terms)
        one = {**options, "orders": options["orders"][index : index + 1]}
        own, step = functional.masked_mlp_flow(own, weights[part], masks[part], biases[part], context=given, **one)
        total = total + step
    torch.testing.assert_close((y, log_det), (own, total))


def test_none_stands_for_no_mask_bias_and_order(device):
    _, weights, masks, biases, options = case("plain", "affine_clamp", 4, chain="four", device=device)
    x, _ = inputs(3, 4, 0, device=device)
    zeros, ones = [torch.zeros_like(bias) for bias in biases], [torch.ones_like(weight) for weight in weights]
    options["orders"][2] = torch.arange(4, device=device)
    want = functional.masked_mlp_flow(x, weights, ones, zeros, **options)
    options["orders"] = [None] * 4
    got = functional.masked_mlp_flow(x, weights, [None] * len(masks), [None] * len(biases), **options)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32], ids=str)
def test_masks_of_other_dtypes(device, dtype):
    _, weights, masks, biases, options = case("plain", "affine_clamp", 4, dtype=torch.float32, device=device)
    x = torch.randn(3, 4).to(device)
    want = functional.masked_mlp_flow(x, weights, masks, biases, **options)
    got = functional.masked_mlp_flow(x, weights, [mask.to(dtype) for mask in masks], biases, **options)
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
    _, *tensors, options = case("plain", "affine_clamp", 5, dtype=dtype)
    tensors[1] = [mask.to(dtype) for mask in tensors[1]]
    given = inputs(batch, 5, 0, dtype)
    options["activation"] = "tanh"
    with isa(isa_name):
        got = results(functional.masked_mlp_flow, *given, *tensors, dtype, **options)
    tensors[1] = [mask.double() for mask in tensors[1]]
    want = results(by_reference, *given, *tensors, torch.float64, **options)
    tolerance = 1e-9 if dtype == torch.float64 else 5e-3
    for own, other in zip(got, want, strict=True):
        torch.testing.assert_close(own.double(), other, rtol=tolerance, atol=tolerance)


def test_rows_do_not_depend_on_the_batch(device):
    _, weights, masks, biases, options = case("plain", "spline_softplus", 5, 0, "four", torch.float32, device)
    masks = [mask.float() for mask in masks]
    x = torch.randn(37, 5).to(device)
    whole = functional.masked_mlp_flow(x, weights, masks, biases, **options)
    for cut in (slice(0, 1), slice(1, 20), slice(20, 37)):
        part = functional.masked_mlp_flow(x[cut], weights, masks, biases, **options)
        for got, want in zip(part, whole, strict=True):
            torch.testing.assert_close(got, want[cut], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chain", CHAINS)
def test_an_empty_batch(device, chain):
    context, *tensors, options = case("within", "spline_softplus", 4, chain=chain, device=device)
    given = inputs(0, 4, context, device=device)
    y, log_det, *grads = results(functional.masked_mlp_flow, *given, *tensors, torch.float64, **options)
    assert y.shape == (0, 4) and log_det.shape == (0,) and not any(grad.any() for grad in grads)


@pytest.mark.parametrize("name", ["affine_soft_clip", "affine_gated", "spline_softplus"])
@pytest.mark.parametrize("network, chain", [*((network, "one") for network in PROGRAMS), ("within", "before")])
def test_gradients_of_first_and_second_order(device, network, chain, name):
    context, weights, masks, biases, options = case(network, name, 3, context=1, chain=chain, device=device)
    x, given = inputs(2, 3, context, device=device)
    leaves = [tensor.requires_grad_() for tensor in (x, given, *weights, *biases)]

    def flow(x, context, *rest):
        w, b = rest[: len(weights)], rest[len(weights) :]
        return functional.masked_mlp_flow(x, w, masks, b, context=context, activation="silu", **options)

    assert torch.autograd.gradcheck(flow, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(flow, leaves, fast_mode=True)


@pytest.mark.parametrize("network, chain", [("linear", "one"), ("within", "before")])
def test_a_penalty_on_gradients(device, network, chain):
    """The parameters of a transform depend on its own input, and x here on a weight: each is counted once."""
    context, weights, masks, biases, options = case(
        network, "affine_softplus", 4, context=2, chain=chain, device=device
    )
    x, given = inputs(3, 4, context, device=device)
    weights = [weight.requires_grad_() for weight in weights]
    found = []
    for function in (functional.masked_mlp_flow, by_reference):
        values = x + weights[0].mean()
        y, log_det = function(values, weights, masks, biases, context=given, activation="silu", **options)
        (grad,) = torch.autograd.grad((y.square().sum(1) + log_det).sum(), values, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), weights))
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-7, atol=1e-7)


def test_frozen_tensors_get_no_gradient(device):
    context, weights, masks, biases, options = case("through", "affine_softplus", 4, chain="four", device=device)
    x, given = inputs(3, 4, context, device=device)
    chosen = weights[1].requires_grad_(), biases[2].requires_grad_(), weights[-1].requires_grad_()
    y, log_det = functional.masked_mlp_flow(x, weights, masks, biases, context=given, **options)
    got = torch.autograd.grad(y.sum() + log_det.sum(), chosen)
    expected = by_reference(x, weights, masks, biases, context=given, **options)
    want = torch.autograd.grad(sum(own.sum() for own in expected), chosen)
    for own, other in zip(got, want, strict=True):
        torch.testing.assert_close(own, other)
    assert not (got[0] * ~masks[1]).any() and not (got[2] * ~masks[-1]).any()


@pytest.mark.parametrize("network", ["plain", "within"])
def test_a_context_alone_may_be_trained(device, network):
    context, weights, masks, biases, options = case(network, "affine_softplus", 4, chain="after", device=device)
    x, given = inputs(3, 4, context, device=device)
    given.requires_grad_()
    got = functional.masked_mlp_flow(x, weights, masks, biases, context=given, **options)
    want = by_reference(x, weights, masks, biases, context=given, **options)
    (own,), (other,) = (torch.autograd.grad(sum(part.sum() for part in found), given) for found in (got, want))
    torch.testing.assert_close(own, other)


def test_no_two_gradients_share_memory(device):
    context, weights, masks, biases, options = case("within", "affine_softplus", 4, 2, device=device, bias_rows=3)
    x, given = inputs(3, 4, context, device=device)
    leaves = [tensor.requires_grad_() for tensor in (x, given, *weights, *biases)]
    y, log_det = functional.masked_mlp_flow(x, weights, masks, biases, context=given, **options)
    grads = torch.autograd.grad(y.sum() + log_det.sum(), leaves)
    pointers = [grad.untyped_storage().data_ptr() for grad in grads if grad.numel()]
    assert len(set(pointers)) == len(pointers)


@pytest.mark.parametrize("network", PROGRAMS)
def test_the_jacobian_is_triangular_and_gives_log_det(device, network):
    context, weights, masks, biases, options = case(network, "affine_softplus", 6, context=2, device=device)
    x, given = inputs(1, 6, context, device=device)

    def flow(x):
        return functional.masked_mlp_flow(x, weights, masks, biases, context=given, activation="tanh", **options)

    jacobian = torch.autograd.functional.jacobian(lambda x: flow(x[None])[0][0], x[0])
    assert not jacobian.triu(1).any()
    torch.testing.assert_close(flow(x)[1][0], jacobian.det().abs().log())


def test_the_jacobian_of_a_chain_with_permutations_gives_log_det(device):
    context, weights, masks, biases, options = case("through", "affine_softplus", 5, 2, "before", device=device)
    x, given = inputs(1, 5, context, device=device)

    def flow(x):
        return functional.masked_mlp_flow(x, weights, masks, biases, context=given, activation="tanh", **options)

    jacobian = torch.autograd.functional.jacobian(lambda x: flow(x[None])[0][0], x[0])
    torch.testing.assert_close(flow(x)[1][0], jacobian.det().abs().log())


def test_a_weight_written_before_the_backward_pass_is_an_error(device):
    _, weights, masks, biases, options = case("plain", "affine_softplus", 4, device=device)
    weights[0].requires_grad_()
    y, _ = functional.masked_mlp_flow(inputs(2, 4, 0, device=device)[0], weights, masks, biases, **options)
    with torch.no_grad():
        weights[0].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("bad", [[0, 1, 1, 3], [3, 3, 3, 3], [0, 1, 2, 4], [0, -1, 2, 3]], ids=str)
def test_an_order_holds_each_variable_once(implementation, bad):
    """The compiled op and the reference look at its values; each says which order it is."""
    _, weights, masks, biases, options = case("plain", "affine_softplus", 4, chain="four")
    x, _ = inputs(3, 4, 0)
    options["orders"][2] = torch.tensor(bad)
    with pytest.raises(RuntimeError, match=r"masked_mlp_flow: orders\[2\] must be a permutation of 0 ... D-1 = 3"):
        functional.masked_mlp_flow(x, weights, masks, biases, **options)


@pytest.mark.heavy
@pytest.mark.parametrize("network, chain", [("residual", "one"), ("within", "before")])
def test_opcheck(device, ops, network, chain):
    context, weights, masks, biases, options = case(network, "affine_softplus", 3, 0, chain, torch.float32, device)
    x, given = inputs(2, 3, context, torch.float32, device)
    numbers = [number for layer in options["program"] for number in layer.numbers()]
    for tensor in (x, *([] if given is None else [given]), *weights, *biases):
        tensor.requires_grad_()
    rest = options["orders"], options["context_columns"], "relu", "affine_softplus", [1e-3], False, False
    torch.library.opcheck(ops.masked_mlp_flow.default, (x, given, weights, masks, biases, numbers, *rest))
