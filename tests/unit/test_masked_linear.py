"""masked_linear and its two gradient ops against their plain-torch reference in float64."""

import contextlib
import math

import emulated
import pytest
import torch
from conftest import available_isas, isa
from grids import pairs
from masked_cases import KINDS, blocks, masked_case
from torch.nn import functional as F

from ar_fast import Mask, _library, explain, functional, reference
from ar_fast.nn import MaskedLinear

# (B, I, O). Batches around the path for a few rows (8) and a tile (64); sizes around tiles and panels.
SIZES = [(0, 5, 6), (1, 1, 1), (1, 7, 19), (3, 111, 7), (9, 2, 130), (13, 65, 64), (70, 129, 67), (8, 19, 989)]
TOLERANCE = {
    torch.float64: {"rtol": 1e-11, "atol": 1e-11},
    torch.float32: {"rtol": 2e-5, "atol": 2e-5},
    # The reference gets the same 16-bit numbers; what differs is that our result is rounded to 16 bits, once.
    torch.bfloat16: {"rtol": 8e-3, "atol": 8e-3},
    torch.float16: {"rtol": 1e-3, "atol": 1e-3},
}
ALGORITHMS = ["auto", "panels", "fused", "dense"]


def run(case, algorithm="auto"):
    return functional.masked_linear(case.input, case.weight, case.mask, case.bias, algorithm=algorithm)


def by_reference(case):
    case = case.upcast()
    return F.linear(case.input, case.weight, case.bias)


def gradients(case, ops, algorithm="auto"):
    """dX and dW of a random gradient, by the ops themselves, and what they should be in float64."""
    grad = torch.randn(*case.input.shape[:-1], case.weight.shape[0], dtype=torch.float64, device=case.input.device)
    grad = grad.to(case.weight.dtype)
    dx = ops.masked_linear_grad_input(grad, case.weight, *case.plan, algorithm)
    dw = ops.masked_linear_grad_weight(grad, case.input, *case.plan, algorithm)
    rows, inputs = (t.double().reshape(math.prod(t.shape[:-1]), t.shape[-1]) for t in (grad, case.input))
    want_dw = torch.where(case.allowed, rows.T @ inputs, 0.0)
    return (dx, grad.double() @ case.upcast().weight), (dw, want_dw)


def assert_close(got, want, dtype):
    assert got.dtype == dtype and got.shape == want.shape
    scale = max(1.0, float(want.abs().max())) if want.numel() else 1.0
    torch.testing.assert_close(got.double() / scale, want / scale, **TOLERANCE[dtype])


def check_all(case, ops, algorithm="auto"):
    dtype = case.weight.dtype
    assert_close(run(case, algorithm), by_reference(case), dtype)
    (dx, want_dx), (dw, want_dw) = gradients(case, ops, algorithm)
    assert_close(dx, want_dx, dtype)
    assert_close(dw, want_dw, dtype)
    assert (dw[~case.allowed] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_reference(device, ops, size, kind):
    check_all(masked_case(*size, kind, device=device), ops)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [3, 37])
def test_every_dtype(device, ops, kind, dtype, batch):
    check_all(masked_case(batch, 141, 77, kind, dtype=dtype, device=device), ops)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_products_that_fill_a_gpu(device, ops, kind, dtype):
    """Where large tiles are chosen; test_masked_tiles.py forces them on the emulation, which is too slow for this."""
    if device.type != "cuda":
        pytest.skip("CUDA only")
    check_all(masked_case(1800, 1928, 1848, kind, dtype=dtype, device=device), ops)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [2, 33])
def test_every_algorithm(device, ops, kind, algorithm, batch):
    check_all(masked_case(batch, 130, 140, kind, device=device), ops, algorithm)


