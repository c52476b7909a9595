"""The CUDA kernels of the masked ops, under the emulation, at sizes that cross their tiles, in every order of threads.

Without conftest.py, so that they also run under AddressSanitizer.
"""

import emulated
import pytest
import torch

STORAGE = {torch.float32: 2e-5, torch.float64: 1e-11, torch.bfloat16: 8e-3, torch.float16: 1e-3}
# (B, I, O): one, odd, around the tile (64), the steps of a sum (16, 32), vectors that fit (136) and that do not.
SIZES = [(1, 1, 1), (3, 7, 19), (5, 136, 72), (65, 33, 67), (70, 136, 129), (9, 130, 64)]
KINDS = ["sorted", "both", "blocks"]


@pytest.fixture(scope="module")
def ops():
    emulated.load()
    return torch.ops.ar_fast_emulated


@pytest.fixture(params=list(emulated.ORDERS), autouse=True)
def fiber_order(request):
    """Uninitialised outputs start as NaN, so that an element that is never written shows."""
    torch.use_deterministic_algorithms(True)
    with emulated.fiber_order(request.param, seed=7):
        yield
    torch.use_deterministic_algorithms(False)


def plan_of(kind, outputs, inputs):
    """The op's mask arguments and the dense mask."""
    extents = torch.randint(0, inputs + 1, (outputs,))
    if kind == "blocks":
        allowed = torch.rand(outputs, inputs) < 0.5
        allowed[:64, 64:128] = False
        allowed[64:128, :64] = True
        tiles = torch.nn.functional.pad(allowed.int(), (0, -inputs % 64, 0, -outputs % 64), value=2)
        tiles = tiles.unflatten(0, (-1, 64)).unflatten(2, (-1, 64)).permute(0, 2, 1, 3).flatten(2)
        lowest, highest = tiles.amin(2), torch.where(tiles == 2, 0, tiles).amax(2)
        kinds = torch.where(highest == 0, 0, torch.where(lowest >= 1, 1, 2))
        return (None, None, None, kinds.int(), allowed), allowed
    if kind == "sorted":
        extents = extents.sort().values
        return (extents.int(), None, None, None, None), torch.arange(inputs) < extents[:, None]
    columns = torch.randperm(inputs)
    plan = (extents.int(), extents.argsort().int(), columns.int(), None, None)
    return plan, columns.argsort() < extents[:, None]


@pytest.mark.parametrize("algorithm", ["panels", "fused"])
@pytest.mark.parametrize("dtype", STORAGE, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_masked_linear(ops, size, kind, dtype, algorithm):
    batch, inputs, outputs = size
    torch.manual_seed(batch + inputs)
    plan, allowed = plan_of(kind, outputs, inputs)
    x, grad, bias = (torch.randn(*shape).to(dtype) for shape in ((batch, inputs), (batch, outputs), (outputs,)))
    weight = (torch.randn(outputs, inputs) / inputs**0.5).to(dtype)
    masked = torch.where(allowed, weight.double(), 0.0)
    weight = torch.where(allowed, weight, float("nan"))
    wanted = {
        "y": (ops.masked_linear(x, weight, bias, *plan, algorithm), x.double() @ masked.T + bias.double()),
        "dx": (ops.masked_linear_grad_input(grad, weight, *plan, algorithm), grad.double() @ masked),
        "dw": (
            ops.masked_linear_grad_weight(grad, x, *plan, algorithm),
            torch.where(allowed, grad.double().T @ x.double(), 0.0),
        ),
    }
    tolerance = {"rtol": STORAGE[dtype], "atol": STORAGE[dtype]}
    for name, (got, want) in wanted.items():
        scale = max(1.0, float(want.abs().max()))
        torch.testing.assert_close(got.double() / scale, want / scale, **tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("dtype", STORAGE, ids=str)
@pytest.mark.parametrize("units", [3, 37, 2100])
def test_masked_mlp_sample(ops, units, dtype):
    """Values and log_prob against a pass over the drawn values; 2100 units do not fit in shared memory."""
    variables, batch = 7, 6
    torch.manual_seed(units)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    degrees = torch.randint(1, variables, (units,)).sort().values
    positions = torch.arange(variables)
    extents = [degrees, torch.searchsorted(degrees, positions, right=True)]
    ends = torch.searchsorted(degrees, positions, right=True).int()
    weights = [torch.randn(units, variables).to(dtype), (torch.randn(variables, units) / units**0.5).to(dtype)]
    biases = [torch.randn(units).to(dtype), torch.randn(variables).to(dtype)]
    state = torch.zeros(batch, variables + units, dtype=compute)
    values, log_prob, state = ops.masked_mlp_sample(
        state, weights, biases, [e.int() for e in extents], [ends], [0, -1, -1, 1, 1, -1, -1, 0], None, None,
        None, None, None, variables, "tanh", "bernoulli", 0, None, 5, 0, 0, variables, 1.0,
    )  # fmt: skip
    masked = [
        torch.where(torch.arange(w.shape[1]) < e[:, None], w.double(), 0.0)
        for w, e in zip(weights, extents, strict=True)
    ]
    hidden = torch.tanh(values.double() @ masked[0].T + biases[0].double())
    logits = hidden @ masked[1].T + biases[1].double()
    want = -torch.nn.functional.binary_cross_entropy_with_logits(logits, values.double(), reduction="none").sum(1)
    assert set(values.unique().tolist()) <= {0.0, 1.0}
    torch.testing.assert_close(log_prob, want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state.double(), torch.cat([values.double(), hidden], 1), rtol=1e-5, atol=1e-5)
