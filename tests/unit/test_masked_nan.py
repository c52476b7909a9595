"""A masked weight never sees its input: a NaN passes where the mask lets it, at every batch size and on every path."""

import warnings
from functools import partial

import pytest
import torch
from grids import pairs
from masked_cases import KINDS, make_mask
from structure_cases import CASES, VARIABLES, data, make
from torch.autograd import forward_ad

import ar_fast
from ar_fast import functional, reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind, algorithm, dtype", pairs(KINDS, ["auto", "panels", "fused", "dense"], DTYPES), ids=str)
def test_what_is_masked_does_not_see_a_nan(ops, emulation, device, kind, dtype, bad, algorithm):
    if algorithm == "dense" and (emulation or device.type == "cuda"):
        pytest.skip("dense on CUDA is a product with the masked weight by the BLAS library")
    mask = make_mask(kind, 70, 70)
    allowed = mask.to_dense()
    plan = tuple(None if tensor is None else tensor.to(device) for tensor in mask.plan)
    weight = (0.5 + torch.rand(70, 70)).to(dtype)
    for rows in (2, 8, 40):
        x = torch.rand(rows, 70).to(dtype)
        x[1, 33] = bad
        y = ops.masked_linear(x.to(device), weight.to(device), None, *plan, algorithm, "relu").cpu()
        dx = ops.masked_linear_grad_input(x.to(device), weight.to(device), *plan, algorithm).cpu()
        for got, seen in ((y, allowed[:, 33]), (dx, allowed[33])):
            assert got[1].isfinite().equal(~seen)
            assert got[0].isfinite().all() and got[2:].isfinite().all()
        dw = ops.masked_linear_grad_weight(x.to(device), x.to(device), *plan, "fused").cpu()
        assert (dw[~allowed] == 0).all()


def test_the_same_outputs_are_nan_at_every_batch_size():
    layer = ar_fast.nn.MaskedLinear(300, 300, torch.ones(300, 300).tril().bool())
    row = torch.randn(300).index_fill(0, torch.tensor([200]), torch.nan)
    for rows in (1, 8, 9, 40, 300):
        with torch.no_grad():
            y = layer(row.repeat(rows, 1))
        assert y.isnan().equal((torch.arange(300) >= 200).expand(rows, -1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_references_follow_the_rule(kind, bad):
    """Under torch.func and forward-mode AD, on what they are given."""
    mask = make_mask(kind, 9, 12)
    allowed = mask.to_dense()
    weight = torch.where(allowed, 0.5 + torch.rand(9, 12), torch.nan)
    x, dy = torch.rand(2, 12), torch.rand(2, 9)
    x[1, 4] = dy[1, 4] = bad
    forward = partial(functional.masked_linear, weight=weight, mask=mask, bias=torch.ones(9))
    backward = partial(functional.masked_linear_grad_input, weight=weight, mask=mask)
    for function, given, seen in ((forward, x, allowed[:, 4]), (backward, dy, allowed[4])):
        ones = torch.ones_like(given)
        with warnings.catch_warnings():
            # The references say once that they run.
            warnings.simplefilter("ignore")
            value, derivative = torch.func.jvp(function, (given,), (ones,))
            with forward_ad.dual_level():
                dual = forward_ad.unpack_dual(function(forward_ad.make_dual(given, ones)))
        for got in (value, dual.primal):
            assert got[1].isfinite().equal(~seen) and got[0].isfinite().all()
        for got in (derivative, dual.tangent):
            torch.testing.assert_close(got, function(ones) - function(torch.zeros_like(given)))


def test_the_sampling_reference_does_not_see_a_masked_nan():
    extents = [torch.tensor([1, 2], dtype=torch.int32), torch.tensor([0, 1, 2], dtype=torch.int32)]
    weights = [torch.rand(2, 3), torch.rand(3, 2)]
    masked = [
        torch.where(torch.arange(weight.shape[1]) < ends[:, None], weight, torch.nan)
        for weight, ends in zip(weights, extents, strict=True)
    ]
    program = [functional.MlpLayer((0,)), functional.MlpLayer((1,), activated=False)]
    biases, unit_ends = [torch.zeros(2), torch.zeros(3)], [torch.tensor([0, 1, 2], dtype=torch.int32)]
    arguments = {"unit_ends": unit_ends, "program": [number for layer in program for number in layer.numbers()]}
    arguments |= dict.fromkeys(("order", "in_offsets", "out_offsets", "given", "known", "head_kinds"))
    arguments |= {"variables": 3, "activation": "relu", "head": "bernoulli", "levels": 0, "temperature": 1.0}
    arguments |= {"seed": 1, "first_index": 0, "start": 0, "stop": 3}
    draws = [
        reference.masked_mlp_sample(torch.zeros(4, 5), own, biases, extents, **arguments) for own in (masked, weights)
    ]
    for got, want in zip(*draws, strict=True):
        assert torch.equal(got, want)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("kind", "head"), [case for case in CASES if case.values[1] in ("GaussianMixture", "PerVariable")]
)
def test_a_value_that_is_nan_reaches_only_what_comes_after_it(device, kind, head):
    """Of every model, at several batch sizes."""
    model = make(kind, head, device=device)
    model.validate_args = False
    order = model._order.tolist()
    position = next(p for p in range(VARIABLES - 1) if model._real[order[p]])
    before, variable = order[:position], order[position]
    for rows in (1, 6, 40):
        x, context = data(head, rows=rows, device=device)
        x[0, variable] = torch.nan
        log_prob, parameters = model.log_prob(x, context, per_variable=True), model(x, context)
        assert log_prob[0, variable].isnan() and log_prob[1:].isfinite().all()
        assert log_prob[0, before].isfinite().all()
        own = parameters.unbind(1) if parameters.dim() == 3 else parameters.split(model.counts, 1)
        assert all(own[index].isfinite().all() for index in (*before, variable))
        assert any(not own[index][0].isfinite().all() for index in order[position + 1 :])
