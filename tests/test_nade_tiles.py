"""The CUDA kernels of NADE, under the emulation, at sizes that cross each of their tiles, in every order of threads."""

import ctypes

import emulated
import pytest
import torch

# Hidden units: one, odd, around a warp (32), several strips of 128-bit vectors (64, 128, 256 units), aligned and not,
# and more than one warp per sample. Variables: around the backward's tile (16) and the forward's chunk (32).
HIDDEN = [1, 7, 19, 31, 32, 33, 111, 500, 989]
VARIABLES = [1, 7, 19, 65]
STORAGE = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
ACTIVATIONS = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}


@pytest.fixture(scope="module")
def ops():
    emulated.load()
    return torch.ops.ar_fast_emulated


@pytest.fixture(params=list(emulated.ORDERS), autouse=True)
def fiber_order(request):
    """Uninitialised outputs and scratch start as NaN, so that an element that is never written shows."""
    torch.use_deterministic_algorithms(True)
    with emulated.fiber_order(request.param, seed=7):
        yield
    torch.use_deterministic_algorithms(False)


class Model:
    """Random weights; `rows_in` and `rows_out` give the weight rows of each variable."""

    def __init__(self, variables, hidden, dtype, rows_in=1, rows_out=1, scaled=False, biases=0):
        generator = torch.Generator().manual_seed(variables * 1000 + hidden)

        def normal(*shape, scale=1.0):
            return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

        def offsets(rows):
            return None if isinstance(rows, int) else torch.tensor([0, *rows]).cumsum(0)

        total_in = variables * rows_in if isinstance(rows_in, int) else sum(rows_in)
        total_out = variables * rows_out if isinstance(rows_out, int) else sum(rows_out)
        self.in_weight, self.out_weight = normal(total_in, hidden), normal(total_out, hidden, scale=hidden**-0.5)
        self.in_bias, self.out_bias = normal(biases, hidden) if biases else normal(hidden), normal(total_out)
        self.order = torch.randperm(variables, generator=generator)
        self.in_offsets, self.out_offsets = offsets(rows_in), offsets(rows_out)
        self.scale = normal(variables).abs() + 0.5 if scaled else None

    def twin(self, x, activation):
        """The parameters and the leaves they depend on, in float64, one variable after another."""
        leaf = {
            name: value.double().requires_grad_()
            for name, value in vars(self).items()
            if value is not None and value.is_floating_point()
        }
        variables = len(self.order)
        in_offsets, out_offsets = (
            torch.arange(variables + 1) * (len(weight) // variables) if offsets is None else offsets
            for weight, offsets in ((self.in_weight, self.in_offsets), (self.out_weight, self.out_offsets))
        )
        gathers = self.in_offsets is not None or len(self.in_weight) != variables
        if not gathers:
            leaf["x"] = x = x.double().requires_grad_()
        state = leaf["in_bias"].expand(len(x), -1)
        parameters = torch.zeros(len(x), len(self.out_weight), dtype=torch.float64)
        for i in self.order.tolist():
            scale = leaf["scale"][i] if "scale" in leaf else 1.0
            rows = slice(out_offsets[i], out_offsets[i + 1])
            h = ACTIVATIONS[activation](scale * state)
            parameters = parameters.index_copy(
                1, torch.arange(len(self.out_weight))[rows], h @ leaf["out_weight"][rows].T + leaf["out_bias"][rows]
            )
            step = leaf["in_weight"][in_offsets[i] + x[:, i]] if gathers else x[:, i : i + 1] * leaf["in_weight"][i]
            state = state + step
        return parameters, leaf


def compare(ops, model, x, activation):
    dtype = model.in_weight.dtype
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    expected, leaf = model.twin(x, activation)
    arguments = (model.order, model.in_offsets, model.out_offsets, model.scale, activation)
    actual = ops.nade(x, model.in_weight, model.in_bias, model.out_weight, model.out_bias, *arguments)
    assert actual.dtype == compute
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if compute == torch.float64 else {"rtol": 2e-5, "atol": 2e-5}
    torch.testing.assert_close(actual.double(), expected.detach(), **tolerance)

    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(5), dtype=compute)
    names = ["x", "in_weight", "in_bias", "out_weight", "scale"]
    wanted = [name for name in names if name in leaf]
    leaves = [leaf[name] for name in wanted]
    grads = dict(zip(wanted, torch.autograd.grad(expected, leaves, grad.double(), materialize_grads=True), strict=True))
    got = ops.nade_backward(
        grad, x, model.in_weight, model.in_bias, model.out_weight, *arguments, "x" in leaf, "scale" in leaf, "auto"
    )
    for name, actual in zip(names, got, strict=True):
        if name not in grads:
            assert actual.numel() == 0
            continue
        # Stored in 16 bits, a gradient is rounded once, at the end.
        rounding = torch.finfo(actual.dtype).eps if actual.dtype in (torch.bfloat16, torch.float16) else 0
        size = grads[name].abs().max().item() if grads[name].numel() else 0.0
        bounds = {"rtol": rounding + tolerance["rtol"], "atol": (tolerance["atol"] + rounding * 1e-2) * (1 + size)}
        torch.testing.assert_close(actual.double(), grads[name], msg=lambda text, at=name: f"{at}: {text}", **bounds)