@pytest.mark.parametrize("kind, dtype, name", pairs(KINDS, TOLERANCE, available_isas()), ids=str)
def test_every_instruction_set(name, kind, dtype):
    with isa(name):
        for batch in (1, 5, 8, 17, 67):
            check_all(masked_case(batch, 143, 75, kind, dtype=dtype), torch.ops.ar_fast, "fused")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(12, 700, 900), (40, 1200, 90), (20, 90, 1300)], ids=str)
@pytest.mark.parametrize("algorithm", ["panels", "fused"])
def test_many_panels(size, kind, algorithm):
    check_all(masked_case(*size, kind), torch.ops.ar_fast, algorithm)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(20, 600, 700), (3, 700, 40), (9, 30, 600)], ids=str)
def test_panels_in_bfloat16(size, kind):
    case = masked_case(*size, kind, dtype=torch.bfloat16, poison=True)
    check_all(case, torch.ops.ar_fast, "panels")
    (line,) = explain("masked_linear", case.input, case.weight, case.mask, algorithm="panels")
    assert "panels through torch's GEMM in bfloat16" in line


@pytest.mark.parametrize("algorithm", ["auto", "panels"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [2, 33])
def test_masked_weights_have_no_effect(device, ops, kind, batch, algorithm):
    case = masked_case(batch, 133, 70, kind, device=device, poison=True)
    assert not case.weight.isfinite().all()
    check_all(case, ops, algorithm)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (2, 0, 3), (1, 2, 2, 3)], ids=str)
def test_leading_dimensions(device, ops, shape):
    case = masked_case(shape, 20, 30, "both", device=device)
    assert run(case).shape == (*shape, 30)
    check_all(case, ops)


def test_without_bias(device):
    case = masked_case(5, 20, 30, bias=False, device=device)
    assert_close(run(case), by_reference(case), torch.float32)


@pytest.mark.parametrize("sizes", [(5, 0, 3), (5, 3, 0), (0, 0, 0)], ids=str)
def test_no_features(device, ops, sizes):
    case = masked_case(*sizes, device=device)
    assert_close(run(case), by_reference(case), torch.float32)
    (dx, want_dx), (dw, want_dw) = gradients(case, ops)
    assert_close(dx, want_dx, torch.float32)
    assert_close(dw, want_dw, torch.float32)


def test_a_mask_that_allows_nothing_and_one_that_allows_all(device, ops):
    for kind in ("nothing", "all"):
        case = masked_case(11, 70, 66, device=device)
        extents = torch.full((66,), 0 if kind == "nothing" else 70, dtype=torch.int32, device=device)
        case.mask = Mask(66, 70, extents=extents)
        check_all(case, ops)
        case.mask = blocks(torch.full((66, 70), kind == "all")).to(device)
        check_all(case, ops)


