"""The CUDA kernels of the masked ops at sizes that cross their tiles: under the emulation, in every order of threads,
and on a GPU.

Without conftest.py, so that they also run under AddressSanitizer.
"""

import contextlib
import ctypes

import emulated
import on_cuda
import pytest
import torch
from grids import pairs

STORAGE = {torch.float32: 2e-5, torch.float64: 1e-11, torch.bfloat16: 8e-3, torch.float16: 1e-3}
# Storage, and what the operands of a product are rounded to.
FORMS = {str(dtype): (dtype, lambda values: values) for dtype in STORAGE}
FORMS["tf32"] = (torch.float32, lambda values: round_to_tf32(values))
# (B, I, O): one, odd, around the tile (64), the steps of a sum (16, 32), vectors that fit (136) and that do not.
SIZES = [(1, 1, 1), (3, 7, 19), (5, 136, 72), (65, 33, 67), (70, 136, 129), (9, 130, 64)]
# Around the large tile (128), and with tiles that need no mask; vectors fit, or it would not be taken.
LARGE_SIZES = [(1, 8, 8), (5, 136, 72), (130, 40, 136), (127, 264, 120), (136, 128, 264)]
KINDS = ["sorted", "edges", "both", "blocks"]


@pytest.fixture
def ops(fiber_order):
    if fiber_order == on_cuda.ORDER:
        return on_cuda.Ops()
    emulated.load()
    return torch.ops.ar_fast_emulated


@pytest.fixture(params=[*emulated.ORDERS, *on_cuda.available()], autouse=True)
def fiber_order(request):
    """Uninitialised outputs start as NaN, so that an element that is never written shows."""
    torch.use_deterministic_algorithms(True)
    with contextlib.nullcontext() if request.param == on_cuda.ORDER else emulated.fiber_order(request.param):
        yield request.param
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def gpu(fiber_order):
    """gpu(multiprocessors=...) sets how many the launchers see; a real GPU has its own number."""
    return (lambda **_: contextlib.nullcontext()) if fiber_order == on_cuda.ORDER else emulated.gpu