def inputs(batch, variables, dtype, binary=True):
    generator = torch.Generator().manual_seed(batch)
    if binary:
        return torch.randint(0, 2, (batch, variables), generator=generator).to(dtype)
    return torch.randn(batch, variables, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("hidden", HIDDEN)
def test_hidden_units(ops, hidden):
    for dtype in STORAGE:
        compare(ops, Model(19, hidden, dtype), inputs(5, 19, dtype), "sigmoid")


@pytest.mark.parametrize("variables", VARIABLES)
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_variables_and_activations(ops, variables, activation):
    compare(ops, Model(variables, 33, torch.float32), inputs(5, variables, torch.float32, binary=False), activation)


@pytest.mark.parametrize("batch", [0, 1, 9])
def test_batch(ops, batch):
    compare(ops, Model(19, 33, torch.float32, biases=batch), inputs(batch, 19, torch.float32), "tanh")
    compare(ops, Model(7, 20, torch.float64), inputs(batch, 7, torch.float64), "sigmoid")


@pytest.mark.parametrize("hidden", [19, 160])
def test_activation_scale(ops, hidden):
    compare(ops, Model(19, hidden, torch.float32, scaled=True), inputs(5, 19, torch.float32), "sigmoid")
    compare(ops, Model(5, hidden, torch.float32, rows_out=11, scaled=True), inputs(3, 5, torch.float32), "tanh")


@pytest.mark.parametrize("dtype", STORAGE)
def test_categories(ops, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 9, (4, 5), generator=generator)
    compare(ops, Model(5, 36, dtype, rows_in=9, rows_out=9), x, "sigmoid")
    rows = [1, 9, 2, 17, 3]
    x = torch.stack([torch.randint(0, n, (4,), generator=generator) for n in rows], 1)
    compare(ops, Model(5, 36, dtype, rows_in=rows, rows_out=rows[::-1]), x, "relu")


@pytest.mark.parametrize(("variables", "rows_out"), [(65, 1), (7, 9)])
def test_results_do_not_depend_on_how_scratch_is_cut(ops, variables, rows_out):
    """With no budget, 64 rows at a time forward and sqrt(tiles) tiles at a time backward."""
    model, x = Model(variables, 20, torch.float32, rows_out=rows_out), inputs(70, variables, torch.float32)
    weights = (model.in_weight, model.in_bias, model.out_weight)
    arguments = (model.order, None, None, None, "sigmoid")
    grad = torch.randn(70, len(model.out_weight))
    results = []
    for budget in (0, 256 << 20):
        emulated.load().ar_fast_test_set_scratch_budget(ctypes.c_int64(budget))
        forward = ops.nade(x, *weights, model.out_bias, *arguments)
        results.append((forward, *ops.nade_backward(grad, x, *weights, *arguments, True, False, "auto")))
    for cut, whole in zip(*results, strict=True):
        assert torch.equal(cut, whole)


def test_bernoulli_head(ops):
    model, x = Model(300, 8, torch.float32), inputs(3, 300, torch.float32)
    logits = model.twin(x, "sigmoid")[0].detach()
    expected = torch.distributions.Bernoulli(logits=logits).log_prob(x.double())
    weights = (model.in_weight, model.in_bias, model.out_weight, model.out_bias, model.order, None, "sigmoid")
    total, kept = ops.nade_log_prob_forward(x, *weights, False, True, "auto")
    torch.testing.assert_close(total.double(), expected.sum(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kept.double(), logits, rtol=1e-5, atol=1e-5)
    per_variable, _ = ops.nade_log_prob_forward(x, *weights, True, False, "auto")
    torch.testing.assert_close(per_variable.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [100, -100, float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_activations_at_their_limits(ops, activation, size):
    model = Model(1, 4, torch.float32)
    model.in_bias.fill_(size)
    args = (model.in_weight, model.in_bias, model.out_weight, model.out_bias)
    actual = ops.nade(torch.zeros(1, 1), *args, None, None, None, None, activation)
    h = ACTIVATIONS[activation](model.in_bias)
    torch.testing.assert_close(actual[0], model.out_weight @ h + model.out_bias, equal_nan=True)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_activations_are_accurate(ops, activation):
    """Each hidden unit read out by itself: relative error below 1e-6 down to 1e-30."""
    values = torch.cat([torch.linspace(-60, 60, 256), torch.logspace(-6, 0, 128), -torch.logspace(-6, 0, 128)])
    hidden = len(values)
    arguments = (torch.zeros(1, hidden), values, torch.eye(hidden), torch.zeros(hidden))
    actual = ops.nade(torch.zeros(1, 1), *arguments, None, None, None, None, activation)[0]
    expected = ACTIVATIONS[activation](values.double())
    assert ((actual.double() - expected).abs() / expected.abs()).nan_to_num(0).max() < 1e-6


@pytest.mark.parametrize("hidden", HIDDEN)
def test_sampling(ops, hidden):
    """log_prob of what is drawn equals the forward's, in one go or in two."""
    dtype = torch.float64 if hidden < 100 else torch.float32
    model = Model(19, hidden, dtype)
    state = model.in_bias.expand(3, -1).contiguous()
    weights = (model.in_weight, model.out_weight, model.out_bias, model.order, None)

    def sample(state, start, stop, first_index=0, given=None, known=None):
        return ops.nade_sample(state, *weights, given, known, "sigmoid", 11, first_index, start, stop, 1.0)

    values, log_prob, after = sample(state, 0, 19)
    x = torch.empty_like(values).index_copy(1, model.order, values)
    expected = torch.distributions.Bernoulli(logits=model.twin(x, "sigmoid")[0].detach()).log_prob(x.double())
    torch.testing.assert_close(log_prob, expected.sum(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(after, state + x @ model.in_weight, rtol=1e-4, atol=1e-4)
    assert 0 < values.mean() < 1

    head, head_log_prob, middle = sample(state, 0, 8)
    tail, tail_log_prob, end = sample(middle, 8, 19)
    assert torch.equal(torch.cat([head, tail], 1), values) and torch.equal(end, after)
    torch.testing.assert_close(head_log_prob + tail_log_prob, log_prob)
    alone, alone_log_prob, _ = sample(state[2:], 0, 19, first_index=2)
    assert torch.equal(alone[0], values[2]) and torch.equal(alone_log_prob[0], log_prob[2])

    known = torch.zeros(3, 19, dtype=torch.bool).index_fill(1, model.order[:6], True)
    given, given_log_prob, _ = sample(state, 0, 19, given=x.flip(0), known=known)
    assert torch.equal(given[:, :6], x.flip(0)[:, model.order[:6]])
    assert not torch.equal(given_log_prob, log_prob)


def test_too_many_hidden_units_to_sample(ops):
    weight = torch.zeros(1, 8193)
    with pytest.raises(RuntimeError, match="nade_sample: on CUDA in_weight must have at most 8192 hidden units"):
        ops.nade_sample(weight, weight, weight, torch.zeros(1), None, None, None, None, "sigmoid", 0, 0, 0, 1, 1.0)