@pytest.mark.parametrize("batch", [3, 20])
def test_strided_inputs(device, batch):
    case = masked_case(batch, 40, 50, device=device)
    wide = torch.randn(batch, 100, device=device)
    wide[:, 10:50] = case.input
    weight, bias = case.weight.t().contiguous().t(), case.bias.repeat_interleave(2)[::2]
    assert not weight.is_contiguous() and not bias.is_contiguous()
    got = functional.masked_linear(wide[:, 10:50], weight, case.mask, bias)
    torch.testing.assert_close(got, run(case), rtol=0, atol=0)
    spread = case.input.repeat_interleave(2, 1)[:, ::2]
    torch.testing.assert_close(functional.masked_linear(spread, weight, case.mask, bias), run(case), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_and_gradgradcheck(device, kind):
    case = masked_case(3, 5, 4, kind, dtype=torch.float64, device=device)
    leaves = [t.requires_grad_() for t in (case.input, case.weight, case.bias)]

    def function(input, weight, bias):
        return functional.masked_linear(input, weight, case.mask, bias)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_gradients_of_the_module_chain(device):
    """Through autograd, against the reference's gradients: each operand alone, and all together."""
    case = masked_case((2, 5), 33, 21, "both", device=device, poison=True)
    names = ("input", "weight", "bias")
    for wanted in (("input",), ("weight",), ("bias",), names):
        mine = {name: getattr(case, name).detach().clone() for name in names}
        other = {name: getattr(case.upcast(), name).detach().clone() for name in names}
        for name in wanted:
            mine[name].requires_grad_()
            other[name].requires_grad_()
        functional.masked_linear(mine["input"], mine["weight"], case.mask, mine["bias"]).square().sum().backward()
        reference.masked_linear(other["input"], other["weight"], other["bias"], *case.plan).square().sum().backward()
        for name in names:
            if name not in wanted:
                assert mine[name].grad is None
                continue
            assert_close(mine[name].grad, other[name].grad, torch.float32)
    assert (mine["weight"].grad[~case.allowed] == 0).all()


ACTIVATIONS = list(reference.MLP_ACTIVATIONS)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("batch", "kind"), [(3, "sorted"), (3, "both"), (70, "sorted"), (70, "both"), (70, "blocks")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_activations_equal_torchs(device, activation, batch, kind, dtype):
    case = masked_case(batch, 77, 70, kind, dtype=dtype, device=device, poison=True)
    got = functional.masked_linear(case.input, case.weight, case.mask, case.bias, activation=activation)
    assert_close(got, reference.MLP_ACTIVATIONS[activation](by_reference(case)), dtype)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("activation", ["tanh", "gelu"])
@pytest.mark.parametrize("batch", [2, 33])
def test_activations_on_every_path(device, batch, activation, algorithm):
    case = masked_case(batch, 130, 90, "both", device=device)
    inputs = case.input, case.weight, case.mask, case.bias
    got = functional.masked_linear(*inputs, activation=activation, algorithm=algorithm)
    assert_close(got, reference.MLP_ACTIVATIONS[activation](by_reference(case)), torch.float32)


@pytest.mark.parametrize("name", available_isas())
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_on_every_instruction_set(name, activation):
    with isa(name):
        for batch in (5, 67):
            case = masked_case(batch, 40, 75)
            got = functional.masked_linear(case.input, case.weight, case.mask, case.bias, activation=activation)
            assert_close(got, reference.MLP_ACTIVATIONS[activation](by_reference(case)), torch.float32)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck_and_gradgradcheck_with_an_activation(device, activation):
    case = masked_case(3, 5, 4, "both", dtype=torch.float64, device=device)
    leaves = [t.requires_grad_() for t in (case.input, case.weight, case.bias)]

    def function(input, weight, bias):
        return functional.masked_linear(input, weight, case.mask, bias, activation=activation)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.heavy
@pytest.mark.parametrize("activation", ["elu", "silu"])
def test_opcheck_with_an_activation(device, ops, activation):
    case = masked_case((2, 3), 6, 5, "both", device=device)
    x, weight, bias = (t.requires_grad_() for t in (case.input, case.weight, case.bias))
    torch.library.opcheck(ops.masked_linear.default, (x, weight, bias, *case.plan, "auto", activation))


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["sorted", "both", "blocks"])
def test_opcheck(device, ops, kind):
    case = masked_case((2, 3), 6, 5, kind, device=device)
    grad = torch.randn(2, 3, 5, device=device, requires_grad=True)
    x, weight, bias = (t.requires_grad_() for t in (case.input, case.weight, case.bias))
    torch.library.opcheck(ops.masked_linear.default, (x, weight, bias, *case.plan))
    torch.library.opcheck(ops.masked_linear_grad_input.default, (grad, weight, *case.plan))
    torch.library.opcheck(ops.masked_linear_grad_weight.default, (grad, x, *case.plan))


def test_torch_compile(device):
    case = masked_case(3, 9, 11, "both", device=device)
    leaves = [case.weight.requires_grad_(), case.bias.requires_grad_()]
    compiled = torch.compile(
        lambda x: functional.masked_linear(x, case.weight, case.mask, case.bias), fullgraph=True, backend="aot_eager"
    )
    for batch in (3, 4, 17):
        x = torch.randn(batch, 9, device=device)
        eager, traced = functional.masked_linear(x, case.weight, case.mask, case.bias), compiled(x)
        torch.testing.assert_close(traced, eager)
        for a, b in zip(
            torch.autograd.grad(traced.square().sum(), leaves), torch.autograd.grad(eager.square().sum(), leaves),
            strict=True,
        ):  # fmt: skip
            torch.testing.assert_close(a, b)


def test_function_transforms(device):
    """Under torch.func the reference runs: per-sample gradients by vmap, and a call with other parameters."""
    case = masked_case(4, 9, 11, "both", dtype=torch.float64, device=device)
    layer = MaskedLinear(9, 11, case.mask, dtype=torch.float64, device=device, activation="tanh")
    other = {"weight": case.weight, "bias": case.bias}

    def loss(parameters, x):
        return torch.func.functional_call(layer, parameters, (x,)).square().sum()

    eager = torch.tanh(F.linear(case.input, torch.where(case.allowed, case.weight, 0.0), case.bias))
    torch.testing.assert_close(torch.func.functional_call(layer, other, (case.input,)), eager)
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(other, case.input)
    whole = {name: tensor.detach().clone().requires_grad_() for name, tensor in other.items()}
    loss(whole, case.input).backward()
    for name in other:
        torch.testing.assert_close(each[name].sum(0), whole[name].grad)
    assert (each["weight"][:, ~case.allowed] == 0).all()


def test_autocast_follows_linear(device):
    case = masked_case(5, 30, 20, device=device)
    leaves = [t.requires_grad_() for t in (case.input, case.weight, case.bias)]
    with torch.autocast(device.type, dtype=torch.bfloat16):
        result = run(case)
        plain = F.linear(case.input, torch.where(case.allowed, case.weight, 0.0), case.bias)
    assert result.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(result, plain, rtol=2e-2, atol=2e-2)
    for mine, other in zip(
        torch.autograd.grad(result.float().sum(), leaves), torch.autograd.grad(plain.float().sum(), leaves), strict=True
    ):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, other, rtol=2e-2, atol=5e-2)