def plan_of(kind, outputs, inputs):
    """The op's mask arguments and the dense mask."""
    extents = torch.randint(0, inputs + 1, (outputs,))
    if kind == "edges":  # one short of a step's end along the columns, one past it along the rows
        extents = (31 + (torch.arange(outputs) + 31) // 32 * 32).clamp(max=inputs)
    if kind == "blocks":
        allowed = torch.rand(outputs, inputs) < 0.5
        allowed[:64, 64:128] = False
        allowed[64:128, :64] = True
        tiles = torch.nn.functional.pad(allowed.int(), (0, -inputs % 64, 0, -outputs % 64), value=2)
        tiles = tiles.unflatten(0, (-1, 64)).unflatten(2, (-1, 64)).permute(0, 2, 1, 3).flatten(2)
        lowest, highest = tiles.amin(2), torch.where(tiles == 2, 0, tiles).amax(2)
        kinds = torch.where(highest == 0, 0, torch.where(lowest >= 1, 1, 2))
        return (None, None, None, kinds.int(), allowed), allowed
    if kind in ("sorted", "edges"):
        extents = extents.sort().values
        return (extents.int(), None, None, None, None), torch.arange(inputs) < extents[:, None]
    if kind == "rows":
        return (extents.int(), extents.argsort().int(), None, None, None), torch.arange(inputs) < extents[:, None]
    columns = torch.randperm(inputs)
    plan = (extents.int(), extents.argsort().int(), columns.int(), None, None)
    return plan, columns.argsort() < extents[:, None]


def round_to_tf32(values):
    """To 10 bits of fraction, ties away from zero."""
    return ((values.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@contextlib.contextmanager
def tf32(allowed):
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def check(ops, size, kind, form, algorithm):
    """y, dX and dW against the references, with NaN for masked weights."""
    batch, inputs, outputs = size
    dtype, rounded = FORMS[form]
    torch.manual_seed(batch + inputs)
    plan, allowed = plan_of(kind, outputs, inputs)
    x, grad, bias = (torch.randn(*shape).to(dtype) for shape in ((batch, inputs), (batch, outputs), (outputs,)))
    weight = (torch.randn(outputs, inputs) / inputs**0.5).to(dtype)
    masked = torch.where(allowed, rounded(weight).double(), 0.0)
    weight = torch.where(allowed, weight, float("nan"))
    wide_x, wide_grad = rounded(x).double(), rounded(grad).double()
    with tf32(form == "tf32"):
        wanted = {
            "y": (ops.masked_linear(x, weight, bias, *plan, algorithm), wide_x @ masked.T + bias.double()),
            "dx": (ops.masked_linear_grad_input(grad, weight, *plan, algorithm), wide_grad @ masked),
            "dw": (
                ops.masked_linear_grad_weight(grad, x, *plan, algorithm),
                torch.where(allowed, wide_grad.T @ wide_x, 0.0),
            ),
        }
    tolerance = {"rtol": STORAGE[dtype], "atol": STORAGE[dtype]}
    for name, (got, want) in wanted.items():
        scale = max(1.0, float(want.abs().max()))
        torch.testing.assert_close(got.double() / scale, want / scale, **tolerance, msg=lambda m, n=name: f"{n}: {m}")
    assert (wanted["dw"][0][~allowed] == 0).all()


@pytest.mark.parametrize(("kind", "size", "form"), pairs(KINDS, SIZES, FORMS), ids=str)
def test_tiles(ops, size, kind, form):
    check(ops, size, kind, form, "panels")


@pytest.mark.parametrize("form", ["torch.bfloat16", "torch.float16", "tf32"])
@pytest.mark.parametrize("kind", ["sorted", "edges", "rows", "blocks"])
@pytest.mark.parametrize("size", LARGE_SIZES, ids=str)
def test_large_tiles(ops, fiber_order, size, kind, form):
    if fiber_order == on_cuda.ORDER:
        pytest.skip("a GPU takes large tiles where there are as many as multiprocessors: the next test")
    with emulated.gpu(multiprocessors=1):
        said = emulated.explain(lambda: check(ops, size, kind, form, "panels"))
    # A permutation of the rows of the weight scatters the columns of dY.
    tiles = ["128 x 128", "64 x 64", "64 x 64"] if kind == "rows" else ["128 x 128"] * 3
    assert all(f"tiles of {tile} by mma.sync" in line for tile, line in zip(tiles, said, strict=True)), said


# Around the wide tiles (32 or 64 x 128), and the chunks in which y and dX add up: sums are split where there are too
# few tiles for the GPU.
WIDE_SIZES = {
    (32, 300, 111): (80, 64),
    (33, 19, 290): (None, 80),
    (70, 290, 136): (80, None),
    (131, 136, 520): (None,) * 2,
}


@pytest.mark.parametrize(("kind", "size"), pairs([*KINDS, "rows"], list(WIDE_SIZES)), ids=str)
def test_wide_tiles(ops, fiber_order, size, kind):
    """Exact float32, where a launcher sees a small GPU."""
    if fiber_order == on_cuda.ORDER:
        pytest.skip("a GPU takes wide tiles where there are as many as multiprocessors: test_masked_linear.py")
    with emulated.gpu(multiprocessors=2):
        y, dx, dw = emulated.explain(lambda: check(ops, size, kind, "torch.float32", "panels"))
    for said, chunk in zip((y, dx), WIDE_SIZES[size], strict=True):
        assert f"tiles of {32 if size[0] <= 32 else 64} x 128 by exact" in said
        assert "in chunks of" not in said if chunk is None else f"sums in chunks of {chunk}," in said
    assert "tiles of 64 x 128 by exact" in dw


def test_activations_and_values_that_are_not_finite_in_chunks(ops, fiber_order):
    """A masked weight and a value that is not finite meet in no chunk."""
    if fiber_order == on_cuda.ORDER:
        pytest.skip("test_masked_linear.py")
    torch.manual_seed(3)
    plan, allowed = plan_of("sorted", 140, 530)
    weight, x, bias = torch.randn(140, 530) / 20, torch.randn(35, 530), torch.randn(140)
    x[3, 200], x[7, 500] = float("inf"), float("nan")
    weight[139, 5] = float("nan")
    with emulated.gpu(multiprocessors=2):
        for activation in (None, "relu", "tanh"):  # not gelu: torch's of infinity depends on the instruction set
            got = ops.masked_linear(x, weight, bias, *plan, "panels", *([activation] if activation else []))
            rows = torch.stack([
                torch.nn.functional.linear(x[:, :seen], weight[o : o + 1, :seen], bias[o : o + 1])[:, 0]
                for o, seen in enumerate(allowed.sum(1).tolist())
            ], 1)  # fmt: skip
            want = ACTIVATIONS.get(activation, lambda values: values)(rows)
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("form", ["torch.bfloat16", "torch.float16", "tf32"])
@pytest.mark.parametrize("kind", ["sorted", "edges", "rows", "blocks"])
@pytest.mark.parametrize("fiber_order", on_cuda.available(), indirect=True)
def test_large_tiles_on_a_gpu(ops, kind, form):
    """13 x 13 tiles of 128 x 128, more than an H200 has multiprocessors, in each of the three products."""
    from ar_fast import _library

    _library._C.explain_begin()
    try:
        check(ops, (1600, 1544, 1608), kind, form, "panels")
    finally:
        said = _library._C.explain_end()
    assert any("tiles of 128 x 128 by mma.sync" in line for line in said), said


ACTIVATIONS = {
    "relu": torch.relu,
    "leaky_relu": torch.nn.functional.leaky_relu,
    "tanh": torch.tanh,
    "gelu": torch.nn.functional.gelu,
    "softplus": torch.nn.functional.softplus,
}


LAUNCHES = [
    (size, multiprocessors, kind)
    for size, multiprocessors in [((70, 136, 129), 132), ((128, 72, 136), 1), ((130, 40, 136), 1)]
    for kind in ("sorted", "rows")
]


@pytest.mark.parametrize(("activation", "form", "launch"), pairs(ACTIVATIONS, FORMS, LAUNCHES), ids=str)
def test_activations(ops, gpu, launch, form, activation):
    """Of the sums, rounded to the storage: within tiles of either size, at their edges, and in columns elsewhere."""
    (batch, inputs, outputs), multiprocessors, kind = launch
    dtype, _ = FORMS[form]
    torch.manual_seed(batch)
    plan, _ = plan_of(kind, outputs, inputs)
    x, bias = torch.randn(batch, inputs).to(dtype), torch.randn(outputs).to(dtype)
    weight = (torch.randn(outputs, inputs) / inputs**0.5).to(dtype)
    with gpu(multiprocessors=multiprocessors), tf32(form == "tf32"):
        sums = ops.masked_linear(x, weight, bias, *plan, "panels")
        got = ops.masked_linear(x, weight, bias, *plan, "panels", activation)
    torch.testing.assert_close(got, ACTIVATIONS[activation](sums), rtol=STORAGE[dtype], atol=STORAGE[dtype])


@pytest.mark.parametrize("multiprocessors", [1, 132])
@pytest.mark.parametrize("kind", ["sorted", "blocks"])
def test_a_row_does_not_depend_on_the_others(ops, gpu, kind, multiprocessors):
    torch.manual_seed(5)
    plan, _ = plan_of(kind, 136, 72)
    weight, x = torch.randn(136, 72).bfloat16(), torch.randn(131, 72).bfloat16()
    with gpu(multiprocessors=multiprocessors):
        y = ops.masked_linear(x, weight, None, *plan, "panels")
        dx = ops.masked_linear_grad_input(y, weight, *plan, "panels")
        for rows in (slice(130, 131), slice(3, 70)):
            assert torch.equal(ops.masked_linear(x[rows], weight, None, *plan, "panels"), y[rows])
            assert torch.equal(ops.masked_linear_grad_input(y[rows], weight, *plan, "panels"), dx[rows])


@pytest.mark.parametrize(("kind", "dtype", "size"), pairs(KINDS, STORAGE, SIZES), ids=str)
def test_rows(ops, size, kind, dtype):
    check(ops, size, kind, str(dtype), "fused")


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


@pytest.fixture
def most_blocks_in_y(fiber_order):
    """most_blocks_in_y(count) lowers how many a launch of the ops for few rows takes; on a GPU they stay 65,535."""
    if fiber_order == on_cuda.ORDER:
        yield lambda count: None
        return
    set_most = emulated.load().ar_fast_test_set_most_blocks_in_y
    yield lambda count: set_most(ctypes.c_int64(count))
    set_most(ctypes.c_int64(65535))


@pytest.mark.parametrize(("kind", "dtype"), pairs(KINDS, STORAGE), ids=str)
def test_more_rows_than_a_launch_has_blocks_for(ops, most_blocks_in_y, kind, dtype):
    """Two blocks of 4 rows each: two whole launches and one of 5 rows."""
    most_blocks_in_y(2)
    check(ops, (21, 33, 37), kind, str(dtype), "fused")


@pytest.mark.parametrize(
    ("batch", "blocks"), [(262_140, [65535]), (262_141, [65535, 1]), (600_000, [65535, 65535, 18930])]
)
def test_a_launch_has_no_more_blocks_than_a_grid(ops, fiber_order, batch, blocks):
    """The emulation refuses what a GPU refuses; launches are noted and not run."""
    x, weight = torch.randn(batch, 1), torch.ones(1, 1)
    plan = (torch.ones(1, dtype=torch.int32), None, None, None, None)
    if fiber_order == on_cuda.ORDER:
        torch.testing.assert_close(ops.masked_linear(x, weight, None, *plan, "fused"), x)
        torch.testing.assert_close(ops.masked_linear_grad_input(x, weight, *plan, "fused"), x)
        return
    record = emulated.load().ar_fast_emulation_record
    record.restype, record.argtypes = ctypes.c_char_p, [ctypes.c_bool]
    for run in (
        lambda: ops.masked_linear(x, weight, None, *plan, "fused"),
        lambda: ops.masked_linear_grad_input(x, weight, *plan, "fused"),
    ):
        record(True)
        try:
            run()
        finally:
            lines = record(False).decode().splitlines()
        assert [int(line.split()[2]) for line in lines] == blocks
