"""masked_linear in 16 bits over strips of a large staircase: by torch's GEMM on CUDA, and the same anywhere else."""

import contextlib

import emulated
import pytest
import torch
from torch.nn import functional as F

from ar_fast import Mask, functional, masks, reference
from ar_fast.nn import MaskedLinear

TOLERANCE = {torch.bfloat16: 8e-3, torch.float16: 1e-3}
# Of 72 to 264 rows, whose steps are 64 apart: any staircase; one whose strips are all of the weight; one that leaves
# inputs unseen; one with rows that see nothing, and others that see all.
KINDS = ["any", "dense", "unseen", "jump"]


@pytest.fixture(autouse=True)
def steps_of_small_masks(monkeypatch):
    monkeypatch.setattr(masks, "_LEAST_STEPPED", 1)


def make_mask(kind, outputs, inputs):
    extents = torch.randint(0, inputs + 1, (outputs,)).sort().values
    if kind == "dense":
        extents = torch.full((outputs,), inputs)
    elif kind == "unseen":
        extents = extents // 2
    elif kind == "even":
        extents = torch.arange(outputs) * inputs // outputs
    elif kind == "jump":
        extents = torch.where(torch.arange(outputs) < outputs // 3, 0, inputs)
    return Mask.from_degrees(torch.arange(inputs), extents - 1)


def make_case(size, kind="any", dtype=torch.bfloat16, device="cpu", poison=False):
    """x, weight, bias, the gradient of y, and the mask; with ``poison`` every masked weight is NaN."""
    batch, inputs, outputs = size
    mask = make_mask(kind, outputs, inputs)
    weight = torch.randn(outputs, inputs) / inputs**0.5
    if poison:
        weight = torch.where(mask.to_dense(), weight, float("nan"))
    tensors = torch.randn(batch, inputs), weight, torch.randn(outputs), torch.randn(batch, outputs)
    return *(tensor.to(device, dtype) for tensor in tensors), mask.to(device)


def products(ops, case, algorithm="panels", activation=None):
    x, weight, bias, grad, mask = case
    return (
        ops.masked_linear(x, weight, bias, *mask.plan, algorithm, activation, mask.steps),
        ops.masked_linear_grad_input(grad, weight, *mask.plan, algorithm, mask.steps),
        ops.masked_linear_grad_weight(grad, x, *mask.plan, algorithm, mask.steps),
    )


def wanted(case, activation=None):
    x, weight, bias, grad, mask = case
    allowed = mask.to_dense()
    x, weight, bias, grad = (tensor.double() for tensor in (x, weight, bias, grad))
    weight = torch.where(allowed, weight, 0.0)
    y = F.linear(x, weight, bias)
    y = y if activation is None else reference.MLP_ACTIVATIONS[activation](y)
    return y, grad @ weight, torch.where(allowed, grad.T @ x, 0.0)


def assert_close(found, expected, dtype):
    for got, want in zip(found, expected, strict=True):
        assert got.dtype == dtype and got.shape == want.shape
        scale = max(1.0, float(want.abs().max())) if want.numel() else 1.0
        torch.testing.assert_close(got.double() / scale, want / scale, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@contextlib.contextmanager
def one_multiprocessor(emulation):
    """Where the waves of narrow strips save most, so that there are many."""
    with emulated.gpu(multiprocessors=1) if emulation else contextlib.nullcontext():
        yield


def says(emulation, call):
    """What emulated ops say; nothing elsewhere."""
    if not emulation:
        call()
        return []
    return emulated.explain(call)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 8, 72), (20, 136, 264), (130, 1032, 200), (20, 200, 1096)], ids=str)
def test_equals_the_reference(device, ops, emulation, size, kind, dtype):
    case = make_case(size, kind, dtype, device, poison=True)
    with one_multiprocessor(emulation):
        lines = says(emulation, lambda: products(ops, case))
        found = products(ops, case)
    assert all("torch's GEMM over" in line for line in lines)
    assert_close(found, wanted(case), dtype)
    assert (found[2][~case[-1].to_dense()] == 0).all()


