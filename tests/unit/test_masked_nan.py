"""A masked weight never sees its input: a NaN passes where the mask lets it, at every batch size and on every path."""

import warnings
from functools import partial

import pytest
import torch
from masked_cases import KINDS, make_mask
from structure_cases import CASES, VARIABLES, data, make
from torch.autograd import forward_ad

import ar_fast
from ar_fast import functional, reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("algorithm", ["auto", "panels", "fused", "dense"])
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