def set_allow_tf32(allowed):
    torch.backends.cuda.matmul.allow_tf32 = allowed


def set_matmul_precision(allowed):
    torch.set_float32_matmul_precision("high" if allowed else "highest")


def set_fp32_precision(allowed):
    torch.backends.cuda.matmul.fp32_precision = "tf32" if allowed else "ieee"


def set_old_against_new(allowed):
    """torch's own check of the old setting raises then; the new one counts."""
    set_allow_tf32(not allowed)
    set_fp32_precision(allowed)


@pytest.fixture
def restored_precision():
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.fp32_precision = "none"


def round_to_tf32(values):
    """To 10 bits of fraction, ties away from zero."""
    return ((values.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("large", [False, True], ids=["tiles of 64", "tiles of 128"])
@pytest.mark.parametrize(
    "set_precision", [set_allow_tf32, set_matmul_precision, set_fp32_precision, set_old_against_new]
)
def test_tf32_is_used_where_torch_allows_it(device, ops, restored_precision, set_precision, large, emulation):
    if not emulation and device.type == "cpu":
        pytest.skip("CUDA only")
    if device.type == "cuda" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no tf32")
    sizes = (1800, 1928, 1848) if large and not emulation else (70, 132, 72)
    case = masked_case(*sizes, "sorted", device=device)
    grad = torch.randn(sizes[0], sizes[2], device=device)

    def products(rounded):
        x, weight, dy = (rounded(t).double() for t in (case.input, case.weight, grad))
        weight = torch.where(case.allowed, weight, 0.0)
        dw = torch.where(case.allowed, dy.T @ x, 0.0)
        return F.linear(x, weight, case.bias.double()), dy @ weight, dw

    def run_all():
        return (
            run(case),
            ops.masked_linear_grad_input(grad, case.weight, *case.plan),
            ops.masked_linear_grad_weight(grad, case.input, *case.plan),
        )

    with emulated.gpu(multiprocessors=1 if large else 132) if emulation else contextlib.nullcontext():
        for allowed in (True, False, True):
            set_precision(allowed)
            wanted, other = products(round_to_tf32), products(lambda t: t)
            if not allowed:
                wanted, other = other, wanted
            for got, want, wrong in zip(run_all(), wanted, other, strict=True):
                scale = float(want.abs().max())
                # Matrix instructions cut off where they add; rounded operands are off by some 1e-4.
                assert float((got - want).abs().max()) < 4e-5 * scale
                assert float((got - wrong).abs().max()) > 6e-5 * scale


def test_a_gpu_without_tf32_is_exact(restored_precision):
    set_allow_tf32(True)
    case = masked_case(70, 130, 72, "sorted")
    emulated.load()
    with _library.use("ar_fast_emulated"):
        with emulated.gpu(capability=7, multiprocessors=1):
            check_all(case, torch.ops.ar_fast_emulated)
            old = run(case)
        set_allow_tf32(False)
        # As many multiprocessors, which decide how a sum is split.
        with emulated.gpu(multiprocessors=1):
            assert torch.equal(old, run(case))


@pytest.mark.parametrize(
    ("dtype", "allowed", "gpu", "words"),
    [
        (torch.float32, False, (9, 132), "tiles of 64 x 64 by exact multiply-adds"),
        (torch.float32, False, (9, 1), "tiles of 64 x 128 by exact multiply-adds"),
        (torch.float32, True, (7, 1), "tiles of 64 x 128 by exact multiply-adds"),
        (torch.float32, True, (9, 5), "tiles of 64 x 64 by mma.sync in tf32"),
        (torch.float32, True, (9, 4), "tiles of 128 x 128 by mma.sync in tf32"),
        (torch.float64, True, (9, 1), "tiles of 64 x 64 by exact multiply-adds"),
        (torch.bfloat16, False, (9, 4), "tiles of 128 x 128 by mma.sync,"),
        (torch.float16, False, (8, 5), "tiles of 64 x 64 by mma.sync,"),
        (torch.float16, False, (7, 1), "tiles of 64 x 64 by mma.sync,"),
    ],
)
def test_explain_says_how_the_tiles_are_made(restored_precision, dtype, allowed, gpu, words):
    emulated.load()
    case = masked_case(130, 8, 140, dtype=dtype)
    with _library.use("ar_fast_emulated"), emulated.gpu(*gpu):
        set_allow_tf32(allowed)
        (line,) = emulated.explain(lambda: run(case))
        assert words in line and "130 rows, 140 outputs, 8 inputs" in line
        few = masked_case(2, 8, 140, dtype=dtype)
        (line,) = emulated.explain(lambda: run(few, "fused"))
        assert "a few rows" in line


@pytest.mark.parametrize("kind", ["sorted", "both", "blocks"])
def test_results_do_not_depend_on_threads(kind):
    case = masked_case(70, 200, 300, kind)
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        torch.manual_seed(1)
        try:
            (dx, _), (dw, _) = gradients(case, torch.ops.ar_fast, "fused")
            results.append((run(case, "fused"), dx, dw))
        finally:
            torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


BAD_INPUTS = {
    "input must have shape": {"input": torch.zeros(2, 4)},
    "input must have at least one dimension, got a scalar": {"input": torch.zeros(())},
    "input must have the dtype of weight": {"input": torch.zeros(2, 5, dtype=torch.float64)},
    "weight must be float32, float64, bfloat16 or float16, got": {"weight": torch.zeros(3, 5, dtype=torch.int32)},
    r"weight must have shape \(O, I\)": {"weight": torch.zeros(5)},
    "bias must have 3 elements": {"bias": torch.zeros(4)},
    "bias must have the dtype of weight": {"bias": torch.zeros(3, dtype=torch.float64)},
    "extents must have 3 elements": {"extents": torch.zeros(4, dtype=torch.int32)},
    "extents must be int": {"extents": torch.zeros(3, dtype=torch.int64)},
    "rows must have 3 elements": {"rows": torch.zeros(2, dtype=torch.int32)},
    "columns must have 5 elements": {"columns": torch.zeros(3, dtype=torch.int32)},
    "a mask is either nested": {"dense": torch.zeros(3, 5, dtype=torch.bool)},
    "a mask needs extents, or both tiles and dense, got neither": {"extents": None},
    "a mask needs extents, or both tiles and dense, got dense alone": {
        "extents": None, "dense": torch.zeros(3, 5, dtype=torch.bool),
    },
    "tiles must have 1 tiles": {
        "extents": None, "dense": torch.zeros(3, 5, dtype=torch.bool), "tiles": torch.zeros(2, 1, dtype=torch.int32),
    },
    "dense must be bool|dense must be Bool": {
        "extents": None, "dense": torch.zeros(3, 5), "tiles": torch.zeros(1, 1, dtype=torch.int32),
    },
    "algorithm must be one of auto, panels, fused, dense, got 'fast'": {"algorithm": "fast"},
    "activation must be relu, .* or leaky_relu, got 'swish'": {"activation": "swish"},
}  # fmt: skip


@pytest.mark.parametrize("message", BAD_INPUTS)
def test_bad_input(device, ops, message):
    arguments = {
        "input": torch.zeros(2, 5), "weight": torch.zeros(3, 5), "bias": torch.zeros(3),
        "extents": torch.tensor([0, 2, 5], dtype=torch.int32), "rows": None, "columns": None, "tiles": None,
        "dense": None, "algorithm": "auto", "activation": None, **BAD_INPUTS[message],
    }  # fmt: skip
    arguments = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    with pytest.raises(RuntimeError, match=f"masked_linear: ({message})"):
        ops.masked_linear(*arguments.values())


@pytest.mark.parametrize(
    ("message", "plan"),
    {
        "extents must lie in 0 ... 5, got 6": {"extents": [0, 2, 6]},
        "extents must lie in 0 ... 5, got -1": {"extents": [-1, 2, 5]},
        "without rows, extents must ascend, got 3 before 2": {"extents": [0, 3, 2]},
        "rows must sort extents in ascending order": {"extents": [0, 3, 2], "rows": [0, 1, 2]},
        "rows must be a permutation of 0 ... 2, got 1 at position 2": {"extents": [0, 2, 3], "rows": [0, 1, 1]},
        "columns must be a permutation of 0 ... 4, got 7": {"extents": [0, 2, 3], "columns": [0, 1, 2, 3, 7]},
    }.items(),
)
def test_bad_plans_on_the_cpu(message, plan):
    tensors = [torch.tensor(plan[k], dtype=torch.int32) if k in plan else None for k in ("extents", "rows", "columns")]
    weight, rows = torch.zeros(3, 5), torch.zeros(2, 5)
    with pytest.raises(RuntimeError, match=f"masked_linear: {message}"):
        torch.ops.ar_fast.masked_linear(rows, weight, None, *tensors, None, None)
    with pytest.raises(RuntimeError, match=f"masked_linear_grad_input: {message}"):
        torch.ops.ar_fast.masked_linear_grad_input(torch.zeros(2, 3), weight, *tensors, None, None)
    with pytest.raises(RuntimeError, match=f"masked_linear_grad_weight: {message}"):
        torch.ops.ar_fast.masked_linear_grad_weight(torch.zeros(2, 3), rows, *tensors, None, None)