def test_many_rows_take_them(device, ops, emulation):
    # Few steps of a random staircase may make one strip the shortest.
    case = make_case((1024, 512, 520), "even", device=device)
    with one_multiprocessor(emulation):
        lines = says(emulation, lambda: products(ops, case, "auto"))
        found = products(ops, case, "auto")
    assert len(lines) == 3 * emulation
    assert all("torch's GEMM over" in line and "over 1 strips" not in line for line in lines)
    assert_close(found, wanted(case), torch.bfloat16)


def test_copies_of_some_strips_at_a_time(device, ops, emulation):
    """The buffer holds a quarter of this weight: the first two strips of y together, then one at a time."""
    case = make_case((16, 4096, 4096), device=device)
    lines = says(emulation, lambda: products(ops, case))
    assert all("torch's GEMM over" in line for line in lines)
    assert not emulation or "over 4 strips" in lines[0]
    assert_close(products(ops, case), wanted(case), torch.bfloat16)


@pytest.mark.parametrize(
    "change",
    ["few rows", "odd inputs", "odd outputs", "float32", "unsorted", "strided", "no steps", "no rows"],
)
def test_the_others_take_tiles(device, ops, emulation, change):
    size = {
        "few rows": (70, 136, 72),
        "no rows": (0, 136, 72),
        "odd inputs": (1030, 131, 72),
        "odd outputs": (1030, 136, 71),
    }.get(change, (1030, 136, 72))
    dtype = torch.float32 if change == "float32" else torch.bfloat16
    x, weight, bias, grad, mask = make_case(size, "any", dtype, device)
    if change == "unsorted":
        mask = Mask.from_degrees(torch.randperm(136), torch.randint(0, 136, (72,))).to(device)
        assert mask.steps == []
    if change == "no steps":
        mask = Mask(72, 136, *mask.plan)
    if change == "strided":  # rows that do not begin at a multiple of 16 bytes
        x = torch.cat([x, x[:, :1]], 1)[:, :136]
    case = x, weight, bias, grad, mask
    found, lines = products(ops, case, "auto"), says(emulation, lambda: products(ops, case, "auto"))
    of_strips = [line for line in lines if "torch's GEMM" in line]
    assert len(of_strips) == (1 if emulation and change == "strided" else 0)  # dX reads no x
    if dtype in TOLERANCE:
        assert_close(found, wanted(case), dtype)


def test_rows_with_a_stride(device, ops):
    x, weight, bias, grad, mask = make_case((40, 136, 264), device=device)
    wide = torch.randn(40, 400, device=device).to(torch.bfloat16)
    wide[:, 8:144] = x
    found = products(ops, (wide[:, 8:144], weight, bias, grad, mask))
    for got, want in zip(found, products(ops, (x, weight, bias, grad, mask)), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "leaky_relu"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=str)
def test_what_is_not_finite_reaches_what_sees_it(device, ops, emulation, bad, activation):
    case = x, weight, _, grad, mask = make_case((20, 136, 264), device=device, poison=True)
    x[3, 100], x[4, 0], grad[5, 10], grad[6, 263] = bad, bad, bad, bad
    allowed = mask.to_dense()
    with one_multiprocessor(emulation):
        y, dx, dw = products(ops, case, activation=activation)
    clean = (x.nan_to_num(0, 0, 0), weight, case[2], grad.nan_to_num(0, 0, 0), mask)
    want_y, want_dx, _ = wanted(clean, activation)
    reached_y, reached_dx = torch.zeros_like(y, dtype=torch.bool), torch.zeros_like(dx, dtype=torch.bool)
    reached_y[3], reached_y[4], reached_dx[5], reached_dx[6] = allowed[:, 100], allowed[:, 0], allowed[10], allowed[263]
    assert dx[reached_dx].isfinite().logical_not().all()
    assert activation is not None or y[reached_y].isfinite().logical_not().all()
    found = [torch.where(reached, 0.0, got) for got, reached in ((y, reached_y), (dx, reached_dx))]
    want = [torch.where(reached, 0.0, got) for got, reached in ((want_y, reached_y), (want_dx, reached_dx))]
    assert_close(found, want, torch.bfloat16)
    assert (dw[~allowed] == 0).all()


@pytest.mark.parametrize("activation", list(reference.MLP_ACTIVATIONS))
def test_activations(device, ops, activation):
    case = make_case((24, 136, 264), device=device)
    assert_close(products(ops, case, activation=activation), wanted(case, activation), torch.bfloat16)


def test_gradients_of_a_layer(device):
    """Through autograd, with the steps of the layer's own mask, in more than one leading dimension."""
    x, weight, bias, grad, mask = make_case((1040, 136, 264), device=device)
    layer = MaskedLinear(136, 264, mask, device=device, dtype=torch.bfloat16, activation="tanh")
    assert layer.mask.steps == mask.steps != []
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    leaves = [x.unflatten(0, (2, 520)).requires_grad_(), layer.weight, layer.bias]
    found = torch.autograd.grad(layer(leaves[0]), leaves, grad.unflatten(0, (2, 520)))
    exact = [tensor.detach().double().requires_grad_() for tensor in leaves]
    y = torch.tanh(F.linear(exact[0], torch.where(mask.to_dense(), exact[1], 0.0), exact[2]))
    for got, want in zip(found, torch.autograd.grad(y, exact, grad.double().view_as(y)), strict=True):
        scale = float(want.abs().max())
        torch.testing.assert_close(got.double() / scale, want / scale, rtol=2e-2, atol=2e-2)


def test_second_derivatives_keep_the_steps(device):
    x, weight, bias, _, mask = make_case((1032, 72, 72), dtype=torch.bfloat16, device=device)
    x.requires_grad_()
    y = functional.masked_linear(x, weight.requires_grad_(), mask, bias)
    (dx,) = torch.autograd.grad(y.float().square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(dx.float().sum(), x)
    masked = torch.where(mask.to_dense(), weight.detach().double(), 0.0)
    want = 2 * (torch.ones(1032, 72, device=device, dtype=torch.float64) @ masked.T) @ masked
    torch.testing.assert_close(second.double() / want.abs().max(), want / want.abs().max(), rtol=2e-2, atol=2e-2)


def test_steps_of_masks():
    mask = Mask.from_degrees(torch.arange(200), torch.arange(130) - 1)
    assert mask.steps == [0, 63, 127, 129]
    assert mask.to("cpu").steps == mask.steps
    assert Mask.from_dense(mask.to_dense()).steps == mask.steps
    assert Mask.from_degrees(torch.arange(200).flip(0), torch.arange(130)).steps == []
    assert Mask.from_degrees([], []).steps == []
    large = Mask.from_degrees(torch.arange(2000), torch.arange(2000))
    assert len(large.steps) == 17 and large.steps == [large.extents[i] for i in [0, *range(127, 1999, 128), 1999]]


def test_small_masks_have_none(monkeypatch):
    monkeypatch.undo()
    assert Mask.dense(1023, 2000).steps == [] and Mask.dense(1024, 1024).steps == [1024] * 17


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan, steps: (plan, steps[1:]), "steps must have 4 numbers for 130 outputs, got 3"),
        (lambda plan, steps: (plan, steps[::-1]), "steps must ascend from at least 0 to at most 200"),
        (lambda plan, steps: (plan, [*steps[:-1], 201]), "steps must ascend from at least 0 to at most 200"),
        (
            lambda plan, steps: ((plan[0], torch.arange(130, dtype=torch.int32), *plan[2:]), steps),
            "steps belong to a mask with extents and without rows and columns",
        ),
    ],
)
def test_errors(ops, change, message):
    mask = Mask.from_degrees(torch.arange(200), torch.arange(130) - 1)
    plan, steps = change(mask.plan, mask.steps)
    with pytest.raises(RuntimeError, match=message):
        ops.masked_linear(torch.ones(2, 200), torch.ones(130, 200), None, *plan, "auto", None, steps)
